r"""Grad-CAM at the input of the layer that computes the logits, from its weight, without a backward pass.

A convolution :math:`z_c(q) = b_c + \sum_k \sum_t W_{ckt} A_k(q + t)` with stride 1, whose zero padding keeps the size
``(h, w)`` of the map, reads :math:`A_k` at offsets :math:`t = (t_y, t_x)`, its taps; a 1x1 convolution has one, at
``(0, 0)``, and ``nn.Linear`` over channels-last features is a 1x1 convolution. The score of class c is the sum of its
logits, and position p enters it once for each tap for which :math:`q = p - t` lies within the map:

.. math:: \frac{\partial}{\partial A_k(p)} \sum_q z_c(q) = \sum_t W_{ckt}\, [p - t \in \text{map}], \quad
    \alpha^c_k = \frac{1}{h w} \sum_p \frac{\partial}{\partial A_k(p)} \sum_q z_c(q)
    = \sum_t W_{ckt} \Bigl(1 - \frac{|t_y|}{h}\Bigr) \Bigl(1 - \frac{|t_x|}{w}\Bigr)

where a factor below 0 is 0. If the network resizes its logits bilinearly, :math:`z_c(q)` enters the score with the sum
:math:`g(q)` of the interpolation weights that read it, and the share of a tap is the sum of :math:`g` over the
positions that it reaches. That sum is a product of one factor per axis. For a 1x1 convolution the resize only
multiplies the map by a positive factor, which every normalisation removes.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import reference
from ._classifier import Head, is_pointwise


def closed_form(
    classifier: Head,
    activations: Tensor,
    logits: Tensor,
    method: str = "gradcam",
    *,
    resized_to: tuple[int, int] | None = None,
    align_corners: bool = False,
) -> Tensor:
    r"""Activation maps from the input and the output of the classifier, without a backward pass.

    With the weights :math:`W` and the bias :math:`b` of a 1x1 convolution or linear layer:

    .. math::
        \text{gradcam, hirescam:}\quad & \mathrm{ReLU}(z_c - b_c) \\
        \text{layercam:}\quad & \mathrm{ReLU}\bigl(\textstyle\sum_k \mathrm{ReLU}(W_{ck}) A_k\bigr) \\
        \text{gradcam++:}\quad & \mathrm{ReLU}\bigl(\textstyle\sum_k \alpha^c_k A_k\bigr), \quad
        \alpha^c_k = h w \, \mathrm{ReLU}(W_{ck}) \frac{W_{ck}^2}{2 W_{ck}^2 + W_{ck}^3 \sum_p A_k(p) + 10^{-6}}

    For larger kernels and groups, ``"gradcam"`` is :math:`\mathrm{ReLU}(\sum_k \alpha^c_k A_k)` with
    :math:`\alpha^c_k = \sum_t W_{ckt} (1 - |t_y| / h) (1 - |t_x| / w)` over the offsets :math:`t` of the kernel.
    The other methods follow from the gradient of one class after the other.

    Sources: as for :class:`GradCAM`.

    Args:
        classifier: the convolution or linear layer.
        activations: its input ``(N, K, h, w)``, any floating dtype.
        logits: its output ``(N, C, h, w)``, any floating dtype.
        method: ``"gradcam"``, ``"gradcam++"``, ``"hirescam"`` or ``"layercam"``.
        resized_to, align_corners: how the network resizes the logits; None if it does not. The score is then the sum of
            the resized logits, for ``"gradcam"`` alone.

    Returns:
        ``(N, C, h, w)``, at least 0, not normalised, without a graph. In the dtype of ``logits`` for ``"gradcam"`` and
        ``"hirescam"`` of a 1x1 convolution, else in that of ``activations``.

    Example:
        >>> classifier = nn.Conv2d(1, 1, 1)
        >>> _ = nn.init.constant_(classifier.weight, 2.0)
        >>> activations = torch.tensor([[[[3.0, -1.0]]]])
        >>> closed_form(classifier, activations, classifier(activations))
        tensor([[[[6., 0.]]]])
    """
    with torch.no_grad():
        if not needs_weight(classifier, method):  # the gradient is W at every position, and so is its mean
            if classifier.bias is None:
                return logits.detach().relu()
            return (logits.detach() - _whole(classifier.bias).to(logits.dtype).view(-1, 1, 1)).relu_()
        if isinstance(classifier, nn.Conv2d) and not (is_pointwise(classifier) and classifier.groups == 1):
            if method == "gradcam":
                weight = _mean_gradient(classifier, activations, resized_to, align_corners)
                return F.conv2d(activations, weight, groups=classifier.groups).relu_()
            return _by_class(classifier, activations, method)
        weight = _whole(classifier.weight).flatten(1).to(activations.dtype)
        if method == "layercam":
            return F.conv2d(activations, weight.relu()[:, :, None, None]).relu_()
        positions = activations.shape[-2:].numel()
        alpha = positions * _gradcam_plus_plus(weight, activations.sum((-2, -1)).unsqueeze(1))
        return torch.einsum("nck,nkhw->nchw", alpha, activations).relu_()


def needs_weight(classifier: Head, method: str) -> bool:
    """Whether the maps need the classifier's weight and input, or only its bias and output.

    Example:
        >>> [needs_weight(nn.Conv2d(8, 5, kernel, padding="same"), "gradcam") for kernel in (1, 3)]
        [False, True]
    """
    return method not in ("gradcam", "hirescam") or not is_pointwise(classifier)


def _mean_gradient(
    classifier: nn.Conv2d, activations: Tensor, resized_to: tuple[int, int] | None, align_corners: bool
) -> Tensor:
    """:math:`\\alpha` as the weight ``(C, K / groups, 1, 1)`` of a convolution."""
    weight = _whole(classifier.weight)
    rows, columns = (
        _tap_shares(
            activations.shape[axis],
            classifier.kernel_size[axis],
            classifier.dilation[axis],
            None if resized_to is None else resized_to[axis],
            align_corners,
        )
        for axis in (-2, -1)
    )
    # The shares are numbers, and not a tensor, which would be copied to the device.
    alpha = torch.zeros_like(weight[..., 0, 0], dtype=reference.compute_dtype(activations.dtype))
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            alpha += weight[..., y, x] * (row * column)
    return alpha[:, :, None, None].to(activations.dtype)


@functools.lru_cache(maxsize=256)
def _tap_shares(size: int, kernel: int, dilation: int, resized_to: int | None, align_corners: bool) -> list[float]:
    """For each tap along one axis, the share of the score whose gradient it passes on, at most about 1.

    Example:
        >>> _tap_shares(4, 3, 1, None, False)  # the outer taps leave the map at one of four positions
        [0.75, 1.0, 0.75]
    """
    influence = torch.ones(size, dtype=torch.float64, device="cpu")
    if resized_to is not None and resized_to != size:
        taps = reference.bilinear_taps(size, resized_to, align_corners, torch.float64, torch.device("cpu"))
        influence = torch.zeros_like(influence)
        influence.index_add_(0, taps.low, taps.low_weight).index_add_(0, taps.high, taps.high_weight)
    shares = []
    for tap in range(kernel):
        offset = tap * dilation - dilation * (kernel - 1) // 2
        reached = influence[max(0, -offset) : max(0, size - offset)]
        shares.append((reached.sum() / influence.sum()).item())
    return shares


def _by_class(classifier: nn.Conv2d, activations: Tensor, method: str) -> Tensor:
    """The maps from the gradient of one class after the other, ``(1, K / groups, h, w)``: that of a convolution of a
    map of ones is the transposed convolution."""
    height, width = activations.shape[-2:]
    top, left = (d * (k - 1) // 2 for d, k in zip(classifier.dilation, classifier.kernel_size, strict=True))
    ones = activations.new_ones(1, 1, height, width)
    groups = activations.chunk(classifier.groups, 1)
    per_group = classifier.out_channels // classifier.groups
    maps = []
    for index, kernel in enumerate(_whole(classifier.weight).to(activations.dtype).split(1)):
        whole = F.conv_transpose2d(ones, kernel, dilation=classifier.dilation)  # as if nothing were cut off
        grad = whole[..., top : top + height, left : left + width]
        maps.append(from_gradient(groups[index // per_group], grad, method))
    return torch.stack(maps, 1)


def from_gradient(activations: Tensor, grad: Tensor, method: str) -> Tensor:
    """Maps ``(N, h, w)`` of one class, from activations and their gradient, ``(N, K, h, w)`` and that or
    ``(1, K, h, w)``."""
    if method == "hirescam":
        return (grad * activations).sum(1).relu_()
    if method == "layercam":
        return (grad.relu() * activations).sum(1).relu_()
    if method == "gradcam":
        alpha = grad.mean((-2, -1), keepdim=True)
    else:
        alpha = _gradcam_plus_plus(grad, activations.sum((-2, -1), keepdim=True)).sum((-2, -1), keepdim=True)
    return (alpha * activations).sum(1).relu_()


def _whole(parameter: Tensor) -> Tensor:
    """The full parameter: of one that FSDP shards, all shards gathered; of any other, the parameter itself."""
    gather = getattr(parameter, "full_tensor", None)
    return parameter if gather is None else gather()


def _gradcam_plus_plus(grad: Tensor, activation_sum: Tensor) -> Tensor:
    """Weight of each position for one channel, from gradient and sum of activations (Chattopadhay et al., Eq. 19)."""
    square = grad * grad
    denominator = 2 * square + activation_sum * square * grad + 1e-6  # the constant of pytorch-grad-cam
    return grad.relu() * (square / denominator).where(grad != 0, 0)
