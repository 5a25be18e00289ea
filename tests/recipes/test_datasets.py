"""Datasets: their content, what they read and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cawa_fast.recipes.datasets import DATASETS, CamVidDataset, StreetDataset, build_dataset, count_class_pixels
from tests.support.arrays import Arrays, coded

RARE = ("pole", "traffic_sign", "person", "rider")


def write_camvid(root: Path, split: str, stems, *, size=(8, 12), suffix=".png", annotate=None):
    """A tiny tree in SegNet's layout. By default the label of every pixel is its column modulo 12."""
    for folder in (split, f"{split}annot"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for k, stem in enumerate(stems):
        pixels = np.full((*size, 3), 40 * (k + 1), dtype=np.uint8)
        Image.fromarray(pixels).save(root / split / f"{stem}{suffix}")
        values = np.tile(np.arange(size[1], dtype=np.uint8) % 12, (size[0], 1)) if annotate is None else annotate
        Image.fromarray(values).save(root / f"{split}annot" / f"{stem}.png")


# -- base -----------------------------------------------------------------------------------------------------------


def test_cache_decodes_once_within_its_limit():
    data = coded(4, 5, length=3)
    data = Arrays(data.pairs, cache_limit=2 * 4 * 5 * 4)  # two pairs fit
    for _ in range(3):
        data.preload()
    assert data.loads == [1, 1, 3]
    uncached = Arrays(data.pairs, cache=False)
    uncached.preload()
    uncached.preload()
    assert uncached.loads == [2, 2, 2]


def test_cached_arrays_cannot_be_written():
    image, label = coded(4, 5).read(0)
    with pytest.raises(ValueError, match="read-only"):
        image[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        label[0, 0] = 1


def test_class_pixels_by_hand_and_progress():
    label = np.array([[0, 0, 1], [255, 199, 0]], dtype=np.uint8)
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    calls = []
    pixels = count_class_pixels(Arrays([(image, label)] * 2), lambda done, total: calls.append((done, total)))
    assert pixels.dtype == torch.int64
    assert pixels.shape == (200,)
    assert {i: n for i, n in enumerate(pixels.tolist()) if n} == {0: 6, 1: 2, 199: 2}
    assert calls == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8), r"arrays\[0\]: image is uint8 \(2, 3\)"),
        (np.zeros((2, 3, 3), np.float32), np.zeros((2, 3), np.uint8), "image is float32"),
        (np.zeros((2, 3, 3), np.uint8), np.zeros((3, 2), np.uint8), r"label is uint8 \(3, 2\)"),
        (np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.int64), "label is int64"),
        (np.zeros((2, 3, 3), np.uint8), np.full((2, 3), 200, np.uint8), r"6 pixels have labels \[200\]"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(image, label, message):
    with pytest.raises(ValueError, match=message):
        Arrays([(image, label)]).read(0)


@pytest.mark.parametrize("index", [-1, 1])
def test_read_outside_the_data_set(index):
    with pytest.raises(IndexError, match=f"index={index}: arrays has 1 images"):
        coded(2, 2).read(index)


def test_negative_cache_limit():
    with pytest.raises(ValueError, match="cache_limit=-1"):
        Arrays([], cache_limit=-1)


# -- build_dataset --------------------------------------------------------------------------------------------------


def test_build_dataset_names_the_argument_and_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"'streets' is unknown; choose one of ade20k, camvid, .*street"):
        build_dataset("streets")
    with pytest.raises(ValueError, match="split='best' is unknown; 'street' has 'train', 'val', 'test'"):
        build_dataset("street", split="best")
    with pytest.raises(ValueError, match=r"split='\.\./val' is unknown; give a name, such as 'train', 'val' or 'test'"):
        build_dataset("camvid", root=str(tmp_path), split="../val")
    with pytest.raises(ValueError, match=r"resize=\(0, 5\)"):
        build_dataset("street", resize=(0, 5))
    with pytest.raises(ValueError, match="reads no files; leave root out"):
        build_dataset("street", root=str(tmp_path))
    with pytest.raises(ValueError, match="root=None: 'camvid' reads files"):
        build_dataset("camvid")


@pytest.mark.parametrize("cls", [StreetDataset, CamVidDataset])
def test_names_and_palette(cls):
    assert DATASETS.keys() >= {cls.name}
    assert len(cls.palette) == len(cls.class_names) == len(set(cls.palette)) == len(set(cls.class_names))
    assert cls.ignore_index == 255


# -- street ---------------------------------------------------------------------------------------------------------


def test_street_image_is_a_function_of_seed_split_and_index():
    one, two = StreetDataset("train", length=4, seed=1), StreetDataset("train", length=9, seed=1)
    two.read(0)  # the order of reading does not matter
    for index in (3, 1):
        for a, b in zip(one.read(index), two.read(index), strict=True):
            np.testing.assert_array_equal(a, b)
    others = [
        one.read(0),
        one.read(1),
        StreetDataset("val", length=4, seed=1).read(0),
        StreetDataset("train", length=4, seed=2).read(0),
    ]
    assert len({image.tobytes() for image, _ in others}) == len({label.tobytes() for _, label in others}) == 4


@pytest.mark.parametrize("size", [(96, 192), (32, 32), (101, 67), (180, 240)])
def test_street_sizes(size):
    street = build_dataset("street", resize=size, length=1)
    image, label = street.read(0)
    assert street.image_size == size == label.shape == image.shape[:2]
    assert image.dtype == label.dtype == np.uint8


@pytest.mark.slow
def test_street_has_a_long_tail():
    """Every class in both splits, the rare four together under 1 %, road and building far above; ignored 2 to 6 %."""
    for split, length in (("train", 320), ("val", 80)):
        street = StreetDataset(split)
        assert len(street) == length
        pixels = count_class_pixels(street)
        share = dict(zip(street.class_names, (pixels / pixels.sum()).tolist(), strict=True))
        ignored = 1 - pixels.sum().item() / (length * 96 * 192)
        print(split, {name: f"{100 * value:.2f} %" for name, value in share.items()}, f"ignored {100 * ignored:.1f} %")
        assert 0.005 < sum(share[name] for name in RARE) < 0.01
        assert all(share[name] > 0.0003 for name in RARE)
        assert all(value > 0.03 for name, value in share.items() if name not in RARE)
        assert share["road"] > 0.25
        assert 0.02 < ignored < 0.06


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "best"}, "split='best' is unknown; 'street' has 'train', 'val', 'test'"),
        ({"length": 0}, "length=0 must be at least 1"),
        ({"size": (31, 64)}, r"size=\(31, 64\) must be"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_street_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        StreetDataset(**{"split": "train", **arguments})


# -- camvid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg"])
def test_camvid_folders(tmp_path, suffix):
    write_camvid(tmp_path, "train", ["b", "a"], suffix=suffix)
    data = build_dataset("camvid", root=str(tmp_path))
    assert (len(data), data.num_classes, data.image_size) == (2, 11, (8, 12))
    image, label = data.read(0)
    assert abs(int(image[0, 0, 0]) - 80) < 4  # sorted by name: "a" was written second
    assert label[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255]
    assert count_class_pixels(data).tolist() == [16] * 11


@pytest.mark.parametrize(
    "line",
    [
        "train/a.png trainannot/a.png",
        "/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png",
        "\n  train/a.png\ttrainannot/a.png  \n",
    ],
)
def test_camvid_list_decides_which_pairs(tmp_path, line):
    write_camvid(tmp_path, "train", ["a", "b"])
    (tmp_path / "train.txt").write_text(line)
    data = CamVidDataset(tmp_path, "train")
    assert len(data) == 1
    assert data.describe(0) == f"{tmp_path / 'train' / 'a.png'} with {tmp_path / 'trainannot' / 'a.png'}"


def test_camvid_palette_annotations(tmp_path):
    write_camvid(tmp_path, "train", ["a"])
    indexed = Image.fromarray(np.full((8, 12), 7, np.uint8)).convert("P")
    indexed.putpalette([9] * 768)
    indexed.save(tmp_path / "trainannot" / "a.png")
    assert (CamVidDataset(tmp_path, "train").read(0)[1] == 7).all()


def test_camvid_resize(tmp_path):
    """Images are averaged, labels picked: resized labels have no values between two classes."""
    write_camvid(tmp_path, "train", ["a"], annotate=np.repeat(np.uint8([[0, 10]]), 6, axis=1).repeat(8, axis=0))
    stripes = np.zeros((8, 12, 3), np.uint8)
    stripes[:, ::2] = 200
    Image.fromarray(stripes).save(tmp_path / "train" / "a.png")
    data = build_dataset("camvid", root=str(tmp_path), resize=(4, 6))
    image, label = data.read(0)
    assert data.image_size == (4, 6) == label.shape
    assert label[0].tolist() == [0, 0, 0, 10, 10, 10]
    assert np.abs(image[:, 1:-1].astype(int) - 100).max() < 30


def test_camvid_images_of_several_sizes(tmp_path):
    write_camvid(tmp_path, "train", ["a"])
    write_camvid(tmp_path, "train", ["b"], size=(6, 12))
    assert CamVidDataset(tmp_path, "train").image_size is None
    assert CamVidDataset(tmp_path, "train", resize=(4, 4)).image_size == (4, 4)


def test_camvid_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root='.*nowhere' is not a folder"):
        CamVidDataset(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"train is missing, and so is the list .*train\.txt"):
        CamVidDataset(tmp_path, "train")
    write_camvid(tmp_path, "train", [])
    with pytest.raises(FileNotFoundError, match="train holds no images"):
        CamVidDataset(tmp_path, "train")
    write_camvid(tmp_path, "train", ["a", "b"])
    (tmp_path / "trainannot" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png has no partner named b\.\* in .*trainannot \(1 such"):
        CamVidDataset(tmp_path, "train")
    (tmp_path / "train" / "b.png").unlink()
    (tmp_path / "train" / "a.png").unlink()
    write_camvid(tmp_path, "train", ["c"])
    with pytest.raises(FileNotFoundError, match=r"a\.png has no partner named a\.\* in .*train "):
        CamVidDataset(tmp_path, "train")


def test_camvid_bad_lists(tmp_path):
    write_camvid(tmp_path, "val", ["a"])
    listing = tmp_path / "val.txt"
    listing.write_text("val/a.png valannot/a.png\n/SegNet/val/zz.png /SegNet/valannot/a.png\n")
    with pytest.raises(FileNotFoundError, match=r"val\.txt, line 2: '/SegNet/val/zz\.png' is not under"):
        CamVidDataset(tmp_path, "val")
    listing.write_text("val/a.png\n")
    with pytest.raises(ValueError, match="line 1: expected 'image annotation'"):
        CamVidDataset(tmp_path, "val")
    listing.write_text("\n")
    with pytest.raises(ValueError, match="lists no pairs"):
        CamVidDataset(tmp_path, "val")


def test_camvid_sizes_that_differ(tmp_path):
    write_camvid(tmp_path, "train", ["a"])
    Image.fromarray(np.zeros((6, 12), np.uint8)).save(tmp_path / "trainannot" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is 12x8 pixels .*a\.png is 12x6"):
        CamVidDataset(tmp_path, "train")


def test_camvid_labels_outside_the_range(tmp_path):
    values = np.zeros((8, 12), np.uint8)
    values[2, :5] = 12
    write_camvid(tmp_path, "train", ["a"], annotate=values)
    with pytest.raises(ValueError, match=r"a\.png: 5 pixels have labels \[12\], outside 0\.\.11"):
        count_class_pixels(CamVidDataset(tmp_path, "train"))


def test_camvid_colour_annotations(tmp_path):
    write_camvid(tmp_path, "train", ["a"], annotate=np.zeros((8, 12, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a\.png is a colour image \(RGB\)"):
        CamVidDataset(tmp_path, "train").read(0)


def test_camvid_broken_file(tmp_path):
    write_camvid(tmp_path, "train", ["a"], size=(64, 64))
    file = tmp_path / "train" / "a.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    data = CamVidDataset(tmp_path, "train")  # the header is intact
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
        data.read(0)
    file.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
        CamVidDataset(tmp_path, "train")
