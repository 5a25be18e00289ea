"""The choice of a kernel by device, dtype and sizes."""

from __future__ import annotations

import contextlib
import enum
import importlib
import importlib.util
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import native

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KERNEL_CLASSES = 32767  # the confusion matrix has a 32-bit index; more are too rare for a limit per operator
_NATIVE_DIMENSIONS = 8
_RESIZED_CLASSES = 4096
COUNTED_CLASSES = 8192
# The order of the enum Reduction in csrc/cuda/label_counts.cu.
REDUCTIONS = ("sum", "pixel_mean", "mean", "valid_mean", "class_mean", "none")


def is_native(input: Tensor) -> bool:
    """Whether the compiled CPU kernels support logits or maps like ``input``."""
    return _fits(input) and input.device.type == "cpu" and input.dim() <= _NATIVE_DIMENSIONS and native.available()


def is_cuda(input: Tensor, target: Tensor) -> bool:
    """Whether the CUDA C++ kernel supports this cross-entropy without a resize."""
    same = input.shape[2:] == target.shape[1:]
    return same and is_triton(input) and input.dim() <= _NATIVE_DIMENSIONS and native.cuda_available()


def resized_side(input: Tensor, target: Tensor, align_corners: bool) -> int:
    """The cell size of ``cawa_fast_cuda::resized_cross_entropy`` in pixels per side: 2, 4 or 8; 0 if it is unsupported.

    A cell contains the pixels between four neighbouring samples of the low-resolution logits.
    """
    if not (input.dim() == 4 and input.shape[1] <= _RESIZED_CLASSES):
        return 0
    most, pixels, cells = 0, 1, 1
    for small, large in zip(input.shape[2:], target.shape[1:], strict=True):
        if not (2 <= small <= large and (small + 1) * large < 2**29):
            return 0
        steps, samples = (large - 1, small - 1) if align_corners else (large, small)
        most, pixels, cells = max(most, -(-steps // samples)), pixels * steps, cells * samples
    side = next((side for side in (2, 4, 8) if most <= side), 0)
    # If less than a quarter of a cell's places hold a pixel, the Triton kernels take less time and memory.
    return side if side * side * cells <= 4 * pixels else 0


def is_cuda_resized(input: Tensor, target: Tensor, align_corners: bool) -> bool:
    """Whether the CUDA C++ kernels support this cross-entropy with a resize."""
    if input.shape[2:] == target.shape[1:] or not (is_triton(input) and native.cuda_available()):
        return False
    return resized_side(input, target, align_corners) > 0


def statistics_size(input: Tensor, target: Tensor, gamma: float, align_corners: bool) -> int:
    """How many float32 values a resized cross-entropy or focal loss on a GPU saves for the backward pass."""
    if not is_cuda_resized(input, target, align_corners):
        return int(kernels("_tiling").stats_size(input, target, gamma, align_corners))
    images, _, height, width = input.shape
    per_pixel = 2 if gamma > 0 else 1
    return (1 + per_pixel * resized_side(input, target, align_corners) ** 2) * images * (height + 1) * (width + 1)


CUDA_NORMALIZATIONS = ("max", "none")  # that the CUDA C++ kernels for CAM counts support
_CELL_PIXELS = 8  # per axis; one thread of the CUDA C++ counting kernels processes one cell of the resize


def counts_by_cells(input: Tensor, target: Tensor, align_corners: bool) -> bool:
    """Whether the CUDA C++ counting kernels support these logits or maps: small cells, 32-bit offsets in a plane."""
    (_, _, height, width), (_, _, stride_y, stride_x) = input.shape, input.stride()
    if (height - 1) * stride_y + (width - 1) * stride_x >= 2**31:
        return False
    for in_size, out_size in zip((height, width), target.shape[1:], strict=True):
        cells = max(in_size - 1, 1) if align_corners else in_size
        if out_size > cells * _CELL_PIXELS:
            return False
    return True


def is_triton(input: Tensor) -> bool:
    """Whether the GPU kernels, CUDA C++ or Triton, support logits or maps like ``input``."""
    return _fits(input) and runs_triton(input.device)


def _fits(input: Tensor) -> bool:
    return input.dtype in _KERNEL_DTYPES and input.shape[1] <= KERNEL_CLASSES


def runs_triton(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.cuda is not None and _HAS_TRITON


# Determined at import: torch.compile cannot trace the search.
_HAS_TRITON = importlib.util.find_spec("triton") is not None


class Saved(enum.Enum):
    """What the forward pass of a cross-entropy saves for the backward pass."""

    NOTHING = enum.auto()
    GRADIENT = enum.auto()  # of reduction by sum or mean; the first backward pass scales it in place
    STATISTICS = enum.auto()  # per pixel: the reference of the exponentials, and their sum


def saves(input: Tensor, target: Tensor, reduction: str, with_grad: bool) -> Saved:
    if not with_grad:
        return Saved.NOTHING
    if is_cuda(input, target):
        # Not in float16: there the loss is scaled, so that the upstream gradient is never 1.
        formed = reduction != "none" and input.dtype != torch.float16
        return Saved.GRADIENT if formed else Saved.NOTHING
    if is_triton(input):
        return Saved.STATISTICS
    # The gradient is almost free beside the loss, since both use the same exponentials. It is multiplied by the
    # upstream gradient later. Not in float16: small gradients would underflow before the loss scale reaches them.
    if is_native(input) and reduction != "none" and input.dtype != torch.float16:
        return Saved.GRADIENT
    return Saved.NOTHING


def kernels(name: str) -> Any:
    """A module of :mod:`cawa_fast.kernels`, imported on first use: importing Triton takes half a second."""
    return importlib.import_module(f"cawa_fast.kernels.{name}")


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's device the current one, on which Triton launches."""
    is_other = tensor.is_cuda and tensor.get_device() != torch.cuda.current_device()
    return torch.cuda.device(tensor.device) if is_other else contextlib.nullcontext()


_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def is_eager(*tensors: Tensor | None) -> bool:
    """Whether these are plain tensors and no compiler, tracer, mode or functorch transform is active.

    Then an operator may bypass PyTorch's dispatcher, which takes longer than the kernels on a GPU.
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and all(tensor is None or (type(tensor) in _PLAIN_TYPES and not tensor.is_meta) for tensor in tensors)
    )


def is_transformed(input: Tensor) -> bool:
    """Whether forward-mode differentiation of ``input``, or a transform of ``torch.func``, is active.

    The operators have no rules for them. In a nest of transforms only the innermost one shows what ``input`` is, so
    that every transform counts; a compiler does not see tangents at all.
    """
    compiling = torch.compiler.is_compiling()
    if forward_ad._current_level >= 0 and (compiling or forward_ad.unpack_dual(input).tangent is not None):
        return True
    return not compiling and torch._C._functorch.peek_interpreter_stack() is not None
