"""CamVid in SegNet's layout: 367 training and 101 validation images of 360x480, 11 classes.

The files are not part of this project and have terms of their own. G. J. Brostow, J. Fauqueur, R. Cipolla,
"Semantic object classes in video: a high-definition ground truth database", Pattern Recognition Letters, 2009.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .colours import colours
from .files import FileDataset, check_sizes, header_size
from .image_files import read_header
from .labels import IGNORE, LabelRule
from .pairing import IMAGE_SUFFIXES, Listing, listed_pairs, open_root, pair_folders

_UNLABELLED = 11

_NAMES = "sky, building, column_pole, road, sidewalk, tree, sign_symbol, fence, car, pedestrian, bicyclist"


class CamVidDataset(FileDataset):
    """CamVid with SegNet's 11 classes; its label 11, unlabelled, becomes 255.

    A list file, if there is one, decides which pairs there are; it is read by
    :func:`~cawa_fast.recipes.datasets.pairing.listed_pairs`. The dataset is small, so that opening it also compares the
    sizes of every pair.

    Args:
        root: folder that holds the splits.
        split: "train", "val" or "test".
        resize: ``(H, W)`` in pixels to which pairs are resized when they are read. None keeps the original size.
        allow_outside_root: take files elsewhere too, which a list file names.
        **options: of :class:`FileDataset`, such as ``length``.

    Raises:
        FileNotFoundError: the root, the split, or one file of a pair is missing.
        ValueError: sizes differ, a file is no image, or a label map is in colour or has values outside 0..11.
    """

    reads_lists = True
    name = "camvid"
    tree = (
        "{train,val}/*.png  {train,val}annot/*.png    images PNG or JPEG, labels 0..10, 11 is unlabelled\n"
        'or train.txt  val.txt                        lists of "image label", relative to the root'
    )
    class_names = tuple(_NAMES.split(", "))
    palette = colours("808080 800000 c0c080 804080 3c28de 808000 c08080 404080 400080 404000 0080c0")

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        resize: tuple[int, int] | None = None,
        allow_outside_root: bool = False,
        **options: Any,
    ) -> None:
        base = open_root(root, "CamVid", self.tree)
        listing = base / f"{split}.txt"
        found = (
            listed_pairs(base, listing, allow_outside_root=allow_outside_root)
            if listing.is_file()
            else _camvid_pairs(base, split)
        )
        rule = LabelRule(
            {**{value: value for value in range(_UNLABELLED)}, _UNLABELLED: IGNORE},
            "0..11 (11 is unlabelled)",
            "use the annotations of SegNet's 11-class CamVid, or convert these to 0..11",
        )
        super().__init__(base, split, found, rule, resize=resize, **options)
        if not options.get("allow_unpaired"):
            sizes = set()
            for image, label in self.pairs:
                size, _, orientation, _ = read_header(image)
                check_sizes(image, size, label, header_size(label), orientation)
                sizes.add(size)
            self._size = resize or (sizes.pop() if len(sizes) == 1 else None)
            self._size_known = True


def _camvid_pairs(root: Path, split: str) -> Listing:
    images, labels = root / split, root / f"{split}annot"
    for folder in (images, labels):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is missing, and so is the list {root / split}.txt; expected under the root:\n"
                f"{CamVidDataset.tree}"
            )
    return pair_folders(images, labels, IMAGE_SUFFIXES, IMAGE_SUFFIXES)
