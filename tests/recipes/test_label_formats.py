"""Label files and images are judged by their content: lossy files, few bits, marks of no data, orientation, depth."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from cawa_fast.recipes.datasets import CamVidDataset, FolderDataset
from cawa_fast.recipes.datasets.image_files import read_header, read_rgb
from cawa_fast.recipes.datasets.labels import LabelRule, pack, read_codes
from tests.support import trees

RULE = LabelRule({0: 0, 1: 1, 2: 2, 3: 3, 255: 255}, "0..3 (255 is ignored)", "remap them")
GREYS = LabelRule({0: 0, 85: 1, 255: 2, pack((0, 0, 0)): 0}, "0, 85, 255", "remap them")
ZERO_IGNORED = LabelRule({0: 255, 1: 0, 2: 1, 3: 2}, "0..3 (0 is ignored)", "remap them")
CODES = trees.stripes([0, 1, 2, 3])


def png(codes: np.ndarray, bits: int, colour: int = 0, chunks: list[tuple[bytes, bytes]] | None = None) -> bytes:
    """A grey (colour 0) or palette (3) PNG with 1 to 16 bits a pixel, and chunks before the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b""
    for row in codes.tolist():
        packed = "".join(f"{value:0{bits}b}" for value in row)
        packed += "0" * (-len(packed) % 8)
        rows += b"\0" + bytes(int(packed[k : k + 8], 2) for k in range(0, len(packed), 8))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", codes.shape[1], codes.shape[0], bits, colour, 0, 0, 0))]
    if colour == 3:
        parts.append((b"PLTE", bytes(k * 16 % 256 for k in range(3 * (1 << bits)))))
    parts += [*(chunks or []), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def written(tmp_path: Path, content: bytes, name: str = "a.png") -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def saved(codes: np.ndarray, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(codes).save(stream, form, **options)
    return stream.getvalue()


# -- bits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("colour", [0, 3])
def test_the_index_is_kept_at_every_depth(tmp_path, bits, colour):
    if (bits, colour) == (16, 3):
        pytest.skip("PNG has no palettes of 16 bits")
    codes = CODES % min(4, 1 << bits)
    file = written(tmp_path, png(codes, bits, colour))
    np.testing.assert_array_equal(read_codes(file, RULE), codes)


@pytest.mark.parametrize(("bits", "values"), [(1, [0, 1]), (2, [0, 1, 3])])
def test_greys_of_few_bits_count_if_the_list_has_only_these(tmp_path, bits, values):
    shown = {0: 0, 1: 255 if bits == 1 else 85, 3: 255}
    codes = trees.stripes(values)
    file = written(tmp_path, png(codes, bits))
    np.testing.assert_array_equal(read_codes(file, GREYS), np.vectorize(shown.__getitem__)(codes))


def test_unknown_values_of_few_bits_are_named_as_they_are_stored(tmp_path):
    file = written(tmp_path, png(trees.stripes([0, 9]), 4))
    with pytest.raises(ValueError, match=r"192 pixels have labels \[9\], outside 0..3"):
        RULE.to_labels(read_codes(file, RULE), file)


def test_a_palette_with_transparency_keeps_its_indices(tmp_path):
    file = written(tmp_path, png(CODES, 4, 3, [(b"tRNS", bytes([0, 255, 255]))]))
    np.testing.assert_array_equal(read_codes(file, RULE), CODES)


def test_interlaced_files(tmp_path):
    file = tmp_path / "a.gif"
    Image.fromarray(CODES.astype(np.uint8)).save(file, interlace=1)
    np.testing.assert_array_equal(read_codes(file, RULE), CODES)


@pytest.mark.parametrize(("dtype", "kind"), [(np.int16, 2), (np.int32, 2), (np.uint16, 1), (np.uint32, 1)])
def test_wide_integers(tmp_path, dtype, kind):
    top = {np.int16: -5, np.int32: -70000, np.uint16: 65535, np.uint32: 4294967295}[dtype]
    codes = np.where(CODES == 3, top, CODES)
    file = tmp_path / "a.tif"
    file.write_bytes(tiff(codes.astype(dtype), kind))
    np.testing.assert_array_equal(read_codes(file, RULE), codes)


def test_eight_bits_with_a_sign(tmp_path):
    codes = trees.stripes([0, -1, -3])
    file = written(tmp_path, tiff(codes.astype(np.int8), 2), "a.tif")
    assert np.unique(read_codes(file, RULE)).tolist() == [-3, 0, 255]
    minus = LabelRule({0: 0, -1: 1}, "-1, 0", "remap them")
    assert np.unique(read_codes(file, minus)).tolist() == [-3, -1, 0]


def tiff(codes: np.ndarray, kind: int = 1, *, bands: int = 1, photometric: int = 1, nodata: str = "") -> bytes:
    """A TIFF without compression, little-endian; ``kind`` is its SampleFormat."""
    data, bits = codes.tobytes(), codes.dtype.itemsize * 8
    text = nodata.encode() + b"\0"
    tags = [
        (256, 4, 1, codes.shape[1]), (257, 4, 1, codes.shape[0]), (258, 3, 1, bits), (259, 3, 1, 1),
        (262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, bands), (278, 4, 1, codes.shape[0]),
        (279, 4, 1, len(data)), (284, 3, 1, 1), (339, 3, 1, kind),
    ]  # fmt: skip
    if nodata:
        tags.append(
            (42113, 2, len(text), 8 + len(data) if len(text) > 4 else int.from_bytes(text.ljust(4, b"\0"), "little"))
        )
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0\0\0\0"
    place = 8 + len(data) + len(text)
    return b"II*\0" + struct.pack("<I", place) + data + text + directory


# -- what cannot hold labels ----------------------------------------------------------------------------------------


def jpeg_in_tiff() -> bytes:
    return saved(CODES.astype(np.uint8), "TIFF", compression="jpeg")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", lambda: saved(CODES.astype(np.uint8), "JPEG"), r"is compressed as JPEG, which changes values .*PNG"),
        ("a.bmp", lambda: saved(np.zeros((16, 24, 3), np.uint8), "JPEG", quality=100), "is compressed as JPEG"),
        ("a.png", lambda: saved(np.zeros((16, 24, 3), np.uint8), "WEBP", quality=50), "is compressed as WebP"),
        ("a.tif", jpeg_in_tiff, "is compressed as JPEG"),
        ("a.png", lambda: b"\x93NUMPY\x01\0v\0{'descr'", "cannot be read as an image: it is a NumPy array"),
        ("a.png", lambda: b"MATLAB 5.0 MAT-file", "it is a MATLAB file, not an image"),
        ("a.png", lambda: b"\x89HDF\r\n\x1a\n", "it is an HDF5 or MATLAB 7.3 file"),
        ("a.png", lambda: b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS.*git lfs pull"),
        ("a.png", lambda: b"\n<!DOCTYPE html><html>", "it is a web page, not an image; download the file again"),
        ("a.png", lambda: b'{"shapes": []}', "it is JSON text, not an image; convert the annotation"),
        ("a.png", lambda: b"", r"cannot be read as an image \(it is empty, 0 bytes\); replace it by an intact copy"),
        ("a.png", lambda: png(CODES, 8)[:50], r"cannot be read as an image .*; replace it by an intact copy"),
        ("a.tif", lambda: tiff(np.zeros((4, 5), np.uint16), bands=7), r"it is a TIFF with 7 bands of 16-bit unsigned"),
        ("a.tif", lambda: tiff(CODES.astype(np.uint64)), r"it is a TIFF with 1 band of 64-bit unsigned integers"),
        ("a.tif", lambda: tiff(CODES.astype(np.float32), 3), r"has the pixel format F \(floats\), which cannot hold"),
        ("a.tif", lambda: tiff(CODES.astype(np.uint8), photometric=0), "is a TIFF in which 0 is white"),
    ],
)  # fmt: skip
def test_what_cannot_hold_labels_is_named_with_its_cause(tmp_path, name, content, message):
    file = written(tmp_path, content(), name)
    with pytest.raises(ValueError, match=message) as caught:
        read_codes(file, RULE)
    assert str(file) in str(caught.value)
    if "intact copy" not in message:
        assert "intact copy" not in str(caught.value)


@pytest.mark.parametrize("form", ["TIFF", "GIF", "PNG", "WEBP"])
def test_several_pages_are_refused(tmp_path, form):
    pages = [Image.fromarray(np.full((8, 8), k, np.uint8)) for k in (1, 2, 3)]
    file = tmp_path / "a.png"
    pages[0].save(file, form, save_all=True, append_images=pages[1:], **({"lossless": True} if form == "WEBP" else {}))
    with pytest.raises(ValueError, match=r"a\.png has 3 frames or pages, but a label map is a single one"):
        read_codes(file, RULE)
    assert read_header(file).frames == 3


def test_overviews_of_a_tiff_are_no_pages(tmp_path):
    file = tmp_path / "a.tif"
    small = Image.fromarray(CODES[::2, ::2].astype(np.uint8))
    small.encoderinfo = {"tiffinfo": TiffImagePlugin.ImageFileDirectory_v2()}
    small.encoderinfo["tiffinfo"][254] = 1
    Image.fromarray(CODES.astype(np.uint8)).save(file, save_all=True, append_images=[small])
    with Image.open(file) as opened:
        assert opened.n_frames == 2
        opened.seek(1)
        assert opened.tag_v2[254] == 1
    np.testing.assert_array_equal(read_codes(file, RULE), CODES)


def test_a_missing_file_or_a_folder_is_named_as_such(tmp_path):
    with pytest.raises(ValueError, match=r"b\.png cannot be read as an image \(there is no such file\)"):
        read_codes(tmp_path / "b.png", RULE)
    with pytest.raises(ValueError, match=r"cannot be read as an image \(it is a folder\)"):
        read_codes(tmp_path, RULE)


def test_matlab_files_name_their_variables(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    file = tmp_path / "a.mat"
    savemat(file, {"mask": CODES})
    with pytest.raises(ValueError, match=r"a\.mat holds no label map S, but mask; save the map as S"):
        read_codes(file, RULE)
    savemat(file, {"S": CODES.astype(np.float64)})
    with pytest.raises(
        ValueError, match=r"a\.mat: S is float64 \(16, 24\); a label map is an \(H, W\) array of integers"
    ):
        read_codes(file, RULE)


# -- no data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 200), (np.int16, -9999), (np.uint16, 65535)])
def test_pixels_without_data_are_ignored(tmp_path, dtype, value):
    codes = np.where(CODES == 3, value, CODES).astype(dtype)
    file = written(tmp_path, tiff(codes, 2 if value < 0 else 1, nodata=str(value)), "a.tif")
    np.testing.assert_array_equal(read_codes(file, RULE), np.where(CODES == 3, 255, CODES))
    np.testing.assert_array_equal(read_codes(file, ZERO_IGNORED), np.where(CODES == 3, 0, CODES))
    plain = written(tmp_path, tiff(codes, 2 if value < 0 else 1), "b.tif")
    assert value in read_codes(plain, RULE)


def test_a_class_that_is_marked_as_no_data_is_refused(tmp_path):
    file = written(tmp_path, tiff(CODES.astype(np.uint8), nodata="0"), "a.tif")
    with pytest.raises(
        ValueError, match=r"a\.tif marks the value 0 as no data \(GDAL_NODATA\), but 0 is a class; call"
    ):
        read_codes(file, RULE)
    assert (read_codes(file, ZERO_IGNORED) == CODES).all()
    unused = written(tmp_path, tiff(CODES.astype(np.uint8) % 3, nodata="3"), "a.tif")
    assert (read_codes(unused, RULE) == CODES % 3).all()


@pytest.mark.parametrize("mark", ["nan", "none", "1e400", "0.5"])
def test_marks_that_are_no_label_do_nothing(tmp_path, mark):
    file = written(tmp_path, tiff(CODES.astype(np.uint8), nodata=mark), "a.tif")
    np.testing.assert_array_equal(read_codes(file, RULE), CODES)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_grey_is_no_data_unless_it_is_a_class(tmp_path, bits):
    codes = np.where(CODES == 3, 77, CODES)
    file = written(tmp_path, png(codes, bits, 0, [(b"tRNS", struct.pack(">H", 77))]))
    np.testing.assert_array_equal(read_codes(file, RULE), np.where(CODES == 3, 255, CODES))
    file = written(tmp_path, png(CODES, bits, 0, [(b"tRNS", struct.pack(">H", 3))]))
    np.testing.assert_array_equal(read_codes(file, RULE), CODES)


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


def test_many_unknown_values_may_come_from_smoothing(tmp_path):
    file = written(tmp_path, png(trees.stripes(range(10, 18)), 8))
    with pytest.raises(ValueError, match=r"labels \[10, .*outside 0..3 \(255 is ignored\); remap them$"):
        RULE.to_labels(read_codes(file, RULE), file)
    file = written(tmp_path, png(trees.stripes(range(10, 19)), 8))
    with pytest.raises(
        ValueError, match=r"; remap them. 9 different values may also come from smoothing or lossy comp"
    ):
        RULE.to_labels(read_codes(file, RULE), file)
