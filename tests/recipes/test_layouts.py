"""Readers of the public layouts: the files they pair, and the class of each value."""

from __future__ import annotations

import builtins
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cawa_fast.recipes.datasets import (
    FILE_DATASETS,
    ADE20KDataset,
    CityscapesDataset,
    COCOStuff10kDataset,
    COCOStuff164kDataset,
    FolderDataset,
    VOCDataset,
    build_dataset,
)
from cawa_fast.recipes.datasets import labels as label_files
from cawa_fast.recipes.datasets.colours import voc_colour
from cawa_fast.recipes.datasets.labels import LabelRule, read_codes
from tests.support import trees


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
    with pytest.raises(FileNotFoundError, match=r"root='.*' is not a folder; give the folder that holds"):
        open_layout(key, tmp_path / "elsewhere")


@pytest.mark.parametrize("key", trees.LAYOUTS)
def test_opening_reads_no_file(key, tmp_path, monkeypatch):
    """118,287 headers take minutes on a network file system; only CamVid is small enough to read them."""
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
    """Runs if CAWA_FAST_DATA names a folder that has a folder for each dataset, named as the dataset."""
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
    with pytest.raises(ValueError, match="length=7 must be from 1 to 6, the number of images in val"):
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
    # in ADE20K's own table, road and skyscraper have the same colour
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
    assert "reduced by one already" in message
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
    assert "add 'ignore' as the first line of classes.txt" in refusal(FolderDataset(tmp_path / "d", "val"))


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
    with pytest.raises(ValueError, match=r"is 16x8 pixels \(W x H\), the first image of val is 24x16; resize all"):
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
    with pytest.raises(FileNotFoundError, match=r"train\.txt is missing \(existing lists: val\)"):
        VOCDataset(tmp_path, "train")
    trees.voc(tmp_path, "trainaug", [trees.stripes([2])] * 3, labels="SegmentationClassAug")
    assert len(build_dataset("voc_aug", root=str(tmp_path))) == 3
    lists = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    (lists / "val.txt").write_text("val_000000\nnot_there\n")
    with pytest.raises(FileNotFoundError, match=r"'not_there' is listed, but neither .* nor .* exists"):
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
