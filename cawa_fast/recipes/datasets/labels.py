"""Reading label files, and the rules that turn their content into class indices.

A *code* is the content of a pixel in a label file: the value in an index map, or
``COLOUR | red << 16 | green << 8 | blue`` in a colour mask. A :class:`LabelRule` maps codes to classes; any other code
is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .image_files import open_image
from .label_formats import apply_form, label_form
from .text_files import need_regular

IGNORE = 255
COLOUR = 1 << 24
"""Added to the codes of colours to tell them from indices."""
_MANY = 8  # unknown codes in a file. More are rarely a class that the list lacks.


class Hint(NamedTuple):
    """The probable cause of an unknown code: a short name for reports, and a sentence with the remedy."""

    name: str
    text: str


@dataclass(frozen=True)
class LabelRule:
    """Maps codes to classes.

    Attributes:
        classes: from code to class index in [0, 255), or 255 for ignored pixels.
        allowed: the codes in words, such as "0..150 (0 is unlabelled)".
        remedy: what to do about a map with other codes; the end of the error message.
        hints: probable causes of particular unknown codes.

    >>> rule = LabelRule({7: 0, 8: 1, 0: 255}, "7, 8 and 0", "remap them")
    >>> rule.to_labels(np.array([[8, 0, 7]], dtype=np.uint8), "a.png").tolist()
    [[1, 255, 0]]
    """

    classes: Mapping[int, int]
    allowed: str
    remedy: str
    hints: Mapping[int, Hint] = field(default_factory=dict)

    @cached_property
    def reads_colours(self) -> bool:
        """Whether the rule has colours, so that label files may be colour masks."""
        return any(code >= COLOUR for code in self.classes)

    def to_labels(self, codes: np.ndarray, where: object) -> np.ndarray:
        """Class indices of a map.

        Args:
            codes: (H, W), any integer type.
            where: the file, for error messages.

        Returns:
            (H, W) uint8, class indices or 255.

        Raises:
            ValueError: a code is not in ``classes``.
        """
        if codes.dtype == np.uint8:
            mapped = self._bytes[codes]
        else:
            known, classes = self._sorted
            place = np.searchsorted(known, codes).clip(max=len(known) - 1)
            mapped = np.where(known[place] == codes, classes[place], -1)
        if mapped.min(initial=0) < 0:
            values, counts = np.unique(codes[mapped < 0], return_counts=True)
            raise ValueError(self.complaint(where, values.tolist(), int(counts.sum())))
        return mapped.astype(np.uint8)

    def unknown(self, values: Iterable[int]) -> list[int]:
        """The codes among ``values`` that the rule does not know."""
        return [value for value in values if value not in self.classes]

    def complaint(self, where: object, values: list[int], pixels: int) -> str:
        """The error message about unknown codes."""
        return (
            f"{where}: {pixels} pixels have labels {code_names(values[:8])}, outside {self.allowed}; "
            f"{self.advice(values)}"
        )

    def advice(self, values: Iterable[int]) -> str:
        """What to do about unknown codes."""
        values = list(values)
        if hint := next((self.hints[value] for value in values if value in self.hints), None):
            return hint.text
        if values and all(value % 257 == 0 and value // 257 in self.classes for value in values):
            return "these are 257 times the values of classes: divide them, and save the label maps with 8 bits"
        if len(values) <= _MANY:
            return self.remedy
        return (
            f"{self.remedy}. {len(values)} different values may also come from smoothing or lossy compression of the "
            "label maps: resize them to the nearest pixel, and keep them as PNG"
        )

    @cached_property
    def _bytes(self) -> np.ndarray:
        return np.array([self.classes.get(value, -1) for value in range(256)], dtype=np.int16)

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        known = sorted(self.classes)
        return np.array(known, dtype=np.int64), np.array([self.classes[code] for code in known], dtype=np.int16)


def code_names(values: Iterable[int]) -> str:
    """Codes as text: ``[3, 200]``, or ``[#ff8000]``.

    >>> code_names([3, COLOUR | 0xFF8000])
    '[3, #ff8000]'
    """
    return f"[{', '.join(f'#{value - COLOUR:06x}' if value >= COLOUR else str(value) for value in values)}]"


def pack(colour: tuple[int, int, int]) -> int:
    """The code of an RGB colour (0..255 each)."""
    return COLOUR | colour[0] << 16 | colour[1] << 8 | colour[2]


def read_codes(file: str | Path, rule: LabelRule) -> np.ndarray:
    """The codes of a label file.

    Args:
        file: an index map (grey or palette, 1 to 32 bits, or the array ``S`` of a MATLAB file), or a colour mask if the
            rule has colours. A palette image is a mask if the rule has the colours of all its indices. With 1, 2 or 4
            bits a pixel, the values are the codes, or the greys that they show if only these are in the rule. Pixels
            that a GeoTIFF or PNG marks as without data have an ignored code. EXIF data turn the map.
        rule: of the dataset.

    Returns:
        (H, W) uint8, or int64 if 8 bits are too few. May be read-only.

    Raises:
        ValueError: the file is broken or no image, is compressed lossily, has several pages or floats, is a colour
            image and the rule has no colours, or marks a class as without data.
    """
    need_regular(file)
    if str(file).endswith(".mat"):
        return _from_matlab(file)
    if (codes := _grey_png(file)) is not None:
        return codes
    form = label_form(file)
    image = open_image(file)
    if image.mode == "P" and rule.reads_colours and (codes := _from_palette(image, rule)) is not None:
        return codes
    if image.mode in ("L", "P", "1"):
        return apply_form(np.asarray(image, dtype=np.uint8), form, rule.classes, file)
    if image.mode.startswith("I"):
        return apply_form(np.asarray(image).astype(np.int64), form, rule.classes, file)
    if image.mode not in ("RGB", "RGBA"):
        what = " (floats)" if image.mode == "F" else ""
        raise ValueError(
            f"{file} has the pixel format {image.mode}{what}, which cannot hold class indices; save it as an 8-bit "
            "grey PNG"
        )
    pixels = np.asarray(image.convert("RGB"))
    if rule.reads_colours:
        return pixels.astype(np.int64) @ (1 << 16, 1 << 8, 1) + COLOUR
    if (pixels == pixels[..., :1]).all():
        raise ValueError(
            f"{file} is a colour image ({image.mode}) whose three channels are equal: an index map saved with too many "
            "channels. Save one channel as an 8-bit grey PNG"
        )
    raise ValueError(f"{file} is a colour image ({image.mode}), not a map of class indices; {rule.remedy}")


def code_histogram(codes: np.ndarray) -> tuple[list[int], list[int]]:
    """The different codes of a map, ascending, and the number of pixels of each.

    Label maps consist of areas of one code. Counting runs takes a quarter of the time of ``np.bincount`` on all pixels.

    >>> code_histogram(np.array([[7, 7, 2], [2, 2, 7]], dtype=np.uint8))
    ([2, 7], [3, 3])
    """
    flat = codes.reshape(-1)
    if not flat.size:
        return [], []
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)
    lengths = np.diff(ends, prepend=-1)
    if flat.dtype == np.uint8:
        counts = np.bincount(flat[ends], weights=lengths)  # exact for sums below 2**53
        values = np.flatnonzero(counts)
        return values.tolist(), counts[values].astype(np.int64).tolist()
    values, which = np.unique(flat[ends], return_inverse=True)
    return values.tolist(), np.bincount(which, weights=lengths).astype(np.int64).tolist()


def _grey_png(file: str | Path) -> np.ndarray | None:
    """Decode an 8-bit grey PNG by kornia_rs, if that is installed; None leaves the file to Pillow.

    A Cityscapes map takes 2.2 ms, with Pillow 6.2 ms, on one core of an AMD EPYC: Pillow inflates by the system's zlib
    and undoes PNG's filters byte by byte. Files that kornia_rs cannot read are left to Pillow, so that error messages
    are the same with both.
    """
    decode = _fast_decoder()
    if decode is None:
        return None
    try:
        with open(file, "rb") as opened:
            head, _, pixels = opened.read(1024).partition(b"IDAT")
        # the signature, and in the header: 8 bits a sample, grey without alpha
        if head[:8] != b"\x89PNG\r\n\x1a\n" or head[24:26] != b"\x08\x00":
            return None
        if _too_many_pixels(int.from_bytes(head[16:20], "big") * int.from_bytes(head[20:24], "big")):
            return None  # Pillow says so, before it decodes them
        # Pillow knows what these mean: a value without data, an orientation, and an animation
        if not pixels or any(chunk in head for chunk in (b"tRNS", b"eXIf", b"acTL")):
            return None
        codes = decode(str(file), "mono")[..., 0]
    except Exception:
        return None
    return codes


def _too_many_pixels(pixels: int) -> bool:
    """Whether Pillow would refuse to decode so many: files of some kilobytes may hold gigabytes of zeros."""
    return Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS


@cache
def _fast_decoder() -> Any:
    try:
        from kornia_rs.io import read_image_png_u8
    except ImportError:
        return None
    return read_image_png_u8


def _from_palette(image: Any, rule: LabelRule) -> np.ndarray | None:
    """The codes of the palette's colours; None if the rule does not have them, so that indices are the labels."""
    indices = np.asarray(image)
    entries = np.array(image.getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
    used = code_histogram(indices)[0]
    if used[-1] >= len(entries):
        return None
    codes = entries @ (1 << 16, 1 << 8, 1) + COLOUR
    if any(code not in rule.classes for code in codes[used].tolist()):
        return None
    return codes[indices]


def _from_matlab(file: str | Path) -> np.ndarray:
    try:
        from scipy.io import loadmat, whosmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise ValueError(
            f"{file}: MATLAB files need SciPy: pip install scipy, or convert the maps to *_labelTrainIds.png"
        ) from error
    try:
        for name, shape, _ in whosmat(str(file)):
            if name == "S" and _too_many_pixels(math.prod(shape)):
                raise ValueError(f"S has {'x'.join(map(str, shape))} pixels, more than any image")
        codes = np.asarray(loadmat(str(file), variable_names=["S"])["S"])
    except KeyError as error:
        there = ", ".join(name for name, *_ in whosmat(str(file))) or "nothing"
        raise ValueError(f"{file} holds no label map S, but {there}; save the map as S, or as an 8-bit PNG") from error
    except NotImplementedError as error:
        raise ValueError(f"{file} holds no label map S that SciPy reads ({error}); save it with '-v7'") from error
    except (OSError, ValueError, MatReadError) as error:
        raise ValueError(f"{file} holds no label map S ({error!r}); replace it by an intact copy") from error
    if codes.ndim != 2 or codes.dtype.kind not in "iub":
        raise ValueError(f"{file}: S is {codes.dtype} {codes.shape}; a label map is an (H, W) array of integers")
    return codes if codes.dtype == np.uint8 else codes.astype(np.int64)
