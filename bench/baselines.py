"""The implementations that a benchmark times: this library, its baselines, and reference measurements such as a copy.

Baselines are written in their cheapest obvious form and compute the same from the same problem;
tests/bench/test_bench.py compares the results. Their labels are converted to int64, which PyTorch requires, before the
timing starts.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import cawa_fast.functional as CF

from . import libraries, losses
from .cases import IGNORE, TAU, Problem

Tensors = tuple[Tensor, ...]
Pair = tuple[Callable[[], Tensors], Callable[[], None]]  # run, reset


def _nothing() -> None:
    return None


class Implementation(NamedTuple):
    """Something to be timed.

    Attributes:
        name: as in tables.
        run: computes once; returns ``(loss, gradient)``, ``(matrix,)`` or ``(tp, fp, fn)``.
        reset: called before each ``run`` and not timed.
        threads: if other than the benchmark's number.
        copies: the number of inputs that successive runs take in turn.
    """

    name: str
    run: Callable[[], Tensors]
    reset: Callable[[], None] = _nothing
    threads: int | None = None
    copies: int = 1


MEANING = {
    "ours": "cawa_fast, labels uint8",
    "ours again": "the same code again: its ratio shows the noise",
    "eager": "PyTorch, labels int64, logits contiguous",
    "eager, channels_last": "the same with logits in channels_last, where some of PyTorch's operators are faster",
    "eager, autocast": "the same with the loss in float32, as autocast computes it",
    "eager, present": "PyTorch that interpolates only the maps of the classes in the image's labels",
    "compile": "torch.compile of the eager function, static shapes, warmed up",
    "compile, max-autotune": 'the same with mode="max-autotune-no-cudagraphs"',
    "Liger": "interpolation where sizes differ, then Liger-Kernel's LigerCrossEntropyLoss, with the permutation of the "
    "logits that it needs",
    "torchmetrics": "interpolation, then torchmetrics without argument checks: multiclass_confusion_matrix, for CAM "
    "counts multilabel_stat_scores",
    "torchmetrics, deterministic": "the same under torch.use_deterministic_algorithms(True)",
    "MMSegmentation": "interpolation, argmax, then image by image torch.histc of intersection, prediction and label",
    "smp": "interpolation, then the loss of segmentation_models_pytorch",
    "MONAI": "interpolation, then the loss of MONAI",
    "cross-entropy": "cawa_fast, the cross-entropy alone",
    "labels": "a kernel that reads the labels once and adds them up",
    "copy": "out.copy_(logits)",
    "copy, one thread": "the same on one thread",
    "one thread": "cawa_fast on one thread",
    "exponentials": "torch.exp2 within the cache: shows what a second thread brings on this machine at that time",
    "exponentials, one thread": "the same on one thread",
    "float32": "cawa_fast on float32 logits",
    "bfloat16": "cawa_fast on bfloat16 logits",
    "ratio 4": "cawa_fast, to the same labels from a quarter of their height and width",
}
"""What each implementation is."""

_OURS = ("ours", "ours again", "one thread", "float32", "bfloat16", "ratio 4", "cross-entropy")


def make_implementation(
    name: str, operator: str, problem: Problem, *more: Problem, backend: str = "inductor"
) -> Implementation:
    """The implementation ``name`` of an operator.

    Args:
        name: a key of :data:`MEANING`.
        operator: "cross_entropy" or one of :data:`bench.losses.OPERATORS` (forward and backward), "confusion_matrix" or
            "cam_counts" (normalize "max", classes "present").
        problem: the input.
        more: other inputs of the same shape that successive runs take in turn, so that they exceed a cache together.
        backend: of torch.compile.

    Raises:
        ImportError: torchmetrics or Liger-Kernel is wanted and not installed.
    """
    threads = 1 if name.endswith("one thread") else None
    if name.startswith("copy"):
        out = torch.empty_like(problem.logits)
        return Implementation(name, lambda: (out.copy_(problem.logits),), threads=threads)
    if name.startswith("exponentials"):
        return Implementation(name, _exponentials(), threads=threads)
    ours = name in _OURS
    if name == "cross-entropy":
        operator = "cross_entropy"
    compute = _OUR_OPERATORS[operator] if ours else _baseline(name.removesuffix(", deterministic"), operator, backend)
    bind = _counting if operator in ("confusion_matrix", "cam_counts") else _training
    pairs = []
    for given in (problem, *more):
        x = _arranged(name, given.logits)
        labels = given.labels if ours else given.labels.long()
        pairs.append(bind(compute, x.relu() if operator == "cam_counts" else x, labels, given))
    run, reset = _in_turn(pairs)
    if name.endswith(", deterministic"):
        run = functools.partial(_deterministic, run)
    return Implementation(name, run, reset, threads, len(pairs))


def _exponentials() -> Callable[[], Tensors]:
    x = torch.linspace(-20, 0, 1 << 17)
    out = torch.empty_like(x)

    def run() -> Tensors:
        for _ in range(20):
            torch.exp2(x, out=out)
        return (out,)

    return run


def _arranged(name: str, logits: Tensor) -> Tensor:
    """The logits in the dtype and layout of the implementation ``name``."""
    if name == "bfloat16":
        return logits.bfloat16()
    if name == "eager, channels_last":
        return logits.contiguous(memory_format=torch.channels_last)
    return logits.contiguous() if name == "eager" or name.startswith("Liger") else logits


def _training(compute: Callable[..., Tensor], logits: Tensor, labels: Tensor, problem: Problem) -> Pair:
    x = logits.detach().requires_grad_()

    def reset() -> None:
        x.grad = None

    def run() -> Tensors:
        value = compute(x, labels, problem.weight, problem.align_corners)
        value.backward()
        assert x.grad is not None
        return value.detach(), x.grad

    return run, reset


def _counting(compute: Callable[..., Any], x: Tensor, labels: Tensor, problem: Problem) -> Pair:
    def run() -> Tensors:
        found = compute(x, labels, problem.align_corners)
        return found if isinstance(found, tuple) else (found,)

    return run, _nothing


def _in_turn(pairs: list[Pair]) -> Pair:
    """One pair that uses the ``pairs`` in turn; each reset selects the next one."""
    if len(pairs) == 1:
        return pairs[0]
    turn = itertools.cycle(pairs)
    current = pairs[-1]

    def reset() -> None:
        nonlocal current
        current = next(turn)
        current[1]()

    return (lambda: current[0]()), reset


def _deterministic(run: Callable[[], Tensors]) -> Tensors:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        return run()
    finally:
        torch.use_deterministic_algorithms(before)


# ------------------------------------------------------------------------------------------- the operators in PyTorch


def eager_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """The mean loss of ``logits`` resized to ``labels`` ``(N, H, W)`` int64, 255 where ignored.

    Computed in the dtype of the logits, and for float16 in float32, because float16 sums over pixels overflow.
    """
    logits = losses.resized(logits, labels, align_corners)
    if logits.dtype == torch.float16:
        logits = logits.float()
    return F.cross_entropy(logits, labels, weight.to(logits.dtype), ignore_index=IGNORE)


def autocast_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """The same with the loss in float32."""
    return F.cross_entropy(losses.resized(logits, labels, align_corners).float(), labels, weight, ignore_index=IGNORE)


def eager_confusion_matrix(logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    """``(C, C)`` int64. ``max`` is several times faster than ``argmax``, and rows for the ignored than a mask."""
    classes = logits.shape[1]
    resized = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    index = labels * classes + resized.max(1).indices
    counts = torch.bincount(index.flatten(), minlength=(IGNORE + 1) * classes)
    return counts[: classes * classes].view(classes, classes)


def eager_cam_counts(cam: Tensor, labels: Tensor, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``(tp, fp, fn)``: interpolate, compare with half of the maximum, gather at the label, bincount.

    Comparing with ``tau * max`` spares the division of every value and may round a pixel on the threshold elsewhere.
    """
    images, classes = cam.shape[:2]
    resized = F.interpolate(cam, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    mask = resized > TAU * resized.amax((-2, -1), keepdim=True)
    valid = labels != IGNORE
    hit = mask.gather(1, labels.where(valid, 0).unsqueeze(1)).squeeze(1) & valid
    # one histogram for all images: a class is scored in the images whose labels contain it
    offset = torch.arange(images, device=labels.device).view(-1, 1, 1) * (IGNORE + 1)
    index = labels + offset
    truth = torch.bincount(index.flatten(), minlength=images * (IGNORE + 1)).view(images, -1)[:, :classes]
    tp = torch.bincount(labels[hit], minlength=classes)
    predicted = ((mask & valid.unsqueeze(1)).sum((-2, -1)) * (truth > 0)).sum(0)
    return tp, predicted - tp, truth.sum(0) - tp


def eager_present_cam_counts(cam: Tensor, labels: Tensor, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The same, image by image, interpolating only the maps of the classes that the image's labels contain."""
    classes = cam.shape[1]
    totals = torch.zeros(3, classes, dtype=torch.int64, device=cam.device)
    for image, target in zip(cam, labels, strict=True):
        truth = torch.bincount(target.flatten(), minlength=IGNORE + 1)[:classes]
        present = truth.nonzero().squeeze(1)
        if len(present) == 0:
            continue
        size = (target.shape[-2], target.shape[-1])
        maps = F.interpolate(image[present][None], size=size, mode="bilinear", align_corners=align_corners)[0]
        mask = maps > TAU * maps.amax((-2, -1), keepdim=True)
        valid = target != IGNORE
        place = torch.zeros(IGNORE + 1, dtype=torch.int64, device=cam.device)
        place[present] = torch.arange(len(present), device=cam.device)
        hit = mask.gather(0, place[target][None])[0] & valid
        tp = torch.bincount(target[hit], minlength=classes)
        predicted = torch.zeros_like(tp)
        predicted[present] = (mask & valid).sum((-2, -1))
        totals += torch.stack((tp, predicted - tp, truth - tp))
    return totals[0], totals[1], totals[2]


# -------------------------------------------------------------------------------------------- which function is which


def _our_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    return CF.cross_entropy(logits, labels, weight, ignore_index=IGNORE, align_corners=align_corners)


def _our_confusion_matrix(logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    return CF.confusion_matrix(logits, labels, ignore_index=IGNORE, align_corners=align_corners)


def _our_cam_counts(cam: Tensor, labels: Tensor, align_corners: bool) -> Tensors:
    return CF.cam_counts(cam, labels, tau=TAU, ignore_index=IGNORE, align_corners=align_corners)


_OUR_OPERATORS: dict[str, Callable[..., Any]] = {
    "cross_entropy": _our_cross_entropy,
    "confusion_matrix": _our_confusion_matrix,
    "cam_counts": _our_cam_counts,
    **{operator: losses.our_loss(operator) for operator in losses.OPERATORS},
}
_EAGER: dict[str, Callable[..., Any]] = {
    "cross_entropy": eager_cross_entropy,
    "confusion_matrix": eager_confusion_matrix,
    "cam_counts": eager_cam_counts,
    **losses.EAGER,
}
_OTHERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("cross_entropy", "eager, autocast"): autocast_cross_entropy,
    ("cross_entropy", "Liger"): libraries.liger_cross_entropy,
    ("confusion_matrix", "torchmetrics"): libraries.torchmetrics_confusion_matrix,
    ("confusion_matrix", "MMSegmentation"): libraries.mmsegmentation_areas,
    ("cam_counts", "eager, present"): eager_present_cam_counts,
    ("cam_counts", "torchmetrics"): libraries.torchmetrics_cam_counts,
    **losses.OTHERS,
}


def _baseline(name: str, operator: str, backend: str) -> Callable[..., Any]:
    if (operator, name) in _OTHERS:
        if name == "Liger":
            import liger_kernel  # noqa: F401
        if name == "torchmetrics":
            libraries.import_torchmetrics()
        return _OTHERS[operator, name]
    if name in ("eager", "eager, channels_last"):
        return _EAGER[operator]
    assert name in ("compile", "compile, max-autotune"), name
    mode = "max-autotune-no-cudagraphs" if name == "compile, max-autotune" and backend == "inductor" else None
    torch.compiler.reset()  # so that functions compiled for other shapes do not count towards the recompile limit
    return torch.compile(_EAGER[operator], dynamic=False, backend=backend, mode=mode)
