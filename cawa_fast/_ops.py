"""``torch.ops.cawa_fast``: schemas, fakes, autograd, and the choice of a kernel by device.

The operators exist without a native build. Each implementation looks for bad labels, then calls one kernel. What is
public and documented is :mod:`cawa_fast.functional`; arguments are valid when they arrive here.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib
import importlib.util
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from . import _checks, _native, reference

_LIBRARY = torch.library.Library("cawa_fast", "DEF")
# ``saved``: what the forward pass leaves for the backward pass, by :func:`saves`.
_LIBRARY.define(
    "cross_entropy(Tensor input, Tensor target, Tensor? weight, int ignore_index, str reduction, "
    "float label_smoothing, bool align_corners, bool with_grad) -> (Tensor loss, Tensor scale, Tensor saved)"
)
_LIBRARY.define(
    "cross_entropy_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, Tensor scale, Tensor saved, "
    "int ignore_index, float label_smoothing, bool align_corners) -> Tensor"
)
_LIBRARY.define(
    "confusion_matrix(Tensor input, Tensor target, int num_classes, int ignore_index, bool align_corners) -> Tensor"
)
_LIBRARY.define(
    "cam_counts(Tensor cam, Tensor target, float tau, str normalize, str classes, int ignore_index, "
    "bool align_corners) -> (Tensor tp, Tensor fp, Tensor fn)"
)

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_KERNEL_CLASSES = 32767  # the confusion matrix has a 32-bit index; more are too rare for a limit per operator
_NATIVE_DIMENSIONS = 8


def _is_native(input: Tensor) -> bool:
    """Whether the compiled CPU kernels serve logits or maps like ``input``."""
    return _fits(input) and input.device.type == "cpu" and input.dim() <= _NATIVE_DIMENSIONS and _native.available()


def _is_cuda(input: Tensor, target: Tensor) -> bool:
    """Whether the kernel in CUDA C++ serves this cross-entropy: of logits that have the labels' size."""
    same = input.shape[2:] == target.shape[1:]
    # (labels are counted, and sums scaled, in Triton)
    return same and _is_triton(input) and input.dim() <= _NATIVE_DIMENSIONS and _native.cuda_available()


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


def _is_triton(input: Tensor) -> bool:
    """Whether the kernels for GPUs serve logits or maps like ``input``."""
    return _fits(input) and _runs_triton(input.device)


def _fits(input: Tensor) -> bool:
    return input.dtype in _KERNEL_DTYPES and input.shape[1] <= _KERNEL_CLASSES


def _runs_triton(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.cuda is not None and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


class Saved(enum.Enum):
    """What the forward pass of a cross-entropy leaves for the backward pass."""

    NOTHING = enum.auto()
    GRADIENT = enum.auto()  # only the first backward pass may have it, scaled in place
    STATISTICS = enum.auto()  # maximum and inverse sum of exponentials of each pixel


def saves(input: Tensor, target: Tensor, reduction: str, with_grad: bool) -> Saved:
    if not with_grad:
        return Saved.NOTHING
    if _is_cuda(input, target):
        # Not where the loss is scaled: the upstream gradient is never 1 there.
        formed = reduction != "none" and input.dtype != torch.float16
        return Saved.GRADIENT if formed else Saved.NOTHING
    if _is_triton(input):
        return Saved.STATISTICS
    # The gradient costs next to nothing beside the loss, from the same exponentials. It has to be multiplied with the
    # upstream gradient later. In float16 small gradients would have vanished by then, which is what scaling the loss
    # is to prevent.
    if _is_native(input) and reduction != "none" and input.dtype != torch.float16:
        return Saved.GRADIENT
    return Saved.NOTHING


def _count_labels(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """``(N, C)`` valid pixels of each class in each image, by a kernel; reports bad labels."""
    if not _runs_triton(target.device):
        counts, bad = torch.ops.cawa_fast_cpu.label_histogram(target, num_classes, ignore_index)
        _checks.report("target", bad, num_classes, ignore_index)
        return counts
    report = _checks.open_report("target", target.device, num_classes, ignore_index)
    counts = torch.zeros(target.shape[0], num_classes, dtype=torch.int64, device=target.device)
    kernels("labels").label_histogram(target, counts, report, num_classes, ignore_index)
    _checks.close_report("target", report, num_classes, ignore_index)
    return counts


def _report_labels(target: Tensor, num_classes: int, ignore_index: int) -> None:
    if _checks.label_check_is_off():
        return
    if _runs_triton(target.device):
        with _on_device_of(target):  # which those who leave the rest to plain PyTorch have not made the current one
            report = _checks.open_report("target", target.device, num_classes, ignore_index)
            kernels("labels").label_histogram(target.reshape(1, -1), None, report, num_classes, ignore_index)
            _checks.close_report("target", report, num_classes, ignore_index)
        return
    native = target.device.type == "cpu" and _native.available()
    find = torch.ops.cawa_fast_cpu.bad_labels if native else reference.bad_labels
    _checks.report("target", find(target, num_classes, ignore_index), num_classes, ignore_index)


def kernels(name: str) -> Any:
    """A module of :mod:`cawa_fast.kernels`, imported when the first tensor wants it: Triton takes half a second."""
    return importlib.import_module(f".kernels.{name}", __package__)


def _on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@torch.library.impl(_LIBRARY, "cross_entropy", "CompositeExplicitAutograd")
def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    align_corners: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    weight = None if weight is None else weight.to(reference.compute_dtype(input.dtype)).contiguous()
    _checks.check_weight(weight)
    saved_kind = saves(input, target, reduction, with_grad)
    if _is_triton(input):
        loss_kernels = kernels("cross_entropy")
        with _on_device_of(input):
            counts = None
            if reduction in loss_kernels.COUNTED:
                counts = _count_labels(target.reshape(1, -1), input.shape[1], ignore_index)
            else:
                _report_labels(target, input.shape[1], ignore_index)
            scale = loss_kernels.reduction_scale(counts, target.numel(), weight, input, reduction)
            if _is_cuda(input, target):
                loss, saved = torch.ops.cawa_fast_cuda.cross_entropy(
                    input,
                    target,
                    weight,
                    scale,
                    ignore_index,
                    reduction == "none",
                    label_smoothing,
                    saved_kind is Saved.GRADIENT,
                )
                return loss, scale, saved
            save, none = saved_kind is Saved.STATISTICS, reduction == "none"
            loss, saved = loss_kernels.cross_entropy(
                input, target, weight, scale, ignore_index, none, label_smoothing, align_corners, save
            )
        return loss, scale, saved
    if not _is_native(input):
        _report_labels(target, input.shape[1], ignore_index)
        loss, scale = reference.cross_entropy(
            input, target, weight, ignore_index, reduction, label_smoothing, align_corners
        )
        return loss, scale, input.new_empty(0)
    counts = _count_labels(target.reshape(1, -1), input.shape[1], ignore_index)[0]
    class_weight = torch.ones(input.shape[1]) if weight is None else weight
    scale = reference.reduction_scale(counts, target.numel(), class_weight, reduction)
    loss, grad = torch.ops.cawa_fast_cpu.cross_entropy(
        input,
        target,
        weight,
        scale,
        ignore_index,
        reduction == "none",
        label_smoothing,
        align_corners,
        saved_kind is Saved.GRADIENT,
    )
    return loss, scale, grad


@torch.library.impl(_LIBRARY, "cross_entropy_backward", "CompositeExplicitAutograd")
def _cross_entropy_backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    saved: Tensor,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    weight = None if weight is None else weight.to(reference.compute_dtype(input.dtype)).contiguous()
    if _is_cuda(input, target):
        return torch.ops.cawa_fast_cuda.cross_entropy_backward(
            grad.to(torch.float32), input, target, weight, scale, ignore_index, label_smoothing
        )
    if _is_triton(input):
        with _on_device_of(input):
            return kernels("cross_entropy").cross_entropy_backward(
                grad, input, target, weight, scale, saved, ignore_index, label_smoothing, align_corners
            )
    if _is_native(input):
        return torch.ops.cawa_fast_cpu.cross_entropy_backward(
            grad.to(torch.float32),
            input,
            target,
            weight,
            scale,
            ignore_index,
            label_smoothing,
            align_corners,
        )
    return reference.cross_entropy_backward(
        grad, input, target, weight, scale, ignore_index, label_smoothing, align_corners
    )


@torch.library.impl(_LIBRARY, "confusion_matrix", "CompositeExplicitAutograd")
def _confusion_matrix(
    input: Tensor, target: Tensor, num_classes: int, ignore_index: int, align_corners: bool
) -> Tensor:
    if input.is_floating_point():
        if _is_triton(input):
            with _on_device_of(input):
                report = _checks.open_report("target", target.device, num_classes, ignore_index)
                if _native.cuda_available() and counts_by_cells(input, target, align_corners):
                    counts = torch.ops.cawa_fast_cuda.confusion_matrix(
                        input, target, ignore_index, align_corners, report
                    )
                else:
                    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=input.device)
                    kernels("confusion_matrix").confusion_matrix(
                        input, target, counts, report, ignore_index, align_corners
                    )
                _checks.close_report("target", report, num_classes, ignore_index)
                return counts
        _report_labels(target, num_classes, ignore_index)
        if _is_native(input):
            return torch.ops.cawa_fast_cpu.confusion_matrix(input, target, ignore_index, align_corners)
        return reference.confusion_matrix(input, target, num_classes, ignore_index, align_corners)
    if _runs_triton(input.device) and num_classes <= _KERNEL_CLASSES:
        with _on_device_of(input):
            _report_labels(target, num_classes, ignore_index)
            report = _checks.open_report("input", input.device, num_classes, ignore_index)
            counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=input.device)
            kernels("labels").confusion_matrix_labels(input, target, counts, report, num_classes, ignore_index)
            _checks.close_report("input", report, num_classes, ignore_index)
            return counts
    if input.device.type == "cpu" and _native.available():
        counts, bad = torch.ops.cawa_fast_cpu.confusion_matrix_labels(input, target, num_classes, ignore_index)
        _checks.report("target", bad[:3], num_classes, ignore_index)
        _checks.report("input", bad[3:], num_classes, ignore_index)
        return counts
    _report_labels(target, num_classes, ignore_index)
    _, valid = reference.valid_labels(target, num_classes, ignore_index)
    bad = reference.bad_labels(input.to(torch.int64).where(valid, 0), num_classes, 0)
    _checks.report("input", bad, num_classes, ignore_index)
    return reference.confusion_matrix(input, target, num_classes, ignore_index, align_corners)


@torch.library.impl(_LIBRARY, "cam_counts", "CompositeExplicitAutograd")
def _cam_counts(
    cam: Tensor, target: Tensor, tau: float, normalize: str, classes: str, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if _is_triton(cam) and cam.numel():
        with _on_device_of(cam):
            truth = _count_labels(target, cam.shape[1], ignore_index)
            in_cuda = _native.cuda_available() and normalize in CUDA_NORMALIZATIONS
            if in_cuda and counts_by_cells(cam, target, align_corners):
                return torch.ops.cawa_fast_cuda.cam_counts(
                    cam, target, truth, tau, normalize == "max", classes == "all", ignore_index, align_corners
                )
            return kernels("cam_counts").cam_counts(
                cam, target, truth, tau, normalize, classes, ignore_index, align_corners
            )
    if _is_native(cam):
        truth = _count_labels(target, cam.shape[1], ignore_index)
        how = reference.NORMALIZATIONS.index(normalize)
        return torch.ops.cawa_fast_cpu.cam_counts(
            cam, target, truth, tau, how, classes == "all", ignore_index, align_corners
        )
    _report_labels(target, cam.shape[1], ignore_index)
    return reference.cam_counts(cam, target, tau, normalize, classes, ignore_index, align_corners)


from . import _autograd as _autograd  # noqa: E402  (registers shapes and derivatives of what is defined above)
