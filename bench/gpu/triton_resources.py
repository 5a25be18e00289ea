"""Compiles Triton's kernels for GPUs that need not be present, and reads what each kernel needs.

``python -m bench.gpu.triton_resources 80 90`` prints the rows as JSON. It runs in a process of its own, because a
process in which TRITON_INTERPRET was set cannot compile.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton
from cawa_fast.kernels import _tiling, cam_counts, confusion_matrix, cross_entropy, labels
from cawa_fast.kernels._launch import compiler_options
from torch import Tensor

from ..files import ROOT
from .kernel_resources import Resources

META = torch.device("meta")
_TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}
Call = tuple[Any, dict[str, Any], dict[str, Any]]  # kernel, arguments, options


def _calls(operator: Callable[[], object]) -> list[Call]:
    """The launches of ``operator``, recorded instead of executed; its tensors are on the device "meta"."""
    calls: list[Call] = []

    def recorded(
        kernel: Any, grid: Any, arguments: dict[str, Any], tile: dict[str, int], *, fuse: bool = False
    ) -> None:
        calls.append((kernel, arguments, compiler_options(tile, fuse)))

    modules = (labels, confusion_matrix, cam_counts, cross_entropy)
    originals = [module.launch for module in modules]
    for module in modules:
        module.launch = recorded
    try:
        operator()
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.launch = original
    return calls


def _problem(
    dtype: torch.dtype = torch.float32, classes: int = 150, ratio: float = 4, label: torch.dtype = torch.uint8
) -> tuple[Tensor, Tensor]:
    side = round(512 / ratio)
    input = torch.empty(8, classes, side, side, dtype=dtype, device=META)
    return input, torch.empty(8, 512, 512, dtype=label, device=META)


def _wide(classes: int = 150) -> tuple[Tensor, Tensor]:
    """A problem whose offsets within a plane need 64 bits."""
    input, target = _problem(classes=classes, label=torch.int16)
    n, c, h, w = input.shape
    return input.as_strided((n, c, h, w), (1, 1, 2**32 // h, 1)), target


def _loss(
    input: Tensor,
    target: Tensor,
    *,
    shifted: bool = False,
    smoothing: float = 0.0,
    gamma: float = 0.0,
    per_pixel: bool = False,
    corners: bool = False,
) -> None:
    weight = torch.empty(input.shape[1], device=META)
    offset = torch.empty_like(weight) if shifted else None
    counts = torch.empty(8, input.shape[1], dtype=torch.int64, device=META)
    scale = cross_entropy.reduction_scale(counts, target.numel(), weight, input, "mean")
    given, options = (input, target, weight, offset, scale), (smoothing, gamma, corners)
    loss, stats = cross_entropy.cross_entropy(*given, 255, per_pixel, *options, True)
    cross_entropy.cross_entropy_backward(torch.empty_like(loss), *given, stats, 255, *options)


def _confusion(input: Tensor, target: Tensor, *, corners: bool = False) -> None:
    counts = torch.empty(input.shape[1], input.shape[1], dtype=torch.int64, device=META)
    report = torch.empty(3, dtype=torch.int64, device=META)
    confusion_matrix.confusion_matrix(input, target, counts, report, 255, corners)


def _cam(input: Tensor, target: Tensor, normalize: str = "max", *, corners: bool = False) -> None:
    truth = torch.empty(8, input.shape[1], dtype=torch.int64, device=META)
    cam_counts.cam_counts(input, target, truth, 0.5, normalize, "present", 255, corners)


def _labels(input: Tensor, target: Tensor) -> None:
    counts, report = (torch.empty(8, n, dtype=torch.int64, device=META) for n in (150, 3))
    labels.label_histogram(target, counts, report, 150, 255)
    labels.confusion_matrix_labels(target, target, counts, report, 150, 255)


Operator = Callable[[], None]


def _on(problem: tuple[Tensor, Tensor], *operators: Callable[..., None], **options: Any) -> list[Operator]:
    return [functools.partial(operator, *problem, **options) for operator in operators]


_RESIZING = (_confusion, _cam, _loss)
_BY_KERNEL: dict[str, tuple[str, list[Operator]]] = {
    "label_histogram": ("_label_histogram", _on(_problem(), _labels)),
    "confusion_matrix": ("_confusion_matrix", _on(_problem(), _confusion)),
    "cam_counts": ("_counts", _on(_problem(), _cam)),
    "cam_extremes": ("_extremes", _on(_problem(), _cam)),
    "cross_entropy": ("_forward", _on(_problem(), _loss)),
    "cross_entropy_backward": ("_backward", _on(_problem(), _loss)),
    "cross_entropy_same": ("_forward", _on(_problem(ratio=1), _loss)),
}
# every kernel in its chosen configuration, on inputs that change its code
_VARIANTS: dict[str, list[Operator]] = {
    "float32": _on(_problem(), _labels, *_RESIZING),
    "same size": _on(_problem(ratio=1), *_RESIZING),
    "bfloat16, int64 labels": _on(_problem(torch.bfloat16, label=torch.int64), *_RESIZING),
    "float16, x8, label smoothing": _on(_problem(torch.float16, ratio=8), _loss, smoothing=0.1),
    "offset, focal": _on(_problem(), _loss, shifted=True, gamma=2.0),
    "same size, offset, focal": _on(_problem(ratio=1), _loss, shifted=True, gamma=2.0),
    "x3.7, per pixel": _on(_problem(ratio=3.7), _loss, per_pixel=True),
    "downscaled, align_corners, int32 labels": _on(_problem(ratio=0.125, label=torch.int32), *_RESIZING, corners=True),
    "64-bit offsets, int16 labels": _on(_wide(), *_RESIZING),
    "4000 classes": _on(_problem(classes=4000, label=torch.int16), _cam, _loss),
    "minmax": _on(_problem(), _cam, normalize="minmax"),
    "gradcam": _on(_problem(), _cam, normalize="gradcam"),
}


def kernel_cases() -> Iterator[tuple[str, str, Call]]:
    """Kernel, configuration and call of each configuration in the tables and each variant of the code."""
    for table, (kernel, operators) in _BY_KERNEL.items():
        for configuration in _tiling.TABLES[table]:
            with _tiling.forced(table, configuration):
                for call in (call for operator in operators for call in _calls(operator)):
                    if call[0].fn.__name__ == kernel:
                        yield kernel, ", ".join(f"{key} {value}" for key, value in configuration.items()), call
    for name, operators in _VARIANTS.items():
        seen: set[str] = set()
        for call in (call for operator in operators for call in _calls(operator)):
            kernel = call[0].fn.__name__
            if kernel == "_extremes":
                kernel += " (least)" if call[1]["LEAST"] else ""
            if kernel not in seen:
                seen.add(kernel)
                yield kernel, name, call


def compile_for(call: Call, architecture: int) -> Any:
    """Compile as a launch does, with the same constants, alignments and options."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, arguments, options = call
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        general = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1 and not general):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not general:
                attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(options))


_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def resources_of(compiled: Any, kernel: str, configuration: str, architecture: int) -> Resources:
    """Read from the machine code. Spilled registers are part of the stack frame."""
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [cuobjdump, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = _USAGE.search(text)
    assert usage is not None, text
    registers, stack, shared, local = map(int, usage.groups())
    shared = max(shared, compiled.metadata.shared)
    return Resources(kernel, configuration, architecture, registers, local, stack, shared)


def compile_triton(architectures: list[int]) -> list[Resources]:
    """All cases on all architectures, sorted."""
    found = list(kernel_cases())
    return sorted(
        resources_of(compile_for(call, architecture), kernel, configuration, architecture)
        for architecture in architectures
        for kernel, configuration, call in found
    )


def compile_in_a_process(architectures: list[int], path: Path | None = None) -> list[Resources]:
    """The same in a new process, with the Triton in the folder ``path`` if given."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    run = subprocess.run(
        [sys.executable, "-m", "bench.gpu.triton_resources", *map(str, architectures)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return [Resources(**row) for row in json.loads(run.stdout.splitlines()[-1])]


if __name__ == "__main__":
    print(json.dumps([asdict(row) for row in compile_triton([int(word) for word in sys.argv[1:]])]))
