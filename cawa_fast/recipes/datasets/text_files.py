"""Text files that people write: class lists and lists of files, in the encodings and quotes that editors produce."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import reprlib
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# UTF-32 before UTF-16, whose mark is the beginning of UTF-32's
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WORD = re.compile(r"""(?:"([^"]*)"|'([^']*)')(?=[\s,;]|$)|(\S+)""")


class Line(NamedTuple):
    """A line of a text file: its place for messages, such as "train.txt, line 3", and its text."""

    where: str
    text: str


_LARGEST = 1 << 28  # bytes; a line for each of a million images has a third


def need_regular(file: str | Path) -> None:
    """Raise a ``ValueError`` if this is a pipe or a device: reading it might never end. Folders and links may pass."""
    with contextlib.suppress(OSError):  # which reading the file raises again, with a message that names the cause
        mode = os.stat(file).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ValueError(f"{file} is a pipe or a device, not a file; put a regular file there")


def read_text(file: Path) -> str:
    """The text of a file in UTF-8 or UTF-16, with or without a byte order mark; UTF-32 needs the mark.

    Raises:
        ValueError: it is in another encoding; the line is named. Or it is no regular file, or has over 256 MiB.
    """
    need_regular(file)
    if (size := file.stat().st_size) > _LARGEST:
        raise ValueError(f"{file} has {size} bytes, too many for a text file that people write; is it the right one?")
    data = file.read_bytes()
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    if not mark and b"\0" in data[:2]:  # UTF-16 without a mark: one byte of an ASCII letter is 0
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        number = data[len(mark) :][: error.start].decode(encoding, "replace").count("\n") + 1
        raise ValueError(f"{file} is not a text file in UTF-8 (line {number}: {error}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{file} is not a text file (it has zero bytes); write the list as text in UTF-8")
    return text


def read_lines(file: Path) -> list[Line]:
    """The lines of a text file without surrounding blanks; without empty lines and comments, which begin with #."""
    lines = re.split(r"\r\n|\r|\n", read_text(file))
    return [
        Line(f"{file}, line {number}", text.strip(" \t"))
        for number, text in enumerate(lines, start=1)
        if text.strip() and not text.lstrip().startswith("#")
    ]


def split_words(text: str) -> list[str]:
    """The words of a line: separated by tabs if it has any, else by blanks outside quotes.

    >>> split_words('"my images/a.png" masks/a.png'), split_words("my images/a.png\\tmasks/a.png")
    (['my images/a.png', 'masks/a.png'], ['my images/a.png', 'masks/a.png'])
    """
    if "\t" in text:
        return [unquoted(part) for part in text.split("\t") if part.strip()]
    return [double or single or bare for double, single, bare in _WORD.findall(text) if double or single or bare]


def unquoted(text: str) -> str:
    """The text without surrounding blanks, and without quotes if it has them on both sides.

    >>> unquoted(" 'traffic light' "), unquoted("driver's seat")
    ('traffic light', "driver's seat")
    """
    text = text.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def shown(value: object) -> str:
    """The value as Python writes it, without its middle if it is long: it may be a list with millions of entries."""
    return _SHOWN.repr(value)


_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 120
_SHOWN.maxlevel = 2


def some(names: Sequence[str], limit: int = 12) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
