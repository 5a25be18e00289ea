"""A made-up long-tailed validation set: the classes of each image, and tp, fp, fn of each class in each image."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cawa_fast.sampling import Rarest


@dataclass(frozen=True)
class Population:
    """tp, fp, fn of each class in each image, stored only for classes present: a full table would not fit in memory.

    Attributes:
        images, classes: their numbers.
        start: ``(images + 1,)`` int64: where each image's entries begin.
        cls: ``(entries,)`` int64: class of each entry.
        counts: ``(entries, 3)`` int64: tp, fp, fn, in pixels.
    """

    images: int
    classes: int
    start: np.ndarray
    cls: np.ndarray
    counts: np.ndarray

    @classmethod
    def make(cls, images: int, classes: int, *, commonest: float = 0.9, rarest: float = 0.002, seed: int) -> Population:
        """A population whose class frequencies fall in geometric steps.

        The first class occurs in the share ``commonest`` of the images, the last in the share ``rarest``, and each in
        at least two images. Areas are log-normal. The recall in an image has a beta distribution around the recall of
        the class, which is higher for common classes; false positives likewise.
        """
        random = np.random.default_rng(seed)
        share = np.geomspace(commonest, rarest, classes)
        parts = []
        for index in range(classes):
            # one image from each stratum of indices: almost a draw without replacement, and 100 times faster
            count = max(2, round(share[index] * images))
            offset, step = random.random(), images / count
            here = ((np.arange(count) + random.random(count)) * step + offset * images).astype(np.int64) % images
            here = np.unique(here)
            quality = 0.85 - 0.6 * index / max(1, classes - 1)
            truth = np.exp(random.normal(7.5 - 2 * index / classes, 1.0, len(here))).round() + 1
            recall = random.beta(3 * quality, 3 * (1 - quality), len(here))
            hits = np.minimum(truth, (recall * truth).round())
            wrong = (truth * (1 - quality) * random.gamma(1.0, 1.0, len(here))).round()
            parts.append((here, np.full(len(here), index), np.stack([hits, wrong, truth - hits], 1).astype(np.int64)))
        image, label, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(image, kind="stable")
        start = np.searchsorted(image[order], np.arange(images + 1))
        return cls(images, classes, start, label[order], counts[order])

    def presence(self) -> Tensor:
        """``(images, classes)`` bool."""
        result = torch.zeros(self.images, self.classes, dtype=torch.bool)
        result[np.repeat(np.arange(self.images), np.diff(self.start)), self.cls] = True
        return result

    @functools.cached_property
    def rarest(self) -> Rarest:
        """The rarest class of each image."""
        return Rarest.of(self.presence())

    def rows(self, drawn: Tensor) -> Tensor:
        """tp, fp, fn of some images: ``(n, 3, classes)`` int64."""
        result = torch.zeros(len(drawn), 3, self.classes, dtype=torch.int64)
        for place, image in enumerate(drawn.tolist()):
            here = slice(self.start[image], self.start[image + 1])
            result[place][:, self.cls[here]] = torch.from_numpy(self.counts[here].T)
        return result

    def totals(self) -> Tensor:
        """tp, fp, fn of the whole set: ``(3, classes)`` int64."""
        return torch.stack(
            [torch.from_numpy(np.bincount(self.cls, self.counts[:, k], self.classes)).long() for k in range(3)]
        )


def scores(counts: Tensor, delta: float) -> Tensor:
    """CSPS from tp, fp, fn ``(3, C)``."""
    tp, fp, fn = counts.double()
    return delta * tp / (tp + fp + fn) + (1 - delta) * tp / (tp + fn)
