"""Segmentation networks that the recipes train.

Each ends in a 1x1 convolution, its attribute ``classifier``, and returns the output of it: logits at low resolution,
before any upsampling. There Grad-CAM has a closed form; :func:`cawa_fast.cam.find_classifier` finds the layer.
``compact`` is built in; the others need ``pip install 'cawa_fast[models]'``.

With 19 classes, including the auxiliary head if there is one:

=============  =========  ==========  ======  ===========================================  =============================
model          backbone   parameters  stride  layer in front of the classifier             source
=============  =========  ==========  ======  ===========================================  =============================
compact        its own       493,859  4       ``fuse`` (48)                                this project
deeplabv3plus  resnet50   29,046,902  4       ``decoder`` (256)                            Chen et al., ECCV 2018
deeplabv3plus  resnet101  48,039,030  4       ``decoder`` (256)                            Chen et al., ECCV 2018
ocrnet         resnet50   38,869,606  8       ``context`` (512)                            Yuan et al., ECCV 2020
ocrnet         hrnet_w48  70,371,446  4       ``context`` (512)                            Yuan et al., ECCV 2020
segformer      mit_b0      3,719,027  4       ``network.decode_head.dropout`` (256)        Xie et al., NeurIPS 2021
segformer      mit_b5     84,607,955  4       ``network.decode_head.dropout`` (768)        Xie et al., NeurIPS 2021
upernet        resnet50   66,403,686  4       ``decoder`` (512)                            Xiao et al., ECCV 2018
=============  =========  ==========  ======  ===========================================  =============================

Backbones have their names in segmentation_models_pytorch, which includes torchvision's, or in timm;
:func:`backbone_names` lists them. Pretrained backbones expect images normalised by ImageNet's mean and deviation, as
:func:`cawa_fast.recipes.training.loaders.normalize_images` does; the few that were trained with other constants adapt.

In training, networks with an auxiliary head keep its logits of the last forward pass as ``auxiliary_logits``:

>>> def objective(model, criterion, images, labels):
...     loss = criterion(model(images), labels)
...     if (auxiliary := getattr(model, "auxiliary_logits", None)) is not None:
...         loss = loss + model.auxiliary_factor * criterion(auxiliary, labels)
...     return loss
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .backbones import backbone_names
from .compact import CompactNet
from .network import Network
from .ocrnet import OCRNet
from .standard import DeepLabV3Plus, UPerNet, segformer

__all__ = ["MODELS", "WITH_AUXILIARY", "CompactNet", "Network", "backbone_names", "build_model"]


def _compact(num_classes: int, *, backbone: str | None = None, pretrained: bool = False, **kwargs: Any) -> CompactNet:
    if backbone is not None or pretrained:
        raise ValueError(
            f"model 'compact' has a backbone of its own and no pretrained weights, got backbone={backbone!r} and "
            f"pretrained={pretrained}; leave them out, or choose another model"
        )
    return CompactNet(num_classes, **kwargs)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "compact": _compact,
    "deeplabv3plus": DeepLabV3Plus,
    "ocrnet": OCRNet,
    "segformer": segformer,
    "upernet": UPerNet,
}
"""Functions that build a network from ``num_classes`` and the model's own keywords, by name."""

WITH_AUXILIARY = frozenset({"deeplabv3plus", "ocrnet", "upernet"})
"""Models that take ``auxiliary``, the factor of an auxiliary head's loss."""


def build_model(name: str, num_classes: int, **kwargs: Any) -> nn.Module:
    """Build a network.

    Args:
        name: a key of :data:`MODELS`.
        num_classes: C >= 1.
        **kwargs: keywords of the model, such as ``backbone``, ``pretrained`` (by default False) and ``auxiliary``.

    Returns:
        A module that takes normalised floating-point images (N, 3, H, W) and returns logits (N, C, h, w). Its last
        layer, ``classifier``, is a 1x1 convolution.

    Raises:
        ValueError: there is no such model or backbone, or an argument is outside its range.
        ImportError: a library is missing; the message says how to install it.
        OSError: pretrained weights cannot be downloaded.

    >>> import torch
    >>> model = build_model("compact", num_classes=10)
    >>> model(torch.zeros(2, 3, 96, 190)).shape
    torch.Size([2, 10, 24, 48])
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r} is unknown; choose one of {', '.join(sorted(MODELS))}")
    return MODELS[name](
        num_classes, **{key: value for key, value in kwargs.items() if (key, value) != ("backbone", None)}
    )
