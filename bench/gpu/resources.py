"""``python -m bench resources``: what the compiler gives each GPU kernel: registers, spills, stack, shared memory.

Needs no GPU. A kernel that spills, keeps arrays in local memory or asks for more shared memory than there is runs badly
or not at all, and shows here first; a change of register count decides how many blocks share a multiprocessor.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ..table import ROOT, write_text

OUT = ROOT / "bench" / "results" / "resources"
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
# Bytes that a block may have, by compute capability without the point (CUDA programming guide, technical
# specifications).
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}


@dataclass(frozen=True, order=True)
class Resources:
    """One kernel, compiled for one architecture."""

    kernel: str
    configuration: str
    architecture: int  # compute capability without the point
    registers: int  # per thread
    spills: int  # bytes stored and loaded
    stack: int  # bytes per thread in local memory
    shared_memory: int  # bytes per block, without what a launch adds


def problems(table: Iterable[Resources]) -> list[str]:
    """What must not be: spills, local memory, more shared memory than the architecture has."""
    found = []
    for row in table:
        name = f"{row.kernel} ({row.configuration}) on sm_{row.architecture}"
        if row.spills:
            found.append(f"{name} spills {row.spills} bytes")
        if row.stack:
            found.append(f"{name} has {row.stack} bytes of local memory")
        if row.shared_memory > SHARED_MEMORY[row.architecture]:
            found.append(f"{name} needs {row.shared_memory} bytes of shared memory")
    return found


# ----------------------------------------------------------------------------------------------------------- CUDA C++


def nvcc() -> str | None:
    """Where the CUDA compiler is: as CMakeLists.txt looks for it."""
    folders = [os.environ.get("PATH", "")]
    folders += [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    return shutil.which("nvcc", path=os.pathsep.join([*folders, "/usr/local/cuda/bin"]))


def nvcc_version(compiler: str) -> str:
    """As in ``13.0.48``."""
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"\bV(\d+(?:\.\d+)*)", text)
    assert version is not None, text
    return version[1]


def supported(compiler: str) -> list[int]:
    """Those of ``ARCHITECTURES`` that the compiler knows."""
    text = subprocess.run([compiler, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return [number for number in ARCHITECTURES if f"sm_{number}" in text.split()]


def compile_cuda(compiler: str, architectures: Iterable[int] = ARCHITECTURES) -> list[Resources]:
    """``csrc/cuda/`` for all architectures, warnings as errors. Two minutes on one core."""
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
    """The rows of what ``-Xptxas=-v`` prints, sorted."""
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
# What the flags among a kernel's template arguments say, if true and if false.
_FLAGS = {
    "planar": (("16 bytes", "any strides"), ("smoothing", "")),
    "cam_maxima": (("equal sizes", "cells"),),
    "cam_masks": (("equal sizes", "cells"),),
}


def _readable(mangled: str) -> tuple[str, str]:
    """Kernel and configuration from a name as the C++ ABI writes it: ``planar<float, true, false>`` for one."""
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


def result_of(compilers: dict[str, str], table: Iterable[Resources]) -> dict[str, Any]:
    """What the files hold. ``compilers``: versions by name, as in ``{"nvcc": "13.0.48"}``."""
    return {"compilers": compilers, "kernels": [asdict(row) for row in sorted(table)]}


def read(path: Path = OUT) -> tuple[dict[str, str], list[Resources]]:
    """Compilers and table of the committed result."""
    result = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return result["compilers"], [Resources(**row) for row in result["kernels"]]


def markdown(compilers: dict[str, str], table: Iterable[Resources]) -> str:
    """One line per kernel and configuration: registers on each architecture; more only where something is wrong."""
    table = sorted(table)
    architectures = sorted({row.architecture for row in table})
    registers = {(row.kernel, row.configuration, row.architecture): row.registers for row in table}
    lines = [
        "# Registers of the GPU kernels",
        "",
        f"Per thread, by compute capability; {', '.join(f'{name} {version}' for name, version in compilers.items())}.",
        "",
        f"| kernel | configuration | {' | '.join(f'sm_{number}' for number in architectures)} |",
        f"|---|---|{'---:|' * len(architectures)}",
    ]
    for kernel, configuration in dict.fromkeys((row.kernel, row.configuration) for row in table):
        cells = [str(registers.get((kernel, configuration, number), "–")) for number in architectures]
        lines.append(f"| {kernel} | {configuration} | {' | '.join(cells)} |")
    wrong = problems(table)
    lines += ["", *(wrong or ["No spills, no local memory, shared memory within what each architecture has."])]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="Path of the .md and .json without suffix.")
def resources(out: Path) -> None:
    """Registers, spills and shared memory of the GPU kernels, for six architectures; needs nvcc, no GPU."""
    from . import triton_resources

    compiler = nvcc()
    if compiler is None:
        raise click.ClickException("there is no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda")
    compilers = {"nvcc": nvcc_version(compiler), "triton": version("triton")}
    table = [*compile_cuda(compiler), *triton_resources.in_a_process(list(ARCHITECTURES))]
    text = markdown(compilers, table)
    write_text(out.with_suffix(".json"), json.dumps(result_of(compilers, table), indent=1) + "\n")
    write_text(out.with_suffix(".md"), text)
    click.echo(text)
    if problems(table):
        raise SystemExit(1)
