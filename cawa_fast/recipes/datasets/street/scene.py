"""The objects in the procedural street: ground, houses, trees, cars, poles, signs, people."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ..colours import colours
from ..labels import IGNORE
from .camera import NEAR, Colour, Stage, shaded

# in the order of StreetDataset.class_names
ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, CAR, POLE, SIGN, PERSON, RIDER = range(10)

_FAR = 110.0  # metres

_WALLS = colours("b8a890 9c5e4c ccc4b8 88807c d8bc88 a8b0b8 804e42 dcd6cc c89a80")
_LEAVES = colours("4c6e30 647c3a 406038 807838 587a34")
_PAINTS = colours("c8c8cc 2c2e34 70747a ac2024 22407c e6e6e6 3e5e48 988468")
_CLOTHES = colours("2c3040 8c262c 3c569a c8c4be 4a463e 262628 c0923a 4c7a5a")
_METALS = colours("747a7c 484e4c 9a9c9a 62564a")
_SKINS = colours("e4b896 aa785a 684834")
_SIGNS = colours("cc1e22 1e46aa e8e8e4 ecc028 187846")
_GLASS = colours("465260 2e323a 788896")
_PAVING = colours("9c9892 a89888 848282")


class StreetScene(Stage):
    """One street with its objects. A side is -1 (left) or 1 (right)."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        super().__init__(size, rng, background=SKY)
        dice = self.dice
        self.kerb = dice.between(3.0, 5.4)  # distance from the middle
        self.offset = self.kerb * dice.between(-0.1, 0.5)
        self.pavement = {side: dice.between(1.8, 4.6) for side in (-1, 1)}
        self.style = {side: dice.pick(("urban", "urban", "houses", "park")) for side in (-1, 1)}
        self.sun_side = dice.pick((-1, 1))
        self._objects: list[tuple[float, Callable[[], object]]] = []

    def draw(self) -> None:
        """Draw the scene from far to near."""
        self._sky()
        self._ground()
        for side in (-1, 1):
            self._plots(side)
            self._avenue(side)
            self._kerbside(side)
        self._traffic()
        for _, draw_object in sorted(self._objects, key=lambda entry: -entry[0]):
            draw_object()
        self._unlabelled()

    def _add(self, z: float, draw_object: Callable[[], object]) -> None:
        self._objects.append((z, draw_object))

    def _sky(self) -> None:
        dice, bands = self.dice, 12
        for band in range(bands):
            t = band / (bands - 1)
            red, green, blue = (round(a + (b - a) * t) for a, b in zip(self.zenith, self.haze, strict=True))
            top = round(self.horizon * 1.1 * band / bands)
            self.paint.rectangle((0, top, self.width, self.height), fill=(red, green, blue))
        x = 0
        while x < self.width:  # the skyline at the end of the street
            step = round(self.height * dice.between(0.05, 0.2))
            label, colour = dice.pick(((BUILDING, dice.pick(_WALLS)), (VEGETATION, dice.pick(_LEAVES))))
            bend = self.roll * (x - self.width / 2)
            top, low = round(self.horizon - self.height * dice.between(0.02, 0.12) + bend), round(self.horizon) + 8
            self.polygon([(x, top), (x + step, top), (x + step, low), (x, low)], dice.vary(colour, 0.2), 90.0, label)
            x += step

    def _ground(self) -> None:
        dice, kerb = self.dice, self.kerb
        grey = dice.between(84, 120)
        asphalt = (grey, grey * dice.between(0.97, 1.02), grey * dice.between(0.97, 1.06))
        for side in (-1, 1):
            edge = side * (kerb + self.pavement[side])
            plot = (SIDEWALK, (140, 136, 130)) if self.style[side] == "urban" else (VEGETATION, (96, 124, 58))
            self.ground(edge, edge + side * 200, 0.5, _FAR, dice.vary(plot[1], 0.15), plot[0], bends=6)
            paving = dice.vary(dice.pick(_PAVING), 0.12)
            inner, outer = side * kerb, edge
            self.ground(inner, outer, 0.5, _FAR, paving, SIDEWALK, bends=6)
            z = 2.0
            while z < 18:  # seams
                self.ground(inner, outer, z, z * 1.02, shaded(paving, 0.86), None)
                z += dice.between(0.9, 1.6)
        self.ground(-kerb, kerb, 0.5, _FAR, asphalt, ROAD, bends=6)
        for side in (-1, 1):
            self.ground(side * kerb, side * (kerb + 0.2), 0.5, _FAR, (184, 182, 178), SIDEWALK, bends=6)
        paint = (asphalt[0] + 95, asphalt[1] + 95, asphalt[2] + 95)
        if dice.chance(0.75):
            start = dice.between(1, 6)
            for k in range(9):
                self.ground(-0.08, 0.08, start + 7 * k, start + 7 * k + 3.2, paint, None)
        if dice.chance(0.25):  # a crossing
            z = dice.between(6, 16)
            for k in range(int(2 * kerb)):
                self.ground(-kerb + k + 0.25, -kerb + k + 0.75, z, z + 3, paint, None)
        for _ in range(int(dice.between(0, 6))):  # patches and manholes
            x, z, r = dice.between(-kerb, kerb), dice.between(3, 25), dice.between(0.2, 0.9)
            colour = dice.vary(shaded(asphalt, 0.75), 0.25)
            self.ground(max(-kerb, x - r), min(kerb, x + r), z, z + 2 * r, colour, None)

    def _plots(self, side: int) -> None:
        """Houses and gardens behind the pavement."""
        dice, style = self.dice, self.style[side]
        edge = self.kerb + self.pavement[side]
        far = dice.between(-4, 2)
        while far < _FAR:
            near, far = max(NEAR, far), far + dice.between(7, 18)
            if far <= NEAR:
                continue
            if dice.chance({"urban": 0.1, "houses": 0.4, "park": 0.85}[style]):
                if style != "urban" or dice.chance(0.5):
                    self._garden(side, edge, near, far)
                continue
            setback = 0.0 if style == "urban" else dice.between(1, 5)
            floors = int(dice.between(3, 8) if style == "urban" else dice.between(1, 4))
            self._house(side, edge + setback, near, far, floors)

    def _house(self, side: int, distance: float, near: float, far: float, floors: int) -> None:
        dice, x = self.dice, side * distance
        top = 3.1 * floors + 0.8
        backlit = self.sunny and side == self.sun_side
        lit = shaded(dice.vary(dice.pick(_WALLS), 0.18), 0.7 if backlit else 1.0)
        dark = shaded(lit, 0.8)
        glass = dice.vary(dice.pick(_GLASS), 0.2)
        pitch, width = dice.between(2.0, 3.4), dice.between(0.8, 1.5)
        reach = min(distance + self.kerb * 0.6, 0.45 * top)

        def draw() -> None:
            if backlit:
                self.shade.polygon(self.patch(x, x - side * reach, near, far), fill=140)
            self.front(x, x + side * 14, 0, top, near, dark, BUILDING)
            self.wall(x, 0, top, near, far, lit, BUILDING)
            self.wall(x, top - 0.5, top, near, far, dark, None)
            z = near + 0.6
            while (
                z + width < far and self.focal * distance * width / (z * z) > 2.5
            ):  # while windows are large enough to see
                for floor in range(1, floors):
                    low = 3.1 * floor + 0.9
                    self.wall(x, low, low + 1.5, z, z + width, dice.vary(glass, 0.25), None)
                self.wall(x, 0.1 if dice.chance(0.3) else 0.8, 2.3, z, z + width, dice.vary(glass, 0.4), None)
                if dice.chance(0.12):  # a poster or shop sign, which looks like a traffic sign
                    low = dice.between(1.6, 3.2)
                    colour = dice.vary(dice.pick(_SIGNS), 0.15)
                    self.wall(x, low, low + dice.between(0.5, 0.9), z, z + 0.8, colour, None)
                z += pitch
            for _ in range(2):  # drainpipes, which look like poles
                z = dice.between(near, far)
                self.wall(x, 0, top, z, z * 1.015 + 0.1, dice.vary(_METALS[0], 0.3), None)

        self._add(far, draw)

    def _garden(self, side: int, edge: float, near: float, far: float) -> None:
        dice, z = self.dice, near
        while z < min(far, 45):
            x, r, colour = side * (edge + dice.between(0.8, 3.5)), dice.between(0.5, 1.5), dice.vary(_LEAVES[0], 0.3)
            self._add(z, partial(self.disc, x, r * 0.7, z, r * 1.2, r, colour, VEGETATION))
            z += dice.between(0.8, 2.4)
        if dice.chance(0.6):
            self._tree(side * (edge + dice.between(2.5, 7)), dice.between(near, far), 1.3)

    def _avenue(self, side: int) -> None:
        dice = self.dice
        if not dice.chance({"urban": 0.35, "houses": 0.55, "park": 0.8}[self.style[side]]):
            return
        x = side * (self.kerb + dice.between(0.6, 1.2))
        z, step = dice.between(4, 12), dice.between(7, 14)
        while z < 70:
            self._tree(x, z, dice.between(0.8, 1.2))
            z += step * dice.between(0.8, 1.5)

    def _tree(self, x: float, z: float, scale: float) -> None:
        dice = self.dice
        crown, radius = 4.8 * scale * dice.between(0.9, 1.2), 1.8 * scale
        leaf, trunk = dice.vary(dice.pick(_LEAVES), 0.2), dice.vary((96, 82, 68), 0.3)
        blobs = [
            (radius * dice.between(-1, 1), radius * dice.between(-0.9, 1), radius * dice.between(0.35, 0.75))
            for _ in range(12 if z < 40 else 6)
        ]

        def draw() -> None:
            self.contact_shadow(x - 1.5 * self.sun_side, z, 2.0 * scale, 1.6, 140 if self.sunny else 40)
            self.front(x - 0.12 * scale, x + 0.12 * scale, 0, crown, z, trunk, VEGETATION)
            for k, (dx, dy, r) in enumerate(blobs):  # later ones are in front and lighter
                self.disc(x + dx, crown + dy, z, r, r * 0.85, shaded(leaf, 0.72 + 0.05 * k), VEGETATION)

        self._add(z, draw)

    def _kerbside(self, side: int) -> None:
        """Parked cars, lamps, signs, people, bins."""
        dice, kerb, pavement = self.dice, self.kerb, self.pavement[side]
        if dice.chance(0.62):
            z, density = dice.between(4, 11), dice.between(0.3, 0.85)
            while z < 60:
                if dice.chance(density):
                    self._car(side * (kerb - 1.05 + dice.between(-0.1, 0.1)), z)
                z += dice.between(5.6, 7.5)
        if dice.chance(0.22):
            z, step = dice.between(5, 20), dice.between(14, 24)
            while z < 26:
                self._lamp(side * (kerb + 0.45), z, side)
                z += step
        for _ in range(2):
            if dice.chance(0.11):
                self._sign(side * (kerb + dice.between(0.3, 0.7)), dice.between(5.5, 16))
        for _ in range(2):
            if dice.chance(0.09):
                x, z = side * (kerb + dice.between(0.5, pavement - 0.3)), dice.between(5.5, 16)
                self._person(x, z)
                if dice.chance(0.3):
                    self._person(x + 0.6, z + 0.2)
        for _ in range(2):
            if dice.chance(0.35):  # bins and cabinets have no class
                x, z = side * (kerb + pavement * 0.8), dice.between(6, 25)
                w, h, colour = dice.between(0.25, 0.6), dice.between(0.8, 1.5), dice.vary(dice.pick(_CLOTHES), 0.3)
                self._add(z, partial(self.front, x - w, x + w, 0, h, z, colour, IGNORE))

    def _traffic(self) -> None:
        dice, kerb = self.dice, self.kerb
        for lane in (-0.45, 0.45):
            if dice.chance(0.4):
                self._car(lane * kerb, dice.between(10, 45))
        if dice.chance(0.18):
            self._rider(dice.pick((-1, 1)) * kerb * dice.between(0.3, 0.8), dice.between(5.5, 13))
        if dice.chance(0.1):
            self._person(dice.between(-kerb, kerb), dice.between(7, 18))

    def _car(self, x: float, z: float) -> None:
        dice = self.dice
        colour = dice.vary(dice.pick(_PAINTS), 0.15)
        van = dice.chance(0.2)
        high, half, length = dice.between(1.38, 1.55) + 0.4 * van, dice.between(0.84, 0.93), dice.between(3.7, 4.7)
        lamp: Colour = (255, 250, 226) if x < 0 else (196, 24, 24)
        flank, glass, tyre = shaded(colour, 0.72), (48, 56, 66), (22, 22, 24)
        waist, roof = 0.56 * high, (0.92 if van else 0.76) * half
        inner = x - half if x > self.offset else x + half  # the side that the camera sees
        slant = x - roof if x > self.offset else x + roof

        def draw() -> None:
            self.contact_shadow(x, z + length / 2, half * 1.3, length * 0.6, 200)
            if abs(x - self.offset) > half:
                self.wall(inner, 0.2, waist, z, z + length, flank, CAR)
                panes = [(inner, waist, z + 0.1), (slant, high, z + 0.4), (slant, high, z + 0.6 * length)]
                panes.append((inner, waist, z + 0.8 * length))
                self.polygon([self.project(*pane) for pane in panes], glass, z, CAR)
                for axle in (0.75, length - 0.8):
                    self.wall(inner, 0, 0.58, z + axle - 0.3, z + axle + 0.3, tyre, CAR)
            for wheel in (x - 0.78 * half, x + 0.78 * half):
                self.front(wheel - 0.11, wheel + 0.11, 0, 0.4, z, tyre, CAR)
            for inset, base, edge, fill in ((1.0, waist - 0.1, high, colour), (0.86, waist + 0.04, high - 0.11, glass)):
                cabin = [(x - half * inset, base), (x - roof * inset, edge), (x + roof * inset, edge)]
                cabin.append((x + half * inset, base))
                self.polygon([self.project(u, v, z) for u, v in cabin], fill, z, CAR)
            self.front(x - half, x + half, 0.24, waist, z, colour, CAR)
            self.front(x - half, x + half, 0.24, 0.36, z, shaded(colour, 0.55), CAR)
            for centre in (x - 0.8 * half, x + 0.8 * half):
                self.front(centre - 0.14, centre + 0.14, waist - 0.26, waist - 0.1, z, lamp, CAR)
            self.front(x - 0.26, x + 0.26, 0.4, 0.52, z, (224, 224, 214), CAR)

        self._add(z, draw)

    def _lamp(self, x: float, z: float, side: int) -> None:
        dice = self.dice
        high, half, metal = dice.between(4.5, 7.5), dice.between(0.09, 0.12), dice.vary(dice.pick(_METALS), 0.2)

        def draw() -> None:
            self.front(x - half, x + half, 0, high, z, metal, POLE)
            self.front(x, x - side * 1.2, high, high + 0.12, z, metal, POLE)

        self._add(z, draw)

    def _sign(self, x: float, z: float) -> None:
        dice = self.dice
        high, r, colour = dice.between(2.1, 2.9), dice.between(0.32, 0.46), dice.pick(_SIGNS)
        shape, white = dice.pick(("disc", "square", "triangle")), (238, 237, 232)

        def draw() -> None:
            self.front(x - 0.05, x + 0.05, 0, high, z, _METALS[2], POLE)
            if shape == "disc":
                self.disc(x, high, z, r, r, colour, SIGN)
                self.disc(x, high, z, r * 0.6, r * 0.6, white, None)
            elif shape == "square":
                self.front(x - r, x + r, high - r, high + r, z, colour, SIGN)
                self.front(x - r * 0.5, x + r * 0.5, high - r * 0.3, high + r * 0.3, z, white, None)
            else:
                corners = [(x - r * 1.1, high - r), (x + r * 1.1, high - r), (x, high + r)]
                self.polygon([self.project(u, v, z) for u, v in corners], _SIGNS[0], z, SIGN)
                self.disc(x, high - r * 0.35, z, r * 0.4, r * 0.35, white, None)

        self._add(z, draw)

    def _person(self, x: float, z: float) -> None:
        dice = self.dice
        tall, stride, skin = dice.between(1.4, 1.88), dice.between(0.02, 0.22), dice.pick(_SKINS)
        coat, trousers = dice.vary(dice.pick(_CLOTHES), 0.3), dice.vary(dice.pick(_CLOTHES), 0.3)

        def draw() -> None:
            self.contact_shadow(x, z, 0.35, 0.5, 130)
            for leg in (-1, 1):
                foot, hip = x + leg * stride, x + leg * 0.07
                corners = [(foot - 0.08, 0), (foot + 0.08, 0), (hip + 0.1, 0.5 * tall), (hip - 0.1, 0.5 * tall)]
                self.polygon([self.project(u, v, z) for u, v in corners], trousers, z, PERSON)
            self.front(x - 0.2, x + 0.2, 0.46 * tall, 0.84 * tall, z, coat, PERSON)
            self.disc(x, 0.92 * tall, z, 0.11, 0.13, skin, PERSON)

        self._add(z, draw)

    def _rider(self, x: float, z: float) -> None:
        dice = self.dice
        coat, frame = dice.vary(dice.pick(_CLOTHES), 0.3), dice.vary(dice.pick(_PAINTS), 0.2)
        helmet, skin, crossing = dice.pick(_SIGNS), dice.pick(_SKINS), dice.chance(0.5)

        def draw() -> None:
            self.contact_shadow(x, z, 0.9 if crossing else 0.3, 0.6, 130)
            if crossing:
                for wheel in (x - 0.52, x + 0.52):
                    self.disc(wheel, 0.34, z, 0.34, 0.34, (30, 30, 32), RIDER)
                    self.disc(wheel, 0.34, z, 0.2, 0.2, (110, 110, 112), None)
                self.front(x - 0.5, x + 0.5, 0.5, 0.62, z, frame, RIDER)
            else:
                self.front(x - 0.07, x + 0.07, 0, 0.7, z, (30, 30, 32), RIDER)
                self.front(x - 0.28, x + 0.28, 0.95, 1.03, z, frame, RIDER)
            self.front(x - 0.15, x + 0.15, 0.45, 0.95, z, (44, 46, 60), RIDER)
            self.front(x - 0.21, x + 0.21, 0.9, 1.45, z, coat, RIDER)
            self.disc(x, 1.58, z, 0.12, 0.14, skin, RIDER)
            self.disc(x, 1.66, z, 0.13, 0.09, helmet, RIDER)

        self._add(z, draw)

    def _unlabelled(self) -> None:
        """Ignored areas: the bonnet of the camera's car, and borders."""
        dice, width, height = self.dice, self.width, self.height
        if dice.chance(0.6):
            rise, centre = height * dice.between(0.04, 0.1), width * dice.between(0.42, 0.58)
            left, right = round(centre - 0.62 * width), round(centre + 0.62 * width)
            top, bottom = round(height - rise), round(height + rise)
            colour = dice.vary(dice.pick(_PAINTS), 0.2)
            self.paint.ellipse((left, top, right, bottom), fill=self.fade(colour, 0))
            self.mark.ellipse((left, top, right, bottom), fill=IGNORE)
        if dice.chance(0.3):
            left = round(dice.between(-0.02, 0.97) * width)
            top = round(dice.pick((-0.04, 0.97)) * height)
            corner = (left + round(dice.between(0.04, 0.2) * width), top + round(0.08 * height))
            self.mark.rectangle((left, top, *corner), fill=IGNORE)
