"""Statistics of the label files of a dataset, read once, in parallel, and kept beside the data.

They count codes as they are in the files rather than classes, so that they hold for every rule. Training uses them
through :class:`~cawa_fast.recipes.datasets.ClassIndex`; ``cawa-fast doctor data`` uses them too.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import atomic
from ..parallel import map_chunks
from .base import Progress
from .files import FileDataset, resized
from .image_files import Header, read_header, read_rgb
from .labels import IGNORE, LabelRule, code_histogram, read_codes
from .text_files import need_regular

_CHUNK = 16  # pairs between two looks at the clock
_VERSION = 2  # of the layout of the cache and of the meaning of codes


class LabelRecord(NamedTuple):
    """One label file: its size ``(H, W)`` before resizing, its codes, the pixels of each code; or an error message."""

    size: tuple[int, int]
    values: tuple[int, ...]
    pixels: tuple[int, ...]
    error: str | None = None


class ImageRecord(NamedTuple):
    """One image file: its header, or an error message."""

    header: Header
    error: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)`` of the upright image."""
        return self.header.size


@dataclass(frozen=True)
class LabelStatistics:
    """The records of the files of a dataset, one for each pair.

    Attributes:
        labels: of the label files.
        images: of the image files, if requested; None for those that a sample does not have.
        read: number of label files that were decoded; the others were in the cache.
        cache_file: the file with the cached records, or None.
    """

    labels: list[LabelRecord]
    images: list[ImageRecord | None] | None
    read: int
    cache_file: Path | None


def collect_label_statistics(
    dataset: FileDataset,
    progress: Progress | None = None,
    *,
    workers: int | None = None,
    cache: bool = True,
    images: bool = False,
    decode_images: bool = False,
) -> LabelStatistics:
    """The statistics of all label files; reads those that are not in the cache.

    The cache is in ``ROOT/.cawa_fast`` or, if that cannot be written, in the user's cache folder,
    ``$XDG_CACHE_HOME/cawa_fast`` or ``~/.cache/cawa_fast``. It knows files by name, size and time of change, so that
    only files that have changed are read again.

    Args:
        dataset: the dataset. The statistics depend on its ``resize``, and on its rule only for the meaning of colours
            and of pixels that are marked as no data.
        progress: called as ``progress(done, total)``.
        workers: number of processes, >= 1; None takes one per core.
        cache: use and write the cache.
        images: read the headers of the images, too.
        decode_images: decode the images, which finds truncated ones.

    Raises:
        ValueError: workers is less than 1.
    """
    files = [str(pair.label) for pair in dataset.pairs]
    stamps = _stamps(files) if cache else []
    places = _cache_files(dataset) if cache else []
    kept = _load_cache(places, dataset.resize)
    names = [os.path.relpath(file, dataset.root) for file in files] if cache else files
    known: dict[int, LabelRecord] = {}
    for index, (name, stamp) in enumerate(zip(names, stamps, strict=False)):  # without cache there are no stamps
        if name in kept and kept[name][0] == stamp:
            known[index] = kept[name][1]
    wanted = [index for index in range(len(files)) if images or index not in known]
    tasks = [
        (files[index] if index not in known else None, str(dataset.pairs[index].image) if images else None)
        for index in wanted
    ]
    before = len(files) - len(wanted)

    def done(count: int) -> None:
        if progress is not None:
            progress(before + count, len(files))

    if not wanted:
        done(0)
    work = functools.partial(_read_chunk, rule=dataset.rule, resize=dataset.resize, decode_images=decode_images)
    found = dict(zip(wanted, map_chunks(work, tasks, workers=workers, done=done), strict=True))
    labels = []
    for index in range(len(files)):
        record = known.get(index) or found[index][0]
        assert record is not None  # each is either known or read
        labels.append(record)
    read = len(files) - len(known)
    place = places[0] if places and not read else None
    if read and cache:
        kept |= {
            name: (stamp, record)
            for name, stamp, record in zip(names, stamps, labels, strict=True)
            if record.error is None and stamp != _GONE
        }
        place = _write_cache(places, kept)
    headers = [found[index][1] for index in range(len(files))] if images else None
    return LabelStatistics(labels, headers, read, place)


def sample_label_statistics(
    dataset: FileDataset, seconds: float, progress: Progress | None = None
) -> tuple[FileDataset, LabelStatistics]:
    """The statistics of label files in the cache, and of as many other pairs as can be read in a time.

    Args:
        dataset: the dataset; pairs are read evenly spaced.
        seconds: time for reading, > 0. At least a few pairs are read.
        progress: called as ``progress(done, total)``.

    Returns:
        The part of the dataset that has been looked at, and its statistics. The headers of the images are those that
        were read in time.
    """
    files = [str(pair.label) for pair in dataset.pairs]
    kept = _load_cache(_cache_files(dataset), dataset.resize)
    labels: dict[int, LabelRecord] = {}
    if kept:
        names = [os.path.relpath(file, dataset.root) for file in files]
        listed = [index for index, name in enumerate(names) if name in kept]
        for index, stamp in zip(listed, _stamps([files[index] for index in listed]), strict=True):
            if kept[names[index]][0] == stamp:
                labels[index] = kept[names[index]][1]
    known = len(labels)
    images: dict[int, ImageRecord] = {}
    end = time.monotonic() + seconds
    order = evenly_spaced(len(files))
    for start in range(0, len(order), _CHUNK):
        if start and time.monotonic() > end:
            break
        chunk = order[start : start + _CHUNK]
        tasks: list[tuple[str | None, str | None]] = [
            (None if index in labels else files[index], str(dataset.pairs[index].image)) for index in chunk
        ]
        found = _read_chunk(tasks, rule=dataset.rule, resize=dataset.resize, decode_images=False)
        for index, (label, image) in zip(chunk, found, strict=True):
            if label is not None:
                labels[index] = label
            if image is not None:
                images[index] = image
        if progress is not None:
            progress(min(start + _CHUNK, len(order)), len(order))
    if progress is not None:
        progress(len(order), len(order))
    indices = sorted(labels)
    headers = [images.get(index) for index in indices]
    statistics = LabelStatistics([labels[index] for index in indices], headers, len(labels) - known, None)
    return dataset.part(indices), statistics


def evenly_spaced(count: int) -> list[int]:
    """0..count-1 in an order of which every beginning is evenly spaced: by the bits of the place, the lowest first.

    >>> evenly_spaced(6)
    [0, 4, 2, 1, 5, 3]
    """
    bits = max(1, (count - 1).bit_length())
    places = (int(f"{place:0{bits}b}"[::-1], 2) for place in range(1 << bits))
    return [place for place in places if place < count]


def _read_chunk(
    tasks: list[tuple[str | None, str | None]], *, rule: LabelRule, resize: tuple[int, int] | None, decode_images: bool
) -> list[tuple[LabelRecord | None, ImageRecord | None]]:
    return [
        (
            None if label is None else _read_label(label, rule, resize),
            None if image is None else _read_image(image, decode_images),
        )
        for label, image in tasks
    ]


def _read_label(file: str, rule: LabelRule, resize: tuple[int, int] | None) -> LabelRecord:
    try:
        codes = read_codes(file, rule)
    except ValueError as error:
        return LabelRecord((0, 0), (), (), str(error))
    values, pixels = code_histogram(resized(codes, resize))
    return LabelRecord((codes.shape[0], codes.shape[1]), tuple(values), tuple(pixels))


def _read_image(file: str, decode: bool) -> ImageRecord:
    try:
        header = read_header(file, decode=decode)
        if header.mode in ("I", "F") and not decode:  # whose values may have no 8-bit scale
            read_rgb(file)
        return ImageRecord(header)
    except ValueError as error:
        return ImageRecord(Header((0, 0), "", 1, 1), str(error))


_GONE = (-1, -1)


def _stamps(files: Sequence[str]) -> list[tuple[int, int]]:
    """Size in bytes and time of change in ns of each file."""
    result = []
    for file in files:
        try:
            status = os.stat(file)
            result.append((status.st_size, status.st_mtime_ns))
        except OSError:
            result.append(_GONE)
    return result


def _cache_files(dataset: FileDataset) -> list[Path]:
    """The possible places of the cache, the preferred one first."""
    rule = dataset.rule
    colours = sorted(rule.classes) if rule.reads_colours else []
    no_data = rule.classes.get(IGNORE) == IGNORE  # the code of pixels marked as no data
    key = repr((_VERSION, dataset.resize, colours, no_data, str(dataset.root.resolve())))
    name = f"{dataset.name}-{dataset.split}-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.npz"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [dataset.root / ".cawa_fast" / name, Path(home) / "cawa_fast" / name]


_LARGEST = 1 << 30  # bytes of a cache in memory; that of COCO-Stuff takes 30 million


def _load_cache(
    places: Sequence[Path], resize: tuple[int, int] | None
) -> dict[str, tuple[tuple[int, int], LabelRecord]]:
    for place in places:
        try:
            # opened here, since NumPy does not close a file that is no archive
            need_regular(place)
            with zipfile.ZipFile(place) as archive:
                if sum(member.file_size for member in archive.infolist()) > _LARGEST:
                    continue
            with open(place, "rb") as file, np.load(file, allow_pickle=False) as stored:
                names = bytes(stored["names"]).decode("utf-8", "surrogateescape").split("\0")
                stamps, sizes = stored["stamps"].tolist(), stored["sizes"].tolist()
                ends, values, pixels = stored["ends"].tolist(), stored["values"].tolist(), stored["counts"].tolist()
            records = {
                name: (tuple(stamp), LabelRecord(tuple(size), tuple(values[start:end]), tuple(pixels[start:end])))
                for name, stamp, size, start, end in zip(names, stamps, sizes, [0, *ends[:-1]], ends, strict=True)
            }
            return {name: kept for name, kept in records.items() if _is_possible(kept[1], resize)}
        except Exception:  # NumPy and zipfile raise many kinds for a damaged archive
            continue  # absent, truncated, or of another version: written again
    return {}


def _is_possible(record: LabelRecord, resize: tuple[int, int] | None) -> bool:
    """Whether the counts of a record are those of a map of its size. An edited cache is not believed."""
    height, width = resize or record.size
    counted = len(record.values) == len(record.pixels) and min(record.pixels, default=0) >= 0
    return counted and sum(record.pixels) == height * width and list(record.values) == sorted(set(record.values))


def _write_cache(places: Sequence[Path], kept: dict[str, tuple[tuple[int, int], LabelRecord]]) -> Path | None:
    if not kept:
        return None
    records = [record for _, record in kept.values()]
    arrays = {
        "names": np.frombuffer("\0".join(kept).encode("utf-8", "surrogateescape"), dtype=np.uint8),
        "stamps": np.array([stamp for stamp, _ in kept.values()], dtype=np.int64),
        "sizes": np.array([record.size for record in records], dtype=np.int32),
        "ends": np.cumsum([len(record.values) for record in records]),
        "values": np.array([value for record in records for value in record.values], dtype=np.int32),
        "counts": np.array([n for record in records for n in record.pixels], dtype=np.int64),
    }
    for place in places:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic(place) as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            return place
    return None
