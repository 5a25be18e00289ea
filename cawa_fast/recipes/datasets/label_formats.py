"""What the format of a label file means for its values: lossy compression, few bits, signs, marks of no data.

Files are judged by their content. A suffix proves nothing: masks that a program has renamed to .png may be JPEG.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .image_files import frame_count, named_errors

_LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "JPEG2000": "JPEG 2000", "AVIF": "AVIF", "HEIF": "HEIF"}
_LOSSY_TIFF = {6: "JPEG", 7: "JPEG", 34892: "JPEG", 33003: "JPEG 2000", 33005: "JPEG 2000", 50001: "WebP"}
_COMPRESSION, _PHOTOMETRIC, _SAMPLE_FORMAT, _BITS, _NODATA = 259, 262, 339, 258, 42113


class LabelForm(NamedTuple):
    """How values are stored in a label file.

    Attributes:
        scale: the factor from a value to the grey that it shows: 255, 85 or 17 with 1, 2 or 4 bits a pixel, else 1.
        signed: values of 8 bits have a sign.
        wide: values are unsigned and have 32 bits.
        no_data: the value of pixels without data, or None.
        mark: the tag that says so.
    """

    scale: int = 1
    signed: bool = False
    wide: bool = False
    no_data: int | None = None
    mark: str = ""


def label_form(file: str | Path) -> LabelForm:
    """The form of a label file, from its header.

    Raises:
        ValueError: it is no image, is compressed lossily, has several pages, or stores inverted greys.
    """
    with named_errors(file), Image.open(file) as image:
        tags = getattr(image, "tag_v2", {})
        lossy = _LOSSY.get(image.format or "") or _LOSSY_TIFF.get(tags.get(_COMPRESSION, 1))
        if image.format == "WEBP" and b"VP8L" not in _head(file):
            lossy = "WebP"
        if lossy:
            raise ValueError(
                f"{file} is compressed as {lossy}, which changes values along the edges of areas, so that they become "
                "other classes; export the label map again as PNG (renaming the file does not help)"
            )
        if (frames := frame_count(image)) > 1:
            raise ValueError(
                f"{file} has {frames} frames or pages, but a label map is a single one; save the one with the labels "
                "as PNG"
            )
        if tags.get(_PHOTOMETRIC) == 0 and image.mode != "1":
            raise ValueError(
                f"{file} is a TIFF in which 0 is white, so that its values may be inverted; save it as an 8-bit grey "
                "PNG"
            )
        raw = image.tile[0][3] if image.tile else ""
        raw = str(raw[0] if isinstance(raw, tuple) else raw)
        scale = 255 if image.mode == "1" else {"L;2": 85, "L;4": 17}.get(raw[:3], 1) if image.mode == "L" else 1
        kind, bits = (next(iter(tags.get(tag, (1,)))) for tag in (_SAMPLE_FORMAT, _BITS))
        no_data, mark = _no_data(image, tags)
        return LabelForm(scale, kind == 2 and bits == 8, kind == 1 and bits == 32, no_data, mark)


def _no_data(image: Any, tags: Any) -> tuple[int | None, str]:
    if _NODATA in tags:
        try:
            value = float(str(tags[_NODATA]).strip("\0 "))
        except ValueError:
            return None, ""
        return (int(value), "GDAL_NODATA") if math.isfinite(value) and value == int(value) else (None, "")
    transparent = image.info.get("transparency")
    if image.format == "PNG" and isinstance(transparent, int) and image.mode != "P":
        return transparent, "tRNS"
    return None, ""


def _head(file: str | Path) -> bytes:
    with open(file, "rb") as opened:
        return opened.read(4096)


def apply_form(codes: np.ndarray, form: LabelForm, classes: Any, file: str | Path) -> np.ndarray:
    """The codes of an index map, as its form has them.

    Args:
        codes: (H, W) as Pillow reads them.
        form: of the file.
        classes: of the rule, from code to class or 255.
        file: for messages.

    Raises:
        ValueError: pixels are marked as no data, and have the value of a class.
    """
    if form.scale > 1:
        codes = codes if form.scale == 255 else codes // form.scale
        values = np.unique(codes)
        # The value counts. The grey that it shows counts where the class list has only that.
        if any(v not in classes for v in values.tolist()) and all(v * form.scale in classes for v in values.tolist()):
            codes = codes * np.uint8(form.scale)
    if form.signed:
        codes = codes.view(np.int8).astype(np.int64)
        if -1 not in classes:
            codes[codes == -1] = 255  # as unsigned readers have it
    if form.wide:
        codes = codes.astype(np.int64) & 0xFFFFFFFF
    if form.no_data is None or not (none := codes == form.no_data).any():
        return codes
    if (known := classes.get(form.no_data)) is None:
        ignored = [code for code, index in classes.items() if index == 255]
        if not ignored:
            return codes  # an unknown value, which is reported as such
        return np.where(none, 255 if 255 in ignored else ignored[0], codes)
    if known != 255 and form.mark == "GDAL_NODATA":
        raise ValueError(
            f"{file} marks the value {form.no_data} as no data ({form.mark}), but {form.no_data} is a class; call that "
            "class 'ignore' in the class list, or remove the mark: gdal_edit.py -unsetnodata FILE"
        )
    return codes
