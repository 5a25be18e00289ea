"""Pascal VOC 2012: 1,464 training and 1,449 validation images of many sizes, 21 classes with the background.

M. Everingham et al., "The Pascal Visual Object Classes (VOC) challenge", IJCV 2010. The augmented set has 10,582
training images, with the labels of B. Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from .colours import voc_colour
from .files import FileDataset
from .labels import IGNORE, LabelRule, pack
from .pairing import need_folder, open_root, pair_names

_VOID_COLOUR = (224, 224, 192)

_NAMES = (
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, "
    "motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
)


class VOCDataset(FileDataset):
    """Pascal VOC 2012: labels 0 (background) to 20; 255, on the outlines of objects, is ignored.

    Label maps may be palette images, as they are distributed, grey images, or RGB images in the palette's colours.

    Args:
        root: ``VOCdevkit/VOC2012``, or the folder that holds ``VOCdevkit``, or ``VOCdevkit``.
        split: "train", "val", or another list of ``ImageSets/Segmentation``, such as "trainval".
        resize: ``(H, W)`` in pixels to which pairs are resized when they are read. None keeps the original size.
        **options: of :class:`FileDataset`, such as ``length``.

    Raises:
        FileNotFoundError: the root, the list, or one file of a pair is missing.
        ValueError: when a pair is read: a file is broken, sizes differ, or a value is no class.
    """

    name = "voc"
    one_size = False
    tree = (
        "VOCdevkit/VOC2012/JPEGImages/*.jpg\n"
        "VOCdevkit/VOC2012/SegmentationClass/*.png              labels 0..20, 255 is ignored\n"
        "VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt"
    )
    class_names = tuple(_NAMES.split(", "))
    palette = tuple(voc_colour(index) for index in range(21))
    _labels = "SegmentationClass"
    _lists: ClassVar[dict[str, str]] = {"train": "train", "val": "val"}

    def __init__(self, root: str | Path, split: str, *, resize: tuple[int, int] | None = None, **options: Any) -> None:
        base = open_root(open_root(root, "VOCdevkit", self.tree), "VOC2012", self.tree)
        images = need_folder(base / "JPEGImages", self.tree)
        labels = need_folder(base / self._labels, self.tree)
        lists = need_folder(base / "ImageSets" / "Segmentation", self.tree)
        listing = lists / f"{self._lists.get(split, split)}.txt"
        if not listing.is_file():
            there = ", ".join(sorted(file.stem for file in lists.glob("*.txt"))) or "none"
            raise FileNotFoundError(f"{listing} is missing (existing lists: {there}); expected:\n{self.tree}")
        found = pair_names(listing, images, labels, ".jpg", ".png")
        by_colour = {pack(colour): index for index, colour in enumerate(self.palette)}
        rule = LabelRule(
            {**{value: value for value in range(21)}, IGNORE: IGNORE, **by_colour, pack(_VOID_COLOUR): IGNORE},
            "0..20 (255 is ignored)",
            f"use the maps of VOC 2012's {self._labels}",
        )
        super().__init__(base, split, found, rule, resize=resize, **options)


class VOCAugDataset(VOCDataset):
    """Pascal VOC 2012 with 10,582 training images; validation is that of :class:`VOCDataset`."""

    name = "voc_aug"
    tree = (
        "VOCdevkit/VOC2012/JPEGImages/*.jpg\n"
        "VOCdevkit/VOC2012/SegmentationClassAug/*.png           labels 0..20, 255 is ignored; validation's maps too\n"
        "VOCdevkit/VOC2012/ImageSets/Segmentation/{trainaug,val}.txt"
    )
    _labels = "SegmentationClassAug"
    _lists: ClassVar[dict[str, str]] = {"train": "trainaug", "val": "val"}
