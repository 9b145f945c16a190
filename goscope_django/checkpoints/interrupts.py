"""SIGTERM while a task's block runs: the block is left, what was done is saved, then the process ends.

Rules of this file:

* The signal is handled in the main thread only, and only while the block runs. When the task is let go, the handler
  that was there before is put back and called. If there was none, the process ends by ``TaskInterrupted`` (a
  ``SystemExit``).
* Like Ctrl-C, the signal raises wherever the program is, so that a block that sleeps or computes is left at once. While
  the task saves or ends, the signal waits until that is done.
* In an event loop nothing is raised: the asyncio task that entered the block is cancelled.
* If the process ignores SIGTERM, it stays ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class TaskInterrupted(SystemExit):
    """Raised in a block on SIGTERM; ends the process with status 143 unless somebody catches it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Interrupts:
    """SIGTERM for one block."""

    def __init__(self) -> None:
        self.received = False
        self._deferred = 0
        self._installed = False
        self._previous: Any = None
        self._cancel: Callable[[], object] | None = None

    def install(self) -> None:
        """Handle the signal from here on, if this is the main thread and the process does not ignore the signal."""
        if threading.current_thread() is not threading.main_thread():
            return
        previous = signal.getsignal(signal.SIGTERM)
        if previous is None or previous == signal.SIG_IGN:  # None: not set from Python, so it can't be put back
            return
        self._cancel = _canceller()
        self._previous = previous
        with contextlib.suppress(ValueError):  # a subinterpreter
            signal.signal(signal.SIGTERM, self._handle)
            self._installed = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._installed:  # a handler that was set later still calls this one
            if callable(self._previous):
                self._previous(number, frame)
            return
        if self.received:
            return
        self.received = True
        if self._cancel is not None:
            self._cancel()
        elif not self._deferred:
            raise TaskInterrupted

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal that comes in the block is raised at its end. Other threads than the main one get no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = self.received
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
        if self.received and not before and not self._deferred and self._cancel is None:
            raise TaskInterrupted

    def leave(self) -> None:
        """From here on a signal is noted and raises nothing. To be called before the task's end is written."""
        self._deferred += 1

    def restore(self, error: BaseException | None) -> None:
        """Put the handler from before back; ``error`` is the error that the block is left with.

        If the signal came, that handler is called and decides what happens. If there was none, ``TaskInterrupted`` is
        raised (or goes on), so that the process ends.
        """
        if self._installed:
            self._installed = False
            if signal.getsignal(signal.SIGTERM) == self._handle:
                signal.signal(signal.SIGTERM, self._previous)
        if not self.received:
            return
        if callable(self._previous):
            self._previous(signal.SIGTERM, None)
        elif not isinstance(error, TaskInterrupted):
            raise TaskInterrupted from error


def _canceller() -> Callable[[], object] | None:
    try:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
    except RuntimeError:
        return None
    return None if task is None else lambda: loop.call_soon_threadsafe(task.cancel)
