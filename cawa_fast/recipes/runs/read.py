"""Reading run folders, without their checkpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import check_setting
from ..json_values import Check, fields, listed, parse_json, read_utf8, whole
from .contents import CONFIG, check_dataset, record_check
from .contents import RECORD as _RECORD
from .data import class_differences
from .folder import RunFolder

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Run:
    """The contents of a run's folder, without its checkpoints.

    Attributes:
        path: the folder.
        label: a short name, different for each run of a report.
        config: the settings, from ``config.json``.
        dataset: from ``dataset.json``: ``class_names``, ``palette``, ``ignore_index``, ``train_pixels``,
            ``train_images``, ``val_images``.
        records: from ``metrics.jsonl``: one per epoch, by ascending epoch; at least one.
    """

    path: Path
    label: str
    config: dict[str, Any]
    dataset: dict[str, Any]
    records: tuple[dict[str, Any], ...]

    @property
    def final(self) -> dict[str, Any]:
        """The record of the last epoch."""
        return self.records[-1]

    @property
    def best(self) -> dict[str, Any]:
        """The record with the highest mIoU, the earliest of several. ``best.pt`` holds the network of this epoch."""
        return max(self.records, key=lambda record: -1.0 if record["miou"] is None else record["miou"])

    @property
    def adaptive(self) -> bool:
        """Whether the classes were scored (CSPS), so that the weights adapted."""
        return any(value is not None for record in self.records for value in record.get("csps") or ())

    @property
    def epochs(self) -> list[int]:
        """The numbers of the epochs."""
        return [record["epoch"] for record in self.records]

    @property
    def steady(self) -> tuple[dict[str, Any], ...]:
        """The records for mean times: all but the first epoch, which includes warm-up, if there are more."""
        return self.records[1:] or self.records

    def column(self, name: str, index: int | None = None) -> list[float | None]:
        """``name`` in every epoch: the whole value, or that of class ``index``."""
        values = [record.get(name) for record in self.records]
        return [None if value is None else value[index] for value in values] if index is not None else values

    def confusion(self) -> list[list[int]] | None:
        """The validation's confusion matrix after the last epoch, rows = ground truth; None if there is none."""
        file = RunFolder(self.path).confusion_file
        if not file.is_file():
            return None
        kept = read_object(file)
        classes = len(self.dataset["class_names"])
        _checked(file, kept, fields({"epoch": whole(1), "matrix": listed(listed(whole(0)))}))
        if kept["epoch"] != self.final["epoch"] or len(kept["matrix"]) != classes:
            return None
        _checked(file, kept, fields({"matrix": listed(listed(whole(0), classes))}))
        return kept["matrix"]

    def seconds(self) -> dict[str, float]:
        """Mean seconds of an epoch by part; ``total`` is the whole epoch, ``other`` the rest that no part covers.

        Parts overlap where a GPU works while the host waits for data; their sum may then exceed ``total``.
        """
        names = dict.fromkeys(name for record in self.steady for name in record["seconds"])
        mean = {name: sum(r["seconds"].get(name, 0.0) for r in self.steady) / len(self.steady) for name in names}
        total = mean.pop("total")
        return {**mean, "other": max(total - sum(mean.values()), 0.0), "total": total}

    def awa_overhead(self) -> float | None:
        """Mean time for the adaptive weights as a share of the rest of an epoch; None without such weights."""
        return sum(record["awa_overhead"] for record in self.steady) / len(self.steady) if self.adaptive else None


def load_run(run_dir: StrPath) -> Run:
    """Read a run's folder.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is damaged, or two files are of different runs.
    """
    folder = RunFolder(run_dir)
    if not folder.path.is_dir():
        raise FileNotFoundError(f"{folder.path} is not a folder; give one that `cawa-fast train --run-dir` wrote")
    config, dataset = read_object(folder.config_file), read_object(folder.dataset_file)
    records: dict[int, dict[str, Any]] = {}
    lines: dict[int, int] = {}
    for number, line in enumerate(_read_text(folder.metrics_file).splitlines(), start=1):
        try:
            record = parse_json(line)
            fields(dict.fromkeys(_RECORD, lambda value, where: None))(record, "")
            whole(1)(record["epoch"], "epoch")
        except ValueError as error:
            raise _no_record(folder, number, error) from error
        records[record["epoch"]], lines[record["epoch"]] = record, number
    if not records:
        raise ValueError(f"{folder.metrics_file} is empty: no epoch was finished. Resume the run first")
    _checked(folder.config_file, config, _check_config)
    missing = {"class_names", "palette", "ignore_index", "train_pixels"} - dataset.keys()
    if missing:
        raise ValueError(f"{folder.dataset_file} lacks {', '.join(sorted(missing))}; train the run again")
    _checked(folder.dataset_file, dataset, check_dataset)
    classes = len(dataset["class_names"])
    check = record_check(classes)
    for epoch, record in records.items():
        if isinstance(record["iou"], list) and len(record["iou"]) != classes:
            raise ValueError(
                f"{folder.metrics_file}, epoch {epoch} has {len(record['iou'])} classes, but dataset.json names "
                f"{classes}: the files are not of the same run"
            )
        try:
            check(record, "")
        except ValueError as error:
            raise _no_record(folder, lines[epoch], error) from error
    label = folder.path.resolve().name
    return Run(folder.path, label, config, dataset, tuple(records[epoch] for epoch in sorted(records)))


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs with labels: the names of their folders without the words that all have in common."""
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise ValueError(f"a run folder is given twice: {', '.join(str(run.path) for run in runs)}")
    return [replace(run, label=label) for run, label in zip(runs, _labels(runs), strict=True)]


def by_dataset(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs grouped by dataset, in the order in which the datasets first occur. Each group is labelled by itself.

    Raises:
        ValueError: a folder is given twice, or datasets of one name have different classes.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        group = groups.setdefault(run.config["dataset"], [])
        if group and run.dataset["class_names"] != group[0].dataset["class_names"]:
            raise ValueError(
                f"{run.path} and {group[0].path} are on {run.config['dataset']!r} with different classes: "
                f"{'; '.join(class_differences(group[0].dataset['class_names'], run.dataset['class_names']))}. Report "
                "them one by one, or train one of them again"
            )
        group.append(run)
    return [labelled(group) for group in groups.values()]


def _no_record(folder: RunFolder, line: int, error: ValueError) -> ValueError:
    return ValueError(
        f"{folder.metrics_file}, line {line} is not an epoch's record ({error}); `cawa-fast train --resume` writes the "
        "file again from latest.pt"
    )


def _check_config(config: Any, where: str) -> None:
    CONFIG(config, where)
    for name, value in config.items():
        check_setting(name, value)


def _checked(file: Path, value: Any, check: Check) -> None:
    try:
        check(value, "")
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); restore it, or train the run again") from error


def _read_text(file: Path) -> str:
    try:
        return read_utf8(file)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{file} is missing: {file.parent} is not the folder of a run, or no epoch was finished. Give the folder "
            "that `cawa-fast train --run-dir` wrote"
        ) from None


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a run.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it holds no JSON object.
    """
    content = _read_text(file)
    try:
        value = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); restore it, or train the run again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds no JSON object; restore it, or train the run again")
    return value


def _labels(runs: Sequence[Run]) -> list[str]:
    """The names of the folders without the words, separated by dashes, that all begin or end with."""
    names = [run.label for run in runs]
    if len(names) < 2:
        return names
    if len(set(names)) < len(names):
        return [str(run.path) for run in runs]
    words = [name.split("-") for name in names]
    room = min(map(len, words)) - 1  # at least one word of each name stays
    first = 0
    while first < room and len({word[first] for word in words}) == 1:
        first += 1
    last = 0
    while last < room - first and len({word[-1 - last] for word in words}) == 1:
        last += 1
    return ["-".join(word[first : len(word) - last]) for word in words]
