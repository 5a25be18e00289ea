"""Ctrl-C and SIGTERM take effect between two batches, not in the middle of a write."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class SafePoints:
    """Inside its block, SIGINT and SIGTERM are delayed until :meth:`reached`, which calls the previous handlers.

    A ``KeyboardInterrupt`` can break code at any line: ``torch.save`` raises an error of its own, and TensorBoard's
    writer hangs when its queue is interrupted inside ``put``. Therefore the first signal is delayed. A second signal
    takes effect at once, so that a batch that hangs can be stopped. A signal still delayed at the end of the block
    takes effect there, even if an exception ends the block: a signal to all processes may end DataLoader workers, which
    raises an exception in the main process.

    Signals that are ignored or have the system's default action keep it. Outside the main thread, where Python allows
    no handlers, and in processes forked inside the block, nothing is delayed.

    Args:
        quiet: print nothing. Otherwise the first signal prints a line on standard error if that is a terminal.

    Raises:
        RuntimeError: the block is entered while it is active.

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
            raise RuntimeError("these SafePoints are active already; is fit() running already?")
        self._handlers, self._process = {}, os.getpid()
        try:
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGINT, signal.SIGTERM):
                    handler = signal.getsignal(number)
                    if callable(handler):
                        self._handlers[number] = handler
                        signal.signal(number, self._keep)
        except BaseException:  # a signal arrived while the handlers were set
            self._restore()
            raise
        self._entered = self._keeping = True
        return self

    def _keep(self, number: int, frame: FrameType | None) -> None:
        if not self._keeping or os.getpid() != self._process:
            self._waiting = None  # this signal takes effect now, in place of the delayed one too
            self._handlers[number](number, frame)
            return
        self._keeping, self._waiting = False, number
        if not self._quiet and os.isatty(2):  # a signal could interrupt print()
            os.write(2, b"\nStopping after this batch; Ctrl-C again stops at once.\n")

    def reached(self) -> None:
        """Let a delayed signal take effect. Call it where stopping leaves nothing half done."""
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
        except BaseException:  # a signal arrived while the handlers were restored
            self._restore()
            raise
        if kind is None or issubclass(kind, Exception):
            self.reached()
        self._waiting = None


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Inside the block, SIGTERM raises ``KeyboardInterrupt`` as Ctrl-C does. Schedulers stop jobs by SIGTERM.

    Only for the main thread.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
