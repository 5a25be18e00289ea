"""Class lists of your own data: class names, colours and ignored classes, in the formats that labelling tools write."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .class_entry import ClassEntry, Colour
from .class_list_formats import read_entries
from .colours import voc_colour
from .labels import COLOUR, IGNORE, Hint, LabelRule, pack
from .text_files import some

FILES = (
    *("classes.txt", "classes.json", "classes.csv", "class_dict.csv", "labelmap.txt", "classes.yaml", "classes.yml"),
    *("classes.tsv", "labels.txt", "class_names.txt", "label_colors.txt", "labels.csv", "labels.json"),
    *("id2label.json", "config.json", "data.yaml", "data.yml"),
)
"""File names of class lists, in the order in which they are looked for."""

_LABELME = "__ignore__"

IGNORED_NAMES = ("ignore", "void", "unlabelled", "unlabeled", _LABELME)
"""Names that mark a line as no class; its pixels are ignored."""


class ClassList(NamedTuple):
    """The classes without ignored ones in the order of their values, the rule of the masks, and a line about both."""

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    rule: LabelRule
    summary: str


def find_class_list(root: Path) -> Path:
    """The class list in a folder.

    Raises:
        FileNotFoundError: the folder has no class list.
    """
    for name in FILES:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(
        f"{root} holds no class list ({', '.join(FILES)}); write classes.txt with one class a line in the order of the "
        "values in the masks. For masks in colour, add its colour: 'road #804080' or 'road 128 64 128'"
    )


def read_class_list(file: Path) -> ClassList:
    """Read a class list.

    The values in index masks are the ids of the list. Only where it has none they are the positions of the classes,
    from 0; after labelme's first line ``__ignore__``, which is -1, from 0 again. Ids may have gaps. -1 is ignored, and
    so is 255 unless a class has it.

    Formats, in UTF-8 or UTF-16:

    - ``.txt`` with one class a line: ``name``, ``name #rrggbb``, ``name r g b``, ``r g b name``, each perhaps with an
      id: ``7 name``, ``7: name``, ``name, 7``; or CVAT's ``name:r,g,b::``. Lines that begin with ``#`` are comments.
    - ``.csv`` or ``.tsv`` with a header, separated by commas, semicolons or tabs. Columns such as ``id`` or
      ``Pixel Value``, ``name`` or ``Class``, ``r,g,b`` or ``color`` are read, others are not.
    - ``.json`` or ``.yaml`` with a list of names, a list of ``{"name": ..., "id": ..., "color": [r, g, b]}``, or an
      object from ids to names, names to ids or names to colours; also under ``names``, ``classes``, ``labels``,
      ``categories`` (COCO), ``id2label`` or ``label2id``. YAML needs PyYAML.

    Args:
        file: the list.

    Raises:
        ValueError: something in the list is not understood, a name, id or colour occurs twice, only some classes have
            ids or colours, or there are no classes or more than 255.
    """
    return _class_list(file, read_entries(file))


def _class_list(file: Path, listed: list[ClassEntry]) -> ClassList:
    by_id = any(entry.value is not None for entry in listed)
    entries = _with_values(file, listed)
    kept = [entry for entry in entries if not entry.ignored]
    for what, found in (("class", [e.name for e in kept]), ("colour", [e.colour for e in entries if e.colour])):
        if twice := [value for k, value in enumerate(found) if value in found[:k]]:
            raise ValueError(f"{file}: the {what} {twice[0]} occurs twice; every class needs its own")
    coloured = [entry for entry in entries if entry.colour is not None]
    if coloured and len(coloured) < len(entries):
        bare = next(entry.name for entry in entries if entry.colour is None)
        raise ValueError(
            f"{file}: {bare!r} has no colour but {coloured[0].name!r} has one; give all classes colours, or none"
        )
    if not 1 <= len(kept) <= IGNORE:
        raise ValueError(f"{file} lists {len(kept)} classes; there must be 1 to {IGNORE}")
    classes = {id(entry): IGNORE for entry in entries} | {id(entry): index for index, entry in enumerate(kept)}
    codes = {entry.value: classes[id(entry)] for entry in entries if entry.value is not None}
    grey = bool(coloured) and all(len(set(entry.colour or ())) == 1 for entry in entries)
    if grey:
        # If all are greys, the values in grey masks are the greys, such as 0 and 255.
        greys = {entry.colour[0]: classes[id(entry)] for entry in entries if entry.colour}
        for value in greys.keys() & codes.keys() if by_id else ():
            if greys[value] != codes[value]:
                raise ValueError(
                    f"{file}: {value} is the id of one class and the grey of another; leave out one of the two"
                )
        codes = greys | (codes if by_id else {})
        allowed = f"the greys of {file.name}: {', '.join(map(str, sorted(greys)))}"
    else:
        if -1 in codes or IGNORE not in codes:
            codes.setdefault(IGNORE, IGNORE)
        regular = [entry.value for entry in entries if entry.value not in (-1, IGNORE)] == list(range(len(entries)))
        ids = _ranges([value for value in codes if value not in (-1, IGNORE) or codes[value] != IGNORE])
        source = "the ids" if by_id and not regular else "the classes"
        allowed = f"{ids}{f' ({IGNORE} is ignored)' if codes.get(IGNORE) == IGNORE else ''}, {source} of {file.name}"
    if coloured:
        codes |= {pack(entry.colour): classes[id(entry)] for entry in entries if entry.colour}
        remedy = f"add the missing classes to {file.name}, with their colours; name those 'ignore' that are no class"
    else:
        remedy = f"add the missing classes to {file.name}; for masks in colour, give every class a colour there"
    palette = tuple(entry.colour or voc_colour(index + 1) for index, entry in enumerate(kept))
    names = tuple(entry.name for entry in kept)
    rule = LabelRule(codes, allowed, remedy, _hints(file, entries, codes, by_id))
    return ClassList(names, palette, rule, _summary(file, entries, by_id, grey))


def _with_values(file: Path, entries: list[ClassEntry]) -> list[ClassEntry]:
    """The entries with their values in index masks, in the order of the values."""
    numbered = [entry for entry in entries if entry.value is not None]
    if numbered and len(numbered) < len(entries):
        bare = next(entry.name for entry in entries if entry.value is None)
        raise ValueError(f"{file}: {bare!r} has no id but {numbered[0].name!r} has one; give all classes ids, or none")
    if not numbered:
        names = [entry.name for entry in entries]
        if _LABELME in names[1:]:
            raise ValueError(f"{file}: {_LABELME} has the value -1, so that it must be the first line")
        first = -1 if names[:1] == [_LABELME] else 0
        entries = [entry._replace(value=value) for value, entry in enumerate(entries, start=first)]
    result: list[ClassEntry] = []
    first_with: dict[int, ClassEntry] = {}
    for entry in entries:
        value = entry.value
        assert value is not None
        if not -1 <= value < COLOUR:
            raise ValueError(f"{file}: {entry.name!r} has the id {value}; ids are 0 or more, and -1 is ignored")
        ignored = entry.ignored or value == -1 or entry.name.lower() in IGNORED_NAMES
        result.append(entry._replace(ignored=ignored))
        other = first_with.setdefault(value, result[-1])
        if other is not result[-1] and not (ignored and other.ignored):
            raise ValueError(
                f"{file}: {other.name!r} and {entry.name!r} have the id {value}; every class needs its own"
            )
    return sorted(result, key=lambda entry: entry.value or 0)


def _hints(file: Path, entries: list[ClassEntry], codes: dict[int, int], by_id: bool) -> dict[int, Hint]:
    minus = Hint(
        "minus-one", f"if -1 marks pixels of no class, give it a line in {file.name}: '-1,ignore', and ids to all"
    )
    hints = {-1: minus}
    if by_id and 0 not in codes:
        hints[0] = Hint(
            "zero-unnamed", f"0 has no name in {file.name}; give it the line '0,ignore', or a name if it is a class"
        )
    elif not by_id and (beyond := 1 + max(entry.value or 0 for entry in entries)) not in codes:
        hints[beyond] = Hint(
            "counts-from-one",
            f"if the classes in the masks begin at 1 and 0 is no class, add 'ignore' as the first line of {file.name}",
        )
    return hints


def _summary(file: Path, entries: list[ClassEntry], by_id: bool, grey: bool) -> str:
    """What was understood, in a line for the user."""
    kept = [entry for entry in entries if not entry.ignored]
    source = "ids" if by_id else "greys" if grey else "order"
    shown = [f"{entry.colour[0] if source == 'greys' and entry.colour else entry.value} {entry.name}" for entry in kept]
    text = f"{file.name}: {len(kept)} {'class' if len(kept) == 1 else 'classes'} by their {source}: {some(shown, 6)}"
    if ignored := [f"{entry.value} {entry.name}" for entry in entries if entry.ignored]:
        text += f"; ignored: {some(ignored, 6)}"
    values = {entry.value for entry in entries}
    if by_id and (gaps := [v for v in range(max(entry.value or 0 for entry in kept)) if v not in values]):
        text += f"; without a name, and refused in masks: {_ranges(gaps)}"
    return text


def _ranges(values: list[int]) -> str:
    """Numbers as text, runs of them shortened.

    >>> _ranges([0, 1, 2, 7])
    '0..2, 7'
    """
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and runs[-1][1] == value - 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}..{high}" for low, high in runs[:12]) + (
        f" and {len(runs) - 12} more" if len(runs) > 12 else ""
    )
