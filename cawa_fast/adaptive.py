"""``AdaptiveClassWeights``: counts, class weights and their history, from one validation pass to the next."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import _label_check, _rules, _validate, reference, rules
from . import functional as CF
from ._collective import check_group, sum_if_distributed
from ._plots import Panel, draw_steps, names_of
from ._rules import RecallRule
from ._state import as_history, from_history
from .estimation import Average, Estimate, estimate
from .metrics import MetricValues, segmentation_metrics
from .rules import Rule

SOURCES = ("cam", "argmax")
_RESULTS = ("iou", "pixel_accuracy", "csps", "base_weight", "ratio_weight", "standard_error")


class AdaptiveClassWeights(nn.Module):
    r"""Class weights from how well each class's activation map matches the ground truth (CAWASeg, Eq. 1 to 9).

    Call :meth:`observe` for each validation batch and :meth:`step` after the last one. :attr:`weight` then holds the
    class weights for the loss of the next epoch. Every step computes, for class i over everything observed,

    .. math::
        CSPS_i &= \delta\, IoU_i + (1 - \delta)\, PA_i \\
        BW_i &= \log\Bigl(1 + \frac{\sum_j CSPS_j}{CSPS_i + \epsilon}\Bigr)
                \log\Bigl(1 + \frac{\sum_j n_j}{n_i + \epsilon}\Bigr) \\
        w_i &\propto \min(\max(BW_i \cdot RW_i, w_{min}), w_{max}), \quad \mathrm{mean}(w) = 1

    :math:`n_i` is the number of pixels of class i. :math:`RW_i` is the ratio of this step's CSPS to the last step's; it
    is 1 with the default ``ratio="none"``. A class without ground truth is left out of the sums and of the mean: its
    weight is 1, and its IoU, PA and CSPS are NaN. A class without pixels in ``class_counts`` is left out likewise,
    with every rule, because it would take most of the weight and no pixel would use it; its scores are computed.

    All state is in buffers. It moves with the module and is saved in ``state_dict``; a resumed run continues with the
    same bits. ``weight`` is updated in place, so that losses, CUDA graphs and DDP use the new values. The shapes in
    ``state_dict`` depend on the arguments alone, so that a fresh module loads it in any framework, also with
    ``torch.distributed.checkpoint``; the last 1000 records of the history are part of it.

    Args:
        num_classes: ``C``, at least 1. With 1, softmax cross-entropy is always 0, of which the losses warn.
        delta: weight of the IoU in CSPS, in ``[0, 1]``. The rest is the weight of the pixel accuracy.
        tau: threshold of the pseudo mask, in ``[0, 1]``.
        w_min: lower clip of the raw weight, at least 0.
        w_max: upper clip of the raw weight, at least ``w_min`` and positive.
        eps: added to the divisors, positive.
        ignore_index: label of the pixels that are left out.
        class_counts: ``(C,)`` pixels per class for :math:`n_i`; by default those observed. Pass the counts of the
            training set, because the weights are for its loss. On CamVid, where one class has 0.3 % of the training
            pixels and 2.3 % of the validation pixels, this gains 3 points of mIoU (docs/settings.md).
        class_names: ``C`` names for :meth:`plot`, :meth:`log` and tables.
        source: ``"cam"``: :meth:`observe` takes activation maps. ``"argmax"``: it takes logits and scores the predicted
            classes (the paper's ablation without pseudo masks).
        ratio: ``"none"``: Eq. 6 is left out. ``"paper"``: ``CSPS(t) / (CSPS(t-1) + eps)`` to the letter. A class with
            CSPS 0 then falls to ``w_min`` and stays there. ``"smoothed"``: ``ratio_eps`` is added to both sides, so
            that 0/0 is 1. mIoU / mean IoU of the rare classes on CamVid, mean of three seeds: none 0.519 / 0.220,
            smoothed 0.514 / 0.215, paper 0.479 / 0.146, uniform weights 0.425 / 0.040. With ``source="argmax"``: none
            0.523 / 0.236, smoothed 0.513 / 0.215, paper 0.369 / 0.000, with five or six of 11 classes at IoU 0.
            ``"none"`` was also best on the synthetic street scenes (docs/settings.md) and is therefore the default.
        ratio_eps: see ``ratio``; positive.
        normalize: normalisation of the maps, see :func:`cawa_fast.functional.cam_counts`.
        classes: which classes of an image are scored, see :func:`cawa_fast.functional.cam_counts`.
        align_corners: convention of the resize to the label resolution.
        momentum: weight of earlier steps in the counts of a step, in ``[0, 1)``: ``counts(t) + momentum * (counts(t-1)
            + momentum * ...)``. For small validation sets and samples. With 0 each step uses its own counts only.
        max_error: positive. Where the weights come from a sample of images (``CAWA(budget=...)``), a class whose CSPS
            has a larger standard error than this keeps its weight.
        metrics: also keep a confusion matrix, from which each step computes :attr:`metrics`. :class:`cawa_fast.CAWA`
            fills it; without a CAWA, call :meth:`observe_metrics`.
        rule: ``"cawa"``: the equations above. ``"recall"``: ``1 - PA`` (recall loss, Tian et al. 2022, here per step
            instead of per batch). ``"difficulty"``: ``(1 - PA)^gamma`` (Sinha et al. 2020) with the paper's dynamic
            exponent. Or a function from the recall ``(K,)``, float64 on the CPU, of the classes with ground truth (and
            training pixels) to their raw weights, finite and at least 0. All but ``"cawa"`` are divided by their mean
            and not clipped; use them with ``source="argmax"``, for which they are defined. ``"balanced"``
            (with ``source="argmax"``), ``"decoupled"``, or a :class:`cawa_fast.rules.Rule`, such as
            ``cf.rules.Balanced(gamma=0.4)`` or your own: weights and offsets, with state of its own; classes without
            ground truth keep theirs. ``w_min``, ``w_max`` and ``ratio`` change nothing then.

    Attributes:
        weight: ``(C,)`` float32, mean 1; before the first step ones, or what the rule begins with.
        offset: ``(C,)`` float32, mean 0: what the loss adds to the logits; zeros unless the rule sets it. Updated in
            place as ``weight`` is. Predictions use the bare logits.
        rule_object: the :class:`cawa_fast.rules.Rule` with its state, a copy of the one given, or None.
        counts: ``(3, C)`` int64: tp, fp, fn observed since the last step.
        iou, pixel_accuracy, csps, base_weight, ratio_weight: ``(C,)`` float32, of the last step; NaN before it.
        standard_error: ``(C,)`` float32, standard error of CSPS: 0 where all images were observed, NaN where no image
            has the class.
        held: ``(C,)`` bool: the classes that kept their weight in the last step.
        history: one record per step: lists by class, for tables and plots.

    Raises:
        ValueError, TypeError: naming the argument that does not fit.

    Example:
        >>> import torch, cawa_fast as cf
        >>> weights = cf.AdaptiveClassWeights(2)
        >>> loss_fn = cf.CrossEntropyLoss(weight=weights)
        >>> cam = torch.tensor([[[[4.0, 3.0, 1.0]], [[0.0, 0.0, 2.0]]]])  # one image, two classes, 1 x 3
        >>> weights.observe(cam, torch.tensor([[[0, 1, 1]]]))
        >>> weights.step()
        tensor([1.1763, 0.8237])
    """

    weight: Tensor
    offset: Tensor
    counts: Tensor
    iou: Tensor
    pixel_accuracy: Tensor
    csps: Tensor
    base_weight: Tensor
    ratio_weight: Tensor
    standard_error: Tensor
    held: Tensor
    last_csps: Tensor
    class_counts: Tensor | None
    confusion: Tensor | None
    last_confusion: Tensor | None
    average: Tensor | None
    average_variance: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        delta: float = 0.9,
        tau: float = 0.5,
        w_min: float = 0.1,
        w_max: float = 20.0,
        eps: float = 1e-6,
        ignore_index: int = -100,
        class_counts: Tensor | Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        source: str = "cam",
        ratio: str = "none",
        ratio_eps: float = 0.01,
        normalize: str = "max",
        classes: str = "present",
        align_corners: bool = False,
        momentum: float = 0.0,
        max_error: float = 0.1,
        metrics: bool = False,
        rule: str | RecallRule | Rule = "cawa",
    ) -> None:
        super().__init__()
        check = functools.partial(_validate.check, name="AdaptiveClassWeights")
        check_choice = functools.partial(_validate.check_choice, "AdaptiveClassWeights")
        as_bool = functools.partial(_validate.as_bool, "AdaptiveClassWeights")
        way_out = "pass the model's number of classes"
        num_classes = _validate.as_int("AdaptiveClassWeights", "num_classes", num_classes, way_out)
        numbers = {"delta": delta, "tau": tau, "w_min": w_min, "w_max": w_max, "eps": eps, "ratio_eps": ratio_eps}
        for argument, value in (numbers | {"momentum": momentum, "max_error": max_error}).items():
            _validate.as_number("AdaptiveClassWeights", argument, value)
        ignore_index = _validate.as_ignore_index("AdaptiveClassWeights", ignore_index)
        align_corners, metrics = as_bool("align_corners", align_corners), as_bool("metrics", metrics)
        check(num_classes >= 1, argument="num_classes", value=num_classes, must="be at least 1")
        check(0 <= delta <= 1, argument="delta", value=delta, must="lie in [0, 1]")
        check(0 <= tau <= 1, argument="tau", value=tau, must="lie in [0, 1]")
        check(0 <= w_min < math.inf, argument="w_min", value=w_min, must="be finite and at least 0")
        check(w_min <= w_max, argument="w_max", value=w_max, must=f"be at least w_min={w_min}")
        check(w_max > 0, argument="w_max", value=w_max, must="be positive")
        check(0 < eps < math.inf, argument="eps", value=eps, must="be positive and finite")
        check(0 < ratio_eps < math.inf, argument="ratio_eps", value=ratio_eps, must="be positive and finite")
        check_choice("source", source, SOURCES)
        check_choice("ratio", ratio, _rules.RATIOS)
        check_choice("normalize", normalize, reference.NORMALIZATIONS)
        check_choice("classes", classes, reference.CLASSES)
        check(0 <= momentum < 1, argument="momentum", value=momentum, must="lie in [0, 1)")
        check(max_error > 0, argument="max_error", value=max_error, must="be positive")
        rule_object = rules.as_rule("AdaptiveClassWeights", rule, source)
        self.num_classes = num_classes
        self.delta, self.tau, self.w_min, self.w_max, self.eps = delta, tau, w_min, w_max, eps
        self.ignore_index = ignore_index
        self.class_names = _validate.as_class_names("AdaptiveClassWeights", class_names, num_classes)
        self.source, self.ratio, self.ratio_eps = source, ratio, ratio_eps
        self.normalize, self.classes, self.align_corners = normalize, classes, align_corners
        self.momentum, self.max_error = momentum, max_error
        self._given_rule: str | RecallRule | None = None if isinstance(rule, Rule) else rule
        self.rule_object: Rule | None = rule_object
        self.history: list[dict[str, Any]] = []
        self._drawn: Tensor | None = None
        self._rows: Tensor | None = None

        with torch.inference_mode(False):
            self.register_buffer("weight", torch.ones(num_classes, dtype=torch.float32))
            # Saved only with rules that set it, so that the states of the others are as they were before there was one.
            self.register_buffer("offset", torch.zeros(num_classes, dtype=torch.float32), persistent=self.sets_offset)
            self.register_buffer("counts", torch.zeros(3, num_classes, dtype=torch.int64))
            for name in (*_RESULTS, "last_csps"):
                self.register_buffer(name, torch.full((num_classes,), torch.nan, dtype=torch.float32))
            self.register_buffer("held", torch.zeros(num_classes, dtype=torch.bool))
            self.register_buffer(
                "class_counts", _validate.as_class_counts("AdaptiveClassWeights", class_counts, num_classes)
            )
            square, average = (num_classes, num_classes), (3, num_classes)
            for name in ("confusion", "last_confusion"):
                self.register_buffer(name, torch.zeros(square, dtype=torch.int64) if metrics else None)
            self.register_buffer("average", torch.zeros(average, dtype=torch.float64) if momentum else None)
            variance = torch.zeros(num_classes, dtype=torch.float64) if momentum else None
            self.register_buffer("average_variance", variance)
            if rule_object is not None:
                weight, offset = rules.beginning(rule_object, num_classes, self.class_counts)
                self.weight.copy_(weight)
                self.offset.copy_(offset)

    @property
    def sets_offset(self) -> bool:
        """Whether the rule sets :attr:`offset`. Without a look at its values, which would synchronise."""
        return self.rule_object is not None and self.rule_object.sets_offset

    @property
    def rule(self) -> str | RecallRule | Rule:
        """The rule as it was given; of a rule object the copy that has the state."""
        given = self.rule_object if self._given_rule is None else self._given_rule
        assert given is not None
        return given

    @property
    def metrics(self) -> MetricValues | None:
        """mIoU, accuracies and IoU per class of the predictions at the last step; None without ``metrics=True``."""
        matrix = self.last_confusion
        return segmentation_metrics(matrix.cpu()) if matrix is not None and self.history else None

    def observe(self, cam: Tensor, target: Tensor, *, mask: Tensor | Sequence[bool] | None = None) -> None:
        """Add one batch to the counts, on its device and without synchronising.

        Args:
            cam: ``(N, C, h, w)`` maps after the ReLU, at any resolution, as :class:`cawa_fast.GradCAM` returns them.
                With ``source="argmax"`` logits. float32, float64, bfloat16 or float16.
            target: labels ``(N, H, W)``, uint8, int16, int32 or int64.
            mask: ``(N,)`` bool: the images to count. Excludes the duplicates with which a ``DistributedSampler`` pads
                the last batch, see :func:`cawa_fast.unpadded`.

        Raises:
            ValueError: shape or device do not fit, or labels lie outside ``[0, C)``.
            TypeError: an argument has another type or dtype.
        """
        self._check_observed(cam)
        self.counts.add_(self._count(cam, _validate.masked(target, mask, self.ignore_index)))

    def observe_confusion(self, matrix: Tensor) -> None:
        """Add a confusion matrix ``(C, C)`` int64 (rows = target) to the counts, in place of a batch.

        Equals :meth:`observe` with ``source="argmax"``, for a validation loop that computes the matrix anyway.
        """
        self._check_matrix("observe_confusion", matrix)
        self.counts.add_(_of_confusion(matrix))

    def observe_metrics(self, matrix: Tensor) -> None:
        """Add a batch's confusion matrix ``(C, C)`` int64 (rows = target) to what :attr:`metrics` is computed from."""
        if self.confusion is None:
            raise RuntimeError("observe_metrics: pass metrics=True to AdaptiveClassWeights, to keep a confusion matrix")
        self._check_matrix("observe_metrics", matrix)
        self.confusion.add_(matrix)

    def begin_sample(self, probability: Tensor) -> None:
        """Until the next :meth:`step`, observe single images that are a sample of the validation set.

        Args:
            probability: ``(n,)`` float64 in ``(0, 1]``: the inclusion probability of each image of the sample. If it is
                empty, the next step changes nothing.
        """
        _validate.check_float("begin_sample", "probability", probability)
        valid = probability.dim() == 1 and bool(((probability > 0) & (probability <= 1)).all())
        must = "be one value in (0, 1] per image of the sample"
        _validate.check(valid, "begin_sample", "probability", probability, must)
        self._drawn, self._rows = probability, None

    def observe_sample(self, cam: Tensor, target: Tensor, first: int, stride: int = 1) -> None:
        """Add a batch whose images have the numbers ``first, first + stride, ...`` within the sample."""
        self._check_observed(cam)
        for argument, value, least in (("first", first, 0), ("stride", stride, 1)):
            _validate.as_int("observe_sample", argument, value, "pass what the sampler's take() returns")
            _validate.check(value >= least, "observe_sample", argument, value, f"be at least {least}")
        if self._drawn is None or first + (len(cam) - 1) * stride >= len(self._drawn):
            raise ValueError(
                f"observe_sample: image {first} and {len(cam) - 1} more are not in the sample of "
                f"{0 if self._drawn is None else len(self._drawn)} images; call begin_sample first"
            )
        if self._rows is None:
            self._rows = torch.zeros(len(self._drawn), 3, self.num_classes, dtype=torch.int64, device=cam.device)
        for image in range(len(cam)):  # one by one: the standard error comes from the spread over the images
            self._rows[first + image * stride] = self._count(cam[image : image + 1], target[image : image + 1])

    @torch.no_grad()
    def step(self, group: dist.ProcessGroup | None = None) -> Tensor:
        """Compute the next weights from the counts of all processes (Eq. 2 to 9) and reset the counts.

        If ``torch.distributed`` is initialised, one all-reduce sums ``3 * C`` int64 (``C * C`` more with ``metrics``;
        ``n * 3 * C`` for a sample of n images). Then every process does the same float64 arithmetic on the same
        integers, so that all processes get the same bits. Synchronises with the device.

        Args:
            group: processes to sum over; default: all.

        Returns:
            :attr:`weight`, updated in place.

        Raises:
            RuntimeError: nothing with valid ground truth was observed since the last step.
            ValueError: a GPU found bad labels since the last check.
            TypeError: ``group`` is not a process group.
        """
        self.step_with(group)
        return self.weight

    def step_with(self, group: dist.ProcessGroup | None, others: Sequence[int] = ()) -> list[int]:
        """:meth:`step` that also sums ``others`` over the processes, in the same all-reduce; returns these sums."""
        check_group("step", group)
        counts, matrix, others = self._gather(group, others)
        # After the collective: a process that raises must not leave the others waiting in it.
        _label_check.check_labels()
        if self._drawn is not None and not len(self._drawn):
            self._drawn = None
            return others
        if self._drawn is None and not bool((counts[0] + counts[2]).any()):
            raise RuntimeError(
                "step: no labelled pixel was observed since the last step; call observe(cam, target) for each "
                f"validation batch first (is every label ignore_index={self.ignore_index}?)"
            )
        sampled = self._drawn is not None
        if self._drawn is not None:
            score = estimate(counts, self._drawn, self.delta)
        else:
            truth = counts[0] + counts[2]
            score = Estimate(counts, torch.zeros_like(truth, dtype=torch.float32).where(truth > 0, torch.nan))
        average = None
        if self.average is not None and self.average_variance is not None:
            average = Average(self.average.cpu(), self.average_variance.cpu()).add(score, self.momentum)
            score = average.estimate()
        # A class that the sample lacks may still occur in the validation set: its weight is held.
        held = ~(score.error <= self.max_error) if sampled else torch.zeros_like(score.error, dtype=torch.bool)
        update, offset, state = rules.next_step(
            self.rule_object or self.rule,
            score.counts,
            offset=self.offset.cpu(),
            class_counts=None if self.class_counts is None else self.class_counts.cpu(),
            last_csps=self.last_csps.cpu(),
            delta=self.delta,
            eps=self.eps,
            ratio=self.ratio,
            ratio_eps=self.ratio_eps,
            w_min=self.w_min,
            w_max=self.w_max,
            last_weight=self.weight.cpu(),
            held=held if sampled else None,
        )
        # No buffer changes before this line: a rule that raises leaves the state as it was.
        if self.rule_object is not None:
            for name, buffer in self.rule_object.named_buffers():
                buffer.copy_(state[name])
        self.offset.copy_(offset)
        if average is not None and self.average is not None and self.average_variance is not None:
            self.average.copy_(average.counts)
            self.average_variance.copy_(average.variance)
        results = update._asdict() | {"standard_error": score.error}
        for name, value in results.items():
            getattr(self, name).copy_(value)
        self.held.copy_(held)
        self.last_csps.copy_(self.csps.where(~(self.csps.isnan() | self.held), self.last_csps))
        record: dict[str, Any] = {name: value.float().tolist() for name, value in results.items()}
        last_step = self.history[-1].get("step", len(self.history)) if self.history else 0
        if self.sets_offset:
            record["offset"] = self.offset.tolist()
        record |= {"step": last_step + 1, "pixels": (score.counts[0] + score.counts[2]).round().long().tolist()}
        if self._drawn is not None:
            record |= {"images": len(self._drawn), "held": held.tolist()}
        self.history.append(record)
        self.counts.zero_()
        if self.confusion is not None and self.last_confusion is not None and matrix is not None:
            self.last_confusion.copy_(matrix)
            self.confusion.zero_()
        self._drawn = self._rows = None
        return others

    def reset(self) -> None:
        """Forget what was observed since the last step. The weights and the history stay."""
        self.counts.zero_()
        if self.confusion is not None:
            self.confusion.zero_()
        self._drawn = self._rows = None

    def plot(self) -> tuple[Any, Any]:
        """The weights and the IoU of every step in :attr:`history`: a row of colours for each class. Needs matplotlib.

        Returns:
            ``(fig, ax)``, a matplotlib figure and an array of its two axes. It belongs to ``pyplot``: close it with
            ``plt.close(fig)``, as TensorBoard's ``add_figure`` does.

        Raises:
            RuntimeError: there was no step yet.
            ImportError: matplotlib is not installed.

        Example:
            >>> import torch, cawa_fast as cf
            >>> weights = cf.AdaptiveClassWeights(2, class_names=["road", "sky"])
            >>> weights.observe(torch.rand(1, 2, 4, 4), torch.randint(0, 2, (1, 8, 8)))
            >>> _ = weights.step()
            >>> fig, ax = weights.plot()
            >>> [axes.get_title() for axes in ax]
            ['class weight', 'IoU of the activation maps']
        """
        if not self.history:
            raise RuntimeError("plot: there is nothing to draw before the first step; call step()")
        scored = {"cam": "activation maps", "argmax": "predictions"}[self.source]
        panels = [
            Panel("class weight", [record["weight"] for record in self.history], around_one=True),
            Panel(f"IoU of the {scored}", [record["iou"] for record in self.history], around_one=False),
        ]
        names = names_of(self.class_names, self.num_classes)
        return draw_steps(panels, names, [record["step"] for record in self.history])

    def log(self, fn: Callable[[str, float, Any], object], step: Any) -> None:
        """Log the weights, and the IoU of the last step, as numbers. Synchronises with the device.

        The names are ``cawa/weight/road`` and ``cawa/iou/road`` for a class "road", with a rule that sets offsets
        ``cawa/offset/road``, and ``cawa/miou`` for the mean IoU of the classes that have one; a class without a name
        has its number. What is NaN is left out: before the first step every IoU, after it that of a class without
        ground truth.

        Args:
            fn: called as ``fn(name, value, step)``, such as ``SummaryWriter.add_scalar``.
            step: what ``fn`` gets, such as the number of the epoch.

        Raises:
            TypeError: ``fn`` cannot be called.

        Example:
            >>> import cawa_fast as cf
            >>> cf.AdaptiveClassWeights(2, class_names=["road", "sky"]).log(print, 7)
            cawa/weight/road 1.0 7
            cawa/weight/sky 1.0 7
        """
        if not callable(fn):
            raise TypeError(
                f"log: fn must be a function of (name, value, step), got {_validate.described(fn)}; pass a method such "
                "as writer.add_scalar"
            )
        names = names_of(self.class_names, self.num_classes)
        values = {f"weight/{name}": value for name, value in zip(names, self.weight.tolist(), strict=True)}
        if self.sets_offset:
            values |= {f"offset/{name}": value for name, value in zip(names, self.offset.tolist(), strict=True)}
        values |= {f"iou/{name}": value for name, value in zip(names, self.iou.tolist(), strict=True)}
        values["miou"] = self.iou.nanmean().item()
        for name, value in values.items():
            if not math.isnan(value):
                fn(f"cawa/{name}", value, step)

    def _gather(
        self, group: dist.ProcessGroup | None, others: Sequence[int]
    ) -> tuple[Tensor, Tensor | None, list[int]]:
        """The sums over all processes, on the CPU: counts ``(3, C)``, or ``(n, 3, C)`` for a sample; the confusion
        matrix; ``others``."""
        counts = self.counts
        if self._drawn is not None:
            shape = (len(self._drawn), 3, self.num_classes)
            counts = counts.new_zeros(shape) if self._rows is None else self._rows
        parts = [counts, *([] if self.confusion is None else [self.confusion])]
        flat = [part.flatten() for part in parts]
        if others:
            flat.append(counts.new_tensor(others))
        everything = torch.cat(flat)
        sum_if_distributed(everything, group)
        summed = everything.cpu().split([*(part.numel() for part in parts), len(others)])
        matrix = None if self.confusion is None else summed[1].view_as(self.confusion)
        return summed[0].view(counts.shape), matrix, summed[-1].tolist()

    def _count(self, cam: Tensor, target: Tensor) -> Tensor:
        """tp, fp, fn of a batch, ``(3, C)``."""
        if self.source == "argmax":
            return _of_confusion(
                CF.confusion_matrix(cam, target, ignore_index=self.ignore_index, align_corners=self.align_corners)
            )
        counts = CF.cam_counts(
            cam,
            target,
            tau=self.tau,
            normalize=self.normalize,
            classes=self.classes,
            ignore_index=self.ignore_index,
            align_corners=self.align_corners,
        )
        return torch.stack(counts)

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, delta={self.delta}, tau={self.tau}, source={self.source!r}, "
            f"ratio={self.ratio!r}, steps={len(self.history)}"
        )

    def get_extra_state(self) -> Tensor:
        return as_history(self.history, self.num_classes, offsets=self.sets_offset)

    def set_extra_state(self, state: Tensor) -> None:
        self.history = from_history(state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptiveClassWeights:
        # model.half() casts floating-point buffers, but the weights stay float32: checkpoints hold all of their bits.
        # A buffer moved in inference mode would become an inference tensor, and step() could not write to it.
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        with torch.inference_mode(False):
            return super()._apply(keep_dtype, recurse)

    def _check_observed(self, cam: Tensor) -> None:
        _validate.check_tensor("observe", "cam", cam)
        if cam.dim() >= 4 and cam.shape[1] != self.num_classes:
            raise ValueError(
                f"observe: cam has {cam.shape[1]} channels, but num_classes={self.num_classes}; got {tuple(cam.shape)}"
            )
        self._check_device("observe: cam", cam)

    def _check_matrix(self, name: str, matrix: Tensor) -> None:
        _validate.check_matrix(name, matrix, self.num_classes)
        self._check_device(f"{name}: matrix", matrix)

    def _check_device(self, argument: str, tensor: Tensor) -> None:
        if tensor.device != self.counts.device:  # moving it here would be a hidden synchronisation
            raise ValueError(
                f"{argument} is on {tensor.device}, but the weights are on {self.counts.device}; move them with .to()"
            )


def _of_confusion(matrix: Tensor) -> Tensor:
    tp = matrix.diagonal()
    return torch.stack((tp, matrix.sum(0) - tp, matrix.sum(1) - tp))
