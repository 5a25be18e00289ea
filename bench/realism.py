"""How like a network's logits the made-up ones are: the numbers on which the operators' speed depends, for both.

python -m bench realism runs/demo/cawa      (after `make demo`; about a minute)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import torch
from torch import Tensor

from cawa_fast import reference

from .cases import IGNORE, SEED, realistic

TAU = 0.5
STATISTICS = {
    "mixed": "cells whose four corners differ in argmax",
    "crossed": "cells that the threshold of a present class's map runs through",
    "above": "share of a present class's map above half its maximum",
    "accuracy": "pixels whose argmax is the label",
    "ignored": "pixels without a label",
    "present": "classes in an image's labels",
    "rare": "pixels of the image's rarer half of the present classes",
    "top": "largest logit, mean",
    "spread": "standard deviation of a pixel's logits over the classes, mean",
    "margin": "largest minus second logit, median",
    "step": "change of a logit from one cell to the next, root mean square",
}
"""What :func:`statistics` returns: name and meaning. A cell is a square of four neighbouring low-resolution logits."""


@torch.no_grad()
def statistics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The numbers of :data:`STATISTICS`.

    Args:
        logits: ``(N, C, h, w)`` float32.
        labels: ``(N, H, W)`` uint8, 255 where ignored.
    """
    classes = logits.shape[1]
    winner = logits.max(1).indices
    corners = _corners(winner.unsqueeze(1))
    mixed = corners.amin(0) != corners.amax(0)
    best, second = logits.topk(2, dim=1).values.unbind(1)

    truth = torch.stack([torch.bincount(image.flatten(), minlength=256)[:classes] for image in labels])
    present = truth > 0
    cam = logits.relu()
    cam = cam / cam.amax((-2, -1), keepdim=True)
    crossing = _corners(cam)
    crossed = (crossing.amin(0) <= TAU) & (crossing.amax(0) > TAU)

    resized = reference.resize(logits, (labels.shape[-2], labels.shape[-1]), align_corners=False)
    valid = labels != IGNORE
    right = (resized.max(1).indices == labels) & valid
    ordered = [counts[counts > 0].sort().values for counts in truth]
    rare = sum(counts[: len(counts) // 2].sum() for counts in ordered)
    return {
        "mixed": mixed.float().mean().item(),
        "crossed": crossed.float().mean((-2, -1))[present].nanmean().item(),
        "above": (cam > TAU).float().mean((-2, -1))[present].mean().item(),
        "accuracy": (right.sum() / valid.sum()).item(),
        "ignored": (~valid).float().mean().item(),
        "present": present.float().sum(1).mean().item(),
        "rare": (torch.as_tensor(rare) / truth.sum()).item(),
        "top": best.mean().item(),
        "spread": logits.std(1).mean().item(),
        "margin": (best - second).median().item(),
        "step": logits.diff(dim=-1).square().mean().sqrt().item(),
    }


def _corners(x: Tensor) -> Tensor:
    """``(4, N, C, h - 1, w - 1)``: the corners of every cell of ``x`` ``(N, C, h, w)``."""
    return torch.stack([x[..., :-1, :-1], x[..., :-1, 1:], x[..., 1:, :-1], x[..., 1:, 1:]])


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--images", default=4, show_default=True, help="Scenes of each size.")
def realism(run: Path, images: int) -> None:
    """Compare the made-up logits with those of the street network in the folder RUN (`make demo` trains one).

    The network sees scenes drawn at its own size, and at the benchmarks' size.
    """
    columns = dict(_network(run, images))
    generator = torch.Generator().manual_seed(SEED)
    for classes, low, high in (
        (10, (128, 256), (512, 1024)),
        (19, (128, 256), (512, 1024)),
        (150, (128, 128), (512, 512)),
    ):
        columns[f"made up, {classes} classes, {low[0]}x{low[1]}"] = statistics(
            *realistic(classes, low, high, images, generator)
        )
    click.echo("| | " + " | ".join(columns) + " |")
    click.echo("|---" * (len(columns) + 1) + "|")
    for name, meaning in STATISTICS.items():
        click.echo(f"| {meaning} | " + " | ".join(f"{column[name]:.3g}" for column in columns.values()) + " |")


def _network(run: Path, images: int) -> Iterator[tuple[str, dict[str, float]]]:
    """A title and the statistics, for scenes of 96x192 and of 512x1024 pixels."""
    from cawa_fast.recipes.datasets.street.dataset import StreetDataset
    from cawa_fast.recipes.models import build_model
    from cawa_fast.recipes.training.loaders import normalize_images

    model = build_model("compact", len(StreetDataset.class_names))
    model.load_state_dict(torch.load(run / "latest.pt", weights_only=True)["model"])
    model.eval()
    for size in ((96, 192), (512, 1024)):
        data = StreetDataset("val", length=images, size=size)
        pairs = [tuple(torch.tensor(array) for array in data.read(index)) for index in range(images)]
        with torch.no_grad():
            logits = [model(normalize_images(image.permute(2, 0, 1)[None])) for image, _ in pairs]
        batch = torch.cat(logits).contiguous()
        title = f"network, 10 classes, {batch.shape[-2]}x{batch.shape[-1]}"
        yield title, statistics(batch, torch.stack([label for _, label in pairs]))
