"""Label files are judged by their content: lossy files, few bits, several pages, marks of no data."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from cawa_fast.recipes.datasets.image_files import read_header
from cawa_fast.recipes.datasets.labels import LabelRule, pack, read_codes
from tests.support import trees
from tests.support.raw_files import png, tiff, written

RULE = LabelRule({0: 0, 1: 1, 2: 2, 3: 3, 255: 255}, "0..3 (255 is ignored)", "remap them")
GREYS = LabelRule({0: 0, 85: 1, 255: 2, pack((0, 0, 0)): 0}, "0, 85, 255", "remap them")
ZERO_IGNORED = LabelRule({0: 255, 1: 0, 2: 1, 3: 2}, "0..3 (0 is ignored)", "remap them")
CODES = trees.stripes([0, 1, 2, 3])


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
        ("a.png", lambda: b"MATLAB 5.0 MAT-file", "it is a MATLAB file; write its array"),
        ("a.png", lambda: b"\x89HDF\r\n\x1a\n", "it is an HDF5 or MATLAB 7.3 file"),
        ("a.png", lambda: b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS.*git lfs pull"),
        ("a.png", lambda: b"\n<!DOCTYPE html><html>", "it is a web page; download the file again"),
        ("a.png", lambda: b'{"shapes": []}', "it is JSON text; convert the annotation"),
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


def test_many_unknown_values_may_come_from_smoothing(tmp_path):
    file = written(tmp_path, png(trees.stripes(range(10, 18)), 8))
    with pytest.raises(ValueError, match=r"labels \[10, .*outside 0..3 \(255 is ignored\); remap them$"):
        RULE.to_labels(read_codes(file, RULE), file)
    file = written(tmp_path, png(trees.stripes(range(10, 19)), 8))
    with pytest.raises(
        ValueError, match=r"; remap them. 9 different values may also come from smoothing or lossy comp"
    ):
        RULE.to_labels(read_codes(file, RULE), file)


def test_eight_bits_stretched_to_sixteen_are_recognised(tmp_path):
    file = written(tmp_path, png(CODES * 257, 16))
    with pytest.raises(
        ValueError, match=r"labels \[257, 514, 771\], .*; these are 257 times the values of classes: divide"
    ):
        RULE.to_labels(read_codes(file, RULE), file)
    file = written(tmp_path, png(CODES * 256, 16))
    with pytest.raises(ValueError, match=r"labels \[256, 512, 768\], .*; remap them$"):
        RULE.to_labels(read_codes(file, RULE), file)
