"""``python -m bench resources``: registers, spills, stack and shared memory of each GPU kernel.

It needs no GPU. It finds kernels that spill registers, keep arrays in local memory or need more shared memory than
there is. The number of registers decides how many blocks share a multiprocessor.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import click

from .. import options
from ..files import RESULTS, ROOT, write_result
from ..measure import commit
from ..table import Column, markdown_table
from .kernel_resources import ARCHITECTURES, Resources, faults

OUT = RESULTS / "resources"

# ----------------------------------------------------------------------------------------------------------- CUDA C++


def nvcc() -> str | None:
    """The path of the CUDA compiler, found as in CMakeLists.txt."""
    folders = [os.environ.get("PATH", "")]
    folders += [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    return shutil.which("nvcc", path=os.pathsep.join([*folders, "/usr/local/cuda/bin"]))


def nvcc_version(compiler: str) -> str:
    """The version, for example ``13.0.48``."""
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"\bV(\d+(?:\.\d+)*)", text)
    assert version is not None, text
    return version[1]


def supported(compiler: str) -> list[int]:
    """The ``ARCHITECTURES`` that the compiler knows."""
    text = subprocess.run([compiler, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return [number for number in ARCHITECTURES if f"sm_{number}" in text.split()]


def compile_cuda(compiler: str, architectures: Iterable[int] = ARCHITECTURES) -> list[Resources]:
    """Compile ``csrc/cuda/`` for all architectures, with warnings as errors; two minutes on one core."""
    torch = find_spec("torch")
    assert torch is not None
    assert torch.submodule_search_locations is not None
    include = Path(torch.submodule_search_locations[0]) / "include"
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    options = ["-std=c++20", "-O3", "--threads=0", "-isystem", str(include), "-Xptxas=-v", "-Werror=all-warnings"]
    options += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-Xcompiler=-Wall,-Wextra,-Werror"]
    output = ""
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        with tempfile.TemporaryDirectory() as folder:
            command = [compiler, "-c", str(source), "-o", f"{folder}/{source.stem}.o", *targets, *options]
            run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert run.returncode == 0, run.stdout
        output += run.stdout
    return parse_ptxas(output)


_ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\d+)a?'")
_MEMORY = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill"
)
_USED = re.compile(r"Used (?P<registers>\d+) registers.*?(?:, (?P<shared>\d+) bytes smem|$)")


def parse_ptxas(text: str) -> list[Resources]:
    """The rows in the output of ``-Xptxas=-v``, sorted."""
    rows = []
    name, architecture, stack, spills = "", 0, 0, 0
    for line in text.splitlines():
        if entry := _ENTRY.search(line):
            name, architecture = entry["name"], int(entry["architecture"])
        elif memory := _MEMORY.search(line):
            stack, spills = int(memory["stack"]), int(memory["stores"]) + int(memory["loads"])
        elif name and (used := _USED.search(line)):
            rows.append(
                Resources(
                    *_readable(name), architecture, int(used["registers"]), spills, stack, int(used["shared"] or 0)
                )
            )
            name = ""
    return sorted(rows)


_TYPES = {"f": "float32", "N3c104HalfE": "float16", "N3c108BFloat16E": "bfloat16"}
# The meaning of the flags among a kernel's template arguments, if true and if false.
_FLAGS = {
    "planar": (("16 bytes", "any strides"), ("smoothing", ""), ("focal", "")),
    "resized_forward": (("offset", ""),),
    "resized_backward": (("offset", ""),),
    "cam_maxima": (("equal sizes", "cells"),),
    "cam_masks": (("equal sizes", "cells"),),
}


def _readable(mangled: str) -> tuple[str, str]:
    """Kernel and configuration from a mangled C++ name, for example of ``planar<float, true, false>``."""
    start = mangled.index("4cuda") + len("4cuda")
    length = re.compile(r"\d+").match(mangled, start)
    assert length is not None, mangled
    end = length.end() + int(length[0])
    kernel = mangled[length.end() : end]
    words = [word for letters, word in _TYPES.items() if mangled.startswith("I" + letters, end)]
    words += [f"cells of {side} by {side}" for side in re.findall(r"Li(\d+)E", mangled[end:])]
    for flag, said in zip(re.findall(r"Lb([01])E", mangled[end:]), _FLAGS.get(kernel, ()), strict=False):
        words.append(said[0] if flag == "1" else said[1])
    return kernel, ", ".join(filter(None, words))


# -------------------------------------------------------------------------------------------------------- the result


def source_digest() -> str:
    """SHA-256 of what decides the table: the kernels' code, the compiler's options and the calls that choose Triton's
    configurations; without comments, docstrings and layout.

    While it equals that of the committed table, the table describes these sources, and nobody has to compile them.
    """
    code = {"options": inspect.getsource(compile_cuda).split()}
    for path in sorted((ROOT / "csrc").glob("cuda/*.*")) + sorted((ROOT / "csrc").glob("*.h")):
        code[path.relative_to(ROOT).as_posix()] = re.sub(r"//[^\n]*|\s+", " ", path.read_text(encoding="utf-8")).split()
    kernels = [path for path in sorted((ROOT / "kernels").glob("*.py")) if path.name != "__init__.py"]  # it has none
    for path in [*kernels, ROOT / "bench" / "gpu" / "triton_resources.py"]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        code[path.relative_to(ROOT).as_posix()] = ast.unparse(tree).split()
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def is_current(compilers: dict[str, str]) -> bool:
    """Whether the committed table is that of these sources, compiled by ``compilers``."""
    result = json.loads(OUT.with_suffix(".json").read_text(encoding="utf-8"))
    known = {name: result["compilers"][name] for name in compilers}
    return known == compilers and result.get("sources") == source_digest()


def read(path: Path = OUT) -> tuple[dict[str, str], list[Resources]]:
    """Compilers and table of the committed result."""
    result = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return result["compilers"], [Resources(**row) for row in result["kernels"]]


def _registers(architecture: int, found: dict[tuple[str, str, int], str]) -> Column:
    return Column(f"sm_{architecture}", lambda key: found.get((*key, architecture), "–"))


def resources_page(compilers: dict[str, str], table: Iterable[Resources], source: str) -> str:
    """One line per kernel and configuration with the registers on each architecture; then the faults, if there are any.

    Args:
        compilers: versions by name.
        table: the kernels.
        source: the commit.
    """
    table = sorted(table)
    registers = {(row.kernel, row.configuration, row.architecture): str(row.registers) for row in table}
    columns = [Column("kernel", lambda key: key[0], left=True), Column("configuration", lambda key: key[1], left=True)]
    for number in sorted({row.architecture for row in table}):
        columns.append(_registers(number, registers))
    versions = ", ".join(f"{name} {version}" for name, version in compilers.items())
    fine = ["No spills, no local memory, shared memory within what each architecture has."]
    return "\n".join(
        [
            "# Registers of the GPU kernels",
            "",
            f"Per thread, by compute capability; {versions}. Made by `python -m bench resources` as of commit "
            f"{source}.",
            "",
            markdown_table(columns, dict.fromkeys((row.kernel, row.configuration) for row in table)),
            *(faults(table) or fine),
            "",
        ]
    )


@click.command()
@options.out("Results, without suffix: .json and .md.", default=OUT)
def resources(out: Path) -> None:
    """Registers, spills and shared memory of the GPU kernels for six architectures; needs nvcc, no GPU."""
    from . import triton_resources  # Triton is optional for the other commands

    compiler = nvcc()
    if compiler is None:
        raise click.ClickException("there is no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda")
    compilers = {"nvcc": nvcc_version(compiler), "triton": version("triton")}
    table = sorted([*compile_cuda(compiler), *triton_resources.compile_in_a_process(list(ARCHITECTURES))])
    page = resources_page(compilers, table, commit() or "unknown")
    write_result(
        out, {"compilers": compilers, "sources": source_digest(), "kernels": [asdict(row) for row in table]}, page
    )
    click.echo(page)
    if faults(table):
        raise SystemExit(1)
