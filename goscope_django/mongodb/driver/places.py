"""Places in the pool of connections: who uses one of this process's connections, and who waits for one.

The driver counts waiting for a connection of one's own pool into a command's time limit, as if the server had taken
that time. So callers wait here, before the limit begins. Rules of this file:

* There are as many places as connections (``maxPoolSize``), but one is kept free where there are several. A place is
  had for one query, its retries included.
* The driver makes few connections at a time (``maxConnecting``), and keeps everybody else waiting meanwhile. So a place
  is for a connection that is known to exist, or for a new one; of the latter there is one less than the driver makes at
  a time. A new one that has answered is known to exist; one that may have broken is no longer.
* A command on a new connection may take long, as a write does while a majority is out of reach. It must not keep all
  others waiting. So where nobody has been given a place for a new connection for ``ESTABLISHED`` seconds, those that
  were to be made are made by now, and one more such place is *lent*. It is not given back as such.
* A caller waits for as long as others make progress. If nobody has an answer for ``limit`` seconds the server hangs,
  and waiting is an error that names ``maxPoolSize``. ``waitQueueTimeoutMS``, ``timeoutMS`` and ``limits.within`` bound
  it as they bound the driver.
* Renewals of leases don't wait here. There is always a connection for them, or they make one at once: whoever holds a
  lock must not lose it for want of one. With ``maxPoolSize=1`` there is none to keep, and with ``maxConnecting=1`` they
  may have to wait for one that is being made.
* A free place costs two list operations and no lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from typing import Any, Final
from weakref import WeakSet

from goscope_django.core.forking import at_fork
from goscope_django.mongodb.document.failures import NoPlace, breaks, breaks_all
from goscope_django.mongodb.driver import limits

Place = int
NONE: Final[Place] = 0
KNOWN: Final[Place] = 1
"""A connection for it exists."""
NEW: Final[Place] = 2
"""A connection for it may have to be made."""
_UNLIMITED: Final = 10**6
ESTABLISHED: Final = 1.0
"""Seconds in which a connection is made. Where it takes longer, a renewal may have to wait for one more of them."""


class _Places:
    """What the places of threads and of tasks have in common."""

    def __init__(self, client: Any, limit: float) -> None:
        options = client.options
        most = options.pool_options.max_pool_size
        self.most: int = max(1, int(min(most or _UNLIMITED, _UNLIMITED)) - 1)
        self.new: int = min(self.most, max(1, options.pool_options.max_connecting - 1))
        """So many places are for connections that may have to be made."""
        self.known = 0
        """So many places are for connections that exist."""
        self.lent = 0
        """So many places for new connections were lent besides."""
        self._new_at = float("-inf")  # monotonic: when somebody was last given a place for a new connection
        self.answers = 0
        """Queries that were carried out. While it grows there is progress; it need not be exact."""
        self._size = most
        self._limit = limit
        bounds = [one for one in (options.pool_options.wait_queue_timeout, options.timeout) if one]
        self._longest: float | None = min(bounds, default=None)

    @property
    def grows(self) -> bool:
        """Whether there may be more places than now."""
        return self.known + self.new + self.lent < self.most

    def _may_lend(self, now: float) -> bool:
        return self.grows and now - self._new_at >= ESTABLISHED

    def _lend(self, now: float) -> Place:
        self.lent += 1
        self._new_at = now
        return NEW

    def _until(self, now: float, end: float) -> float:
        """Seconds to wait: until ``end``, or until a place may be lent."""
        return (min(end, self._new_at + ESTABLISHED) if self.grows else end) - now

    def _end(self) -> float:
        """When (monotonic) this caller's wait ends in any case."""
        now = time.monotonic()
        longest = float("inf") if self._longest is None else now + self._longest
        return min(longest, limits.end())

    def _exhausted(self, since: float) -> NoPlace:
        return NoPlace(
            f"the connections of this process's pool (maxPoolSize={self._size}) were all in use or being made for "
            f"{time.monotonic() - since:.1f} s"
        )


class ThreadPlaces(_Places):
    """The places of one client in a process."""

    def __init__(self, client: Any, limit: float) -> None:
        super().__init__(client, limit)
        self.begin_anew()
        _all.add(self)

    def begin_anew(self) -> None:
        """In a forked child: those who had a place are threads of the parent."""
        # The last are taken first, so a new connection is made only where all that exist are in use.
        self._free = deque([NEW] * self.new)
        self._changed = threading.Condition()
        self._waiting = self.known = self.lent = 0

    def take(self) -> Place:
        """Get a place, waiting if there is none. Raises ``NoPlace``."""
        try:
            place = self._free.pop()
        except IndexError:
            return NONE if limits.urgent() else self._wait()
        if place == NEW:
            self._new_at = time.monotonic()
        return place

    def _wait(self) -> Place:
        since, end = time.monotonic(), self._end()
        with self._changed:
            self._waiting += 1
            try:
                answers, until = self.answers, since + self._limit
                while True:
                    now = time.monotonic()
                    with contextlib.suppress(IndexError):
                        if (place := self._free.pop()) == NEW:
                            self._new_at = now
                        return place
                    if self._may_lend(now):
                        return self._lend(now)
                    if self.answers != answers:  # others came first, so there is progress
                        answers, until = self.answers, now + self._limit
                    if now >= min(until, end):
                        raise self._exhausted(since)
                    self._changed.wait(self._until(now, min(until, end)))
            finally:
                self._waiting -= 1

    def give(self, place: Place) -> None:
        """Give a place back: the query was answered."""
        self.answers += 1
        if place == KNOWN:
            self._free.append(KNOWN)
        elif place == NEW:
            if not self._returned():
                self._free.appendleft(NEW)
            if self.grows:
                with self._changed:
                    if self.grows:
                        self.known += 1
                        self._free.append(KNOWN)
        if self._waiting:
            self._tell()

    def fail(self, place: Place, error: BaseException) -> None:
        """Give a place back: the query failed."""
        if place == NEW:
            if not self._returned():
                self._free.appendleft(NEW)
        elif place == KNOWN and not breaks(error):
            self._free.append(KNOWN)
        elif place == KNOWN:
            with self._changed:
                self.known -= 1
        if breaks_all(error):
            with self._changed, contextlib.suppress(IndexError):
                while (free := self._free.pop()) == KNOWN:  # others may take one meanwhile
                    self.known -= 1
                self._free.appendleft(free)
        self._tell()

    def _returned(self) -> bool:
        """Whether a place that is given back was lent: then there is one less."""
        if not self.lent:
            return False
        with self._changed:
            lent = self.lent > 0
            self.lent -= lent
            return lent

    def _tell(self) -> None:
        # Whoever waits counts before it looks: so it finds this place, or it is seen by who gives it back.
        with self._changed:
            self._changed.notify(2)


class TaskPlaces(_Places):
    """The places of one asynchronous client, all on one event loop: first come, first served."""

    def __init__(self, client: Any, limit: float) -> None:
        super().__init__(client, limit)
        self._free = deque([NEW] * self.new)
        self._line: deque[asyncio.Future[Place]] = deque()

    def free(self) -> Place | None:
        """A place if one is free, ``NONE`` if none is needed, else ``None``."""
        if not self._free:
            return NONE if limits.urgent() else None
        place = self._free.pop()
        if place == NEW:
            self._new_at = time.monotonic()
        return place

    async def wait(self) -> Place:
        """Wait for a place. Raises ``NoPlace``."""
        since, end = time.monotonic(), self._end()
        mine: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self._line.append(mine)
        try:
            answers, now, until = self.answers, since, since + self._limit
            while True:
                await asyncio.wait([mine], timeout=max(0.0, self._until(now, min(until, end))))
                if mine.done():
                    return mine.result()
                now = time.monotonic()
                if self._may_lend(now):
                    self._hand_on(self._lend(now))  # to whoever came first
                    continue
                if self.answers != answers:  # others came first, so there is progress
                    answers, until = self.answers, now + self._limit
                if now >= min(until, end):
                    raise self._exhausted(since)
        except BaseException:
            if mine.done() and not mine.cancelled():
                self._hand_on(mine.result())  # it was handed over just now
            mine.cancel()
            raise

    def give(self, place: Place) -> None:
        """Give a place back: the query was answered."""
        self.answers += 1
        lent = place == NEW and self._returned()
        if place == NEW and self.grows:
            self.known += 1
            self._hand_on(KNOWN)
        if place != NONE and not lent:
            self._hand_on(place)

    def _returned(self) -> bool:
        """Whether a place that is given back was lent: then there is one less."""
        lent = self.lent > 0
        self.lent -= lent
        return lent

    def fail(self, place: Place, error: BaseException) -> None:
        """Give a place back: the query failed."""
        if place == KNOWN and breaks(error):
            self.known -= 1
        elif place != NONE and not (place == NEW and self._returned()):
            self._hand_on(place)
        if breaks_all(error):
            while self._free and self._free[-1] == KNOWN:
                self._free.pop()
                self.known -= 1

    def _hand_on(self, place: Place) -> None:
        """Give a place to the first in line."""
        while self._line:
            first = self._line.popleft()
            if not first.done():
                if place == NEW:
                    self._new_at = time.monotonic()
                first.set_result(place)
                return
        if place == KNOWN:
            self._free.append(place)
        else:
            self._free.appendleft(place)


_all: Final[WeakSet[ThreadPlaces]] = WeakSet()


def _after_fork() -> None:
    for one in _all:
        one.begin_anew()


at_fork(child=_after_fork)
