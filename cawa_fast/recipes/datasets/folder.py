"""Your own images and masks: folders or lists of pairs, and a class list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .class_list import find_class_list, read_class_list
from .files import FileDataset
from .pairing import IMAGE_SUFFIXES, Listing, listed_pairs, open_root, pair_folders

_IMAGES, _MASKS = ("images", "image", "imgs", "img"), ("masks", "mask", "labels", "label", "annotations", "annotation")
_IMAGE_ENDS = (*IMAGE_SUFFIXES, ".tif", ".tiff", ".bmp", ".webp")
# without JPEG, whose compression changes values
_MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
_TAGS = ("_mask", "_label", "_labels", "_labelIds", "_labelTrainIds", "_gt", "_seg", "")


class FolderDataset(FileDataset):
    """Your own images and masks, with a class list.

    Masks have the ids of the class list (grey or palette, 1 to 32 bits), or its colours. Where the list has no ids, the
    positions of the classes are the ids. The value 255 is ignored unless a class has it, and so is every class named
    "ignore", "void" or "unlabelled". If all colours of the list are greys, such as 0 and 255 for two classes, grey
    masks have these. :func:`~cawa_fast.recipes.datasets.class_list.read_class_list` describes the formats of class
    lists, and :func:`~cawa_fast.recipes.datasets.pairing.listed_pairs` those of lists of files.

    Args:
        root: folder that holds the tree.
        split: "train", "val" or the name of another split.
        classes: the class list; by default the first of ``class_list.FILES`` in the root.
        resize: ``(H, W)`` in pixels to which pairs are resized when they are read. None keeps the original size.
        allow_outside_root: take files elsewhere too, which a list file names.
        **options: of :class:`FileDataset`, such as ``length``.

    Raises:
        FileNotFoundError: the root, the class list, the split, or one file of a pair is missing.
        ValueError: the class list cannot be read. When a pair is read: a file is broken, sizes differ, or a value is no
            class.
    """

    reads_lists = True
    name = "folder"
    tree = (
        "classes.txt, .csv, .json or .yaml      a class a line: 'road', '7 road', 'road #804080', 'road 128 64 128'\n"
        "images/{train,val}/**  masks/{train,val}/**    the same names, masks may add _mask or _label; or\n"
        "{train,val}/images/**  {train,val}/masks/**    'labels' or 'annotations' for 'masks'; or\n"
        'train.txt  val.txt                     lists of "image mask", relative to the root'
    )

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        classes: str | Path | None = None,
        resize: tuple[int, int] | None = None,
        allow_outside_root: bool = False,
        **options: Any,
    ) -> None:
        base = open_root(root, ".", self.tree)
        file = find_class_list(base) if classes is None else Path(classes)
        if not file.is_file():
            raise FileNotFoundError(f"classes={str(classes)!r} is not a file; give the class list")
        self.class_names, self.palette, rule, self.class_list = read_class_list(file)
        listing = base / f"{split}.txt"
        found = (
            listed_pairs(base, listing, allow_outside_root=allow_outside_root)
            if listing.is_file()
            else _folder_pairs(base, split)
        )
        super().__init__(base, split, found, rule, resize=resize, **options)


def _folder_pairs(root: Path, split: str) -> Listing:
    def place(names: tuple[str, ...]) -> Path | None:
        return next((p for name in names for p in (root / name / split, root / split / name) if p.is_dir()), None)

    images, masks = place(_IMAGES), place(_MASKS)
    if images is None or masks is None:
        lacking = "images" if images is None else "masks"
        raise FileNotFoundError(
            f"{root} holds neither {lacking}/{split} nor {split}/{lacking} nor {split}.txt; expected under the root:\n"
            f"{FolderDataset.tree}"
        )
    same = pair_folders(images, masks, _IMAGE_ENDS, _MASK_SUFFIXES)
    if not same.unpaired:
        return same
    ends = [f"{tag}{suffix}" for tag in _TAGS for suffix in _MASK_SUFFIXES]
    return max(same, pair_folders(images, masks, _IMAGE_ENDS, ends), key=lambda listing: len(listing.pairs))
