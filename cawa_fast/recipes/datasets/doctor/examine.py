"""Examines a dataset: what is in its files, and what is wrong with them.

Errors stop or distort training: files without a partner, files that cannot be read, pairs whose sizes differ, labels
that are no class, an image in two splits. Warnings are probably mistakes: classes that never occur, images without
labels, images that EXIF data rotate. Notes are facts to know.
"""

from __future__ import annotations

import filecmp
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import FILE_DATASETS, FileDataset
from ..base import Progress
from ..label_statistics import collect_label_statistics
from .checks import Finding, Findings, check_classes, check_files, check_values, class_totals, some

_SEVERITIES = ("error", "warning", "note")
_HEAD = 65536  # bytes of an image that are hashed before whole files are compared


@dataclass(frozen=True)
class SplitFacts:
    """The content of a split.

    Attributes:
        name: "train", "val", ...
        images: number of pairs.
        pixels: pixels per class.
        images_with: per class, the number of images in which it has a pixel.
        ignored: number of ignored pixels.
        sizes: ``(H, W)`` and the number of label files of this size, the most frequent first.
        read: number of label files that were decoded; the others were in the cache.
        seconds: time for reading.
    """

    name: str
    images: int
    pixels: tuple[int, ...]
    images_with: tuple[int, ...]
    ignored: int
    sizes: tuple[tuple[tuple[int, int], int], ...]
    read: int
    seconds: float

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each class in the labelled pixels, in [0, 1]."""
        total = max(1, sum(self.pixels))
        return tuple(pixels / total for pixels in self.pixels)


@dataclass(frozen=True)
class Examination:
    """The facts and findings of a dataset."""

    dataset: str
    root: str
    class_names: tuple[str, ...] = ()
    splits: tuple[SplitFacts, ...] = ()
    findings: tuple[Finding, ...] = ()

    def count(self, severity: str) -> int:
        """The number of findings with a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, beginning with the numbers of errors and warnings."""
        return {"errors": self.count("error"), "warnings": self.count("warning"), **asdict(self)}


def examine(
    name: str,
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    progress: Callable[[str], Progress] | None = None,
    workers: int | None = None,
    cache: bool = True,
    decode_images: bool = False,
    **options: Any,
) -> Examination:
    """Read the files of a dataset and check them.

    Args:
        name: a key of :data:`cawa_fast.recipes.datasets.FILE_DATASETS`.
        root: folder of the dataset.
        splits: the splits to read.
        progress: takes the name of a split and returns a function that is called as ``progress(done, total)``, pairs.
        workers: number of processes, >= 1; None takes one per core.
        cache: use and write the statistics of label files that are kept beside the data.
        decode_images: decode every image, not only its header. Finds truncated images, but takes minutes.
        **options: keywords of the dataset's class.

    Raises:
        ValueError: the name is unknown, or no split is given.
    """
    if name not in FILE_DATASETS:
        raise ValueError(f"dataset {name!r} reads no files; choose one of {', '.join(sorted(FILE_DATASETS))}")
    if not splits or len(set(splits)) < len(splits):
        raise ValueError(f"splits={list(splits)} must name at least one split, each once")
    facts, findings, opened = [], [], {}
    for split in splits:
        found = Findings(split)
        try:
            opened[split] = dataset = FILE_DATASETS[name](root, split, allow_unpaired=True, **options)
        except (OSError, ValueError) as error:
            found.add("error", "layout", str(error))
        else:
            facts.append(_examine_split(dataset, found, progress, workers, cache, decode_images))
        findings += found.list
    findings += _across_splits(opened, facts)
    findings.sort(key=lambda finding: _SEVERITIES.index(finding.severity))
    names = next(iter(opened.values())).class_names if opened else ()
    return Examination(name, str(root), tuple(names), tuple(facts), tuple(findings))


def _examine_split(
    dataset: FileDataset,
    found: Findings,
    progress: Callable[[str], Progress] | None,
    workers: int | None,
    cache: bool,
    decode_images: bool,
) -> SplitFacts:
    for missing in ("image", "label", "both"):
        if lonely := [unpaired for unpaired in dataset.unpaired if unpaired.missing == missing]:
            text = {
                "image": "label maps without an image",
                "label": "images without a label map",
                "both": "listed pairs of which neither file exists",
            }[missing]
            found.add(
                "error",
                f"missing-{missing}",
                f"{len(lonely)} {text}, such as: {lonely[0].text}",
                [unpaired.file for unpaired in lonely],
            )
    started = time.perf_counter()
    statistics = collect_label_statistics(
        dataset,
        None if progress is None else progress(dataset.split),
        workers=workers,
        cache=cache,
        images=True,
        decode_images=decode_images,
    )
    seconds = time.perf_counter() - started
    pixels, images_with, ignored = class_totals(dataset, statistics.labels)
    check_files(dataset, statistics, found)
    check_values(dataset, statistics, found)
    check_classes(dataset, pixels, ignored, statistics, found)
    sizes = Counter(record.size for record in statistics.labels if record.error is None)
    return SplitFacts(
        dataset.split,
        len(dataset),
        tuple(pixels.tolist()),
        tuple(images_with.tolist()),
        ignored,
        tuple(sizes.most_common()),
        statistics.read,
        seconds,
    )


def _across_splits(opened: dict[str, FileDataset], facts: Sequence[SplitFacts]) -> list[Finding]:
    by_name = {split.name: split for split in facts}
    found = Findings("train, val")
    if {"train", "val"} <= by_name.keys():
        train, val = by_name["train"], by_name["val"]
        names = opened["train"].class_names
        untaught = [name for name, a, b in zip(names, train.pixels, val.pixels, strict=False) if not a and b]
        if untaught:
            found.add(
                "warning",
                "class-only-in-val",
                f"{len(untaught)} classes are in val but not in train: {some(untaught)}",
            )
    seen: dict[tuple[int, bytes], tuple[str, Path]] = {}
    sizes: defaultdict[int, set[str]] = defaultdict(set)
    images = [(split, pair.image) for split, dataset in opened.items() for pair in dataset.pairs]
    lengths = [file.stat().st_size if file.exists() else -1 for _, file in images] if len(opened) > 1 else []
    for (split, _), length in zip(images, lengths, strict=False):
        sizes[length].add(split)
    doubles: defaultdict[str, list[Path]] = defaultdict(list)
    for (split, file), length in zip(images, lengths, strict=False):
        if length < 0 or len(sizes[length]) < 2:  # no file of this length is in another split
            continue
        with file.open("rb") as opened_file:
            key = length, hashlib.blake2b(opened_file.read(_HEAD), digest_size=16).digest()
        first = seen.setdefault(key, (split, file))
        if first[0] != split and filecmp.cmp(first[1], file, shallow=False):
            doubles[f"{first[0]}, {split}"].append(file)
    result = found.list
    for pair, files in doubles.items():
        both = Findings(pair)
        both.add(
            "error",
            "same-image",
            f"{len(files)} images are in both splits, so that validation is too optimistic; remove them from one",
            files,
        )
        result += both.list
    return result
