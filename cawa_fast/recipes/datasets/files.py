"""The common part of datasets of files: finding pairs of files, reading them, and the sizes of the images.

Opening a dataset lists folders but reads no file, since COCO-Stuff has 118,287 training images. A file is checked when
it is read. :class:`~cawa_fast.recipes.datasets.ClassIndex` and ``cawa-fast doctor data`` check all label files at once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .base import SegmentationDataset
from .image_files import read_header, read_rgb, turned_alike
from .labels import LabelRule, read_codes
from .pairing import Listing, Pair

_SAMPLED = 16  # images from whose headers the memory for all images is estimated


class FileDataset(SegmentationDataset):
    """Pairs of image and label files.

    A subclass sets the class attributes of :class:`SegmentationDataset` and ``tree``, lists its files and calls this
    constructor. Decoded pairs are kept only if all of them fit into the cache. Keeping a part would help little, and
    each DataLoader worker would fill a cache of its own.

    Attributes:
        tree: the layout of the files, one path a line, for ``--help`` and messages.
        reads_lists: whether list files may say which files there are, so that its class takes ``allow_outside_root``.
        one_size: True if all images have the same size, False if they differ, None to compare their headers.
        rule: the meaning of the codes in label files.
        unpaired: files without a partner, if these are allowed.
        shadowed: files that are left out, since another one has the same name but for the suffix.
        repeated: lines of a list file whose image an earlier line has.
        class_list: what was understood of a list of classes, "" if the dataset has none.
    """

    tree: str
    reads_lists: bool = False
    one_size: bool | None = None
    class_list: str = ""

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
        self.unpaired, self.shadowed = tuple(listing.unpaired), tuple(listing.shadowed)
        self.repeated = tuple(listing.repeated)
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

    def part(self, indices: Sequence[int]) -> FileDataset:
        """The same dataset with some of its pairs, in this order."""
        result = copy.copy(self)
        result._pairs, result._cache = [self._pairs[index] for index in indices], {}
        return result

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
        image, file = self._pairs[index]
        header = read_header(image)
        label = resized(turned_alike(self._label(file), file, header.size, header.orientation), self.resize)
        label.flags.writeable = False
        return label

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image_file, label_file = self._pairs[index]
        image, orientation = read_rgb(image_file)
        label = turned_alike(self._label(label_file), label_file, image.size[::-1], orientation)
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


def header_size(file: Path) -> tuple[int, int]:
    """``(H, W)`` of an upright image, from its header."""
    return read_header(file).size


def check_sizes(
    image: Path, image_size: tuple[int, ...], label: Path, label_size: tuple[int, ...], orientation: int = 1
) -> None:
    """Raise if the sizes ``(H, W)`` of a pair differ. The label may fit the image as it was before EXIF turned it."""
    stored = image_size[::-1] if orientation > 4 else image_size
    if tuple(label_size) not in (tuple(image_size), tuple(stored)):
        advice = "use images and annotations of the same version of the dataset"
        turned = [str(file) for file in (image, label) if file.suffix != ".mat" and read_header(file).orientation > 4]
        if turned:
            advice = f"EXIF data rotate {' and '.join(turned)}: rotate the pixels, and remove the tag"
        raise ValueError(
            f"{image} is {image_size[1]}x{image_size[0]} pixels (W x H), {label} is {label_size[1]}x{label_size[0]}; "
            f"{advice}"
        )


def resized(label: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """A label map resized to ``(H, W)`` by the nearest pixel; None keeps its size."""
    if size is None or label.shape == tuple(size):
        return label
    values = label if label.dtype == np.uint8 else label.astype(np.int32)  # types that Pillow resizes
    return np.array(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))
