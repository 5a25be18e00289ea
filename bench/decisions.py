"""``python -m bench decisions``: what one trained network gains from other decisions, without training it again.

A rule with offsets changes for which class a network decides. Once its bias has followed, a constant offset of the loss
is a constant that is added to the logits. So the decisions of rules can be compared on the networks of finished runs:
the constants are fitted on the validation images, and judged on the test images, which nothing has read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import cawa_fast as cf
import cawa_fast.functional as CF
from cawa_fast.metrics import segmentation_metrics
from cawa_fast.recipes.config import TrainConfig
from cawa_fast.recipes.datasets import EvalView
from cawa_fast.recipes.runs.checkpoint import read_checkpoint
from cawa_fast.recipes.runs.compare import rare_classes
from cawa_fast.recipes.runs.read import load_run
from cawa_fast.recipes.training.loaders import normalize_images, open_split

from . import options
from .files import RESULTS, write_result
from .measure import commit

_METHODS = ("gradcam", "gradcam++", "layercam")
_TAUS = tuple(t / 20 for t in range(1, 19))
_STEPS = 25


def _of_iou(exponent: float, n: Tensor, q: Tensor, iou: Tensor) -> Tensor:
    return -exponent * iou.clamp_min(0.05).log()


class Decisions:
    """The logits of a finished run with static weights, and the IoU of classes by several scores.

    Args:
        path: the run's folder; it needs ``test_split``.
    """

    def __init__(self, path: Path) -> None:
        run = load_run(path)
        config = TrainConfig.from_dict(dict(run.config))
        if config.test_split is None or "offset" in run.final:
            raise click.UsageError(f"{path}: give runs with static weights, trained with --test-split")
        pixels = run.dataset["train_pixels"]
        self.classes, self.rare = len(pixels), rare_classes(pixels)
        self.log_w = torch.tensor(run.final["weight"], dtype=torch.float64).log()
        network = config.network(self.classes, pretrained=False)
        network.load_state_dict(read_checkpoint(path / "latest.pt", "train the run again")["model"])
        network.eval()
        self.logits: dict[str, list[tuple[Tensor, Tensor]]] = {"val": [], "test": []}
        self.maps: dict[str, list[Tensor]] = {method: [] for method in _METHODS}
        for split, kept in self.logits.items():
            view = EvalView(open_split(config, split))
            for image, label in (view[index] for index in range(len(view))):
                for method in _METHODS if split == "val" else _METHODS[:1]:
                    cam = cf.GradCAM(network, num_classes=self.classes, method=method)
                    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=config.amp), cam:
                        logits = network(normalize_images(image.unsqueeze(0)))
                        if split == "val":
                            self.maps[method].append(cam().float())
                kept.append((logits.float(), label.unsqueeze(0)))

    def confusion(self, split: str, offset: Tensor) -> Tensor:
        """The confusion matrix with ``offset`` added to the logits."""
        shift = offset.float().view(-1, 1, 1)
        counts = [CF.confusion_matrix(z + shift, y, ignore_index=255) for z, y in self.logits[split]]
        return torch.stack(counts).sum(0)

    def scored(self, offset: Tensor) -> dict[str, tuple[float, float]]:
        """mIoU and mean IoU of the rare classes, by split."""
        found = {}
        for split in self.logits:
            metrics = segmentation_metrics(self.confusion(split, offset))
            found[split] = metrics.miou, metrics.iou[self.rare].nanmean().item()
        return found

    def settled(self, start: Tensor, pull: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """``start`` plus where ``o <- 0.8 o + 0.2 pull(n, q, IoU)`` comes to rest on the validation images."""
        own = torch.zeros_like(start)
        for _ in range(_STEPS):
            matrix = self.confusion("val", start + own).double()
            truth, predicted, tp = matrix.sum(1), matrix.sum(0), matrix.diagonal()
            change = pull(truth, predicted, tp / (truth + predicted - tp)).where(truth > 0, 0.0)
            own = 0.8 * own + 0.2 * change
            own = own - own.mean()
        return start + own

    def cam_iou(self, method: str, tau: float, normalize: str = "max") -> Tensor:
        """IoU of the pseudo masks on the validation images."""
        counts = [
            torch.stack(CF.cam_counts(cam, y, tau=tau, normalize=normalize, ignore_index=255))
            for cam, (_, y) in zip(self.maps[method], self.logits["val"], strict=True)
        ]
        total = torch.stack(counts).sum(0).double()
        return total[0] / total.sum(0).clamp_min(1)

    def scores(self) -> Iterator[tuple[str, Tensor]]:
        """IoU of each class on the validation images, by several scores."""
        argmax = segmentation_metrics(self.confusion("val", torch.zeros(self.classes))).iou.nan_to_num(1)
        yield "argmax", argmax
        for method in _METHODS:
            yield f"{method} > 0.5", self.cam_iou(method, 0.5)
        yield "gradcam, minmax", self.cam_iou("gradcam", 0.5, "minmax")
        table = torch.stack([self.cam_iou("gradcam", tau) for tau in _TAUS])
        nearest = [min(range(len(_TAUS)), key=lambda k: abs(_TAUS[k] - tau)) for tau in self._otsu()]
        yield "gradcam, Otsu's threshold by class", table[nearest, range(self.classes)]
        yield "gradcam, best threshold by class", table.amax(0)
        yield "mean of argmax and gradcam", (argmax + self.cam_iou("gradcam", 0.5)) / 2

    def _otsu(self) -> list[float]:
        """For each class the threshold that separates the values of its normalised maps best (Otsu 1979)."""
        found = []
        for index in range(self.classes):
            values = [
                (cam[0, index] / cam[0, index].max().clamp_min(1e-9)).flatten()
                for cam, (_, y) in zip(self.maps["gradcam"], self.logits["val"], strict=True)
                if (y == index).any()
            ]
            share = torch.histc(torch.cat(values) if values else torch.zeros(1), 50, 0, 1)
            share = share / share.sum()
            below, mean = share.cumsum(0), (share * (torch.arange(50) + 0.5) / 50).cumsum(0)
            spread = (mean[-1] * below - mean) ** 2 / (below * (1 - below)).clamp_min(1e-9)
            found.append((int(spread.argmax()) + 0.5) / 50)
        return found

    def rows(self) -> Iterator[tuple[str, Tensor]]:
        """Names and offsets of all decisions."""
        log_w, zero = self.log_w, torch.zeros(self.classes, dtype=torch.float64)

        def lacking(truth: Tensor, predicted: Tensor, iou: Tensor) -> Tensor:
            return ((truth + 1) / (predicted + 1)).log().clamp(-2, 2)

        yield "as trained: v = w", zero
        yield "v = 1", -log_w
        yield "v = w^0.5", -0.5 * log_w
        for keep in (0.5, 0.75, 1.0):
            yield f"balanced, keep {keep:g}, strength 1", self.settled((keep - 1) * log_w, lacking)
        yield "balanced, keep 1, strength 3", self.settled(zero, lambda n, q, i: 3 * lacking(n, q, i))
        for a in (0.5, 1.0):
            name = f"decoupled: v = IoU^-{a:g}"
            yield name, self.settled(-log_w, functools.partial(_of_iou, a))
        for name, iou in self.scores():
            pull = -0.25 * iou.double().clamp_min(0.05).log()
            yield f"v = w IoU^-0.25, IoU of {name}", pull - pull.mean()


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.out("Files to write, without suffix.", RESULTS / "decisions")
def decisions(runs: tuple[Path, ...], out: Path) -> None:
    """Compare the decisions of rules on the networks of finished RUNS with static weights (--test-split)."""
    table: dict[str, dict[str, Any]] = {}
    for path in runs:
        made = Decisions(path)
        for name, offset in made.rows():
            table.setdefault(name, {})[path.parent.name] = made.scored(offset)
    names = [path.parent.name for path in runs]
    lines = [
        "# Decisions of one network",
        "",
        f"Made as of commit {commit()} by",
        f"`python -m bench decisions {' '.join(f'{path.parent.name}/{path.name}' for path in runs)}`: mIoU / mean IoU "
        "of the rare classes in %, on test images that nothing has read. Constants that are added to the logits of one "
        "trained network, fitted on its validation images.",
        "",
        f"| decision | {' | '.join(names)} |",
        f"|---{'|--:' * len(names)}|",
    ]
    for row, found in table.items():
        cells = ["{:.1f} / {:.1f}".format(*(100 * value for value in found[name]["test"])) for name in names]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    write_result(out, table, "\n".join(lines) + "\n")
    click.echo("\n".join(lines))
