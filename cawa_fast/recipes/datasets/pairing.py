"""Which files of a tree belong together: images and label maps, paired by their names or by a list."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .text_files import Line, read_lines, shown, split_words, unquoted

_MOST_BLANKS = 100  # in a line of a list; each may be a part of a name

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


class Pair(NamedTuple):
    """An image file and its label file."""

    image: Path
    label: Path


class Unpaired(NamedTuple):
    """An incomplete pair: what is missing ("image", "label" or "both"), the file that shows it, and a message."""

    missing: str
    file: Path
    text: str


class Shadowed(NamedTuple):
    """A file that is left out, since another one of the same name but for the suffix is used."""

    file: Path
    used: Path


class Repeated(NamedTuple):
    """A line of a list file whose image an earlier line has: its place, and the image."""

    where: str
    file: Path


@dataclass
class Listing:
    """The pairs of a split in order, and what is odd about its files and lines."""

    pairs: list[Pair] = field(default_factory=list)
    unpaired: list[Unpaired] = field(default_factory=list)
    shadowed: list[Shadowed] = field(default_factory=list)
    repeated: list[Repeated] = field(default_factory=list)

    def add(self, pair: Pair, where: str) -> None:
        """Add the pair of a line of a list file."""
        if pair.image in self._seen:
            self.repeated.append(Repeated(where, pair.image))
        self._seen.add(pair.image)
        self.pairs.append(pair)

    _seen: set[Path] = field(default_factory=set, repr=False)


def need_folder(folder: Path, tree: str) -> Path:
    """Return the folder, or raise a ``FileNotFoundError`` that shows the tree."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; expected under the root:\n{tree}")
    return folder


def first_folder(root: Path, candidates: Sequence[str], tree: str) -> Path:
    """The first of several folders that exists, or a ``FileNotFoundError``."""
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    tried = " nor ".join(str(root / candidate) for candidate in candidates)
    raise FileNotFoundError(f"neither {tried} exists; expected under the root:\n{tree}")


def open_root(root: str | Path, inner: str, tree: str) -> Path:
    """The folder ``inner`` in the root if it exists, else the root itself."""
    outer = Path(root)
    if not outer.is_dir():
        raise FileNotFoundError(f"root={str(root)!r} is not a folder; give the folder that holds:\n{tree}")
    return outer / inner if (outer / inner).is_dir() else outer


def pair_folders(
    images: Path, labels: Path, image_ends: Sequence[str], label_ends: Sequence[str], *, not_labels: str | None = None
) -> Listing:
    """Pair the files of two trees by their relative path without the end of the name.

    Args:
        images: folder of the images, which may be in subfolders.
        labels: the same for the labels.
        image_ends: how the names of images end, such as ``("_leftImg8bit.png",)``, in small or capital letters.
        label_ends: the same for the labels. Of several label files for one image, the first kind is taken.
        not_labels: how the names of files end that are no labels although ``label_ends`` matches them.
    """
    left, hidden_images = _by_stem(images, image_ends)
    right, hidden_labels = _by_stem(labels, label_ends, not_labels)
    if not left:
        raise FileNotFoundError(f"{images} holds no images (*{', *'.join(image_ends)})")
    if not right:
        hint = ""
        if any(labels.rglob("*.jp*g")):
            hint = "; JPEG cannot hold labels, since its compression changes values: export them as PNG"
        raise FileNotFoundError(f"{labels} holds no label maps (*{', *'.join(label_ends)}){hint}")
    listing = Listing([Pair(left[stem], right[stem]) for stem in sorted(left.keys() & right.keys())])
    listing.shadowed = hidden_images + hidden_labels
    for stem in sorted(left.keys() ^ right.keys()):
        if stem in left:
            listing.unpaired.append(_lonely("label", left[stem], stem, label_ends, labels))
        else:
            listing.unpaired.append(_lonely("image", right[stem], stem, image_ends, images))
    return listing


def _lonely(missing: str, file: Path, stem: str, ends: Sequence[str], folder: Path) -> Unpaired:
    text = f"{file} has no partner named {stem}{ends[0] if len(ends) == 1 else '.*'} in {folder}"
    others = [folder / f"{stem}{end}" for end in (".jpg", ".jpeg")] if missing == "label" else []
    if lossy := next((other for other in others if other.exists()), None):
        text += f"; {lossy.name} cannot hold labels, since JPEG changes values: export it as PNG"
    return Unpaired(missing, file, text)


def _by_stem(folder: Path, ends: Sequence[str], excluded: str | None = None) -> tuple[dict[str, Path], list[Shadowed]]:
    """The files by their name without its end; of several with one name the first kind, and the others."""
    kinds: dict[str, list[tuple[int, Path]]] = {}
    above = {str(folder): {_identity(folder)}}  # of each folder, itself and the folders that it is in
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        ancestors = above.pop(parent)
        for name in list(folders):
            inner = os.path.join(parent, name)
            if (identity := _identity(inner)) in ancestors:  # a link to a folder that holds it has no end
                folders.remove(name)
            else:
                above[inner] = ancestors | {identity}
        inside = os.path.relpath(parent, folder)
        prefix = "" if inside == "." else inside.replace(os.sep, "/") + "/"
        for name in names:
            lower = name.lower()
            if name.startswith(".") or (excluded is not None and lower.endswith(excluded.lower())):
                continue
            for order, end in enumerate(ends):
                if lower.endswith(end.lower()):
                    kinds.setdefault(prefix + name[: len(name) - len(end)], []).append((order, Path(parent, name)))
                    break
    shadowed = []
    for files in kinds.values():
        files.sort()
        shadowed += [Shadowed(file, files[0][1]) for _, file in files[1:]]
    return {stem: files[0][1] for stem, files in kinds.items()}, shadowed


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def pair_names(listing: Path, images: Path, labels: Path, image_end: str, label_end: str) -> Listing:
    """Pair the files of a list file with a name on each line; after a blank or tab, more columns may follow.

    Raises:
        ValueError: the list is empty, or is no text file.
    """
    # List each folder once. On a network file system, a query for every file would cost a round trip each.
    here, there = ({entry.name for entry in os.scandir(folder)} for folder in (images, labels))
    listed = Listing()
    for line in read_lines(listing):
        name = split_words(line.text)[0]
        if name + image_end not in here and line.text + image_end in here:  # a name with blanks
            name = line.text
        if name.lower().endswith(image_end) and name in here:
            name = name[: -len(image_end)]
        image, label = name + image_end, name + label_end
        if image in here and label in there:
            listed.add(Pair(images / image, labels / label), line.where)
        elif image in here:
            listed.unpaired.append(_lonely("label", images / image, name, (label_end,), labels))
        elif label in there:
            listed.unpaired.append(_lonely("image", labels / label, name, (image_end,), images))
        else:
            text = f"{line.where}: {name!r} is listed, but neither {images / image} nor {labels / label} exists"
            listed.unpaired.append(Unpaired("both", images / image, text))
    if not listed.pairs and not listed.unpaired:
        raise ValueError(f"{listing} lists no images; write one name a line")
    return listed


def listed_pairs(root: Path, listing: Path, *, allow_outside_root: bool = False) -> Listing:
    """Pairs from a list file with a line "image label" for each.

    The two are separated by blanks, a tab, a comma or a semicolon. Names with blanks may be in quotes; without, the
    line is split where both files exist. Lines that begin with # are comments. Paths are relative to the root, or
    absolute ones of another machine such as ``/SegNet/CamVid/train/x.png``. Of those the longest tail is taken that
    exists under the root. Backslashes may separate folders. Links under the root may lead anywhere.

    Args:
        root: folder of the dataset.
        listing: the list file.
        allow_outside_root: take files elsewhere too, which a list names by an absolute path or by "..".

    Raises:
        ValueError: a line does not have two names, names a file outside the root, the list is empty, or is no text
            file.
    """
    listed = Listing()
    for line in read_lines(listing):
        words, found = _two_files(root, line, allow_outside_root)
        if found[0] is not None and found[1] is not None:
            listed.add(Pair(found[0], found[1]), line.where)
            continue
        absent = [word for word, file in zip(words, found, strict=True) if file is None]
        if outside := next((word for word in absent if _resolve(root, word, True)), None):
            raise ValueError(
                f"{line.where}: {outside!r} is outside {root}; move it there or link to it from there, or allow it "
                "with --allow-outside-root (allow_outside_root=True)"
            )
        missing = "both" if len(absent) == 2 else "label" if found[0] else "image"
        text = f"{line.where}: {absent[0]!r} is not under {root}, nor is any tail of that path"
        listed.unpaired.append(Unpaired(missing, root / absent[0].lstrip("/"), text))
    if not listed.pairs and not listed.unpaired:
        raise ValueError(f"{listing} lists no pairs; complete it, or delete it to use the folders")
    return listed


def _two_files(root: Path, line: Line, allow_outside_root: bool) -> tuple[list[str], list[Path | None]]:
    """The two names in a line, and their files, None for those that do not exist."""
    # names may have blanks, and a comma or semicolon may separate them
    breaks = list(itertools.islice(re.finditer(r"\s*[,;]\s*|\s+", line.text), _MOST_BLANKS + 1))
    # each is tried as the place between the two names
    splits = [(match.start(), match.end()) for match in breaks] if len(breaks) <= _MOST_BLANKS else []
    parts = [[unquoted(line.text[:start]), unquoted(line.text[end:])] for start, end in splits]
    words = split_words(line.text)
    ways = [words] if len(words) == 2 else []
    ways += [part for part in parts if all(part) and part not in ways]
    first = None
    for way in ways:
        found = [_resolve(root, name, allow_outside_root) for name in way]
        if all(found):
            return way, found
        first = first or (way, found)
    if first is None or (len(ways) > 1 and len(words) != 2):
        raise ValueError(
            f"{line.where}: expected 'image annotation', found {shown(line.text)}; put names with blanks in quotes, or "
            "a tab between the two"
        )
    return first


def _resolve(root: Path, listed: str, allow_outside_root: bool) -> Path | None:
    """The file that a list names; None if there is none, or if it is outside the root and that is not allowed."""
    for name in (listed, listed.replace("\\", "/")) if "\\" in listed else (listed,):
        parts = PurePosixPath(name).parts
        tails = [PurePosixPath(*parts[start:]) for start in range(len(parts))]
        # as it is written, then its tails
        for file in (root / name, *(root / tail for tail in tails[1:])):
            if os.path.isfile(file):  # Path.is_file raises an error for a name that is too long
                return file if allow_outside_root or _is_under(root, file) else None
    return None


def _is_under(root: Path, file: Path) -> bool:
    """Whether the path leads into the root, without a look at links."""
    return os.path.abspath(file).startswith(os.path.join(os.path.abspath(root), ""))
