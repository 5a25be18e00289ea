"""The interface of every dataset: pairs of uint8 images and labels, class names and colours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

Progress = Callable[[int, int], object]
"""Called as ``progress(done, total)`` after every image."""

CACHE_LIMIT = 2 * 1024**3
"""Default limit of a dataset's cache: 2 GiB. At 4 bytes a pixel, label included, it holds 3,100 pairs of 360x480."""


class SegmentationDataset(ABC):
    """Pairs of images and label maps of equal size, decoded to uint8.

    A subclass sets the class attributes, calls ``super().__init__`` and implements ``__len__`` and ``_load``.

    Decoded pairs are kept while they fit into ``cache_limit`` bytes; the others are decoded again on every access.
    DataLoader workers that are forked share what was in the cache when they started, so fill it first with
    :meth:`preload` or :func:`~cawa_fast.recipes.datasets.count_class_pixels`. Both also check every label before the
    first training step.

    Attributes:
        name: the key in :data:`cawa_fast.recipes.datasets.DATASETS`.
        class_names: one name per class, in the order of the label values.
        palette: one RGB triple (0..255) per class; distinct where the dataset's own colours are.
        ignore_index: the label of ignored pixels, 255.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int = 255

    def __init__(self, *, cache: bool = True, cache_limit: int = CACHE_LIMIT) -> None:
        """Args:
        cache: keep decoded pairs in memory.
        cache_limit: bytes that they may take, >= 0; a pair takes 4 bytes a pixel.
        """
        if cache_limit < 0:
            raise ValueError(f"cache_limit={cache_limit} must be >= 0 bytes; cache=False turns the cache off")
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._cache_room = cache_limit if cache else 0

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Decode or draw one pair: image (H, W, 3) uint8, label (H, W) uint8 in [0, C) or ``ignore_index``."""

    def part(self, indices: Sequence[int]) -> SegmentationDataset:
        """The same dataset with some of its images, in this order."""
        raise NotImplementedError(f"{self.name} cannot be divided")

    def describe(self, index: int) -> str:
        """The source of image ``index``, for error messages."""
        return f"{self.name}[{index}]"

    @property
    def num_classes(self) -> int:
        """Number of classes C, the ignored label not counted."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """``(H, W)`` in pixels if all images have the same size, else None."""
        return None

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One pair, from the cache if it is there.

        Args:
            index: in [0, len(self)).

        Returns:
            image: (H, W, 3) uint8, RGB. Read-only, since it may be in the cache.
            label: (H, W) uint8, class indices in [0, C) or ``ignore_index``. Read-only.

        Raises:
            IndexError: there is no such image.
            ValueError: image and label differ in size, or a label is no class.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index={index}: {self.name} has {len(self)} images, numbered from 0")
        if (pair := self._cache.get(index)) is not None:
            return pair
        image, label = self._load(index)
        self._check(index, image, label)
        image.flags.writeable = label.flags.writeable = False
        size = image.nbytes + label.nbytes
        if size <= self._cache_room:
            self._cache_room -= size
            self._cache[index] = image, label
        return image, label

    def read_label(self, index: int) -> np.ndarray:
        """The label of :meth:`read`. Datasets of files do not decode the image for it.

        Args:
            index: in [0, len(self)).

        Returns:
            (H, W) uint8, read-only.
        """
        return self.read(index)[1]

    def preload(self, progress: Progress | None = None) -> None:
        """Read every pair once, which fills the cache and raises for broken files and labels.

        Args:
            progress: called as ``progress(done, total)`` after every image.
        """
        for index in range(len(self)):
            self.read(index)
            if progress is not None:
                progress(index + 1, len(self))

    def _check(self, index: int, image: np.ndarray, label: np.ndarray) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"{self.describe(index)}: image is {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
        if label.dtype != np.uint8 or label.shape != image.shape[:2]:
            raise ValueError(
                f"{self.describe(index)}: label is {label.dtype} {label.shape}, expected uint8 "
                f"{image.shape[:2]}, the size of the image"
            )
        wrong = label[(label >= self.num_classes) & (label != self.ignore_index)]
        if wrong.size:
            raise ValueError(
                f"{self.describe(index)}: {wrong.size} pixels have labels {np.unique(wrong).tolist()[:8]}, neither in "
                f"[0, {self.num_classes}) nor {self.ignore_index} (ignored); remap them when the dataset loads them"
            )
