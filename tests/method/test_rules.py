"""Rules as objects: values by hand, offsets in the losses, state, and the errors of a rule."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cawa_fast as cf
from cawa_fast import rules, weighting
from cawa_fast.rules import Observed, Rule
from tests.support.observed import close

MATRIX = torch.tensor([[80, 5, 5], [2, 6, 0], [2, 0, 0]])  # class 2 is never predicted rightly
SHARES = [900, 90, 10]


def balanced(**options: Any) -> cf.AdaptiveClassWeights:
    rule = rules.Balanced(**options) if options else "balanced"
    return cf.AdaptiveClassWeights(3, rule=rule, source="argmax", class_counts=SHARES)


def stepped(weights: cf.AdaptiveClassWeights, *matrices: Tensor) -> cf.AdaptiveClassWeights:
    for matrix in matrices:
        weights.observe_confusion(matrix)
        weights.step()
    return weights


def test_balanced_by_hand() -> None:
    """n = 90, 8, 2 and q = 84, 11, 5, each with one pixel more. With keep=1, the weights decide at first."""
    weights = balanced(keep=1.0)
    raw = torch.tensor(SHARES, dtype=torch.float64) ** -0.5
    close(weights.weight, (3 * raw / raw.sum()).tolist())
    assert not weights.offset.any()
    lacking = [math.log(91 / 85), math.log(9 / 12), math.log(3 / 6)]
    mean = sum(lacking) / 3
    stepped(weights, MATRIX)
    close(weights.offset, [-0.2 * (x - mean) for x in lacking])
    stepped(weights, MATRIX)
    close(weights.offset, [-0.36 * (x - mean) for x in lacking])  # 0.8 * 0.2 + 0.2
    close(weights.weight, (3 * raw / raw.sum()).tolist())
    default = balanced()
    log_w = raw.log() - raw.log().mean()
    close(default.offset, (0.25 * log_w).tolist())
    stepped(default, MATRIX, MATRIX)
    close(default.offset, (0.25 * log_w + weights.offset).tolist())
    assert weights.iou[2] == 0
    assert weights.history[-1]["offset"] == weights.offset.tolist()


def test_decoupled_by_hand() -> None:
    """IoU 80 / 94, 6 / 13 and 0, which counts as 0.05."""
    weights = cf.AdaptiveClassWeights(3, rule="decoupled", source="argmax", class_counts=SHARES)
    log_w = -0.5 * torch.tensor(SHARES, dtype=torch.float64).log()
    close(weights.offset, (log_w - log_w.mean()).tolist())
    stepped(weights, MATRIX)
    b = log_w + 0.5 * torch.tensor([80 / 94, 6 / 13, 0.05]).double().log()
    close(weights.offset, (b - b.mean()).tolist())


@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_strength_is_how_far_the_offsets_go(strength: float) -> None:
    """The same counts again and again: the offsets come to strength * log(n / q), without strength to 0."""
    weights = stepped(balanced(keep=1, strength=strength, rate=0.5), *[MATRIX] * 40)
    lacking = torch.tensor([91 / 85, 9 / 12, 3 / 6]).log()
    close(weights.offset, (-strength * (lacking - lacking.mean())).tolist(), rtol=1e-5)


def test_a_class_that_cannot_be_learned_is_pulled_back_where_decoupled_raises_it() -> None:
    """Its pixels are noise: raised further, it takes more of the other class's pixels, and its IoU stays low."""
    noise = torch.randn(20000, generator=torch.Generator().manual_seed(0)).double()
    labels = (torch.arange(20000) < 400).long()  # no logit knows which

    def pulled(rule: str) -> float:
        weights = cf.AdaptiveClassWeights(2, rule=rule, source="argmax", class_counts=[19600, 400])
        for _ in range(60):
            # what a network without any feature learns: the prior, the weights and the offsets
            prior = torch.tensor([0.98, 0.02]).double() * weights.weight
            z = prior.log() - weights.offset
            decided = (z[1] - z[0] + 2 * noise > 0).long()
            weights.observe_confusion(torch.bincount(2 * labels + decided, minlength=4).view(2, 2))
            weights.step()
        return decided.double().mean().item()

    assert 0.02 < pulled("balanced") < 0.10
    assert pulled("decoupled") > 0.2


def test_a_class_without_ground_truth_keeps_its_weight_and_offset() -> None:
    weights = stepped(balanced(), MATRIX)
    weight, offset = weights.weight.clone(), weights.offset.clone()
    without = MATRIX.clone()
    without[1] = 0
    stepped(weights, without)
    close(weights.weight, weight.tolist())
    assert weights.offset[1] == offset[1]
    assert weights.offset[0] != offset[0]
    assert abs(weights.offset.sum()) < 1e-6  # the others moved against each other only


def test_without_the_counts_of_the_training_set_those_observed_are_used() -> None:
    weights = cf.AdaptiveClassWeights(3, rule="balanced", source="argmax")
    assert weights.weight.tolist() == [1, 1, 1]
    stepped(weights, MATRIX)
    torch.testing.assert_close(weights.weight, weighting.power([90, 8, 2]))


# ------------------------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize("size", [(3, 4), (9, 16)], ids=["equal", "resized"])
def test_losses_add_the_offset_to_the_logits(size: tuple[int, int]) -> None:
    weights = stepped(balanced(), MATRIX)
    logits, target = torch.randn(2, 3, 3, 4, requires_grad=True), torch.randint(0, 3, (2, *size))
    full = F.interpolate(logits, size, mode="bilinear") + weights.offset.view(1, 3, 1, 1)
    expected = F.cross_entropy(full, target, weights.weight)
    loss_fn = cf.CrossEntropyLoss(weights)
    loss = loss_fn(logits, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))
    torch.testing.assert_close(
        cf.CAWA(None, 3, rule="balanced", source="argmax").loss(target, logits=logits),
        F.cross_entropy(F.interpolate(logits, size, mode="bilinear"), target),
    )
    counts = torch.cat((torch.bincount(target.flatten(), minlength=3), torch.zeros(1, dtype=torch.int64)))
    torch.testing.assert_close(loss_fn.share(logits, target, counts), expected)
    torch.testing.assert_close(cf.FocalLoss(0.0, weights)(logits, target), expected)
    plain = F.cross_entropy(full - weights.offset.view(1, 3, 1, 1), target)
    torch.testing.assert_close(loss_fn.unweighted(logits, target), plain)
    both = cf.CrossEntropyLoss(weights, offset=-weights.offset)  # an offset of its own comes on top
    torch.testing.assert_close(
        both(logits, target), F.cross_entropy(full - weights.offset.view(1, 3, 1, 1), target, weights.weight)
    )
    stepped(weights, MATRIX)  # the buffer is live
    assert loss_fn(logits, target) != loss.detach()


# ------------------------------------------------------------------------------------------------------------- state


class Averaged(Rule):
    """Weights 1 / IoU, averaged; offsets that count the steps."""

    def begin(self, num_classes: int, class_counts: Tensor | None) -> None:
        self.register_buffer("mean", torch.ones(num_classes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, seen: Observed) -> tuple[Tensor, Tensor]:
        self.steps += 1  # in place
        new = 1 / seen.iou.clamp_min(0.05)
        self.mean = (0.5 * self.mean + 0.5 * new).where(seen.known, self.mean).float()  # assigned
        return self.mean, self.steps * torch.arange(len(new))


def test_a_rule_of_ten_lines_resumes_with_the_same_bits() -> None:
    made = [cf.AdaptiveClassWeights(3, rule=Averaged(), source="argmax") for _ in range(2)]
    stepped(made[0], MATRIX, MATRIX.T)
    file = io.BytesIO()
    torch.save(made[0].state_dict(), file)
    file.seek(0)
    made[1].load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert made[1].rule_object.steps == 2
    for weights in made:
        stepped(weights, MATRIX)
    assert made[0].rule_object.steps == 3
    for (name, a), (_, b) in zip(made[0].state_dict().items(), made[1].state_dict().items(), strict=True):
        assert torch.equal(a.nan_to_num(9), b.nan_to_num(9)), name
    assert made[0].history == made[1].history
    assert [record["offset"] for record in made[1].history] == [[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-3.0, 0.0, 3.0]]


def test_one_object_serves_several_weights() -> None:
    rule = Averaged()
    first, second = (cf.AdaptiveClassWeights(3, rule=rule, source="argmax") for _ in range(2))
    stepped(first, MATRIX)
    assert (first.rule_object.steps, second.rule_object.steps) == (1, 0)
    assert copy.deepcopy(first).rule_object.steps == 1
    first.half()
    assert (first.offset.dtype, first.rule_object.mean.dtype) == (torch.float32, torch.float32)


def test_states_of_rules_without_offsets_are_as_before() -> None:
    names = ["weight", "counts", "iou", "pixel_accuracy", "csps", "base_weight", "ratio_weight", "standard_error"]
    state = cf.AdaptiveClassWeights(3).state_dict()
    assert [*state] == [*names, "last_csps", "held", "_extra_state"]
    assert bytes(state["_extra_state"][:8].tolist()) == b"history1"
    assert {"offset", "rule_object.pull"} <= balanced().state_dict().keys()
    assert cf.AdaptiveClassWeights(3).offset.tolist() == [0, 0, 0]


class Bad(Rule):
    def __init__(self, returned: Any, sets_offset: bool = True) -> None:
        super().__init__()
        self.returned, self.sets_offset = returned, sets_offset

    def begin(self, num_classes: int, class_counts: Tensor | None) -> None:
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, seen: Observed) -> Any:
        self.steps += 1
        return self.returned


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"Bad.forward must return weights \(3,\), or a tuple of weights and offsets; its weights are None"),
        (torch.ones(2), r"its weights are a tensor of float32, shape \(2,\)"),
        ((torch.ones(3), [0, 0, 0]), r"its offsets are the list \[0, 0, 0\]"),
        ((torch.ones(3),) * 3, "got a tuple of 3"),
        (torch.tensor([1, -1, 1.0]), r"Bad.forward: the weights must be finite and at least 0, got \[1.0, -1.0, 1.0\]"),
        ((torch.ones(3), torch.tensor([0, math.nan, 0])), "the offsets must be finite, got"),
    ],
)
def test_what_a_rule_returns_is_checked_before_anything_changes(returned: Any, message: str) -> None:
    weights = cf.AdaptiveClassWeights(3, rule=Bad(returned), source="argmax")
    before = copy.deepcopy(weights.state_dict())
    weights.observe_confusion(MATRIX)
    with pytest.raises((TypeError, ValueError), match=message):
        weights.step()
    assert weights.rule_object.steps == 0
    assert weights.offset.equal(before["offset"])
    assert weights.weight.equal(before["weight"])


def test_other_errors_of_rules() -> None:
    weights = cf.AdaptiveClassWeights(3, rule=Bad((torch.ones(3), torch.arange(3)), False), source="argmax")
    weights.observe_confusion(MATRIX)
    with pytest.raises(ValueError, match=r"Bad\.sets_offset is False; set it to True"):
        weights.step()
    with pytest.raises(
        ValueError, match=r"rule Balanced is defined for source='argmax', got source='cam'; pass source="
    ):
        cf.CAWA(None, 3, rule="balanced")
    with pytest.raises(TypeError, match=r"rule is the class Balanced; pass an object, rule=Balanced\(\)"):
        cf.AdaptiveClassWeights(3, rule=rules.Balanced)
    for argument, value, must in [
        ("gamma", -1, "at least 0"),
        ("strength", math.inf, "finite"),
        ("rate", 0, "in "),
        ("keep", 2, "in "),
    ]:
        with pytest.raises(ValueError, match=f"Balanced: {argument} must .*{must}"):
            rules.Balanced(**{argument: value})
    weights = cf.AdaptiveClassWeights(3, rule=Rule(), source="argmax")
    weights.observe_confusion(MATRIX)
    with pytest.raises(NotImplementedError, match="a rule defines forward"):
        weights.step()


class Growing(Bad):
    def forward(self, seen: Observed) -> Tensor:
        self.steps = torch.zeros(5)
        return torch.ones(3)


def test_a_buffer_keeps_its_shape() -> None:
    weights = cf.AdaptiveClassWeights(3, rule=Growing(None), source="argmax")
    weights.observe_confusion(MATRIX)
    with pytest.raises(ValueError, match=r"the buffer 'steps' had the shape \(1,\) and has \(5,\) now; keep the shape"):
        weights.step()
