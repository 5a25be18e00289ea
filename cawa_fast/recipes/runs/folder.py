"""The folder of a run, written so that a process killed at any moment loses at most the epoch in progress.

``latest.pt`` holds the state of the run, including the metrics of all epochs. Every other result is derived from it and
is written again when a run resumes. Each file is written under a temporary name, flushed to disk and renamed.
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..files import atomic

_STATE = {"epoch", "model", "optimizer", "scheduler", "weights", "loop", "metrics"}
"""What every version has written into ``latest.pt``."""

_LONGEST_REASON = 400  # characters; PyTorch lists every parameter that does not fit

_WRITTEN = ("latest.pt", "best.pt", "metrics.jsonl", "confusion.json", "config.json", "dataset.json")


class RunFolder:
    """Paths and files of one run.

    Args:
        path: the folder; created by :meth:`begin`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.dataset_file = self.path / "dataset.json"
        self.latest = self.path / "latest.pt"
        self.best = self.path / "best.pt"
        self.metrics_file = self.path / "metrics.jsonl"
        self.confusion_file = self.path / "confusion.json"

    def exists(self) -> bool:
        """Whether a run was begun here. A checkpoint without its settings raises a ``ValueError``."""
        if self.latest.exists() and not self.config_file.exists():
            raise ValueError(
                f"{self.latest} has no config.json beside it; choose another --run-dir, or restore the file"
            )
        return self.config_file.exists()

    def read_config(self) -> TrainConfig:
        """The settings of the run."""
        try:
            return TrainConfig.from_dict(json.loads(self.config_file.read_text()))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.config_file} is damaged ({error}); restore it or choose another --run-dir"
            ) from error

    def begin(self, config: TrainConfig) -> None:
        """Create the folder and write the settings. From then on the run can be resumed.

        Raises:
            ValueError: the name of the folder is not UTF-8.
        """
        try:
            str(self.path).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the run folder {str(self.path)!r} is not UTF-8, which TensorBoard needs; choose another --run-dir"
            ) from error
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_json("config.json", config.as_dict())

    def describe(self, dataset: dict[str, Any]) -> None:
        """Write the description of the dataset."""
        self._write_json("dataset.json", dataset)

    def save(self, checkpoint: dict[str, Any], *, best: bool) -> None:
        """Write the checkpoint and the results in it.

        ``best.pt`` is written before ``latest.pt``: a run that is killed between the two repeats the epoch, and writes
        the same ``best.pt`` again.
        """
        if best:
            with atomic(self.best) as file:
                torch.save({key: checkpoint[key] for key in ("epoch", "model", "weights")}, file)
        with atomic(self.latest) as file:
            torch.save(checkpoint, file)
        self.write_results(checkpoint)

    def load(self, *, tidy: bool = True) -> dict[str, Any] | None:
        """The latest checkpoint, on the CPU; None if no epoch was finished.

        Args:
            tidy: remove temporary files that a killed process left. False where another process may be writing.
        """
        if not self.exists():
            return None
        for name in _WRITTEN if tidy else ():
            for leftover in self.path.glob(f".{name}.*"):
                leftover.unlink()
        if not self.latest.exists():
            return None
        remedy = "restore it, or delete it to train this run from the start"
        checkpoint = read_checkpoint(self.latest, remedy)
        if lacking := sorted(_STATE - checkpoint.keys()):
            raise ValueError(
                f"{self.latest} is not the latest checkpoint of a run: it lacks {', '.join(lacking)}, as best.pt does; "
                f"{remedy}"
            )
        epochs = len(checkpoint["metrics"]) if isinstance(checkpoint["metrics"], list) else "no"
        if epochs != checkpoint["epoch"]:
            raise ValueError(
                f"{self.latest} is damaged (it is of epoch {checkpoint['epoch']!r} and holds the metrics of {epochs} "
                f"epochs); {remedy}"
            )
        return checkpoint

    def write_results(self, checkpoint: dict[str, Any]) -> None:
        """Write the results in the checkpoint as text.

        ``metrics.jsonl``: one JSON object per line and epoch. ``confusion.json``: ``{"epoch": ..., "matrix": ...}``,
        the confusion matrix of the checkpoint's validation as C rows (ground truth) of C pixel counts.
        """
        with atomic(self.metrics_file) as file:
            records = checkpoint["metrics"]
            file.write("".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode())
        if "confusion" in checkpoint:  # checkpoints of older versions have none
            with atomic(self.confusion_file) as file:
                kept = {"epoch": checkpoint["epoch"], "matrix": checkpoint["confusion"].tolist()}
                file.write((json.dumps(kept) + "\n").encode())

    def refuse(self, error: Exception, network: str) -> ValueError:
        """The error for a checkpoint that cannot be loaded into this run's objects, because of ``error``."""
        reason = " ".join(str(error).split())
        return ValueError(
            f"{self.latest} is of another run than {self.config_file.name} beside it, which has {network}: "
            f"{reason[:_LONGEST_REASON]}; restore it, or choose another --run-dir"
        )

    def _write_json(self, name: str, value: object) -> None:
        with atomic(self.path / name) as file:
            file.write((json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_checkpoint(file: Path, remedy: str) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Args:
        file: ``latest.pt`` or ``best.pt``.
        remedy: what to do about a damaged file, for the error message.

    Raises:
        ValueError: the file is damaged, or no checkpoint.
        OSError: it cannot be read.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive or pickle may raise anything, also an OSError of a seek
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if file.stat().st_size == 0:
            reason = "it is empty"
        elif isinstance(error, pickle.UnpicklingError):  # whose message recommends to load it nevertheless
            reason = "it is cut short, or holds other objects than tensors and plain values"
        raise ValueError(f"{file} is damaged ({reason}); {remedy}") from error
    if not isinstance(checkpoint, dict) or "model" not in checkpoint:
        raise ValueError(f"{file} is damaged (it holds no checkpoint of `cawa-fast train`); {remedy}")
    return checkpoint
