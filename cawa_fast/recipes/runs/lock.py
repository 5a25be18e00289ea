"""Locks of folders, so that two processes do not write one run, with the holder's name for the one that comes second.

A lock is an ``flock`` on a file, which the system releases when its process ends, also after SIGKILL: what such a
process leaves behind blocks nobody. Over NFS, ``flock`` works between machines if the server has locks. A file system
without any gives a warning in the log, and the run goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from ..files import cannot_write

try:
    import fcntl
except ImportError:  # not on POSIX: nothing is locked
    fcntl = None  # type: ignore[assignment]

_BEGINNING = b'{"pid": '  # of what this module writes into a lock file
_ROOM = 1000  # bytes, at most
_PATIENCE = 1.0  # seconds in which a process that has just taken the lock writes its name

_held: set[int] = set()


def _leave_to_the_parent() -> None:
    """A forked process shares the locks, and would keep them when its parent has been killed."""
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_leave_to_the_parent)


@contextlib.contextmanager
def locked(file: Path, what: str, advice: str, *, keep: bool = False) -> Iterator[None]:
    """Inside the block, no other process and no other thread can enter such a block with the same file.

    Args:
        file: the lock file; created if it is not there. It is opened without following links, and written only if it is
            empty or an earlier lock.
        what: what the other process does, for the error message: "another cawa-fast ablate is running in ...".
        advice: what to do about it.
        keep: leave the file there afterwards.

    Raises:
        ValueError: another process holds the lock, or the file is no lock file.
        OSError: the file cannot be created or opened.
    """
    if fcntl is None:
        yield
        return
    handle = _open(file)
    _held.add(handle)
    try:
        try:
            while not _take(handle, file, what, advice):
                _held.remove(handle)
                os.close(handle)
                handle = _open(file)
                _held.add(handle)
        except OSError as error:
            logging.getLogger(__name__).warning(
                "%s: this file system has no locks (%s), so that nothing notices a second process in the same folder. "
                "Start only one.",
                file.parent,
                error.strerror,
            )
        try:
            yield
        finally:
            if not keep and handle in _held:  # not in a forked process
                with contextlib.suppress(OSError):
                    file.unlink()  # before it is released: _take notices
    finally:
        if handle in _held:
            _held.remove(handle)
            os.close(handle)


def _open(file: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(file, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise ValueError(f"{file} is a link or no regular file, in the place of a lock file: remove it") from error
        raise cannot_write(file, error) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or not _is_ours(handle):
        os.close(handle)
        raise ValueError(f"{file} is not a lock file of cawa-fast, which would be written there: move it elsewhere")
    return handle


def _is_ours(handle: int) -> bool:
    content = os.pread(handle, _ROOM, 0)
    return not content or content.startswith(_BEGINNING)


def _take(handle: int, file: Path, what: str, advice: str) -> bool:
    """Lock the open file and write the name of this process. False if the name has meanwhile gone to another file."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{what}{_holder(handle)}; {advice}") from None
    try:
        same = os.path.samestat(os.fstat(handle), os.stat(file, follow_symlinks=False))
    except FileNotFoundError:
        same = False
    if same and _is_ours(handle):
        name = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(handle, 0)
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
            os.pwrite(handle, json.dumps(name).encode() + b"\n", 0)
    return same


def _holder(handle: int) -> str:
    """The process that holds the lock, in words; "" if it is unknown."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            name = json.loads(os.pread(handle, _ROOM, 0))
            pid, host, since = int(name["pid"]), str(name["host"]), str(name["since"])
            if host != socket.gethostname() or _runs(pid):
                return f": process {pid} on {host}, since {since}"
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        if time.monotonic() > end:
            return ""
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True
