"""Street scenes drawn on the fly: a long-tailed dataset without files, for the demo and for tests.

Each image is a little world seen through a pinhole camera: a street and two rows of facades in perspective, then
trees, cars, poles, signs and people from far to near, so that they hide one another; sunlight, shadow, haze, texture,
blur and sensor noise follow. The rare classes are hard for the reasons that they are hard in a real city: a pole is
one or two pixels wide, drainpipes and trunks look like poles, posters like signs, bins and doorways like people.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base import SegmentationDataset
from ..colours import colours
from .scene import ROAD, SIDEWALK, StreetScene

# per class and for what is ignored: standard deviation of the fine and of the coarse texture, relative to brightness
_TEXTURE = np.array(
    [[30, 40], [40, 45], [35, 50], [150, 150], [4, 30], [25, 30], [30, 30], [20, 10], [60, 40], [60, 40], [30, 50]],
    dtype=np.float32,
) * np.float32(1e-3)

# first word of every scene's seed: of the numbers tried, one with which train and val have much the same shares
_SCENES = 5


class StreetDataset(SegmentationDataset):
    """Procedural street scenes with ten classes, four of them rare and small.

    Image ``index`` of a split and a seed is always the same one (NumPy's PCG64, shapes on whole pixels). Poles, traffic
    signs, persons and riders together have less than 1 % of the pixels; about 4 % are ignored (the own bonnet, bins and
    cabinets, unlabelled borders).

    Args:
        split: "train" or "val".
        length: number of images, >= 1; None gives 320 for training and 80 for validation.
        size: ``(H, W)`` in pixels, each at least 32. The scene scales with the height.
        seed: >= 0; another seed is another city.
        **options: ``cache`` and ``cache_limit`` of :class:`SegmentationDataset`.

    Raises:
        ValueError: an argument is outside its range.

    >>> street = StreetDataset("train", length=2)
    >>> image, label = street.read(1)
    >>> image.shape, str(image.dtype), street.class_names[6]
    ((96, 192, 3), 'uint8', 'pole')
    """

    name = "street"
    class_names = (
        "road",
        "sidewalk",
        "building",
        "vegetation",
        "sky",
        "car",
        "pole",
        "traffic_sign",
        "person",
        "rider",
    )
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
        splits = {"train": 320, "val": 80}
        if split not in splits:
            raise ValueError(f"split={split!r} is unknown; 'street' has {' and '.join(map(repr, splits))}")
        if length is not None and length < 1:
            raise ValueError(f"length={length} must be at least 1; None gives {splits[split]} images")
        if len(size) != 2 or min(size) < 32:
            raise ValueError(f"size={size} must be (height, width) with at least 32 pixels each")
        if seed < 0:
            raise ValueError(f"seed={seed} must be >= 0")
        self.split = split
        self.seed = seed
        self._length = splits[split] if length is None else length
        self._size = (int(size[0]), int(size[1]))
        self._stream = list(splits).index(split)

    def __len__(self) -> int:
        """Number of images."""
        return self._length

    @property
    def image_size(self) -> tuple[int, int]:
        """``(H, W)`` in pixels."""
        return self._size

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        scene = StreetScene(self._size, np.random.default_rng((_SCENES, self.seed, self._stream, index)))
        scene.draw()
        return scene.photograph(_TEXTURE, shadowed=(ROAD, SIDEWALK))
