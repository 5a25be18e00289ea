"""COCO-Stuff, 171 classes: 10k (9,000 training and 1,000 test images) and 164k (118,287 and 5,000).

H. Caesar, J. Uijlings, V. Ferrari, "COCO-Stuff: thing and stuff classes in context", CVPR 2018. Of its category ids
1..182, eleven have no pixels; the other 171 are the classes, in order. Its own palette has black for all things. Here
each class has the colour of its id in Pascal VOC's palette, so that colours are distinct.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .ade20k import zero_is_other
from .coco_stuff_classes import ABSENT_IDS, IDS, NAMES
from .colours import voc_colour
from .files import FileDataset
from .labels import IGNORE, Hint, LabelRule
from .pairing import Listing, first_folder, open_root, pair_folders, pair_names

_TRAIN = "_labelTrainIds.png"
_FORMS = ("auto", "labelTrainIds", "raw")


class COCOStuff164kDataset(FileDataset):
    """COCO-Stuff 164k: train2017 and val2017.

    Args:
        root: folder that holds ``images`` and ``annotations``.
        split: "train" or "val".
        labels: "labelTrainIds" reads MMSegmentation's converted maps with values 0..170; "raw" reads the distributed
            maps with values 0..181, the category id minus 1, and converts them; 255 is ignored in both. "auto" takes
            the former if there are any.
        resize: ``(H, W)`` in pixels to which pairs are resized when they are read. None keeps the original size.
        **options: of :class:`FileDataset`, such as ``length``.

    Raises:
        FileNotFoundError: the root, the split, or one file of a pair is missing.
        ValueError: ``labels`` is unknown. When a pair is read: a file is broken, sizes differ, or a value is no class.
    """

    name = "coco_stuff164k"
    one_size = False
    tree = (
        "images/{train2017,val2017}/*.jpg\n"
        "annotations/{train2017,val2017}/*_labelTrainIds.png   labels 0..170, 255 is ignored\n"
        "or annotations/{train2017,val2017}/*.png              raw maps, 0..181, remapped; or in stuffthingmaps/"
    )
    class_names = NAMES
    palette = tuple(voc_colour(number) for number in IDS)

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        labels: str = "auto",
        resize: tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        _check_form(labels)
        base = open_root(root, "coco_stuff164k", self.tree)
        folder = {"train": "train2017", "val": "val2017"}.get(split, split)
        images = first_folder(base, (f"images/{folder}", folder), self.tree)
        places = [f"{parent}/{folder}" for parent in ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017")]
        truth = first_folder(base, places, self.tree)
        trained = labels == "labelTrainIds" or (labels == "auto" and next(truth.glob(f"*{_TRAIN}"), None) is not None)
        if trained:
            found, rule = pair_folders(images, truth, (".jpg",), (_TRAIN,)), _converted_rule()
        else:
            found, rule = pair_folders(images, truth, (".jpg",), (".png",), not_labels=_TRAIN), raw_rule(offset=1)
        super().__init__(base, split, found, rule, resize=resize, **options)


class COCOStuff10kDataset(FileDataset):
    """COCO-Stuff 10k: its training list, and its test list for validation.

    Args:
        root: folder that holds ``images``, ``annotations`` and ``imagesLists`` (or ``imageLists``).
        split: "train", "val" (the list ``test.txt``), or the name of another list.
        labels: "labelTrainIds" reads MMSegmentation's converted maps with values 1..171; "raw" reads the distributed
            MATLAB files with category ids 1..182, for which SciPy is needed; 0 is ignored in both. "auto" takes the
            former if there are any.
        resize: ``(H, W)`` in pixels to which pairs are resized when they are read. None keeps the original size.
        **options: of :class:`FileDataset`, such as ``length``.

    Raises:
        FileNotFoundError: the root, the list, or one file of a pair is missing.
        ValueError: ``labels`` is unknown. When a pair is read: a file is broken, sizes differ, or a value is no class.
    """

    name = "coco_stuff10k"
    one_size = False
    tree = (
        "images/{train2014,test2014}/*.jpg\n"
        "annotations/{train2014,test2014}/*_labelTrainIds.png  labels 1..171, 0 is ignored\n"
        "imagesLists/{train,test}.txt\n"
        "or images/*.jpg  annotations/*.mat  imageLists/{train,test}.txt   as distributed; needs SciPy"
    )
    class_names = NAMES
    palette = COCOStuff164kDataset.palette

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        labels: str = "auto",
        resize: tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        _check_form(labels)
        base = open_root(root, "coco_stuff10k", self.tree)
        part = {"val": "test"}.get(split, split)
        lists = first_folder(base, ("imagesLists", "imageLists"), self.tree)
        if not (listing := lists / f"{part}.txt").is_file():
            raise FileNotFoundError(f"{listing} is missing; expected under the root:\n{self.tree}")
        images = first_folder(base, (f"images/{part}2014", "images"), self.tree)
        truth = first_folder(base, (f"annotations/{part}2014", "annotations"), self.tree)
        trained = labels == "labelTrainIds" or (labels == "auto" and next(truth.glob(f"*{_TRAIN}"), None) is not None)
        found: Listing = pair_names(listing, images, truth, ".jpg", _TRAIN if trained else ".mat")
        rule = zero_is_other(len(NAMES)) if trained else raw_rule(offset=0)
        super().__init__(base, split, found, rule, resize=resize, **options)


def raw_rule(offset: int) -> LabelRule:
    """The rule of maps with category ids minus ``offset``.

    In the maps of 164k the offset is 1 and 255 is unlabelled; in those of 10k the offset is 0 and 0 is unlabelled.
    """
    classes = {number - offset: index for index, number in enumerate(IDS)}
    unlabelled = 255 if offset else 0
    converted = Hint(
        "other-ids", "no pixel has such a raw id: these look like labelTrainIds, whose files are named *" + _TRAIN
    )
    return LabelRule(
        {**classes, unlabelled: IGNORE},
        f"{1 - offset}..{182 - offset} without {', '.join(str(number - offset) for number in ABSENT_IDS)} "
        f"({unlabelled} is ignored)",
        "use COCO-Stuff's own maps",
        {number - offset: converted for number in ABSENT_IDS},
    )


def _converted_rule() -> LabelRule:
    raw = Hint("other-ids", "these look like raw ids, whose files are named *.png without labelTrainIds")
    return LabelRule(
        {**{value: value for value in range(len(NAMES))}, 255: IGNORE},
        f"0..{len(NAMES) - 1} (255 is ignored)",
        "convert the raw maps again",
        dict.fromkeys(range(len(NAMES), 182), raw),
    )


def _check_form(labels: str) -> None:
    if labels not in _FORMS:
        raise ValueError(f"labels={labels!r} is unknown; choose one of {', '.join(map(repr, _FORMS))}")
