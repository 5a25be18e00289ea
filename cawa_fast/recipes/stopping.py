"""Ctrl-C, or a scheduler's SIGTERM, acts between two batches and not in the middle of a write."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class SafePoints:
    """While entered, SIGINT and SIGTERM wait for :meth:`reached`, where the handlers found on entry are called.

    A ``KeyboardInterrupt`` in the middle of any line breaks code that is not written for it: ``torch.save`` answers
    with an error of its own, and the queue of TensorBoard's writer, interrupted between two lines of ``put``, is never
    joined. The second signal is not kept back: it is for a batch that never ends.

    A signal that is ignored, or left to the system, stays so; so do all outside the main thread, which may set no
    handlers.

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

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._waiting: int | None = None

    def __enter__(self) -> SafePoints:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._keep)
        return self

    def _keep(self, number: int, frame: FrameType | None) -> None:
        if self._waiting is None:
            self._waiting = number
        else:
            self._waiting = None
            self._handlers[number](number, frame)

    def reached(self) -> None:
        """Nothing is half done here: a signal that waits may act."""
        number, self._waiting = self._waiting, None
        if number is not None:
            self._handlers[number](number, None)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None:
            self.reached()
