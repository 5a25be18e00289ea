"""``cawa-fast calibrate``: the balance of a finished run's classes, fitted on its validation images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import CAWA, calibration
from .. import functional as CF
from ..metrics import segmentation_metrics
from .config import TrainConfig
from .datasets import EvalView, SegmentationDataset
from .files import atomic
from .runs.checkpoint import read_checkpoint, write_checkpoint
from .runs.compare import rare_classes
from .runs.data import class_differences
from .runs.folder import RunFolder
from .runs.read import load_run
from .training.loaders import normalize_images, open_split
from .training.metrics_log import metrics_record

Progress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Calibration:
    """The result for one run.

    Attributes:
        offset: by class, what was added to the classifier's bias.
        class_names: of these.
        scores: by split ("val", "test"), the metrics "before" and "after", with "rare_iou".
        fitted: number of images that the offsets were fitted on.
        file: the checkpoint with the new bias.
    """

    offset: list[float]
    class_names: list[str]
    scores: dict[str, dict[str, dict[str, Any]]]
    fitted: int
    file: Path


def calibrate_run(
    run_dir: str | Path, *, checkpoint: str = "latest", strength: float = 1.0, images: int = 500, progress: Progress
) -> Calibration:
    """Fit offsets on the validation images of a run, and write ``calibrated.pt`` and ``calibration.json`` into it.

    ``calibrated.pt`` holds the network as ``best.pt`` does, with the offsets in the classifier's bias. The other files
    of the run stay as they are. The gain is measured on all validation images, on which the offsets were fitted, and on
    the test images of the run, which nothing has read.

    Args:
        run_dir: the folder of the run.
        checkpoint: "latest" or "best".
        strength: of :func:`cawa_fast.calibration.fit_offset`.
        images: most validation images to fit on, evenly spaced: their logits are kept in memory.
        progress: called as ``progress(split, done, total)``.

    Raises:
        ValueError, FileNotFoundError: the run or its data cannot be read, or an argument is out of range.
    """
    run, folder = load_run(run_dir), RunFolder(run_dir)
    config = TrainConfig.from_dict(dict(run.config))
    file = folder.path / f"{checkpoint}.pt"
    stored = read_checkpoint(file, "restore it, or train the run again")
    names = run.dataset["class_names"]
    network = config.network(len(names), pretrained=False)
    try:
        network.load_state_dict(stored["model"])
    except (RuntimeError, TypeError) as error:
        raise folder.refuse(error, f"model={config.model!r} and {len(names)} classes") from error
    device = config.resolved_device()
    network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    sets = {"val": open_split(config, "val")}
    ignore = sets["val"].ignore_index
    cawa = CAWA(network, len(names), ignore_index=ignore, source="argmax")  # finds the layer and its align_corners
    if config.test_split is not None:
        sets["test"] = open_split(config, "test")
    for split, dataset in sets.items():
        if differ := class_differences(names, dataset.class_names):
            raise ValueError(
                f"{folder.dataset_file}: its classes are not those of {split} now: {'; '.join(differ)}. Calibrate with "
                "the data of the run"
            )
    val = sets["val"]
    count = min(max(images, 1), len(val))
    chosen = val.part([index * len(val) // count for index in range(count)])
    kept: list[tuple[Tensor, Tensor]] = []
    _passes(cawa, network, chosen, config, lambda z, y: kept.append((z.half().cpu(), y.cpu())), "fit", progress)
    corners = cawa.weights.align_corners
    # float16 would clip large logits; the operators compute in float32 anyway
    offset = calibration.fit_offset(
        [(logits.float(), labels) for logits, labels in kept],
        strength=strength,
        ignore_index=ignore,
        align_corners=corners,
    )
    rare = rare_classes(run.dataset["train_pixels"])
    scores = {}
    for split, dataset in sets.items():
        matrices = [torch.zeros(len(names), len(names), dtype=torch.int64) for _ in range(2)]

        def count_both(logits: Tensor, labels: Tensor, matrices: list[Tensor] = matrices) -> None:
            shift = offset.to(logits).view(-1, 1, 1)
            for matrix, shifted in zip(matrices, (logits, logits + shift), strict=True):
                counts = CF.confusion_matrix(shifted, labels, ignore_index=ignore, align_corners=corners)
                matrix += counts.cpu()

        _passes(cawa, network, dataset, config, count_both, split, progress)
        scores[split] = {when: _scored(m, rare) for when, m in zip(("before", "after"), matrices, strict=True)}
    assert cawa.classifier is not None
    calibration.fold_offset(cawa.classifier, offset)
    cawa.close()
    result = Calibration(offset.tolist(), list(names), scores, count, folder.path / "calibrated.pt")
    with atomic(result.file) as opened:
        content: dict[str, Any] = {key: stored[key] for key in ("epoch", "weights") if key in stored}
        content |= {"model": network.state_dict()}
        write_checkpoint(content, opened)
    with atomic(folder.path / "calibration.json") as opened:
        record: dict[str, Any] = {"checkpoint": file.name, "epoch": stored.get("epoch"), "images": count}
        record |= {
            "strength": strength if math.isfinite(strength) else str(strength),
            "class_names": result.class_names,
            "offset": result.offset,
            "scores": scores,
        }
        opened.write((json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    return result


@torch.no_grad()
def _passes(
    cawa: CAWA,
    network: torch.nn.Module,
    dataset: SegmentationDataset,
    config: TrainConfig,
    take: Callable[[Tensor, Tensor], object],
    what: str,
    progress: Progress,
) -> None:
    """Give the logits and labels of each image to ``take``."""
    device = next(network.parameters()).device
    view = EvalView(dataset)
    for index in range(len(view)):
        image, label = view[index]
        with torch.autocast(device.type, torch.bfloat16, enabled=config.amp):
            network(normalize_images(image.unsqueeze(0).to(device)))
        label = label.unsqueeze(0).to(device)
        cawa.observe(label)  # compares the layer's output with the network's
        take(cawa.logits.float(), label)
        progress(what, index + 1, len(view))
    cawa.reset()


def _scored(matrix: Tensor, rare: list[int]) -> dict[str, Any]:
    record = metrics_record(segmentation_metrics(matrix))
    known = [value for index in rare if (value := record["iou"][index]) is not None]
    return record | {"rare_iou": sum(known) / len(known) if known else None}
