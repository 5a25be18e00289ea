"""ADE20K's scene parsing challenge: 20,210 training and 2,000 validation images of many sizes, 150 classes.

B. Zhou et al., "Scene parsing through ADE20K dataset", CVPR 2017. Class names are the first synonyms in objectInfo150.
The colours are those of color150, in which road and skyscraper have the same one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .ade20k_classes import NAMES, PALETTE
from .files import FileDataset
from .labels import IGNORE, Hint, LabelRule
from .pairing import need_folder, open_root, pair_folders

_FOLDERS = {"train": "training", "val": "validation"}


class ADE20KDataset(FileDataset):
    """ADE20K: of the values in a file, 0 (other) becomes 255, and 1..150 become 0..149.

    A map with 255 raises: in it, the values have been reduced by one already, since ADE20K's own maps have no 255.
    Reducing them again would turn every class into the one before it.

    Args:
        root: ``ADEChallengeData2016``, or the folder that holds it.
        split: "train" or "val".
        resize: ``(H, W)`` in pixels to which pairs are resized when they are read. None keeps the original size.
        **options: of :class:`FileDataset`, such as ``length``.

    Raises:
        FileNotFoundError: the root, the split, or one file of a pair is missing.
        ValueError: when a pair is read: a file is broken, sizes differ, or a value is outside 0..150.
    """

    name = "ade20k"
    one_size = False
    tree = (
        "ADEChallengeData2016/images/{training,validation}/*.jpg\n"
        "ADEChallengeData2016/annotations/{training,validation}/*.png   labels 1..150, 0 is ignored"
    )
    class_names = NAMES
    palette = PALETTE

    def __init__(self, root: str | Path, split: str, *, resize: tuple[int, int] | None = None, **options: Any) -> None:
        base = open_root(root, "ADEChallengeData2016", self.tree)
        folder = _FOLDERS.get(split, split)
        images = need_folder(base / "images" / folder, self.tree)
        labels = need_folder(base / "annotations" / folder, self.tree)
        super().__init__(
            base,
            split,
            pair_folders(images, labels, (".jpg",), (".png",)),
            zero_is_other(150),
            resize=resize,
            **options,
        )


def zero_is_other(classes: int) -> LabelRule:
    """The rule by which 0 is ignored and v in 1..classes is class v - 1."""
    reduced = Hint(
        "zero-reduced-twice",
        "255 shows that the values have been reduced by one already (0 to 255, 1 to 0, ...); use the original maps, or "
        "read the reduced ones as a 'folder' dataset",
    )
    return LabelRule(
        {0: IGNORE, **{value: value - 1 for value in range(1, classes + 1)}},
        f"0..{classes} (0 is ignored)",
        "use the dataset's original maps",
        {255: reduced},
    )
