"""Triton's kernels compiled without a GPU, in every configuration that can be chosen."""

import os
from importlib.metadata import version

import pytest

pytest.importorskip("triton")
pytest.importorskip("click")
pytest.importorskip("rich")

from bench.gpu import resources, triton_resources
from bench.gpu.kernel_resources import ARCHITECTURES, faults
from cawa_fast.kernels import _tiling
from tests.support.triton_versions import OLDEST, WHY_NOT


def assert_backward_uses_no_shared_memory(table):
    """The backward pass uses no shared memory. With the layout that the compiler prefers it would."""
    assert {row.shared_memory for row in table if row.kernel == "_backward"} == {0}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_spills(architecture):
    """No local memory, no more shared memory than a GPU has, and registers as in the committed table.

    For all architectures if the kernels have changed since the table was made, otherwise for one.
    """
    every = os.environ.get("CAWA_FAST_TEST_ARCHITECTURES") == "all"
    if architecture != 90 and not every and resources.is_current({"triton": version("triton")}):
        pytest.skip("the committed table is that of these kernels")
    table = triton_resources.compile_in_a_process([architecture])
    assert not faults(table)
    assert_backward_uses_no_shared_memory(table)
    configurations = {(row.kernel, row.configuration) for row in table}
    assert len(configurations) == len(table) > 50
    compilers, committed = resources.read()
    if compilers["triton"] == version("triton"):
        kernels = {row.kernel for row in table}
        expected = [row for row in committed if row.kernel in kernels and row.architecture == architecture]
        assert table == expected, "registers differ from the committed table; `python -m bench resources` updates it"


@pytest.mark.slow
@pytest.mark.skipif(OLDEST is None, reason=WHY_NOT)
@pytest.mark.parametrize("architecture", [80, 90])
def test_the_oldest_triton_compiles_kernels_without_spills(architecture):
    table = triton_resources.compile_in_a_process([architecture], OLDEST)
    assert not faults(table)
    assert_backward_uses_no_shared_memory(table)


def test_every_configuration_of_the_tables_is_compiled():
    wanted = {
        (kernel, ", ".join(f"{key} {value}" for key, value in configuration.items()))
        for table, (kernel, _) in triton_resources._BY_KERNEL.items()
        for configuration in _tiling.TABLES[table]
    }
    assert _tiling.TABLES.keys() == triton_resources._BY_KERNEL.keys()
    assert wanted <= {(row.kernel, row.configuration) for row in resources.read()[1]}


def test_the_recorded_launches_include_every_kernel():
    """The launches recorded from the operators include every kernel, forward and backward."""
    kernels = {call[0].fn.__name__ for _, _, call in triton_resources.kernel_cases()}
    assert kernels == {
        "_label_histogram",
        "_confusion_matrix_labels",
        "_confusion_matrix",
        "_ranges",
        "_extremes",
        "_thresholds",
        "_counts",
        "_scale",
        "_forward",
        "_total",
        "_backward",
        "_backward_same",
    }
