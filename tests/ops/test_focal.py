"""``FocalLoss`` against its formula in float64."""

import pytest
import torch
import torch.nn.functional as F

import cawa_fast as cf
import cawa_fast.functional as CF
from tests.support.cases import FLOATS, RATIOS, noise
from tests.support.closeness import assert_no_worse

pytestmark = pytest.mark.usefixtures("backend")

C = 5
WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.7, 1.4])
REDUCTIONS = ("mean", "sum", "none", "valid_mean", "pixel_mean")


def by_formula(dtype, logits, target, gamma, weight, reduction):
    z = logits.to(dtype)
    if z.shape[2:] != target.shape[1:]:
        z = F.interpolate(z, target.shape[1:], mode="bilinear")
    valid = target != 255
    labels = target.long().where(valid, 0)
    log_p = z.log_softmax(1).gather(1, labels[:, None])[:, 0]
    w = weight.to(dtype)[labels] * valid
    pixel = -w * (1 - log_p.exp()) ** gamma * log_p
    divisor = {"mean": w.sum(), "valid_mean": valid.sum(), "pixel_mean": valid.numel()}.get(reduction, 1)
    return pixel if reduction == "none" else pixel.sum() / divisor


@pytest.mark.sampled
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ratio", ["same", "x4", "down"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_formula(gamma, ratio, reduction):
    case = noise(C, 2, *RATIOS[ratio])
    results = []
    for dtype in (torch.float64, torch.float32):
        leaf = case.logits.to(dtype, copy=True).requires_grad_()
        loss = by_formula(dtype, leaf, case.target, gamma, WEIGHT, reduction)
        loss.sum().backward()
        results += [loss, leaf.grad]
    leaf = case.logits.requires_grad_()
    loss = cf.FocalLoss(gamma, WEIGHT, 255, reduction)(leaf, case.target.to(torch.uint8))
    loss.sum().backward()
    assert_no_worse(loss, results[0], results[2])
    assert_no_worse(leaf.grad, results[1], results[3])


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
        ({"reduction": "class_mean"}, "reduction.*'class_mean'"),
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
