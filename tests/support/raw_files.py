"""PNG and TIFF files written byte by byte, in forms that Pillow does not write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np


def png(codes: np.ndarray, bits: int, colour: int = 0, chunks: list[tuple[bytes, bytes]] | None = None) -> bytes:
    """A grey (colour 0) or palette (3) PNG with 1 to 16 bits a pixel, and chunks before the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b""
    for row in codes.tolist():
        packed = "".join(f"{value:0{bits}b}" for value in row)
        packed += "0" * (-len(packed) % 8)
        rows += b"\0" + bytes(int(packed[k : k + 8], 2) for k in range(0, len(packed), 8))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", codes.shape[1], codes.shape[0], bits, colour, 0, 0, 0))]
    if colour == 3:
        parts.append((b"PLTE", bytes(k * 16 % 256 for k in range(3 * (1 << bits)))))
    parts += [*(chunks or []), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def written(tmp_path: Path, content: bytes, name: str = "a.png") -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def tiff(codes: np.ndarray, kind: int = 1, *, bands: int = 1, photometric: int = 1, nodata: str = "") -> bytes:
    """A TIFF without compression, little-endian; ``kind`` is its SampleFormat."""
    data, bits = codes.tobytes(), codes.dtype.itemsize * 8
    text = nodata.encode() + b"\0"
    tags = [
        (256, 4, 1, codes.shape[1]), (257, 4, 1, codes.shape[0]), (258, 3, 1, bits), (259, 3, 1, 1),
        (262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, bands), (278, 4, 1, codes.shape[0]),
        (279, 4, 1, len(data)), (284, 3, 1, 1), (339, 3, 1, kind),
    ]  # fmt: skip
    if nodata:
        tags.append(
            (42113, 2, len(text), 8 + len(data) if len(text) > 4 else int.from_bytes(text.ljust(4, b"\0"), "little"))
        )
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0\0\0\0"
    place = 8 + len(data) + len(text)
    return b"II*\0" + struct.pack("<I", place) + data + text + directory
