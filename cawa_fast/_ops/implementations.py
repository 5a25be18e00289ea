"""Implementations of ``torch.ops.cawa_fast``: each reports bad labels and calls one kernel.

Arguments are valid here; :mod:`cawa_fast.functional` has checked them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from .. import _label_check, _validate, reference
from . import backends, native
from .library import LIBRARY


def count_labels(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """``(N, C)`` int64: the valid pixels of each class in each image. Reports bad labels."""
    if not backends.runs_triton(target.device):
        counts, bad = torch.ops.cawa_fast_cpu.label_histogram(target, num_classes, ignore_index)
        _label_check.report_bad_labels("target", bad, num_classes, ignore_index)
        return counts
    report = _label_check.open_report("target", target.device, num_classes, ignore_index)
    if native.cuda_available() and num_classes <= backends.COUNTED_CLASSES:
        counts = torch.ops.cawa_fast_cuda.label_counts(target, num_classes, ignore_index, report)
    else:
        counts = torch.zeros(target.shape[0], num_classes, dtype=torch.int64, device=target.device)
        backends.kernels("labels").label_histogram(target, counts, report, num_classes, ignore_index)
    _label_check.close_report("target", report, num_classes, ignore_index)
    return counts


def _reduction_scale(
    target: Tensor, num_classes: int, weight: Tensor | None, ignore_index: int, reduction: str, like: Tensor
) -> Tensor:
    """``(C,)`` float32: ``reference.reduction_scale``, computed by a GPU kernel. Reports bad labels."""
    if native.cuda_available() and num_classes <= backends.COUNTED_CLASSES:
        report = _label_check.open_report("target", target.device, num_classes, ignore_index)
        how = backends.REDUCTIONS.index(reduction)
        scale = torch.ops.cawa_fast_cuda.label_scale(target, num_classes, ignore_index, weight, how, report)
        _label_check.close_report("target", report, num_classes, ignore_index)
        return scale
    loss_kernels = backends.kernels("cross_entropy")
    counts = None
    if reduction in loss_kernels.COUNTED:
        counts = count_labels(target.reshape(1, -1), num_classes, ignore_index)
    else:
        report_labels(target, num_classes, ignore_index)
    return loss_kernels.reduction_scale(counts, target.numel(), weight, like, reduction)


def report_labels(target: Tensor, num_classes: int, ignore_index: int) -> None:
    if _label_check.label_check_is_off():
        return
    if backends.runs_triton(target.device):
        # Callers that continue in plain PyTorch have not made the target's device current.
        with backends.on_device_of(target):
            report = _label_check.open_report("target", target.device, num_classes, ignore_index)
            backends.kernels("labels").label_histogram(target.reshape(1, -1), None, report, num_classes, ignore_index)
            _label_check.close_report("target", report, num_classes, ignore_index)
        return
    is_native = target.device.type == "cpu" and native.available()
    find = torch.ops.cawa_fast_cpu.bad_labels if is_native else reference.bad_labels
    _label_check.report_bad_labels("target", find(target, num_classes, ignore_index), num_classes, ignore_index)


def per_class(values: Tensor | None, input: Tensor) -> Tensor | None:
    return None if values is None else values.to(reference.compute_dtype(input.dtype)).contiguous()


def compute_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    gamma: float,
    align_corners: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    weight, offset = per_class(weight, input), per_class(offset, input)
    _validate.check_weight_values(weight)
    _validate.check_offset_values(offset)
    saved_kind = backends.saves(input, target, reduction, with_grad)
    if backends.is_triton(input):
        with backends.on_device_of(input):
            scale = _reduction_scale(target, input.shape[1], weight, ignore_index, reduction, input)
            per_pixel = reduction == "none"
            options = (input, target, weight, offset, scale, ignore_index, per_pixel, label_smoothing, gamma)
            if backends.is_cuda(input, target):
                forms_grad = saved_kind is backends.Saved.GRADIENT
                loss, saved = torch.ops.cawa_fast_cuda.cross_entropy(*options, forms_grad)
            elif backends.is_cuda_resized(input, target, align_corners):
                save = saved_kind is backends.Saved.STATISTICS
                loss, saved = torch.ops.cawa_fast_cuda.resized_cross_entropy(*options, align_corners, save)
            else:
                save = saved_kind is backends.Saved.STATISTICS
                loss, saved = backends.kernels("cross_entropy").cross_entropy(*options, align_corners, save)
        return loss, scale, saved
    if not backends.is_native(input):
        report_labels(target, input.shape[1], ignore_index)
        loss, scale = reference.cross_entropy(
            input, target, weight, offset, ignore_index, reduction, label_smoothing, gamma, align_corners
        )
        return loss, scale, input.new_empty(0)
    counts = count_labels(target.reshape(1, -1), input.shape[1], ignore_index)[0]
    class_weight = torch.ones(input.shape[1], dtype=torch.float32, device=input.device) if weight is None else weight
    scale = reference.reduction_scale(counts, target.numel(), class_weight, reduction)
    loss, grad = torch.ops.cawa_fast_cpu.cross_entropy(
        input,
        target,
        weight,
        offset,
        scale,
        ignore_index,
        reduction == "none",
        label_smoothing,
        gamma,
        align_corners,
        saved_kind is backends.Saved.GRADIENT,
    )
    return loss, scale, grad


def _outside_transforms(target: Tensor) -> Tensor:
    """``target`` as it is outside all transforms of ``torch.func``."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(target):
        if functorch.is_batchedtensor(target):
            raise ValueError(
                "cross_entropy: target is mapped by torch.func.vmap, inside of which its labels cannot be checked; for "
                'one loss per image call it once on the batch, with reduction="none"'
            )
        target = functorch.get_unwrapped(target)
    return target


def check_labels_outside_transforms(
    target: Tensor, num_classes: int, ignore_index: int, weight: Tensor | None, offset: Tensor | None
) -> None:
    """Report bad labels, weights and offsets while a transform of ``torch.func`` is active."""
    if torch.compiler.is_compiling():  # the check of the labels breaks the graph
        report_labels(target, num_classes, ignore_index)
        return
    # Inside a transform, new tensors have no memory to which a kernel could write.
    labels = _outside_transforms(target)
    with temporarily_clear_interpreter_stack():
        report_labels(labels, num_classes, ignore_index)
    if torch._C._len_torch_dispatch_stack() == 0:  # a tracer has no values
        _validate.check_weight_values(weight)
        _validate.check_offset_values(offset)


def differentiable_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    gamma: float,
    align_corners: bool,
) -> Tensor:
    """The loss in plain PyTorch, whose operations have the forward-mode derivatives that the kernels lack."""
    check_labels_outside_transforms(target, input.shape[1], ignore_index, weight, offset)
    return reference.cross_entropy(
        input, target, weight, offset, ignore_index, reduction, label_smoothing, gamma, align_corners
    )[0]


def compute_cross_entropy_backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    scale: Tensor,
    saved: Tensor,
    ignore_index: int,
    label_smoothing: float,
    gamma: float,
    align_corners: bool,
) -> Tensor:
    weight, offset = per_class(weight, input), per_class(offset, input)
    classes, options = (weight, offset, scale), (ignore_index, label_smoothing, gamma)
    if backends.is_cuda(input, target):
        return torch.ops.cawa_fast_cuda.cross_entropy_backward(
            grad.to(torch.float32), input, target, *classes, *options
        )
    if backends.is_cuda_resized(input, target, align_corners):
        cuda = torch.ops.cawa_fast_cuda
        if saved.numel() == 0:  # the forward pass ran without gradients enabled
            _, saved = cuda.resized_cross_entropy(
                input, target, *classes, ignore_index, False, label_smoothing, gamma, align_corners, True
            )
        return cuda.resized_cross_entropy_backward(
            grad.to(torch.float32), input, target, *classes, saved, *options, align_corners
        )
    if backends.is_triton(input):
        with backends.on_device_of(input):
            return backends.kernels("cross_entropy").cross_entropy_backward(
                grad, input, target, *classes, saved, *options, align_corners
            )
    if backends.is_native(input):
        return torch.ops.cawa_fast_cpu.cross_entropy_backward(
            grad.to(torch.float32), input, target, *classes, *options, align_corners
        )
    return reference.cross_entropy_backward(grad, input, target, *classes, *options, align_corners)


@torch.library.impl(LIBRARY, "confusion_matrix", "CompositeExplicitAutograd")
def compute_confusion_matrix(
    input: Tensor, target: Tensor, num_classes: int, ignore_index: int, align_corners: bool
) -> Tensor:
    if input.is_floating_point():
        if backends.is_triton(input):
            with backends.on_device_of(input):
                report = _label_check.open_report("target", target.device, num_classes, ignore_index)
                if native.cuda_available() and backends.counts_by_cells(input, target, align_corners):
                    counts = torch.ops.cawa_fast_cuda.confusion_matrix(
                        input, target, ignore_index, align_corners, report
                    )
                else:
                    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=input.device)
                    backends.kernels("confusion_matrix").confusion_matrix(
                        input, target, counts, report, ignore_index, align_corners
                    )
                _label_check.close_report("target", report, num_classes, ignore_index)
                return counts
        report_labels(target, num_classes, ignore_index)
        if backends.is_native(input):
            return torch.ops.cawa_fast_cpu.confusion_matrix(input, target, ignore_index, align_corners)
        return reference.confusion_matrix(input, target, num_classes, ignore_index, align_corners)
    if backends.runs_triton(input.device) and num_classes <= backends.KERNEL_CLASSES:
        with backends.on_device_of(input):
            report_labels(target, num_classes, ignore_index)
            report = _label_check.open_report("input", input.device, num_classes, ignore_index)
            counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=input.device)
            backends.kernels("labels").confusion_matrix_labels(input, target, counts, report, num_classes, ignore_index)
            _label_check.close_report("input", report, num_classes, ignore_index)
            return counts
    if input.device.type == "cpu" and native.available():
        counts, bad = torch.ops.cawa_fast_cpu.confusion_matrix_labels(input, target, num_classes, ignore_index)
        _label_check.report_bad_labels("target", bad[:3], num_classes, ignore_index)
        _label_check.report_bad_labels("input", bad[3:], num_classes, ignore_index)
        return counts
    report_labels(target, num_classes, ignore_index)
    _, valid = reference.valid_labels(target, num_classes, ignore_index)
    bad = reference.bad_labels(input.to(torch.int64).where(valid, 0), num_classes, 0)
    _label_check.report_bad_labels("input", bad, num_classes, ignore_index)
    return reference.confusion_matrix(input, target, num_classes, ignore_index, align_corners)


@torch.library.impl(LIBRARY, "cam_counts", "CompositeExplicitAutograd")
def compute_cam_counts(
    cam: Tensor, target: Tensor, tau: float, normalize: str, classes: str, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if backends.is_triton(cam) and cam.numel():
        with backends.on_device_of(cam):
            truth = count_labels(target, cam.shape[1], ignore_index)
            in_cuda = native.cuda_available() and normalize in backends.CUDA_NORMALIZATIONS
            if in_cuda and backends.counts_by_cells(cam, target, align_corners):
                return torch.ops.cawa_fast_cuda.cam_counts(
                    cam, target, truth, tau, normalize == "max", classes == "all", ignore_index, align_corners
                )
            return backends.kernels("cam_counts").cam_counts(
                cam, target, truth, tau, normalize, classes, ignore_index, align_corners
            )
    if backends.is_native(cam):
        truth = count_labels(target, cam.shape[1], ignore_index)
        how = reference.NORMALIZATIONS.index(normalize)
        return torch.ops.cawa_fast_cpu.cam_counts(
            cam, target, truth, tau, how, classes == "all", ignore_index, align_corners
        )
    report_labels(target, cam.shape[1], ignore_index)
    return reference.cam_counts(cam, target, tau, normalize, classes, ignore_index, align_corners)


LIBRARY.impl("cross_entropy", compute_cross_entropy, "CompositeExplicitAutograd")
LIBRARY.impl("cross_entropy_backward", compute_cross_entropy_backward, "CompositeExplicitAutograd")
