"""Small trees of images and label maps in the layouts of the public datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (16, 24)


def write_image(file: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> None:
    """An image of smooth colours, different for each seed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = np.stack([rows * 7 + seed * 13, columns * 5, rows + columns + seed], axis=2) % 256
    Image.fromarray(pixels.astype(np.uint8)).save(file)


def write_label(file: Path, values: np.ndarray) -> None:
    """A grey PNG with 8 bits a pixel."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(file)


def stripes(values: list[int] | tuple[int, ...] | range, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Columns with the values in turn."""
    row = np.resize(np.array(list(values)), size[1])
    return np.tile(row, (size[0], 1))


def blobs(values: list[int] | tuple[int, ...] | range, seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Rectangles with the values in random places."""
    rng = np.random.default_rng(seed)
    codes = np.full(size, values[0])
    for value in rng.permutation(list(values)):
        top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
        codes[top : top + rng.integers(1, 9), left : left + rng.integers(1, 12)] = value
    return codes


# Each function writes label maps, and images of their sizes, as one split of a tree. It returns the label files.


def cityscapes(root: Path, split: str, maps: list[np.ndarray], *, form: str = "labelTrainIds") -> list[Path]:
    files = []
    for k, codes in enumerate(maps):
        city, stem = ("aachen", "ulm")[k % 2], f"{('aachen', 'ulm')[k % 2]}_{k:06}_000019"
        write_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", codes.shape[:2], seed=k)
        files.append(root / "gtFine" / split / city / f"{stem}_gtFine_{form}.png")
        write_label(files[-1], codes)
    return files


def ade20k(root: Path, split: str, maps: list[np.ndarray]) -> list[Path]:
    folder = {"train": "training", "val": "validation"}[split]
    files = []
    for k, codes in enumerate(maps):
        stem = f"ADE_{split}_{k:08}"
        write_image(root / "images" / folder / f"{stem}.jpg", codes.shape[:2], seed=100 * len(split) + k)
        files.append(root / "annotations" / folder / f"{stem}.png")
        write_label(files[-1], codes)
    return files


def coco_stuff164k(root: Path, split: str, maps: list[np.ndarray], *, form: str = "_labelTrainIds") -> list[Path]:
    files = []
    for k, codes in enumerate(maps):
        write_image(root / "images" / f"{split}2017" / f"{k:012}.jpg", codes.shape[:2], seed=k)
        files.append(root / "annotations" / f"{split}2017" / f"{k:012}{form}.png")
        write_label(files[-1], codes)
    return files


def coco_stuff10k(root: Path, split: str, maps: list[np.ndarray]) -> list[Path]:
    part = {"train": "train", "val": "test"}[split]
    files, names = [], []
    for k, codes in enumerate(maps):
        names.append(f"COCO_train2014_{k:012}")
        write_image(root / "images" / f"{part}2014" / f"{names[-1]}.jpg", codes.shape[:2], seed=k)
        files.append(root / "annotations" / f"{part}2014" / f"{names[-1]}_labelTrainIds.png")
        write_label(files[-1], codes)
    (root / "imagesLists").mkdir(exist_ok=True)
    (root / "imagesLists" / f"{part}.txt").write_text("\n".join(names) + "\n")
    return files


def voc(root: Path, split: str, maps: list[np.ndarray], *, labels: str = "SegmentationClass") -> list[Path]:
    base = root / "VOCdevkit" / "VOC2012"
    files, names = [], []
    for k, codes in enumerate(maps):
        names.append(f"{split}_{k:06}")
        write_image(base / "JPEGImages" / f"{names[-1]}.jpg", codes.shape[:2], seed=k)
        files.append(base / labels / f"{names[-1]}.png")
        write_label(files[-1], codes)
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return files


def folder(root: Path, split: str, maps: list[np.ndarray], *, classes: str | None = "a\nb\nc\nd\n") -> list[Path]:
    files = []
    for k, codes in enumerate(maps):
        write_image(root / "images" / split / f"{k}.jpg", codes.shape[:2], seed=k)
        files.append(root / "masks" / split / f"{k}.png")
        write_label(files[-1], codes)
    if classes is not None:
        (root / "classes.txt").write_text(classes)
    return files


def camvid(root: Path, split: str, maps: list[np.ndarray]) -> list[Path]:
    files = []
    for k, codes in enumerate(maps):
        write_image(root / split / f"{k}.png", codes.shape[:2], seed=k)
        files.append(root / f"{split}annot" / f"{k}.png")
        write_label(files[-1], codes)
    return files


# name: (writer, its options, the valid codes, class of each code)
_COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
_CITY = "7 8 11 12 13 17 19 20 21 22 23 24 25 26 27 28 31 32 33"
LAYOUTS = {
    "cityscapes": (cityscapes, {}, [*range(19), 255], {**{v: v for v in range(19)}, 255: 255}),
    "cityscapes-labelIds": (
        cityscapes,
        {"form": "labelIds"},
        list(range(34)),
        {v: [int(word) for word in _CITY.split()].index(v) if str(v) in _CITY.split() else 255 for v in range(34)},
    ),
    "ade20k": (ade20k, {}, list(range(151)), {v: v - 1 if v else 255 for v in range(151)}),
    "coco_stuff164k": (coco_stuff164k, {}, [*range(171), 255], {**{v: v for v in range(171)}, 255: 255}),
    "coco_stuff164k-raw": (
        coco_stuff164k,
        {"form": ""},
        [*(v for v in range(182) if v not in _COCO_GAPS), 255],
        {255: 255, **{v: v - sum(gap < v for gap in _COCO_GAPS) for v in range(182) if v not in _COCO_GAPS}},
    ),
    "coco_stuff10k": (coco_stuff10k, {}, list(range(172)), {v: v - 1 if v else 255 for v in range(172)}),
    "voc": (voc, {}, [*range(21), 255], {**{v: v for v in range(21)}, 255: 255}),
    "folder": (folder, {}, [0, 1, 2, 3, 255], {0: 0, 1: 1, 2: 2, 3: 3, 255: 255}),
    "camvid": (camvid, {}, list(range(12)), {**{v: v for v in range(11)}, 11: 255}),
}
