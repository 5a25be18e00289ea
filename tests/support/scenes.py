"""Drawn street scenes, small, for trainings in the tests of the integrations."""

from __future__ import annotations

import torch

from cawa_fast.recipes.datasets.street.dataset import StreetDataset

CLASSES = 10


def scenes(count: int, size: tuple[int, int] = (32, 64)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images ``(3, H, W)`` in ``[0, 1]`` and labels ``(H, W)`` int64.

    From image to image, more pixels are ignored (255).
    """
    data = StreetDataset("train", length=count, size=size)
    pairs = []
    for index in range(count):
        image, label = (torch.tensor(part) for part in data.read(index))
        label[: index * size[0] // (2 * count)] = 255
        pairs.append((image.permute(2, 0, 1).float() / 255, label.long()))
    return pairs
