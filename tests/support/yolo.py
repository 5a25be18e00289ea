"""Drawn street scenes as Ultralytics reads them, and a short training of its smallest network."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from bench.libraries import import_torchvision
from tests.support.scenes import CLASSES, scenes

os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="ultralytics"))  # it writes settings when imported
os.environ.setdefault("YOLO_OFFLINE", "true")
import_torchvision()

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from ultralytics import YOLO

    from cawa_fast.integrations import ultralytics as integration

__all__ = ["YOLO", "dataset", "integration", "train"]

NETWORK = {
    "nc": CLASSES,
    "backbone": [[-1, 1, "Conv", [channels, 3, 2]] for channels in (8, 8, 16, 16, 16)],
    "head": [[[2, 3], 1, "SemanticSegment", ["nc"]]],
}
"""Five strided convolutions, with the heads at an eighth and a sixteenth."""


def dataset(folder: Path) -> str:
    """Six images for the training and five for the validation; returns the path of the YAML."""
    for split, pairs in (("train", scenes(6, (64, 64))), ("val", scenes(5, (64, 64)))):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number, (image, label) in enumerate(pairs):
            pixels = (image.permute(1, 2, 0) * 255).to(torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
            Image.fromarray(label.to(torch.uint8).numpy()).save(folder / "masks" / split / f"{number}.png")
    names = "".join(f"  {number}: class{number}\n" for number in range(CLASSES))
    text = f"path: {folder}\ntrain: images/train\nval: images/val\nmasks_dir: masks\nnames:\n{names}"
    (folder / "data.yaml").write_text(text)
    return str(folder / "data.yaml")


def train(folder: Path, trainer: Any = None, callback: Any = None, **options: Any) -> Any:
    """Train for two epochs; returns the trainer."""
    path = folder / "tiny-sem.yaml"
    path.write_text(yaml.safe_dump(NETWORK))
    data = folder / "data" / "data.yaml"
    model = YOLO(options.pop("model", str(path)), task="semantic")
    if callback is not None:
        callback.add_to(model)
    defaults: dict[str, Any] = {"data": str(data) if data.exists() else dataset(data.parent), "epochs": 2, "imgsz": 64}
    defaults |= {"batch": 2, "device": "cpu", "plots": False, "workers": 0, "mosaic": 0.0, "nbs": 2, "warmup_epochs": 0}
    defaults |= {"optimizer": "SGD", "lr0": 0.1, "verbose": False, "project": str(folder), "exist_ok": True}
    model.train(trainer=trainer, **defaults | options)
    return model.trainer
