"""Readers of the public layouts: which files they pair, and which class each value becomes."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import trees
from cawa_fast.recipes.datasets import (
    FILE_DATASETS,
    ADE20KDataset,
    CamVidDataset,
    CityscapesDataset,
    COCOStuff10kDataset,
    COCOStuff164kDataset,
    FolderDataset,
    VOCDataset,
    build_dataset,
)
from cawa_fast.recipes.datasets import labels as label_files
from cawa_fast.recipes.datasets._colours import voc_colour
from cawa_fast.recipes.datasets.class_list import read_class_list
from cawa_fast.recipes.datasets.labels import COLOUR, LabelRule, histogram, pack, read_codes


def open_layout(key: str, root: Path, split: str = "val", **options):
    return build_dataset(key.split("-")[0], root=str(root), split=split, **options)


# -- every layout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", trees.LAYOUTS)
@pytest.mark.parametrize("fast", [True, False])
def test_labels_equal_a_mapping_by_hand(key, fast, tmp_path, monkeypatch):
    if not fast:
        monkeypatch.setattr(label_files, "_fast_decoder", lambda: None)
    write, options, allowed, by_hand = trees.LAYOUTS[key]
    maps = [trees.stripes(allowed, (8, max(24, len(allowed)))), trees.blobs(allowed, seed=5, size=(13, 200))]
    if key.startswith("cityscapes"):
        maps = [codes[:8] for codes in (trees.stripes(allowed, (8, 40)), trees.blobs(allowed, seed=5, size=(8, 40)))]
    files = write(tmp_path, "val", maps, **options)
    data = open_layout(key, tmp_path)
    assert len(data) == 2
    for index, (codes, file) in enumerate(zip(maps, files, strict=True)):
        expected = np.vectorize(by_hand.__getitem__)(codes)
        image, label = data.read(index)
        assert data.pairs[index].label == file
        assert image.shape == (*codes.shape, 3)
        np.testing.assert_array_equal(label, expected)
        np.testing.assert_array_equal(open_layout(key, tmp_path, cache=False).read_label(index), expected)
    assert set(by_hand.values()) <= {*range(data.num_classes), 255}
    assert data.num_classes == len({c for v, c in by_hand.items() if c != 255 and v in allowed})


@pytest.mark.parametrize("key", trees.LAYOUTS)
def test_a_missing_file_is_named_with_its_partner(key, tmp_path):
    write, options, allowed, _ = trees.LAYOUTS[key]
    files = write(tmp_path, "val", [trees.blobs(allowed, seed) for seed in (1, 2, 3)], **options)
    image = open_layout(key, tmp_path).pairs[0].image
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"has no partner named .*\(1 such files\).*doctor data --dataset"):
        open_layout(key, tmp_path)
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r"\(2 such files\)"):
        open_layout(key, tmp_path)
    partial = open_layout(key, tmp_path, allow_unpaired=True)
    assert [pair.label for pair in partial.pairs] == [files[2]]
    assert sorted(unpaired.missing for unpaired in partial.unpaired) == ["image", "label"]


@pytest.mark.parametrize("key", trees.LAYOUTS)
def test_a_missing_split_shows_the_tree(key, tmp_path):
    write, options, allowed, _ = trees.LAYOUTS[key]
    write(tmp_path, "train", [trees.blobs(allowed, 1)], **options)
    with pytest.raises(FileNotFoundError, match="expected"):
        open_layout(key, tmp_path, split="val")
    with pytest.raises(FileNotFoundError, match=r"root='.*' is not a folder; give the one that holds"):
        open_layout(key, tmp_path / "elsewhere")


@pytest.mark.parametrize("key", trees.LAYOUTS)
def test_opening_reads_no_file(key, tmp_path, monkeypatch):
    """118,287 headers take minutes on a network's disk; CamVid alone is small enough to be looked through."""
    if key == "camvid":
        pytest.skip("its 468 pairs are compared when it is opened")
    write, options, allowed, _ = trees.LAYOUTS[key]
    write(tmp_path, "val", [trees.blobs(allowed, seed) for seed in range(3)], **options)
    opened = []
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("an image was opened"))
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **k: opened.append(str(file)) or real(file, *a, **k))
    data = open_layout(key, tmp_path)
    assert len(data) == 3
    if data.one_size is False:
        assert data.image_size is None
    assert not [file for file in opened if file.endswith((".png", ".jpg"))]


@pytest.mark.parametrize("key", trees.LAYOUTS)
def test_a_data_set_can_be_sent_to_a_process(key, tmp_path):
    write, options, allowed, _ = trees.LAYOUTS[key]
    write(tmp_path, "val", [trees.blobs(allowed, 1)], **options)
    data = open_layout(key, tmp_path)
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy.read(0)[1], data.read(0)[1])


@pytest.mark.parametrize("name", FILE_DATASETS)
def test_real_trees(name):
    """Where there are any: CAWA_FAST_DATA names a folder with a folder for each data set, by its name."""
    root = Path(os.environ.get("CAWA_FAST_DATA", "nowhere")) / name
    if not root.is_dir():
        pytest.skip("CAWA_FAST_DATA names no such tree")
    data = build_dataset(name, root=str(root), split="val")
    image, label = data.read(len(data) - 1)
    assert image.shape[:2] == label.shape
    assert (label < data.num_classes).mean() > 0.5


@pytest.mark.parametrize("name", FILE_DATASETS)
def test_without_a_root_the_tree_is_shown(name):
    with pytest.raises(ValueError, match=f"root=None: '{name}' reads files; give the folder that holds"):
        build_dataset(name)


def test_length_and_resize(tmp_path):
    maps = [trees.stripes([7, 8], (8, 12 + k)) for k in range(6)]
    trees.ade20k(tmp_path, "val", maps)
    data = ADE20KDataset(tmp_path, "val", length=3, resize=(4, 6))
    assert [pair.label.name for pair in data.pairs] == [f"ADE_val_{k:08}.png" for k in (0, 2, 4)]
    assert data.image_size == (4, 6) == data.read(2)[1].shape == data.read_label(1).shape
    with pytest.raises(ValueError, match="length=7: val has 6 images"):
        ADE20KDataset(tmp_path, "val", length=7)


# -- names and colours ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "known"),
    [
        ("cityscapes", 19, {0: ("road", "804080"), 5: ("pole", "999999"), 18: ("bicycle", "770b20")}),
        ("ade20k", 150, {0: ("wall", "787878"), 58: ("screen door", "00adff"), 149: ("flag", "5c00ff")}),
        ("coco_stuff10k", 171, {0: ("person", "800000"), 11: ("stop sign", "c00080"), 170: ("wood", "00e0c0")}),
        ("coco_stuff164k", 171, {24: ("backpack", None), 79: ("toothbrush", None), 80: ("banner", None)}),
        ("voc", 21, {0: ("background", "000000"), 15: ("person", "c08080"), 20: ("tvmonitor", "004080")}),
        ("camvid", 11, {0: ("sky", "808080"), 10: ("bicyclist", "0080c0")}),
    ],
)  # fmt: skip
def test_classes(name, count, known):
    cls = FILE_DATASETS[name]
    assert len(cls.class_names) == len(set(cls.class_names)) == len(cls.palette) == count
    # ADE20K's own table gives road and skyscraper one colour
    assert len(set(cls.palette)) == count - (name == "ade20k")
    for index, (class_name, colour) in known.items():
        assert cls.class_names[index] == class_name
        assert colour is None or "{:02x}{:02x}{:02x}".format(*cls.palette[index]) == colour


# -- the rules of each ----------------------------------------------------------------------------------------------


def refusal(data) -> str:
    with pytest.raises(ValueError) as error:
        data.read(0)
    return str(error.value)


def test_ade20k_refuses_what_was_reduced_already(tmp_path):
    trees.ade20k(tmp_path, "val", [np.where(codes := trees.stripes(range(4)), codes - 1, 255)])
    message = refusal(ADE20KDataset(tmp_path, "val"))
    assert "ADE_val_00000000.png" in message
    assert "pixels have labels [255], outside 0..150 (0 is ignored)" in message
    assert "zero was reduced already" in message
    assert "96 pixels" in message


def test_wrong_ids_are_recognised(tmp_path):
    ids = trees.stripes([7, 33])
    trees.cityscapes(tmp_path / "a", "val", [ids])
    assert "these look like labelIds" in refusal(CityscapesDataset(tmp_path / "a", "val"))
    trees.coco_stuff164k(tmp_path / "b", "val", [trees.stripes([0, 181])])
    assert "these look like raw ids" in refusal(COCOStuff164kDataset(tmp_path / "b", "val"))
    trees.coco_stuff164k(tmp_path / "c", "val", [trees.stripes([0, 11])], form="")
    assert "these look like labelTrainIds" in refusal(COCOStuff164kDataset(tmp_path / "c", "val"))
    trees.folder(tmp_path / "d", "val", [trees.stripes([1, 4])])
    assert "put a line 'ignore' first in classes.txt" in refusal(FolderDataset(tmp_path / "d", "val"))


def test_train_ids_come_before_raw_ids_and_either_can_be_asked_for(tmp_path):
    for form, value in (("labelIds", 26), ("labelTrainIds", 13)):
        trees.cityscapes(tmp_path, "val", [trees.stripes([value])], form=form)
    for labels, name in (("auto", "labelTrainIds"), ("labelTrainIds", "labelTrainIds"), ("labelIds", "labelIds")):
        data = CityscapesDataset(tmp_path, "val", labels=labels)
        assert data.pairs[0].label.name.endswith(f"gtFine_{name}.png")
        assert (data.read(0)[1] == 13).all()
    for form, value in (("", 12), ("_labelTrainIds", 11)):
        trees.coco_stuff164k(tmp_path, "val", [trees.stripes([value])], form=form)
    for labels in ("auto", "labelTrainIds", "raw"):
        assert (COCOStuff164kDataset(tmp_path, "val", labels=labels).read(0)[1] == 11).all()
    assert COCOStuff164kDataset(tmp_path, "val", labels="raw").pairs[0].label.name == f"{0:012}.png"
    for cls in (CityscapesDataset, COCOStuff164kDataset, COCOStuff10kDataset):
        with pytest.raises(ValueError, match="labels='ids' is unknown"):
            cls(tmp_path, "val", labels="ids")


def test_cityscapes_has_one_size(tmp_path):
    trees.cityscapes(tmp_path, "val", [trees.stripes([1]), trees.stripes([1], (8, 16))])
    data = CityscapesDataset(tmp_path, "val")
    assert data.image_size == trees.SIZE
    with pytest.raises(ValueError, match=r"is 16x8 pixels \(W x H\), the first image of val 24x16; give a size"):
        data.read(1)
    assert CityscapesDataset(tmp_path, "val", resize=(4, 4)).read(1)[1].shape == (4, 4)


def test_coco_stuff10k_as_distributed(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    trees.coco_stuff10k(tmp_path, "val", [trees.stripes([0])])
    shutil.rmtree(tmp_path / "annotations")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images" / "test2014").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "moved").rename(tmp_path / "images")
    (tmp_path / "imagesLists").rename(tmp_path / "imageLists")
    name = (tmp_path / "imageLists" / "test.txt").read_text().strip()
    savemat(tmp_path / "annotations" / f"{name}.mat", {"S": trees.stripes([0, 1, 13, 182]).astype(np.uint16)})
    data = COCOStuff10kDataset(tmp_path, "val")
    assert data.read(0)[1][0, :4].tolist() == [255, 0, 11, 170]
    (tmp_path / "annotations" / f"{name}.mat").write_bytes(b"nothing")
    assert "holds no label map S" in refusal(COCOStuff10kDataset(tmp_path, "val"))


def test_matlab_files_name_what_they_need(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ValueError, match=r"a\.mat: MATLAB files need SciPy: pip install scipy"):
        read_codes(tmp_path / "a.mat", LabelRule({0: 0}, "0", "none"))


@pytest.mark.parametrize("form", ["palette", "colours"])
def test_voc_in_colour(tmp_path, form):
    codes = trees.stripes([0, 15, 20, 255])
    file = trees.voc(tmp_path, "val", [codes])[0]
    indexed = Image.fromarray(codes.astype(np.uint8)).convert("P")
    indexed.putpalette([channel for index in range(256) for channel in voc_colour(index)])
    (indexed if form == "palette" else indexed.convert("RGB")).save(file)
    np.testing.assert_array_equal(VOCDataset(tmp_path, "val").read(0)[1], codes)


def test_voc_lists_and_the_augmented_set(tmp_path):
    trees.voc(tmp_path, "val", [trees.stripes([1])])
    with pytest.raises(FileNotFoundError, match=r"train\.txt is missing \(lists that are there: val\)"):
        VOCDataset(tmp_path, "train")
    trees.voc(tmp_path, "trainaug", [trees.stripes([2])] * 3, labels="SegmentationClassAug")
    assert len(build_dataset("voc_aug", root=str(tmp_path))) == 3
    lists = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    (lists / "val.txt").write_text("val_000000\nnot_there\n")
    with pytest.raises(FileNotFoundError, match=r"'not_there' is listed, but neither .* nor .* is there"):
        VOCDataset(tmp_path / "VOCdevkit", "val")
    (lists / "val.txt").write_text("\n")
    with pytest.raises(ValueError, match="lists no images"):
        VOCDataset(tmp_path / "VOCdevkit" / "VOC2012", "val")


def test_roots_one_level_up_are_found(tmp_path):
    trees.ade20k(tmp_path / "ADEChallengeData2016", "val", [trees.stripes([1])])
    assert len(ADE20KDataset(tmp_path, "val")) == 1


def test_empty_folders_are_named(tmp_path):
    trees.ade20k(tmp_path, "val", [trees.stripes([1])])
    for file in (tmp_path / "annotations" / "validation").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"validation holds no label maps \(\*\.png\)"):
        ADE20KDataset(tmp_path, "val")


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
    # A palette in another order than the classes': the colours count. Colours that mean nothing: the indices do.
    for palette, expected in (([*blue, *red], [[1, 0, 0]]), ([*other, *red], [[0, 1, 1]])):
        indexed = Image.fromarray(np.array([[0, 1, 1]], np.uint8)).convert("P")
        indexed.putpalette([*palette, *range(90)])  # long, so that the file has 8 bits a pixel
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
    assert histogram(codes) == (expected[0].tolist(), expected[1].tolist())


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
        ("classes.txt", "a\nb\na\n", r"classes\.txt: the class a is there twice"),
        ("classes.txt", "a 1 2 3\nb 1 2 3\n", r"the colour \(1, 2, 3\) is there twice"),
        ("classes.txt", "a 1 2 3\nb\n", "'b' has no colour but 'a' has"),
        ("classes.txt", "a 1 2 300\n", r"line 1: the colour \(1, 2, 300\) is outside 0..255"),
        ("classes.txt", "void\n", "lists 0 classes; there must be 1 to 255"),
        ("classes.txt", "\n".join(f"c{k}" for k in range(256)), "lists 256 classes"),
        ("classes.json", "[", "is no JSON"),
        ("classes.json", "3", "expected a list of names"),
        ("classes.json", '[{"color": [1, 2, 3]}]', "class 0: .* has no name"),
        ("classes.json", '{"a": [1, 2]}', "is no colour; give red, green, blue"),
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
    with pytest.raises(ValueError, match="is no text"):
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
