"""Examines a dataset: what is in its files, and what is wrong with them.

Errors stop or distort training: files without a partner, files that cannot be read, pairs whose sizes differ, labels
that are no class, an image in two splits. Warnings are probably mistakes: classes that never occur, images without
labels, images that EXIF data rotate. Notes are facts to know.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import FILE_DATASETS, FileDataset
from ..base import Progress
from ..label_statistics import collect_label_statistics
from .checks import Finding, Findings, check_split, class_totals
from .splits import check_across

_SEVERITIES = ("error", "warning", "note")


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
    """The facts and findings of a dataset, and what was understood of its class list."""

    dataset: str
    root: str
    class_names: tuple[str, ...] = ()
    splits: tuple[SplitFacts, ...] = ()
    findings: tuple[Finding, ...] = ()
    class_list: str = ""

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
    findings += check_across(opened, {split.name: split.pixels for split in facts})
    findings.sort(key=lambda finding: _SEVERITIES.index(finding.severity))
    first = next(iter(opened.values())) if opened else None
    names, understood = (first.class_names, first.class_list) if first else ((), "")
    return Examination(name, str(root), tuple(names), tuple(facts), tuple(findings), understood)


def _examine_split(
    dataset: FileDataset,
    found: Findings,
    progress: Callable[[str], Progress] | None,
    workers: int | None,
    cache: bool,
    decode_images: bool,
) -> SplitFacts:
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
    check_split(dataset, statistics, (pixels, ignored), found)
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
