"""ADE20K's scene parsing challenge: 20,210 training and 2,000 validation images of many sizes, 150 classes.

B. Zhou et al., "Scene parsing through ADE20K dataset", CVPR 2017. Names are the first synonyms of its objectInfo150,
colours those of its color150; road and skyscraper share one there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .ade20k_classes import NAMES, PALETTE
from .files import FileDataset, need_folder, open_root, pair_folders
from .labels import IGNORE, Hint, LabelRule

_FOLDERS = {"train": "training", "val": "validation"}


class ADE20KDataset(FileDataset):
    """ADE20K: a file's 0 (other) becomes 255, and 1..150 become 0..149, once.

    Maps whose zero was reduced already hold 255, which ADE20K's own never do: they are refused, since every class would
    turn into the one before it.

    Args:
        root: ``ADEChallengeData2016``, or the folder that holds it.
        split: "train" or "val".
        resize: ``(H, W)`` in pixels to which pairs are resized as they load. None keeps the files' size.
        **options: ``length`` and more of :class:`FileDataset`.

    Raises:
        FileNotFoundError: the root, the split, or one file of a pair is missing.
        ValueError: when a pair is read: broken files, sizes that differ, values outside 0..150, zero reduced already.
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
    """0 is ignored, v in 1..classes is class v - 1."""
    reduced = Hint(
        "zero-reduced-twice",
        "255 says that zero was reduced already (0 to 255, the rest down by one), and would be a second time; use the "
        "original maps, or read the reduced ones as a 'folder' dataset",
    )
    return LabelRule(
        {0: IGNORE, **{value: value - 1 for value in range(1, classes + 1)}},
        f"0..{classes} (0 is ignored)",
        "use the dataset's original maps",
        {255: reduced},
    )
