"""A network of each framework and its two losses. Each function imports its framework."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

import cawa_fast as cf

from ..cases import IGNORE
from ..libraries import import_mmseg, import_torchvision, look_in_folder


class Images(NamedTuple):
    """A batch: images ``(N, 3, H, W)`` in ``[0, 1]``, labels ``(N, H, W)`` as int64 and as uint8."""

    images: Tensor
    labels: Tensor
    bytes: Tensor


Loss = Callable[[], Tensor]
Built = tuple[nn.Module, Loss]


def resized_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """What people write: logits at the size of the labels."""
    return F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear"), labels, ignore_index=IGNORE)


def _segformer_b0(classes: int) -> Any:
    import_torchvision()
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=classes, semantic_loss_ignore_index=IGNORE))


def transformers(ours: bool, classes: int, batch: Images) -> Built:
    """SegFormer-B0, whose own loss is that of ``labels=``."""
    network = _segformer_b0(classes)
    if not ours:
        return network, lambda: network(pixel_values=batch.images, labels=batch.labels).loss
    cawa = cf.CAWA(network, classes, ignore_index=IGNORE)

    def loss() -> Tensor:
        network(pixel_values=batch.images)
        return cawa.loss(batch.bytes)

    return network, loss


def plain(ours: bool, classes: int, batch: Images) -> Built:
    """The same network where the loss is written by hand, as in Lightning and accelerate."""
    if ours:
        return transformers(True, classes, batch)
    network = _segformer_b0(classes)
    return network, lambda: resized_cross_entropy(network(pixel_values=batch.images).logits, batch.labels)


def mmseg(ours: bool, classes: int, batch: Images) -> Built:
    """SegFormer-B0 of MMSegmentation, from a config as its own."""
    look_in_folder("mmseg")
    import_mmseg()
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    from cawa_fast.integrations import _mmseg_loss

    own = {"type": "mmseg.CrossEntropyLoss", "avg_non_ignore": True}
    head: dict[str, Any] = {"type": "mmseg.SegformerHead", "in_channels": [32, 64, 160, 256], "in_index": [0, 1, 2, 3]}
    head |= {"channels": 256, "num_classes": classes, "dropout_ratio": 0.1, "norm_cfg": {"type": "BN"}}
    head["loss_decode"] = {"type": "mmseg.CawaCrossEntropy"} if ours else own
    backbone: dict[str, Any] = {"type": "mmseg.MixVisionTransformer", "embed_dims": 32, "num_layers": [2, 2, 2, 2]}
    backbone |= {"num_heads": [1, 2, 5, 8], "patch_sizes": [7, 3, 3, 3], "sr_ratios": [8, 4, 2, 1], "mlp_ratio": 4}
    config = {"type": "mmseg.EncoderDecoder", "backbone": backbone, "decode_head": head}
    network = MODELS.build({**config, "train_cfg": {}, "test_cfg": {"mode": "whole"}})
    if ours:
        _mmseg_loss.connect(network, cf.CAWA(None, classes, ignore_index=IGNORE))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in batch.labels]
    return network, lambda: network.loss(batch.images, samples)["decode.loss_ce"]


def ultralytics(ours: bool, classes: int, batch: Images) -> Built:
    """YOLO26n-sem with cross-entropy, Dice and auxiliary cross-entropy."""
    look_in_folder("ultralytics")
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())
    os.environ.setdefault("YOLO_OFFLINE", "true")
    import_torchvision()
    from ultralytics.nn.tasks import SemanticSegmentationModel

    from cawa_fast.integrations import ultralytics as adapter

    network = SemanticSegmentationModel("yolo26n-sem.yaml", nc=classes, verbose=False)
    network.args = None
    if ours:
        network.criterion = adapter.Criterion(cf.CAWA(None, classes, ignore_index=IGNORE))
    data = {"img": batch.images, "semantic_mask": batch.bytes}
    return network, lambda: network(data)[0]


def smp(ours: bool, classes: int, batch: Images) -> Built:
    """DeepLabV3+ of segmentation_models_pytorch, whose output has the size of the image."""
    import_torchvision()
    import segmentation_models_pytorch as smp

    network = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=classes)
    if not ours:
        return network, lambda: F.cross_entropy(network(batch.images), batch.labels, ignore_index=IGNORE)
    return network, _listening(network, classes, batch)


def torchvision(ours: bool, classes: int, batch: Images) -> Built:
    """DeepLabV3 of torchvision, whose output has the size of the image."""
    import_torchvision()
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    network = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes)
    if not ours:
        return network, lambda: F.cross_entropy(network(batch.images)["out"], batch.labels, ignore_index=IGNORE)
    return network, _listening(network, classes, batch)


def monai(ours: bool, classes: int, batch: Images) -> Built:
    """MONAI's U-Net in two dimensions, whose logits have the size of the image."""
    with contextlib.suppress(ImportError):
        import_torchvision()
    from monai.networks.nets import UNet

    network = UNet(2, 3, classes, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2)
    if not ours:
        return network, lambda: F.cross_entropy(network(batch.images), batch.labels, ignore_index=IGNORE)
    cawa = cf.CAWA(None, classes, ignore_index=IGNORE)
    return network, lambda: cawa.loss(batch.bytes, logits=network(batch.images))


def _listening(network: nn.Module, classes: int, batch: Images) -> Loss:
    cawa = cf.CAWA(network, classes, ignore_index=IGNORE)

    def loss() -> Tensor:
        network(batch.images)
        return cawa.loss(batch.bytes)

    return loss
