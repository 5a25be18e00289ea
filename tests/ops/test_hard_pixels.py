"""``OhemCrossEntropyLoss`` against MMSegmentation's rule, with a sort; ``BinaryCrossEntropyLoss`` against PyTorch."""

import pytest
import torch
import torch.nn.functional as F

import cawa_fast as cf
from cawa_fast.pixel_losses import hard_pixels
from tests.support.cases import FLOATS, LABELS, RATIOS, noise, smooth
from tests.support.closeness import assert_no_worse

C = 5
WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.7, 1.4])


def by_sorting(logits, target, threshold, min_kept):
    """Which pixels MMSegmentation's sampler keeps."""
    labels = target.where(target != 255, 0)
    valid = target != 255
    probability = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    if not valid.any():
        return valid
    ascending = probability[valid].sort().values
    least = ascending[min(min_kept * len(target), len(ascending) - 1)]
    return valid & (probability < max(least.item(), threshold))


@pytest.mark.parametrize("make", [noise, smooth])
@pytest.mark.parametrize("min_kept", [0, 1, 100, 700, 863, 864, 10**6])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_the_same_pixels_as_with_a_sort(threshold, min_kept, make):
    case = make(C, 2, (24, 36), (24, 36))
    logits = case.logits.double()
    expected = by_sorting(logits, case.target, threshold, min_kept)
    valid = case.target != 255
    losses = F.cross_entropy(logits, case.target, ignore_index=255, reduction="none")
    assert hard_pixels(losses, valid, threshold, 2 * min_kept).equal(expected)
    # In float32 a pixel at the bound may fall on either side of it.
    different = hard_pixels(losses.float(), valid, threshold, 2 * min_kept) != expected
    assert different.sum() <= 1


@pytest.mark.parametrize("reduction", ["mean", "sum", "valid_mean", "pixel_mean"])
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("ratio", ["same", "x4", "non-integer"])
def test_loss_and_gradient(ratio, weight, reduction):
    case = noise(C, 2, *RATIOS[ratio])
    results = []
    for dtype in (torch.float64, torch.float32):
        leaf = case.logits.to(dtype, copy=True).requires_grad_()
        z = leaf
        if z.shape[2:] != case.target.shape[1:]:
            z = F.interpolate(z, case.target.shape[1:], mode="bilinear")
        kept = by_sorting(z.detach(), case.target, 0.4, 200)
        losses = F.cross_entropy(
            z, case.target, None if weight is None else weight.to(dtype), ignore_index=255, reduction="none"
        )
        w = torch.ones(C) if weight is None else weight
        divisor = {
            "mean": (w.to(dtype)[case.target.where(kept, 0)] * kept).sum(),
            "sum": 1,
            "valid_mean": (case.target != 255).sum(),
            "pixel_mean": case.target.numel(),
        }[reduction]
        loss = (losses * kept).sum() / divisor
        loss.backward()
        results.append((loss, leaf.grad))
    leaf = case.logits.requires_grad_()
    loss = cf.OhemCrossEntropyLoss(0.4, 200, weight, 255, reduction)(leaf, case.target)
    loss.backward()
    assert_no_worse(loss, results[0][0], results[1][0])
    assert_no_worse(leaf.grad, results[0][1], results[1][1], floor=1e-7 / float(divisor))


def test_nothing_valid_and_nothing_hard():
    loss_fn = cf.OhemCrossEntropyLoss(0.7, 0, ignore_index=255)
    for target in (torch.full((1, 8, 8), 255), torch.zeros(1, 8, 8, dtype=torch.int64)):
        leaf = torch.zeros(1, 2, 4, 4)
        leaf[:, 0] = 30.0
        loss = loss_fn(leaf.requires_grad_(), target)
        loss.backward()
        assert loss == 0
        assert (leaf.grad == 0).all()


def test_nan_shows():
    case = noise(C, 1, (6, 9), (24, 36))
    case.logits[0, 0, 3, 4] = torch.nan
    assert cf.OhemCrossEntropyLoss(ignore_index=255)(*case).isnan()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 1.5}, ValueError, r"threshold must lie in \[0, 1\], got 1.5"),
        ({"min_kept": -1}, ValueError, "min_kept must be at least 0, got -1"),
        ({"min_kept": 0.5}, TypeError, "min_kept must be an integer"),
        ({"reduction": "none"}, ValueError, "reduction must be one of mean, sum, valid_mean, pixel_mean"),
    ],
    ids=str,
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=f"OhemCrossEntropyLoss: {message}"):
        cf.OhemCrossEntropyLoss(**options)


# ---------------------------------------------------------------------------------------------------------- sigmoids


def bce(dtype, logits, target, pos_weight, reduction):
    """``(loss, gradient)`` by PyTorch."""
    leaf = logits.to(dtype, copy=True).requires_grad_()
    z = leaf if leaf.shape[2:] == target.shape[2:] else F.interpolate(leaf, target.shape[2:], mode="bilinear")
    w = None if pos_weight is None else pos_weight.to(dtype).view(-1, 1, 1)
    valid = target != 255
    labels = target.where(valid, 0).to(dtype)
    losses = F.binary_cross_entropy_with_logits(z, labels, pos_weight=w, reduction="none") * valid
    divisor = {"mean": valid.sum(), "pixel_mean": target.numel()}.get(reduction, 1)
    loss = losses if reduction == "none" else losses.sum() / divisor
    loss.sum().backward()
    return loss.detach(), leaf.grad


@pytest.mark.usefixtures("backend")
@pytest.mark.sampled
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "pixel_mean"])
@pytest.mark.parametrize("pos_weight", [None, torch.tensor([0.5, 2.0, 7.0])])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ratio", ["same", "x4", "down"])
def test_binary_cross_entropy(ratio, channels, pos_weight, reduction):
    low, high = RATIOS[ratio]
    logits, target = 4 * torch.randn(2, channels, *low), torch.randint(0, 2, (2, channels, *high))
    target[torch.rand(target.shape) < 0.1] = 255
    weight = None if pos_weight is None else pos_weight[:channels]
    exact, pytorch = (bce(dtype, logits, target, weight, reduction) for dtype in (torch.float64, torch.float32))
    mode = "binary" if channels == 1 else "multilabel"
    leaf = logits.requires_grad_()
    loss = cf.BinaryCrossEntropyLoss(weight, 255, mode, reduction)(leaf, target.to(torch.uint8))
    loss.sum().backward()
    floor = 1.2e-7 * (1 if weight is None else weight.max().item())
    divisor = {"mean": (target != 255).sum().item(), "pixel_mean": target.numel()}.get(reduction, 1)
    assert_no_worse(loss, exact[0], pytorch[0], floor=floor)
    assert_no_worse(leaf.grad, exact[1], pytorch[1], floor=20 * floor / divisor)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("labels", LABELS)
def test_shapes_and_dtypes(labels, dtype):
    logits, target = torch.randn(2, 1, 4, 4, dtype=dtype), torch.randint(0, 2, (2, 16, 16)).to(labels)
    loss_fn = cf.BinaryCrossEntropyLoss()
    assert loss_fn(logits, target).equal(loss_fn(logits, target[:, None]))
    assert cf.BinaryCrossEntropyLoss(reduction="none")(logits, target).shape == target.shape


@pytest.mark.parametrize("mode", ["binary", "multilabel"])
def test_combined_with_dice(mode):
    channels = 1 if mode == "binary" else 3
    logits, target = torch.randn(2, channels, 6, 9), torch.randint(0, 2, (2, channels, 24, 36))
    pos_weight = torch.tensor([2.0]) if mode == "binary" else None
    pixel, region = cf.BinaryCrossEntropyLoss(pos_weight, mode=mode), cf.DiceLoss(mode=mode)
    results = []
    for function in (cf.CombinedLoss(pixel, region), lambda x, y: pixel(x, y) + region(x, y)):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf, target)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cf.BinaryCrossEntropyLoss(mode="multiclass"), ValueError, "mode must be one of binary, multilabel"),
        (lambda: cf.BinaryCrossEntropyLoss(torch.tensor(2.0)), ValueError, r"pos_weight must be \(C,\), got \(\)"),
        (
            lambda: cf.BinaryCrossEntropyLoss(torch.ones(2))(torch.zeros(1, 1, 4, 4), torch.zeros(1, 8, 8).long()),
            ValueError,
            "pos_weight has 2 values, but input has 1 channels",
        ),
        (
            lambda: cf.BinaryCrossEntropyLoss()(torch.zeros(1, 1, 4, 4), torch.full((1, 8, 8), 2)),
            ValueError,
            "target.*2",
        ),
        (
            lambda: cf.BinaryCrossEntropyLoss()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 8, 8)),
            TypeError,
            "target must hold class indices",
        ),
    ],
    ids=["mode", "weight", "length", "label", "float"],
)
def test_wrong_sigmoids(call, error, message):
    with pytest.raises(error, match=message):
        call()
