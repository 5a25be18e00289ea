"""The index of classes per image: its counts, when it reads files, and its cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cawa_fast.recipes.datasets import (
    ADE20KDataset,
    ClassIndex,
    FolderDataset,
    build_dataset,
    class_index,
    count_class_pixels,
    label_statistics,
)
from cawa_fast.recipes.datasets import labels as label_files
from cawa_fast.recipes.datasets.label_statistics import collect_label_statistics
from cawa_fast.recipes.parallel import map_chunks
from cawa_fast.recipes.training import trainer
from tests.support import trees
from tests.support.arrays import Arrays, coded
from tests.support.tiny_runs import TINY, Silent


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def expected_pixels(data) -> np.ndarray:
    labels = [data.read(index)[1] for index in range(len(data))]
    return np.stack([np.bincount(label.reshape(-1), minlength=256)[: data.num_classes] for label in labels])


def check(data, index) -> None:
    pixels = expected_pixels(data)
    assert index.pixels.dtype == np.int64
    assert index.presence.dtype == bool
    np.testing.assert_array_equal(index.pixels, pixels)
    np.testing.assert_array_equal(index.presence, pixels > 0)
    assert index.class_pixels().dtype == torch.int64
    assert index.class_pixels().tolist() == pixels.sum(0).tolist() == count_class_pixels(data).tolist()
    assert len(index) == len(data)


def ade(root: Path, count: int = 5, **options) -> ADE20KDataset:
    if not (root / "images").exists():
        sizes = [(12 + k % 3, 20) for k in range(count)]
        trees.ade20k(root, "val", [trees.blobs(range(151), k, size=size) for k, size in enumerate(sizes)])
    return ADE20KDataset(root, "val", **options)


@pytest.mark.parametrize("key", trees.LAYOUTS)
@pytest.mark.parametrize("resize", [None, (7, 11)])
def test_index_counts_what_is_read(key, resize, tmp_path):
    write, options, allowed, _ = trees.LAYOUTS[key]
    write(tmp_path, "val", [trees.blobs(allowed, seed) for seed in range(4)], **options)
    data = build_dataset(key.split("-")[0], root=str(tmp_path), split="val", resize=resize)
    for cache in (False, True, True):
        check(
            data,
            ClassIndex.build(build_dataset(data.name, root=str(tmp_path), split="val", resize=resize), cache=cache),
        )


def test_drawn_and_decoded_images_write_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(class_index, "collect_label_statistics", lambda *a, **k: pytest.fail("files were read"))
    street = build_dataset("street", length=3, resize=(48, 96))
    check(street, ClassIndex.build(street))
    arrays = coded(6, 7, length=2)
    calls = []
    check(arrays, ClassIndex.build(arrays, lambda done, total: calls.append((done, total))))
    assert calls == [(1, 2), (2, 2)]
    assert ClassIndex.build(Arrays([])).pixels.shape == (0, 200)
    data = ade(tmp_path)
    data.preload()
    check(data, ClassIndex.build(data))
    assert not (tmp_path / ".cawa_fast").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_make_no_difference(tmp_path, workers):
    data = ade(tmp_path, count=70)
    calls = []
    index = ClassIndex.build(data, lambda done, total: calls.append((done, total)), workers=workers, cache=False)
    check(data, index)
    assert calls[-1] == (70, 70)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    with pytest.raises(ValueError, match="workers=0 must be at least 1"):
        ClassIndex.build(ade(tmp_path), workers=0, cache=False)


def test_what_is_known_is_not_read_again(tmp_path, monkeypatch):
    data = ade(tmp_path)
    first = collect_label_statistics(data)
    assert first.read == 5
    assert first.cache_file is not None
    assert first.cache_file.parent == tmp_path / ".cawa_fast"
    monkeypatch.setattr(label_statistics, "read_codes", lambda *a: pytest.fail("a label file was read"))
    again = collect_label_statistics(ade(tmp_path))
    assert (again.read, again.labels) == (0, first.labels)
    calls = []
    check_index = ClassIndex.build(ade(tmp_path), lambda done, total: calls.append((done, total)))
    assert check_index.class_pixels().sum() > 0
    assert calls == [(5, 5)]
    # neither another selection of the files nor the headers of the images need label files
    assert collect_label_statistics(ade(tmp_path, length=2)).read == 0
    assert collect_label_statistics(ade(tmp_path), images=True).images[0].size == data.read_label(0).shape


def test_only_files_that_changed_are_read(tmp_path, monkeypatch):
    data = ade(tmp_path)
    collect_label_statistics(data)
    trees.write_label(data.pairs[2].label, trees.stripes([3, 4], (14, 20)))
    os.utime(data.pairs[4].label, ns=(1, 1))
    read = []
    real = label_statistics.read_codes
    monkeypatch.setattr(label_statistics, "read_codes", lambda file, rule: read.append(file) or real(file, rule))
    check(ade(tmp_path), ClassIndex.build(ade(tmp_path)))
    assert read == [str(data.pairs[k].label) for k in (2, 4)]
    assert collect_label_statistics(ade(tmp_path)).read == 0


def test_a_selection_adds_to_what_is_known(tmp_path):
    ade(tmp_path)
    assert collect_label_statistics(ade(tmp_path, length=2)).read == 2
    assert collect_label_statistics(ade(tmp_path)).read == 3
    assert collect_label_statistics(ade(tmp_path, length=2)).read == 0


def test_another_size_or_rule_is_counted_again(tmp_path):
    collect_label_statistics(ade(tmp_path))
    assert collect_label_statistics(ade(tmp_path, resize=(3, 3))).read == 5
    root = tmp_path / "own"
    trees.folder(root, "val", [trees.stripes([0, 1])])
    assert collect_label_statistics(FolderDataset(root, "val")).read == 1
    (root / "classes.txt").write_text("a\nb\nc\n")  # with index masks the statistics hold for any list
    assert collect_label_statistics(FolderDataset(root, "val")).read == 0
    (root / "classes.txt").write_text(
        "a 1 2 3\nb 4 5 6\n"
    )  # with colours in the list, a palette may have another meaning
    assert collect_label_statistics(FolderDataset(root, "val")).read == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    data = ade(tmp_path)
    file = collect_label_statistics(data).cache_file
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "other": b"PK\x03\x04 nothing"}[damage])
    check(data, ClassIndex.build(ade(tmp_path)))
    assert collect_label_statistics(ade(tmp_path)).read == 0


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    root, home = tmp_path / "data", tmp_path / "home"
    data = ade(root)
    (root / ".cawa_fast").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    assert collect_label_statistics(data).cache_file.parent == home / "cawa_fast"
    assert collect_label_statistics(data).read == 0
    shutil.rmtree(home)
    home.write_text("in the way, too")
    assert (collect_label_statistics(data).read, collect_label_statistics(data).cache_file) == (5, None)
    check(data, ClassIndex.build(ade(root)))


def test_without_a_cache_nothing_is_written_or_used(tmp_path):
    for _ in range(2):
        assert collect_label_statistics(ade(tmp_path), cache=False).read == 5
    assert not (tmp_path / ".cawa_fast").exists()


def test_broken_labels_are_named_with_their_number(tmp_path):
    data = ade(tmp_path)
    trees.write_label(data.pairs[1].label, trees.stripes([1, 151], (13, 20)))
    with pytest.raises(
        ValueError, match=r"00000001\.png: 130 pixels have labels \[151\], outside 0\.\.150.*original maps$"
    ):
        ClassIndex.build(data)
    data.pairs[3].label.write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"00000001\.png: .*2 label files have such errors; to see all: cawa-fast doctor"
    ):
        ClassIndex.build(data)
    trees.write_label(data.pairs[1].label, trees.stripes([1], (13, 20)))
    with pytest.raises(ValueError, match=r"00000003\.png cannot be read as an image"):
        ClassIndex.build(data)


def test_counting_pixels_reads_images_only_where_they_fit(tmp_path, monkeypatch):
    """Pairs that all fit are decoded once and kept. Otherwise only labels are read, and nothing is kept."""
    data = ade(tmp_path)
    bytes_needed = sum(4 * data.read_label(k).size for k in range(5))
    small = ade(tmp_path, cache_limit=bytes_needed // 2)
    monkeypatch.setattr(small, "_load", lambda index: pytest.fail("an image was decoded"))
    assert count_class_pixels(small).tolist() == count_class_pixels(data).tolist()
    assert data.in_memory
    small = ade(tmp_path, cache_limit=bytes_needed // 2)
    small.preload()
    assert not small.fits_cache
    assert not small._cache


def test_items_come_back_in_order_and_errors_too():
    assert map_chunks(_double, list(range(100)), workers=2) == [2 * k for k in range(100)]
    with pytest.raises(ZeroDivisionError):
        map_chunks(_fail, list(range(100)), workers=2)


def _double(items):
    return [2 * item for item in items]


def _fail(items):
    return [1 // (item - 50) for item in items]


def test_both_decoders_give_the_same_statistics(tmp_path, monkeypatch):
    pytest.importorskip("kornia_rs")
    data = ade(tmp_path)
    fast = collect_label_statistics(data, cache=False).labels
    monkeypatch.setattr(label_files, "_fast_decoder", lambda: None)
    assert collect_label_statistics(data, cache=False).labels == fast


def test_size_of_mixed_images_is_none_and_of_equal_ones_theirs(tmp_path):
    assert ade(tmp_path).image_size is None
    trees.folder(tmp_path / "own", "val", [trees.stripes([0])] * 3)
    assert FolderDataset(tmp_path / "own", "val").image_size == trees.SIZE
    Image.new("RGB", (5, 5)).save(tmp_path / "own" / "images" / "val" / "2.jpg")
    assert FolderDataset(tmp_path / "own", "val").image_size is None
    with pytest.raises(ValueError, match=r"2\.jpg is 5x5 pixels \(W x H\), .*2\.png is 24x16"):
        FolderDataset(tmp_path / "own", "val").read(2)


@pytest.mark.parametrize(("fits", "rank", "order"), [
    (False, 0, ["count", "wait"]), (False, 1, ["wait", "count"]), (True, 0, ["count"]), (True, 1, ["count"]),
])  # fmt: skip
def test_of_several_processes_one_reads_the_label_files(tmp_path, monkeypatch, fits, rank, order):
    """The others find its cache. Images that fit into memory are read by every process, since each needs them."""
    happened = []
    monkeypatch.setattr(trainer.distributed, "rank", lambda: rank)
    monkeypatch.setattr(trainer.distributed, "barrier", lambda: happened.append("wait"))
    data = ade(tmp_path, cache_limit=1 << 20 if fits else 0)
    pixels = count_class_pixels(data)
    monkeypatch.setattr(trainer, "count_class_pixels", lambda dataset, progress: happened.append("count") or pixels)
    run = SimpleNamespace(config=TINY, progress=Silent())
    assert torch.equal(trainer.Trainer._count(run, "val", data), pixels)
    assert happened == order
