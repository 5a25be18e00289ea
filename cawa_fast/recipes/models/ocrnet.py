r"""OCRNet: object-contextual representations (Yuan, Chen and Wang, ECCV 2020, arXiv:1909.11065).

Implemented from the paper.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import building, find_backbone
from .libraries import import_library
from .network import AuxiliaryHead, Network, check_num_classes, explained

_DILATED_STRIDE = 8


def _pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    """The transforms of the paper: 1x1 convolution, batch normalisation, ReLU."""
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class ObjectContext(nn.Module):
    r"""Joins the representation of every pixel with that of the objects it belongs to.

    With pixel representations :math:`x_i` and soft object regions :math:`M_k`:

    .. math::
        f_k &= \sum_i \mathrm{softmax}_i(M_k)_i \, x_i \\
        w_{ik} &= \mathrm{softmax}_k\bigl(\phi(x_i)^\top \psi(f_k) / \sqrt{d}\bigr) \\
        y_i &= \rho\Bigl(\sum_k w_{ik} \, \delta(f_k)\Bigr), \qquad z_i = g([x_i, y_i])

    Args:
        channels: channels of x and z.
        key_channels: d, the channels of the transformed pixels and regions.
        dropout: probability of dropping a whole channel of z.
    """

    def __init__(self, channels: int, key_channels: int, dropout: float) -> None:
        super().__init__()
        self.phi = nn.Sequential(*_pointwise(channels, key_channels), *_pointwise(key_channels, key_channels))
        self.psi = nn.Sequential(*_pointwise(channels, key_channels), *_pointwise(key_channels, key_channels))
        self.delta = nn.Sequential(*_pointwise(channels, key_channels))
        self.rho = nn.Sequential(*_pointwise(key_channels, channels))
        self.g = nn.Sequential(*_pointwise(2 * channels, channels), nn.Dropout2d(dropout))

    def forward(self, pixels: Tensor, region_logits: Tensor) -> Tensor:
        """z ``(N, channels, h, w)`` from x of the same shape and region logits ``(N, K, h, w)``."""
        shares = region_logits.flatten(2).softmax(2)  # (N, K, h*w): the weights of a region sum to 1 over the image
        regions = (shares @ pixels.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(3)  # (N, ch, K, 1)
        query = self.phi(pixels).flatten(2).transpose(1, 2)  # (N, h*w, d)
        key = self.psi(regions).flatten(2)  # (N, d, K)
        # Divided by sqrt(d) as in attention, since a sum of d products would saturate the softmax from the start.
        relation = (query @ key * key.shape[1] ** -0.5).softmax(2)
        context = (relation @ self.delta(regions).flatten(2).transpose(1, 2)).transpose(1, 2)  # (N, d, h*w)
        context = self.rho(context.reshape(*context.shape[:2], *pixels.shape[2:]))
        return self.g(torch.cat([pixels, context], 1))


class OCRNet(Network):
    """Object-contextual representations on a backbone, with logits at stride 8, or at stride 4 if stages are joined.

    A backbone that can be dilated runs at stride 8. Its last stage gives the pixels and the stage before it the
    regions, as for the paper's ResNet-101. The stages of other backbones (HRNet, Swin, ...) are resized to stride 4 and
    joined, and give both, as for the paper's HRNet-W48, here ``tu-hrnet_w48``.

    The auxiliary head estimates the soft object regions. It is part of the network and trained by its own loss.

    Args:
        num_classes: C >= 1.
        backbone: any backbone.
        pretrained: start the backbone from weights trained on ImageNet, downloaded once.
        auxiliary: factor of the loss of the regions, >= 0; 0.4 in the paper.
        channels: channels of the pixels, of the regions and of the classifier's input.
        key_channels: channels in which pixels and regions are compared.
        dropout: probability of dropping a whole channel, in [0, 1].
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet50",
        pretrained: bool = False,
        auxiliary: float = 0.4,
        channels: int = 512,
        key_channels: int = 256,
        dropout: float = 0.05,
    ) -> None:
        super().__init__(auxiliary)
        check_num_classes(num_classes)
        if min(channels, key_channels) < 1:
            raise ValueError(f"channels={channels} and key_channels={key_channels} must be at least 1")
        self.encoder, self.joined = _encoder(backbone, pretrained)
        widths = [width for width in self.encoder.out_channels[2:] if width]
        coarse, fine = (sum(widths), sum(widths)) if self.joined else (widths[-1], widths[-2])
        self.pixels = nn.Sequential(
            nn.Conv2d(coarse, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        if self.joined:  # the authors' head is a 1x1 convolution that keeps the width
            self.auxiliary = AuxiliaryHead(fine, num_classes, fine, dropout, kernel=1)
        else:
            self.auxiliary = AuxiliaryHead(fine, num_classes, channels, dropout)
        self.context = ObjectContext(channels, key_channels, dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    @explained
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, C, h, w)`` of normalised floating-point images ``(N, 3, H, W)``."""
        features = self.encoder(images)
        fine, coarse = features[-2:]
        if self.joined:
            size = features[2].shape[2:]
            fine = coarse = torch.cat(
                [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in features[2:]], 1
            )
        regions = self.auxiliary(fine)
        self.auxiliary_logits = regions if self.training else None
        return self.classifier(self.context(self.pixels(coarse), regions))


def _encoder(backbone: str, pretrained: bool) -> tuple[Any, bool]:
    """The backbone, and whether its stages have to be joined because it cannot be dilated."""
    found = find_backbone(backbone, pretrained)
    get_encoder = import_library("segmentation_models_pytorch").encoders.get_encoder
    if found.name.startswith("tu-hrnet"):  # its four resolutions, not the widened ones for classification
        with building(backbone, pretrained):
            return get_encoder(found.name, weights=found.weights, feature_location="", **found.options), True
    if not found.name.startswith("mit_"):  # smp could dilate it, but its authors join the stages
        try:
            with building(backbone, pretrained, _DILATED_STRIDE):
                encoder = get_encoder(found.name, weights=found.weights, output_stride=_DILATED_STRIDE, **found.options)
                return encoder, False
        except ValueError as error:
            if "dilated" not in str(error):
                raise
    with building(backbone, pretrained):
        return get_encoder(found.name, weights=found.weights, **found.options), True
