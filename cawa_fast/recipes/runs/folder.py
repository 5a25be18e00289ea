"""The folder of a run, written so that a process killed at any moment loses at most the epoch in progress.

``latest.pt`` holds the state of the run, including the metrics of all epochs. Every other result is derived from it and
is written again when a run resumes. Each file is written under a temporary name, flushed to disk and renamed.
``previous.pt`` is the ``latest.pt`` of the epoch before, for the case that a disk damages the newer one. While a
checkpoint is written, the folder holds three of them, and ``best.pt``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..files import atomic, make_folder
from ..json_values import parse_json, read_utf8
from .checkpoint import read_checkpoint, write_checkpoint
from .contents import CHECKPOINT
from .lock import locked

_STATE = {"epoch", "model", "optimizer", "scheduler", "weights", "loop", "metrics"}
"""What every version has written into ``latest.pt``."""

_LONGEST_REASON = 400  # characters; PyTorch lists every parameter that does not fit

_WRITTEN = ("latest.pt", "previous.pt", "best.pt", "metrics.jsonl", "confusion.json", "config.json", "dataset.json")


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
        self.previous = self.path / "previous.pt"
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
            return TrainConfig.from_dict(parse_json(read_utf8(self.config_file)))
        except ValueError as error:
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
        make_folder(self.path)
        self._write_json("config.json", config.as_dict())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside the block, no other process can train in this folder, which is created.

        If no run has begun in the block, the folders that were created are removed again.

        Raises:
            ValueError: another process trains here; the message names it.
            OSError: the folder cannot be created, or is read-only.
        """
        created = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        make_folder(self.path)
        what = f"another process is training in {self.path}"
        try:
            with locked(self.path / ".lock", what, "wait for it, stop it, or choose another --run-dir"):
                yield
        finally:
            with contextlib.suppress(OSError):
                for folder in created:
                    folder.rmdir()  # an error where it has become the folder of a run

    def describe(self, dataset: dict[str, Any]) -> None:
        """Write the description of the dataset."""
        self._write_json("dataset.json", dataset)

    def save(self, checkpoint: dict[str, Any], *, best: bool) -> None:
        """Write the checkpoint and the results in it.

        ``best.pt`` is written before ``latest.pt``: a run that is killed between the two repeats the epoch, and writes
        the same ``best.pt`` again.

        Raises:
            OSError: a file cannot be written, for example for lack of space. Those of earlier epochs are unchanged.
        """
        try:
            if best:
                with atomic(self.best) as file:
                    write_checkpoint({key: checkpoint[key] for key in ("epoch", "model", "weights")}, file)
            with atomic(self.latest) as file:
                write_checkpoint(checkpoint, file)
                self._keep_previous()
            self.write_results(checkpoint)
        except OSError as error:
            if not self.path.is_dir():
                raise OSError(
                    f"the run folder {self.path} is gone: it was deleted or moved while the run wrote into it. Put it "
                    "back to continue with --resume"
                ) from error
            raise OSError(
                f"{error}. All earlier epochs are saved; then continue with: {self.resume_command()}"
            ) from error

    def _keep_previous(self) -> None:
        """Give ``latest.pt`` the name ``previous.pt`` too, before a new one takes its first name."""
        if not self.latest.is_file():
            return
        spare = self.path / ".previous.pt.link"
        spare.unlink(missing_ok=True)
        try:
            os.link(self.latest, spare)
        except OSError:  # a file system without hard links: at no time shall there be no latest.pt
            with self.latest.open("rb") as source, atomic(self.previous) as copy:
                shutil.copyfileobj(source, copy)
            return
        os.replace(spare, self.previous)
        spare.unlink(missing_ok=True)  # it stays if both were the same file, after a kill at this place

    def resume_command(self) -> str:
        """What continues the run."""
        return f"cawa-fast train --resume --run-dir {shlex.quote(str(self.path))}"

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
            if self.previous.exists():
                raise ValueError(
                    f"{self.latest} is missing, but {self.previous.name} is there; rename that to {self.latest.name} "
                    "to continue from the epoch before, or delete it to train this run from the start"
                )
            return None
        remedy = "restore it, or delete it to train this run from the start"
        try:
            return self._checked(self.latest, remedy)
        except ValueError as error:
            raise ValueError(f"{error}{self._offer()}") from error

    def _offer(self) -> str:
        """How to continue from the checkpoint before the latest one, if that is intact; else ""."""
        try:
            epoch = self._checked(self.previous, "")["epoch"]
        except (OSError, ValueError):
            return ""
        move = shlex.join(["mv", str(self.previous), str(self.latest)])
        return f". {self.previous.name} beside it is intact, of epoch {epoch}; to continue from there: {move}"

    def _checked(self, file: Path, remedy: str) -> dict[str, Any]:
        """The content of a checkpoint from which a run can continue."""
        checkpoint = read_checkpoint(file, remedy)
        if lacking := sorted(_STATE - checkpoint.keys()):
            raise ValueError(
                f"{file} is not the latest checkpoint of a run: it lacks {', '.join(lacking)}, as best.pt does; "
                f"{remedy}"
            )
        epochs = len(checkpoint["metrics"]) if isinstance(checkpoint["metrics"], list) else "no"
        if epochs != checkpoint["epoch"]:
            raise ValueError(
                f"{file} is damaged (it is of epoch {checkpoint['epoch']!r} and holds the metrics of {epochs} "
                f"epochs); {remedy}"
            )
        try:
            CHECKPOINT(checkpoint, "")
            matrix = checkpoint.get("confusion", torch.zeros(0, 0, dtype=torch.int64))
            if not isinstance(matrix, torch.Tensor) or matrix.dtype != torch.int64 or matrix.ndim != 2:
                raise ValueError("confusion is no matrix of counts")
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}); {remedy}") from error
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
