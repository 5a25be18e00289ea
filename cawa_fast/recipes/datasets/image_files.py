"""Reading image files: headers, pixels as upright 8-bit RGB, and errors that name the file and the cause."""

from __future__ import annotations

import contextlib
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from .text_files import need_regular

_ORIENTATION = 274  # a tag of EXIF, and of TIFF
# from the stored pixels to the upright image
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# how files begin that people take for images, and what to do with them
_NO_IMAGES = (
    (b"\x93NUMPY", "is a NumPy array; write its values as an 8-bit PNG by Image.fromarray(array).save"),
    (b"MATLAB 5.0", "is a MATLAB file; write its array as an 8-bit PNG by imwrite"),
    (b"\x89HDF", "is an HDF5 or MATLAB 7.3 file; write its array as an 8-bit PNG"),
    (b"PK\x03\x04", "is a ZIP archive (or .npz); unpack it"),
    (b"\x1f\x8b", "is compressed by gzip; unpack it"),
    (b"version https://git-lfs", "is a pointer of Git LFS; run: git lfs pull"),
    (b"%PDF", "is a PDF file; export it as PNG"),
    (b"<svg", "is an SVG drawing; export it as PNG"),
    (b"<?xml", "is an XML file; export the annotation as PNG"),
    (b"<!doctype html", "is a web page; download the file again"),
    (b"<html", "is a web page; download the file again"),
    (b"{", "is JSON text; convert the annotation to PNG, as labelme2voc does"),
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Header(NamedTuple):
    """What the header of an image says.

    Attributes:
        size: ``(H, W)`` of the upright image, as EXIF data turn it.
        mode: of Pillow, with ";16" for 16 bits a channel.
        orientation: of EXIF, 1 if the pixels are stored upright.
        frames: number of frames or pages; overviews and masks of a TIFF do not count, nor previews in a JPEG.
    """

    size: tuple[int, int]
    mode: str
    orientation: int
    frames: int

    @property
    def stored(self) -> tuple[int, int]:
        """``(H, W)`` of the pixels as they are stored."""
        return (self.size[1], self.size[0]) if self.orientation > 4 else self.size

    @property
    def deep(self) -> bool:
        """Whether channels have more than 8 bits."""
        return ";16" in self.mode or self.mode in ("I", "F")


def read_header(file: str | Path, *, decode: bool = False) -> Header:
    """The header of an image.

    Args:
        file: the image.
        decode: read the pixels too, as training does.

    Raises:
        ValueError: the file is no image, or, with ``decode``, its pixels cannot be used.
    """
    with named_errors(file), Image.open(file) as image:
        orientation, frames, size = orientation_of(image), frame_count(image), (image.size[1], image.size[0])
        if image.format == "TIFF":  # of which some versions of Pillow give the stored size, and some the upright one
            size = image.tag_v2[257], image.tag_v2[256]
        raw = str(image.tile[0][3]) if image.tile else ""
        mode = image.mode + (";16" if ";16" in raw and ";16" not in image.mode and image.mode != "I" else "")
    if decode:
        read_rgb(file)
    if orientation > 4:
        size = size[::-1]
    return Header(size, mode, orientation, frames)


def orientation_of(image: Any) -> int:
    """The orientation in EXIF data or a TIFF's tags, 1..8, of an image that is open but not loaded."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the pixels to look behind them
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # EXIF data of which a part is broken
            tag = image.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return 1  # broken EXIF data do not make an image unusable
    return tag if tag in _TURNS else 1


def open_image(file: str | Path) -> Any:
    """Decode an image by Pillow, upright; a ``ValueError`` names the file if it is broken or no image."""
    return _upright(file)[0]


def _upright(file: str | Path) -> tuple[Any, int]:
    with named_errors(file), Image.open(file) as image:
        orientation = orientation_of(image)
        image.load()
        if orientation == 1 or image.format == "TIFF":  # which Pillow turns
            return image, orientation
        turned = image.transpose(_TURNS[orientation])
        turned.format = image.format
        return turned, orientation


def read_rgb(file: str | Path) -> tuple[Any, int]:
    """The upright image as Pillow's RGB, and the orientation that EXIF data gave it, 1..8.

    16 bits a channel become 8: values are divided by 257, or kept if none is above 255. Floats and 32-bit integers
    have no such scale and must be in 0..255.

    Raises:
        ValueError: the file is broken, no image, or its values have no 8-bit scale.
    """
    image, orientation = _upright(file)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        values = np.asarray(image).astype(np.int64)
        # files with 8-bit values in 16 bits are common
        eight = values if values.max(initial=0) <= 255 else (values + 128) // 257
        image = Image.fromarray(eight.astype(np.uint8))
    elif image.mode in ("I", "F"):
        values = np.asarray(image)
        low, high = values.min(initial=0), values.max(initial=0)
        fits = 0 <= low <= high <= 255 and not (image.mode == "F" and 0 < high <= 1)
        if not fits:  # also for NaN
            what = "floats" if image.mode == "F" else "32-bit integers"
            raise ValueError(
                f"{file} has {what} from {low:g} to {high:g}, whose range for white is unknown; save the image with 8 "
                "bits a channel, values 0 to 255"
            )
        image = Image.fromarray(values.astype(np.uint8))
    image.info.pop("transparency", None)  # of which Pillow would warn
    try:
        return image.convert("RGB"), orientation
    except ValueError as error:
        raise ValueError(f"{file} has the pixel format {image.mode}, which is no colour; save it as RGB") from error


def frame_count(image: Any) -> int:
    """The frames or pages of an open image; overviews in a TIFF and previews in a JPEG do not count."""
    if image.format not in ("GIF", "PNG", "TIFF", "WEBP"):
        return 1
    count = getattr(image, "n_frames", 1)
    if image.format != "TIFF" or count == 1:
        return count
    pages = 0
    for page in range(count):
        image.seek(page)
        pages += not image.tag_v2.get(254, 0) & 0b101  # NewSubfileType: a smaller version, or a mask of transparency
    image.seek(0)
    return max(1, pages)


def turned_alike(label: np.ndarray, label_file: str | Path, size: tuple[int, int], orientation: int) -> np.ndarray:
    """The label map of an image that EXIF data turn.

    A label map with such data of its own is upright already, and so is one that fits the upright image alone. Any other
    one belongs to the stored pixels and is turned with them.

    Args:
        label: (H, W) uint8, of the file.
        label_file: its file.
        size: ``(H, W)`` of the upright image.
        orientation: of the image, 1..8.
    """
    stored = size[::-1] if orientation > 4 else size
    if orientation == 1 or label.shape != stored:
        return label
    with named_errors(label_file), Image.open(label_file) as image:
        if orientation_of(image) != 1:
            return label
    return np.asarray(Image.fromarray(label).transpose(_TURNS[orientation]))


@contextlib.contextmanager
def named_errors(file: str | Path) -> Iterator[None]:
    """Turn the exceptions of Pillow into a ``ValueError`` that names the file, the cause and the way out."""
    need_regular(file)
    try:
        yield
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise ValueError(f"{file} cannot be read as an image{_cause(file, error)}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{file} is too large for Pillow ({error}); split it into tiles") from error


def _cause(file: str | Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return " (there is no such file); put it back, or replace it by an intact copy"
    if isinstance(error, PermissionError):
        return f" ({error.strerror}); allow this user to read it"
    if isinstance(error, IsADirectoryError):
        return " (it is a folder)"
    try:
        with open(file, "rb") as opened:
            head = opened.read(4096)
    except OSError:
        return f" ({error}); replace it by an intact copy"
    if not head:
        return " (it is empty, 0 bytes); replace it by an intact copy"
    for mark, text in _NO_IMAGES:
        if head.lstrip()[: len(mark)].lower() == mark.lower():
            return f": it {text}"
    if head[:4] in _TIFF and (layout := _tiff_layout(file, head)):
        return f" ({error}): it is a TIFF with {layout}; save it as PNG, or as a TIFF that Pillow reads"
    return f" ({error}); replace it by an intact copy"


def _tiff_layout(file: str | Path, head: bytes) -> str:
    """Bands, sample format and compression of a TIFF; "" if its directory cannot be read."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if head[2] == 43 or head[3] == 43 else 8])
        with open(file, "rb") as opened:
            opened.seek(tags.next)
            tags.load(opened)
        bands, bits, kind = tags.get(277, 1), tags.get(258, (1,)), tags.get(339, (1,))
        kinds = {1: "unsigned integers", 2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex floats"}
        name = TiffImagePlugin.COMPRESSION_INFO.get(compression := tags.get(259, 1), compression)
    except Exception:  # whatever a broken directory makes Pillow raise
        return ""
    return (
        f"{bands} band{'s' if bands > 1 else ''} of {bits[0]}-bit {kinds.get(kind[0], 'samples')}, compression {name}"
    )
