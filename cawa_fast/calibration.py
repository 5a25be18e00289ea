r"""After the training: offsets of the logits fitted on held-out images, and folded into the classifier's bias.

A network decides for some classes more often than they occur, and for others less. Adding a constant to each class's
logits changes that, costs nothing, and leaves what the network has learned as it is. The constant becomes part of the
bias of the layer that computes the logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import _validate
from . import functional as CF

__all__ = ["fit_offset", "fold_offset"]

_RATE = 0.2
_STEPS = 60
_SMALL = 1e-3  # offsets that change by less have settled


@torch.no_grad()
def fit_offset(
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    strength: float = 1.0,
    ignore_index: int = -100,
    align_corners: bool = False,
) -> Tensor:
    r"""Offsets of the logits that bring the number of decisions for each class nearer to its number of pixels.

    .. math:: o_i \leftarrow o_i + 0.2\, \Bigl(\log \frac{n_i}{q_i(o)} - \frac{o_i}{k}\Bigr)

    until no offset changes any more, at most 60 times, with :math:`n_i` the pixels of class i and :math:`q_i(o)` those
    predicted as it, both one more than counted, and the logarithm clipped to [-2, 2]. With k = ``strength`` towards
    infinity, each class is predicted as often as it occurs (precision equals recall). That fits few images too
    closely; with 1, :math:`o_i = \log (n_i / q_i(o))`, which is about half the way.

    Use images that the network was not trained on and that are like those which it will see. A class without labelled
    pixels keeps the offset 0.

    Args:
        batches: logits ``(N, C, h, w)``, at any resolution, and labels ``(N, H, W)``. They are read many times: keep
            logits in a list, at the resolution of the network, rather than a generator.
        strength: positive; ``math.inf`` is allowed.
        ignore_index, align_corners: as in :func:`cawa_fast.functional.confusion_matrix`.

    Returns:
        ``(C,)`` float32 on the CPU, mean 0 over the classes with labelled pixels. Add it to the logits, or see
        :func:`fold_offset`.

    Raises:
        ValueError: there is no batch, or no labelled pixel, or an argument is out of range.

    Example:
        >>> logits = torch.tensor([[[[0.0, 0.0, 0.0, 3.0]], [[-3.0, -2.0, -1.0, 0.0]]]])  # class 1 is never predicted
        >>> labels = torch.tensor([[[0, 0, 1, 1]]])
        >>> offset = fit_offset([(logits, labels)])
        >>> offset.round(decimals=1)  # log((2 + 1) / (0 + 1)) / 2 is 0.55
        tensor([-0.5000,  0.5000])
        >>> (logits + offset.view(1, 2, 1, 1)).argmax(1)
        tensor([[[0, 0, 1, 0]]])
    """
    name = "fit_offset"
    _validate.check(_validate.as_number(name, "strength", strength) > 0, name, "strength", strength, "be positive")
    batches = list(batches)
    if not batches:
        raise ValueError(f"{name}: batches is empty; pass (logits, labels) of held-out images")
    for logits, _ in batches:
        _validate.check_float(name, "logits", logits)
        if logits.dim() < 2 or logits.shape[1] != batches[0][0].shape[1]:
            raise ValueError(
                f"{name}: logits {tuple(logits.shape)} must be (N, C, h, w) with the same C in every batch; the first "
                f"are {tuple(batches[0][0].shape)}"
            )
    classes = batches[0][0].shape[1]
    offset = torch.zeros(classes, dtype=torch.float64)
    for _ in range(_STEPS):
        matrix = torch.zeros(classes, classes, dtype=torch.int64)
        for logits, labels in batches:
            shifted = logits + _along(offset.to(logits), logits)
            counts = CF.confusion_matrix(shifted, labels, ignore_index=ignore_index, align_corners=align_corners)
            matrix += counts.cpu()
        truth, predicted = matrix.sum(1).double(), matrix.sum(0).double()
        known = truth > 0
        if not bool(known.any()):
            raise ValueError(f"{name}: no pixel is labelled (is every label ignore_index={ignore_index}?)")
        change = ((truth + 1) / (predicted + 1)).log().clamp(-2, 2) - offset / strength
        change = (_RATE * (change - change[known].mean())).where(known, 0.0)
        offset += change
        if change.abs().max() < _SMALL:
            break
    return offset.float()


@torch.no_grad()
def fold_offset(layer: nn.Module, offset: Tensor) -> None:
    """Add offsets to the bias of the layer that computes the logits, which gets one if it has none.

    Args:
        layer: an ``nn.Conv2d`` or ``nn.Linear`` with C outputs. Changed in place.
        offset: ``(C,)``, finite, as :func:`fit_offset` returns them.

    Raises:
        TypeError: the layer is another one.
        ValueError: ``offset`` does not fit.

    Example:
        >>> classifier = nn.Conv2d(8, 3, 1, bias=False)
        >>> fold_offset(classifier, torch.tensor([-0.5, 0.0, 0.5]))
        >>> classifier.bias.tolist()
        [-0.5, 0.0, 0.5]
    """
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):
        raise TypeError(
            f"fold_offset: layer must be an nn.Conv2d or nn.Linear, got {_validate.described(layer)}; pass the layer "
            "that computes the logits"
        )
    _validate.check_tensor("fold_offset", "offset", offset)
    classes = layer.weight.shape[0]
    if offset.shape != (classes,) or not bool(offset.isfinite().all()):
        raise ValueError(
            f"fold_offset: offset must be ({classes},) and finite, one value per output of the layer, got "
            f"{offset.tolist() if offset.dim() == 1 else _validate.described(offset)}"
        )
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(classes, dtype=layer.weight.dtype, device=layer.weight.device))
    layer.bias.add_(offset.to(layer.bias))


def _along(offset: Tensor, logits: Tensor) -> Tensor:
    return offset.view(-1, *[1] * (logits.dim() - 2))
