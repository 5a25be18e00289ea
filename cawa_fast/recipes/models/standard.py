"""DeepLabV3+, UPerNet and SegFormer, from segmentation_models_pytorch and transformers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import building, find_backbone
from .libraries import import_library
from .network import EncoderDecoder, Network, check_num_classes, explained


class DeepLabV3Plus(EncoderDecoder):
    """Encoder-decoder with atrous separable convolution (Chen et al. 2018); logits at stride 4.

    The network of segmentation_models_pytorch up to its classifier, for images of any size.

    Args:
        num_classes: C >= 1.
        backbone: any backbone that can be dilated.
        pretrained: start the backbone from weights trained on ImageNet, downloaded once.
        auxiliary: factor of the auxiliary head's loss, >= 0; 0 for no head (as in the paper).
        output_stride: of the backbone, 16 or 8.
        decoder_channels: channels before the classifier.
        atrous_rates: three dilations of the pyramid, for output stride 16; the paper doubles them for 8.
        dropout: probability after the pyramid, in [0, 1].
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet50",
        pretrained: bool = False,
        auxiliary: float = 0.4,
        output_stride: int = 16,
        decoder_channels: int = 256,
        atrous_rates: tuple[int, int, int] = (12, 24, 36),
        dropout: float = 0.5,
    ) -> None:
        check_num_classes(num_classes)
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride={output_stride} must be 8 or 16")
        found = find_backbone(backbone, pretrained)
        with building(backbone, pretrained, output_stride):
            whole = import_library("segmentation_models_pytorch").DeepLabV3Plus(
                found.name,
                encoder_weights=found.weights,
                encoder_output_stride=output_stride,
                decoder_channels=decoder_channels,
                decoder_atrous_rates=atrous_rates,
                decoder_aspp_dropout=dropout,
                classes=num_classes,
                upsampling=1,
                **found.options,
            )
        super().__init__(whole.encoder, _DeepLabDecoder(whole.decoder), whole.segmentation_head[0], auxiliary)


class _DeepLabDecoder(nn.Module):
    """smp's decoder for images of any size. smp scales the pyramid by a fixed factor, for multiples of its stride."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.aspp, self.low_level, self.fuse = decoder.aspp, decoder.block1, decoder.block2

    def forward(self, features: list[Tensor]) -> Tensor:
        low = self.low_level(features[2])
        coarse = F.interpolate(self.aspp(features[-1]), size=low.shape[2:], mode="bilinear", align_corners=True)
        return self.fuse(torch.cat([coarse, low], 1))


class UPerNet(EncoderDecoder):
    """Unified perceptual parsing (Xiao et al. 2018): pyramid pooling and a feature pyramid; logits at stride 4.

    The network of segmentation_models_pytorch up to its classifier. It normalises the features of the backbone.

    Args:
        num_classes: C >= 1.
        backbone: any backbone.
        pretrained: start the backbone from weights trained on ImageNet, downloaded once.
        auxiliary: factor of the auxiliary head's loss, >= 0; 0 for no head (as in the paper).
        decoder_channels: channels of the pyramids; 512 in the paper's code and MMSegmentation.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet50",
        pretrained: bool = False,
        auxiliary: float = 0.4,
        decoder_channels: int = 512,
    ) -> None:
        check_num_classes(num_classes)
        found = find_backbone(backbone, pretrained)
        with building(backbone, pretrained):
            whole = import_library("segmentation_models_pytorch").UPerNet(
                found.name,
                encoder_weights=found.weights,
                decoder_channels=decoder_channels,
                classes=num_classes,
                upsampling=1,
                **found.options,
            )
        super().__init__(whole.encoder, whole.decoder, whole.segmentation_head[0], auxiliary)


def segformer(
    num_classes: int, *, backbone: str = "mit_b0", pretrained: bool = False, decoder_channels: int | None = None
) -> Network:
    """SegFormer (Xie et al. 2021): a hierarchical transformer and a head of linear layers; logits at stride 4.

    ``mit_b0`` to ``mit_b5`` are the paper's backbones and come from transformers. Other backbones get the same kind of
    head from segmentation_models_pytorch. There is no auxiliary head.

    Args:
        num_classes: C >= 1.
        backbone: any backbone.
        pretrained: start the backbone from weights trained on ImageNet, downloaded once.
        decoder_channels: channels of the head; by default 768 for B2 to B5, and 256 for all other backbones.
    """
    check_num_classes(num_classes)
    if backbone in _MIX_TRANSFORMERS:
        return SegFormerMiT(num_classes, backbone=backbone, pretrained=pretrained, decoder_channels=decoder_channels)
    found = find_backbone(backbone, pretrained)
    with building(backbone, pretrained):
        whole = import_library("segmentation_models_pytorch").Segformer(
            found.name,
            encoder_weights=found.weights,
            decoder_segmentation_channels=decoder_channels or 256,
            classes=num_classes,
            upsampling=1,
            **found.options,
        )
    return SegFormer(whole.encoder, whole.decoder, whole.segmentation_head[0])


# From table 6 of the paper: channels and blocks of the four stages, channels of the head.
_MIX_TRANSFORMERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "mit_b0": ((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "mit_b1": ((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "mit_b2": ((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "mit_b3": ((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "mit_b4": ((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "mit_b5": ((64, 128, 320, 512), (3, 6, 40, 3), 768),
}


class SegFormer(EncoderDecoder):
    """SegFormer's head on any backbone; see :func:`segformer`."""


class SegFormerMiT(Network):
    """SegFormer-B0 to B5 from transformers; see :func:`segformer`."""

    def __init__(self, num_classes: int, *, backbone: str, pretrained: bool, decoder_channels: int | None) -> None:
        super().__init__()
        sizes, depths, channels = _MIX_TRANSFORMERS[backbone]
        config = import_library("transformers", "SegformerConfig")(
            num_labels=num_classes,
            hidden_sizes=list(sizes),
            depths=list(depths),
            decoder_hidden_size=decoder_channels or channels,
        )
        self.network = import_library("transformers", "SegformerForSemanticSegmentation")(config)
        if pretrained:
            with building(backbone, pretrained):
                published = import_library("transformers", "SegformerModel")
                encoder = published.from_pretrained(f"nvidia/{backbone.replace('_', '-')}")
                self.network.segformer.load_state_dict(encoder.state_dict())

    @property
    def classifier(self) -> nn.Conv2d:  # type: ignore[override]
        return self.network.decode_head.classifier

    @explained
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, C, ceil(H/4), ceil(W/4))`` of normalised floating-point images ``(N, 3, H, W)``."""
        return self.network(images).logits
