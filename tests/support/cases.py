"""Inputs that the tests share: layouts, resize ratios, and contents from realistic to hostile.

Random numbers come from torch's global generator, which conftest.py seeds before every test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)

# (h, w) of the logits, (H, W) of the labels
RATIOS = {
    "same": ((9, 13), (9, 13)),
    "x4": ((6, 9), (24, 36)),
    "non-integer": ((9, 13), (31, 50)),
    "anisotropic": ((7, 12), (29, 12)),
    "up-and-down": ((16, 6), (5, 33)),
    "down": ((20, 22), (7, 9)),
    "from one": ((1, 1), (5, 4)),
    "to one": ((5, 4), (1, 1)),
    "one row": ((1, 8), (7, 32)),
}


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    """The same values with strides (…, 1, …) of NHWC, as convolutions on channels_last networks return them."""
    return x.contiguous(memory_format=torch.channels_last)


def sliced(x: Tensor) -> Tensor:
    """The same values as a window into a larger tensor whose other values are NaN: a read outside shows."""
    n, c, h, w = x.shape
    whole = x.new_full((n + 1, c + 2, h + 3, w + 5), torch.nan)
    window = whole[1:, 1 : c + 1, 2 : h + 2, 3 : w + 3]
    window.copy_(x)
    return window


def strided(x: Tensor) -> Tensor:
    """The same values in every other channel and row of a tensor whose slowest dimension is the width."""
    n, c, h, w = x.shape
    whole = x.new_full((w, 2 * c, n, 2 * h), torch.nan).permute(2, 1, 3, 0)
    window = whole[:, ::2, 1::2]
    window.copy_(x)
    return window


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": contiguous,
    "channels_last": channels_last,
    "sliced": sliced,
    "strided": strided,
}


class Case(NamedTuple):
    """Logits ``(N, C, h, w)`` float32 and labels ``(N, H, W)`` int64; 255 is ignored."""

    logits: Tensor
    target: Tensor


def _blocks(classes: int, n: int, size: tuple[int, int], block: int = 5) -> Tensor:
    """Labels in blocks as in annotated images: some classes are rare, and the last row of each image is 255."""
    coarse = tuple(-(-s // block) for s in size)
    share = 1 / (torch.arange(classes) + 1.0) ** 1.5
    labels = torch.multinomial(share, n * coarse[0] * coarse[1], replacement=True).view(n, *coarse)
    labels = labels.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, : size[0], : size[1]].clone()
    labels[:, -1:] = 255
    return labels


def noise(classes: int, n: int, low: tuple[int, int], high: tuple[int, int]) -> Case:
    target = torch.randint(0, classes, (n, *high))
    target[torch.rand(target.shape) < 0.1] = 255
    return Case(3 * torch.randn(n, classes, *low), target)


def smooth(classes: int, n: int, low: tuple[int, int], high: tuple[int, int]) -> Case:
    """Mostly correct and confident logits for labels in blocks."""
    target = _blocks(classes, n, high)
    one_hot = F.one_hot(target.where(target < classes, 0), classes).permute(0, 3, 1, 2).float()
    return Case(6 * F.adaptive_avg_pool2d(one_hot, low) + 0.5 * torch.randn(n, classes, *low), target)


def one_class(classes: int, n: int, low: tuple[int, int], high: tuple[int, int]) -> Case:
    """All labels and all predictions are the last class, so that all counts fall into one bin."""
    logits = torch.randn(n, classes, *low)
    logits[:, -1] += 20
    return Case(logits, torch.full((n, *high), classes - 1))


def ties(classes: int, n: int, low: tuple[int, int], high: tuple[int, int]) -> Case:
    """Logits from {0, 1, 2}: several are the largest of their pixel, and some equal a threshold exactly."""
    return Case(torch.randint(0, 3, (n, classes, *low)).float(), torch.randint(0, classes, (n, *high)))


def not_finite(classes: int, n: int, low: tuple[int, int], high: tuple[int, int]) -> Case:
    """Logits with some NaN and infinities of both signs; the last image is all NaN."""
    case = noise(classes, n, low, high)
    for value in (torch.nan, torch.inf, -torch.inf):
        case.logits[torch.rand(case.logits.shape) < 0.03] = value
    case.logits[-1] = torch.nan
    return case


def all_ignored(classes: int, n: int, low: tuple[int, int], high: tuple[int, int]) -> Case:
    return Case(torch.randn(n, classes, *low), torch.full((n, *high), 255))


def empty(classes: int, n: int, low: tuple[int, int], high: tuple[int, int]) -> Case:
    """A batch of no images."""
    return Case(torch.randn(0, classes, *low), torch.zeros(0, *high, dtype=torch.int64))


CONTENTS = {f.__name__: f for f in (noise, smooth, one_class, ties, not_finite, all_ignored, empty)}
FINITE = {name: make for name, make in CONTENTS.items() if name != "not_finite"}
