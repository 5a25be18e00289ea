"""Datasets of the recipes, by name.

=================  =====================================  ==========================================
name               images (training, validation)          classes, source of the labels
=================  =====================================  ==========================================
``street``         drawn on the fly, no files             10
``camvid``         367 and 101 of 360x480                 11; 11 is ignored
``cityscapes``     2,975 and 500 of 1024x2048             19; ``labelTrainIds``, or ``labelIds`` remapped
``ade20k``         20,210 and 2,000 of many sizes         150; 0 is ignored, the rest shifts down by one
``coco_stuff10k``  9,000 and 1,000 of many sizes          171; train ids 1..171, or the MATLAB files
``coco_stuff164k`` 118,287 and 5,000 of many sizes        171; train ids 0..170, or the raw maps remapped
``voc``            1,464 and 1,449 of many sizes          21; 255 is ignored
``voc_aug``        10,582 and 1,449 of many sizes         21; 255 is ignored
``folder``         your own                               a class list; index or colour masks
=================  =====================================  ==========================================

The attribute ``tree`` of each class is the expected tree of files; ``cawa-fast doctor data --help`` shows them all, and
the command checks a tree. Nothing is downloaded. The datasets have terms of their own.

>>> from cawa_fast.recipes.datasets import build_dataset
>>> val = build_dataset("street", split="val", length=4)
>>> image, label = val.read(0)
>>> image.shape, label.shape, val.num_classes
((96, 192, 3), (96, 192), 10)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .ade20k import ADE20KDataset
from .augment import Augmentation, EpochSampler, EvalView, TrainView
from .base import SegmentationDataset
from .camvid import CamVidDataset
from .cityscapes import CityscapesDataset
from .class_index import ClassIndex, count_class_pixels
from .coco_stuff import COCOStuff10kDataset, COCOStuff164kDataset
from .files import FileDataset
from .folder import FolderDataset
from .street.dataset import StreetDataset
from .voc import VOCAugDataset, VOCDataset

__all__ = [
    "DATASETS",
    "FILE_DATASETS",
    "ADE20KDataset",
    "Augmentation",
    "COCOStuff10kDataset",
    "COCOStuff164kDataset",
    "CamVidDataset",
    "CityscapesDataset",
    "ClassIndex",
    "EpochSampler",
    "EvalView",
    "FileDataset",
    "FolderDataset",
    "SegmentationDataset",
    "StreetDataset",
    "TrainView",
    "VOCAugDataset",
    "VOCDataset",
    "build_dataset",
    "count_class_pixels",
]


def _street(
    *, root: str | None, split: str, resize: tuple[int, int] | None, seed: int, **options: Any
) -> SegmentationDataset:
    if root is not None:
        raise ValueError(f"root={root!r}: 'street' draws its images and reads no files; leave root out (None)")
    if resize is not None:
        options["size"] = resize
    return StreetDataset(split, seed=seed, **options)


def _of_files(cls: Callable[..., FileDataset]) -> Callable[..., FileDataset]:
    def build(
        *, root: str | None, split: str, resize: tuple[int, int] | None, seed: int, **options: Any
    ) -> FileDataset:
        if root is None:
            name, tree = cls.name, cls.tree  # type: ignore[attr-defined]
            raise ValueError(f"root=None: {name!r} reads files; give the folder that holds:\n{tree}")
        return cls(root, split, resize=resize, **options)

    return build


FILE_DATASETS: dict[str, Any] = {
    cls.name: cls
    for cls in (
        ADE20KDataset,
        CamVidDataset,
        CityscapesDataset,
        COCOStuff10kDataset,
        COCOStuff164kDataset,
        FolderDataset,
        VOCDataset,
        VOCAugDataset,
    )
}
"""Classes of the datasets that read files, by name."""

DATASETS: dict[str, Callable[..., SegmentationDataset]] = {
    "street": _street,
    **{name: _of_files(cls) for name, cls in FILE_DATASETS.items()},
}
"""Functions that open a dataset, by name; keywords ``root``, ``split``, ``resize``, ``seed`` and the dataset's own."""


def build_dataset(
    name: str,
    *,
    root: str | None = None,
    split: str = "train",
    resize: tuple[int, int] | None = None,
    seed: int = 0,
    **options: Any,
) -> SegmentationDataset:
    """Open a dataset.

    Args:
        name: a key of :data:`DATASETS`.
        root: folder with the files; None for "street".
        split: "train", "val", or another split of the dataset, such as "test".
        resize: ``(H, W)`` in pixels to which every image is resized; None keeps the original size.
        seed: >= 0; only for "street".
        **options: keywords of the dataset's class, such as ``length`` or ``cache``.

    Raises:
        ValueError: there is no such dataset or split, or the root does not fit.
        FileNotFoundError: files are missing.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset {name!r} is unknown; choose one of {', '.join(sorted(DATASETS))}")
    if re.fullmatch(r"\w[\w.-]*", split) is None:
        raise ValueError(f"split={split!r} is unknown; give a name, such as 'train', 'val' or 'test'")
    if resize is not None and (len(resize) != 2 or min(resize) < 1):
        raise ValueError(f"resize={resize} must be (height, width) in pixels, each at least 1, or None")
    return DATASETS[name](root=root, split=split, resize=resize, seed=seed, **options)
