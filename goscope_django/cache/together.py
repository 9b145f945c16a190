"""The callers of one process that want the same missing value. One of them computes it, the others wait for it.

Rules of this file:

* A key has at most one *leader* in a process. Whatever the leader's outcome is, all who wait get it at once: the value
  as a copy of their own, or the very exception that was raised.
* A leader that ends without an outcome (it was cancelled, or interrupted) lets the others begin anew.
* Nobody waits for their own thread: a sync call inside the event loop that computes the value would never end.
* Nothing here sends a command or decides what is computed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from goscope_django.core.forking import at_fork

Place = tuple[str, str]
"""Where the value is stored, and under which key."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a computation: ``error``, or what ``value()`` gives to each who waited."""

    value: Callable[[], Any]
    error: Exception | None = None

    def result(self) -> Any:
        """The value, or the error raised."""
        if self.error is not None:
            raise self.error
        return self.value()


@dataclass(eq=False, slots=True)
class Entry:
    """A value that is being computed in this process. The future has an ``Outcome``; ``None``: begin anew."""

    place: Place
    thread: int = field(default_factory=threading.get_ident)
    waiters: int = 0
    future: Future[Outcome | None] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # a waiter that is cancelled must not cancel it for the others

    def begin(self) -> None:
        """The leader is this thread, not the one that entered."""
        self.thread = threading.get_ident()

    def wait(self, deadline: float) -> Outcome | None:
        """Its outcome. Raises ``TimeoutError`` at ``deadline`` (monotonic), or at once on the leader's own thread."""
        left = deadline - time.monotonic()
        if self.thread == threading.get_ident() and not self.future.done():
            raise TimeoutError
        return self.future.result(min(max(0.0, left), threading.TIMEOUT_MAX))

    async def await_(self, deadline: float) -> Outcome | None:
        """Async version of ``wait``. Another task of the leader's thread may wait for it."""
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            return await asyncio.wrap_future(self.future)


class Together:
    """All values that are being computed in this process."""

    def __init__(self) -> None:
        self._lock: threading.Lock
        self._entries: dict[Place, Entry]
        self.clear()

    def clear(self) -> None:
        """Begin without callers, as a forked child does: none of its parent's threads run in it."""
        self._lock, self._entries = threading.Lock(), {}

    def enter(self, place: Place) -> tuple[Entry, bool]:
        """The entry of ``place``, and whether the caller leads it and has to end it."""
        with self._lock:
            found = self._entries.get(place)
            if found is None:
                found = self._entries[place] = Entry(place)
                return found, True
            found.waiters += 1
            return found, False

    def close(self, entry: Entry) -> int:
        """Callers that come from now on do not join ``entry``. How many wait for it."""
        with self._lock:
            if self._entries.get(entry.place) is entry:
                del self._entries[entry.place]
            return entry.waiters

    def end(self, entry: Entry, outcome: Outcome | None) -> None:
        """Give all who wait ``outcome``; with ``None`` they begin anew."""
        self.close(entry)
        if not entry.future.done():
            entry.future.set_result(outcome)


together: Final = Together()
at_fork(child=together.clear)
