"""``torch.ops.cawa_fast``: schemas, fakes, autograd, and the choice of a kernel by device.

The operators exist without a native build. Each implementation looks for bad labels, then calls one kernel. What is
public and documented is :mod:`cawa_fast.functional`; arguments are valid when they arrive here.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import importlib.util
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from . import _label_check, _native, reference

_LIBRARY: torch.library.Library = torch.library.Library("cawa_fast", "DEF")
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
_RESIZED_CLASSES = 4096
_COUNTED_CLASSES = 8192
# by their numbers in label_counts.cu
_REDUCTIONS = ("sum", "pixel_mean", "mean", "valid_mean", "class_mean", "none")


def _is_native(input: Tensor) -> bool:
    """Whether the compiled CPU kernels serve logits or maps like ``input``."""
    return _fits(input) and input.device.type == "cpu" and input.dim() <= _NATIVE_DIMENSIONS and _native.available()


def _is_cuda(input: Tensor, target: Tensor) -> bool:
    """Whether the kernel in CUDA C++ serves this cross-entropy: of logits that have the labels' size."""
    same = input.shape[2:] == target.shape[1:]
    return same and _is_triton(input) and input.dim() <= _NATIVE_DIMENSIONS and _native.cuda_available()


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


def _is_cuda_resized(input: Tensor, target: Tensor, align_corners: bool) -> bool:
    """Whether the kernels in CUDA C++ serve this cross-entropy with a resize."""
    if input.shape[2:] == target.shape[1:] or not (_is_triton(input) and _native.cuda_available()):
        return False
    return resized_side(input, target, align_corners) > 0


def statistics_size(input: Tensor, target: Tensor, align_corners: bool) -> int:
    """Numbers that a resized cross-entropy on a GPU leaves for the backward pass."""
    if not _is_cuda_resized(input, target, align_corners):
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


def _is_triton(input: Tensor) -> bool:
    """Whether the kernels for GPUs serve logits or maps like ``input``."""
    return _fits(input) and _runs_triton(input.device)


def _fits(input: Tensor) -> bool:
    return input.dtype in _KERNEL_DTYPES and input.shape[1] <= _KERNEL_CLASSES


def _runs_triton(device: torch.device) -> bool:
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
        _label_check.report("target", bad, num_classes, ignore_index)
        return counts
    report = _label_check.open_report("target", target.device, num_classes, ignore_index)
    if _native.cuda_available() and num_classes <= _COUNTED_CLASSES:
        counts = torch.ops.cawa_fast_cuda.label_counts(target, num_classes, ignore_index, report)
    else:
        counts = torch.zeros(target.shape[0], num_classes, dtype=torch.int64, device=target.device)
        kernels("labels").label_histogram(target, counts, report, num_classes, ignore_index)
    _label_check.close_report("target", report, num_classes, ignore_index)
    return counts


def _reduction_scale(
    target: Tensor, num_classes: int, weight: Tensor | None, ignore_index: int, reduction: str, like: Tensor
) -> Tensor:
    """``(C,)`` float32, ``reference.reduction_scale`` by a kernel for GPUs; reports bad labels."""
    if _native.cuda_available() and num_classes <= _COUNTED_CLASSES:
        report = _label_check.open_report("target", target.device, num_classes, ignore_index)
        how = _REDUCTIONS.index(reduction)
        scale = torch.ops.cawa_fast_cuda.label_scale(target, num_classes, ignore_index, weight, how, report)
        _label_check.close_report("target", report, num_classes, ignore_index)
        return scale
    loss_kernels = kernels("cross_entropy")
    counts = None
    if reduction in loss_kernels.COUNTED:
        counts = _count_labels(target.reshape(1, -1), num_classes, ignore_index)
    else:
        _report_labels(target, num_classes, ignore_index)
    return loss_kernels.reduction_scale(counts, target.numel(), weight, like, reduction)


def _report_labels(target: Tensor, num_classes: int, ignore_index: int) -> None:
    if _label_check.label_check_is_off():
        return
    if _runs_triton(target.device):
        with _on_device_of(target):  # which those who leave the rest to plain PyTorch have not made the current one
            report = _label_check.open_report("target", target.device, num_classes, ignore_index)
            kernels("labels").label_histogram(target.reshape(1, -1), None, report, num_classes, ignore_index)
            _label_check.close_report("target", report, num_classes, ignore_index)
        return
    native = target.device.type == "cpu" and _native.available()
    find = torch.ops.cawa_fast_cpu.bad_labels if native else reference.bad_labels
    _label_check.report("target", find(target, num_classes, ignore_index), num_classes, ignore_index)


def kernels(name: str) -> Any:
    """A module of :mod:`cawa_fast.kernels`, imported when the first tensor wants it: Triton takes half a second."""
    return importlib.import_module(f".kernels.{name}", __package__)


def _on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
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


def compute_cross_entropy(
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
    _label_check.check_weight(weight)
    saved_kind = saves(input, target, reduction, with_grad)
    if _is_triton(input):
        with _on_device_of(input):
            scale = _reduction_scale(target, input.shape[1], weight, ignore_index, reduction, input)
            options = (input, target, weight, scale, ignore_index, reduction == "none", label_smoothing)
            if _is_cuda(input, target):
                forms_grad = saved_kind is Saved.GRADIENT
                loss, saved = torch.ops.cawa_fast_cuda.cross_entropy(*options, forms_grad)
            elif _is_cuda_resized(input, target, align_corners):
                save = saved_kind is Saved.STATISTICS
                loss, saved = torch.ops.cawa_fast_cuda.resized_cross_entropy(*options, align_corners, save)
            else:
                save = saved_kind is Saved.STATISTICS
                loss, saved = kernels("cross_entropy").cross_entropy(*options, align_corners, save)
        return loss, scale, saved
    if not _is_native(input):
        _report_labels(target, input.shape[1], ignore_index)
        loss, scale = reference.cross_entropy(
            input, target, weight, ignore_index, reduction, label_smoothing, align_corners
        )
        return loss, scale, input.new_empty(0)
    counts = _count_labels(target.reshape(1, -1), input.shape[1], ignore_index)[0]
    class_weight = torch.ones(input.shape[1], device=input.device) if weight is None else weight
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


def compute_cross_entropy_backward(
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
    if _is_cuda_resized(input, target, align_corners):
        cuda = torch.ops.cawa_fast_cuda
        if saved.numel() == 0:  # the forward pass did not expect this one
            _, saved = cuda.resized_cross_entropy(
                input, target, weight, scale, ignore_index, False, label_smoothing, align_corners, True
            )
        return cuda.resized_cross_entropy_backward(
            grad.to(torch.float32), input, target, weight, scale, saved, ignore_index, label_smoothing, align_corners
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
def compute_confusion_matrix(
    input: Tensor, target: Tensor, num_classes: int, ignore_index: int, align_corners: bool
) -> Tensor:
    if input.is_floating_point():
        if _is_triton(input):
            with _on_device_of(input):
                report = _label_check.open_report("target", target.device, num_classes, ignore_index)
                if _native.cuda_available() and counts_by_cells(input, target, align_corners):
                    counts = torch.ops.cawa_fast_cuda.confusion_matrix(
                        input, target, ignore_index, align_corners, report
                    )
                else:
                    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=input.device)
                    kernels("confusion_matrix").confusion_matrix(
                        input, target, counts, report, ignore_index, align_corners
                    )
                _label_check.close_report("target", report, num_classes, ignore_index)
                return counts
        _report_labels(target, num_classes, ignore_index)
        if _is_native(input):
            return torch.ops.cawa_fast_cpu.confusion_matrix(input, target, ignore_index, align_corners)
        return reference.confusion_matrix(input, target, num_classes, ignore_index, align_corners)
    if _runs_triton(input.device) and num_classes <= _KERNEL_CLASSES:
        with _on_device_of(input):
            _report_labels(target, num_classes, ignore_index)
            report = _label_check.open_report("input", input.device, num_classes, ignore_index)
            counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=input.device)
            kernels("labels").confusion_matrix_labels(input, target, counts, report, num_classes, ignore_index)
            _label_check.close_report("input", report, num_classes, ignore_index)
            return counts
    if input.device.type == "cpu" and _native.available():
        counts, bad = torch.ops.cawa_fast_cpu.confusion_matrix_labels(input, target, num_classes, ignore_index)
        _label_check.report("target", bad[:3], num_classes, ignore_index)
        _label_check.report("input", bad[3:], num_classes, ignore_index)
        return counts
    _report_labels(target, num_classes, ignore_index)
    _, valid = reference.valid_labels(target, num_classes, ignore_index)
    bad = reference.bad_labels(input.to(torch.int64).where(valid, 0), num_classes, 0)
    _label_check.report("input", bad, num_classes, ignore_index)
    return reference.confusion_matrix(input, target, num_classes, ignore_index, align_corners)


@torch.library.impl(_LIBRARY, "cam_counts", "CompositeExplicitAutograd")
def compute_cam_counts(
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


_LIBRARY.impl("cross_entropy", compute_cross_entropy, "CompositeExplicitAutograd")
_LIBRARY.impl("cross_entropy_backward", compute_cross_entropy_backward, "CompositeExplicitAutograd")

# registers shapes and derivatives of what is defined above
from ._autograd import EagerCrossEntropy as EagerCrossEntropy  # noqa: E402
