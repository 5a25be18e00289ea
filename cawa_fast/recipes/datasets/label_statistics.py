"""Statistics of the label files of a dataset, read once, in parallel, and kept beside the data.

They count codes as they are in the files rather than classes, so that they hold for every rule. Training uses them
through :class:`~cawa_fast.recipes.datasets.ClassIndex`; ``cawa-fast doctor data`` uses them too.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..files import atomic
from ..parallel import map_chunks
from .base import Progress
from .files import FileDataset, resized
from .labels import LabelRule, code_histogram, named_errors, read_codes

_VERSION = 1  # of the layout of the cache and of the meaning of codes

_ORIENTATION = 0x0112  # EXIF


class LabelRecord(NamedTuple):
    """One label file: its size ``(H, W)`` before resizing, its codes, the pixels of each code; or an error message."""

    size: tuple[int, int]
    values: tuple[int, ...]
    pixels: tuple[int, ...]
    error: str | None = None


class ImageRecord(NamedTuple):
    """One image file: its size ``(H, W)``, Pillow's mode, EXIF's orientation, 1 if upright; or an error message."""

    size: tuple[int, int]
    mode: str
    orientation: int
    error: str | None = None


@dataclass(frozen=True)
class LabelStatistics:
    """The records of the files of a dataset, one for each pair.

    Attributes:
        labels: of the label files.
        images: of the image files, if requested.
        read: number of label files that were decoded; the others were in the cache.
        cache_file: the file with the cached records, or None.
    """

    labels: list[LabelRecord]
    images: list[ImageRecord] | None
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
        dataset: the dataset. The statistics depend on its ``resize``, and on its rule only for the meaning of colours.
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
    kept = _load_cache(places)
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
    return LabelStatistics(labels, headers, read, place)  # type: ignore[arg-type]


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
        with named_errors(file), Image.open(file) as image:
            if decode:
                image.load()
            orientation = image.getexif().get(_ORIENTATION, 1) if "exif" in image.info else 1
            return ImageRecord((image.size[1], image.size[0]), image.mode, int(orientation))
    except ValueError as error:
        return ImageRecord((0, 0), "", 1, str(error))


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
    colours = sorted(code for code in rule.classes) if rule.reads_colours else []
    key = repr((_VERSION, dataset.resize, colours, str(dataset.root.resolve())))
    name = f"{dataset.name}-{dataset.split}-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.npz"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [dataset.root / ".cawa_fast" / name, Path(home) / "cawa_fast" / name]


def _load_cache(places: Sequence[Path]) -> dict[str, tuple[tuple[int, int], LabelRecord]]:
    for place in places:
        try:
            # opened here, since NumPy does not close a file that is no archive
            with open(place, "rb") as file, np.load(file, allow_pickle=False) as stored:
                names = bytes(stored["names"]).decode("utf-8", "surrogateescape").split("\0")
                stamps, sizes = stored["stamps"].tolist(), stored["sizes"].tolist()
                ends, values, pixels = stored["ends"].tolist(), stored["values"].tolist(), stored["counts"].tolist()
            return {
                name: (tuple(stamp), LabelRecord(tuple(size), tuple(values[start:end]), tuple(pixels[start:end])))
                for name, stamp, size, start, end in zip(names, stamps, sizes, [0, *ends[:-1]], ends, strict=True)
            }
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            continue  # absent, truncated, or of another version: written again
    return {}


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
