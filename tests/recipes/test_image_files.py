"""Images are read upright and with 8 bits, and their label maps are turned with them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cawa_fast.recipes.datasets import CamVidDataset, FolderDataset
from cawa_fast.recipes.datasets.image_files import read_header, read_rgb
from tests.support import trees
from tests.support.raw_files import png, tiff, written

# -- orientation ----------------------------------------------------------------------------------------------------

UPRIGHT = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9) % 4
# from the upright image to the stored pixels, by hand
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def oriented(file: Path, pixels: np.ndarray, orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, exif=exif)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_image_and_label_are_turned_alike(tmp_path, orientation, suffix):
    trees.folder(tmp_path, "val", [UPRIGHT])
    (tmp_path / "images" / "val" / "0.jpg").unlink()
    image, mask = tmp_path / "images" / "val" / f"0{suffix}", tmp_path / "masks" / "val" / "0.png"
    turn = STORED[orientation]
    colours = np.stack([UPRIGHT * 60, UPRIGHT * 30, UPRIGHT], axis=2)
    oriented(image, turn(colours), orientation)
    for stored, tag in ((turn(UPRIGHT), None), (turn(UPRIGHT), orientation)):
        oriented(mask, stored, tag)
        data = FolderDataset(tmp_path, "val")
        assert data.image_size == UPRIGHT.shape
        np.testing.assert_array_equal(data.read(0)[0], colours)
        np.testing.assert_array_equal(data.read(0)[1], UPRIGHT)
        np.testing.assert_array_equal(FolderDataset(tmp_path, "val", cache=False).read_label(0), UPRIGHT)
    if orientation > 4:  # the size shows that the label map was drawn on the upright image
        oriented(mask, UPRIGHT, None)
        np.testing.assert_array_equal(FolderDataset(tmp_path, "val").read(0)[1], UPRIGHT)


def test_sizes_that_fit_in_no_way_are_refused(tmp_path):
    trees.folder(tmp_path, "val", [UPRIGHT])
    oriented(tmp_path / "images" / "val" / "0.jpg", np.rot90(np.stack([UPRIGHT] * 3, axis=2)), 6)
    trees.write_label(tmp_path / "masks" / "val" / "0.png", np.zeros((6, 8)))
    with pytest.raises(
        ValueError, match=r"0\.jpg is 9x6 pixels \(W x H\), .*0\.png is 8x6; EXIF data rotate .*0\.jpg:"
    ):
        FolderDataset(tmp_path, "val").read(0)
    trees.write_image(tmp_path / "images" / "val" / "0.jpg", (6, 9))
    oriented(tmp_path / "masks" / "val" / "0.png", UPRIGHT, 8)
    with pytest.raises(ValueError, match=r"0\.png is 6x9; EXIF data rotate .*0\.png: rotate the pixels, and remove"):
        FolderDataset(tmp_path, "val").read(0)
    oriented(tmp_path / "masks" / "val" / "0.png", UPRIGHT[:5], None)
    with pytest.raises(ValueError, match=r"0\.png is 9x5; use images and annotations of the same version"):
        FolderDataset(tmp_path, "val").read(0)


def test_camvid_compares_turned_sizes(tmp_path):
    trees.camvid(tmp_path, "val", [UPRIGHT])
    oriented(tmp_path / "val" / "0.png", np.rot90(np.stack([UPRIGHT] * 3, axis=2)), 6)
    data = CamVidDataset(tmp_path, "val")
    assert data.image_size == (6, 9)
    np.testing.assert_array_equal(data.read(0)[1], UPRIGHT)


def test_broken_exif_data_are_no_reason_to_refuse_an_image(tmp_path):
    file = tmp_path / "a.jpg"
    Image.fromarray(np.full((6, 9, 3), 90, np.uint8)).save(file, exif=b"Exif\0\0nonsense")
    assert read_header(file).orientation == 1
    assert read_rgb(file)[0].size == (9, 6)
    oriented(file, np.full((6, 9, 3), 90, np.uint8), 77)
    assert read_header(file).orientation == 1


# -- depth and colours of images ------------------------------------------------------------------------------------

RAMP = (np.arange(16 * 24, dtype=np.int64).reshape(16, 24) * 170) % 65536


def rgb(file: Path) -> np.ndarray:
    return np.asarray(read_rgb(file)[0])


@pytest.mark.parametrize(
    ("name", "content"), [("a.png", lambda: png(RAMP, 16)), ("a.tif", lambda: tiff(RAMP.astype(np.uint16)))]
)
def test_sixteen_bits_become_eight_by_257(tmp_path, name, content):
    file = written(tmp_path, content(), name)
    expected = np.rint(RAMP / 257).astype(np.uint8)
    np.testing.assert_array_equal(rgb(file), np.stack([expected] * 3, axis=2))
    assert read_header(file).deep


def test_eight_bit_values_in_sixteen_bits_stay(tmp_path):
    file = written(tmp_path, png(RAMP % 256, 16))
    np.testing.assert_array_equal(rgb(file)[..., 0], RAMP % 256)


def test_sixteen_bits_in_colour_are_seen_in_the_header(tmp_path):
    values = np.array([[[65535, 257 * 3, 0]]], dtype=">u2")
    body = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    content = chunk(b"IHDR", body) + chunk(b"IDAT", zlib.compress(b"\0" + values.tobytes())) + chunk(b"IEND", b"")
    file = written(tmp_path, b"\x89PNG\r\n\x1a\n" + content)
    assert read_header(file).deep
    assert rgb(file).tolist() == [[[255, 3, 0]]]


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (np.linspace(0, 1, 12, dtype=np.float32), 3, "has floats from 0 to 1, whose range for white is unknown"),
        (np.linspace(0, 700, 12, dtype=np.float32), 3, "has floats from 0 to 700"),
        (np.linspace(-1, 1, 12, dtype=np.float32), 3, "has floats from -1 to 1"),
        (np.full(12, np.nan, np.float32), 3, "has floats from nan to nan"),
        (np.arange(12, dtype=np.int32) * 5000, 2, "has 32-bit integers from 0 to 55000"),
    ],
)
def test_values_without_a_known_white_are_refused(tmp_path, values, kind, message):
    file = written(tmp_path, tiff(values.reshape(3, 4), kind), "a.tif")
    with pytest.raises(ValueError, match=rf"a\.tif {message}"):
        read_rgb(file)
    with pytest.raises(ValueError, match=message):
        read_header(file, decode=True)


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, 3), (np.int32, 2)])
def test_floats_and_wide_integers_of_eight_bits_are_read(tmp_path, dtype, kind):
    file = written(tmp_path, tiff((RAMP % 256).astype(dtype), kind), "a.tif")
    np.testing.assert_array_equal(rgb(file)[..., 1], RAMP % 256)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(np.full((6, 9, 3), 255, np.uint8)).convert(mode)
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(file, **({"transparency": bytes([0, 255])} if mode == "P" else {}))
    assert (rgb(file) == 255).all()
