"""The contenders of a benchmark: this library, and what one would use in its place, each in its cheapest obvious form.

Every rival computes the same thing from the same problem; ``tests/test_bench.py`` compares the results. Rivals get
their labels as int64, which PyTorch wants, converted beforehand.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import cawa_fast.functional as CF

from .cases import IGNORE, Problem

TAU = 0.5


def _nothing() -> None:
    return None


class Contender(NamedTuple):
    """Something to be timed.

    Attributes:
        name: as in tables.
        run: computes once; returns ``(loss, gradient)``, ``(matrix,)`` or ``(tp, fp, fn)``.
        reset: called before each ``run``, not timed.
        threads: how many, if not as many as the benchmark's other contenders.
    """

    name: str
    run: Callable[[], tuple[Tensor, ...]]
    reset: Callable[[], None] = _nothing
    threads: int | None = None


def build(name: str, operator: str, problem: Problem) -> Contender:
    """The contender ``name`` for an operator of :mod:`cawa_fast.functional`.

    Args:
        name: a key of :data:`MEANING`.
        operator: "cross_entropy" (timed forward and backward), "confusion_matrix" or "cam_counts" (normalize "max",
            classes "present").
        problem: the input.

    Raises:
        ImportError: torchmetrics is wanted and not installed.
    """
    threads = 1 if name.endswith("one thread") else None
    if name.startswith("copy"):
        out = torch.empty_like(problem.logits)
        return Contender(name, lambda: (out.copy_(problem.logits),), threads=threads)
    if name.startswith("exponentials"):
        x = torch.linspace(-20, 0, 1 << 17)
        out = torch.empty_like(x)

        def exponentials() -> tuple[Tensor, ...]:
            for _ in range(20):
                torch.exp2(x, out=out)
            return (out,)

        return Contender(name, exponentials, threads=threads)
    logits, function = problem.logits, name
    if name in ("one thread", "float32", "bfloat16", "ratio 4"):
        function = "ours"
        logits = logits.bfloat16() if name == "bfloat16" else logits
    elif name == "eager, channels_last":
        function, logits = "eager", logits.contiguous(memory_format=torch.channels_last)
    run, reset = _BUILDERS[operator](function, logits, problem)
    return Contender(name, run, reset, threads)


MEANING = {
    "ours": "cawa_fast, labels uint8",
    "eager": "PyTorch, labels int64, logits contiguous as ours are",
    "eager, channels_last": "the same with logits in channels_last, where some of PyTorch's operators are faster",
    "eager, present": "PyTorch that interpolates only the maps of the classes in the image's labels",
    "compile": "torch.compile of the eager function, static shapes, warmed up",
    "torchmetrics": "interpolation, then torchmetrics' multiclass_confusion_matrix without argument checks",
    "copy": "out.copy_(logits)",
    "copy, one thread": "the same on one thread",
    "one thread": "cawa_fast on one thread",
    "exponentials": "torch.exp2 within the cache, for what a second thread is worth on this machine at that time",
    "exponentials, one thread": "the same on one thread",
    "float32": "cawa_fast on float32 logits",
    "bfloat16": "cawa_fast on bfloat16 logits",
    "ratio 4": "cawa_fast, to the same labels from a quarter of their height and width",
}
"""What each contender is."""

Pair = tuple[Callable[[], tuple[Tensor, ...]], Callable[[], None]]


# ------------------------------------------------------------------------------------------------- cross-entropy


def eager_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """The mean loss of ``logits`` resized to ``labels`` ``(N, H, W)`` int64, 255 where ignored."""
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(logits, labels, weight, ignore_index=IGNORE)


def _cross_entropy(function: str, logits: Tensor, problem: Problem) -> Pair:
    weight, align_corners = problem.weight, problem.align_corners
    if function == "ours":
        labels = problem.labels

        def loss_of(x: Tensor) -> Tensor:
            return CF.cross_entropy(x, labels, weight, ignore_index=IGNORE, align_corners=align_corners)
    else:
        labels, loss = problem.labels.long(), _maybe_compiled(eager_cross_entropy, function)

        def loss_of(x: Tensor) -> Tensor:
            return loss(x, labels, weight, align_corners)

    x = logits.detach().requires_grad_()

    def reset() -> None:
        x.grad = None

    def run() -> tuple[Tensor, ...]:
        value = loss_of(x)
        value.backward()
        assert x.grad is not None
        return value.detach(), x.grad

    return run, reset


# ----------------------------------------------------------------------------------------------- confusion matrix


def eager_confusion_matrix(logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    """``(C, C)`` int64. ``max`` is several times faster than ``argmax``, and rows for the ignored than a mask."""
    classes = logits.shape[1]
    resized = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    index = labels * classes + resized.max(1).indices
    counts = torch.bincount(index.flatten(), minlength=(IGNORE + 1) * classes)
    return counts[: classes * classes].view(classes, classes)


def _confusion_matrix(function: str, logits: Tensor, problem: Problem) -> Pair:
    align_corners = problem.align_corners
    if function == "ours":

        def run() -> tuple[Tensor, ...]:
            matrix = CF.confusion_matrix(logits, problem.labels, ignore_index=IGNORE, align_corners=align_corners)
            return (matrix,)

        return run, _nothing
    labels = problem.labels.long()
    if function == "torchmetrics":
        matrix_of = _torchmetrics()

        def run() -> tuple[Tensor, ...]:
            resized = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
            classes = logits.shape[1]
            return (matrix_of(resized, labels, num_classes=classes, ignore_index=IGNORE, validate_args=False),)

        return run, _nothing
    matrix = _maybe_compiled(eager_confusion_matrix, function)
    return (lambda: (matrix(logits, labels, align_corners),)), _nothing


_libraries: list[torch.library.Library] = []  # a library's definitions live as long as the object


def import_torchvision() -> None:
    """Make torchvision importable also where its compiled part does not fit this torch, for what imports it in turn.

    Its Python code needs the schemas of its operators, and a CUDA build beside a CPU build of torch cannot load those.
    With the schemas declared it imports; nobody calls them.

    Raises:
        ImportError: there is no torchvision.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's deprecations, while they are imported
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            library = torch.library.Library("torchvision", "FRAGMENT")
            _libraries.append(library)
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _torchmetrics() -> Callable[..., Tensor]:
    """The function; torchmetrics imports torchvision where it is installed."""
    with contextlib.suppress(ImportError):
        import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.classification import multiclass_confusion_matrix

    return multiclass_confusion_matrix


# ------------------------------------------------------------------------------------------------------ CAM counts


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
    offset = torch.arange(images).view(-1, 1, 1) * (IGNORE + 1)
    index = labels + offset
    truth = torch.bincount(index.flatten(), minlength=images * (IGNORE + 1)).view(images, -1)[:, :classes]
    tp = torch.bincount(labels[hit], minlength=classes)
    predicted = ((mask & valid.unsqueeze(1)).sum((-2, -1)) * (truth > 0)).sum(0)
    return tp, predicted - tp, truth.sum(0) - tp


def eager_present_cam_counts(cam: Tensor, labels: Tensor, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The same, image by image, interpolating only the maps of the classes that the image's labels contain."""
    classes = cam.shape[1]
    totals = torch.zeros(3, classes, dtype=torch.int64)
    for image, target in zip(cam, labels, strict=True):
        truth = torch.bincount(target.flatten(), minlength=IGNORE + 1)[:classes]
        present = truth.nonzero().squeeze(1)
        if len(present) == 0:
            continue
        size = (target.shape[-2], target.shape[-1])
        maps = F.interpolate(image[present][None], size=size, mode="bilinear", align_corners=align_corners)[0]
        mask = maps > TAU * maps.amax((-2, -1), keepdim=True)
        valid = target != IGNORE
        place = torch.zeros(IGNORE + 1, dtype=torch.int64)
        place[present] = torch.arange(len(present))
        hit = mask.gather(0, place[target][None])[0] & valid
        tp = torch.bincount(target[hit], minlength=classes)
        predicted = torch.zeros_like(tp)
        predicted[present] = (mask & valid).sum((-2, -1))
        totals += torch.stack((tp, predicted - tp, truth - tp))
    return totals[0], totals[1], totals[2]


def _cam_counts(function: str, logits: Tensor, problem: Problem) -> Pair:
    align_corners = problem.align_corners
    cam = logits.relu()
    if function == "ours":
        return (
            lambda: CF.cam_counts(cam, problem.labels, tau=TAU, ignore_index=IGNORE, align_corners=align_corners)
        ), _nothing
    labels = problem.labels.long()
    counts = eager_present_cam_counts if function == "eager, present" else _maybe_compiled(eager_cam_counts, function)
    return (lambda: counts(cam, labels, align_corners)), _nothing


_BUILDERS: dict[str, Callable[[str, Tensor, Problem], Pair]] = {
    "cross_entropy": _cross_entropy,
    "confusion_matrix": _confusion_matrix,
    "cam_counts": _cam_counts,
}


def _maybe_compiled(function: Callable[..., Any], how: str) -> Callable[..., Any]:
    if how == "eager":
        return function
    assert how == "compile", how
    torch.compiler.reset()  # what was compiled for other shapes does not count towards the limit of this one
    return torch.compile(function, dynamic=False)
