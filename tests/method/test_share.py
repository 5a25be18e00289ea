"""The shares of several batches sum to the loss of one batch that holds all images, and so do the gradients."""

import re

import pytest
import torch

import cawa_fast as cf

C = 4


@pytest.fixture
def batches():
    """Logits and labels of batches of different sizes, one of which is ignored as a whole."""
    target = (torch.rand(6, 12, 16) ** 3 * C).to(torch.uint8)
    target[:, :2] = 255
    target[3] = 255
    return torch.randn(6, C, 3, 4).split([2, 1, 1, 2]), target.split([2, 1, 1, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "valid_mean", "pixel_mean", "class_mean"])
def test_shares_sum_to_the_loss_of_the_whole(batches, reduction, smoothing):
    cawa = cf.CAWA(None, C, ignore_index=255, reduction=reduction, label_smoothing=smoothing)
    cawa.weight.copy_(torch.tensor([0.3, 2.0, 1.0, 0.7]))
    counts = torch.stack([cawa.count_labels(target) for target in batches[1]]).sum(0)
    whole = torch.cat(batches[1])
    assert counts.tolist() == [*(int((whole == c).sum()) for c in range(C)), int((whole == 255).sum())]
    for weighted in (True, False):
        logits = torch.cat(batches[0]).requires_grad_()
        expected = cawa.loss(whole, logits=logits, weighted=weighted)
        expected.backward()
        parts = [part.clone().requires_grad_() for part in batches[0]]
        shares = [
            cawa.loss(target, logits=part, weighted=weighted, counts=counts)
            for part, target in zip(parts, batches[1], strict=True)
        ]
        sum(shares).backward()
        torch.testing.assert_close(sum(shares), expected, rtol=1e-5, atol=1e-6)
        grad = torch.cat([part.grad for part in parts])
        torch.testing.assert_close(grad, logits.grad, rtol=1e-5, atol=1e-7)


def test_nothing_is_labelled():
    """NaN, which the mean of one such batch is, would end a training."""
    cawa = cf.CAWA(None, C, ignore_index=255)
    logits, target = torch.randn(1, C, 2, 2, requires_grad=True), torch.full((1, 4, 4), 255, dtype=torch.uint8)
    loss = cawa.loss(target, logits=logits, counts=cawa.count_labels(target))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_errors_name_what_does_not_fit():
    target = torch.zeros(1, 4, 4, dtype=torch.uint8)
    logits = torch.randn(1, C, 2, 2)
    cawa = cf.CAWA(None, C)
    message = "counts must be a tensor (5,) of int64, for the 4 classes and the ignored pixels, got a tensor of int64, "
    with pytest.raises(ValueError, match=re.escape(message + "shape (4,); CAWA.count_labels(target) returns one")):
        cawa.loss(target, logits=logits, counts=cawa.count_labels(target)[:-1])
    each = cf.CAWA(None, C, reduction="none")
    with pytest.raises(ValueError, match="reduction='none' has one loss per pixel"):
        each.loss(target, logits=logits, counts=each.count_labels(target))
