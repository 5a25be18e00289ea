"""The results of an epoch as plain numbers for ``metrics.jsonl`` and as events for TensorBoard."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ...metrics import MetricValues
from ..runs.folder import RunFolder
from ..text import one_line


def metrics_record(metrics: MetricValues) -> dict[str, Any]:
    """The metrics as plain values for JSON; None where one is undefined.

    Example:
        >>> import torch
        >>> from cawa_fast.metrics import segmentation_metrics
        >>> metrics_record(segmentation_metrics(torch.tensor([[3, 1], [0, 4]])))["iou"]
        [0.75, 0.8]
    """
    record: dict[str, Any] = {name: getattr(metrics, name) for name in ("miou", "mean_accuracy", "pixel_accuracy")}
    return record | {"iou": numbers(metrics.iou), "accuracy": numbers(metrics.accuracy)}


def numbers(values: Tensor) -> list[float | None]:
    """The values as a list, with None for those that are not finite."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


@contextlib.contextmanager
def tensorboard(folder: RunFolder) -> Iterator[Any]:
    """A TensorBoard writer into the run's folder, closed at the end."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder.path), purge_step=1)
    try:
        yield writer
    finally:
        writer.close()


def log_scalars(log: Any, record: dict[str, Any], class_names: tuple[str, ...]) -> None:
    """Write the record of an epoch as TensorBoard events."""
    epoch = record["epoch"]
    for name in ("train_loss", "lr", "miou", "mean_accuracy", "pixel_accuracy", "awa_overhead"):
        log.add_scalar(name, record[name], epoch)
    for group in ("iou", "accuracy", "csps", "weight"):
        for class_name, value in zip(class_names, record[group], strict=True):
            if value is not None:
                log.add_scalar(f"{group}/{one_line(class_name)}", value, epoch)
    for part, value in record["seconds"].items():
        log.add_scalar(f"seconds/{part}", value, epoch)
