"""Users' text, such as names of classes and folders, written so that every medium shows it as it is.

Rich markup, mathtext, HTML and Markdown would read parts of a name as commands, and a line break or an escape sequence
would break a table or take over the terminal.
"""

from __future__ import annotations

import re

# Control characters, line and paragraph separators, marks that reorder the text after them, and lone surrogates. Not
# the joiners in emoji and in Arabic words.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str) -> str:
    r"""The text with control characters as their escapes, so that it is one line of what can be seen.

    So are marks that reorder the text after them, and lone surrogates, which stand for the bytes of file names that are
    not UTF-8 and cannot be written.

    >>> print(one_line("a\nb"), one_line("\x1b[31mred"), one_line("[bold]שלום 🚗"))
    a\nb \x1b[31mred [bold]שלום 🚗
    """
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def readable(text: str) -> str:
    r"""Text of several lines, each as :func:`one_line` writes it.

    >>> print(readable("a\x07b\nc"))
    a\x07b
    c
    """
    return "\n".join(map(one_line, text.split("\n")))


def shorten(text: str, width: float, size: float = 12.0) -> str:
    """The text on one line, without its middle if it is longer than about ``width`` pixels at this size of the font.

    >>> shorten("building", 100), shorten("television receiver", 80)
    ('building', 'telev…eiver')
    """
    text = one_line(text)
    letters = max(int(width / (0.56 * size)), 3)
    if len(text) <= letters:
        return text
    return f"{text[: letters // 2]}…{text[len(text) - (letters - 1) // 2 :]}"


def markdown_text(text: str) -> str:
    r"""The text on one line for Markdown, also for the cell of a table.

    Underscores within words stay, since they mean nothing there.

    >>> print(markdown_text("a|b"), markdown_text("_x_ <i>"), markdown_text("traffic_sign"), markdown_text("$1 &amp;"))
    a\|b \_x\_ \<i\> traffic_sign \$1 \&amp;
    """
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])|[\\`*\[\]<>#|~&$]", r"\\\g<0>", one_line(text))


def markdown_code(text: str, *, cell: bool = False) -> str:
    """The text on one line as code in Markdown; ``cell``: in a table, where a bar needs a backslash even in code.

    >>> markdown_code("a b"), markdown_code("a`b"), markdown_code("a|b", cell=True)
    ('`a b`', '``a`b``', '`a\\\\|b`')
    """
    text = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    if cell:
        text = text.replace("|", "\\|")
    return f"{fence}{space}{text}{space}{fence}"
