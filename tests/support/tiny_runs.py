"""Small training runs: settings, callbacks, the command line, and the comparison of two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner

from cawa_fast.cli import main
from cawa_fast.recipes.config import TrainConfig
from cawa_fast.recipes.runs.folder import RunFolder
from cawa_fast.recipes.training.trainer import Trainer

TINY = TrainConfig(
    epochs=2,
    train_images=8,
    val_images=4,
    batch_size=4,
    resize=(48, 96),
    threads=1,
    workers=0,
    lr=0.05,
    device="cpu",
    weighting="cawa",
    ratio="smoothed",  # makes a step depend on the step before, so that lost state is noticed
)


class Silent:
    """Callbacks that only count images."""

    def __init__(self) -> None:
        self.images = {"train": 0, "validate": 0}

    def prepare(self, what: str, done: int, total: int) -> None: ...

    def begin(self, config: TrainConfig, trainer: Trainer) -> None: ...

    def advance(self, phase: str, epoch: int, images: int) -> None:
        self.images[phase] += images

    def epoch_done(self, record: dict[str, Any]) -> None: ...


def run(path: Path, config: TrainConfig = TINY) -> list[dict[str, Any]]:
    return Trainer(config, RunFolder(path), Silent()).fit()


def arguments(config: TrainConfig, path: Path) -> list[str]:
    result = ["train", "--run-dir", str(path), "--no-tables"]
    for name, value in config.as_dict().items():
        if value is None:
            continue
        if isinstance(value, bool):
            result.append(f"--{'' if value else 'no-'}{name}")
            continue
        text = ("," if name == "scale" else "x").join(map(str, value)) if isinstance(value, tuple) else str(value)
        result += [f"--{name.replace('_', '-')}", text]
    return result


def without_times(path: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "awa_overhead")} for record in records]


def assert_same_run(a: Path, b: Path) -> None:
    assert without_times(a) == without_times(b)
    first, second = (torch.load(path / "latest.pt", weights_only=True) for path in (a, b))
    assert first["epoch"] == second["epoch"]
    for part in ("model", "weights"):
        assert first[part].keys() == second[part].keys()
        for name, tensor in first[part].items():
            assert torch.equal(tensor.nan_to_num(-1), second[part][name].nan_to_num(-1)), (part, name)


def invoke(*args: str) -> Any:
    return CliRunner().invoke(main, list(args))


def camvid_with_void(root: Path, labelled: dict[str, int]) -> None:
    """A CamVid tree with 8 images per split, of which the first ``labelled[split]`` have labelled pixels."""
    from PIL import Image

    for split, count in labelled.items():
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for index in range(8):
            Image.new("RGB", (64, 48), (30 * index, 90, 20)).save(root / split / f"{index}.png")
            Image.new("L", (64, 48), index if index < count else 11).save(root / f"{split}annot" / f"{index}.png")
