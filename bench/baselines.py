"""The contenders of a benchmark: this library, and what one would use in its place, each in its cheapest obvious form.

Every rival computes the same thing from the same problem; ``tests/test_bench.py`` compares the results. Rivals get
their labels as int64, which PyTorch wants, converted beforehand.
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

from .cases import IGNORE, TAU, Problem
from .libraries import (
    import_torchmetrics,
    liger_cross_entropy,
    mmsegmentation_areas,
    torchmetrics_cam_counts,
    torchmetrics_confusion_matrix,
)
from .libraries import import_torchvision as import_torchvision  # tests/conftest.py takes it from here


def _nothing() -> None:
    return None


class Contender(NamedTuple):
    """Something to be timed.

    Attributes:
        name: as in tables.
        run: computes once; returns ``(loss, gradient)``, ``(matrix,)`` or ``(tp, fp, fn)``.
        reset: called before each ``run``, not timed.
        threads: how many, if not as many as the benchmark's other contenders.
        copies: the number of inputs that successive runs take in turn.
    """

    name: str
    run: Callable[[], tuple[Tensor, ...]]
    reset: Callable[[], None] = _nothing
    threads: int | None = None
    copies: int = 1


def build(name: str, operator: str, problem: Problem, *more: Problem, backend: str = "inductor") -> Contender:
    """The contender ``name`` for an operator of :mod:`cawa_fast.functional`.

    Args:
        name: a key of :data:`MEANING`.
        operator: "cross_entropy" (timed forward and backward), "confusion_matrix" or "cam_counts" (normalize "max",
            classes "present").
        problem: the input.
        more: others of the same shape, which are taken in turn: together larger than a cache.
        backend: of torch.compile.

    Raises:
        ImportError: torchmetrics or Liger-Kernel is wanted and not installed.
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
    function, deterministic = name.removesuffix(", deterministic"), name.endswith(", deterministic")
    if function in ("one thread", "float32", "bfloat16", "ratio 4", "ours again"):
        function = "ours"
    elif function == "eager, channels_last":
        function = "eager"
    bind = _BUILDERS[operator](function, backend)
    pairs = [bind(_arranged(name, given.logits), given) for given in (problem, *more)]
    pair = _in_turn(pairs)
    if deterministic:
        pair = _deterministic(pair)
    return Contender(name, *pair, threads, len(pairs))


def _arranged(name: str, logits: Tensor) -> Tensor:
    """The logits as the contender ``name`` gets them."""
    if name == "bfloat16":
        return logits.bfloat16()
    if name == "eager, channels_last":
        return logits.contiguous(memory_format=torch.channels_last)
    return logits.contiguous() if name == "eager" or name.startswith("Liger") else logits


MEANING = {
    "ours": "cawa_fast, labels uint8",
    "ours again": "the same once more: ratios closer to 1 than this one's say nothing",
    "eager": "PyTorch, labels int64, logits contiguous",
    "eager, channels_last": "the same with logits in channels_last, where some of PyTorch's operators are faster",
    "eager, autocast": "the same as under autocast, which makes the loss's logits float32",
    "eager, present": "PyTorch that interpolates only the maps of the classes in the image's labels",
    "compile": "torch.compile of the eager function, static shapes, warmed up",
    "compile, max-autotune": 'the same with mode="max-autotune-no-cudagraphs"',
    "Liger": "interpolation where sizes differ, then Liger-Kernel's LigerCrossEntropyLoss, with the permutation of the "
    "logits that it needs",
    "torchmetrics": "interpolation, then torchmetrics without argument checks: multiclass_confusion_matrix, for CAM "
    "counts multilabel_stat_scores",
    "torchmetrics, deterministic": "the same under torch.use_deterministic_algorithms(True)",
    "MMSegmentation": "interpolation, argmax, then image by image torch.histc of intersection, prediction and label",
    "labels": "reading the labels once: a kernel that adds them up",
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
Bind = Callable[[Tensor, Problem], Pair]


def _in_turn(pairs: list[Pair]) -> Pair:
    """One pair that takes the ``pairs`` in turn, the next with each reset."""
    if len(pairs) == 1:
        return pairs[0]
    turn = itertools.cycle(pairs)
    current = pairs[-1]

    def reset() -> None:
        nonlocal current
        current = next(turn)
        current[1]()

    return (lambda: current[0]()), reset


def _deterministic(pair: Pair) -> Pair:
    run, reset = pair

    def deterministic() -> tuple[Tensor, ...]:
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            return run()
        finally:
            torch.use_deterministic_algorithms(before)

    return deterministic, reset


# ------------------------------------------------------------------------------------------------- cross-entropy


def eager_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """The mean loss of ``logits`` resized to ``labels`` ``(N, H, W)`` int64, 255 where ignored.

    In the dtype of the logits, but in float32 for float16, in which PyTorch's sums over pixels are infinite.
    """
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    if logits.dtype == torch.float16:
        logits = logits.float()
    return F.cross_entropy(logits, labels, weight.to(logits.dtype), ignore_index=IGNORE)


def autocast_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """The same with the loss in float32."""
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(logits.float(), labels, weight, ignore_index=IGNORE)


def _our_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    return CF.cross_entropy(logits, labels, weight, ignore_index=IGNORE, align_corners=align_corners)


def _cross_entropy(function: str, backend: str) -> Bind:
    loss: Callable[..., Tensor]
    if function == "ours":
        loss = _our_cross_entropy
    elif function == "eager, autocast":
        loss = autocast_cross_entropy
    elif function == "Liger":
        import liger_kernel  # noqa: F401

        loss = liger_cross_entropy
    else:
        loss = _maybe_compiled(eager_cross_entropy, function, backend)

    def bind(logits: Tensor, problem: Problem) -> Pair:
        labels = problem.labels if function == "ours" else problem.labels.long()
        x = logits.detach().requires_grad_()

        def reset() -> None:
            x.grad = None

        def run() -> tuple[Tensor, ...]:
            value = loss(x, labels, problem.weight, problem.align_corners)
            value.backward()
            assert x.grad is not None
            return value.detach(), x.grad

        return run, reset

    return bind


# ----------------------------------------------------------------------------------------------- confusion matrix


def eager_confusion_matrix(logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    """``(C, C)`` int64. ``max`` is several times faster than ``argmax``, and rows for the ignored than a mask."""
    classes = logits.shape[1]
    resized = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    index = labels * classes + resized.max(1).indices
    counts = torch.bincount(index.flatten(), minlength=(IGNORE + 1) * classes)
    return counts[: classes * classes].view(classes, classes)


def _confusion_matrix(function: str, backend: str) -> Bind:
    if function == "ours":

        def ours(logits: Tensor, problem: Problem) -> Pair:
            options: dict[str, Any] = {"ignore_index": IGNORE, "align_corners": problem.align_corners}
            return (lambda: (CF.confusion_matrix(logits, problem.labels, **options),)), _nothing

        return ours
    matrix: Callable[..., Any]
    if function == "torchmetrics":
        function_of_torchmetrics = import_torchmetrics().multiclass_confusion_matrix
        matrix = functools.partial(torchmetrics_confusion_matrix, function_of_torchmetrics)
    elif function == "MMSegmentation":
        matrix = mmsegmentation_areas
    else:
        matrix = _maybe_compiled(eager_confusion_matrix, function, backend)

    def bind(logits: Tensor, problem: Problem) -> Pair:
        labels = problem.labels.long()

        def run() -> tuple[Tensor, ...]:
            found = matrix(logits, labels, problem.align_corners)
            return found if isinstance(found, tuple) else (found,)

        return run, _nothing

    return bind


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


def _cam_counts(function: str, backend: str) -> Bind:
    if function == "ours":

        def ours(logits: Tensor, problem: Problem) -> Pair:
            cam = logits.relu()
            options: dict[str, Any] = {"ignore_index": IGNORE, "align_corners": problem.align_corners}
            return (lambda: CF.cam_counts(cam, problem.labels, tau=TAU, **options)), _nothing

        return ours
    counts: Callable[..., tuple[Tensor, ...]]
    if function == "torchmetrics":
        counts = functools.partial(torchmetrics_cam_counts, import_torchmetrics().multilabel_stat_scores)
    elif function == "eager, present":
        counts = eager_present_cam_counts
    else:
        counts = _maybe_compiled(eager_cam_counts, function, backend)

    def bind(logits: Tensor, problem: Problem) -> Pair:
        cam, labels = logits.relu(), problem.labels.long()
        return (lambda: counts(cam, labels, problem.align_corners)), _nothing

    return bind


_BUILDERS: dict[str, Callable[[str, str], Bind]] = {
    "cross_entropy": _cross_entropy,
    "confusion_matrix": _confusion_matrix,
    "cam_counts": _cam_counts,
}


def _maybe_compiled(function: Callable[..., Any], how: str, backend: str) -> Callable[..., Any]:
    if how == "eager":
        return function
    assert how in ("compile", "compile, max-autotune"), how
    mode = "max-autotune-no-cudagraphs" if how == "compile, max-autotune" and backend == "inductor" else None
    torch.compiler.reset()  # what was compiled for other shapes does not count towards the limit of this one
    return torch.compile(function, dynamic=False, backend=backend, mode=mode)
