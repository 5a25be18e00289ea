"""Ctrl-C, or a scheduler's SIGTERM, acts between two batches and not in the middle of a write."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class SafePoints:
    """While entered, SIGINT and SIGTERM wait for :meth:`reached`, where the handlers found on entry are called.

    A ``KeyboardInterrupt`` in the middle of any line breaks code that is not written for it: ``torch.save`` answers
    with an error of its own, and the queue of TensorBoard's writer, interrupted between two lines of ``put``, is never
    joined. Only the first signal is kept back: the next is for a batch that never ends, and acts at once. One that is
    still waiting when the block is left acts there, also where an exception leaves it: DataLoader's workers, which a
    signal to all processes reaches too, end with one.

    A signal that is ignored, or left to the system, stays so; so do all outside the main thread, which may set no
    handlers, and in processes forked meanwhile.

    Args:
        quiet: say nothing on a terminal. Otherwise the first signal is answered with a line on standard error.

    Raises:
        RuntimeError: entered while it is entered.

    Example:
        >>> with SafePoints() as safe:
        ...     signal.raise_signal(signal.SIGINT)
        ...     print("this is written")
        ...     try:
        ...         safe.reached()
        ...     except KeyboardInterrupt:
        ...         print("here it ends")
        this is written
        here it ends
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._handlers: dict[int, Any] = {}
        self._waiting: int | None = None
        self._entered = self._keeping = False

    def __enter__(self) -> SafePoints:
        if self._entered:
            raise RuntimeError("these safe points are in use; is fit() running already?")
        self._handlers, self._process = {}, os.getpid()
        try:
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGINT, signal.SIGTERM):
                    handler = signal.getsignal(number)
                    if callable(handler):
                        self._handlers[number] = handler
                        signal.signal(number, self._keep)
        except BaseException:  # a signal between the two
            self._restore()
            raise
        self._entered = self._keeping = True
        return self

    def _keep(self, number: int, frame: FrameType | None) -> None:
        if not self._keeping or os.getpid() != self._process:
            self._waiting = None  # it acts now, for both
            self._handlers[number](number, frame)
            return
        self._keeping, self._waiting = False, number
        if not self._quiet and os.isatty(2):  # (print could be interrupted in the middle of itself)
            os.write(2, b"\nStopping after this batch; Ctrl-C again stops at once.\n")

    def reached(self) -> None:
        """Nothing is half done here: a signal that waits may act."""
        number, self._waiting = self._waiting, None
        if number is not None:
            self._handlers[number](number, None)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._entered = self._keeping = False
        try:
            self._restore()
        except BaseException:  # a signal between the two
            self._restore()
            raise
        if kind is None or issubclass(kind, Exception):
            self.reached()
        self._waiting = None


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM, with which schedulers stop a job, raises ``KeyboardInterrupt`` as Ctrl-C does. For the main thread."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
