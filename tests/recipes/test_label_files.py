"""Label files: index maps, colours, palettes, class lists, and errors that name the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cawa_fast.recipes.datasets import CamVidDataset, FolderDataset
from cawa_fast.recipes.datasets import labels as label_files
from cawa_fast.recipes.datasets.class_list import read_class_list
from cawa_fast.recipes.datasets.labels import COLOUR, LabelRule, code_histogram, pack, read_codes
from tests.support import trees

# -- label files ----------------------------------------------------------------------------------------------------

RULE = LabelRule({0: 0, 1: 1, 7: 2, 255: 255}, "0, 1, 7", "remap them")
COLOURED = LabelRule({0: 0, 1: 1, pack((255, 0, 0)): 0, pack((0, 0, 9)): 1}, "0, 1", "add the colour")


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "I", "1"])
def test_pixel_formats_of_index_maps(tmp_path, mode):
    codes = trees.stripes([0, 1, 1]) if mode == "1" else trees.stripes([0, 1, 7])
    image = Image.fromarray(codes.astype({"I;16": np.uint16, "I": np.int32, "1": bool}.get(mode, np.uint8)))
    file = tmp_path / ("a.tif" if mode == "I" else "a.png")
    if mode == "P":
        image = image.convert("P")
    image.save(file)
    np.testing.assert_array_equal(read_codes(file, RULE), codes)


def test_sixteen_bit_values_are_not_cut(tmp_path):
    Image.fromarray(np.full((4, 5), 256 + 7, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a: 20 pixels have labels \[263\], outside 0, 1, 7; remap them"):
        RULE.to_labels(read_codes(tmp_path / "a.png", RULE), "a")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3), np.uint8), r"colour image \(RGB\) whose three channels are equal"),
        (np.arange(60, dtype=np.uint8).reshape(4, 5, 3),
         r"is a colour image \(RGB\), not a map of class indices; remap them"),
        (np.zeros((4, 5, 2), np.uint8), "has the pixel format LA"),
    ],
)  # fmt: skip
def test_what_is_no_index_map(tmp_path, image, message):
    Image.fromarray(image).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        read_codes(tmp_path / "a.png", RULE)


def test_colours_and_palettes(tmp_path):
    red, blue, other = (255, 0, 0), (0, 0, 9), (1, 2, 3)
    pixels = np.array([[red, blue, blue]], np.uint8)
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    assert COLOURED.to_labels(read_codes(file, COLOURED), file).tolist() == [[0, 1, 1]]
    # If the rule has the colours of the palette, these are the labels, in any order; otherwise the indices are.
    for palette, expected in (([*blue, *red], [[1, 0, 0]]), ([*other, *red], [[0, 1, 1]])):
        indexed = Image.fromarray(np.array([[0, 1, 1]], np.uint8)).convert("P")
        indexed.putpalette([*palette, *range(90)])  # long enough for 8 bits a pixel
        indexed.save(file)
        assert file.read_bytes()[24:26] == b"\x08\x03"
        assert COLOURED.to_labels(read_codes(file, COLOURED), file).tolist() == expected
    Image.fromarray(np.array([[red, other]], np.uint8)).save(file)
    with pytest.raises(ValueError, match=r"1 pixels have labels \[#010203\], outside 0, 1; add the colour"):
        COLOURED.to_labels(read_codes(file, COLOURED), file)


@pytest.mark.parametrize("fast", [True, False])
def test_broken_label_files(tmp_path, fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(label_files, "_fast_decoder", lambda: None)
    file = tmp_path / "a.png"
    trees.write_label(file, np.random.default_rng(0).integers(0, 2, (64, 64)))
    whole = file.read_bytes()
    for content in (whole[:300], b"no image", b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.png cannot be read as an image .*replace it by an intact copy"):
            read_codes(file, RULE)
    with pytest.raises(ValueError, match=r"b\.png cannot be read as an image"):
        read_codes(tmp_path / "b.png", RULE)


def test_the_faster_decoder_is_asked(tmp_path, monkeypatch):
    pytest.importorskip("kornia_rs")
    trees.write_label(tmp_path / "a.png", trees.stripes([1, 7]))
    monkeypatch.setattr(label_files, "open_image", lambda file: pytest.fail("Pillow was asked"))
    np.testing.assert_array_equal(read_codes(tmp_path / "a.png", RULE), trees.stripes([1, 7]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 300), st.sampled_from([np.uint8, np.int64]))
def test_histogram_equals_unique(seed, rows, values, dtype):
    rng = np.random.default_rng(seed)
    high = min(values, 255) if dtype == np.uint8 else COLOUR + values
    codes = np.repeat(rng.integers(0, high + 1, (rows, 9)), rng.integers(1, 5), axis=1).astype(dtype)
    expected = np.unique(codes, return_counts=True)
    assert code_histogram(codes) == (expected[0].tolist(), expected[1].tolist())


# -- folders and class lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["images/val", "val/images", "list"])
@pytest.mark.parametrize("tag", ["", "_mask", "_label"])
def test_folder_trees(tmp_path, layout, tag):
    trees.folder(tmp_path, "val", [trees.stripes([0, 3]), trees.stripes([1, 2], (9, 7))])
    for file in list((tmp_path / "masks" / "val").iterdir()):
        file.rename(file.with_name(f"{file.stem}{tag}.png"))
    if layout == "val/images":
        (tmp_path / "val").mkdir()
        (tmp_path / "images" / "val").rename(tmp_path / "val" / "images")
        (tmp_path / "masks" / "val").rename(tmp_path / "val" / "labels")
    elif layout == "list":
        (tmp_path / "val.txt").write_text(
            f"images/val/0.jpg masks/val/0{tag}.png\nimages/val/1.jpg masks/val/1{tag}.png\n"
        )
    data = FolderDataset(tmp_path, "val")
    assert data.class_names == ("a", "b", "c", "d")
    assert data.image_size is None
    assert [data.read(k)[1].max() for k in (0, 1)] == [3, 2]
    assert FolderDataset(tmp_path, "val", length=1).image_size == trees.SIZE


TWO = ((128, 64, 128), (0, 0, 142))


def test_of_several_forms_of_a_mask_the_first_counts(tmp_path):
    trees.folder(tmp_path, "val", [trees.stripes([2])] * 8)
    for file in list((tmp_path / "masks" / "val").iterdir()):
        for suffix in (".bmp", ".tif"):
            trees.write_label(file.with_suffix(suffix), trees.stripes([1]))
    assert {pair.label.suffix for pair in FolderDataset(tmp_path, "val").pairs} == {".png"}


def test_image_names_may_end_like_masks(tmp_path):
    trees.folder(tmp_path, "val", [trees.stripes([2])])
    (tmp_path / "images" / "val" / "0.jpg").rename(tmp_path / "images" / "val" / "0_gt.jpg")
    (tmp_path / "masks" / "val" / "0.png").rename(tmp_path / "masks" / "val" / "0_gt.png")
    assert (FolderDataset(tmp_path, "val").read(0)[1] == 2).all()


@pytest.mark.parametrize(
    ("name", "content", "names", "palette"),
    [
        ("classes.txt", "# mine\nroad\n\ntraffic light\n", ("road", "traffic light"), None),
        ("classes.txt", "road #804080\ntraffic light 0 0 142\n", ("road", "traffic light"), TWO),
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nroad:128,64,128::\nold car:0,0,142::\n",
            ("road", "old car"),
            TWO,
        ),
        ("class_dict.csv", "name, r, g, b\nroad,128,64,128\ncar,0,0,142\n", ("road", "car"), TWO),
        ("classes.csv", "name\nroad\ncar\n", ("road", "car"), None),
        ("classes.json", json.dumps(["road", "car"]), ("road", "car"), None),
        ("classes.json", json.dumps({"road": [128, 64, 128], "car": "#00008e"}), ("road", "car"), TWO),
        ("classes.json", json.dumps([{"name": "road", "color": [1, 2, 3]}]), ("road",), ((1, 2, 3),)),
    ],
)
def test_class_lists(tmp_path, name, content, names, palette):
    trees.folder(tmp_path, "val", [trees.stripes([0])], classes=None)
    (tmp_path / name).write_text(content)
    data = FolderDataset(tmp_path, "val")
    assert data.class_names == names
    assert len(set(data.palette)) == len(names)
    if palette is not None:
        assert data.palette == palette
        assert data.rule.classes[pack(palette[-1])] == len(names) - 1


def test_classes_to_ignore_keep_their_value(tmp_path):
    classes = read_class_list(_written(tmp_path, "Void\nroad\ncar\nunlabelled\n"))
    assert classes.names == ("road", "car")
    assert dict(classes.rule.classes) == {0: 255, 1: 0, 2: 1, 3: 255, 255: 255}


def test_greys_are_values(tmp_path):
    classes = read_class_list(_written(tmp_path, "background 0 0 0\nperson 255 255 255\n"))
    assert {v: c for v, c in classes.rule.classes.items() if v < COLOUR} == {0: 0, 255: 1}


def _written(tmp_path: Path, content: str, name: str = "classes.txt") -> Path:
    (tmp_path / name).write_text(content)
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classes.txt", "a\nb\na\n", r"classes\.txt: the class a occurs twice"),
        ("classes.txt", "a 1 2 3\nb 1 2 3\n", r"the colour \(1, 2, 3\) occurs twice"),
        ("classes.txt", "a 1 2 3\nb\n", "'b' has no colour but 'a' has"),
        ("classes.txt", "a 1 2 300\n", r"line 1: the colour \(1, 2, 300\) is outside 0..255"),
        ("classes.txt", "void\n", "lists 0 classes; there must be 1 to 255"),
        ("classes.txt", "\n".join(f"c{k}" for k in range(256)), "lists 256 classes"),
        ("classes.json", "[", "is not JSON"),
        ("classes.json", "3", "expected a list of names"),
        ("classes.json", '[{"color": [1, 2, 3]}]', "class 0: .* has no name"),
        ("classes.json", '{"a": [1, 2]}', "is not a colour; give red, green, blue"),
        ("classes.csv", "r,g,b\n1,2,3\n", "line 2: no name; the first line must name the columns"),
    ],
)
def test_class_lists_that_cannot_be_read(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_class_list(_written(tmp_path, content, name))


def test_a_class_list_is_needed(tmp_path):
    trees.folder(tmp_path, "val", [trees.stripes([0])], classes=None)
    with pytest.raises(FileNotFoundError, match=r"holds no class list .*write classes\.txt"):
        FolderDataset(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match=r"classes='.*other\.txt' is not a file"):
        FolderDataset(tmp_path, "val", classes=tmp_path / "other.txt")
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="is not a text file"):
        FolderDataset(tmp_path, "val")
    (tmp_path / "classes.txt").write_text("a\n")
    shutil.rmtree(tmp_path / "masks")
    with pytest.raises(FileNotFoundError, match=r"holds neither masks/val nor val/masks nor val.txt"):
        FolderDataset(tmp_path, "val")


def test_unknown_layout_options_name_camvid_lists(tmp_path):
    trees.camvid(tmp_path, "val", [trees.stripes([1])])
    (tmp_path / "val.txt").write_text("val/0.png valannot/0.png\nval/8.png valannot/8.png\n")
    data = CamVidDataset(tmp_path, "val", allow_unpaired=True)
    assert len(data) == 1
    assert [unpaired.missing for unpaired in data.unpaired] == ["both"]
