"""From datasets to tensors: augmented views for training, whole images for evaluation, and the order of an epoch.

A view of a training image depends only on ``(seed, epoch, index)``. It has the same bits with any number of DataLoader
workers, in any order of access, and in a resumed run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from .base import SegmentationDataset

# Different first words keep the streams apart: SeedSequence pads short seeds with zeros, so that without them
# (seed, epoch) and (seed, epoch, 0) would give the same numbers.
_VIEW_STREAM, _ORDER_STREAM = 1, 2

# ITU-R 601 luma, as in Pillow's convert("L")
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """Random scale, crop, flip and colour, as is usual for semantic segmentation.

    Attributes:
        crop: ``(h, w)`` of the result in pixels, each >= 1.
        scale: range of the random scale of the image before the crop, 0 < low <= high. It is log-uniform, so that
            halving is as likely as doubling.
        flip: probability of mirroring left and right, in [0, 1].
        jitter: brightness, contrast and saturation are each multiplied by a factor uniform in
            ``[1 - jitter, 1 + jitter]``; in [0, 1], 0 keeps the colours.
        fill: RGB (0..255) of the padding where the crop exceeds the image; None takes the mean colour of the visible
            part. The label there is the dataset's ``ignore_index``.
        nearest: resample the image at the nearest pixel, as the label, instead of bilinearly with antialiasing.

    Raises:
        ValueError: a value is outside its range.

    >>> Augmentation(crop=(96, 192), scale=(0.75, 1.5)).flip
    0.5
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: float = 0.25
    fill: tuple[int, int, int] | None = None
    nearest: bool = False

    def __post_init__(self) -> None:
        if len(self.crop) != 2 or min(self.crop) < 1:
            raise ValueError(f"crop={self.crop} must be (height, width) in pixels, each at least 1")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale={self.scale} must be (low, high) with 0 < low <= high; (1, 1) turns it off")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip} is a probability: choose it in [0, 1]; 0 turns it off")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter={self.jitter} is a relative change: choose it in [0, 1]; 0 turns it off")
        if self.fill is not None and (len(self.fill) != 3 or min(self.fill) < 0 or max(self.fill) > 255):
            raise ValueError(f"fill={self.fill} must be an RGB colour with values in 0..255, or None")

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator, ignore_index: int = 255
    ) -> tuple[np.ndarray, np.ndarray]:
        """A random view of a pair.

        Args:
            image: (H, W, 3) uint8.
            label: (H, W) uint8.
            rng: the only source of randomness; the number of draws is always the same.
            ignore_index: the label of padding, in 0..255.

        Returns:
            image: (h, w, 3) uint8, possibly with negative strides.
            label: (h, w) uint8, likewise.
        """
        low, high = self.scale
        zoom = low * (high / low) ** rng.random()
        rows = _span(label.shape[0], self.crop[0], zoom, rng.random())
        columns = _span(label.shape[1], self.crop[1], zoom, rng.random())
        mirrored = rng.random() < self.flip
        brightness, contrast, saturation = (1 + self.jitter * rng.uniform(-1, 1, size=3)).tolist()

        seen = _resample(image, rows, columns, zoom, smooth=not self.nearest)
        if self.jitter > 0:
            seen = _recolour(seen, brightness, contrast, saturation)
        view = seen
        view_label = _resample(label, rows, columns, zoom, smooth=False)
        if seen.shape[:2] != tuple(self.crop):
            fill = (
                seen.mean(axis=(0, 1)).round().astype(np.uint8) if self.fill is None else np.array(self.fill, np.uint8)
            )
            inside = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
            view = np.empty((*self.crop, 3), dtype=np.uint8)
            view[:] = fill
            view[inside] = seen
            padded = np.full(self.crop, ignore_index, dtype=np.uint8)
            padded[inside] = view_label
            view_label = padded
        return (view[:, ::-1], view_label[:, ::-1]) if mirrored else (view, view_label)


@dataclass(frozen=True)
class _Span:
    """Along one axis, the output pixels [start, stop) show the source interval [low, high)."""

    start: int
    stop: int
    low: float
    high: float


def _span(length: int, crop: int, zoom: float, position: float) -> _Span:
    """Place a crop of ``crop`` pixels on a source of ``length`` pixels scaled by ``zoom``, at ``position`` in [0, 1].

    A crop smaller than the scaled source lies inside it; a larger crop contains the scaled source.
    """
    slack = length * zoom - crop
    offset = slack * position
    # the tolerance keeps a pixel at an edge that lies on a whole number but for rounding
    start = max(0, math.ceil(-offset - 1e-6))
    stop = min(crop, math.floor(length * zoom - offset + 1e-6))
    if stop <= start:  # less than one pixel of the source is visible: show that pixel
        start = min(start, crop - 1)
        return _Span(start, start + 1, 0.0, float(length))
    return _Span(start, stop, max(0.0, (start + offset) / zoom), min(float(length), (stop + offset) / zoom))


def _resample(source: np.ndarray, rows: _Span, columns: _Span, zoom: float, *, smooth: bool) -> np.ndarray:
    """The source rectangle of two spans at output resolution. The cost is that of the rectangle, not of the image."""
    # The bilinear filter reaches max(1, 1/zoom) source pixels to either side, which are kept for exact borders.
    margin = int(np.ceil(max(1.0, 1.0 / zoom))) + 1
    top, left = max(0, int(rows.low) - margin), max(0, int(columns.low) - margin)
    bottom, right = int(np.ceil(rows.high)) + margin, int(np.ceil(columns.high)) + margin
    window = np.ascontiguousarray(source[top:bottom, left:right])
    box = (columns.low - left, rows.low - top, columns.high - left, rows.high - top)
    resample = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    size = (columns.stop - columns.start, rows.stop - rows.start)
    return np.asarray(Image.fromarray(window).resize(size, resample, box=box))


def _recolour(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Change saturation about each pixel's luma, contrast about the mean luma, and brightness, by one 3x4 matrix."""
    # every fourth row and column suffices for the mean, at a sixteenth of the cost
    mean = float(image[::4, ::4].reshape(-1, 3).mean(axis=0) @ np.array(_LUMA))
    gain = brightness * contrast
    matrix: list[float] = []
    for row in range(3):
        for column in range(3):
            matrix.append(gain * ((1 - saturation) * _LUMA[column] + saturation * (row == column)))
        matrix.append(brightness * (1 - contrast) * mean)
    return np.asarray(Image.fromarray(image).convert("RGB", tuple(matrix)))


def _to_tensors(image: np.ndarray, label: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    # The copies have positive strides, are writable, and have the layout (3, h, w).
    return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(label.copy())


class TrainView(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A dataset as augmented training tensors, indexed by an :class:`EpochSampler`.

    Args:
        dataset: the images.
        augmentation: the random changes.
        seed: >= 0; together with epoch and index it determines every view.
    """

    def __init__(self, dataset: SegmentationDataset, augmentation: Augmentation, *, seed: int = 0) -> None:
        _check_seed(seed)
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The view of image ``index`` in epoch ``epoch``.

        Args:
            key: ``(epoch, index)``, both >= 0.

        Returns:
            image: (3, h, w) uint8, label: (h, w) uint8, with ``(h, w) = augmentation.crop``.
        """
        if not (isinstance(key, tuple) and len(key) == 2):
            raise TypeError(
                f"TrainView takes (epoch, index), not {key!r}; give the DataLoader sampler=EpochSampler(...)"
            )
        epoch, index = key
        rng = np.random.default_rng((_VIEW_STREAM, self.seed, epoch, index))
        image, label = self.dataset.read(index)
        return _to_tensors(*self.augmentation(image, label, rng, self.dataset.ignore_index))


class EvalView(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A dataset as tensors of whole, unchanged images."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (3, H, W) uint8 and label (H, W) uint8 of image ``index``."""
        return _to_tensors(*self.dataset.read(index))


class EpochSampler(Sampler[tuple[int, int]]):
    """Every index once per epoch, as ``(epoch, index)``, in an order that depends only on ``(seed, epoch)``.

    Args:
        length: number of images, >= 1.
        seed: >= 0.

    >>> sampler = EpochSampler(4, seed=0)
    >>> sampler.set_epoch(2)
    >>> sorted(sampler)
    [(2, 0), (2, 1), (2, 2), (2, 3)]
    """

    def __init__(self, length: int, *, seed: int = 0) -> None:
        if length < 1:
            raise ValueError(f"length={length}: there are no images to sample; check the dataset's split")
        _check_seed(seed)
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (>= 0) that the next iteration yields."""
        if epoch < 0:
            raise ValueError(f"epoch={epoch} must be >= 0")
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of images in an epoch."""
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield ``(epoch, index)`` pairs."""
        epoch = self.epoch
        order = np.random.default_rng((_ORDER_STREAM, self.seed, epoch)).permutation(self.length)
        return ((epoch, index) for index in order.tolist())


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"seed={seed} must be >= 0")
