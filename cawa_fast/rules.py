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

# Below this IoU the pull of a class grows no further: its counts are too few to tell 0.05 from 0.01.
_LEAST_IOU = 0.05

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
    are saved with the weights (as ``rule_object.NAME``), so that a resumed run has the same bits. In a step they are on
    the CPU, wherever the weights are; a rule may assign to them or change them in place. If a rule raises, no state
    changes. ``AdaptiveClassWeights`` takes a copy of the rule, so that one object serves several of them.

    Attributes:
        sets_offset: whether the rule returns offsets. False saves a loss the addition.
        source: the ``source`` of the weights that the rule is defined for, ``"cam"`` or ``"argmax"``; None: both.

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
    source: str | None = None

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


class _ByFrequency(Rule):
    r"""Weights :math:`w_i \propto p_i^{-\gamma}`, with :math:`p_i` the share of class i in the training pixels.

    ``pull`` is the state of the subclasses: what moves the decision, ``(C,)``, as logarithm.
    """

    pull: Tensor

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = _at_least_0(self, "gamma", gamma)

    def begin(self, num_classes: int, class_counts: Tensor | None) -> Any:
        self.register_buffer("pull", torch.zeros(num_classes, dtype=torch.float64))
        # Without the counts of the training set, the first step takes those observed.
        return None if class_counts is None else self._both(class_counts)

    def forward(self, seen: Observed) -> Any:
        self.pull = _shifted(self.pulled(seen), seen.known, self.pull)
        return self._both(seen.class_counts)

    def pulled(self, seen: Observed) -> Tensor:
        """The next :attr:`pull`."""
        raise NotImplementedError

    def _both(self, class_counts: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _weight(self, class_counts: Tensor) -> Tensor:
        return weighting.power(class_counts, self.gamma).double()


class Balanced(_ByFrequency):
    r"""Weights by frequency, of whose pull the decisions keep a part, corrected towards the balance of the classes.

    .. math:: w_i \propto p_i^{-\gamma}, \qquad \log v_i = u \log w_i + o_i, \qquad b_i = \log w_i - \log v_i,

    .. math:: o_i \leftarrow (1 - \lambda)\, o_i + \lambda k \log (n_i / q_i)

    after each pass over the validation images, with :math:`n_i` the pixels of class i, :math:`q_i` those predicted as
    it, and the last logarithm clipped to [-2, 2].

    Rare classes need large weights to be learned at all, but a network that decides by these weights takes many pixels
    for rare classes that are not. So the decisions keep three quarters of the pull, in logarithms. Then a class that is
    still predicted more often than it occurs is pulled back, and one that is predicted less is raised. A class that the
    network cannot learn is raised only while it is predicted less often than it occurs, so that it costs the others
    little. A rule that raises the class with the lowest score has no such end.

    Where offsets come to rest, :math:`o_i = k \log (n_i / q_i)`. Without end of k, every class is predicted as often as
    it occurs; that fits few validation images too closely (docs/settings.md).

    It needs ``source="argmax"``: counts of pseudo masks are not counts of decisions.

    Args:
        gamma: exponent of the weights, finite and at least 0.
        keep: u, in ``[0, 1]``: 1 decides as the weights do, 0 as without weights.
        strength: k, finite and at least 0. 0 leaves out the correction.
        rate: :math:`\lambda`, in ``(0, 1]``. With much more than ``1 / (1 + strength)``, offsets may oscillate.

    Example:
        >>> import cawa_fast as cf
        >>> weights = cf.AdaptiveClassWeights(2, rule="balanced", source="argmax", class_counts=[90, 10])
        >>> weights.weight, weights.offset  # 9^(1/2) = 3, and a quarter of its logarithm
        (tensor([0.5000, 1.5000]), tensor([-0.1373,  0.1373]))
        >>> weights.observe_confusion(torch.tensor([[88, 2], [7, 3]]))  # class 1 is predicted 5 times of 10
        >>> _ = weights.step()
        >>> weights.offset  # the logit of class 1 must be larger for the same loss
        tensor([-0.0714,  0.0714])
    """

    source = "argmax"

    def __init__(self, gamma: float = 0.5, keep: float = 0.75, strength: float = 1.0, rate: float = 0.2) -> None:
        super().__init__(gamma)
        self.keep = _validate.as_fraction("Balanced", "keep", keep)
        self.strength = _at_least_0(self, "strength", strength)
        in_range = 0 < _validate.as_number("Balanced", "rate", rate) <= 1
        _validate.check(in_range, "Balanced", "rate", rate, "lie in (0, 1]")
        self.rate = float(rate)

    def pulled(self, seen: Observed) -> Tensor:
        # One pixel more on both sides, for a class that is never predicted.
        lacking = ((seen.truth + 1) / (seen.predicted + 1)).log().clamp(-2, 2)
        return self.pull + self.rate * (self.strength * lacking - self.pull)

    def _both(self, class_counts: Tensor) -> tuple[Tensor, Tensor]:
        weight = self._weight(class_counts)
        return weight, (1 - self.keep) * weight.log() - self.pull

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, keep={self.keep:g}, strength={self.strength:g}, rate={self.rate:g}"


class Decoupled(_ByFrequency):
    r"""Weights by frequency for learning alone; decisions by IoU, from which frequency drops out.

    .. math:: w_i \propto p_i^{-\gamma}, \qquad b_i = \log w_i - \log v_i, \qquad
        \log v_i \leftarrow \tfrac12 \log v_i + \tfrac12 a \log \frac{1}{\max(IoU_i, 0.05)}

    after each pass over the validation images. For one class against the rest, mIoU is largest if the class is decided
    for from the probability :math:`IoU_i / (1 + IoU_i)` on, which is :math:`a = 1`. A class that cannot be learned is
    raised all the same, at the cost of the others: :class:`Balanced` does not.

    Args:
        gamma: exponent of the weights, finite and at least 0.
        exponent: a, finite and at least 0.

    Example:
        >>> import cawa_fast as cf
        >>> weights = cf.AdaptiveClassWeights(2, rule="decoupled", source="argmax", class_counts=[90, 10])
        >>> weights.weight, weights.offset  # 9^(1/2) = 3; the offset takes the pull of the weights back
        (tensor([0.5000, 1.5000]), tensor([-0.5493,  0.5493]))
        >>> weights.observe_confusion(torch.tensor([[88, 2], [7, 3]]))  # IoU 88 / 97 and 3 / 12
        >>> _ = weights.step()
        >>> weights.offset
        tensor([-0.2271,  0.2271])
    """

    def __init__(self, gamma: float = 0.5, exponent: float = 1.0) -> None:
        super().__init__(gamma)
        self.exponent = _at_least_0(self, "exponent", exponent)

    def pulled(self, seen: Observed) -> Tensor:
        return (self.pull - self.exponent * seen.iou.clamp_min(_LEAST_IOU).log()) / 2

    def _both(self, class_counts: Tensor) -> tuple[Tensor, Tensor]:
        weight = self._weight(class_counts)
        return weight, weight.log() - self.pull

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, exponent={self.exponent:g}"


def _at_least_0(rule: Rule, argument: str, value: Any) -> float:
    name = type(rule).__name__
    in_range = 0 <= _validate.as_number(name, argument, value) < math.inf
    _validate.check(in_range, name, argument, value, "be finite and at least 0")
    return float(value)


OBJECTS: dict[str, type[Rule]] = {"balanced": Balanced, "decoupled": Decoupled}
NAMES = (*RULES, *OBJECTS)
"""Rules that ``rule=`` takes by name, with their defaults."""


def as_rule(name: str, rule: Any, source: str) -> Rule | None:
    """Check the argument ``rule`` of ``name``. The object of its own that it stands for; None for other rules."""
    made = _made(name, rule)
    if made is not None and made.source not in (None, source):
        raise ValueError(
            f"{name}: the rule {type(made).__name__} is defined for source={made.source!r}, got source={source!r}; "
            f"pass source={made.source!r}"
        )
    return made


def _made(name: str, rule: Any) -> Rule | None:
    if isinstance(rule, Rule):
        return copy.deepcopy(rule)
    if isinstance(rule, type) and issubclass(rule, Rule):
        raise TypeError(f"{name}: rule is the class {rule.__name__}; pass an object, rule={rule.__name__}()")
    if callable(rule):
        return None
    _validate.check_choice(name, "rule", rule, NAMES)
    return OBJECTS[rule]() if rule in OBJECTS else None


def beginning(rule: Rule, num_classes: int, class_counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weights and offsets ``(C,)`` float64 with which ``rule`` begins, and its buffers registered."""
    class_counts = None if class_counts is None else class_counts.cpu()
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
