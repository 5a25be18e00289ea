r"""Rules as objects: from the counts of a validation pass to class weights and offsets of the logits.

A rule is what :class:`cawa_fast.AdaptiveClassWeights` computes at each step. It gets an :class:`Observed` and returns
weights, or weights and offsets. The sums over processes and batches, the sample of a budget, the normalisation, the
history and the state are the same for all rules.

**Two jobs.** The loss of a pixel with label y is :math:`w_y\, CE(z + b)`, with the logits z, the weights w and the
offsets b. With :math:`b = \log w - \log v` its minimum lies at

.. math:: z_i = \log \pi_i + \log v_i

where :math:`\pi_i` is the probability of class i at this pixel: w says how much a class counts while the network
learns, and v says for which class it decides in the end. Weights alone do both, since without offsets
:math:`v = w`. Predictions use the bare logits z.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from . import _validate, weighting
from ._rules import RULES, RecallRule, WeightUpdate, cawa_weights, next_weights, normalized

__all__ = ["Balanced", "Decoupled", "Observed", "Rule"]


@dataclass(frozen=True)
class Observed:
    """What a step has observed, for a :class:`Rule`. Tensors are ``(C,)`` float64 on the CPU.

    Attributes:
        tp, fp, fn: pixels, at least 0: true positives, false positives, false negatives.
        known: bool: the classes that get new values. The others keep theirs, whatever a rule returns for them: they
            have no ground truth, no pixels in ``class_counts``, or too few images in a sample.
        class_counts: pixels per class of the training set, as given to the weights, else those observed.
        weight, offset: those of the last step.

    Example:
        >>> counts = torch.tensor([[6.0, 2.0], [2.0, 0.0], [0.0, 2.0]])  # tp, fp, fn
        >>> seen = Observed(*counts, torch.tensor([True, True]), counts[0] + counts[2], torch.ones(2), torch.zeros(2))
        >>> seen.iou, seen.predicted, seen.truth
        (tensor([0.7500, 0.5000]), tensor([8., 2.]), tensor([6., 4.]))
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    known: Tensor
    class_counts: Tensor
    weight: Tensor
    offset: Tensor

    @property
    def truth(self) -> Tensor:
        """``(C,)`` ground-truth pixels, TP + FN."""
        return self.tp + self.fn

    @property
    def predicted(self) -> Tensor:
        """``(C,)`` pixels that are predicted as the class, TP + FP."""
        return self.tp + self.fp

    @property
    def iou(self) -> Tensor:
        """``(C,)`` in [0, 1]; NaN for a class without pixels."""
        return self.tp / (self.tp + self.fp + self.fn)

    @property
    def recall(self) -> Tensor:
        """``(C,)`` in [0, 1]; NaN for a class without ground truth."""
        return self.tp / self.truth


class Rule(nn.Module):
    """A rule for :class:`cawa_fast.AdaptiveClassWeights`: counts in, weights and offsets out, state in buffers.

    A rule defines :meth:`forward`, and :meth:`begin` if it has state or does not begin with weights of 1. Its buffers
    are saved with the weights (as ``rule.NAME``), so that a resumed run has the same bits. They are read and written on
    the CPU in a step, wherever the weights are; a rule may assign to them or change them in place. If a rule raises, no
    state changes. ``AdaptiveClassWeights`` takes a copy of the rule, so that one object serves several of them.

    Attributes:
        sets_offset: whether the rule returns offsets. False saves a loss the addition.

    Example:
        >>> import cawa_fast as cf
        >>> class InverseIoU(cf.rules.Rule):
        ...     sets_offset = False
        ...
        ...     def begin(self, num_classes, class_counts):
        ...         self.register_buffer("mean", torch.ones(num_classes))
        ...
        ...     def forward(self, seen):
        ...         new = 1 / seen.iou.clamp_min(0.05)
        ...         self.mean = self.mean.lerp(new.float(), 0.5).where(seen.known, self.mean)
        ...         return self.mean
        >>> weights = cf.AdaptiveClassWeights(2, rule=InverseIoU(), source="argmax")
        >>> weights.observe_confusion(torch.tensor([[6, 2], [0, 2]]))  # IoU 3/4 and 1/2
        >>> weights.step()
        tensor([0.8750, 1.1250])
    """

    sets_offset: bool = True

    def begin(self, num_classes: int, class_counts: Tensor | None) -> Any:
        """Register buffers, and return what to begin with: nothing, weights, or weights and offsets.

        Args:
            num_classes: C.
            class_counts: ``(C,)`` pixels per class of the training set, if they were given.
        """

    def forward(self, seen: Observed) -> Any:
        """The weights ``(C,)``, or ``(weights, offsets)``.

        Weights are finite and at least 0, offsets finite. Afterwards the weights are divided by their mean, and a
        constant is subtracted from the offsets so that their mean is 0, which changes no softmax.
        """
        raise NotImplementedError("a rule defines forward(seen)")


class Decoupled(Rule):
    r"""Weights by frequency for learning, and a pull v for the decision that a subclass sets in :meth:`pulled`.

    .. math:: w_i \propto p_i^{-\gamma}, \qquad b_i = \log w_i - \log v_i

    with :math:`p_i` the share of class i in the training pixels. :math:`\log v` is state, zero at first.

    Args:
        gamma: finite and at least 0.
    """

    log_v: Tensor

    def __init__(self, gamma: float = 0.5) -> None:
        super().__init__()
        name = type(self).__name__
        _validate.check(
            0 <= _validate.as_number(name, "gamma", gamma) < math.inf, name, "gamma", gamma, "be finite and at least 0"
        )
        self.gamma = float(gamma)

    def begin(self, num_classes: int, class_counts: Tensor | None) -> Any:
        self.register_buffer("log_v", torch.zeros(num_classes, dtype=torch.float64))
        if class_counts is None:  # the first step knows the observed ones
            return None
        return self._both(class_counts)

    def forward(self, seen: Observed) -> Any:
        self.log_v = _shifted(self.pulled(self.log_v, seen), seen.known, self.log_v)
        return self._both(seen.class_counts)

    def pulled(self, log_v: Tensor, seen: Observed) -> Tensor:
        """The next ``log_v`` ``(C,)`` from the last one and what was observed."""
        return log_v

    def _both(self, class_counts: Tensor) -> tuple[Tensor, Tensor]:
        weight = weighting.power(class_counts, self.gamma).double()
        return weight, weight.log() - self.log_v

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}"


class Balanced(Decoupled):
    r"""Decide for each class as often as it occurs. The default of ``cawa-fast train``.

    Learning weights :math:`w_i \propto p_i^{-\gamma}`, and after each pass over the validation images

    .. math:: \log v_i \mathrel{+}= \eta\, \log (n_i / q_i)

    with :math:`n_i` the pixels of class i, :math:`q_i` those predicted as it, and the logarithm clipped to [-2, 2]. At
    the fixed point, precision equals recall. A class that the network cannot learn is pulled until it is predicted
    often enough, and no further: it can cost the others no more pixels than it has, whereas a rule that
    raises the class with the lowest score raises it without end.

    Use it with ``source="argmax"``: counts of pseudo masks are not counts of decisions.

    Args:
        gamma: exponent of the weights, finite and at least 0.
        rate: :math:`\eta`, in ``(0, 1]``.

    Example:
        >>> import cawa_fast as cf
        >>> weights = cf.AdaptiveClassWeights(2, rule="balanced", source="argmax", class_counts=[90, 10])
        >>> weights.weight, weights.offset  # 9^(1/2) = 3; the offset undoes the pull of the weights
        (tensor([0.5000, 1.5000]), tensor([-0.5493,  0.5493]))
        >>> weights.observe_confusion(torch.tensor([[88, 2], [7, 3]]))  # class 1 is predicted 5 times of 10
        >>> _ = weights.step()
        >>> weights.offset
        tensor([-0.4504,  0.4504])
    """

    def __init__(self, gamma: float = 0.5, rate: float = 0.3) -> None:
        super().__init__(gamma)
        _validate.check(
            0 < _validate.as_number("Balanced", "rate", rate) <= 1, "Balanced", "rate", rate, "lie in (0, 1]"
        )
        self.rate = float(rate)

    def pulled(self, log_v: Tensor, seen: Observed) -> Tensor:
        # One pixel more on both sides: a class that is never predicted is pulled at the limit.
        lacking = ((seen.truth + 1) / (seen.predicted + 1)).log()
        return log_v + self.rate * lacking.clamp(-2, 2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rate={self.rate:g}"


OBJECTS: dict[str, type[Rule]] = {"balanced": Balanced}
NAMES = (*RULES, *OBJECTS)
"""Rules that ``rule=`` takes by name, with their defaults."""


def as_rule(name: str, rule: Any) -> Any:
    """The argument ``rule`` of ``name``, checked: a name of :data:`_rules.RULES`, a function, or a copy of an object."""
    if isinstance(rule, Rule):
        return copy.deepcopy(rule)
    if isinstance(rule, type) and issubclass(rule, Rule):
        raise TypeError(f"{name}: rule is the class {rule.__name__}; pass an object, rule={rule.__name__}()")
    if callable(rule):
        return rule
    _validate.check_choice(name, "rule", rule, NAMES)
    return OBJECTS[rule]() if rule in OBJECTS else rule


def beginning(rule: Rule, num_classes: int, class_counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weights and offsets ``(C,)`` float64 with which ``rule`` begins, and its buffers registered."""
    with torch.inference_mode(False), torch.no_grad():
        first = rule.begin(num_classes, class_counts)
    ones = torch.ones(num_classes, dtype=torch.float64)
    if first is None:
        return ones, torch.zeros_like(ones)
    trained = ones.bool() if class_counts is None else class_counts > 0
    weight, offset = _checked(rule, first, trained, "begin")
    return normalized(weight[trained], trained, None, None), _shifted(offset, trained, torch.zeros_like(offset))


def next_step(
    rule: str | RecallRule | Rule, counts: Tensor, *, offset: Tensor, **options: Any
) -> tuple[WeightUpdate, Tensor, dict[str, Tensor]]:
    """A step of any rule, which changes no state.

    Args:
        rule: as :func:`as_rule` returns it.
        counts: ``(3, C)``: tp, fp, fn.
        offset: ``(C,)`` offsets of the last step.
        **options: of :func:`_rules.cawa_weights`.

    Returns:
        scores and weights, the next offsets ``(C,)``, and the next values of the rule's buffers.
    """
    if not isinstance(rule, Rule):
        return next_weights(rule, counts, **options), offset, {}
    update = cawa_weights(counts, **options)  # for the scores
    tp, fp, fn = counts.double()
    class_counts, last, held = options["class_counts"], options["last_weight"].double(), options["held"]
    trained = torch.ones_like(tp, dtype=torch.bool) if class_counts is None else class_counts > 0
    known = (tp + fn > 0) & trained & (~held if held is not None else True)
    pixels = tp + fn if class_counts is None else class_counts.double()
    seen = Observed(tp, fp, fn, known, pixels, last, offset.double())
    state = {name: buffer.detach().cpu().clone() for name, buffer in rule.named_buffers()}
    weight, offset = _checked(rule, functional_call(rule, state, (seen,)), known, "forward")
    for key, buffer in rule.named_buffers():
        if state[key].shape != buffer.shape:
            raise ValueError(
                f"{type(rule).__name__}.forward: the buffer {key!r} had the shape {tuple(buffer.shape)} and has "
                f"{tuple(state[key].shape)} now; keep the shape, which a checkpoint needs"
            )
    base = torch.full_like(update.weight, torch.nan)
    ratio = base.clone()
    base[known], ratio[known] = weight[known], 1.0
    new = normalized(weight[known], known, last, trained & ~known)
    update = update._replace(base_weight=base, ratio_weight=ratio, weight=new)
    return update, _shifted(offset, known, seen.offset), state


def _checked(rule: Rule, returned: Any, known: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Weights and offsets ``(C,)`` float64, checked for the classes in ``known``."""
    name, classes = f"{type(rule).__name__}.{method}", len(known)
    parts = returned if isinstance(returned, tuple) else (returned,)
    must = f"must return weights ({classes},), or a tuple of weights and offsets"
    if not 1 <= len(parts) <= 2:
        raise TypeError(f"{name} {must}, got a tuple of {len(parts)}")
    values = []
    for part, what in zip(parts, ("weights", "offsets"), strict=False):
        if not isinstance(part, Tensor) or part.shape != known.shape or part.is_complex():
            raise TypeError(f"{name} {must}; its {what} are {_validate.described(part)}")
        value = part.detach().cpu().double()
        if not bool(value[known].isfinite().all()) or (what == "weights" and bool((value[known] < 0).any())):
            limit = " and at least 0" if what == "weights" else ""
            raise ValueError(f"{name}: the {what} must be finite{limit}, got {value.tolist()}")
        values.append(value)
    if len(values) == 1:
        values.append(torch.zeros_like(values[0]))
    elif not rule.sets_offset and bool(values[1].any()):
        raise ValueError(f"{name} returned offsets, but {type(rule).__name__}.sets_offset is False; set it to True")
    return values[0], values[1]


def _shifted(values: Tensor, known: Tensor, last: Tensor) -> Tensor:
    """``values`` of the classes in ``known``, shifted to the mean that these had in ``last``; ``last`` for the others.

    Only differences between offsets matter. So the classes that keep theirs stay where they were among the others.
    """
    if not bool(known.any()):
        return last
    return (values - values[known].mean() + last[known].mean()).where(known, last)
