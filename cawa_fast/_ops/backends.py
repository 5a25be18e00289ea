"""Which kernel serves which tensors."""

from __future__ import annotations

import contextlib
import enum
import importlib
import importlib.util
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from . import native

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KERNEL_CLASSES = 32767  # the confusion matrix has a 32-bit index; more are too rare for a limit per operator
_NATIVE_DIMENSIONS = 8
_RESIZED_CLASSES = 4096
COUNTED_CLASSES = 8192
# by their numbers in label_counts.cu
REDUCTIONS = ("sum", "pixel_mean", "mean", "valid_mean", "class_mean", "none")


def is_native(input: Tensor) -> bool:
    """Whether the compiled CPU kernels serve logits or maps like ``input``."""
    return _fits(input) and input.device.type == "cpu" and input.dim() <= _NATIVE_DIMENSIONS and native.available()


def is_cuda(input: Tensor, target: Tensor) -> bool:
    """Whether the kernel in CUDA C++ serves this cross-entropy: of logits that have the labels' size."""
    same = input.shape[2:] == target.shape[1:]
    return same and is_triton(input) and input.dim() <= _NATIVE_DIMENSIONS and native.cuda_available()


def resized_side(input: Tensor, target: Tensor, align_corners: bool) -> int:
    """Pixels along each side of the cells that ``cawa_fast_cuda::resized_cross_entropy`` computes: 2, 4 or 8; 0 where
    it does not serve this problem. A cell has the pixels between four neighbouring samples."""
    if not (input.dim() == 4 and input.shape[1] <= _RESIZED_CLASSES):
        return 0
    most, pixels, cells = 0, 1, 1
    for small, large in zip(input.shape[2:], target.shape[1:], strict=True):
        if not (2 <= small <= large and (small + 1) * large < 2**29):
            return 0
        steps, samples = (large - 1, small - 1) if align_corners else (large, small)
        most, pixels, cells = max(most, -(-steps // samples)), pixels * steps, cells * samples
    side = next((side for side in (2, 4, 8) if most <= side), 0)
    # cells with room for more than four times their pixels would take more time and memory than the Triton kernels
    return side if side * side * cells <= 4 * pixels else 0


def is_cuda_resized(input: Tensor, target: Tensor, align_corners: bool) -> bool:
    """Whether the kernels in CUDA C++ serve this cross-entropy with a resize."""
    if input.shape[2:] == target.shape[1:] or not (is_triton(input) and native.cuda_available()):
        return False
    return resized_side(input, target, align_corners) > 0


def statistics_size(input: Tensor, target: Tensor, align_corners: bool) -> int:
    """Numbers that a resized cross-entropy on a GPU leaves for the backward pass."""
    if not is_cuda_resized(input, target, align_corners):
        return int(kernels("_tiling").stats_size(input, target, align_corners))
    images, _, height, width = input.shape
    return (1 + resized_side(input, target, align_corners) ** 2) * images * (height + 1) * (width + 1)


CUDA_NORMALIZATIONS = ("max", "none")  # of the CAM counts in CUDA C++
_CELL_PIXELS = 8  # along an axis; a thread of the kernels in CUDA C++ walks through a cell of the resize


def counts_by_cells(input: Tensor, target: Tensor, align_corners: bool) -> bool:
    """Whether the counting kernels in CUDA C++ take these logits or maps: small cells, planes of 32-bit offsets."""
    (_, _, height, width), (_, _, stride_y, stride_x) = input.shape, input.stride()
    if (height - 1) * stride_y + (width - 1) * stride_x >= 2**31:
        return False
    for in_size, out_size in zip((height, width), target.shape[1:], strict=True):
        cells = max(in_size - 1, 1) if align_corners else in_size
        if out_size > cells * _CELL_PIXELS:
            return False
    return True


def is_triton(input: Tensor) -> bool:
    """Whether the kernels for GPUs serve logits or maps like ``input``."""
    return _fits(input) and runs_triton(input.device)


def _fits(input: Tensor) -> bool:
    return input.dtype in _KERNEL_DTYPES and input.shape[1] <= KERNEL_CLASSES


def runs_triton(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.cuda is not None and _HAS_TRITON


# Looked for once, here: a compiler that traces the choice of a kernel cannot look.
_HAS_TRITON = importlib.util.find_spec("triton") is not None


class Saved(enum.Enum):
    """What the forward pass of a cross-entropy leaves for the backward pass."""

    NOTHING = enum.auto()
    GRADIENT = enum.auto()  # only the first backward pass may have it, scaled in place
    STATISTICS = enum.auto()  # of each pixel's exponentials: what they were taken relative to, and their sum


def saves(input: Tensor, target: Tensor, reduction: str, with_grad: bool) -> Saved:
    if not with_grad:
        return Saved.NOTHING
    if is_cuda(input, target):
        # Not where the loss is scaled: the upstream gradient is never 1 there.
        formed = reduction != "none" and input.dtype != torch.float16
        return Saved.GRADIENT if formed else Saved.NOTHING
    if is_triton(input):
        return Saved.STATISTICS
    # The gradient costs next to nothing beside the loss, from the same exponentials. It has to be multiplied with the
    # upstream gradient later. In float16 small gradients would have vanished by then, which is what scaling the loss
    # is to prevent.
    if is_native(input) and reduction != "none" and input.dtype != torch.float16:
        return Saved.GRADIENT
    return Saved.NOTHING


def kernels(name: str) -> Any:
    """A module of :mod:`cawa_fast.kernels`, imported when the first tensor wants it: Triton takes half a second."""
    return importlib.import_module(f"cawa_fast.kernels.{name}")


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: make it the tensor's."""
    is_other = tensor.is_cuda and tensor.get_device() != torch.cuda.current_device()
    return torch.cuda.device(tensor.device) if is_other else contextlib.nullcontext()


_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def is_eager(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary tensors and nothing traces or transforms what is done with them. Then an operator may
    be computed without PyTorch's dispatcher, which takes longer than a GPU's kernels."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and all(tensor is None or (type(tensor) in _PLAIN_TYPES and not tensor.is_meta) for tensor in tensors)
    )
