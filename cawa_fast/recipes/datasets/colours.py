"""Colours from hexadecimal codes, and Pascal VOC's palette."""

from __future__ import annotations


def colours(codes: str) -> tuple[tuple[int, int, int], ...]:
    """RGB triples from hexadecimal codes separated by spaces."""
    return tuple((code >> 16, code >> 8 & 255, code & 255) for code in (int(word, 16) for word in codes.split()))


def voc_colour(index: int) -> tuple[int, int, int]:
    """Colour ``index`` (0..255) of Pascal VOC's palette.

    Bit 3k of the index is bit 7 - k of red, bit 3k + 1 of green, and bit 3k + 2 of blue.

    >>> voc_colour(15)
    (192, 128, 128)
    """
    red = green = blue = 0
    for k in range(8):
        red |= (index >> 3 * k & 1) << 7 - k
        green |= (index >> 3 * k + 1 & 1) << 7 - k
        blue |= (index >> 3 * k + 2 & 1) << 7 - k
    return red, green, blue
