"""The loss by its formula, from PyTorch's own operators, and the comparison of ``CF.cross_entropy`` with it."""

import torch
import torch.nn.functional as F

import cawa_fast.functional as CF
from tests.support.closeness import assert_no_worse


def by_formula(
    dtype,
    logits,
    target,
    weight=None,
    *,
    offset=None,
    gamma=0.0,
    ignore_index=255,
    reduction="mean",
    smoothing=0.0,
    corners=False,
):
    """The loss in ``dtype``, as the documentation defines it."""
    z, y = logits.to(dtype), target.long()
    if offset is not None:
        z = z + offset.to(dtype).view(-1, *[1] * (z.dim() - 2))
    if z.dim() == 4 and z.shape[2:] != y.shape[1:]:
        z = F.interpolate(z, y.shape[1:], mode="bilinear", align_corners=corners)
    w = None if weight is None else weight.to(dtype)

    def pytorch(reduction):
        if gamma == 0:
            return F.cross_entropy(z, y, w, ignore_index=ignore_index, reduction=reduction, label_smoothing=smoothing)
        log_p = F.cross_entropy(z, y, ignore_index=ignore_index, reduction="none")
        valid = y != ignore_index
        factor = valid if w is None else w[y.where(valid, 0)] * valid
        pixel = factor * (1 - torch.exp(-log_p)) ** gamma * log_p
        return pixel if reduction == "none" else pixel.sum() / (factor.sum() if reduction == "mean" else 1)

    if reduction in ("mean", "sum", "none"):
        return pytorch(reduction)
    pixel, valid = pytorch("none"), y != ignore_index
    if reduction == "valid_mean":
        return pixel.sum() / max(int(valid.sum()), 1)
    if reduction == "pixel_mean":
        return pixel.sum() / pixel.numel()
    return sum((pixel[valid & (y == c)].mean() for c in y[valid].unique()), z.sum() * 0)


def pixel_factor(target, weight, ignore_index, reduction):
    """The largest factor by which the reduction multiplies a pixel's loss."""
    labels = target.long()[target.long() != ignore_index]
    if reduction in ("sum", "none"):
        return 1.0
    if reduction == "pixel_mean":
        return 1 / target.numel()
    if reduction == "class_mean":
        return 1 / labels.unique(return_counts=True)[1].min().item()
    return 1 / (len(labels) if weight is None or reduction == "valid_mean" else weight[labels].sum().item())


def check(logits, target, weight=None, *, grad=None, smoothing=0.0, gamma=0.0, corners=False, **options):
    """Assert that value and gradient of ``CF.cross_entropy``, or with ``gamma`` of ``CF.focal_loss``, are no worse than
    PyTorch's; return both."""
    results = []
    for dtype in (torch.float64, torch.float32):
        leaf = logits.detach().clone().requires_grad_()
        loss = by_formula(dtype, leaf, target, weight, smoothing=smoothing, gamma=gamma, corners=corners, **options)
        loss.backward((torch.ones_like(loss) if grad is None else grad).to(dtype))
        results.append((loss, leaf.grad))
    if logits.dtype != torch.float64:  # the float64 gradient itself, not rounded to the leaf's dtype
        leaf = logits.detach().double().requires_grad_()
        loss = by_formula(
            torch.float64, leaf, target, weight, smoothing=smoothing, gamma=gamma, corners=corners, **options
        )
        loss.backward((torch.ones_like(loss) if grad is None else grad).double())
        results[0] = (loss, leaf.grad)
    leaf = logits.detach().requires_grad_()
    options.setdefault("ignore_index", 255)
    if gamma > 0:
        loss = CF.focal_loss(leaf, target, weight, gamma=gamma, align_corners=corners, **options)
    else:
        loss = CF.cross_entropy(leaf, target, weight, label_smoothing=smoothing, align_corners=corners, **options)
    loss.backward(torch.ones_like(loss) if grad is None else grad)
    (exact, exact_grad), (pytorch, pytorch_grad) = results
    # A confident pixel's loss and gradient are far smaller than the values they are computed from: the sum of
    # exponentials, which is at least 1, and the label's probability, which is almost 1. The floor is one unit in the
    # last place of those.
    floor = 1.2e-7 * (1.0 if weight is None else weight.max().item())
    assert_no_worse(loss, exact, pytorch, floor=floor)
    per_pixel = pixel_factor(target, weight, options["ignore_index"], options.get("reduction", "mean"))
    assert_no_worse(leaf.grad, exact_grad, pytorch_grad, floor=floor * per_pixel)
    assert loss.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert leaf.grad.dtype == logits.dtype
    return loss.detach(), leaf.grad


def check_infinite_sample(row, column, value):
    """Assert that a sample (row, column) of 6x7, of infinite ``value``, affects the same pixels as in PyTorch."""
    logits = torch.randn(1, 3, 6, 7)
    logits[0, 2, row, column] = value
    target = torch.randint(0, 2, (1, 24, 28))
    expected = by_formula(torch.float64, logits, target, reduction="none")
    loss = CF.cross_entropy(logits, target, reduction="none")
    assert loss.isnan().equal(expected.isnan())
    torch.testing.assert_close(loss[~loss.isnan()].double(), expected[~expected.isnan()], rtol=1e-5, atol=1e-6)
