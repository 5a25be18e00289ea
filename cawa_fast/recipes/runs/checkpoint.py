"""Checkpoint files: written with a checksum, checked when they are read, and never unpickled beyond plain values.

A checkpoint is an archive as ``torch.save`` writes it, which ``torch.load`` reads as any other. The comment at the end
of the archive is the SHA-256 checksum of all bytes before it, taken while the length of the comment was 0. Without it,
a changed bit may load as another network: PyTorch checks no sum, and neither do most file systems.

The sum of 1 GB takes about a second on a core with SHA instructions.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

_END = b"PK\x05\x06"  # begins the last part of an archive
_MARK = b"cawa_fast sha256 "
_COMMENT = len(_MARK) + 2 * hashlib.sha256().digest_size
_BLOCK = 1 << 20  # bytes read at a time


def write_checkpoint(content: dict[str, Any], file: BinaryIO) -> None:
    """Write a checkpoint and its checksum into a file that is open for writing and can seek."""
    summed = _Summed(file)
    torch.save(content, cast(BinaryIO, summed))
    file.seek(-2, os.SEEK_END)  # an archive ends with the length of its comment, 0 so far
    file.write(_COMMENT.to_bytes(2, "little") + _MARK + summed.sum.hexdigest().encode())


def read_checkpoint(file: Path, remedy: str) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Args:
        file: ``latest.pt``, ``previous.pt`` or ``best.pt``.
        remedy: what to do about a damaged file, for the error message.

    Raises:
        ValueError: the file is damaged, or no checkpoint.
        OSError: it cannot be read.
    """
    try:
        if reason := _damage(file):
            raise ValueError(reason)
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive or pickle may raise anything, also an OSError of a seek
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, pickle.UnpicklingError):  # whose message recommends to load it nevertheless
            reason = "it holds other objects than tensors and plain values"
        raise ValueError(f"{file} is damaged ({reason}); {remedy}") from error
    if not isinstance(checkpoint, dict) or "model" not in checkpoint:
        raise ValueError(f"{file} is damaged (it holds no checkpoint of `cawa-fast train`); {remedy}")
    return checkpoint


class _Summed:
    """A file for ``torch.save`` that computes the checksum of what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sum.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _damage(file: Path) -> str | None:
    """What is wrong with the bytes of a checkpoint, None if nothing is.

    Files without a checksum, of older versions or saved by ``torch.save``, have a CRC-32 of every tensor.
    """
    with open(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as opened:  # a pipe would wait
        status = os.fstat(opened.fileno())
        if not stat.S_ISREG(status.st_mode):
            return "it is no regular file"
        if status.st_size == 0:
            return "it is empty"
        opened.seek(max(status.st_size - _COMMENT - 2, 0))
        end = opened.read()
        if end.startswith(_COMMENT.to_bytes(2, "little") + _MARK):
            opened.seek(0)
            if _sum(opened, status.st_size - len(end)) == end[2 + len(_MARK) :]:
                return None
            return "its SHA-256 checksum does not fit its content: bytes were lost or have changed"
        return _damage_of_archive(opened, status.st_size)


def _sum(opened: io.BufferedReader, size: int) -> bytes:
    """The checksum of the first bytes of a file, followed by the length of an empty comment."""
    found = hashlib.sha256()
    while size > 0 and (block := opened.read(min(size, _BLOCK))):
        found.update(block)
        size -= len(block)
    found.update(b"\0\0")
    return found.hexdigest().encode()


def _damage_of_archive(opened: io.BufferedReader, size: int) -> str | None:
    opened.seek(max(size - 22, 0))
    end = opened.read()
    try:
        if not (end.startswith(_END) and end.endswith(b"\0\0")):
            raise zipfile.BadZipFile
        with zipfile.ZipFile(opened) as archive:
            members = archive.infolist()
            # PyTorch compresses nothing. A small file that unpacks to gigabytes is none of its own.
            if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
                return "its content is compressed, as PyTorch never writes it"
            wrong = archive.testzip()
            return None if wrong is None else f"the CRC-32 checksum of {wrong} does not fit its content"
    except Exception:  # of a damaged archive, zipfile may raise anything
        return "it is cut short or overwritten, or no checkpoint"
