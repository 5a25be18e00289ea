"""Which classes each image shows, and with how many pixels."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from .base import Progress, SegmentationDataset
from .files import FileDataset
from .label_statistics import collect_label_statistics


def count_class_pixels(dataset: SegmentationDataset, progress: Progress | None = None) -> torch.Tensor:
    """Pixels per class over all labels of a dataset, and a check of every label.

    Where all images fit into the dataset's cache, this reads them and so fills the cache. Where they do not, it reads
    only the label files: in parallel, and not again where :class:`ClassIndex` has already read them.

    Args:
        dataset: its labels count after its ``resize``.
        progress: called as ``progress(done, total)``, images.

    Returns:
        (C,) int64, ignored pixels not counted.

    Raises:
        ValueError: a file is broken or holds a label that is no class.
    """
    if isinstance(dataset, FileDataset) and not dataset.fits_cache:
        return ClassIndex.build(dataset, progress).class_pixels()
    pixels = np.zeros(256, dtype=np.int64)
    for index in range(len(dataset)):
        pixels += np.bincount(dataset.read(index)[1].reshape(-1), minlength=256)
        if progress is not None:
            progress(index + 1, len(dataset))
    return torch.from_numpy(pixels[: dataset.num_classes].copy())


class ClassIndex:
    """Pixels per class of every image of a dataset, stored sparsely: of 150 classes an image shows about nine.

    Attributes:
        images: number of images N.
        num_classes: number of classes C.

    Example:
        >>> from cawa_fast.recipes.datasets import ClassIndex, build_dataset, count_class_pixels
        >>> street = build_dataset("street", length=3, resize=(48, 96))
        >>> index = ClassIndex.build(street)
        >>> index.pixels.shape, bool((index.presence == (index.pixels > 0)).all())
        ((3, 10), True)
        >>> torch.equal(index.class_pixels(), count_class_pixels(street))
        True
    """

    def __init__(
        self, images: int, num_classes: int, rows: np.ndarray, classes: np.ndarray, pixels: np.ndarray
    ) -> None:
        """Args:
        images: N >= 0.
        num_classes: C >= 1.
        rows: (K,) integers in [0, N): the image of each entry.
        classes: (K,) integers in [0, C): its class. No pair of image and class occurs twice.
        pixels: (K,) integers >= 1: the number of its pixels.
        """
        self.images, self.num_classes = images, num_classes
        self._rows = np.asarray(rows, dtype=np.int64)
        self._classes = np.asarray(classes, dtype=np.int64)
        self._pixels = np.asarray(pixels, dtype=np.int64)

    @classmethod
    def build(
        cls,
        dataset: SegmentationDataset,
        progress: Progress | None = None,
        workers: int | None = None,
        cache: bool = True,
    ) -> ClassIndex:
        """Count the pixels of every label.

        Label files are read in parallel, and their statistics are kept beside the data, so that a second call need not
        read them; see :func:`~cawa_fast.recipes.datasets.label_statistics.collect_label_statistics`. Labels that are
        drawn, or all in memory already, are counted directly.

        Args:
            dataset: its labels count after its ``resize``.
            progress: called as ``progress(done, total)``, images.
            workers: number of processes that read files, >= 1; None takes one per core.
            cache: use and write the statistics kept beside the data.

        Raises:
            ValueError: a label file is broken or has a label that is no class; the first such file is named.
        """
        if isinstance(dataset, FileDataset) and not dataset.in_memory:
            return cls._of_files(dataset, progress, workers, cache)
        parts = []
        for index in range(len(dataset)):
            pixels = np.bincount(dataset.read_label(index).reshape(-1), minlength=256)[: dataset.num_classes]
            parts.append((np.flatnonzero(pixels), pixels[pixels > 0]))
            if progress is not None:
                progress(index + 1, len(dataset))
        return cls._joined(dataset.num_classes, parts)

    @classmethod
    def _of_files(cls, dataset: FileDataset, progress: Progress | None, workers: int | None, cache: bool) -> ClassIndex:
        rule, parts = dataset.rule, []
        broken: list[tuple[int, str]] = []
        statistics = collect_label_statistics(dataset, progress, workers=workers, cache=cache)
        for index, record in enumerate(statistics.labels):
            if record.error is not None:
                broken.append((index, record.error))
            elif wrong := rule.unknown(record.values):
                unknown = sum(n for value, n in zip(record.values, record.pixels, strict=True) if value in wrong)
                broken.append((index, rule.complaint(dataset.pairs[index].label, wrong, unknown)))
            pixels = np.zeros(256, dtype=np.int64)  # several codes may be one class
            for value, n in zip(record.values, record.pixels, strict=True):
                pixels[rule.classes.get(value, dataset.ignore_index)] += n
            pixels = pixels[: dataset.num_classes]
            parts.append((np.flatnonzero(pixels), pixels[pixels > 0]))
        if broken:
            more = ""
            if len(broken) > 1:
                more = (
                    f". {len(broken)} label files have such errors; to see all: cawa-fast doctor data "
                    f"--dataset {dataset.name} --root {dataset.root}"
                )
            raise ValueError(f"{broken[0][1]}{more}")
        return cls._joined(dataset.num_classes, parts)

    @classmethod
    def _joined(cls, num_classes: int, parts: list[tuple[np.ndarray, np.ndarray]]) -> ClassIndex:
        rows = np.repeat(np.arange(len(parts)), [len(classes) for classes, _ in parts])
        classes, pixels = (
            np.concatenate([part[k] for part in parts]) if parts else np.zeros(0, dtype=np.int64) for k in (0, 1)
        )
        return cls(len(parts), num_classes, rows, classes, pixels)

    def __len__(self) -> int:
        """Number of images."""
        return self.images

    @cached_property
    def pixels(self) -> np.ndarray:
        """(N, C) int64, pixels of each class in each image. Dense: 24 MB for ADE20K, 162 MB for COCO-Stuff 164k."""
        dense = np.zeros((self.images, self.num_classes), dtype=np.int64)
        dense[self._rows, self._classes] = self._pixels
        return dense

    @cached_property
    def presence(self) -> np.ndarray:
        """(N, C) bool, whether the class has a pixel in the image."""
        dense = np.zeros((self.images, self.num_classes), dtype=bool)
        dense[self._rows, self._classes] = True
        return dense

    def class_pixels(self) -> torch.Tensor:
        """(C,) int64, pixels per class over all images, ignored pixels not counted."""
        totals = np.zeros(self.num_classes, dtype=np.int64)
        np.add.at(totals, self._classes, self._pixels)
        return torch.from_numpy(totals)
