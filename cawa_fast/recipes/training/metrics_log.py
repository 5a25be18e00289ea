"""The results of an epoch as plain numbers for ``metrics.jsonl`` and as events for TensorBoard."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
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


class _Events:
    """TensorBoard's events of a run. An error of the disk ends the events and not the run, which does not need them."""

    def __init__(self, path: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = path
        self._writer: Any = None
        with self._or_none():
            self._writer = SummaryWriter(path, purge_step=1)

    def add_scalar(self, name: str, value: float, epoch: int) -> None:
        if self._writer is not None:
            with self._or_none():
                self._writer.add_scalar(name, value, epoch)

    def close(self) -> None:
        if self._writer is not None:
            with self._or_none():
                self._writer.close()

    @contextlib.contextmanager
    def _or_none(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            logging.getLogger(__name__).warning(
                "TensorBoard's events cannot be written to %s (%s); the run goes on without them. They are written "
                "again when it is resumed.",
                self._path,
                error.strerror or error,
            )


@contextlib.contextmanager
def tensorboard(folder: RunFolder) -> Iterator[_Events]:
    """TensorBoard's events in the run's folder, closed at the end."""
    previous = threading.excepthook

    def quiet(args: Any) -> None:  # TensorBoard's thread raises its error in the main thread, too
        if not issubclass(args.exc_type, OSError) or not type(args.thread).__module__.startswith("tensorboard"):
            previous(args)

    threading.excepthook = quiet
    events = _Events(str(folder.path))
    try:
        yield events
    finally:
        events.close()
        threading.excepthook = previous


def log_scalars(log: Any, record: dict[str, Any], class_names: tuple[str, ...]) -> None:
    """Write the record of an epoch as TensorBoard events."""
    epoch = record["epoch"]
    for name in ("train_loss", "lr", "miou", "mean_accuracy", "pixel_accuracy", "awa_overhead"):
        log.add_scalar(name, record[name], epoch)
    for group in ("iou", "accuracy", "csps", "weight", "offset"):
        for class_name, value in zip(class_names, record.get(group, ()), strict=False):
            if value is not None:
                log.add_scalar(f"{group}/{one_line(class_name)}", value, epoch)
    for name, value in record.get("test", {}).items():
        if isinstance(value, float):
            log.add_scalar(f"test/{name}", value, epoch)
    for part, value in record["seconds"].items():
        log.add_scalar(f"seconds/{part}", value, epoch)
