"""The common part of datasets of files: finding pairs of files, reading them, and the sizes of the images.

Opening a dataset lists folders but reads no file, since COCO-Stuff has 118,287 training images. A file is checked when
it is read. :class:`~cawa_fast.recipes.datasets.ClassIndex` and ``cawa-fast doctor data`` check all label files at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .base import SegmentationDataset
from .labels import LabelRule, named_errors, open_image, read_codes

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_SAMPLED = 16  # images from whose headers the memory for all images is estimated


class Pair(NamedTuple):
    """An image file and its label file."""

    image: Path
    label: Path


class Unpaired(NamedTuple):
    """An incomplete pair: what is missing ("image", "label" or "both"), the file that shows it, and a message."""

    missing: str
    file: Path
    text: str


@dataclass
class Listing:
    """The pairs of a split in order, and the files without a partner."""

    pairs: list[Pair] = field(default_factory=list)
    unpaired: list[Unpaired] = field(default_factory=list)


class FileDataset(SegmentationDataset):
    """Pairs of image and label files.

    A subclass sets the class attributes of :class:`SegmentationDataset` and ``tree``, lists its files and calls this
    constructor. Decoded pairs are kept only if all of them fit into the cache. Keeping a part would help little, and
    each DataLoader worker would fill a cache of its own.

    Attributes:
        tree: the layout of the files, one path a line, for ``--help`` and messages.
        one_size: True if all images have the same size, False if they differ, None to compare their headers.
        rule: the meaning of the codes in label files.
        unpaired: files without a partner, if these are allowed.
    """

    tree: str
    one_size: bool | None = None

    def __init__(
        self,
        root: str | Path,
        split: str,
        listing: Listing,
        rule: LabelRule,
        *,
        resize: tuple[int, int] | None = None,
        length: int | None = None,
        allow_unpaired: bool = False,
        **options: Any,
    ) -> None:
        """Args:
        root: folder of the dataset.
        split: "train", "val" or another split of the dataset.
        listing: its files.
        rule: of its labels.
        resize: ``(H, W)`` in pixels to which pairs are resized when they are read: images bilinearly with
            antialiasing, labels to the nearest pixel. None keeps the original size.
        length: number of pairs to use, evenly spaced over the split. None uses all.
        allow_unpaired: leave out files without a partner instead of raising.
        **options: ``cache`` and ``cache_limit`` of :class:`SegmentationDataset`.
        """
        super().__init__(**options)
        self.root, self.split, self.resize, self.rule = Path(root), split, resize, rule
        self.unpaired = tuple(listing.unpaired)
        if self.unpaired and not allow_unpaired:
            raise FileNotFoundError(
                f"{self.unpaired[0].text} ({len(self.unpaired)} such files); add the missing files. To see them all: "
                f"cawa-fast doctor data --dataset {self.name} --root {self.root}"
            )
        self._pairs = listing.pairs
        if length is not None:
            if not 1 <= length <= len(self._pairs):
                raise ValueError(
                    f"length={length} must be from 1 to {len(self._pairs)}, the number of images in {split}"
                )
            # evenly spaced, since neighbours are frames of one video or of one city
            self._pairs = [self._pairs[i * len(self._pairs) // length] for i in range(length)]
        self._fits: bool | None = None
        self._size: tuple[int, int] | None = resize
        self._size_known = resize is not None or self.one_size is False

    def __len__(self) -> int:
        """Number of images."""
        return len(self._pairs)

    @property
    def pairs(self) -> Sequence[Pair]:
        """The pairs of files, in the order of the images."""
        return self._pairs

    def describe(self, index: int) -> str:
        """The two files of pair ``index``."""
        image, label = self._pairs[index]
        return f"{image} with {label}"

    @property
    def image_size(self) -> tuple[int, int] | None:
        """``(H, W)`` if all images have the same size, else None. May read the headers of images, until two differ."""
        if not self._size_known and self._pairs:
            self._size = header_size(self._pairs[0].image)
            if self.one_size is None and any(header_size(pair.image) != self._size for pair in self._pairs[1:]):
                self._size = None
            self._size_known = True
        return self._size

    @property
    def fits_cache(self) -> bool:
        """Whether all decoded pairs fit into the cache, estimated from the headers of some."""
        if self._fits is None:
            if not self._pairs:
                return True
            if self._size is not None:
                pixels = float(self._size[0] * self._size[1])
            else:
                some = (
                    [i * len(self) // _SAMPLED for i in range(_SAMPLED)] if len(self) > _SAMPLED else range(len(self))
                )
                pixels = float(np.mean([np.prod(header_size(self._pairs[i].image)) for i in some]))
            self._fits = 4 * pixels * len(self) <= self._cache_room
        return self._fits

    @property
    def in_memory(self) -> bool:
        """Whether all pairs are in the cache."""
        return len(self._cache) == len(self)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One pair, from the cache if it is there; see :meth:`SegmentationDataset.read`."""
        if not self._cache and self._cache_room and not self.fits_cache:
            self._cache_room = 0
        return super().read(index)

    def read_label(self, index: int) -> np.ndarray:
        """(H, W) uint8, the label of :meth:`read`, without decoding the image."""
        if not 0 <= index < len(self):
            raise IndexError(f"index={index}: {self.name} has {len(self)} images, numbered from 0")
        if (pair := self._cache.get(index)) is not None:
            return pair[1]
        label = resized(self._label(self._pairs[index].label), self.resize)
        label.flags.writeable = False
        return label

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image_file, label_file = self._pairs[index]
        image = open_image(image_file).convert("RGB")
        label = self._label(label_file)
        check_sizes(image_file, image.size[::-1], label_file, label.shape)
        if self.resize is None and self._size not in (None, label.shape):
            raise ValueError(
                f"{image_file} is {image.size[0]}x{image.size[1]} pixels (W x H), the first image of {self.split} is "
                f"{self._size[1]}x{self._size[0]}; resize all to one size (--resize)"
            )
        if self.resize is not None:
            image = image.resize(self.resize[::-1], Image.Resampling.BILINEAR)
        return np.array(image), resized(label, self.resize)

    def _label(self, file: Path) -> np.ndarray:
        return self.rule.to_labels(read_codes(file, self.rule), file)


def need_folder(folder: Path, tree: str) -> Path:
    """Return the folder, or raise a ``FileNotFoundError`` that shows the tree."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; expected under the root:\n{tree}")
    return folder


def first_folder(root: Path, candidates: Sequence[str], tree: str) -> Path:
    """The first of several folders that exists, or a ``FileNotFoundError``."""
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    tried = " nor ".join(str(root / candidate) for candidate in candidates)
    raise FileNotFoundError(f"neither {tried} exists; expected under the root:\n{tree}")


def open_root(root: str | Path, inner: str, tree: str) -> Path:
    """The folder ``inner`` in the root if it exists, else the root itself."""
    outer = Path(root)
    if not outer.is_dir():
        raise FileNotFoundError(f"root={str(root)!r} is not a folder; give the folder that holds:\n{tree}")
    return outer / inner if (outer / inner).is_dir() else outer


def pair_folders(
    images: Path, labels: Path, image_ends: Sequence[str], label_ends: Sequence[str], *, not_labels: str | None = None
) -> Listing:
    """Pair the files of two trees by their relative path without the end of the name.

    Args:
        images: folder of the images, which may be in subfolders.
        labels: the same for the labels.
        image_ends: how the names of images end, such as ``("_leftImg8bit.png",)``, in small or capital letters.
        label_ends: the same for the labels. Of several label files for one image, the first kind is taken.
        not_labels: how the names of files end that are no labels although ``label_ends`` matches them.
    """
    left, right = _by_stem(images, image_ends), _by_stem(labels, label_ends, not_labels)
    if not left:
        raise FileNotFoundError(f"{images} holds no images (*{', *'.join(image_ends)})")
    if not right:
        raise FileNotFoundError(f"{labels} holds no label maps (*{', *'.join(label_ends)})")
    listing = Listing([Pair(left[stem], right[stem]) for stem in sorted(left.keys() & right.keys())])
    for stem in sorted(left.keys() ^ right.keys()):
        if stem in left:
            listing.unpaired.append(_lonely("label", left[stem], stem, label_ends, labels))
        else:
            listing.unpaired.append(_lonely("image", right[stem], stem, image_ends, images))
    return listing


def _lonely(missing: str, file: Path, stem: str, ends: Sequence[str], folder: Path) -> Unpaired:
    return Unpaired(
        missing, file, f"{file} has no partner named {stem}{ends[0] if len(ends) == 1 else '.*'} in {folder}"
    )


def _by_stem(folder: Path, ends: Sequence[str], excluded: str | None = None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    rank: dict[str, int] = {}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(parent, folder)
        prefix = "" if inside == "." else inside.replace(os.sep, "/") + "/"
        for name in names:
            lower = name.lower()
            if name.startswith(".") or (excluded is not None and lower.endswith(excluded.lower())):
                continue
            for order, end in enumerate(ends):
                if lower.endswith(end.lower()):
                    stem = prefix + name[: len(name) - len(end)]
                    if stem not in found or order < rank[stem]:
                        found[stem], rank[stem] = Path(parent, name), order
                    break
    return found


def pair_names(names: Sequence[str], images: Path, labels: Path, image_end: str, label_end: str) -> Listing:
    """Pair the files of listed names."""
    # List each folder once. On a network file system, a query for every file would cost a round trip each.
    here, there = ({entry.name for entry in os.scandir(folder)} for folder in (images, labels))
    listing = Listing()
    for name in names:
        image, label = name + image_end, name + label_end
        if image in here and label in there:
            listing.pairs.append(Pair(images / image, labels / label))
        elif image in here:
            listing.unpaired.append(_lonely("label", images / image, name, (label_end,), labels))
        elif label in there:
            listing.unpaired.append(_lonely("image", labels / label, name, (image_end,), images))
        else:
            text = f"{name!r} is listed, but neither {images / image} nor {labels / label} exists"
            listing.unpaired.append(Unpaired("both", images / image, text))
    return listing


def read_names(listing: Path) -> list[str]:
    """The first word of each line of a list file."""
    names = [line.split()[0] for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{listing} lists no images")
    return names


def listed_pairs(root: Path, listing: Path) -> Listing:
    """Pairs from a list file with a line "image label" for each.

    Paths are relative to the root, or absolute ones of another machine such as ``/SegNet/CamVid/train/x.png``. Of those
    the longest tail is taken that exists under the root.
    """
    listed = Listing()
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
        if not (words := line.split()):
            continue
        if len(words) != 2:
            raise ValueError(f"{listing}, line {number}: expected 'image annotation', found {line!r}")
        found = [_resolve(root, word) for word in words]
        if found[0] is not None and found[1] is not None:
            listed.pairs.append(Pair(found[0], found[1]))
            continue
        absent = [word for word, file in zip(words, found, strict=True) if file is None]
        missing = "both" if len(absent) == 2 else "label" if found[0] else "image"
        text = f"{listing}, line {number}: {absent[0]!r} is not under {root}, nor is any tail of that path"
        listed.unpaired.append(Unpaired(missing, root / absent[0].lstrip("/"), text))
    if not listed.pairs and not listed.unpaired:
        raise ValueError(f"{listing} lists no pairs; complete it, or delete it to use the folders")
    return listed


def _resolve(root: Path, listed: str) -> Path | None:
    parts = PurePosixPath(listed).parts
    for start in range(len(parts)):
        tail = PurePosixPath(*parts[start:])
        if not tail.is_absolute() and (file := root / tail).is_file():
            return file
    return None


def header_size(file: Path) -> tuple[int, int]:
    """``(H, W)`` of an image, from its header."""
    with named_errors(file), Image.open(file) as opened:
        return opened.size[1], opened.size[0]


def check_sizes(image: Path, image_size: tuple[int, ...], label: Path, label_size: tuple[int, ...]) -> None:
    """Raise if the sizes ``(H, W)`` of a pair differ."""
    if tuple(image_size) != tuple(label_size):
        raise ValueError(
            f"{image} is {image_size[1]}x{image_size[0]} pixels (W x H), {label} is {label_size[1]}x{label_size[0]}; "
            "use images and annotations of the same version of the dataset"
        )


def resized(label: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """A label map resized to ``(H, W)`` by the nearest pixel; None keeps its size."""
    if size is None or label.shape == tuple(size):
        return label
    values = label if label.dtype == np.uint8 else label.astype(np.int32)  # types that Pillow resizes
    return np.array(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))
