"""``focal_loss`` and ``FocalLoss`` against their formula in float64."""

import pytest
import torch
import torch.nn.functional as F

import cawa_fast as cf
import cawa_fast.functional as CF
from cawa_fast import reference
from tests.support.cases import CONTENTS, FLOATS, RATIOS, noise
from tests.support.losses import check

pytestmark = pytest.mark.usefixtures("backend")

C = 5
WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.7, 1.4])
REDUCTIONS = reference.REDUCTIONS


@pytest.mark.sampled
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ratio", ["same", "x4", "down"])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_formula(gamma, ratio, reduction):
    case = noise(C, 2, *RATIOS[ratio])
    grad = torch.rand(case.target.shape) if reduction == "none" else None
    check(case.logits, case.target.to(torch.uint8), WEIGHT, gamma=gamma, reduction=reduction, grad=grad)


@pytest.mark.sampled
@pytest.mark.parametrize("content", ["smooth", "one_class", "ties"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_contents(dtype, content):
    case = CONTENTS[content](C, 2, (6, 9), (24, 36))
    check(case.logits.to(dtype), case.target, WEIGHT, gamma=2.0)


@pytest.mark.slow_in_interpreter
@pytest.mark.sampled
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_gamma_0_is_cross_entropy(dtype, reduction):
    case = noise(C, 2, (6, 9), (24, 36))
    options = {"weight": WEIGHT, "ignore_index": 255, "reduction": reduction}
    results = []
    for loss_fn in (cf.FocalLoss(0.0, **options), cf.CrossEntropyLoss(**options)):
        leaf = case.logits.to(dtype, copy=True).requires_grad_()
        loss = loss_fn(leaf, case.target)
        loss.sum().backward()
        results.append((loss, leaf.grad))
    for focal, plain in zip(*results, strict=True):
        torch.testing.assert_close(
            focal, plain, rtol=1e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-5, atol=1e-7
        )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("scale", [20.0, 1e3, 1e30])
def test_certain_pixels_have_a_finite_gradient(scale, gamma):
    """At p = 1 with gamma < 1, the power's derivative is infinite and the loss 0; at p = 0 the loss is large."""
    target = torch.tensor([[[0, 1, 1, 0]]])
    logits = scale * F.one_hot(torch.tensor([[[0, 1, 0, 1]]]), 2).permute(0, 3, 1, 2).float()
    leaf = logits.requires_grad_()
    loss = cf.FocalLoss(gamma)(leaf, target)
    loss.backward()
    assert loss.isfinite()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_ignored(reduction):
    leaf = torch.randn(1, C, 4, 4, requires_grad=True)
    loss = cf.FocalLoss(ignore_index=255, reduction=reduction)(leaf, torch.full((1, 8, 8), 255, dtype=torch.uint8))
    loss.sum().backward()
    assert loss.isnan() if reduction == "mean" else (loss == 0).all()
    assert (leaf.grad == 0).all()


def test_live_weight():
    adaptive = cf.AdaptiveClassWeights(C)
    loss_fn, case = cf.FocalLoss(2.0, adaptive, ignore_index=255), noise(C, 1, (6, 9), (24, 36))
    adaptive.weight.copy_(WEIGHT)
    assert loss_fn(*case).equal(cf.FocalLoss(2.0, WEIGHT, ignore_index=255)(*case))


def test_align_corners():
    case = noise(C, 1, (6, 9), (24, 36))
    nll = CF.cross_entropy(*case, ignore_index=255, reduction="none", align_corners=True)
    loss = cf.FocalLoss(0.0, ignore_index=255, reduction="none", align_corners=True)(*case)
    assert loss.equal(nll)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1.0}, "gamma.*at least 0.*-1.0"),
        ({"gamma": float("inf")}, "gamma.*finite.*inf"),
        ({"gamma": float("nan")}, "gamma.*nan"),
        ({"reduction": "median"}, "reduction.*'median'"),
        ({"offset": torch.tensor([0.0, float("nan")])}, r"offset\[1\] is nan"),
        ({"weight": torch.tensor([1.0, -1.0])}, r"weight\[1\] is -1.0"),
        ({"weight": "balanced"}, "weight.*'balanced'"),
    ],
)
def test_errors_name_the_argument_and_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        cf.FocalLoss(**options)


@pytest.mark.parametrize("classes", [C - 1, C + 1])
def test_a_weight_of_another_length_is_refused(classes):
    with pytest.raises(ValueError, match=rf"weight.*{C} classes.*\({classes},\)"):
        cf.FocalLoss(weight=torch.ones(classes))(torch.zeros(1, C, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8))
