"""Writing files so that a reader never sees a half-written one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_ADVICE = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space: the quota of this user is used up",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.ENOENT: "its folder is gone: do not move or delete it meanwhile",
    errno.EEXIST: "there is a file or a broken link of that name: choose another place",
    errno.ENOTDIR: "a part of its path is a file: choose another place",
    errno.EROFS: "that file system is read-only: choose another place",
    errno.EACCES: "allow this user to write there, or choose another place",
    errno.EPERM: "allow this user to write there, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under ``path`` complete, or not at all.

    The content goes to a temporary file in the same folder, is flushed to disk and then renamed to ``path``. If the
    block raises, the temporary file is removed and a file that ``path`` already named stays as it was.

    Raises:
        OSError: the file cannot be written, for example for lack of space, whatever a library in the block made of
            that error; the message names ``path``, the cause and the way out.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        # With the permissions that any new file gets; never an existing file, nor what a link names.
        handle = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_BINARY", 0), 0o666
        )
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, Exception) and (cause := _os_error(error)) is not None:
            raise cannot_write(path, cause) from error
        raise


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, if they are not there.

    Raises:
        OSError: that is not possible; the message names the folder, the cause and the way out.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _os_error(error: BaseException | None) -> OSError | None:
    """The error of the operating system behind an exception: ``torch.save`` raises one of its own on a full disk."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def cannot_write(path: Path, error: OSError) -> OSError:
    """The error for a file or folder that cannot be written: its path, the cause, and the way out."""
    reason = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0, "see to that, or choose another place")
    kept = ". The file that was there is unchanged" if path.is_file() else ""
    result = OSError(f"{path} cannot be written ({reason}); {advice}{kept}")
    result.errno = error.errno
    return result
