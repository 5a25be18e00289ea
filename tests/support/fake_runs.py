"""Fake run folders with random numbers, fake ablations, and a parser for report pages."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch

from cawa_fast.recipes.ablation.results import with_statistics
from cawa_fast.recipes.ablation.rows import GROUPS
from cawa_fast.recipes.config import TrainConfig
from cawa_fast.recipes.datasets import build_dataset
from cawa_fast.recipes.models import build_model

ABSENT = 9  # the class that the validation set of fake runs does not have


def fake_run(folder: Path, weighting: str, *, epochs: int = 4, seed: int = 0, checkpoint: bool = True) -> Path:
    """A run folder as training writes it, with random numbers and an untrained network."""
    generator = torch.Generator().manual_seed(seed + len(weighting))
    data = build_dataset("street", split="val", length=6)
    classes = data.num_classes
    folder.mkdir(parents=True)
    config = {"dataset": "street", "root": None, "resize": None, "val_images": 6}
    config |= {"model": "compact", "weighting": weighting}
    config |= {"epochs": epochs, "batch_size": 2, "crop": None, "lr": 0.01, "seed": seed, "device": "cpu", "threads": 1}
    config |= {"delta": 0.9, "tau": 0.5, "w_min": 0.1, "w_max": 20.0}
    config |= {"source": "cam", "ratio": "smoothed", "normalize": "max", "classes": "present"}
    (folder / "config.json").write_text(json.dumps(config))
    description = {
        "class_names": list(data.class_names),
        "palette": [list(colour) for colour in data.palette],
        "ignore_index": 255,
        "train_pixels": [3000, 760, 3030, 1530, 1130, 440, 48, 11, 15, 7],
        "train_images": 20,
        "val_images": 6,
    }
    (folder / "dataset.json").write_text(json.dumps(description))

    def numbers(low: float, high: float, known: bool = True, absent: float | None = None) -> list[float | None]:
        values: list[float | None] = (low + (high - low) * torch.rand(classes, generator=generator)).tolist()
        values[ABSENT] = absent
        return values if known else [None] * classes

    cawa = weighting == "cawa"
    with (folder / "metrics.jsonl").open("w") as file:
        for epoch in range(1, epochs + 1):
            iou = numbers(0.5 * epoch / epochs, 0.5 * epoch / epochs + 0.3)
            known = [value for value in iou if value is not None]
            seconds = {"data": 0.5, "forward": 1.0, "loss": 0.2, "backward": 1.5, "optimizer": 0.1, "val_forward": 0.4}
            seconds |= {"observe": 0.03, "step": 0.01} if cawa else {}
            seconds["total"] = sum(seconds.values()) + 0.1
            record = {"epoch": epoch, "train_loss": 1 / epoch, "lr": 0.01, "miou": sum(known) / len(known), "iou": iou}
            record |= {
                "mean_accuracy": 0.5,
                "pixel_accuracy": 0.6 + 0.2 * epoch / epochs,
                "accuracy": numbers(0.3, 0.9),
            }
            record |= {"csps": numbers(0.2, 0.8, cawa), "weight": numbers(0.3, 2.5, absent=1.0)}
            record |= {"base_weight": numbers(1, 9, cawa), "ratio_weight": numbers(0.9, 1.1, cawa), "seconds": seconds}
            record |= {"awa_overhead": 0.04 / (seconds["total"] - 0.04) if cawa else 0.0}
            file.write(json.dumps(record) + "\n")
    matrix = torch.randint(1, 50, (classes, classes), generator=generator) + 200 * torch.eye(classes, dtype=torch.long)
    matrix[ABSENT] = 0
    (folder / "confusion.json").write_text(json.dumps({"epoch": epochs, "matrix": matrix.tolist()}))
    if checkpoint:
        torch.manual_seed(seed)
        state = {"epoch": epochs, "model": build_model("compact", classes).state_dict()}
        torch.save(state, folder / "latest.pt")
        torch.save(state, folder / "best.pt")
    return folder


class Outline(HTMLParser):
    """Parses a page: its visible text, its pictures, its ids, and whether every element is closed."""

    _VOID = frozenset({"meta", "link", "img", "br", "path", "use", "rect"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("img", "svg"):
            self.pictures.append(dict(attrs))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self._VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def last_record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def entry(seed: int, folder: str, miou: float, spread: float = 0.0) -> dict[str, Any]:
    iou = [max(0.0, miou - 0.05 * k + 0.01 * seed) for k in range(10)]
    iou[ABSENT] = None
    values = {"epochs": 4, "miou": miou, "rare_iou": miou / 3, "pixel_accuracy": 0.8 + spread, "iou": iou}
    times = {"seconds_per_epoch": 3.0, "awa_share": 0.01}
    return {"seed": seed, "run": folder, "status": "done", "error": None, "dead": []} | values | times


def ablation(folder: Path) -> dict[str, Any]:
    """An ``ablation.json`` with baselines, a ladder and a sweep over two seeds; one run failed."""
    data = build_dataset("street", split="val", length=1)

    def row(name: str, group: str, settings: dict[str, Any], mious: tuple[float, float]) -> dict[str, Any]:
        done = [entry(seed, f"{name}-s{seed}", miou) for seed, miou in enumerate(mious)]
        return {"name": name, "group": group, "title": f"the {name}", "settings": settings, "runs": done}

    cawa = {"weighting": "cawa"}
    rows = [
        row("uniform", "rivals", {"weighting": "uniform"}, (0.401, 0.412)),
        row("log_frequency", "rivals", {"weighting": "log_frequency"}, (0.433, 0.441)),
        row("cawa", "rivals", cawa, (0.452, 0.463)),
        row("ladder-awa", "ladder", cawa | {"ratio": "smoothed"}, (0.444, 0.431)),
        *(row(f"delta={d:g}", "delta", cawa | {"delta": d}, (0.3 + d / 9, 0.31 + d / 9)) for d in (1.0, 0.0, 0.9)),
    ]
    rows[3]["runs"][1] = {"seed": 1, "run": "ladder-awa-s1", "status": "failed", "error": "no memory"}
    result = {
        "format": 1,
        "command": "cawa-fast ablate --rows <all>",
        "settings": TrainConfig().as_dict(),
        "versions": {},
        "epochs": 4,
        "seeds": [0, 1],
        "against": "uniform",
        "class_names": list(data.class_names),
        "train_pixels": [3000, 760, 3030, 1530, 1130, 440, 48, 11, 15, 7],
        "rare": {"part": 0.2, "classes": [6, 7, 8, 9]},
        "groups": {key: GROUPS[key] for key in ("rivals", "ladder", "delta")},
        "rows": with_statistics(rows, "uniform"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ablation.json").write_text(json.dumps(result))
    return result
