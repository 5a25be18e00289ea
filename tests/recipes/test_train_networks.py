"""Training runs of networks with backbones: auxiliary losses, resuming, reporting, and sizes that do not fit."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cawa_fast.recipes.config import TrainConfig
from cawa_fast.recipes.runs.folder import RunFolder
from cawa_fast.recipes.training.trainer import Trainer
from tests.support.tiny_runs import TINY, Silent, arguments, assert_same_run, camvid_with_void, invoke, run

pytestmark = pytest.mark.usefixtures("reference_libraries")

DEEPLAB = replace(TINY, model="deeplabv3plus", backbone="resnet18", epochs=1)
PRETRAINED = "segmentation_models_pytorch.encoders.hf_hub_download"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["deeplabv3plus", "ocrnet", "upernet"])
def test_the_auxiliary_loss_is_trained_with_by_its_factor_and_not_recorded(tmp_path: Path, model: str) -> None:
    """After one step without momentum, the change of the auxiliary head is proportional to the factor."""
    config = replace(DEEPLAB, model=model, batch_size=8, momentum=0.0, weight_decay=0.0, weighting="uniform")
    moved, losses = {}, {}
    for factor in (0.2, 0.4):
        trainer = Trainer(replace(config, auxiliary=factor), RunFolder(tmp_path / str(factor)), Silent())
        before = trainer.model.auxiliary[-1].bias.detach().clone()
        (record,) = trainer.fit()
        losses[factor] = record["train_loss"]
        moved[factor] = trainer.model.auxiliary[-1].bias.detach() - before
    assert moved[0.2].abs().max() > 0
    assert losses[0.2] == losses[0.4]
    if model != "ocrnet":  # in OCRNet the regions also learn from the main loss
        torch.testing.assert_close(moved[0.4], 2 * moved[0.2], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("model", ["segformer", "ocrnet"])
def test_the_other_networks_train(tmp_path: Path, model: str) -> None:
    backbone = None if model == "segformer" else "mobilenet_v2"
    config = replace(TINY, model=model, backbone=backbone)
    records = run(tmp_path, config)
    assert [record["epoch"] for record in records] == [1, 2]
    assert records[1]["weight"] != records[0]["weight"]
    assert RunFolder(tmp_path).read_config() == config


@pytest.mark.slow
def test_a_stopped_run_continues_to_the_same_bits_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch
    import segmentation_models_pytorch as smp

    torch.manual_seed(7)
    published = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
    safetensors.torch.save_file(published, tmp_path / "model.safetensors")
    config = replace(DEEPLAB, epochs=3, pretrained=True, auxiliary=0.3)

    class Impatient(Silent):
        def epoch_done(self, record: dict[str, Any]) -> None:
            if record["epoch"] == 2:
                raise KeyboardInterrupt

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("downloaded again")

    with monkeypatch.context() as patch:
        patch.setattr(PRETRAINED, lambda repo_id, filename, revision: str(tmp_path / filename))
        run(tmp_path / "whole", config)
        trainer = Trainer(config, RunFolder(tmp_path / "torn"), Impatient())
        first = trainer.model.encoder.conv1.weight.detach()
        assert torch.equal(first.contiguous(), published["conv1.weight"])
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
    monkeypatch.setattr(PRETRAINED, refuse)
    result = invoke("train", "--resume", "--run-dir", str(tmp_path / "torn"), "--no-tables")
    assert result.exit_code == 0, result.output
    assert_same_run(tmp_path / "whole", tmp_path / "torn")
    again = invoke("train", "--resume", "--run-dir", str(tmp_path / "torn"), "--backbone", "resnet18", "--no-tables")
    assert again.exit_code == 0, again.output
    refused = invoke("train", "--resume", "--run-dir", str(tmp_path / "torn"), "--backbone", "resnet34")
    assert "--backbone is 'resnet34', but the run" in " ".join(refused.output.split())


@pytest.mark.slow
def test_its_report_has_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report builds the network from the settings, with its backbone and head, and downloads nothing."""
    run(tmp_path / "a", replace(DEEPLAB, auxiliary=0.0))
    config = (tmp_path / "a" / "config.json").read_text()
    (tmp_path / "a" / "config.json").write_text(config.replace('"pretrained": false', '"pretrained": true'))
    monkeypatch.setattr(PRETRAINED, None)
    out = tmp_path / "report.html"
    result = invoke("report", str(tmp_path / "a"), "--out", str(out), "--images", "1")
    assert result.exit_code == 0, result.output
    assert out.read_text().count("data:image") >= 3


# ------------------------------------------------------------------------------------------------- the command line


def test_the_settings_of_the_network_on_the_command_line(tmp_path: Path) -> None:
    config = replace(DEEPLAB, auxiliary=0.0, train_images=4, batch_size=2)
    result = invoke(*arguments(config, tmp_path / "r"))
    assert result.exit_code == 0, result.output
    assert RunFolder(tmp_path / "r").read_config() == config
    saved = torch.load(tmp_path / "r" / "latest.pt", weights_only=True)["model"]
    assert "encoder.layer4.1.conv2.weight" in saved
    assert not any(key.startswith("auxiliary") for key in saved)
    text = re.sub(r"\s+", " ", invoke("train", "--help").output)
    assert "--pretrained / --no-pretrained" in text
    assert "[compact|deeplabv3plus|ocrnet|segformer|upernet]" in text


def test_the_default_run_folder_tells_backbones_apart() -> None:
    assert str(DEEPLAB.default_run_dir()) == "runs/street-deeplabv3plus-resnet18-cawa-s0"
    assert str(TINY.default_run_dir()) == "runs/street-compact-cawa-s0"


def test_settings_from_before_there_were_backbones(tmp_path: Path) -> None:
    old = {key: value for key, value in TINY.as_dict().items() if key not in ("backbone", "pretrained", "auxiliary")}
    assert TrainConfig.from_dict(old) == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "compact"}, "model 'compact' has a backbone of its own"),
        ({"model": "compact", "backbone": None, "pretrained": True}, "model 'compact' .* no pretrained weights"),
        ({"auxiliary": -1.0}, "auxiliary must be finite and at least 0, got -1.0"),
        ({"backbone": "resnt18"}, "Did you mean resnet18"),
        ({"batch_size": 1}, "cannot train on a batch of 1 image of 48x96"),
        ({"model": "ocrnet", "backbone": "tu-hrnet_w18_small"}, "images of 48x96 .* Multiples of 32 fit, e.g. 64x96"),
        (
            {"model": "ocrnet", "backbone": "tu-hrnet_w18_small", "crop": (32, 64)},
            "images of 48x96 .* Multiples of 32 fit, e.g. 64x96",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_a_folder_is_made(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "r", replace(DEEPLAB, **change))
    assert not (tmp_path / "r").exists()


def test_validation_images_of_any_size_are_tried_too(tmp_path: Path) -> None:
    from PIL import Image

    camvid_with_void(tmp_path / "data", {"train": 8, "val": 8})
    for folder in ("val", "valannot"):
        path = tmp_path / "data" / folder / "4.png"
        Image.open(path).resize((50, 70), Image.Resampling.NEAREST).save(path)
    config = replace(
        DEEPLAB, dataset="camvid", root=str(tmp_path / "data"), resize=None, crop=(32, 64), train_images=None
    )
    assert len(run(tmp_path / "r", config)) == 1
    with pytest.raises(ValueError, match=r"cannot take images of 33x65 .* resize or pad the validation images"):
        run(tmp_path / "s", replace(config, model="ocrnet", backbone="tu-hrnet_w18_small"))


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    result = invoke(*arguments(DEEPLAB, tmp_path / "r"))
    assert result.exit_code == 1
    assert "pip install 'cawa_fast[models]'" in result.output
    assert not (tmp_path / "r").exists()
