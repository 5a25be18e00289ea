"""The benchmarks' inputs, made from a seed: logits like those of a network, and noise.

The cost of the fused operators depends on their input, because cells whose corners agree are cheap. Noise alone would
show the operators too slow, and flat images too fast. :func:`realistic` draws scenes of regions with a long tail of
classes and thin rare objects, and the logits of a network that recognises some of them. Its constants are chosen so
that the properties that determine the cost agree with the network of `make demo` (bench/results/realism.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255
IGNORED_SHARE = 0.05  # of the pixels
TAU = 0.5  # the threshold of CAM counts
SEED = 20260101

# The imitated network's logits. Noise makes its borders ragged and its areas uncertain.
_GAIN = 7.0  # of a class where the network sees it
_FLOOR = -1.0  # of a class of the scene where the network does not see it
_ABSENT = -3.5  # of a class that is not in the scene
_WAVES = ((40, 2.0), (12, 2.0), (4, 1.2))  # smooth noise per class: cells from crest to crest, standard deviation
_TOP = 12.0  # confidence saturates: a map has plateaus, not peaks
_GRAIN = 0.12  # white noise, standard deviation
_MISSED = 0.4  # share of the thin objects that the network does not see
_REGIONS = 26  # areas of a scene
_OBJECTS = 14  # thin objects of a scene
_STRIDE = 4  # logits of the labels' size are made at this stride and upsampled


@dataclass(frozen=True)
class Problem:
    """One benchmark's input.

    Attributes:
        logits: ``(N, C, h, w)`` float32, contiguous. After the ReLU they are the activation maps.
        labels: ``(N, H, W)`` uint8, 255 where ignored.
        weight: ``(C,)`` float32 of mean 1, as adaptive weights are.
        align_corners: how logits are resized to the labels.
    """

    logits: Tensor
    labels: Tensor
    weight: Tensor
    align_corners: bool = False

    @property
    def same_size(self) -> bool:
        """Whether logits have the labels' resolution."""
        return self.logits.shape[-2:] == self.labels.shape[-2:]


def make(
    content: str,
    classes: int,
    low: tuple[int, int],
    high: tuple[int, int],
    *,
    images: int = 2,
    align_corners: bool = False,
    seed: int = SEED,
) -> Problem:
    """A problem with ``classes``, logits of size ``low`` and labels of size ``high``.

    The ``content`` is "realistic", "noise", or "one class": realistic with one class nearly everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    contents = {"realistic": realistic, "noise": noise, "one class": one_class}
    logits, labels = contents[content](classes, low, high, images, generator)
    weight = torch.exp(0.5 * torch.randn(classes, generator=generator))
    return Problem(logits, labels, weight / weight.mean(), align_corners)


FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
"""The dimensions to flip, which make four scenes of one."""


def repeat(
    problem: Problem, images: int, device: torch.device | str, logits_size: tuple[int, int] | None = None
) -> Problem:
    """``problem`` on ``device`` with as many ``images``: its own scenes, which are slow to draw, and mirror images.

    Args:
        problem: a few scenes.
        images: the number wanted, at most four times that of ``problem``.
        device: of the result.
        logits_size: the size to which logits are upsampled on the device, if they are smaller.
    """
    logits, labels = problem.logits.to(device), problem.labels.to(device)
    flips = FLIPS[: -(-images // len(labels))]
    assert len(flips) * len(labels) >= images, "four mirror images are all there are"
    logits = torch.cat([logits.flip(dims) for dims in flips])[:images]
    labels = torch.cat([labels.flip(dims) for dims in flips])[:images]
    if logits_size is not None and logits.shape[-2:] != logits_size:
        logits = F.interpolate(logits, size=logits_size, mode="bilinear")
    return Problem(logits, labels, problem.weight.to(device), problem.align_corners)


def noise(
    classes: int, low: tuple[int, int], high: tuple[int, int], images: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Normal logits, uniform labels, scattered ignored pixels: the worst case, in which no two neighbours agree."""
    logits = torch.randn(images, classes, *low, generator=generator)
    labels = torch.randint(0, classes, (images, *high), generator=generator)
    ignored = torch.rand(images, *high, generator=generator) < IGNORED_SHARE
    return logits, labels.masked_fill_(ignored, IGNORE).to(torch.uint8)


def realistic(
    classes: int, low: tuple[int, int], high: tuple[int, int], images: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``(logits, labels)`` of drawn scenes: ``(images, classes, *low)`` float32 and ``(images, *high)`` uint8."""
    grid = low
    if low == high:
        grid = (max(low[0] // _STRIDE, 1), max(low[1] // _STRIDE, 1))
    logits, labels = zip(*(_scene(classes, grid, high, generator) for _ in range(images)), strict=True)
    batch = torch.stack(logits)
    if low == high:
        batch = F.interpolate(batch, size=high, mode="bilinear")
    return batch, torch.stack(labels)


def one_class(
    classes: int, low: tuple[int, int], high: tuple[int, int], images: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Realistic within a window of a thirtieth of the image; elsewhere class 0 with confident logits.

    It is hard for counting with atomics, because nearly all pixels fall into one bin.
    """
    logits, labels = realistic(classes, low, high, images, generator)

    def outside(size: tuple[int, int]) -> Tensor:
        mask = torch.ones(size, dtype=torch.bool)
        mask[size[0] // 3 : size[0] // 3 + size[0] // 6, size[1] // 3 : size[1] // 3 + size[1] // 5] = False
        return mask

    logits[:, 0] += 2 * _TOP * outside((logits.shape[-2], logits.shape[-1]))
    return logits, labels.masked_fill(outside(high) & (labels != IGNORE), 0)


def _scene(
    classes: int, grid: tuple[int, int], high: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    present = _present_classes(classes, generator)
    share = 1 / torch.arange(1.0, len(present) + 1)
    # every present class once, the frequent ones more often
    more = torch.multinomial(share, max(_REGIONS - len(present), 1), replacement=True, generator=generator)
    kind = present[torch.cat((torch.arange(len(present)), more))]
    size = torch.cat((share, share[more])).sqrt() * 0.1 * (0.5 + torch.rand(len(kind), generator=generator))
    site = torch.rand(len(kind), 2, generator=generator)

    # the network sees the same borders slightly displaced
    bend = _smooth((2, *high), 6, generator) * 0.05
    truth = _regions(site, size, kind, high, bend)
    seen = _regions(site, size, kind, high, bend + _smooth((2, *high), max(grid) // 6, generator) * 0.004)
    for _ in range(_OBJECTS):
        window = _thin_object(high, generator)
        rare = present[-1 - int(torch.randint(0, max(len(present) // 2, 1), (), generator=generator))]
        truth[window] = rare
        if torch.rand((), generator=generator) > _MISSED:
            seen[window] = rare

    # lower for more classes, because the largest of many absent logits grows with the logarithm of their number
    absent = _ABSENT - math.log(max(classes / 10, 1))
    belief = torch.full((classes, *grid), (absent - _FLOOR) / (_GAIN - _FLOOR))
    for label in present.tolist():  # only the present classes, one at a time, to save memory
        belief[label] = F.adaptive_avg_pool2d((seen == label).float()[None], grid)[0]
    belief = F.avg_pool2d(F.pad(belief[None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0]
    logits = belief * (_GAIN - _FLOOR) + _FLOOR
    for cells, deviation in _WAVES:
        logits += deviation * _smooth((classes, *grid), max(max(grid) // cells, 1), generator)
    logits += _GRAIN * torch.randn(logits.shape, generator=generator)
    logits = _TOP * torch.tanh(logits / _TOP)

    labels = truth.to(torch.uint8)
    # ignored, as in real datasets: the car's own bonnet at the bottom, and objects without a class
    labels[round(high[0] * (1 - 0.6 * IGNORED_SHARE)) :] = IGNORE
    blob = _smooth((1, *high), 8, generator)[0]
    labels[blob > blob.flatten()[:: max(blob.numel() // 10000, 1)].quantile(1 - 0.4 * IGNORED_SHARE)] = IGNORE
    return logits, labels


def _present_classes(classes: int, generator: torch.Generator) -> Tensor:
    """The classes of one scene, the frequent first: three quarters of few, eleven of many (ADE20K has ten of 150)."""
    number = max(1, min(round(0.77 * classes), 11))
    share = 1 / torch.arange(1.0, classes + 1)
    return torch.multinomial(share, number, generator=generator).sort().values


def _regions(site: Tensor, size: Tensor, kind: Tensor, high: tuple[int, int], bend: Tensor) -> Tensor:
    """``(H, W)`` int64: the class of the nearest site; ``size`` extends a site's reach, ``bend`` displaces borders."""
    ratio = high[1] / high[0]
    y = (torch.arange(high[0]) / high[0])[:, None] + bend[0]
    x = (torch.arange(high[1]) / high[1])[None] * ratio + bend[1]
    nearest = torch.full(high, torch.inf)
    label = torch.zeros(high, dtype=torch.int64)
    for place, reach, value in zip(site, size, kind, strict=True):
        distance = (y - place[0]).square() + (x - place[1] * ratio).square() - reach
        closer = distance < nearest
        nearest = distance.where(closer, nearest)
        label.masked_fill_(closer, int(value))
    return label


def _thin_object(high: tuple[int, int], generator: torch.Generator) -> tuple[slice, slice]:
    """The window of a pole (half of them) or of something small."""
    where, length, kind = torch.rand(3, generator=generator).tolist()
    left = torch.rand((), generator=generator).item()
    height = (0.1 + 0.3 * length) if kind < 0.5 else (0.02 + 0.04 * length)
    width = 0.006 if kind < 0.5 else 0.03
    top, first = int(where * (1 - height) * high[0]), int(left * high[1])
    # widths are shares of the image's height, so that poles are not thicker in wide images
    return slice(top, top + max(int(height * high[0]), 1)), slice(first, first + max(int(width * high[0]), 1))


def _smooth(shape: tuple[int, int, int], waves: int, generator: torch.Generator) -> Tensor:
    """Smooth noise of mean 0 and deviation about 1, with ``waves`` crests along the longer side."""
    channels, height, width = shape
    knots = [max(round(waves * side / max(height, width)), 1) + 1 for side in (height, width)]
    coarse = torch.randn(channels, *knots, generator=generator)
    # the factor restores the deviation, which interpolation reduces to about 0.75
    return F.interpolate(coarse[None], size=(height, width), mode="bicubic", align_corners=True)[0] * 1.3
