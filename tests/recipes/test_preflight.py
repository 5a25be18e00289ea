"""`cawa-fast train` says of its data what `cawa-fast doctor data` would, before the first batch and in its words."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cawa_fast.recipes.datasets import ClassIndex, FolderDataset, build_dataset, count_class_pixels
from cawa_fast.recipes.datasets.doctor import preflight as preflight_module
from cawa_fast.recipes.datasets.doctor.examine import examine
from cawa_fast.recipes.datasets.doctor.preflight import Preflight, preflight
from cawa_fast.recipes.datasets.label_statistics import evenly_spaced, sample_label_statistics
from tests.support import trees
from tests.support.tiny_runs import TINY, arguments, invoke

FEW = (0, 1, 2, 3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder dataset of four classes without faults."""
    for start, split in enumerate(("train", "val")):
        trees.folder(tmp_path, split, [trees.stripes(FEW)] * 4)
        for k in range(4):
            trees.write_image(tmp_path / "images" / split / f"{k}.jpg", seed=50 * start + k)
    return tmp_path


def checked(root: Path, name: str = "folder", **options: object) -> Preflight:
    splits = {split: build_dataset(name, root=str(root), split=split) for split in ("train", "val")}
    pixels = {split: count_class_pixels(dataset).tolist() for split, dataset in splits.items()}
    return preflight(splits, pixels, **options)


def masks(root: Path, split: str, codes: np.ndarray) -> None:
    for file in (root / "masks" / split).iterdir():
        trees.write_label(file, codes)


def black_and_white(root: Path) -> None:
    (root / "classes.txt").write_text("background\nobject\n")
    for split in ("train", "val"):
        masks(root, split, trees.stripes([0, 0, 255]))


def one_class(root: Path) -> None:
    (root / "classes.txt").write_text("object\n")
    for split in ("train", "val"):
        masks(root, split, trees.stripes([0]))


def one_class_occurs(root: Path) -> None:
    masks(root, "train", trees.stripes([2]))


def missing_classes(root: Path) -> None:
    masks(root, "train", trees.stripes([0, 1, 2]))


def unlabelled(root: Path) -> None:
    for name in ("0", "1", "2"):
        trees.write_label(root / "masks" / "val" / f"{name}.png", trees.stripes([255]))


def sixteen_bits(root: Path) -> None:
    (root / "images" / "train" / "1.jpg").unlink()
    Image.fromarray(np.full(trees.SIZE, 40000, np.uint16)).save(root / "images" / "train" / "1.png")


def turned(root: Path) -> None:
    file = root / "images" / "val" / "2.jpg"
    with Image.open(file) as image:
        exif = image.getexif()
        exif[0x0112] = 3
        image.load()
    image.save(file, exif=exif)


def several_pages(root: Path) -> None:
    (root / "images" / "train" / "1.jpg").unlink()
    pages = [Image.fromarray(np.full((*trees.SIZE, 3), k, np.uint8)) for k in (9, 99)]
    pages[0].save(root / "images" / "train" / "1.tif", save_all=True, append_images=pages[1:])


def same_stem(root: Path) -> None:
    trees.write_image(root / "images" / "train" / "0.png", seed=77)
    trees.write_label(root / "masks" / "val" / "3.bmp", trees.stripes(FEW))


def same_image(root: Path) -> None:
    shutil.copy(root / "images" / "train" / "2.jpg", root / "images" / "val" / "1.jpg")


def listed_twice(root: Path) -> None:
    lines = [f"images/train/{k}.jpg masks/train/{k}.png" for k in (0, 1, 2, 3, 2)]
    (root / "train.txt").write_text("\n".join(lines))


FAULTS = {
    black_and_white: {"black-and-white", "class-never-seen", "one-class"},
    one_class: {"one-class"},
    one_class_occurs: {"one-class", "class-never-seen", "class-only-in-val"},
    missing_classes: {"class-never-seen", "class-only-in-val"},
    unlabelled: {"nothing-labelled", "mostly-ignored"},
    sixteen_bits: {"deep-image"},
    turned: {"turned-image"},
    several_pages: {"several-frames"},
    same_stem: {"same-stem"},
    same_image: {"same-image"},
    listed_twice: {"listed-twice"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_findings_are_the_doctors(root, fault):
    assert checked(root) == Preflight((), 8, 8)
    fault(root)
    doctor = examine("folder", root, cache=False)
    expected = [finding for finding in doctor.findings if finding.severity != "note"]
    assert {finding.rule for finding in expected} == FAULTS[fault]
    assert sorted(checked(root).findings, key=str) == sorted(expected, key=str)


def test_findings_name_files_and_reasons(root):
    same_stem(root)
    texts = {(f.rule, f.split): f for f in checked(root).findings}
    images = texts["same-stem", "train"]
    assert images.text.startswith(
        f"1 files are not used, since others have the same name but for the suffix, such as {root}"
    )
    assert "0.jpg beside 0.png; remove those that are not meant" in images.text
    assert images.files == (str(root / "images" / "train" / "0.jpg"),)
    assert texts["same-stem", "val"].files == (str(root / "masks" / "val" / "3.bmp"),)
    listed_twice(root)
    found = {f.rule: f for f in checked(root).findings}
    assert f"1 lines of the list have an image that an earlier line has, such as {root}/train.txt, line 5" in (
        found["listed-twice"].text
    )


def test_one_class_says_what_will_happen(root):
    one_class(root)
    finding = checked(root).findings[0]
    assert finding.text.startswith("all labelled pixels are of one class, object: the loss becomes 0 and the IoU 1")
    assert "'background'" in finding.text


def test_turned_images_are_no_news_if_their_size_shows_how_the_label_lies(root):
    file = root / "images" / "val" / "2.jpg"
    with Image.open(file) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.load()
    image.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    assert checked(root).findings == ()


@pytest.mark.parametrize("kind", ["image", "size", "float"])
def test_files_that_training_cannot_read_are_errors(root, kind, monkeypatch):
    """Where the images do not fit into memory, they are not read before."""
    monkeypatch.setattr(FolderDataset, "fits_cache", False)
    if kind == "image":
        (root / "images" / "train" / "2.jpg").write_bytes(b"")
        message = (
            r"train: 1 images cannot be read, such as: .*2\.jpg cannot be read as an image \(it is empty, 0 bytes\)"
        )
    elif kind == "size":
        trees.write_image(root / "images" / "train" / "2.jpg", (16, 23))
        message = r"train: 1 label maps differ in size from their image, such as 24x16 for 23x16"
    else:
        (root / "images" / "train" / "2.jpg").unlink()
        Image.fromarray(np.linspace(0, 1, 16 * 24, dtype=np.float32).reshape(16, 24)).save(root / "images/train/2.tif")
        message = r"train: 1 images cannot be read, such as: .*2\.tif has floats from 0 to 1, whose range for white"
    with pytest.raises(ValueError, match=message):
        checked(root)
    assert message.split(" such as")[0].removeprefix("train: ") in str(examine("folder", root).findings)


# -- the sample -----------------------------------------------------------------------------------------------------


def test_without_time_a_few_pairs_are_read(tmp_path, monkeypatch):
    trees.ade20k(tmp_path, "val", [trees.stripes(range(1, 151), (4, 150))] * 40)
    data = build_dataset("ade20k", root=str(tmp_path), split="val")
    calls = []
    part, statistics = sample_label_statistics(data, 1e-9, lambda *call: calls.append(call))
    assert (len(part), statistics.read, calls) == (16, 16, [(16, 40), (40, 40)])
    assert [pair in data.pairs for pair in part.pairs] == [True] * 16
    # what an earlier check has read is known, and costs no time
    ClassIndex.build(data)
    part, statistics = sample_label_statistics(data, 1e-9)
    assert (len(part), statistics.read) == (40, 0)
    assert sum(image is not None for image in statistics.images) == 16


def test_a_sample_does_not_miss_what_the_counts_know(tmp_path):
    """A class in a single label map, which the sample leaves out, is no missing class."""
    for split in ("train", "val"):
        files = trees.folder(tmp_path, split, [trees.stripes([0, 1, 2])] * 40)
        for k in range(40):
            trees.write_image(tmp_path / "images" / split / f"{k}.jpg", seed=100 * len(split) + k)
        order = evenly_spaced(40)
        data = FolderDataset(tmp_path, split)
        rare = data.pairs[order[-1]].label
        assert rare in files
        trees.write_label(rare, trees.stripes([3]))
    result = checked(tmp_path, seconds=1e-9)
    assert (result.findings, result.looked_at, result.partial) == ((), 32, True)


@pytest.mark.parametrize("count", [1, 2, 7, 16, 33])
def test_every_beginning_is_evenly_spaced(count):
    order = evenly_spaced(count)
    assert sorted(order) == list(range(count))
    for length in (1, 2, 4, 8):
        if length <= count:
            halves = sum(place < count / 2 for place in order[:length])
            assert abs(halves - length / 2) <= 1


def test_progress_is_shown_after_a_second(root, monkeypatch):
    calls = []
    checked(root, progress=lambda *call: calls.append(call))
    assert calls == []
    now = iter(range(0, 1000, 2))
    monkeypatch.setattr(preflight_module.time, "monotonic", lambda: next(now))
    monkeypatch.setattr("cawa_fast.recipes.datasets.label_statistics._CHUNK", 1)
    checked(root, seconds=100, progress=lambda *call: calls.append(call))
    assert calls[-1] == (4, 4)
    assert len(calls) > 2


# -- the command ----------------------------------------------------------------------------------------------------


def train(root: Path, run: Path, **changes: object):
    config = replace(TINY, epochs=1, dataset="folder", root=str(root), train_images=None, val_images=None, resize=None)
    return invoke(*arguments(replace(config, **changes), run))


def test_train_warns_before_the_first_batch(root, tmp_path_factory):
    black_and_white(root)
    same_image(root)
    result = train(root, tmp_path_factory.mktemp("run") / "r")
    assert result.exit_code == 0, result.output
    before, after = result.output.split("epoch 1/1", 1)
    doctor = examine("folder", root)
    for finding in doctor.findings:
        assert finding.text in before
    assert "! warning black-and-white (train): the label maps have only 0 and 255" in before
    assert "✗ error same-image (train, val)" in before
    assert f"The full check: cawa-fast doctor data --dataset folder --root {root}" in before
    assert "warning" not in after


def test_train_says_nothing_of_clean_data_and_names_the_doctor_for_a_sample(root, tmp_path_factory, monkeypatch):
    result = train(root, tmp_path_factory.mktemp("run") / "r")
    assert result.exit_code == 0, result.output
    assert not re.search("warning|error|doctor", result.output)
    monkeypatch.setattr("cawa_fast.recipes.datasets.label_statistics._CHUNK", 1)
    monkeypatch.setattr("cawa_fast.cli.train.PREFLIGHT_SECONDS", 1e-9)
    result = train(root, tmp_path_factory.mktemp("run") / "r")
    assert "Looked at 2 of 8 pairs of files. The full check: cawa-fast doctor data --dataset folder" in result.output


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: trees.write_label(root / "masks" / "val" / "1.png", trees.stripes([0, 9])),
         r"1\.png: 192 pixels have labels \[9\], outside 0\.\.3"),
        (lambda root: Image.open(root / "images/train/0.jpg").convert("L").save(root / "masks/train/0.png", "JPEG"),
         r"0\.png is compressed as JPEG, which changes values"),
        (lambda root: (root / "images" / "val" / "1.jpg").write_bytes(b""), r"1\.jpg cannot be read as an image"),
        (lambda root: (root / "train.txt").write_text("images/train/0.jpg\n"), r"train\.txt, line 1: expected"),
    ],
)  # fmt: skip
def test_train_refuses_what_the_doctor_calls_an_error(root, tmp_path_factory, break_it, message):
    break_it(root)
    result = train(root, tmp_path_factory.mktemp("run") / "r")
    assert result.exit_code == 1
    assert re.search(message, result.output), result.output
    assert "Traceback" not in result.output


def test_drawn_images_need_no_check(tmp_path):
    result = invoke(*arguments(replace(TINY, epochs=1), tmp_path / "r"))
    assert result.exit_code == 0, result.output
    assert "doctor" not in result.output
