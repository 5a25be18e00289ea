"""A dataset of arrays in memory, for tests."""

from __future__ import annotations

import numpy as np

from cawa_fast.recipes.datasets import SegmentationDataset


class Arrays(SegmentationDataset):
    """A dataset of pairs in memory that counts how often each is loaded."""

    name = "arrays"
    class_names = tuple(f"class{i}" for i in range(200))
    palette = tuple((i, 0, 0) for i in range(200))

    def __init__(self, pairs, **options):
        super().__init__(**options)
        self.pairs = pairs
        self.loads = [0] * len(pairs)

    def __len__(self):
        return len(self.pairs)

    def _load(self, index):
        self.loads[index] += 1
        image, label = self.pairs[index]
        return image.copy(), label.copy()


def coded(height, width, length=1):
    """Images whose channels are the label, the row and the column of the pixel."""
    rng = np.random.default_rng(3)
    pairs = []
    for _ in range(length):
        label = rng.integers(0, 200, size=(height, width), dtype=np.uint8)
        rows, columns = np.mgrid[:height, :width].astype(np.uint8)
        pairs.append((np.stack([label, rows, columns], axis=2), label))
    return Arrays(pairs)
