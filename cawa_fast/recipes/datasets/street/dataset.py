"""Street scenes that are drawn when they are read: a long-tailed dataset without files, for examples and tests.

Each image shows a street and two rows of facades in perspective, through a pinhole camera. Trees, cars, poles, signs
and people are drawn from far to near and occlude one another. Sunlight, shadow, haze, texture, blur and sensor noise
follow. The rare classes are hard for the same reasons as in a real city: a pole is one or two pixels wide, drainpipes
and trunks look like poles, posters like signs, bins and doorways like people.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..base import SegmentationDataset
from ..colours import colours
from .scene import ROAD, SIDEWALK, StreetScene

# for each class, and last for ignored pixels: standard deviation of the fine and the coarse texture relative to
# brightness
_TEXTURE = np.array(
    [[30, 40], [40, 45], [35, 50], [150, 150], [4, 30], [25, 30], [30, 30], [20, 10], [60, 40], [60, 40], [30, 50]],
    dtype=np.float32,
) * np.float32(1e-3)

# First word of the seed of every scene, chosen so that train and val have similar shares of the classes.
_SCENES = 5

_NAMES = "road, sidewalk, building, vegetation, sky, car, pole, traffic_sign, person, rider"


class StreetDataset(SegmentationDataset):
    """Procedural street scenes with ten classes, four of them rare and small.

    Image ``index`` of a split and a seed is the same on every machine: random numbers are NumPy's PCG64, and shapes lie
    on whole pixels. Poles, traffic signs, persons and riders together have less than 1 % of the pixels. About 4 % are
    ignored: the bonnet of the camera's car, bins and cabinets, unlabelled borders.

    Args:
        split: "train", "val" or "test".
        length: number of images, >= 1; None gives 320 for training and 80 for validation and for the test.
        size: ``(H, W)`` in pixels, each at least 32. The scene scales with the height.
        seed: >= 0; another seed gives different scenes.
        **options: ``cache`` and ``cache_limit`` of :class:`SegmentationDataset`.

    Raises:
        ValueError: an argument is outside its range.

    >>> street = StreetDataset("train", length=2)
    >>> image, label = street.read(1)
    >>> image.shape, str(image.dtype), street.class_names[6]
    ((96, 192, 3), 'uint8', 'pole')
    """

    name = "street"
    class_names = tuple(_NAMES.split(", "))
    palette = colours("804080 f423e8 464646 6b8e23 4682b4 00008e bebebe fadc00 dc143c ff8200")

    def __init__(
        self,
        split: str,
        *,
        length: int | None = None,
        size: tuple[int, int] = (96, 192),
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        splits = {"train": 320, "val": 80, "test": 80}
        if split not in splits:
            raise ValueError(f"split={split!r} is unknown; 'street' has {', '.join(map(repr, splits))}")
        if length is not None and length < 1:
            raise ValueError(f"length={length} must be at least 1; None gives {splits[split]} images")
        if len(size) != 2 or min(size) < 32:
            raise ValueError(f"size={size} must be (height, width) with at least 32 pixels each")
        if seed < 0:
            raise ValueError(f"seed={seed} must be >= 0")
        self.split = split
        self.seed = seed
        self._indices: Sequence[int] = range(splits[split] if length is None else length)
        self._size = (int(size[0]), int(size[1]))
        self._stream = list(splits).index(split)

    def part(self, indices: Sequence[int]) -> StreetDataset:
        """The same scenes, but only those with these indices, in this order."""
        result = copy.copy(self)
        result._indices, result._cache = [self._indices[index] for index in indices], {}
        return result

    def __len__(self) -> int:
        """Number of images."""
        return len(self._indices)

    @property
    def image_size(self) -> tuple[int, int]:
        """``(H, W)`` in pixels."""
        return self._size

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        scene = StreetScene(self._size, np.random.default_rng((_SCENES, self.seed, self._stream, self._indices[index])))
        scene.draw()
        return scene.photograph(_TEXTURE, shadowed=(ROAD, SIDEWALK))
