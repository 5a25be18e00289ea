"""`cawa-fast doctor data`: it finds, names and counts every planted fault, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cawa_fast.recipes.datasets.doctor.examine import examine
from cawa_fast.recipes.datasets.doctor.view import bar, by_share
from cawa_fast.recipes.runs.folder import RunFolder
from tests.support import trees
from tests.support.tiny_runs import TINY, arguments, invoke

FEW = (0, 1, 2, 3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def clean(root: Path, count: int = 4) -> dict[str, list[Path]]:
    """A folder dataset of four classes without faults."""
    files = {}
    for start, split in enumerate(("train", "val")):
        files[split] = trees.folder(root, split, [trees.stripes(FEW) for _ in range(count)])
        for k in range(count):
            trees.write_image(root / "images" / split / f"{k}.jpg", seed=50 * start + k)
    return files


def rules(examination, severity: str | None = None) -> list[tuple[str, str]]:
    return [(f.rule, f.split) for f in examination.findings if severity in (None, f.severity)]


def only(examination, rule: str):
    found = [f for f in examination.findings if f.rule == rule]
    assert len(found) == 1, rules(examination)
    return found[0]


@pytest.mark.parametrize("key", trees.LAYOUTS)
def test_clean_trees_of_every_layout(key, tmp_path):
    write, options, allowed, by_hand = trees.LAYOUTS[key]
    for split in ("train", "val"):
        width = max(24, len(allowed))
        write(tmp_path, split, [trees.stripes(allowed, (8 + len(split), width))], **options)
    examination = examine(key.split("-")[0], tmp_path, workers=1)
    assert rules(examination) == []
    facts = examination.splits[0]
    codes = trees.stripes(allowed, (13, max(24, len(allowed))))
    expected = np.bincount(np.vectorize(by_hand.__getitem__)(codes).reshape(-1), minlength=256)
    assert facts.pixels == tuple(expected[: len(examination.class_names)])
    assert facts.ignored == expected[255]
    assert facts.images_with == (1,) * len(examination.class_names)
    assert facts.sizes == ((codes.shape, 1),)
    assert sum(facts.shares) == pytest.approx(1)


def test_files_without_a_partner(tmp_path):
    files = clean(tmp_path)
    files["train"][1].unlink()
    (tmp_path / "images" / "train" / "3.jpg").unlink()
    (tmp_path / "images" / "val" / "0.jpg").unlink()
    examination = examine("folder", tmp_path)
    assert rules(examination) == [("missing-image", "train"), ("missing-label", "train"), ("missing-image", "val")]
    assert only(examine("folder", tmp_path, ["train"]), "missing-label").files == (
        str(tmp_path / "images" / "train" / "1.jpg"),
    )
    assert examination.splits[0].images == 2


def test_listed_files_that_are_not_there(tmp_path):
    trees.voc(tmp_path, "train", [trees.stripes(range(21))])
    trees.voc(tmp_path, "val", [trees.stripes(range(21))] * 2)
    lists = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("train_000000\ngone\n")
    finding = only(examine("voc", tmp_path, ["train"]), "missing-both")
    assert finding.files[0].endswith("gone.jpg")


def test_files_that_cannot_be_used(tmp_path):
    files = clean(tmp_path)
    files["train"][0].write_bytes(b"no image")
    Image.fromarray(np.zeros((*trees.SIZE, 3), np.uint8)).save(files["train"][1])
    (tmp_path / "images" / "train" / "2.jpg").write_bytes(b"")
    photo = tmp_path / "images" / "train" / "3.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*trees.SIZE, 3), dtype=np.uint8)).save(photo)
    photo.write_bytes(photo.read_bytes()[:-200])
    examination = examine("folder", tmp_path, ["train"])
    assert rules(examination) == [("unusable-label", "train"), ("unusable-image", "train")]
    assert only(examination, "unusable-label").files == tuple(map(str, files["train"][:2]))
    assert only(examination, "unusable-image").files == (str(tmp_path / "images" / "train" / "2.jpg"),)
    deep = examine("folder", tmp_path, ["train"], decode_images=True)
    assert only(deep, "unusable-image").files == tuple(str(photo.with_name(f"{k}.jpg")) for k in (2, 3))


def test_sizes_that_differ(tmp_path):
    files = clean(tmp_path)
    trees.write_label(files["val"][2], trees.stripes(FEW, (16, 25)))
    finding = only(examine("folder", tmp_path), "size-differs")
    assert finding.files == (str(files["val"][2]),)
    assert "25x16 for 24x16" in finding.text
    trees.cityscapes(tmp_path / "city", "train", [trees.stripes(range(19)), trees.stripes(range(19), (8, 24))])
    assert only(examine("cityscapes", tmp_path / "city", ["train"]), "several-sizes").severity == "error"
    trees.folder(tmp_path / "own", "train", [trees.stripes(FEW), trees.stripes(FEW, (8, 24))])
    assert only(examine("folder", tmp_path / "own", ["train"]), "several-sizes").severity == "note"


def test_values_outside_the_map_with_counts_and_files(tmp_path):
    files = clean(tmp_path)
    for k, (value, pixels) in enumerate([(9, 5), (9, 2), (200, 40)]):
        codes = trees.stripes(FEW)
        codes.reshape(-1)[:pixels] = value
        trees.write_label(files["train"][k], codes)
    examination = examine("folder", tmp_path)
    finding = only(examination, "label-value")
    assert rules(examination) == [("label-value", "train")]
    assert finding.files == tuple(map(str, files["train"][:3]))
    assert finding.details == ("200: 40 pixels in 1 files", "9: 7 pixels in 2 files")
    assert finding.text.startswith("47 pixels in 3 of 4 label maps have values outside 0..3 (255 is ignored)")
    assert sum(examination.splits[0].pixels) == 4 * 16 * 24 - 47


@pytest.mark.parametrize(
    ("key", "codes", "rule", "advice"),
    [
        ("ade20k", [255, 0, 7], "zero-reduced-twice", "reduced by one already"),
        ("coco_stuff10k", [255, 0, 7], "zero-reduced-twice", "reduced by one already"),
        ("cityscapes", [7, 33], "other-ids", "these look like labelIds"),
        ("coco_stuff164k", [0, 181], "other-ids", "these look like raw ids"),
        ("coco_stuff164k-raw", [0, 11], "other-ids", "these look like labelTrainIds"),
        ("folder", [1, 4], "counts-from-one", "add 'ignore' as the first line"),
    ],
)
def test_typical_mistakes_are_named(key, codes, rule, advice, tmp_path):
    write, options, *_ = trees.LAYOUTS[key]
    write(tmp_path, "val", [trees.stripes(codes)] * 3, **options)
    finding = only(examine(key.split("-")[0], tmp_path, ["val"]), rule)
    assert finding.severity == "error"
    assert advice in finding.text
    assert len(finding.files) == 3


def test_zero_that_never_occurs_is_suspicious_in_many_maps(tmp_path):
    trees.ade20k(tmp_path, "val", [trees.stripes(range(1, 151), (4, 150))] * 19)
    assert rules(examine("ade20k", tmp_path, ["val"])) == []
    trees.ade20k(tmp_path, "val", [trees.stripes(range(1, 151), (4, 150))] * 20)
    assert only(examine("ade20k", tmp_path, ["val"]), "zero-reduced-twice").severity == "warning"
    trees.ade20k(tmp_path, "val", [trees.stripes(range(151), (4, 151))])
    assert rules(examine("ade20k", tmp_path, ["val"])) == []


def test_black_and_white_masks(tmp_path):
    trees.folder(tmp_path, "train", [trees.stripes([0, 0, 0, 255])], classes="background\nobject\n")
    finding = only(examine("folder", tmp_path, ["train"]), "black-and-white")
    assert "'object 255 255 255'" in finding.text
    (tmp_path / "classes.txt").write_text("background 0 0 0\nobject 255 255 255\n")
    assert rules(examine("folder", tmp_path, ["train"])) == []


def test_classes_that_do_not_occur(tmp_path):
    files = clean(tmp_path)
    for file in files["train"]:
        trees.write_label(file, trees.stripes([0, 1, 2]))
    examination = examine("folder", tmp_path)
    assert rules(examination) == [("class-never-seen", "train"), ("class-only-in-val", "train, val")]
    assert only(examination, "class-never-seen").text == "1 of 4 classes have no pixel: d"
    assert {f.severity for f in examination.findings} == {"warning"}


def test_images_without_labels(tmp_path):
    files = clean(tmp_path)
    for file in files["val"][:3]:
        trees.write_label(file, trees.stripes([255]))
    examination = examine("folder", tmp_path)
    assert rules(examination) == [("nothing-labelled", "val"), ("mostly-ignored", "val")]
    assert only(examination, "nothing-labelled").files == tuple(map(str, files["val"][:3]))
    assert "75.0 %" in only(examination, "mostly-ignored").text


def test_images_that_training_sees_otherwise(tmp_path):
    clean(tmp_path)
    folder = tmp_path / "images" / "train"
    with Image.open(folder / "0.jpg") as image:
        turned = image.getexif()
        turned[0x0112] = 6
        image.save(folder / "turned.jpg", exif=turned)
    (folder / "turned.jpg").replace(folder / "0.jpg")
    (folder / "1.jpg").unlink()
    Image.fromarray(np.full(trees.SIZE, 4000, np.uint16)).save(folder / "1.png")
    Image.fromarray(np.full(trees.SIZE, 40, np.uint8)).save(folder / "2.jpg")
    examination = examine("folder", tmp_path)
    assert rules(examination, "warning") == [("turned-image", "train"), ("deep-image", "train")]
    assert only(examination, "turned-image").files == (str(folder / "0.jpg"),)
    assert only(examination, "deep-image").files == (str(folder / "1.png"),)
    assert only(examination, "image-mode").text == "1 images are not RGB and are converted (1 L)"


def test_the_same_image_in_two_splits(tmp_path):
    clean(tmp_path)
    shutil.copy(tmp_path / "images" / "train" / "2.jpg", tmp_path / "images" / "val" / "1.jpg")
    examination = examine("folder", tmp_path)
    assert rules(examination) == [("same-image", "train, val")]
    assert only(examination, "same-image").files == (str(tmp_path / "images" / "val" / "1.jpg"),)
    assert rules(examine("folder", tmp_path, ["val"])) == []


def test_a_split_that_cannot_be_opened_does_not_hide_the_other(tmp_path):
    clean(tmp_path)
    shutil.rmtree(tmp_path / "masks" / "val")
    examination = examine("folder", tmp_path)
    assert rules(examination) == [("layout", "val")]
    assert [split.name for split in examination.splits] == ["train"]


def test_processes_and_what_is_known_make_no_difference(tmp_path):
    trees.ade20k(tmp_path, "val", [trees.blobs([0, 5, 9, 170], seed) for seed in range(80)])

    def facts(**options):
        examination = examine("ade20k", tmp_path, ["val"], **options)
        return examination.findings, [replace(split, seconds=0, read=0) for split in examination.splits]

    calls = []
    alone = facts(workers=1, cache=False, progress=lambda split: lambda done, total: calls.append((split, done, total)))
    assert calls[-1] == ("val", 80, 80)
    assert facts(workers=2, cache=False) == alone
    assert facts() == facts() == alone
    assert examine("ade20k", tmp_path, ["val"]).splits[0].read == 0


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="dataset 'street' reads no files; choose one of ade20k"):
        examine("street", tmp_path)
    for splits in ([], ["val", "val"]):
        with pytest.raises(ValueError, match="must name at least one split, each once"):
            examine("folder", tmp_path, splits)


# -- the command line -----------------------------------------------------------------------------------------------


def doctor(root: Path, *more: str, dataset: str = "folder"):
    return invoke("doctor", "data", "--dataset", dataset, "--root", str(root), *more)


def test_command_writes_a_table_a_picture_and_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clean(tmp_path / "data")
    result = doctor(tmp_path / "data", "--json", "facts.json")
    assert result.exit_code == 0, result.output
    assert "No findings." in result.output
    assert re.search(r"│ 0 │ a\s+│\s+25.000 │\s+4 │\s+25.000 │\s+4 │ █+", result.output)
    assert "train: 4 images (4 of 24x16)" in result.output
    with Image.open("class-shares.png") as picture:
        assert picture.size[0] == 1080
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {(0x25, 0x63, 0xAE), (0xE0, 0x7B, 0x39)} <= colours
    facts = json.loads(Path("facts.json").read_text())
    assert (facts["errors"], facts["warnings"], facts["class_names"]) == (0, 0, ["a", "b", "c", "d"])
    assert facts["splits"][1]["pixels"] == [4 * 16 * 24 // 4] * 4


@pytest.mark.parametrize(
    ("fault", "strict", "status"),
    [(None, True, 0), ("warning", False, 0), ("warning", True, 1), ("error", False, 1)],
)
def test_exit_status(tmp_path, fault, strict, status):
    files = clean(tmp_path)
    if fault == "warning":
        trees.write_label(files["train"][0], trees.stripes([255]))
    elif fault == "error":
        trees.write_label(files["train"][0], trees.stripes([77]))
    result = doctor(tmp_path, "--no-picture", *(["--strict"] if strict else []))
    assert result.exit_code == status, result.output
    assert (f"{fault} " in result.output) == (fault is not None)


def test_long_lists_are_cut_in_the_terminal_and_whole_in_json(tmp_path):
    files = clean(tmp_path, count=6)
    for file in files["train"]:
        trees.write_label(file, trees.stripes([77]))
    result = doctor(tmp_path, "--no-picture", "--json", str(tmp_path / "facts.json"))
    assert "and 3 more (--json has all)" in result.output
    assert len(json.loads((tmp_path / "facts.json").read_text())["findings"][0]["files"]) == 6


def test_command_line_mistakes(tmp_path):
    assert doctor(tmp_path, dataset="street").exit_code == 2
    result = doctor(tmp_path / "none", "--no-picture")
    assert result.exit_code == 1
    assert "is not a folder" in result.output
    result = doctor(tmp_path, "--split", "val", "--split", "val")
    assert result.exit_code == 1
    assert "each once" in result.output
    assert not (tmp_path / "class-shares.png").exists()


def test_help_shows_every_tree_and_plain_doctor_still_works():
    text = invoke("doctor", "data", "--help").output
    for line in (
        "gtFine/{train,val}/CITY/*_gtFine_labelTrainIds.png",
        "ADEChallengeData2016/annotations",
        "classes.txt",
    ):
        assert line in text
    plain = invoke("doctor")
    assert plain.exit_code == 0
    assert "Versions" in plain.output


def test_bars():
    assert [len(bar(share)) for share in (1.0, 0.1, 1e-5, 0.0)] == [24, 20, 1, 0]


def test_classes_are_sorted_by_share(tmp_path):
    trees.folder(tmp_path, "train", [trees.stripes([3, 3, 3, 1, 1, 0])])
    assert by_share(examine("folder", tmp_path, ["train"]).splits) == [3, 1, 0, 2]


# -- training -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("fits", [True, False])
def test_images_of_many_sizes_train_and_are_reported(tmp_path, fits, monkeypatch):
    """A tree like ADE20K's passes the doctor, a run and a report, with the images in memory and without."""
    if not fits:
        monkeypatch.setattr("cawa_fast.recipes.datasets.files.FileDataset.fits_cache", False)
    root = tmp_path / "data"
    for split, count in (("train", 8), ("val", 3)):
        trees.ade20k(root, split, [trees.blobs(range(12), k, size=(40 + 5 * k, 70 - 3 * k)) for k in range(count)])
    assert doctor(root, "--no-picture", dataset="ade20k").exit_code == 0
    config = replace(TINY, dataset="ade20k", root=str(root), resize=None, train_images=None, val_images=None)
    result = invoke(*arguments(config, tmp_path / "r"))
    assert result.exit_code == 1
    assert "crop is needed, since the images of ade20k differ in size" in result.output
    shutil.rmtree(tmp_path / "r", ignore_errors=True)
    result = invoke(*arguments(replace(config, crop=(32, 32)), tmp_path / "r"))
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in RunFolder(tmp_path / "r").metrics_file.read_text().splitlines()]
    assert len(records) == 2
    assert sum(value is not None for value in records[-1]["csps"]) == 11
    page = tmp_path / "report.html"
    result = invoke("report", str(tmp_path / "r"), "--out", str(page), "--images", "1")
    assert result.exit_code == 0, result.output
    assert "plant" in page.read_text()
    assert (root / ".cawa_fast").is_dir()  # the doctor's cache, which training reads if images do not fit into memory
