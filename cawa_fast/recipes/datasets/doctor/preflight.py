"""What ``cawa-fast train`` says of its data before the first batch: the doctor's checks, in a few seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import FileDataset
from ..base import Progress
from ..label_statistics import sample_label_statistics
from .checks import Finding, Findings, check_split, class_totals
from .splits import check_across

_GOES_ON = ("same-image",)  # errors in which training can go on


@dataclass(frozen=True)
class Preflight:
    """The findings, without notes, and how many of the pairs of files were looked at."""

    findings: tuple[Finding, ...]
    looked_at: int
    pairs: int

    @property
    def partial(self) -> bool:
        """Whether there was no time for all pairs."""
        return self.looked_at < self.pairs


def preflight(
    splits: Mapping[str, FileDataset],
    pixels: Mapping[str, Sequence[int]],
    *,
    seconds: float = 2.0,
    progress: Progress | None = None,
) -> Preflight:
    """Check the splits of a run on what is known of their label files, and on a sample of the others.

    Args:
        splits: by name, "train" and "val" among them.
        pixels: pixels per class in all label maps of each, after their ``resize``.
        seconds: for reading files of each split, and for comparing the images of both, > 0.
        progress: called as ``progress(done, total)`` once reading has taken a second.

    Raises:
        ValueError: files were found that training cannot read.
    """
    findings: list[Finding] = []
    looked_at = 0
    for split, dataset in splits.items():
        part, statistics = sample_label_statistics(dataset, seconds, _later(progress))
        totals = class_totals(part, statistics.labels)
        found = Findings(split)
        check_split(part, statistics, (totals[0], totals[2]), found, np.asarray(pixels[split]))
        findings += found.list
        looked_at += sum(image is not None for image in statistics.images or [])
    findings += check_across(splits, pixels, time.monotonic() + seconds)
    for finding in findings:
        if finding.severity == "error" and finding.rule not in _GOES_ON:
            raise ValueError(f"{finding.split}: {finding.text}")
    shown = [finding for finding in findings if finding.severity != "note"]
    return Preflight(tuple(shown), looked_at, sum(map(len, splits.values())))


def _later(progress: Progress | None) -> Progress | None:
    """The callback, but only if the work takes longer than a second."""
    if progress is None:
        return None
    start, shown = time.monotonic(), False

    def call(done: int, total: int) -> None:
        nonlocal shown
        if shown or (time.monotonic() - start > 1 and done < total):
            shown = True
            progress(done, total)

    return call
