"""Which versions, back ends, devices and optional packages are there, for ``cawa-fast doctor``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil

import torch

from .. import __version__
from .._ops import native
from .parallel import cpu_count

Component = tuple[str, str, str | None]
"""Name, what was found, and what to do about it; None where nothing has to be done."""

_OPTIONAL = ("click", "rich", "pillow", "matplotlib", "jinja2", "tensorboard", "kornia_rs")  # of the extra "train"


def findings() -> dict[str, list[Component]]:
    """What was found, by group.

    Example:
        >>> list(findings())
        ['Versions', 'Back ends', 'Machine', 'Extras']
    """
    return {"Versions": _versions(), "Back ends": _back_ends(), "Machine": _machine(), "Extras": _extras()}


def _versions() -> list[Component]:
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return [
        ("cawa_fast", __version__, None),
        ("Python", platform.python_version(), None),
        ("torch", f"{torch.__version__} ({cuda})", None),
        _package("triton", "pip install triton (Linux only); without it the fused GPU kernels cannot run"),
        _package("numpy", "pip install numpy"),
    ]


def _back_ends() -> list[Component]:
    lines: list[Component] = [("reference (plain PyTorch)", "every operator, every device", None)]
    info = native.build_info()
    if info is None:
        lines.append(("native CPU extension", "not installed", native.why_not()))
    else:
        sets = ", ".join(info["instruction_sets"])
        text = f"runs {info['cpu']} (built for {sets}), {info['compiler']}"
        lines.append(("native CPU extension", text, None))
    if torch.version.cuda is None:
        lines.append(("GPU kernels (Triton, CUDA C++)", "not needed: this PyTorch has no CUDA", None))
        return lines
    if importlib.util.find_spec("triton") is None:
        advice = "pip install triton (Linux only); without it plain PyTorch computes the same, unfused"
        lines.append(("GPU kernels (Triton)", "not installed", advice))
    else:
        lines.append(("GPU kernels (Triton)", "every operator, compiled when first used", None))
    if native.cuda_available():
        architectures = ", ".join(f"sm_{number}" for number in (info or {}).get("cuda_architectures", []))
        lines.append(
            ("GPU kernels (CUDA C++)", f"every operator except unusual resizes, built for {architectures}", None)
        )
    else:
        lines.append(("GPU kernels (CUDA C++)", "not installed; the Triton kernels are used", native.why_no_cuda()))
    return lines


def _machine() -> list[Component]:
    lines: list[Component] = [
        ("CPU", f"{platform.machine()}, {cpu_count()} cores, {torch.get_num_threads()} torch threads", None),
        ("CPU instruction set", torch.backends.cpu.get_cpu_capability(), None),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            text = (
                f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"
            )
            lines.append((f"GPU {index}", text, None))
    elif torch.version.cuda is None and shutil.which("nvidia-smi"):
        lines.append(("GPU", "not usable", "this PyTorch is a CPU build: install one with CUDA from pytorch.org"))
    elif torch.version.cuda is not None:
        lines.append(
            ("GPU", "none found", "check `nvidia-smi`: the driver is missing, or too old for this PyTorch's CUDA")
        )
    else:
        lines.append(("GPU", "none; the CPU is used", None))
    return lines


def _extras() -> list[Component]:
    return [_package(name, "pip install 'cawa_fast[train]'") for name in _OPTIONAL]


def _package(name: str, advice: str) -> Component:
    try:
        return name, importlib.metadata.version(name), None
    except importlib.metadata.PackageNotFoundError:
        return name, "not installed", advice
