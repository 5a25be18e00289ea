"""The settings and data of a run compared with those that it was begun with, when it continues.

A checkpoint holds a network for the classes, files and settings that it was trained with. With others it would fail
somewhere inside PyTorch or, worse, report the IoU of one class under the name of another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ..config import TrainConfig
from ..json_values import read_utf8
from .contents import check_dataset
from .data import data_differences
from .folder import RunFolder
from .read import read_object

_MAY_CHANGE = {"epochs", "threads"}
"""Settings that may differ from those in the checkpoint, besides those that change no result."""


def versions() -> dict[str, str]:
    """The versions that a checkpoint is written with."""
    return {"cawa_fast": __version__, "torch": str(torch.__version__)}


def check_resumed(
    folder: RunFolder, checkpoint: Mapping[str, Any] | None, config: TrainConfig, data: Mapping[str, Any]
) -> list[str]:
    """Raise if a run cannot continue from its checkpoint with these settings on these data.

    Args:
        folder: of the run.
        checkpoint: its content; None for a run without one, which begins anew.
        config: the settings now.
        data: :func:`~.data.describe_data` now.

    Returns:
        Sentences for the user about what could not be compared, or may change the last bits.

    Raises:
        ValueError: settings or data differ from those of the checkpoint; the message names the differences.
    """
    if checkpoint is None:
        return []
    if differ := setting_differences(checkpoint.get("settings", {}), config):
        raise ValueError(
            f"{folder.latest} was written with other settings: {'; '.join(differ)}. Set them back (they are in "
            f"{folder.config_file.name}), or begin a new run with another --run-dir"
        )
    notes = []
    then = kept_data(folder, checkpoint)
    if then is None:
        notes.append("The run has no record of its data (it was begun by an older version): nothing was compared.")
    else:
        if "files" in data and "files" not in then:
            notes.append(
                "The run has no record of its files (it was begun by an older version): only the classes and the "
                "numbers of images and pixels were compared."
            )
        check_data(folder, then, data, "another --run-dir")
    wrote = checkpoint.get("versions", versions())
    notes += [
        f"The checkpoint was written with {name} {wrote[name]}, this is {now}: the last bits may differ from those of "
        "an uninterrupted run."
        for name, now in versions().items()
        if wrote.get(name, now) != now
    ]
    epochs = _lines(folder.metrics_file)
    if epochs > checkpoint["epoch"]:
        notes.append(
            f"{folder.metrics_file.name} had {epochs} epochs. The checkpoint is of epoch {checkpoint['epoch']}, so the "
            "later ones are trained again."
        )
    return notes


def kept_data(folder: RunFolder, checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the run was trained on: of the checkpoint or, where it is older, of ``dataset.json``; None if unknown."""
    if "data" in checkpoint:
        return checkpoint["data"]
    try:
        kept = read_object(folder.dataset_file)
        check_dataset(kept, "")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{folder.dataset_file} is damaged ({error}), and the checkpoint, which an older version wrote, has no "
            "copy of it; restore it, or delete it to continue without comparing the data"
        ) from error
    return kept


def check_data(folder: RunFolder, then: Mapping[str, Any], now: Mapping[str, Any], elsewhere: str) -> None:
    """Raise a ``ValueError`` that names the differences between the data of a run and those of now.

    Args:
        folder: of the run.
        then, now: two results of :func:`~.data.describe_data`, perhaps with ``train_pixels`` and ``val_pixels``.
        elsewhere: where a new run can be begun, such as "another --run-dir".
    """
    if differ := data_differences(then, now):
        raise ValueError(
            f"the dataset is not the one that the run in {folder.path} was begun with: {'; '.join(differ)}. Undo the "
            f"change to continue that run, or begin a new one with {elsewhere}"
        )


def setting_differences(then: Mapping[str, Any], now: TrainConfig) -> list[str]:
    """In words, how the settings differ in which results depend on them; empty if they do not.

    Example:
        >>> setting_differences({"lr": 0.01, "seed": 3}, TrainConfig(lr=0.02, seed=3))
        ['lr was 0.01 and is now 0.02']
    """
    # through JSON, which turns tuples into lists
    before, after = (json.loads(json.dumps(values)) for values in (dict(then), now.as_dict()))
    fixed = [s.name for s in fields(now) if not s.metadata["resume"] and s.name not in _MAY_CHANGE]
    return [
        f"{name} was {before[name]!r} and is now {after[name]!r}"
        for name in fixed
        if name in before and before[name] != after[name]
    ]


def _lines(file: Path) -> int:
    try:
        return len(read_utf8(file).splitlines())
    except (OSError, ValueError):  # it is written again
        return 0
