"""CawaTrainer and CawaCallback of Ultralytics: losses, what is scored, checkpoints and errors."""

from __future__ import annotations

import csv
import doctest
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import cawa_fast as cf
from tests.support.frameworks import needs
from tests.support.scenes import CLASSES, scenes

needs("ultralytics", "ultralytics", "polars")

from tests.support.yolo import YOLO, integration, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

PIXELS = sum(int((labels != 255).sum()) for _, labels in scenes(5, (64, 64)))


def results(trainer: Any) -> list[dict[str, float]]:
    rows = csv.DictReader((trainer.save_dir / "results.csv").read_text().splitlines())
    return [{name: float(value) for name, value in row.items() if name != "time"} for row in rows]


def test_with_weights_of_1_the_loss_is_the_original(tmp_path: Path) -> None:
    """All items and the gradients; with and without auxiliary logits, labels of every dtype, and none at all."""
    model = train(tmp_path, epochs=1, fraction=0.4).model.train()
    generator = torch.Generator().manual_seed(0)
    labels = torch.stack([label for _, label in scenes(4, (64, 64))[1:]])
    for size, dtype in (((8, 8), torch.uint8), ((10, 8), torch.int64), ((64, 64), torch.int32)):
        for target in (labels, torch.full_like(labels, 255)):
            batch = {"semantic_mask": target.to(dtype)}
            logits = 3 * torch.randn(3, CLASSES, *size, generator=generator)
            auxiliary = torch.randn(3, CLASSES, 4, 4, generator=generator)
            for both in (True, False):
                found = []
                for criterion in (
                    model.init_criterion(),
                    integration.Criterion(cf.CAWA(None, CLASSES, ignore_index=255)),
                ):
                    leaves = [z.clone().requires_grad_() for z in (logits, auxiliary)]
                    total, items = criterion(tuple(leaves) if both else leaves[0], batch)
                    total.backward()
                    found.append([total, *items.values(), *(leaf.grad for leaf in leaves[: 1 + both])])
                    assert list(items) == ["ce_loss", "dice_loss", "aux_loss"]
                for theirs, ours in zip(*found, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-7)
    older = integration.Criterion(cf.CAWA(None, CLASSES, ignore_index=255), stacked=True)
    assert torch.equal(older(logits, batch)[1], torch.stack(list(items.values())))


def test_a_run_with_weights_of_1_is_the_original(tmp_path: Path) -> None:
    """Losses of training and validation, and the metrics, of both epochs: every digit of results.csv but the last."""

    class Off(integration.CawaTrainer):
        cawa_options = {"w_min": 1.0, "w_max": 1.0}  # noqa: RUF012

    plain, off = results(train(tmp_path, name="plain")), results(train(tmp_path, Off, name="off"))
    assert len(plain) == len(off) == 2
    for theirs, ours in zip(plain, off, strict=True):
        assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1.5e-5, rel=1e-5)
        assert {name: value for name, value in ours.items() if name not in theirs} == {
            f"cawa/weight/class{number}": 1.0 for number in range(CLASSES)
        }


def test_the_validated_network_is_scored(tmp_path: Path) -> None:
    """Weights of the maps at the classifier of the averaged network, 5 images once; the callback does the same."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    losses: list[float] = []
    expected = cf.AdaptiveClassWeights(CLASSES, ignore_index=255, delta=0.5)

    class Recorded(integration.CawaTrainer):
        cawa_options = {"delta": 0.5}  # noqa: RUF012

        def get_validator(self) -> Any:
            validator = super().get_validator()
            update, post = validator.update_metrics, validator.postprocess

            def postprocess(preds: torch.Tensor) -> torch.Tensor:
                self.seen = preds.clone()
                return post(preds)

            def update_metrics(preds: torch.Tensor, batch: dict[str, Any]) -> None:
                bias = self.ema.ema.model[-1].classifier[-1].bias
                if validator.training:
                    resized = F.interpolate(self.seen, (64, 64), mode="bilinear", align_corners=False)
                    losses.append(F.cross_entropy(resized, batch["semantic_mask"].long(), ignore_index=255).item())
                    seen.append(((self.seen - bias.view(-1, 1, 1)).relu(), batch["semantic_mask"]))
                update(preds, batch)

            validator.postprocess, validator.update_metrics = postprocess, update_metrics
            return validator

        def validate(self) -> Any:
            seen.clear()
            found = super().validate()
            for maps, labels in seen:
                expected.observe(maps, labels)
            expected.step()
            return found

    trainer = train(tmp_path, Recorded)
    weights = trainer.cawa.weights
    assert [sum(record["pixels"]) for record in weights.history] == [PIXELS] * 2
    assert weights.class_names == tuple(f"class{number}" for number in range(CLASSES))
    torch.testing.assert_close(weights.weight, expected.weight)
    assert (weights.weight - 1).abs().max() > 0.1
    last = results(trainer)[-1]
    assert last["val/ce_loss"] == pytest.approx(sum(losses[3:]) / 3, abs=2e-5)  # unweighted, with weights far from 1
    assert last["cawa/weight/class3"] == pytest.approx(weights.weight[3].item(), abs=1e-5)

    callback = integration.CawaCallback(delta=0.5)
    other = train(tmp_path, callback=callback, name="callback")
    assert callback.cawa is not None
    assert torch.equal(callback.cawa.weight, weights.weight)
    shared = results(other)[-1]
    assert shared == {name: last[name] for name in shared}


def test_a_resumed_run_goes_on_with_the_same_weights(tmp_path: Path) -> None:
    """From a checkpoint that loads without this package; one from before is refused."""
    whole = train(tmp_path, integration.CawaTrainer, save_period=1, epochs=3, name="whole")
    path = whole.wdir / "epoch1.pt"
    with zipfile.ZipFile(path) as file:
        assert not any(b"cawa_fast" in file.read(name) for name in file.namelist() if name.endswith(".pkl"))
    saved = torch.load(path, weights_only=False)["ema"].cawa
    begun: list[dict[str, torch.Tensor]] = []

    class Resumed(integration.CawaTrainer):
        def resume_training(self, ckpt: Any) -> None:
            super().resume_training(ckpt)
            begun.append({name: value.clone() for name, value in self.cawa.state_dict().items()})

    trainer = train(tmp_path, Resumed, model=str(path), resume=True)
    callback = integration.CawaCallback()
    train(tmp_path, callback=callback, model=str(path), resume=True)
    assert callback.cawa is not None
    assert begun[0].keys() == saved.keys()
    for name, value in saved.items():
        assert torch.equal(begun[0][name].float().nan_to_num(-1), value.float().nan_to_num(-1)), name
    for cawa in (trainer.cawa, callback.cawa):
        assert [record["step"] for record in cawa.weights.history] == [1, 2, 3]
        assert cawa.weights.history[:2] == whole.cawa.weights.history[:2]
    plain = train(tmp_path, save_period=1, name="plain").wdir / "epoch0.pt"
    with pytest.raises(ValueError, match="CawaTrainer: the checkpoint to resume from was made without CAWA"):
        train(tmp_path, integration.CawaTrainer, model=str(plain), resume=True)


def test_errors_name_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"CawaTrainer: cls_pw=0.5 computes constant class weights"):
        train(tmp_path, integration.CawaTrainer, cls_pw=0.5)
    with pytest.raises(TypeError, match="CawaCallback: dleta is no argument of CAWA"):
        integration.CawaCallback(dleta=1)

    class Other(integration.CawaTrainer):
        cawa_options = {"ignore_index": 0}  # noqa: RUF012

    with pytest.raises(ValueError, match="Other: ignore_index=0, but Ultralytics ignores label 255; leave it out"):
        train(tmp_path, Other)

    class Several:
        world_size = 2

    with pytest.raises(RuntimeError, match="CawaCallback: the validation has no event that all 2 processes see"):
        integration.CawaCallback().on_pretrain_routine_end(Several())
    one = (tmp_path / "data" / "data.yaml").read_text().split("  1:")[0]
    (tmp_path / "data" / "one.yaml").write_text(one)
    for split in ("train", "val"):
        (tmp_path / "data" / "masks" / f"{split}.cache").unlink()
        for path in (tmp_path / "data" / "masks" / split).iterdir():
            Image.new("L", (64, 64)).save(path)
    with pytest.raises(ValueError, match="CawaTrainer: the network has 1 class, for which there is nothing to weight"):
        train(tmp_path, integration.CawaTrainer, data=str(tmp_path / "data" / "one.yaml"))


def test_examples_in_docstrings() -> None:
    assert YOLO is not None
    assert doctest.testmod(integration).failed == 0
