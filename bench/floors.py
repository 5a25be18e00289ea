"""Lower bounds of the operators: the fewest bytes, exponentials and multiply-adds, and the time that they take.

The counts include the work that every implementation with the same contract does. They leave out work that depends on
the input (cells that must be computed pixel by pixel) and small work (weights, the loss). The three kinds of work can
overlap on any processor, so the floor in seconds is the longest of the three and not their sum.

Symbols: ``N`` images, ``C`` classes, ``(h, w)`` size of the logits or maps, ``(H, W)`` of the labels.
"""

from __future__ import annotations

from dataclasses import dataclass

_LSE = 4  # bytes of a stored log-sum-exp, float32
_COUNT = 8  # bytes of an int64 total

# Multiply-adds (an addition or a comparison takes as long as one) per class and pixel of a cross-entropy: the
# exponent's argument, the sum, the gradient.
_LOSS_FMAS = 3
# With the resize inside, forward: interpolation along the row (along the column it is done once for the pixels of a
# column between two samples, and not counted), the argument, the sum. Backward: interpolation, the argument, and the
# probability added to the two samples that it came from.
_RESIZED_LOSS_FMAS = 3 + 4
# In patches, where four exponentials serve up to 16 pixels: a pixel's exponential from its neighbour's, the sum, and
# the gradient's two sums over a row of pixels. What a patch needs once, and not once per pixel, is not counted.
_PATCH_FMAS = 4
_PATCH_SIDE = 4  # pixels


def _patches(low: int, high: int) -> int:
    """Along one axis, the number of patches with pixels."""
    return min(high, low * -(-high // (low * _PATCH_SIDE)))


@dataclass(frozen=True)
class Limits:
    """What a machine can do at best, as measured.

    Attributes:
        bytes: moved per second, read plus written.
        exponentials: per second.
        fmas: multiply-adds per second.
    """

    bytes: float
    exponentials: float
    fmas: float


@dataclass(frozen=True)
class Floor:
    """The least work of one call.

    Attributes:
        bytes: read from memory and written to it.
        exponentials: computed.
        fmas: multiply-adds.
    """

    bytes: int
    exponentials: int = 0
    fmas: int = 0

    def parts(self, limits: Limits) -> dict[str, float]:
        """Seconds that each kind of work takes on its own."""
        return {
            "bytes": self.bytes / limits.bytes,
            "exponentials": self.exponentials / limits.exponentials,
            "fmas": self.fmas / limits.fmas,
        }

    def seconds(self, limits: Limits) -> float:
        """The floor: the longest of :meth:`parts`."""
        return max(self.parts(limits).values())

    def bound(self, limits: Limits) -> str:
        """Which of :meth:`parts` that is."""
        parts = self.parts(limits)
        return max(parts, key=parts.__getitem__)


def cross_entropy(
    images: int,
    classes: int,
    low: tuple[int, int],
    high: tuple[int, int],
    logit_bytes: int = 4,
    label_bytes: int = 1,
    gather: bool = True,
) -> Floor:
    """Forward and backward of the mean loss.

    Logits and labels are read once, the gradient is written, one exponential per class and pixel serves loss and
    gradient. With the resize inside and the backward pass a ``gather`` over the pixels of a sample (no atomics, the
    same bits every time), full-resolution values are not kept: logits and labels are read twice, a log-sum-exp per
    pixel is written and read, and each exponential is computed twice. Otherwise four exponentials per class serve a
    patch of up to 4 x 4 pixels between the same samples.

    Args:
        images, classes, low, high: ``N``, ``C``, ``(h, w)``, ``(H, W)``.
        logit_bytes: of one logit, and of one value of the gradient.
        label_bytes: of one label.
        gather: as on a GPU; False where a thread owns whole rows and forms the gradient with the loss, as on a CPU.
    """
    logits, pixels = images * classes * low[0] * low[1], images * high[0] * high[1]
    once = 2 * logits * logit_bytes + pixels * label_bytes
    if low == high:
        return Floor(once, classes * pixels, _LOSS_FMAS * classes * pixels)
    if not gather:
        patches = images * _patches(low[0], high[0]) * _patches(low[1], high[1])
        return Floor(once, classes * min(4 * patches, pixels), _PATCH_FMAS * classes * pixels)
    moved = 3 * logits * logit_bytes + 2 * pixels * (label_bytes + _LSE)
    return Floor(moved, 2 * classes * pixels, _RESIZED_LOSS_FMAS * classes * pixels)


def region_loss(
    images: int, classes: int, low: tuple[int, int], high: tuple[int, int], logit_bytes: int = 4, label_bytes: int = 1
) -> Floor:
    """Forward and backward of a loss of the classes' sums of probabilities, such as Dice, on a CPU.

    The gradient needs the sums over all pixels, so that logits, labels and exponentials are needed twice.
    """
    once = cross_entropy(images, classes, low, high, logit_bytes, label_bytes, gather=False)
    logits, pixels = images * classes * low[0] * low[1], images * high[0] * high[1]
    moved = once.bytes + logits * logit_bytes + pixels * label_bytes
    # Forward: a sum of exponentials per pixel and of probabilities per class. Backward: that sum again, and the one of
    # the derivatives; the gradient's terms have two coefficients.
    return Floor(moved, 2 * once.exponentials, 3 * once.fmas)


def confusion_matrix(
    images: int, classes: int, low: tuple[int, int], high: tuple[int, int], logit_bytes: int = 4, label_bytes: int = 1
) -> Floor:
    """Logits and labels are read once, the matrix is written; each logit is compared once, where all cells agree."""
    logits, pixels = images * classes * low[0] * low[1], images * high[0] * high[1]
    return Floor(logits * logit_bytes + pixels * label_bytes + _COUNT * classes * classes, fmas=logits)


def cam_counts(
    images: int,
    classes: int,
    low: tuple[int, int],
    high: tuple[int, int],
    logit_bytes: int = 4,
    label_bytes: int = 1,
    maps: int | None = None,
) -> Floor:
    """Maps and labels are read once, the counts are written; each value is compared with the maximum and the threshold.

    Args:
        images, classes, low, high: ``N``, ``C``, ``(h, w)``, ``(H, W)``.
        logit_bytes: of one value of a map.
        label_bytes: of one label.
        maps: how many must be read: with ``classes="present"`` those of the classes in their image's labels. By
            default all ``N * C``.
    """
    values = (images * classes if maps is None else maps) * low[0] * low[1]
    pixels = images * high[0] * high[1]
    return Floor(values * logit_bytes + pixels * label_bytes + 3 * _COUNT * classes, fmas=2 * values)
