"""Cityscapes: 2,975 training and 500 validation images of 1024x2048, 19 classes.

M. Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016. Labels and colours are
those of the dataset's own scripts (github.com/mcordts/cityscapesScripts).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .colours import colours
from .files import FileDataset
from .labels import IGNORE, Hint, LabelRule
from .pairing import need_folder, open_root, pair_folders

LABEL_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, **{i: i - 13 for i in range(19, 29)}, 31: 16, 32: 17, 33: 18}
"""From the values in ``*_labelIds.png`` to the 19 classes."""

_TRAIN, _IDS = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"

_NAMES = (
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
    "rider, car, truck, bus, train, motorcycle, bicycle"
)


class CityscapesDataset(FileDataset):
    """Cityscapes' fine annotations with 19 classes; all other pixels are 255.

    Args:
        root: folder that holds ``leftImg8bit`` and ``gtFine``.
        split: "train" or "val".
        labels: "labelTrainIds" reads the maps that ``csCreateTrainIdLabelImgs`` writes. "labelIds" reads the
            distributed maps and converts them. "auto" takes the former if there are any.
        resize: ``(H, W)`` in pixels to which pairs are resized when they are read. None keeps the original size.
        **options: of :class:`FileDataset`, such as ``length``.

    Raises:
        FileNotFoundError: the root, the split, or one file of a pair is missing.
        ValueError: ``labels`` is unknown. When a pair is read: a file is broken, sizes differ, or a value is no class.
    """

    name = "cityscapes"
    one_size = True
    tree = (
        "leftImg8bit/{train,val}/CITY/*_leftImg8bit.png\n"
        "gtFine/{train,val}/CITY/*_gtFine_labelTrainIds.png    labels 0..18, 255 is ignored\n"
        "or gtFine/{train,val}/CITY/*_gtFine_labelIds.png      labels 0..33, remapped on load"
    )
    class_names = tuple(_NAMES.split(", "))
    palette = colours(
        "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046 "
        "003c64 005064 0000e6 770b20"
    )

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        labels: str = "auto",
        resize: tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        if labels not in ("auto", "labelTrainIds", "labelIds"):
            raise ValueError(f"labels={labels!r} is unknown; choose 'auto', 'labelTrainIds' or 'labelIds'")
        base = open_root(root, "cityscapes", self.tree)
        images = need_folder(base / "leftImg8bit" / split, self.tree)
        truth = need_folder(base / "gtFine" / split, self.tree)
        trained = labels == "labelTrainIds" or (labels == "auto" and next(truth.rglob(f"*{_TRAIN}"), None) is not None)
        found = pair_folders(images, truth, ("_leftImg8bit.png", "_leftImg8bit.jpg"), (_TRAIN if trained else _IDS,))
        rule = _train_ids_rule() if trained else _label_ids_rule()
        super().__init__(base, split, found, rule, resize=resize, **options)


def _train_ids_rule() -> LabelRule:
    raw = Hint(
        "other-ids",
        "these look like labelIds: write the maps again with csCreateTrainIdLabelImgs, or delete them to read "
        "*_labelIds.png",
    )
    return LabelRule(
        {**{value: value for value in range(19)}, IGNORE: IGNORE},
        "0..18 (255 is ignored)",
        "write the maps again with csCreateTrainIdLabelImgs, or delete them to read *_labelIds.png",
        dict.fromkeys(range(19, 34), raw),
    )


def _label_ids_rule() -> LabelRule:
    # the id of license plates is -1, which is 255 in eight bits
    ids = {value: LABEL_IDS.get(value, IGNORE) for value in (*range(34), 255)}
    return LabelRule(ids, "0..33", "use the *_labelIds.png of Cityscapes' gtFine")
