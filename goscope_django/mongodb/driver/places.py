"""Places in the pool of connections: who uses one of this process's connections, and who waits for one.

The driver counts waiting for a connection of one's own pool into a command's time limit, as if the server had taken
that time. So callers wait here, before the limit begins. Rules of this file:

* There are as many places as connections (``maxPoolSize``), but one is kept free where there are several. A place is
  had for one query, its retries included.
* A caller waits for as long as others make progress. If nobody has an answer for ``limit`` seconds the server hangs,
  and waiting is an error that names ``maxPoolSize``. ``waitQueueTimeoutMS``, ``timeoutMS`` and ``limits.within`` bound
  it as they bound the driver.
* Renewals of leases don't wait here and use the connection that is kept free: whoever holds a lock must not lose it for
  want of one.
* A free place costs two list operations and no lock.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import Any, Final
from weakref import WeakSet

from goscope_django.core.forking import at_fork
from goscope_django.mongodb.document.failures import NoPlace
from goscope_django.mongodb.driver import limits

Place = bool
"""``True`` for one that has to be given back."""


class _Places:
    """What the places of threads and of tasks have in common."""

    def __init__(self, client: Any, limit: float) -> None:
        options = client.options
        most = options.pool_options.max_pool_size
        self.most: int | None = max(1, int(most) - 1) if most and most < 10**6 else None
        self.answers = 0
        """Queries that were carried out. While it grows there is progress; it need not be exact."""
        self._size = most
        self._limit = limit
        bounds = [one for one in (options.pool_options.wait_queue_timeout, options.timeout) if one]
        self._longest: float | None = min(bounds, default=None)

    def _end(self) -> float:
        """When (monotonic) this caller's wait ends in any case."""
        now = time.monotonic()
        longest = float("inf") if self._longest is None else now + self._longest
        return min(longest, limits.end())

    def _exhausted(self, since: float) -> NoPlace:
        return NoPlace(
            f"the connections of this process's pool (maxPoolSize={self._size}) were all in use for "
            f"{time.monotonic() - since:.1f} s"
        )


class ThreadPlaces(_Places):
    """The places of one client in a process."""

    def __init__(self, client: Any, limit: float) -> None:
        super().__init__(client, limit)
        self._waiting = 0
        self.begin_anew()
        _all.add(self)

    def begin_anew(self) -> None:
        """In a forked child: those who had a place are threads of the parent."""
        self._free = deque([True] * (self.most or 0))
        self._changed = threading.Condition()
        self._waiting = 0

    def take(self) -> Place:
        """Get a place, waiting if there is none. Raises ``NoPlace``."""
        if self.most is None:
            return False
        try:
            return self._free.pop()
        except IndexError:
            return False if limits.urgent() else self._wait()

    def _wait(self) -> Place:
        since, end = time.monotonic(), self._end()
        with self._changed:
            self._waiting += 1
            try:
                answers, until = self.answers, since + self._limit
                while True:
                    try:
                        return self._free.pop()
                    except IndexError:
                        now = time.monotonic()
                    if self.answers != answers:  # others came first, so there is progress
                        answers, until = self.answers, now + self._limit
                    if now >= min(until, end):
                        raise self._exhausted(since)
                    self._changed.wait(min(until, end) - now)
            finally:
                self._waiting -= 1

    def give(self, place: Place) -> None:
        """Give a place back."""
        if place:
            self._free.append(place)
            # Whoever waits counts before it looks: so it finds this place, or it is seen here.
            if self._waiting:
                with self._changed:
                    self._changed.notify()


class TaskPlaces(_Places):
    """The places of one asynchronous client, all on one event loop: first come, first served."""

    def __init__(self, client: Any, limit: float) -> None:
        super().__init__(client, limit)
        self._free = self.most or 0
        self._line: deque[asyncio.Future[None]] = deque()

    def free(self) -> Place | None:
        """A place if one is free or none is needed, else ``None``."""
        if self.most is None:
            return False
        if self._free:
            self._free -= 1
            return True
        return False if limits.urgent() else None

    async def wait(self) -> Place:
        """Wait for a place. Raises ``NoPlace``."""
        since, end = time.monotonic(), self._end()
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(mine)
        try:
            while True:
                answers, now = self.answers, time.monotonic()
                await asyncio.wait([mine], timeout=min(self._limit, max(0.0, end - now)))
                if mine.done():
                    return True
                if self.answers == answers or time.monotonic() >= end:
                    raise self._exhausted(since)
        except BaseException:
            if mine.done() and not mine.cancelled():
                self.give(True)  # it was handed over just now
            mine.cancel()
            raise

    def give(self, place: Place) -> None:
        """Give a place back, or hand it to the first in line."""
        if not place:
            return
        while self._line:
            first = self._line.popleft()
            if not first.done():
                first.set_result(None)
                return
        self._free += 1


_all: Final[WeakSet[ThreadPlaces]] = WeakSet()


def _after_fork() -> None:
    for one in _all:
        one.begin_anew()


at_fork(child=_after_fork)
