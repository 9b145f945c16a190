"""SIGTERM for a block that has something to put in order first.

Rules of this file:

* Only in the main thread, and only while the block runs. What was installed before is put back and, once the block is
  in order, called; where that was the default, the process ends with ``TaskInterrupted`` (a ``SystemExit``).
* Like Ctrl-C, the signal raises where the program is, so that a block that sleeps or computes is left at once. While
  the block's own bookkeeping runs it waits for its end.
* In an event loop nothing is raised: the asyncio task that entered the block is cancelled.
* SIGTERM that the process ignores stays ignored.
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
    """SIGTERM of one block."""

    def __init__(self) -> None:
        self.received = False
        self._deferred = 0
        self._installed = False
        self._previous: Any = None
        self._cancel: Callable[[], object] | None = None

    def install(self) -> None:
        """Follow the signal from here on, if this is the main thread of a process that does not ignore it."""
        if threading.current_thread() is not threading.main_thread():
            return
        previous = signal.getsignal(signal.SIGTERM)
        if previous is None or previous == signal.SIG_IGN:  # None: not installed from Python, so it can't be put back
            return
        self._cancel = _canceller()
        self._previous = previous
        with contextlib.suppress(ValueError):  # a subinterpreter
            signal.signal(signal.SIGTERM, self._handle)
            self._installed = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._installed:  # somebody who was installed later still calls us
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
        """A signal in here waits until the end, and is raised then. Other threads know no signals."""
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
        """No more of it; a signal in here only counts as received. To be called before the block's last bookkeeping."""
        self._deferred += 1

    def restore(self, error: BaseException | None) -> None:
        """Put back what was there before; ``error`` is what the block is left with.

        If the signal came, the handler that was there before is called and decides; where there was none,
        ``TaskInterrupted`` goes on (or is raised), so that the process ends.
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
