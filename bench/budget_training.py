"""``python -m bench budget-training``: weights from a part of the validation set against weights from all of it.

Two trainings from the same seed: one observes every image, the other what its budget allows. While the first trains,
the counts of every image are kept; from them the weights of any number of samples are computed afterwards, of the same
networks: how far would the weights have been off?
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from torch import Tensor

from cawa_fast import AdaptiveClassWeights
from cawa_fast.recipes.config import TrainConfig
from cawa_fast.recipes.runs.folder import RunFolder
from cawa_fast.recipes.training.progress import TrainingDisplay
from cawa_fast.recipes.training.trainer import Trainer
from cawa_fast.sampling import ValidationSampler

from . import table

REPLAYS = 20
RATIO = "smoothed"  # it carries the errors of two steps: the harder case
OUT = table.ROOT / "bench" / "results" / "budget-training"


class _Recorder(Trainer):
    """Keeps tp, fp, fn of every validation image after every epoch, in the images' order, in the run's folder."""

    def _epoch(self, epoch: int) -> dict[str, Any]:
        weights, step = self.cawa.weights, self.cawa.step
        file = self.folder.path / "rows" / f"{epoch}.pt"

        def keeping(group: Any = None) -> Tensor:
            assert self.cawa._sampler is not None
            rows, order = weights._rows, self.cawa._sampler.draw()[0]
            assert rows is not None
            file.parent.mkdir(exist_ok=True)
            torch.save(torch.empty_like(rows).index_copy_(0, order, rows).to(torch.int32), file)
            return step(group)

        self.cawa.step = keeping  # type: ignore[method-assign]
        try:
            return super()._epoch(epoch)
        finally:
            self.cawa.step = step  # type: ignore[method-assign]


def replay(
    rows: Sequence[Tensor], presence: Tensor, sizes: Sequence[int], momentum: float, max_error: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Weights by step ``(steps, C)`` of the networks whose counts are ``rows``, and which classes were held.

    Args:
        rows: of each step tp, fp, fn of every image, ``(images, 3, C)``.
        presence: ``(images, C)`` bool.
        sizes: images of each step's sample; all of them: exact. 0: the step changes nothing.
        momentum, max_error: of :class:`cawa_fast.AdaptiveClassWeights`.
        seed: of the samples.
    """
    weights = AdaptiveClassWeights(rows[0].shape[2], ratio=RATIO, momentum=momentum, max_error=max_error)
    sampler = ValidationSampler(presence, len(presence), seed)
    found, held = [], []
    for step, size in zip(rows, sizes, strict=True):
        sampler.size = size
        drawn, probability = sampler.draw()
        weights.begin_sample(probability)
        weights._rows = step[drawn].long()
        weights.step()
        sampler.stepped((0, 0))
        found.append(weights.weight.clone())
        held.append(weights.held.clone())
    return torch.stack(found), torch.stack(held)


def compare(weights: Tensor, exact: Tensor, skip: int) -> dict[str, float]:
    """Correlation of the weights over classes and steps, and by how much they are off: mean and largest deviation.

    Deviations are relative. The first ``skip`` steps are left out: the ratio of a class that is just being learned
    jumps.
    """
    ours, truth = weights[skip:], exact[skip:]
    off = (ours / truth - 1).abs()
    correlation = torch.corrcoef(torch.stack([ours.log().flatten(), truth.log().flatten()]))[0, 1].item()
    return {"correlation": correlation, "mean": off.mean().item(), "largest": off.max().item()}


@click.command()
@click.option("--root", required=True, type=click.Path(exists=True, path_type=Path), help="Folder of CamVid.")
@click.option("--epochs", default=30, show_default=True, help="Of each training.")
@click.option("--budget", default=0.02, show_default=True, help="Share of the training time.")
@click.option("--threads", default=2, show_default=True, help="CPU threads.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/budget"), show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=OUT,
    show_default="bench/results/budget-training",
    help="Results, without ending.",
)
def budget_training(root: Path, epochs: int, budget: float, threads: int, runs: Path, out: Path) -> None:
    """CamVid at 240x180, the built-in network: weights from all validation images, and from a budget."""
    console = Console()
    whole = TrainConfig(
        dataset="camvid",
        root=str(root.resolve()),
        resize=(180, 240),
        epochs=epochs,
        batch_size=4,
        lr=0.03,
        scale=(0.75, 1.5),
        threads=threads,
        workers=0,
        device="cpu",
        ratio=RATIO,
        counts="observed",  # so that a sample has to estimate the pixels per class too
        budget=10_000,  # more than there are: all of them, one by one
    )
    settings = {"all images": whole}
    for momentum in (0.0, 0.7):
        settings[f"budget {budget:g}, momentum {momentum:g}"] = replace(whole, budget=budget, weight_momentum=momentum)
    records: dict[str, list[dict[str, Any]]] = {}
    for name, config in settings.items():
        folder = RunFolder(runs / name.replace(", ", "-").replace(" ", "-"))
        kind = _Recorder if name == "all images" else Trainer
        with TrainingDisplay(console, tables=False) as display:
            records[name] = kind(config, folder, display).fit()
    whole_run = runs / "all-images"
    rows = [torch.load(whole_run / "rows" / f"{epoch}.pt") for epoch in range(1, epochs + 1)]
    data = json.loads((whole_run / "dataset.json").read_text())
    result = analyse(rows, records, data["class_names"], budget)
    table.write_text(Path(f"{out}.json"), json.dumps(result, indent=1) + "\n")
    table.write_bytes(Path(f"{out}.png"), picture(result))
    table.write_text(Path(f"{out}.md"), markdown(result, f"{out.name}.png"))
    console.print(f"Written: {out}.md, .json, .png", highlight=False)


def analyse(
    rows: list[Tensor], records: dict[str, list[dict[str, Any]]], names: list[str], budget: float
) -> dict[str, Any]:
    """Replays samples of the sizes that the budget gave, and gathers what the trainings ended with."""
    presence = (rows[0][:, 0] + rows[0][:, 2]) > 0
    images = len(presence)
    exact, _ = replay(rows, presence, [images] * len(rows), 0.0, 0.1, 0)
    limited = next(name for name in records if name.startswith("budget"))
    sizes = [record["sample_images"] for record in records[limited]]
    skip = max(2, len(rows) // 6)
    replays = []
    for momentum in (0.0, 0.5, 0.7, 0.85):
        for max_error in (0.05, 0.1, 0.2, 1e9):
            runs = [replay(rows, presence, sizes, momentum, max_error, seed) for seed in range(REPLAYS)]
            found = [compare(weights, exact, skip) for weights, _ in runs]
            means = {key: sum(one[key] for one in found) / REPLAYS for key in found[0]}
            held = torch.stack([held for _, held in runs]).float()[:, skip:].mean().item()
            replays.append({"momentum": momentum, "max_error": max_error, "held": held} | means)
    examples = {
        f"momentum {momentum:g}": replay(rows, presence, sizes, momentum, 0.1, 0)[0].tolist() for momentum in (0.0, 0.7)
    }
    return {
        "benchmark": "budget-training",
        "budget": budget,
        "images": images,
        "epochs": len(rows),
        "skip": skip,
        "class_names": names,
        "sample_images": sizes,
        "exact": exact.tolist(),
        "examples": examples,
        "replays": replays,
        "trainings": {
            name: {
                "miou": run[-1]["miou"],
                "iou": run[-1]["iou"],
                "awa_overhead": sum(_awa(record) for record in run)
                / sum(record["seconds"]["total"] - _awa(record) for record in run),
            }
            for name, run in records.items()
        },
    }


def _awa(record: dict[str, Any]) -> float:
    parts = ("sample_data", "sample_forward", "observe", "step")
    return sum(record["seconds"].get(part, 0.0) for part in parts)


def markdown(result: dict[str, Any], picture: str) -> str:
    """The page."""
    sizes = sorted(size for size in result["sample_images"])
    replays = [
        [
            f"{row['momentum']:g}",
            "none" if row["max_error"] > 1 else f"{row['max_error']:g}",
            f"{row['correlation']:.3f}",
            f"{100 * row['mean']:.0f} %",
            f"{100 * row['largest']:.0f} %",
            f"{100 * row['held']:.0f} %",
        ]
        for row in result["replays"]
    ]
    trainings = [
        [name, f"{run['miou']:.3f}", f"{100 * run['awa_overhead']:.2f} %", *(f"{value:.2f}" for value in run["iou"])]
        for name, run in result["trainings"].items()
    ]
    columns = ("weights from", "mIoU", "AWA's time", *result["class_names"])
    return _PAGE.format(
        sizes=f"{sizes[0]} to {sizes[-1]}, in the median {sizes[len(sizes) // 2]}",
        replays=table.aligned(
            ("momentum", "max_error", "correlation", "mean off", "largest", "held"), replays, left=()
        ),
        trainings=table.aligned(columns, trainings, left=columns[:1]),
        picture=picture,
        replay_count=REPLAYS,
        percent=f"{100 * result['budget']:g} %",
        **{key: result[key] for key in ("images", "epochs", "skip")},
    )


_PAGE = """# Weights from a budget

CamVid at 240x180, the built-in network from scratch, {epochs} epochs, one seed; made by
`python -m bench budget-training --root CamVid`. The budget is {percent} of the training time for everything that
belongs to adaptive weighting, forward passes included. Of the {images} validation images it paid for {sizes} an epoch.
The weights have the smoothed ratio of Eq. 6 and observed pixel counts: more of a sample's error enters than by default.

**The same networks, other images.** After every epoch of the training that observed all images, the weights that
samples of the budget's sizes would have given, against those of all images: {replay_count} series of samples each,
steps after the first {skip}. Correlation of the weights' logarithms over classes and steps; relative deviation, mean
and largest; share of classes that kept their weight.

{replays}

**Trainings.** IoU by class after the last epoch. AWA's time: share of all else.

{trainings}

![Weights over epochs]({picture})
"""


def picture(result: dict[str, Any]) -> bytes:
    """Weights over epochs from all images and from samples, a panel for each class, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = result["class_names"]
    figure, panels = plt.subplots(3, 4, figsize=(12, 7), layout="constrained", sharex=True)
    epochs = range(1, result["epochs"] + 1)
    series = {"all images": result["exact"]} | {
        f"sample, {name}": values for name, values in result["examples"].items()
    }
    styles = (("#000000", "-", 1.8), ("#56B4E9", "-", 1.0), ("#D55E00", "-", 1.4))
    for index, panel in enumerate(panels.flat):
        if index >= len(names):
            panel.axis("off")
            continue
        for (name, values), (colour, style, width) in zip(series.items(), styles, strict=False):
            panel.plot(epochs, [step[index] for step in values], style, color=colour, linewidth=width, label=name)
        panel.set_title(names[index], fontsize=9)
        panel.grid(alpha=0.3, linewidth=0.5)
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("class weight", fontsize=9)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    return buffer.getvalue()
