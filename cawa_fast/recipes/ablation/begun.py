"""Runs that earlier calls of an ablation have begun, compared with this call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..runs.contents import check_dataset
from ..runs.data import class_differences, data_differences, describe_data
from ..runs.folder import RunFolder
from ..runs.read import Run, read_object
from ..runs.resume import check_data
from ..training.loaders import open_all

_IMAGES = ("train_images", "val_images", "test_split")
"""Settings that say which images of a dataset a run reads."""


def check_settings(folder: RunFolder, stored: TrainConfig, config: TrainConfig, free: tuple[str, ...]) -> None:
    """Raise a ``ValueError`` if a run was begun with other settings than ``config``; those in ``free`` may differ."""
    for setting in fields(config):
        now, then = getattr(config, setting.name), getattr(stored, setting.name)
        if now != then and not setting.metadata["resume"] and setting.name not in free:
            raise ValueError(
                f"{folder.path} was begun with {setting.name}={then!r}, not {now!r}; choose another --out, "
                f"continue with the old --{setting.name.replace('_', '-')}, or delete the folder to train again"
            )


def check_all_data(out: Path, names: Iterable[str], root: str | None) -> list[str]:
    """Raise if runs were trained on other data than runs that begin now would be, since a table compares them all.

    Args:
        out: the folder of the ablation.
        names: of the folders of runs in it; those without a checkpoint are left out.
        root: of the dataset now.

    Returns:
        The runs of older versions, which have no record of their files.

    Raises:
        ValueError: a run was trained on other data; the message names the differences.
    """
    present: dict[Any, dict[str, Any]] = {}
    incomplete = []
    for folder in (RunFolder(out / name) for name in names):
        if not folder.latest.exists():
            continue
        try:
            then = read_object(folder.dataset_file)
            check_dataset(then, "")
            config = replace(folder.read_config(), root=root)
            key = tuple(getattr(config, name) for name in _IMAGES)
            if key not in present:
                present[key] = describe_data(**{f"{name}_set": data for name, data in open_all(config).items()})
        except (OSError, ValueError):  # what is missing or damaged is named where it is needed
            continue
        check_data(folder, then, present[key], "another --out, or delete the folders of the runs to train them again")
        if "files" in present[key] and "files" not in then:
            incomplete.append(folder.path.name)
    return incomplete


def check_same_data(runs: Iterable[Run]) -> None:
    """Raise a ``ValueError`` if finished runs have other classes than the first, or other files with equal settings."""
    firsts: dict[Any, Run] = {}
    for run in runs:
        first = firsts.setdefault(None, run)
        like = firsts.setdefault(tuple(run.config.get(name) for name in _IMAGES), run)
        differ = class_differences(first.dataset["class_names"], run.dataset["class_names"])
        if differ := differ or data_differences(like.dataset, run.dataset):
            raise ValueError(
                f"{run.path} and other runs beside it were not trained on the same data: {'; '.join(differ)}. Move it "
                "elsewhere, or delete it to train it again"
            )
