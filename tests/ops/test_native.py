"""The compiled extension: it is installed, it describes its build, and its operators agree with plain PyTorch."""

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES

import pytest
import torch

from cawa_fast._ops import native

INT64 = torch.iinfo(torch.int64)
DTYPES = [torch.uint8, torch.int16, torch.int32, torch.int64]
NO_BAD = [0, INT64.max, INT64.min]

needs_native = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))


def confusion_matrix_labels(prediction, target, num_classes, ignore_index):
    counts, bad = torch.ops.cawa_fast_cpu.confusion_matrix_labels(prediction, target, num_classes, ignore_index)
    assert counts.dtype == bad.dtype == torch.int64
    return counts, bad.tolist()


def oracle(prediction, target, num_classes, ignore_index):
    """The same from masks and ``torch.bincount``, all in int64."""
    prediction, target = prediction.reshape(-1).long(), target.reshape(-1).long()

    def outside(labels):
        return (labels < 0) | (labels >= num_classes)

    def summary(labels):
        return [len(labels), int(labels.min()), int(labels.max())] if len(labels) else NO_BAD

    bad_target = (target != ignore_index) & outside(target)
    bad_prediction = (target != ignore_index) & ~bad_target & outside(prediction)
    kept = (target != ignore_index) & ~bad_target & ~bad_prediction
    counts = torch.bincount(target[kept] * num_classes + prediction[kept], minlength=num_classes**2)
    return counts.view(num_classes, num_classes), summary(target[bad_target]) + summary(prediction[bad_prediction])


def check(prediction, target, num_classes, ignore_index):
    counts, bad = confusion_matrix_labels(prediction, target, num_classes, ignore_index)
    expected_counts, expected_bad = oracle(prediction, target, num_classes, ignore_index)
    assert torch.equal(counts, expected_counts)
    assert bad == expected_bad


def labels(low, high, shape, dtype=torch.int64, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_is_built_unless_switched_off():
    # Without this test a broken build would only show as skipped tests.
    assert native.available() or os.environ.get("CAWA_FAST_NATIVE") == "0", native.why_not()


@needs_native
def test_build_info():
    info = native.build_info()
    assert info.keys() == {
        "compiler",
        "cxx_standard",
        "build_type",
        "torch_target",
        "torch_headers",
        "pybind11",
        "instruction_sets",
        "cuda_architectures",
        "cpu",
    }
    assert info["torch_target"] == "2.10"
    assert info["cxx_standard"] >= 2020
    assert "baseline" in info["instruction_sets"]
    assert isinstance(info["cuda_architectures"], list)
    assert native.why_not() is None


def test_switched_off_at_run_time():
    code = "from cawa_fast._ops import native; print(native.available(), native.build_info(), native.why_not())"
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    output = subprocess.check_output(command, env=os.environ | {"CAWA_FAST_NATIVE": "0"}, text=True)
    assert output.startswith("False None CAWA_FAST_NATIVE=0 in the environment")


def test_missing_extension_says_what_to_do(monkeypatch):
    monkeypatch.delenv("CAWA_FAST_NATIVE", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    extension, reason = native._load()
    assert extension is None
    assert "pip install --no-build-isolation" in reason


def test_broken_extension_warns(monkeypatch, tmp_path):
    monkeypatch.delenv("CAWA_FAST_NATIVE", raising=False)
    (tmp_path / f"broken_extension{EXTENSION_SUFFIXES[0]}").write_bytes(b"not a shared library")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(native, "_NAME", "broken_extension")
    with pytest.warns(RuntimeWarning, match="does not load with torch"):
        extension, reason = native._load()
    assert extension is None
    assert f"broken_extension{EXTENSION_SUFFIXES[0]}" in reason  # the loader's own message names the file


@needs_native
def test_by_hand():
    target = torch.tensor([[[0, 0, 1], [2, 255, 1]]], dtype=torch.uint8)
    prediction = torch.tensor([[[0, 1, 1], [2, 0, 1]]])
    counts, bad = confusion_matrix_labels(prediction, target, 3, 255)
    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 1]]
    assert bad == NO_BAD * 2


@needs_native
@pytest.mark.parametrize("target_dtype", DTYPES)
@pytest.mark.parametrize("prediction_dtype", DTYPES)
@pytest.mark.parametrize("ignore_index", [-100, 255, 3])
def test_dtypes(prediction_dtype, target_dtype, ignore_index):
    shape, num_classes = (2, 37, 53), 19  # a tail after whole blocks of pixels
    prediction = labels(0, num_classes, shape, prediction_dtype, seed=1)
    target = labels(0, num_classes, shape, target_dtype, seed=2)
    target[:, :4] = max(ignore_index, 0)  # for -100: class 0, nothing ignored
    check(prediction, target, num_classes, ignore_index)


@needs_native
@pytest.mark.parametrize("target_dtype", DTYPES)
@pytest.mark.parametrize("prediction_dtype", DTYPES)
def test_bad_labels(prediction_dtype, target_dtype):
    def wild(dtype, seed):
        values = labels(0, 19, (3, 40, 50), dtype, seed)
        info = torch.iinfo(dtype)
        for i, value in enumerate([info.min, info.max, 19, 20, max(-1, info.min)]):
            values.view(-1)[seed + 97 * i :: 1009] = value
        return values

    prediction, target = wild(prediction_dtype, 1), wild(target_dtype, 2)
    # predictions at bad targets are not reported
    prediction.view(-1)[2 + 97 :: 1009] = 200 if prediction_dtype == torch.uint8 else -7
    check(prediction, target, 19, 255)


@needs_native
def test_labels_that_would_wrap_are_bad():
    # 2**32 + 1 is class 1 in 32 bits, 65536 + 2 is class 2 in 16.
    target = torch.tensor([2**32 + 1, 0, -(2**32)])
    prediction = torch.tensor([0, 65536 + 2, 0], dtype=torch.int32)
    counts, bad = confusion_matrix_labels(prediction, target, 3, -100)
    assert counts.sum() == 0
    assert bad == [2, -(2**32), 2**32 + 1, 1, 65538, 65538]


@needs_native
@pytest.mark.parametrize(
    ("dtype", "ignore_index"),
    [
        (torch.uint8, -100),  # 156 in eight bits
        (torch.uint8, 256 + 1),  # 1 in eight bits
        (torch.int16, 65536 + 1),
        (torch.int32, 2**32 + 1),
        (torch.int32, INT64.min),
    ],
)
def test_ignore_index_that_the_dtype_cannot_hold_ignores_nothing(dtype, ignore_index):
    target = torch.tensor([0, 1, 156], dtype=dtype)
    counts, bad = confusion_matrix_labels(torch.zeros(3, dtype=torch.uint8), target, 160, ignore_index)
    assert counts.sum() == 3
    assert bad == NO_BAD * 2


@needs_native
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::2, 1:-1],
        lambda x: x.transpose(1, 2),
        lambda x: x.flip(2),
        lambda x: x[:1].expand(4, -1, -1),
        lambda x: x.flatten()[5:],
    ],
    ids=["sliced", "transposed", "flipped", "expanded", "offset"],
)
def test_strides(view):
    prediction, target = (labels(0, 19, (3, 32, 48), torch.uint8, seed) for seed in (1, 2))
    check(view(prediction), view(target), 19, 255)
    check(view(prediction), view(target).clone(memory_format=torch.contiguous_format), 19, 255)


@needs_native
@pytest.mark.parametrize("shape", [(0,), (0, 4, 4), (2, 0, 3), (), (1, 1, 1), (7,)])
def test_sizes(shape):
    check(labels(0, 2, shape, seed=1), labels(0, 2, shape, seed=2), 2, -100)


@needs_native
@pytest.mark.parametrize("num_classes", [1, 19, 181, 200])  # up to 181: four tables of counters, else one
@pytest.mark.parametrize("hot", [0.0, 0.9, 1.0], ids=["noise", "hot bin", "one bin"])
def test_more_than_one_task_and_any_number_of_threads(num_classes, hot):
    shape = (2, 300, 501)  # four tasks of 2**16 pixels and a tail
    prediction, target = (labels(0, num_classes, shape, torch.int16, seed) for seed in (1, 2))
    in_hot_bin = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < hot
    prediction[in_hot_bin] = target[in_hot_bin] = num_classes - 1
    target[0, 0, 0], target[1, -1, -1], prediction[1, 0, 0] = -5, num_classes, -9  # bad in different tasks
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            check(prediction, target, num_classes, -100)
    finally:
        torch.set_num_threads(threads)


@needs_native
def test_inputs_are_not_changed():
    prediction, target = labels(0, 19, (64, 64), seed=1), labels(-1, 20, (64, 64), seed=2)
    before = prediction.clone(), target.clone()
    confusion_matrix_labels(prediction, target, 19, -1)
    assert torch.equal(prediction, before[0])
    assert torch.equal(target, before[1])


@needs_native
@pytest.mark.parametrize(
    ("prediction", "target", "num_classes", "message"),
    [
        (torch.zeros(4).long(), torch.zeros(5).long(), 2, "same shape"),
        (torch.zeros(1, 4).long(), torch.zeros(4).long(), 2, "same shape"),
        (torch.zeros(4), torch.zeros(4).long(), 2, "prediction must be uint8, int16, int32 or int64, not Float"),
        (torch.zeros(4).long(), torch.zeros(4).bool(), 2, "target must be uint8, int16, int32 or int64, not Bool"),
        (torch.zeros(4).long(), torch.zeros(4).long(), 0, "num_classes must be in"),
        (torch.zeros(4).long(), torch.zeros(4).long(), 65536, "num_classes must be in"),
    ],
)
def test_unsupported_arguments(prediction, target, num_classes, message):
    with pytest.raises(RuntimeError, match=message):
        confusion_matrix_labels(prediction, target, num_classes, -100)
