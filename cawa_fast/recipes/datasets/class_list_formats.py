"""Readers of class lists: lines, tables, and JSON or YAML. Each gives the entries of a file in their order."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .class_entry import ClassEntry, is_hex, read_colour
from .class_list_lines import entries_of_lines
from .text_files import Line, read_lines, read_text, shown, unquoted


def read_entries(file: Path) -> list[ClassEntry]:
    """The entries of a class list, in the order of the file.

    Raises:
        ValueError: something in it is not understood.
    """
    try:
        return _read_entries(file)
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply; {_EXPECTED}") from None


def _read_entries(file: Path) -> list[ClassEntry]:
    suffix = file.suffix.lower()
    if suffix == ".json":
        try:
            return from_structure(_json(read_text(file), file), str(file))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is not JSON ({error})") from error
    if suffix in (".yaml", ".yml"):
        return from_structure(_yaml(read_text(file), file), str(file))
    if suffix in (".csv", ".tsv"):
        return _from_table(file)
    return _from_text(file)


def _from_text(file: Path) -> list[ClassEntry]:
    text = read_text(file)
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return from_structure(_json(text, file), str(file))
        except json.JSONDecodeError:
            pass  # names may begin with a bracket
    lines = read_lines(file)
    if any(re.match(r"names:\s*(\[.*)?$", line.text) for line in lines):
        return from_structure(_yaml(text, file), str(file))
    first = re.split(r"[\t,;|]|\s+", lines[0].text) if lines else []
    if len(lines) > 1 and len(first) > 1 and all(_column(word) for word in first) and _names_column(first):
        return _from_table(file)
    if lines and all(line.text.startswith("- ") for line in lines):
        lines = [Line(line.where, line.text[2:].strip()) for line in lines]
    for line in lines:
        if line.text in ("{", "}", "[", "]") or line.text.endswith("{") or line.text.startswith(("<?xml", "<!")):
            raise ValueError(
                f"{line.where}: {line.text!r} is not a class; write 'name', 'name #rrggbb' or 'name r g b'"
            )
    return entries_of_lines(lines)


# -- tables ---------------------------------------------------------------------------------------------------------

_WORDS = {
    "name": "name, class name, classname, label name, category name, class, label, category, title, object",
    "id": "id, value, pixel value, pixel, index, idx, class id, classid, class index, class value, label id, labelid, "
    "label value, category id, mask value, code, gray, grey, gray value, grey value, number",
    "train": "trainid, train id",
    "r": "r, red",
    "g": "g, green",
    "b": "b, blue",
    "colour": "color, colour, rgb, hex, color rgb, hex color, rgb color",
    "other": "ratio, train, val, stuff, supercategory, isthing, parts, actions, catid, hasinstances, ignoreineval, a",
}
_OF_CLASSES = re.compile(r"(?!.*\b(instance|parent|super|image|train)).*\b(id|idx|index|value)")
_ROLES = {word: role for role, words in _WORDS.items() for word in words.split(", ")}
_NUMBER = re.compile(r"-?\d+")
_NAME_ORDER = _WORDS["name"].split(", ")


def _column(word: str) -> str | None:
    """What a column or key with this name holds: a key of ``_WORDS``, or None."""
    plain = _plain(word)
    return _ROLES.get(plain) or ("id" if _OF_CLASSES.fullmatch(plain) else None)


def _plain(word: object) -> str:
    return re.sub(r"[\s_-]+", " ", unquoted(str(word)).lower())


def _names_column(words: Iterable[str]) -> bool:
    return any(_column(word) == "name" for word in words)


def _cells(line: str, separator: str, where: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    except csv.Error as error:
        raise ValueError(f"{where}: no line of a table ({error})") from error


def _from_table(file: Path) -> list[ClassEntry]:
    text = read_text(file)
    lines = [(number, line) for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1) if line.strip()]
    heads = [line for _, line in lines if not line.lstrip().startswith("#")][:1]
    commented = lines[0][1].lstrip("# ") if lines and lines[0][1].startswith("#") else ""
    separator = max(",;\t|", key=(heads or [""])[0].count)
    if heads and separator not in heads[0] and file.suffix.lower() == ".txt":
        separator = " "
    rows = [
        (number, [unquoted(cell) for cell in _cells(line, separator, f"{file}, line {number}")])
        for number, line in lines
        if not line.lstrip().startswith("#")
    ]
    above = [unquoted(cell) for cell in commented.split(separator)]
    if len(above) > 1 and all(_column(word) for word in above) and _names_column(above):
        header = above
    elif not rows:
        return []
    elif _names_column(rows[0][1]) or len(rows[0][1]) == 1 or not any(re.fullmatch(r"-?\d+", c) for c in rows[0][1]):
        header = rows.pop(0)[1]
    else:  # without a header
        return entries_of_lines(read_lines(file))
    if not rows and header and not _names_column(header):
        raise ValueError(f"{file}: no name; the first line must name the columns: name,r,g,b")
    columns = [_plain(word) for word in header]
    roles = [_column(column) for column in columns]
    # a column "class" of numbers beside one of names is that of the ids
    named = [
        k
        for k, role in enumerate(roles)
        if role == "name" and not all(_NUMBER.fullmatch(row[k]) for _, row in rows if k < len(row))
    ]
    for k, (column, role) in enumerate(zip(columns, roles, strict=True)):
        values = [row[k] if k < len(row) else "" for _, row in rows]
        order = [str(place) for place in range(len(rows) + 1)]
        if (
            role is None
            and "id" not in roles
            and values != order[:-1]
            and sorted(values) in (sorted(order[:-1]), sorted(order[1:]))
        ):
            raise ValueError(
                f"{file}: is {column!r} the value of the classes in the masks? Call that column 'id', or remove it"
            )
    entries = []
    for number, row in rows:
        where = f"{file}, line {number}"
        item: dict[str, Any] = {
            column: int(cell) if _NUMBER.fullmatch(cell) and (role != "name" or (named and k not in named)) else cell
            for k, (column, role, cell) in enumerate(zip(columns, roles, row, strict=False))
            if cell
        }
        if not any(
            role == "name" and isinstance(item.get(column), str) for column, role in zip(columns, roles, strict=True)
        ):
            raise ValueError(f"{where}: no name; the first line must name the columns: name,r,g,b")
        for column, role in zip(columns, roles, strict=True):
            if role == "id" and not isinstance(item.get(column), int):
                raise ValueError(
                    f"{where}: {item.get(column, '')!r} in the column {column!r} is no whole number; give all classes "
                    "ids, or leave that column out"
                )
        entries.append(_from_object(item, where))
    return entries


# -- JSON and YAML --------------------------------------------------------------------------------------------------


def _json(text: str, file: Path) -> Any:
    return json.loads(text, object_pairs_hook=lambda pairs: _distinct(pairs, file), parse_int=lambda n: _int(n, file))


def _int(digits: str, file: Path) -> int:
    if len(digits) > 20:
        raise ValueError(f"{file}: {shown(digits)} is no id and no colour")
    return int(digits)


def _distinct(pairs: list[tuple[Any, Any]], file: Path) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"{file}: {shown(key)} occurs twice; every id and every name needs its own")
        seen[key] = value
    return seen


def _yaml(text: str, file: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ValueError(f"{file}: YAML files need PyYAML: pip install pyyaml, or write the list as JSON") from error

    class Loader(yaml.SafeLoader):
        """Refuses keys that occur twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            pairs = [(self.construct_object(k, True), self.construct_object(v, True)) for k, v in node.value]
            return _distinct(pairs, file)

    Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, True))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML ({' '.join(str(error).split())})") from error


_EXPECTED = (
    'expected a list of names, or of {"name": ..., "color": [r, g, b]}; an object from ids to names, names to ids or '
    "names to colours; or one of these under names, classes, labels, categories, id2label or label2id"
)


def from_structure(content: Any, where: str) -> list[ClassEntry]:
    """The entries of a list or object as JSON and YAML give them.

    Raises:
        ValueError: it has none of the known forms.
    """
    if isinstance(content, dict):
        for key in ("names", "categories", "classes", "labels", "id2label", "label2id"):
            if isinstance(inner := content.get(key), (list, dict)) and inner:
                entries = from_structure(inner, where)
                palette = content.get("palette")
                if isinstance(palette, list) and len(palette) == len(entries) and not any(e.colour for e in entries):
                    entries = [
                        entry._replace(colour=read_colour(colour, f"{where}, {entry.name!r}"))
                        for entry, colour in zip(entries, palette, strict=True)
                    ]
                count = content.get("nc", content.get("num_classes"))
                if isinstance(count, int) and count != len(entries):
                    raise ValueError(f"{where}: nc is {count}, but there are {len(entries)} names; mend one of them")
                return entries
        return [_from_pair(key, value, where) for key, value in content.items()]
    if not isinstance(content, list):
        raise ValueError(f"{where}: {_EXPECTED}")
    return [
        ClassEntry(item.strip())
        if isinstance(item, str) and item.strip()
        else _from_object(item, f"{where}, class {number}")
        for number, item in enumerate(content)
    ]


def _from_pair(key: Any, value: Any, where: str) -> ClassEntry:
    """An entry of an object: from ids to names or objects, from names to ids, colours or objects."""
    number = int(key) if re.fullmatch(r"-?\d+", str(key)) and not isinstance(key, bool) else None
    if number is not None and isinstance(value, str) and not is_hex(value):
        return ClassEntry(value.strip(), value=number)
    if number is not None and isinstance(value, dict):
        entry = _from_object(value, f"{where}, {key!r}")
        if entry.value not in (None, number):
            raise ValueError(f"{where}: {entry.name!r} has the ids {number} and {entry.value}; keep one")
        return entry._replace(value=number)
    if not isinstance(key, str) or not key.strip():
        raise ValueError(f"{where}: {shown(key)} is no name; put names in quotes")
    if isinstance(value, bool):
        raise ValueError(f"{where}: {shown(value)} of {shown(key)} is neither an id nor a colour")
    if isinstance(value, int):
        return ClassEntry(key.strip(), value=value)
    if isinstance(value, dict):
        return _from_object({"name": key, **value}, f"{where}, {key!r}")
    return ClassEntry(key.strip(), read_colour(value, f"{where}, {key!r}"))


def _from_object(item: Any, where: str) -> ClassEntry:
    """An entry from an object or a row: keys that are columns of ``_WORDS``."""
    plain = {_plain(key): value for key, value in item.items()} if isinstance(item, dict) else {}
    texts = [key for key in _NAME_ORDER if isinstance(plain.get(key), str) and plain[key].strip()]
    if not texts:
        raise ValueError(
            f'{where}: {shown(item)} has no name; expected "road", or {{"name": "road", "color": [r, g, b]}}'
        )

    def integer(roles: tuple[str, ...]) -> int | None:
        for key, value in plain.items():
            if _column(key) in roles and isinstance(value, int) and not isinstance(value, bool):
                return value
        return None

    value, train = integer(("id",)), integer(("train",))
    if value is None:
        value = integer(("name",))  # "class" or "label" as a number
    for key, content in plain.items():
        if value is None and _column(key) == "id" and content is not None:
            raise ValueError(f"{where}: {key} is {shown(content)}; an id is a whole number")
    ignored = plain.get("evaluate") is False or plain.get("ignoreineval") is True or train in (-1, 255)
    if value is None:
        value = train
    elif train is not None and train != value and not ignored:
        raise ValueError(
            f"{where}: {plain[texts[0]]!r} has the id {value} and the trainId {train}, and masks hold one of them; "
            "leave the other out of the list"
        )
    colour = next((content for key, content in plain.items() if _ROLES.get(key) == "colour"), None)
    channels: list[Any] = [
        next((content for key, content in plain.items() if _ROLES.get(key) == role), None) for role in "rgb"
    ]
    if colour is None and any(channel is not None for channel in channels):
        colour = channels
    return ClassEntry(
        plain[texts[0]].strip(), None if colour in (None, "") else read_colour(colour, where), value, ignored
    )
