"""Backbones by name, pretrained weights, and error messages that say what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from cawa_fast.cli import main
from cawa_fast.recipes.models import MODELS, backbone_names, build_model
from cawa_fast.recipes.models.backbones import find_backbone
from cawa_fast.recipes.models.libraries import import_library, without_source_tree
from tests.support.networks import PAPER, images, small

pytestmark = pytest.mark.usefixtures("reference_libraries")

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------------------------------------------ any backbone


@pytest.mark.parametrize(
    ("name", "backbone", "stride"),
    [
        ("deeplabv3plus", "mobilenet_v2", 4),
        ("deeplabv3plus", "tu-regnety_002", 4),
        ("deeplabv3plus", "convnext_atto", 4),  # timm's, without the prefix
        ("upernet", "swin_tiny_patch4_window7_224", 4),  # of another size than it was trained with
        ("upernet", "mit_b0", 4),
        ("segformer", "resnet18", 4),
        ("segformer", "pvt_v2_b0", 4),
        ("ocrnet", "efficientnet-b0", 8),
        ("ocrnet", "mit_b0", 4),
        ("ocrnet", "tu-pvt_v2_b0", 4),
    ],
)
def test_backbones_of_all_kinds(name: str, backbone: str, stride: int) -> None:
    model = build_model(name, 3, backbone=backbone)
    logits = model(images())
    assert logits.shape == (2, 3, 64 // stride, 96 // stride)
    logits.square().mean().backward()
    encoder = [part.grad for part in model.encoder.parameters()]
    assert encoder[0].abs().max() > 0
    # timm's feature networks may keep a last layer that no stage uses
    assert sum(grad is not None for grad in encoder) > 0.9 * len(encoder)


def test_hrnet_gives_ocrnet_its_four_resolutions() -> None:
    model = build_model("ocrnet", 19, backbone="hrnet_w48")
    assert model.encoder.out_channels[2:] == [48, 96, 192, 384]
    assert model.pixels[0].in_channels == 720
    # the authors' count for HRNet-W48 with OCR: 70.37 million
    assert sum(part.numel() for part in model.parameters()) / 1e6 == pytest.approx(70.37, abs=0.005)


def test_names_are_resolved() -> None:
    assert find_backbone("resnet50", False) == ("resnet50", None, {})
    assert find_backbone("resnet50", True) == ("resnet50", "imagenet", {})
    assert find_backbone("tu-resnet50", True) == ("tu-resnet50", True, {})  # timm's own weights
    assert find_backbone("convnext_tiny", False) == ("tu-convnext_tiny", None, {})
    assert find_backbone("resnext101_32x16d", True).weights == "instagram"  # its only weights
    names = backbone_names()
    assert names == sorted(set(names))
    assert {"resnet50", "mit_b0", "tu-resnet50", "tu-hrnet_w48"} <= set(names)
    assert not any(name.startswith("timm-") for name in names)  # deprecated names


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("name", PAPER)
def test_an_unknown_backbone_names_the_nearest_and_the_list(name: str) -> None:
    with pytest.raises(ValueError, match=r"backbone='resnet5O' is unknown\. Did you mean .*resnet50.*backbone_names"):
        build_model(name, 3, backbone="resnet5O")
    with pytest.raises(ValueError, match=r"backbone='qqqqqqqqqqq' is unknown\. All names: python"):
        build_model(name, 3, backbone="qqqqqqqqqqq")


def test_the_nearest_differ_only_in_how_they_are_written() -> None:
    with pytest.raises(ValueError, match=r"Did you mean mit_b0"):
        build_model("segformer", 3, backbone="MiT-B0")
    with pytest.raises(ValueError, match=r"Did you mean tu-convnext_tiny"):
        build_model("upernet", 3, backbone="ConvNeXt-Tiny")


@pytest.mark.slow
def test_the_command_in_the_message_lists_the_names() -> None:
    with pytest.raises(ValueError) as caught:
        build_model("upernet", 3, backbone="resnt")
    command = str(caught.value).split('python -c "')[1].rstrip('"')
    program = f"from bench.libraries import import_torchvision; import_torchvision()\n{command}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == backbone_names()


@pytest.mark.parametrize("backbone", ["vgg11", "densenet121", "tu-swin_tiny_patch4_window7_224", "tu-hrnet_w18_small"])
def test_a_backbone_that_cannot_be_dilated(backbone: str) -> None:
    with pytest.raises(ValueError, match=rf"backbone='{backbone}' cannot be dilated to stride 16 .*'upernet'"):
        build_model("deeplabv3plus", 3, backbone=backbone)


@pytest.mark.parametrize("name", PAPER)
def test_a_backbone_without_stages(name: str) -> None:
    with pytest.raises(ValueError, match=r"backbone='vit_tiny_patch16_224' has no stages of strides 4, 8, 16 and 32"):
        build_model(name, 3, backbone="vit_tiny_patch16_224")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("classes", [0, -1, 2.0, "3"])
def test_classes_that_are_no_number(name: str, classes: Any) -> None:
    with pytest.raises(ValueError, match=f"num_classes={classes!r} must be an integer of at least 1"):
        build_model(name, classes)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deeplabv3plus", {"output_stride": 32}, "output_stride=32 must be 8 or 16"),
        ("deeplabv3plus", {"auxiliary": -0.1}, "auxiliary=-0.1 is the factor of a loss; it must be finite"),
        ("ocrnet", {"auxiliary": float("nan")}, "auxiliary=nan is the factor of a loss"),
        ("ocrnet", {"key_channels": 0}, "channels=512 and key_channels=0 must be at least 1"),
        ("compact", {"backbone": "resnet18"}, "model 'compact' has a backbone of its own.*backbone='resnet18'"),
        ("compact", {"pretrained": True}, "model 'compact' .* no pretrained weights.*pretrained=True"),
        ("upernet", {"backbone": "crossvit_9_240", "pretrained": False}, "has no stages"),
    ],
)
def test_arguments_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, 3, **options)


@pytest.mark.parametrize("name", ["compact", "ocrnet", "segformer"])
def test_images_of_the_wrong_kind(name: str) -> None:
    model = small(name)
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\), got \(2, 1, 64, 96\)"):
        model(torch.zeros(2, 1, 64, 96))
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\), got \(3, 64, 96\)"):
        model(torch.zeros(3, 64, 96))
    with pytest.raises(ValueError, match=r"floating point and normalised, got torch.uint8"):
        model(torch.zeros(2, 3, 64, 96, dtype=torch.uint8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backbone", "size", "multiple", "example"),
    [
        ("ocrnet", "tu-hrnet_w18_small", (67, 45), 32, "96x64"),
        ("ocrnet", "tu-hrnet_w18_small", (96, 112), 32, "96x128"),
        ("ocrnet", "tu-hrnet_w18_small", (60, 60), 32, "64x64"),  # 64, the next multiple of 8, is also a multiple of 32
        ("upernet", "swin_tiny_patch4_window7_224", (67, 45), 4, "68x48"),
        ("segformer", "mit_b0", (16, 96), 32, "32x96"),  # its attention reduces keys and values eightfold
        ("segformer", "maxvit_nano_rw_256", (128, 256), 256, "256x256"),
    ],
)
def test_a_size_that_does_not_fit_is_named_with_one_that_does(
    name: str, backbone: str, size: tuple[int, int], multiple: int, example: str
) -> None:
    model = build_model(name, 3, backbone=backbone)
    message = rf"cannot take images of {size[0]}x{size[1]} \(.+\)\. Multiples of {multiple} fit, e\.g\. {example}:"
    with pytest.raises(ValueError, match=message):
        model.train()(images(2, *size))
    assert all(module.training for module in model.modules())
    if multiple == 256:  # its tries take seconds, and show the same in the other mode
        return
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    with pytest.raises(ValueError, match=message):
        model.eval()(images(1, *size))
    assert not model.training
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())
    with torch.no_grad():
        assert model(images(1, *map(int, example.split("x")))).isfinite().all()


@pytest.mark.parametrize("name", ["deeplabv3plus", "upernet"])
def test_a_batch_of_one_image_says_the_way_out(name: str) -> None:
    model = small(name).train()
    with pytest.raises(ValueError, match=r"cannot train on a batch of 1 image of 64x96.*batches of at least 2"):
        model(images(1))
    assert model(images(2)).isfinite().all()
    assert model.eval()(images(1)).isfinite().all()


def test_batches_of_one_image_where_nothing_is_pooled_to_one_position() -> None:
    for name in ("compact", "ocrnet", "segformer"):
        assert small(name).train()(images(1)).isfinite().all()
    with pytest.raises(ValueError, match=r"CompactNet cannot train on a batch of 1 image of 16x16"):
        small("compact").train()(images(1, 16, 16))


def test_other_errors_are_left_as_they_are() -> None:
    model = small("deeplabv3plus").eval()
    with pytest.raises(RuntimeError, match=r"Double|Float"):
        model(images().double())


# -------------------------------------------------------------------------------------------------- pretrained weights


def test_pretrained_weights_of_smp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import safetensors.torch
    import segmentation_models_pytorch as smp

    torch.manual_seed(7)
    published = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
    safetensors.torch.save_file(published, tmp_path / "model.safetensors")
    asked = []

    def download(repo_id: str, filename: str, revision: str) -> str:
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", download)
    for name in ("deeplabv3plus", "upernet", "ocrnet"):
        model = build_model(name, 3, backbone="resnet18", pretrained=True)
        assert all(torch.equal(value, published[key]) for key, value in model.encoder.state_dict().items())
    assert ("smp-hub/resnet18.imagenet", "model.safetensors") in asked
    asked.clear()
    build_model("upernet", 3, backbone="resnet18")
    assert not asked


def test_pretrained_weights_of_segformer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The published checkpoint is an image classifier; only its encoder is loaded."""
    SegformerModel = import_library("transformers", "SegformerModel")
    SegformerConfig = import_library("transformers", "SegformerConfig")
    SegformerForImageClassification = import_library("transformers", "SegformerForImageClassification")

    torch.manual_seed(7)
    published = SegformerForImageClassification(SegformerConfig())
    published.save_pretrained(tmp_path)
    original, asked = SegformerModel.from_pretrained, []

    def from_pretrained(name: str) -> Any:
        asked.append(name)
        return original(tmp_path)

    monkeypatch.setattr(SegformerModel, "from_pretrained", from_pretrained)
    model = build_model("segformer", 3, pretrained=True)
    assert asked == ["nvidia/mit-b0"]
    expected = published.segformer.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.network.segformer.state_dict().items())


@pytest.mark.parametrize(("name", "backbone"), [("upernet", "resnet18"), ("segformer", "mit_b0")])
def test_weights_that_cannot_be_downloaded(name: str, backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import_library("transformers", "SegformerModel")
    import_library("segmentation_models_pytorch")
    from huggingface_hub.errors import LocalEntryNotFoundError

    def refuse(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("no way there\nand more")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", refuse)
    monkeypatch.setattr("transformers.SegformerModel.from_pretrained", refuse)
    with pytest.raises(
        OSError, match=rf"weights of backbone='{backbone}' cannot be downloaded .*no way there.*--no-pretr"
    ):
        build_model(name, 3, backbone=backbone, pretrained=True)


def test_backbones_that_nobody_trained() -> None:
    with pytest.raises(ValueError, match=r"backbone='convnextv2_small' has no pretrained weights; choose another"):
        build_model("upernet", 3, backbone="convnextv2_small", pretrained=True)


# ---------------------------------------------------------------------------------------------------------- libraries


@pytest.mark.parametrize(
    ("name", "missing"), [(name, "segmentation_models_pytorch") for name in PAPER] + [("segformer", "transformers")]
)
def test_a_missing_extra_is_named(name: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    backbone = "mit_b0" if missing == "transformers" else "resnet18"
    with pytest.raises(ImportError, match=rf"{missing} is not installed.*pip install 'cawa_fast\[models\]'"):
        build_model(name, 3, backbone=backbone)
    build_model("compact", 3)


def test_a_torchvision_of_another_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("cawa_fast.recipes.models.libraries.importlib.import_module", fail)
    with pytest.raises(
        ImportError,
        match=r"torchvision was built for another version of PyTorch than .*torchvision::nms.*; install the",
    ):
        build_model("upernet", 3)
    shown = CliRunner().invoke(main, ["train", "--model", "upernet", "--run-dir", str(tmp_path / "run")])
    assert shown.exit_code == 1
    assert "Error: torchvision was built for another version of PyTorch than" in shown.output


@pytest.mark.slow
def test_the_folder_kernels_is_not_in_the_way_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs started in the repository have its top folder first in the import path."""
    for entry in ("", str(ROOT), "."):
        monkeypatch.setattr(sys, "path", [entry, "/somewhere/else"])
        monkeypatch.chdir(ROOT)
        with without_source_tree():
            assert sys.path == ["/somewhere/else"]
        assert sys.path == [entry, "/somewhere/else"]
    program = (
        "from bench.libraries import import_torchvision; import_torchvision()\n"
        "import copy, sys, torch, cawa_fast\n"
        "from cawa_fast.recipes.models import build_model\n"
        "model = copy.deepcopy(build_model('segformer', 3))\n"
        "print(tuple(model(torch.zeros(2, 3, 32, 32)).shape), sys.path[0] == '')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(2, 3, 8, 8) True"]
