"""Checks that compare the splits of a dataset."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import FileDataset
from ..text_files import some
from .checks import Finding, Findings

_HEAD = 65536  # bytes of an image that are hashed before whole files are compared


def check_across(
    opened: Mapping[str, FileDataset], pixels: Mapping[str, Sequence[int]], end: float | None = None
) -> list[Finding]:
    """Classes that only validation has, and images that are in two splits.

    Args:
        opened: the splits by name.
        pixels: pixels per class, by split.
        end: of :func:`time.monotonic`, when to stop looking for images in two splits; None looks at all.
    """
    found = Findings("train, val")
    if {"train", "val"} <= pixels.keys():
        names = opened["train"].class_names
        both = zip(names, pixels["train"], pixels["val"], strict=False)
        if untaught := [name for name, a, b in both if not a and b]:
            found.add(
                "warning",
                "class-only-in-val",
                f"{len(untaught)} classes are in val but not in train: {some(untaught)}",
            )
    for pair, files in _doubles(opened, end).items():
        both_splits = Findings(pair)
        both_splits.add(
            "error",
            "same-image",
            f"{len(files)} images are in both splits, so that validation is too optimistic; remove them from one",
            files,
        )
        found.list += both_splits.list
    return found.list


def _doubles(opened: Mapping[str, FileDataset], end: float | None) -> dict[str, list[Path]]:
    """The images that an earlier split has too, by the names of both."""
    doubles: defaultdict[str, list[Path]] = defaultdict(list)
    lengths: defaultdict[int, list[tuple[str, Path]]] = defaultdict(list)
    if len(opened) < 2:
        return doubles

    def late() -> bool:
        return end is not None and time.monotonic() > end

    for split in sorted(opened, key=lambda split: len(opened[split])):  # the small one first, to be compared in time
        for pair in opened[split].pairs:
            if late():
                break
            with contextlib.suppress(OSError):
                lengths[pair.image.stat().st_size].append((split, pair.image))
    order = list(opened)
    for files in lengths.values():
        if len({split for split, _ in files}) < 2:  # no file of this length is in another split
            continue
        if late():
            break
        seen: dict[bytes, tuple[str, Path]] = {}
        for split, file in sorted(files, key=lambda pair: order.index(pair[0])):
            with file.open("rb") as opened_file:
                key = hashlib.blake2b(opened_file.read(_HEAD), digest_size=16).digest()
            first = seen.setdefault(key, (split, file))
            if first[0] != split and filecmp.cmp(first[1], file, shallow=False):
                doubles[f"{first[0]}, {split}"].append(file)
    return doubles
