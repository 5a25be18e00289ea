"""Colours as tables have them."""

from __future__ import annotations


def colours(codes: str) -> tuple[tuple[int, int, int], ...]:
    """RGB triples of hexadecimal codes."""
    return tuple((code >> 16, code >> 8 & 255, code & 255) for code in (int(word, 16) for word in codes.split()))


def voc_colour(index: int) -> tuple[int, int, int]:
    """Colour ``index`` (0..255) of Pascal VOC's palette: bit 3k of the index is a high bit of red, 3k + 1 of green, ...

    >>> voc_colour(15)
    (192, 128, 128)
    """
    red = green = blue = 0
    for k in range(8):
        red |= (index >> 3 * k & 1) << 7 - k
        green |= (index >> 3 * k + 1 & 1) << 7 - k
        blue |= (index >> 3 * k + 2 & 1) << 7 - k
    return red, green, blue
