"""Networks of well-known libraries: the layer that CAWA finds, or the error; the table in docs/networks.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cawa_fast as cf

pytestmark = [pytest.mark.usefixtures("reference_libraries"), pytest.mark.slow]

TABLE = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")


def smp(name: str, classes: int = 5, encoder: str = "resnet18") -> nn.Module:
    import segmentation_models_pytorch

    return getattr(segmentation_models_pytorch, name)(encoder, encoder_weights=None, classes=classes)


def torchvision(name: str, **options: Any) -> nn.Module:
    import torchvision.models.segmentation as models

    return getattr(models, name)(weights=None, weights_backbone=None, num_classes=5, **options)


def transformers(name: str, classes: int = 5, **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(num_labels=classes, **options)
    return getattr(transformers, f"{name}ForSemanticSegmentation")(config)


def upernet(classes: int) -> nn.Module:
    import transformers

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = transformers.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 128], out_features=stages)
    config = transformers.UperNetConfig(
        backbone_config=backbone, num_labels=classes, hidden_size=32, auxiliary_in_channels=64
    )
    return transformers.UperNetForSemanticSegmentation(config)


VIT = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 64}
BEIT = VIT | {"patch_size": 16, "out_indices": [1, 2, 3, 4]}
DPT = VIT | {
    "patch_size": 16,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [16, 32, 48, 48],
    "fusion_hidden_size": 32,
    "is_hybrid": False,
}

# the network, the number of classes, the layer, the align_corners that is found
THREE_BY_THREE: dict[str, tuple[Callable[[], nn.Module], int, str, bool]] = {
    **{
        f"smp {name}": (lambda name=name: smp(name), 5, "segmentation_head.0", name in ("PSPNet", "PAN"))
        for name in ("Unet", "UnetPlusPlus", "MAnet", "PSPNet", "PAN")
    },
    "smp Unet, SE encoder": (lambda: smp("Unet", 16, "se_resnet50"), 16, "segmentation_head.0", False),
    "smp MAnet, C = 16": (lambda: smp("MAnet", 16), 16, "segmentation_head.0", False),
    "smp PSPNet, C = 32": (lambda: smp("PSPNet", 32), 32, "segmentation_head.0", True),
}
TAKEN: dict[str, tuple[Callable[[], nn.Module], int, str, bool]] = {
    **{
        f"smp {name}": (lambda name=name: smp(name), 5, "segmentation_head.0", True)
        for name in ("DeepLabV3", "DeepLabV3Plus", "FPN", "UPerNet", "Segformer")
    },
    "smp Linknet": (lambda: smp("Linknet"), 5, "segmentation_head.0", False),
    **THREE_BY_THREE,
    "smp DPT": (lambda: smp("DPT", encoder="tu-vit_tiny_patch16_224"), 5, "segmentation_head.head.4", True),
    "smp FPN, SE encoder": (lambda: smp("FPN", 16, "se_resnet50"), 16, "segmentation_head.0", True),
    "torchvision deeplabv3": (lambda: torchvision("deeplabv3_resnet50", aux_loss=True), 5, "classifier.4", False),
    "torchvision fcn": (lambda: torchvision("fcn_resnet50", aux_loss=True), 5, "classifier.4", False),
    "SegFormer": (lambda: transformers("Segformer"), 5, "decode_head.classifier", False),
    "MobileViT": (lambda: transformers("MobileViT"), 5, "segmentation_head.classifier.convolution", False),
    "MobileNetV2": (lambda: transformers("MobileNetV2"), 5, "segmentation_head.classifier.convolution", False),
    "UperNet": (lambda: upernet(5), 5, "decode_head.classifier", False),
    "UperNet, as many hidden channels": (lambda: upernet(32), 32, "decode_head.classifier", False),
    "BEiT": (lambda: transformers("Beit", **BEIT), 5, "decode_head.classifier", False),
    "Data2Vec": (lambda: transformers("Data2VecVision", **BEIT), 5, "decode_head.classifier", False),
    "DPT": (lambda: transformers("DPT", **DPT), 5, "head.head.4", True),
}

REFUSED: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "torchvision lraspp": (lambda: torchvision("lraspp_mobilenet_v3_large"), 5, r"low_classifier: .*% off"),
}


def batch(name: str, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    size = {"smp DPT": 224, "smp PAN": 256}.get(name, 64)
    return torch.randn(2, 3, size, size), torch.randint(0, classes, (2, size, size))


@pytest.mark.parametrize("name", TAKEN)
def test_the_layer_is_found(name: str) -> None:
    make, classes, layer, align_corners = TAKEN[name]
    model = make()
    images, labels = batch(name, classes)
    cawa = cf.CAWA(model, classes)
    logits = cf.cam.find_logits(model.train()(images))
    loss = cawa.loss(labels)
    resized = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(loss, F.cross_entropy(resized, labels), rtol=1e-5, atol=2e-6)
    with torch.no_grad():
        model.eval()(images)
        cawa.observe(labels)
    cawa.step()
    assert f"'{layer}'" in cawa.explain()
    assert cawa.weights.align_corners is align_corners
    assert name.split()[-1].split(",")[0] in TABLE or "SE encoder" in name


@pytest.mark.parametrize("name", THREE_BY_THREE)
def test_maps_of_3x3_heads_are_those_of_autograd(name: str) -> None:
    """At the output of the decoder, for the sum of what the network returns, also where it is resized."""
    make, classes, _, _ = THREE_BY_THREE[name]
    model = make().double().eval()
    images = batch(name, classes)[0].double()
    maps = []
    for target_layer in (None, "decoder"):
        with cf.GradCAM(model, target_layer, num_classes=classes) as cam:
            model(images)
            maps.append(cam())
        maps[-1] /= maps[-1].amax((-2, -1), keepdim=True).clamp_min(1e-30)
    torch.testing.assert_close(*maps, rtol=0, atol=1e-12)
    assert maps[0].any()


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_names_the_way_out(name: str) -> None:
    make, classes, message = REFUSED[name]
    model = make()
    images, labels = batch(name, classes)
    with pytest.raises(ValueError, match=message) as error:  # noqa: PT012 (either of two lines raises)
        cawa = cf.CAWA(model, classes)
        model(images)
        cawa.loss(labels)
    assert error.match(rf"cawa = CAWA\(None, {classes}\), cawa.loss\(labels, logits=z\)")
    free = cf.CAWA(None, classes)
    output = cf.cam.find_logits(model(images))
    torch.testing.assert_close(free.loss(labels, logits=output), F.cross_entropy(output, labels))
