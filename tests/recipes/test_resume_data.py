"""A run continues only with the data and settings that it was begun with; what differs is named."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cawa_fast.recipes.ablation.ablation import Ablation
from cawa_fast.recipes.ablation.progress import plan_text
from cawa_fast.recipes.ablation.rows import choose_rows
from cawa_fast.recipes.config import TrainConfig
from cawa_fast.recipes.datasets import build_dataset
from cawa_fast.recipes.report.report import write_report
from cawa_fast.recipes.runs.data import data_differences, describe_data
from cawa_fast.recipes.runs.folder import RunFolder
from cawa_fast.recipes.training.trainer import Trainer
from tests.support import trees
from tests.support.tiny_runs import TINY, Silent, assert_same_run, invoke, run

CLASSES = "road\ncar\npole\nsky\n"
SIZE = (32, 48)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A tree with 6 training and 3 validation images of four classes."""
    root = tmp_path / "data"
    for split, count in (("train", 6), ("val", 3)):
        maps = [trees.blobs(range(4), seed=10 * len(split) + k, size=SIZE) for k in range(count)]
        trees.folder(root, split, maps, classes=CLASSES)
    return root


def settings(root: Path, **changes: Any) -> TrainConfig:
    of_files = replace(TINY, dataset="folder", root=str(root), resize=None, train_images=None, val_images=None)
    return replace(of_files, batch_size=2, epochs=1, **changes)


def resume(folder: Path, *options: str) -> tuple[int, str]:
    """Exit status and output on one line; anything but a message is an error of the test."""
    result = invoke("train", "--resume", "--run-dir", str(folder), *options)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, re.sub(r"\s+", " ", result.output)


def swap(a: Path, b: Path) -> None:
    between = a.with_name("between")
    a.rename(between)
    b.rename(a)
    between.rename(b)


def drop(root: Path) -> None:
    for file in ("images/train/3.jpg", "masks/train/3.png"):
        (root / file).unlink()


def add(root: Path) -> None:
    trees.write_image(root / "images/val/7.jpg", SIZE)
    trees.write_label(root / "masks/val/7.png", trees.stripes(range(4), SIZE))


def move_to_val(root: Path) -> None:
    for kind, end in (("images", "jpg"), ("masks", "png")):
        (root / kind / "train" / f"5.{end}").rename(root / kind / "val" / f"5.{end}")


def grow(root: Path) -> None:
    with (root / "images/train/2.jpg").open("ab") as file:
        file.write(b"\0" * 7)


def relabel(root: Path) -> None:
    """Another class in as many bytes: the file sizes stay."""
    for index in range(3):
        file = root / "masks" / "val" / f"{index}.png"
        before = file.stat().st_size
        trees.write_label(file, trees.stripes(range(4), SIZE))
        os.truncate(file, before)  # longer, with zeros at the end


def classes(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "classes.txt").write_text(text)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "added at the end": (classes(CLASSES + "bus\n"), "the class list has gained 'bus' as class 4"),
    "added in front": (classes("bus\n" + CLASSES), "the class list has gained 'bus' as class 0"),
    "removed": (classes("road\ncar\nsky\n"), "the class list has lost 'pole', class 2"),
    "renamed": (classes("road\nvan\npole\nsky\n"), "class 1 was 'car' and is now 'van'"),
    "reordered": (
        classes("sky\ncar\npole\nroad\n"),
        "the classes have another order: 'sky' was class 3 and is now class 0, 'road' was class 0 and is now class 3",
    ),
    "ignored line": (
        classes("ignore\n" + CLASSES),
        "values in the label files have another meaning: 0 was 'road' and is now ignored, 1 was 'car' and is now",
    ),
    "a last class ignored": (classes("road\ncar\npole\nvoid\n"), "the class list has lost 'sky', class 3"),
    "colours": (
        classes("road #010203\ncar #000001\npole #000002\nsky #000003\n"),
        "values in the label files have another meaning: #000001 was not allowed and is now 'car'",
    ),
    "files added": (add, "val has gained 2 files: 'images/val/7.jpg', 'masks/val/7.png'"),
    "files removed": (drop, "train has lost 2 files: 'images/train/3.jpg', 'masks/train/3.png'"),
    "moved to val": (move_to_val, "train has lost 2 files: 'images/train/5.jpg', 'masks/train/5.png'; val has gained"),
    "size": (grow, r"files of train have changed: 'images/train/2.jpg' had \d+ bytes and has \d+"),
    "mask removed": (
        lambda root: (root / "masks/val/1.png").unlink(),
        "that are gone: the file 'masks/val/1.png' of val",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_data_that_changed_are_refused_by_name(tmp_path: Path, data: Path, kind: str) -> None:
    change, message = CHANGES[kind]
    run(tmp_path / "run", settings(data))
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if "tfevents" not in file.name}
    change(data)
    status, output = resume(tmp_path / "run")
    assert status == 1
    assert re.search(message, output), output
    assert str(tmp_path / "run") in output
    assert "another --run-dir" in output
    after = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if "tfevents" not in file.name}
    assert after == before


def test_labels_that_changed_within_their_size_are_refused(tmp_path: Path, data: Path) -> None:
    for index in range(3):  # room for other content of the same size
        with (data / "masks" / "val" / f"{index}.png").open("ab") as file:
            file.write(b"\0" * 500)
    run(tmp_path / "run", settings(data))
    relabel(data)
    status, output = resume(tmp_path / "run")
    assert status == 1
    assert re.search(r"the labels of val have other pixels: '\w+' had \d+ and has \d+", output), output


def test_fewer_files_than_were_asked_for_are_named(tmp_path: Path, data: Path) -> None:
    run(tmp_path / "run", settings(data, train_images=6))
    drop(data)
    status, output = resume(tmp_path / "run")
    assert status == 1
    assert "begun with files that are gone: 2 files: 'images/train/3.jpg', 'masks/train/3.png' of train" in output


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([(1, 1), (0, 0), (2, 2)], "train has another order: image 0 was 'images/train/0.jpg' and is now"),
        ([(0, 1), (1, 0), (2, 2)], "train has other pairs: the label of 'images/train/0.jpg' was 'masks/train/0.png'"),
    ],
)
def test_lists_of_pairs_in_another_order_are_refused(
    tmp_path: Path, data: Path, order: list[tuple[int, int]], message: str
) -> None:
    def write(pairs: list[tuple[int, int]]) -> None:
        lines = [f"images/train/{image}.jpg masks/train/{label}.png" for image, label in pairs]
        (data / "train.txt").write_text("\n".join(lines))

    write([(0, 0), (1, 1), (2, 2)])
    run(tmp_path / "run", settings(data))
    write(order)
    status, output = resume(tmp_path / "run")
    assert status == 1
    assert message in output


def test_images_that_changed_places_are_noticed_by_their_sizes(tmp_path: Path, data: Path) -> None:
    grow(data)
    run(tmp_path / "run", settings(data))
    swap(data / "images/train/2.jpg", data / "images/train/4.jpg")
    status, output = resume(tmp_path / "run")
    assert status == 1
    assert "'images/train/2.jpg' had" in output
    assert "'images/train/4.jpg' had" in output


def test_a_moved_folder_with_the_same_files_resumes_to_the_same_bits(tmp_path: Path, data: Path) -> None:
    run(tmp_path / "whole", settings(data, seed=3))
    whole = replace(settings(data, seed=3), epochs=3)
    run(tmp_path / "reference", whole)

    class Stop(Silent):
        def epoch_done(self, record: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(whole, RunFolder(tmp_path / "moved"), Stop()).fit()
    elsewhere = tmp_path / "elsewhere" / "copy"
    shutil.copytree(data, elsewhere)  # with other times of change, and without the cache of the statistics
    shutil.rmtree(elsewhere / ".cawa_fast", ignore_errors=True)
    shutil.rmtree(data)
    (elsewhere / "notes.txt").write_text("no part of the dataset")
    status, output = resume(tmp_path / "moved", "--root", str(elsewhere), "--workers", "0", "--device", "cpu")
    assert status == 0, output
    assert "Continuing after epoch 1 of 3" in output
    assert_same_run(tmp_path / "reference", tmp_path / "moved")


@pytest.mark.parametrize("layout", ["voc", "cityscapes-labelIds", "coco_stuff10k", "ade20k", "camvid"])
def test_the_record_does_not_depend_on_where_the_files_are(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, options, codes, _ = trees.LAYOUTS[layout]
    for split in ("train", "val"):
        write(tmp_path / "a", split, [trees.stripes(codes)] * 2, **options)
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "c")
    monkeypatch.chdir(tmp_path / "b")

    def record(root: str | Path) -> dict[str, Any]:
        train, val = (
            build_dataset(layout.partition("-")[0], root=str(root), split=split) for split in ("train", "val")
        )
        return describe_data(train, val)

    first = record(tmp_path / "a")
    assert data_differences(first, record(tmp_path / "b" / "c")) == []
    assert data_differences(first, record("c")) == []
    if layout == "voc":
        assert data_differences(first, record(Path("c", "VOCdevkit", "VOC2012"))) == []
    image = next(file for file in sorted((tmp_path / "b" / "c").rglob("*")) if file.suffix in (".jpg", ".png"))
    image.write_bytes(image.read_bytes() + b"\0")
    (difference,) = data_differences(first, record("c"))
    assert re.fullmatch(rf"files of (train|val) have changed: '.*{image.name}' had \d+ bytes and has \d+", difference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.1}, "lr was 0.05 and is now 0.1"),
        ({"crop": [32, 32]}, "crop was None and is now [32, 32]"),
        ({"weighting": "enet", "seed": 4}, "weighting was 'cawa' and is now 'enet'; seed was 0 and is now 4"),
        ({"resize": [48, 64]}, "resize was [48, 96] and is now [48, 64]"),
        ({"val_images": 3}, "val_images was 4 and is now 3"),
    ],
)
def test_settings_that_do_not_belong_to_the_checkpoint_are_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """As where latest.pt or config.json is a copy from another run."""
    run(tmp_path, replace(TINY, epochs=1))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    status, output = resume(tmp_path)
    assert status == 1
    assert f"latest.pt was written with other settings: {message}. Set them back (they are in config.json)" in output


def test_epochs_threads_and_device_may_change(tmp_path: Path) -> None:
    run(tmp_path, replace(TINY, epochs=1))
    assert len(run(tmp_path, replace(TINY, epochs=2, threads=2, device="auto"))) == 2


def without_record(folder: Path, *, dataset: bool) -> None:
    """Make the folder one of a version that kept no record of the data."""
    checkpoint = torch.load(folder / "latest.pt", weights_only=True)
    torch.save({k: v for k, v in checkpoint.items() if k not in ("settings", "data", "versions")}, folder / "latest.pt")
    kept = {"class_names", "palette", "ignore_index", "train_pixels", "train_images", "val_images"}
    described = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in described.items() if k in kept}))
    if not dataset:
        (folder / "dataset.json").unlink()


@pytest.mark.parametrize(
    ("dataset", "word"), [(True, "only the classes and the numbers"), (False, "nothing was compared")]
)
def test_a_run_of_an_older_version_resumes_and_says_what_was_not_compared(
    tmp_path: Path, data: Path, dataset: bool, word: str
) -> None:
    run(tmp_path / "run", settings(data))
    without_record(tmp_path / "run", dataset=dataset)
    grow(data)
    status, output = resume(tmp_path / "run")
    assert status == 0, output
    assert word in output


@pytest.mark.parametrize("kind", ["reordered", "added at the end", "files added"])
def test_what_an_older_version_kept_is_compared(tmp_path: Path, data: Path, kind: str) -> None:
    run(tmp_path / "run", settings(data))
    without_record(tmp_path / "run", dataset=True)
    CHANGES[kind][0](data)
    status, output = resume(tmp_path / "run")
    assert status == 1
    assert ("val had 3 images and has 4" if kind == "files added" else CHANGES[kind][1]) in output


def foreign(folder: Path, **changes: Any) -> None:
    """A checkpoint of an older version, of a run with other settings."""
    run(folder / "other", replace(TINY, epochs=1, **changes))
    without_record(folder / "other", dataset=True)
    shutil.copy(folder / "other" / "latest.pt", folder / "latest.pt")


def pickled(file: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), file)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda folder: (folder / "latest.pt").write_bytes(b""), r"latest.pt is damaged \(it is empty\)"),
    "text": (lambda folder: (folder / "latest.pt").write_text("<html>404</html>"), "latest.pt is damaged"),
    "cut short": (lambda folder: os.truncate(folder / "latest.pt", 5000), "latest.pt is damaged"),
    "a module": (lambda folder: pickled(folder / "latest.pt"), "holds other objects than tensors and plain values"),
    "a tensor": (lambda folder: torch.save(torch.ones(2), folder / "latest.pt"), "holds no checkpoint of `cawa-fast"),
    "best.pt": (
        lambda folder: shutil.copy(folder / "best.pt", folder / "latest.pt"),
        "it lacks loop, metrics, optimizer, scheduler, as best.pt does; restore it, or delete it",
    ),
    "metrics": (
        lambda folder: torch.save(
            torch.load(folder / "latest.pt", weights_only=True) | {"metrics": []}, folder / "latest.pt"
        ),
        "it is of epoch 1 and holds the metrics of 0 epochs",
    ),
    "another network": (
        lambda folder: torch.save(
            {k: {"x": torch.ones(1)} if k == "model" else v for k, v in _older(folder).items()}, folder / "latest.pt"
        ),
        r"is of another run than config.json beside it, which has model='compact' and 10 classes: .*Missing key",
    ),
}


def _older(folder: Path) -> dict[str, Any]:
    without_record(folder, dataset=True)
    return torch.load(folder / "latest.pt", weights_only=True)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_checkpoint_that_cannot_be_used_is_named(tmp_path: Path, kind: str) -> None:
    breaking, message = BROKEN[kind]
    run(tmp_path, replace(TINY, epochs=1))
    breaking(tmp_path)
    status, output = resume(tmp_path)
    assert status == 1
    assert re.search(message, output), output


def test_the_checkpoint_of_a_run_with_other_classes_is_named(tmp_path: Path, data: Path) -> None:
    run(tmp_path / "ten", replace(TINY, epochs=1))
    run(tmp_path / "four", settings(data))
    shutil.copy(tmp_path / "four" / "latest.pt", tmp_path / "ten" / "latest.pt")
    status, output = resume(tmp_path / "ten")
    assert status == 1
    assert "dataset was 'folder' and is now 'street'" in output
    without_record(tmp_path / "ten", dataset=False)
    status, output = resume(tmp_path / "ten")
    assert status == 1
    assert "which has model='compact' and 10 classes" in output
    assert "size mismatch" in output


def test_metrics_are_written_again_from_the_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, replace(TINY, epochs=1))
    file = tmp_path / "metrics.jsonl"
    truth = file.read_text()
    file.unlink()
    assert resume(tmp_path)[0] == 0
    assert file.read_text() == truth
    file.write_text(3 * truth)
    status, output = resume(tmp_path)
    assert status == 0
    assert "metrics.jsonl had 3 epochs. The checkpoint is of epoch 1, so the later ones are trained again." in output
    assert file.read_text() == truth


def test_another_version_of_torch_is_said(tmp_path: Path) -> None:
    run(tmp_path, replace(TINY, epochs=1))
    checkpoint = torch.load(tmp_path / "latest.pt", weights_only=True)
    checkpoint["versions"]["torch"] = "2.10.0"
    torch.save(checkpoint, tmp_path / "latest.pt")
    status, output = resume(tmp_path)
    assert status == 0
    assert f"The checkpoint was written with torch 2.10.0, this is {torch.__version__}" in output


def ablation(out: Path, root: Path, *rows: str) -> Ablation:
    return Ablation(out, settings(root), choose_rows(rows), [0], jobs=1)


def finished(out: Path, root: Path, *rows: str) -> None:
    """The runs of these rows, trained in this process, and their results."""
    begun = ablation(out, root, *rows)
    for name, state in begun.states.items():
        run(out / name, state.config)
    ablation(out, root, *rows).write()


@pytest.mark.parametrize("kind", ["reordered", "renamed", "files added", "size"])
def test_an_ablation_is_not_continued_on_other_data(tmp_path: Path, data: Path, kind: str) -> None:
    out = tmp_path / "out"
    finished(out, data, "cawa")
    CHANGES[kind][0](data)
    with pytest.raises(ValueError, match=CHANGES[kind][1]) as caught:
        ablation(out, data, "cawa", "enet")
    assert "the run in" in str(caught.value)
    assert "another --out, or delete the folders" in str(caught.value)
    ablation(out, data, "cawa")  # all is finished: the results can still be seen


def test_an_ablation_of_an_older_version_goes_on_and_says_so(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    finished(out, data, "cawa")
    without_record(out / "cawa-s0", dataset=True)
    assert "Older versions began 1 runs without a record of their files" in plan_text(ablation(out, data, "enet"))
    (data / "classes.txt").write_text(CLASSES + "bus\n")
    with pytest.raises(ValueError, match="gained 'bus' as class 4"):
        ablation(out, data, "enet")


def test_results_of_runs_on_other_data_are_not_mixed(tmp_path: Path, data: Path) -> None:
    """As where the data change while the ablation runs."""
    out = tmp_path / "out"
    begun = ablation(out, data, "cawa")
    run(out / "uniform-s0", begun.states["uniform-s0"].config)
    (data / "classes.txt").write_text("sky\ncar\npole\nroad\n")
    run(out / "cawa-s0", begun.states["cawa-s0"].config)
    with pytest.raises(ValueError, match="not trained on the same data: the classes have another order: 'road' was"):
        begun.write()


@pytest.mark.parametrize("kind", ["reordered", "added in front", "renamed"])
def test_a_report_names_the_classes_in_which_runs_differ(tmp_path: Path, data: Path, kind: str) -> None:
    run(tmp_path / "a", settings(data))
    CHANGES[kind][0](data)
    run(tmp_path / "b", settings(data))
    result = invoke("report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "page.html"))
    assert result.exit_code == 1
    assert CHANGES[kind][1] in re.sub(r"\s+", " ", result.output)
    assert "Report them one by one" in result.output
    assert not (tmp_path / "page.html").exists()


def test_a_report_says_that_runs_were_validated_on_different_files(tmp_path: Path, data: Path) -> None:
    run(tmp_path / "a", settings(data))
    run(tmp_path / "b", settings(data, seed=1))
    word = "validated on different files"
    page = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "page.html", images=0)
    assert word not in page.read_text()
    add(data)
    run(tmp_path / "c", settings(data, seed=2))
    assert word in write_report([tmp_path / "a", tmp_path / "c"], page, images=0).read_text()


def test_a_report_names_a_damaged_checkpoint(tmp_path: Path) -> None:
    run(tmp_path / "run", replace(TINY, epochs=1))
    os.truncate(tmp_path / "run" / "latest.pt", 3000)
    result = invoke("report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html"))
    assert result.exit_code == 1
    assert "latest.pt is damaged" in result.output
    assert "--images 0" in result.output
