"""Class lists with a class a line: names, with ids and colours in the orders that tools write."""

from __future__ import annotations

import re
from typing import NamedTuple

from .class_entry import ClassEntry, Colour, read_colour
from .text_files import Line, unquoted

# Only where no blank is before it, and with one way to match blanks: the time shall not grow with their square.
_BREAK = r"(?<!\s)(?:\s+->?\s+|\s*=>\s*|[.)]\s+|\s*[:,;=|]\s*|\s+)"
_NUMBERS_BEFORE = re.compile(rf"(?:-?\d+{_BREAK})+(?=\S)")
_NUMBERS_AFTER = re.compile(rf"(?:{_BREAK}-?\d+)+$")
_HEX = re.compile(rf"{_BREAK}#([0-9a-fA-F]{{6}})$")
_QUOTED = re.compile(r"""(["'])(.*?)\1(?=$|[\s:,;=|])""")
_CVAT = re.compile(r"(?P<name>.+?):(?P<colour>\d+,\d+,\d+)?:[^:]*:[^:]*")  # label:color_rgb:parts:actions


class _Parts(NamedTuple):
    """A line: the numbers before the name, the name, the numbers after it, and a colour #rrggbb."""

    line: Line
    before: list[str]
    name: str
    after: list[str]
    hex: str | None
    # whether a separator other than a blank is between numbers and name, so that these are no part of it
    strict_before: bool
    strict_after: bool


def entries_of_lines(lines: list[Line]) -> list[ClassEntry]:
    """The entries of lines with a name each, and perhaps an id and a colour before or after it.

    A number beside the name is an id if every line has one, and, where only blanks are between, if numbers and names
    are distinct: "lane 1" and "lane 2" are names.

    Raises:
        ValueError: a line is not understood.
    """
    if len(lines) == 1 and len(re.split("[,;\t]", lines[0].text)) > 2 and not re.search(r"\d", lines[0].text):
        raise ValueError(f"{lines[0].where}: {lines[0].text!r} are several names; write one class a line")
    found = [_CVAT.fullmatch(line.text) for line in lines]
    if lines and all(found):
        return [
            ClassEntry(
                unquoted(match["name"]),
                read_colour(match["colour"].split(","), line.where) if match["colour"] else None,
            )
            for line, match in zip(lines, found, strict=True)
            if match is not None
        ]
    parts = [_parts(line) for line in lines]
    colours, parts = _colours(parts)
    for side, other in (("before", "after"), ("after", "before")):
        numbers = [getattr(part, side) for part in parts]
        some = [part for part, values in zip(parts, numbers, strict=True) if len(values) == 1]
        strict = any(getattr(part, f"strict_{side}") for part in some)
        values = [int(value) for value, *_ in numbers] if len(some) == len(parts) > (0 if strict else 1) else []
        names = [part.name for part in parts]
        # between blanks, numbers are ids if they and the names are distinct: not in "lane 1", "lane 2"
        if values and (strict or len(set(values)) == len(set(names)) == len(parts)):
            entries = []
            for part, colour, value in zip(parts, colours, values, strict=True):
                entries.append(ClassEntry(_with_numbers(part, other), colour, value))
            return entries
        if strict and some and len(some) < len(parts):
            bare = next(part for part in parts if len(getattr(part, side)) != 1)
            raise _unclear(bare, f"it has no id, but {some[0].line.text!r} has one; give all classes ids, or none")
    return [ClassEntry(_with_numbers(part, "both"), colour) for part, colour in zip(parts, colours, strict=True)]


def _parts(line: Line) -> _Parts:
    text = line.text
    colour = _HEX.search(text)
    if colour:
        text = text[: colour.start()]
    elif (match := _CVAT.fullmatch(text)) and match["colour"]:  # one of CVAT's lines among others
        text = f"{match['name']}:{match['colour']}"
    text = text.rstrip(":,;= \t")
    before = _NUMBERS_BEFORE.match(text)
    rest = text[before.end() :] if before else text
    quoted = _QUOTED.match(rest)
    after = _NUMBERS_AFTER.search(rest, quoted.end() if quoted else 1)
    name = quoted[2] if quoted else rest[: after.start()] if after else rest
    return _Parts(
        line,
        re.findall(r"-?\d+", before[0]) if before else [],
        name.strip(),
        re.findall(r"-?\d+", after[0]) if after else [],
        colour[1] if colour else None,
        before is not None and bool(re.split(r"\d", before[0])[-1].strip(" ")),
        after is not None and bool(re.split(r"-?\d", after[0])[0].strip(" ")),
    )


def _colours(parts: list[_Parts]) -> tuple[list[Colour | None], list[_Parts]]:
    """The colours of the lines, and what is left of these."""
    opaque = [part.after for part in parts if len(part.after) == 4]
    alpha = len(opaque) > 1 and all(numbers[3] == "255" for numbers in opaque)  # name r g b a
    colours: list[Colour | None] = []
    left = []
    for part in parts:
        before, after = part.before, part.after
        channels: list[str] | None = None
        if part.hex:
            channels = [str(int(part.hex[k : k + 2], 16)) for k in (0, 2, 4)]
        elif len(after) == 4 and alpha:
            channels, after = after[:3], []
        elif len(after) == 3 or (len(after) == 4 and not before):
            channels, after = after[-3:], after[:-3]
        elif len(before) in (3, 4) and not after:
            channels, before = before[-3:], before[:-3]
        if len(before) > 1 or len(after) > 2:
            raise _unclear(
                part, "write 'name', 'name #rrggbb' or 'name r g b', with an id before it if the masks have ids"
            )
        colours.append(None if channels is None else read_colour(channels, part.line.where))
        left.append(part._replace(before=before, after=after))
    return colours, left


def _with_numbers(part: _Parts, side: str) -> str:
    """The name together with the numbers beside it, which are a part of it."""
    before = part.before if side != "after" else []
    after = part.after if side != "before" else []
    if (before and part.strict_before) or (after and part.strict_after):
        raise _unclear(part, "keep the number that is the value in the masks, before the name in every line")
    return " ".join([*before, part.name, *after])


def _unclear(part: _Parts, advice: str) -> ValueError:
    return ValueError(f"{part.line.where}: {part.line.text!r} is not understood; {advice}")
