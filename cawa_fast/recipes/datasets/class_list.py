"""Class lists of your own data: class names, colours and ignored classes, in the formats that labelling tools write."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from .colours import voc_colour
from .labels import IGNORE, Hint, LabelRule, pack

FILES = ("classes.txt", "classes.json", "classes.csv", "class_dict.csv", "labelmap.txt")
"""File names of class lists, in the order in which they are looked for."""

IGNORED_NAMES = ("ignore", "void", "unlabelled", "unlabeled")
"""Names that mark a line as no class; its pixels are ignored."""

_Colour = tuple[int, int, int]


class ClassEntry(NamedTuple):
    """One line of a list: a name and perhaps a colour. Its position in the list is its value in index masks."""

    name: str
    colour: _Colour | None


class ClassList(NamedTuple):
    """The classes without ignored ones, and the rule of the masks."""

    names: tuple[str, ...]
    palette: tuple[_Colour, ...]
    rule: LabelRule


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

    Formats:

    - ``.txt`` with one class a line: ``name``, ``name #rrggbb``, ``name r g b``, or CVAT's ``name:r,g,b::``. Lines that
      begin with ``#`` are comments.
    - ``.csv`` with a header and the columns ``name,r,g,b``, of which the colours may be missing.
    - ``.json`` with a list of names, a list of ``{"name": ..., "color": [r, g, b]}``, or an object from names to
      colours.

    Args:
        file: the list.

    Raises:
        ValueError: a line cannot be read, a name or colour occurs twice, only some classes have colours, or there are
            no classes or more than 255.
    """
    readers = {".json": _from_json, ".csv": _from_csv}
    try:
        entries = readers.get(file.suffix.lower(), _from_text)(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file ({error}); save it as UTF-8") from error
    return _class_list(file, entries)


def _class_list(file: Path, entries: list[ClassEntry]) -> ClassList:
    for what, found in (("class", [e.name for e in entries]), ("colour", [e.colour for e in entries if e.colour])):
        if twice := [value for k, value in enumerate(found) if value in found[:k]]:
            raise ValueError(f"{file}: the {what} {twice[0]} occurs twice; every class needs its own")
    coloured = [entry for entry in entries if entry.colour is not None]
    if coloured and len(coloured) < len(entries):
        bare = next(entry.name for entry in entries if entry.colour is None)
        raise ValueError(
            f"{file}: {bare!r} has no colour but {coloured[0].name!r} has one; give all classes colours, or none"
        )
    kept = [entry for entry in entries if entry.name.lower() not in IGNORED_NAMES]
    if not 1 <= len(kept) <= IGNORE:
        raise ValueError(f"{file} lists {len(kept)} classes; there must be 1 to {IGNORE}")
    classes = dict.fromkeys(entries, IGNORE) | {entry: index for index, entry in enumerate(kept)}
    codes: dict[int, int] = {}
    if coloured and all(len(set(entry.colour or ())) == 1 for entry in entries):
        # If all are greys, the values in grey masks are the greys, such as 0 and 255.
        codes = {entry.colour[0]: index for entry, index in classes.items() if entry.colour}
        allowed = f"the greys of {file.name}: {', '.join(map(str, sorted(codes)))}"
    else:
        codes = {value: classes[entry] for value, entry in enumerate(entries)}
        codes.setdefault(IGNORE, IGNORE)
        allowed = f"0..{len(entries) - 1} ({IGNORE} is ignored), the classes of {file.name}"
    if coloured:
        codes |= {pack(entry.colour): index for entry, index in classes.items() if entry.colour}
    if not coloured:
        remedy = f"add the missing classes to {file.name}; for masks in colour, give every class a colour there"
    else:
        remedy = f"add the missing classes to {file.name}, with their colours; name those 'ignore' that are no class"
    palette = tuple(entry.colour or voc_colour(index + 1) for index, entry in enumerate(kept))
    one_based = Hint(
        "counts-from-one",
        f"if the classes in the masks begin at 1 and 0 is no class, add 'ignore' as the first line of {file.name}",
    )
    hints = {} if len(entries) in codes else {len(entries): one_based}
    return ClassList(tuple(entry.name for entry in kept), palette, LabelRule(codes, allowed, remedy, hints))


_TEXT = re.compile(
    r"""(?P<name>.+?)
        (?: \s* [\s:,;=] \s*
            (?: \#(?P<hex>[0-9a-fA-F]{6}) | (?P<red>\d+) [\s,]+ (?P<green>\d+) [\s,]+ (?P<blue>\d+) ) )?
        \s* (?: :[^:]*:[^:]* )?$""",
    re.VERBOSE,
)


def _from_text(file: Path) -> list[ClassEntry]:
    entries = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _TEXT.match(line)
        where = f"{file}, line {number}"
        if match is None:
            raise ValueError(f"{where}: {line!r} is not a class; write 'name', 'name #rrggbb' or 'name r g b'")
        if match["hex"]:
            colour: _Colour | None = _colour([int(match["hex"][k : k + 2], 16) for k in (0, 2, 4)], where)
        else:
            colour = _colour([match["red"], match["green"], match["blue"]], where) if match["red"] else None
        entries.append(ClassEntry(match["name"].strip(), colour))
    return entries


def _from_csv(file: Path) -> list[ClassEntry]:
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = [
            {(k or "").strip().lower(): (v or "").strip() for k, v in row.items() if isinstance(v, str)}
            for row in csv.DictReader(opened, skipinitialspace=True)
        ]
    entries = []
    for number, row in enumerate(rows, start=2):
        where = f"{file}, line {number}"
        name = row.get("name") or row.get("class")
        if not name:
            raise ValueError(f"{where}: no name; the first line must name the columns: name,r,g,b")
        channels = [row.get(key) for key in ("r", "g", "b")]
        entries.append(ClassEntry(name, _colour(channels, where) if any(channels) else None))
    return entries


def _from_json(file: Path) -> list[ClassEntry]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error})") from error
    if isinstance(content, dict):
        content = [{"name": name, "color": colour} for name, colour in content.items()]
    if not isinstance(content, list):
        raise ValueError(f'{file}: expected a list of names, or of {{"name": ..., "color": [r, g, b]}}')
    entries = []
    for number, item in enumerate(content):
        where = f"{file}, class {number}"
        if isinstance(item, str):
            item = {"name": item}
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ValueError(
                f'{where}: {item!r} has no name; expected "road", or {{"name": "road", "color": [r, g, b]}}'
            )
        colour = item.get("color", item.get("colour"))
        if isinstance(colour, str) and re.fullmatch("#[0-9a-fA-F]{6}", colour):
            colour = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
        entries.append(ClassEntry(item["name"].strip(), None if colour is None else _colour(colour, where)))
    return entries


def _colour(channels: Any, where: str) -> _Colour:
    try:
        red, green, blue = (int(channel) for channel in channels)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {channels!r} is not a colour; give red, green, blue, each in 0..255") from None
    if not 0 <= min(red, green, blue) <= max(red, green, blue) <= 255:
        raise ValueError(f"{where}: the colour {(red, green, blue)} is outside 0..255")
    return red, green, blue
