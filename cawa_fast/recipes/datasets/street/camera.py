"""The camera of the procedural street: a pinhole camera over a ground plane, canvases to draw on, and a sensor.

Coordinates are in metres: x to the right of the middle of the street, y above the road, z ahead of the camera.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[float, float, float]
Point = tuple[float, float]
_T = TypeVar("_T")

NEAR = 1.6  # metres; shapes are clipped at this distance

# Scenes are drawn at twice the resolution and averaged, which smooths edges.
_OVERSAMPLING = 2
_CAMERA_HEIGHT = 1.45

# colour of the sky at the zenith, of the haze at the horizon, visibility in metres, whether the sun casts shadows
_WEATHER = (
    ((86, 140, 214), (206, 222, 236), 260.0, True),
    ((116, 164, 220), (222, 228, 232), 180.0, True),
    ((188, 194, 202), (214, 217, 220), 90.0, False),
    ((150, 158, 170), (190, 194, 200), 120.0, False),
    ((100, 108, 156), (238, 184, 138), 140.0, True),
)


class Dice:
    """Random numbers drawn in blocks. A scalar call of a Generator takes microseconds; a scene needs a thousand."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._next = self._stream(rng).__next__

    @staticmethod
    def _stream(rng: np.random.Generator) -> Iterator[float]:
        while True:
            yield from rng.random(1024).tolist()

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self._next()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._next() < probability

    def pick(self, options: Sequence[_T]) -> _T:
        """One of the options, with equal probability."""
        return options[int(self._next() * len(options))]

    def vary(self, colour: Colour, amount: float) -> Colour:
        """The colour with random changes of brightness and, smaller, of hue; amount in [0, 0.7)."""
        u = self._next
        gain, hue = 1 + amount * (2 * u() - 1), 0.3 * amount
        red, green, blue = colour
        return (
            red * gain * (1 + hue * (2 * u() - 1)),
            green * gain * (1 + hue * (2 * u() - 1)),
            blue * gain * (1 + hue * (2 * u() - 1)),
        )


def shaded(colour: Colour, factor: float) -> Colour:
    """The colour times a factor."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


class Stage:
    """A canvas for the image and one for the labels, seen through one camera.

    Later shapes hide earlier ones, so that scenes are drawn from far to near.

    Args:
        size: ``(H, W)`` of the photograph in pixels.
        rng: the only source of randomness.
        background: label of pixels that nothing is drawn on.
    """

    def __init__(self, size: tuple[int, int], rng: np.random.Generator, background: int) -> None:
        self.size = size
        self.rng = rng
        self.dice = dice = Dice(rng)
        height, width = size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING
        self.height, self.width = height, width
        self.focal = height * dice.between(0.95, 1.25)
        self.horizon = height * dice.between(0.4, 0.53)
        self.vanishing = width * dice.between(0.36, 0.64)
        self.roll = dice.between(-0.03, 0.03)
        self.curve = dice.between(-0.0022, 0.0022)  # 1/m, of the street ahead
        self.offset = 0.0  # of the camera from the middle of the street
        self.zenith, self.haze, self.visibility, self.sunny = dice.pick(_WEATHER)
        self.canvas = Image.new("RGB", (width, height))
        self.labels = Image.new("L", (width, height), background)
        self.shadows = Image.new("L", (width, height), 0)
        self.paint = ImageDraw.Draw(self.canvas)
        self.mark = ImageDraw.Draw(self.labels)
        self.shade = ImageDraw.Draw(self.shadows)

    def project(self, x: float, y: float, z: float) -> Point:
        """The canvas pixel (column, row) of a point, z > 0; rounded, so that all platforms fill the same pixels."""
        column = self.vanishing + self.focal * ((x - self.offset) / z + self.curve * z)
        row = self.horizon + self.focal * (_CAMERA_HEIGHT - y) / z + self.roll * (column - self.width / 2)
        return round(column), round(row)

    def fade(self, colour: Colour, z: float) -> tuple[int, int, int]:
        """The colour, with channels >= 0, seen through z metres of haze. Pillow clips values above 255."""
        kept = math.exp(-z / self.visibility)
        lost, far = 1 - kept, self.haze
        return (
            int(kept * colour[0] + lost * far[0]),
            int(kept * colour[1] + lost * far[1]),
            int(kept * colour[2] + lost * far[2]),
        )

    def polygon(self, points: Sequence[Point], colour: Colour, z: float, label: int | None = None) -> None:
        """Fill a polygon of canvas points; label None does not change the labels."""
        columns = [point[0] for point in points]
        if max(columns) < 0 or min(columns) > self.width:
            return
        self.paint.polygon(points, fill=self.fade(colour, z))
        if label is not None:
            self.mark.polygon(points, fill=label)

    def patch(self, left: float, right: float, near: float, far: float, bends: int = 1) -> list[Point]:
        """The outline of a strip of ground on the canvas, in ``bends`` pieces, so that long strips follow the curve."""
        depths = [near * (far / near) ** (k / bends) for k in range(bends + 1)]
        return [self.project(left, 0, z) for z in depths] + [self.project(right, 0, z) for z in reversed(depths)]

    def ground(
        self, left: float, right: float, near: float, far: float, colour: Colour, label: int | None, bends: int = 1
    ) -> None:
        """Draw a strip of the ground."""
        self.polygon(self.patch(left, right, near, far, bends), colour, near, label)

    def wall(
        self, x: float, low: float, high: float, near: float, far: float, colour: Colour, label: int | None
    ) -> None:
        """Draw a vertical rectangle along the street."""
        corners = ((low, near), (high, near), (high, far), (low, far))
        self.polygon([self.project(x, y, z) for y, z in corners], colour, near, label)

    def front(
        self, left: float, right: float, low: float, high: float, z: float, colour: Colour, label: int | None
    ) -> None:
        """Draw a vertical rectangle that faces the camera, at least one output pixel wide and high.

        Left and right, low and high may be given in any order.
        """
        x0, y1 = self.project(min(left, right), low, z)
        x1, y0 = self.project(max(left, right), high, z)
        least = _OVERSAMPLING - 1
        x1, y0 = max(x1, x0 + least), min(y0, y1 - least)
        if x1 < 0 or x0 > self.width:
            return
        self.paint.rectangle((x0, y0, x1, y1), fill=self.fade(colour, z))
        if label is not None:
            self.mark.rectangle((x0, y0, x1, y1), fill=label)

    def disc(self, x: float, y: float, z: float, rx: float, ry: float, colour: Colour, label: int | None) -> None:
        """Draw an ellipse that faces the camera, at least one output pixel wide and high."""
        column, row = self.project(x, y, z)
        a, b = max(1, round(self.focal * rx / z)), max(1, round(self.focal * ry / z))
        if column + a < 0 or column - a > self.width:
            return
        box = (column - a, row - b, column + a, row + b)
        self.paint.ellipse(box, fill=self.fade(colour, z))
        if label is not None:
            self.mark.ellipse(box, fill=label)

    def contact_shadow(self, x: float, z: float, rx: float, rz: float, darkness: int) -> None:
        """Darken the ground where an object stands; darkness in 0..255."""
        left, bottom = self.project(x - rx, 0, max(NEAR, z - rz))
        right, top = self.project(x + rx, 0, max(NEAR, z - rz) + 2 * rz)
        if left < right and top < bottom:
            self.shade.ellipse((left, top, right, bottom), fill=darkness)

    def photograph(self, texture: np.ndarray, shadowed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Average the canvas down, then apply texture, shadow, light, lens and sensor.

        Args:
            texture: (K, 2) float32, standard deviation of the fine and the coarse texture of each label, relative to
                brightness; labels from K - 1 on share the last row.
            shadowed: labels on which shadows are visible.

        Returns:
            image (H, W, 3) uint8 and label (H, W) uint8.
        """
        dice, (height, width) = self.dice, self.size
        label = np.array(self.labels)[::_OVERSAMPLING, ::_OVERSAMPLING].copy()
        light = np.asarray(self.canvas.reduce(_OVERSAMPLING), dtype=np.float32)

        material = np.minimum(label, len(texture) - 1)
        fine, coarse = textures(height, width)
        gain = 1 + texture[:, 0].take(material) * self._window(fine)
        gain += texture[:, 1].take(material) * self._window(coarse)
        shadows = self.shadows.reduce(_OVERSAMPLING).filter(ImageFilter.BoxBlur(max(1, height // 96)))
        catches = np.zeros(256, dtype=np.float32)
        catches[list(shadowed)] = 0.6 / 255
        gain *= 1 - catches.take(label) * np.asarray(shadows)

        # darker corners by the lens, exposure, white balance
        rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        columns = np.linspace(-1, 1, width, dtype=np.float32)
        gain *= 1 - np.float32(dice.between(0, 0.12)) * (rows * rows + columns * columns)
        exposure = dice.between(0.72, 1.22)
        balance = np.array([dice.between(0.93, 1.07), 1.0, dice.between(0.93, 1.07)], dtype=np.float32)
        light = light * gain[..., None] * (balance * np.float32(exposure))
        photo = light.clip(0, 255, out=light).astype(np.uint8)
        if (radius := dice.between(-0.3, 0.4) * height / 96) > 0:
            photo = np.asarray(Image.fromarray(photo).filter(ImageFilter.BoxBlur(radius)))

        # sensor noise, sometimes twice as strong
        grain = dice.between(1, 4) * (2 if dice.chance(0.15) else 1)
        noise = self.rng.standard_normal((height, width, 3), dtype=np.float32)
        noise *= np.float32(grain)
        noise += photo
        return noise.clip(0, 255, out=noise).astype(np.uint8), label

    def _window(self, texture: np.ndarray) -> np.ndarray:
        """A random part of the texture, of the size of the image."""
        height, width = self.size
        top = int(self.dice.between(0, texture.shape[0] - height))
        left = int(self.dice.between(0, texture.shape[1] - width))
        return texture[top : top + height, left : left + width]


@lru_cache(maxsize=4)
def textures(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Fine and coarse noise of unit variance, (2H, 2W) float32, from which windows are cut."""
    rng = np.random.default_rng(0)
    shape = (2 * height, 2 * width)

    def octave(cell: int) -> np.ndarray:
        grid = rng.standard_normal((-(-shape[0] // cell), -(-shape[1] // cell)), dtype=np.float32)
        noise = np.asarray(Image.fromarray(grid).resize(shape[::-1], Image.Resampling.BICUBIC))
        return noise / noise.std()

    unit = max(1, round(height / 96))
    fine, coarse = octave(unit) + octave(2 * unit), octave(5 * unit) + octave(14 * unit)
    return fine / fine.std(), coarse / coarse.std()
