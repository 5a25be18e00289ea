"""Data sets of the recipes, by name.

>>> from cawa_fast.recipes.datasets import build_dataset
>>> val = build_dataset("street", split="val", length=4)
>>> image, label = val.read(0)
>>> image.shape, label.shape, val.num_classes
((96, 192, 3), (96, 192), 10)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .augment import Augmentation, EpochSampler, EvalView, TrainView
from .base import SegmentationDataset
from .camvid import CamVidDataset
from .street import StreetDataset

__all__ = [
    "DATASETS",
    "Augmentation",
    "CamVidDataset",
    "EpochSampler",
    "EvalView",
    "SegmentationDataset",
    "StreetDataset",
    "TrainView",
    "build_dataset",
]


def _street(
    *, root: str | None, split: str, resize: tuple[int, int] | None, seed: int, **options: Any
) -> SegmentationDataset:
    if root is not None:
        raise ValueError(f"root={root!r}: 'street' draws its images and reads no files; leave root out (None)")
    if resize is not None:
        options["size"] = resize
    return StreetDataset(split, seed=seed, **options)


def _camvid(
    *, root: str | None, split: str, resize: tuple[int, int] | None, seed: int, **options: Any
) -> SegmentationDataset:
    if root is None:
        raise ValueError(
            "root=None: 'camvid' reads files; give the folder that holds train/, trainannot/, val/, valannot/"
        )
    return CamVidDataset(root, split, resize=resize, **options)


DATASETS: dict[str, Callable[..., SegmentationDataset]] = {"street": _street, "camvid": _camvid}
"""Name to a function of the keywords ``root``, ``split``, ``resize``, ``seed`` and the data set's own options."""


def build_dataset(
    name: str,
    *,
    root: str | None = None,
    split: str = "train",
    resize: tuple[int, int] | None = None,
    seed: int = 0,
    **options: Any,
) -> SegmentationDataset:
    """Open a data set.

    Args:
        name: a key of :data:`DATASETS`: "street" (drawn on the fly) or "camvid".
        root: folder of the files; None for "street".
        split: "train" or "val".
        resize: ``(H, W)`` in pixels of every image; None keeps the data set's own.
        seed: >= 0, of data sets that are drawn; the others ignore it.
        **options: keywords of the data set's class, such as ``length`` or ``cache``.

    Raises:
        ValueError: no such data set or split, or a root that does not fit.
        FileNotFoundError: files are missing.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset {name!r} is unknown; choose one of {', '.join(sorted(DATASETS))}")
    if split not in ("train", "val"):
        raise ValueError(f"split={split!r} is unknown; choose 'train' or 'val'")
    if resize is not None and (len(resize) != 2 or min(resize) < 1):
        raise ValueError(f"resize={resize} must be (height, width) in pixels, each at least 1, or None")
    return DATASETS[name](root=root, split=split, resize=resize, seed=seed, **options)
