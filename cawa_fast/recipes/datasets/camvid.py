"""CamVid in SegNet's layout: 367 training and 101 validation images of 360x480, 11 classes.

The files are not part of this project; the data set's own terms apply. Two layouts are read::

    root/train/*.png  root/trainannot/*.png  root/val/*.png  root/valannot/*.png       (images PNG or JPEG)
    root/train.txt    root/val.txt            one "image annotation" pair per line

Where there is a list file it decides. Its paths may be relative to the root, or stale absolute ones such as
``/SegNet/CamVid/train/x.png``: the longest tail of the path that exists under the root is taken.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from .base import SegmentationDataset

_SUFFIXES = (".png", ".jpg", ".jpeg")
_UNLABELLED = 11


class CamVidDataset(SegmentationDataset):
    """CamVid with SegNet's 11 classes; its label 11, unlabelled, becomes 255.

    Every pair is looked up and its sizes compared when the data set is opened; label values are checked when a pair is
    read (``preload`` and ``class_counts`` read them all).

    Args:
        root: folder that holds the splits.
        split: "train", "val" or "test".
        resize: ``(H, W)`` in pixels to which pairs are resized as they load: images bilinearly with antialiasing,
            labels to the nearest pixel. None keeps the files' size.
        length: use only so many pairs, evenly spaced over the split. None uses all.
        **options: ``cache`` and ``cache_limit`` of :class:`SegmentationDataset`.

    Raises:
        FileNotFoundError: the root, the split, or one file of a pair is missing.
        ValueError: sizes differ, a file is no image, a label map is in colour or has values outside 0..11.
    """

    name = "camvid"
    class_names = (
        "sky",
        "building",
        "column_pole",
        "road",
        "sidewalk",
        "tree",
        "sign_symbol",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    )
    palette = (
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    )

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        resize: tuple[int, int] | None = None,
        length: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = Path(root)
        self.split = split
        self.resize = resize
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"root={str(root)!r} is not a folder; give the one that holds {split}/ and {split}annot/"
            )
        listing = self.root / f"{split}.txt"
        self._pairs = _listed(self.root, listing) if listing.is_file() else _found(self.root, split)
        if length is not None:
            if not 1 <= length <= len(self._pairs):
                raise ValueError(f"length={length}: {split} has {len(self._pairs)} images; choose 1 to that many")
            # evenly spaced: neighbours are frames of one video
            self._pairs = [self._pairs[i * len(self._pairs) // length] for i in range(length)]
        sizes = {_common_size(image, annotation) for image, annotation in self._pairs}
        self._size = resize or (sizes.pop() if len(sizes) == 1 else None)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._pairs)

    def describe(self, index: int) -> str:
        """The two files of pair ``index``."""
        image, annotation = self._pairs[index]
        return f"{image} with {annotation}"

    @property
    def image_size(self) -> tuple[int, int] | None:
        """``(H, W)`` if all images have it, else None."""
        return self._size

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        from PIL import Image

        image_file, annotation_file = self._pairs[index]
        image = _open(image_file).convert("RGB")
        annotation = _open(annotation_file)
        raw = np.asarray(annotation)
        if raw.ndim != 2:
            raise ValueError(
                f"{annotation_file} is a colour image ({annotation.mode}), not a map of class indices; "
                "use the annotations of SegNet's CamVid, or convert the colours to 0..11 first"
            )
        if raw.max(initial=0) > _UNLABELLED or raw.min(initial=0) < 0:
            wrong = raw[(raw > _UNLABELLED) | (raw < 0)]
            raise ValueError(
                f"{annotation_file}: {wrong.size} pixels have labels {np.unique(wrong).tolist()[:8]}, outside 0..11 "
                "(11 is unlabelled); use the annotations of SegNet's 11-class CamVid, or convert these"
            )
        label = raw.astype(np.uint8)
        label[label == _UNLABELLED] = self.ignore_index
        if self.resize is not None:
            size = self.resize[::-1]
            image = image.resize(size, Image.Resampling.BILINEAR)
            label = np.array(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))
        return np.array(image), label


def _found(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Pairs of the folders ``split`` and ``splitannot``, by file name without its suffix."""
    images, annotations = (root / split, root / f"{split}annot")
    for folder in (images, annotations):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is missing, and so is the list {root / split}.txt; "
                f"root must hold {split}/ and {split}annot/, as SegNet's CamVid does"
            )
    left, right = (
        {file.stem: file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES}
        for folder in (images, annotations)
    )
    if not left:
        raise FileNotFoundError(f"{images} holds no images ({', '.join(_SUFFIXES)})")
    if unpaired := sorted(left.keys() ^ right.keys()):
        stem = unpaired[0]
        file, other = (left[stem], annotations) if stem in left else (right[stem], images)
        raise FileNotFoundError(
            f"{file} has no partner named {stem}.* in {other} ({len(unpaired)} such files); "
            f"add the missing files, or list the pairs to use in {root / split}.txt"
        )
    return [(left[stem], right[stem]) for stem in sorted(left)]


def _listed(root: Path, listing: Path) -> list[tuple[Path, Path]]:
    """Pairs of a list file."""
    pairs = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
        if not (words := line.split()):
            continue
        if len(words) != 2:
            raise ValueError(f"{listing}, line {number}: expected 'image annotation', found {line!r}")
        image, annotation = (_resolve(root, word, f"{listing}, line {number}") for word in words)
        pairs.append((image, annotation))
    if not pairs:
        raise ValueError(f"{listing} lists no pairs; fill it, or delete it to use the folders")
    return pairs


def _resolve(root: Path, listed: str, where: str) -> Path:
    parts = PurePosixPath(listed).parts
    for start in range(len(parts)):
        tail = PurePosixPath(*parts[start:])
        if not tail.is_absolute() and (file := root / tail).is_file():
            return file
    raise FileNotFoundError(
        f"{where}: {listed!r} is not under {root}, nor is any tail of that path; add the file or remove the line"
    )


def _open(file: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} cannot be read as an image ({error}); replace it by an intact copy") from error


def _common_size(image: Path, annotation: Path) -> tuple[int, int]:
    """``(H, W)`` of a pair, from the headers alone."""
    from PIL import Image, UnidentifiedImageError

    sizes = []
    for file in (image, annotation):
        try:
            with Image.open(file) as opened:
                sizes.append(opened.size)
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{file} cannot be read as an image ({error}); replace it by an intact copy") from error
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{image} is {sizes[0][0]}x{sizes[0][1]} pixels (W x H), {annotation} {sizes[1][0]}x{sizes[1][1]}; "
            "use images and annotations of the same version of the data set"
        )
    return sizes[0][1], sizes[0][0]
