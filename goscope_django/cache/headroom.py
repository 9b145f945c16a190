"""How many entries ``MAX_ENTRIES`` still allows."""

from __future__ import annotations

import threading
import time
from typing import Final

from goscope_django.core.flow import Flow
from goscope_django.core.forking import at_fork
from goscope_django.mongodb.cache.flows import CacheFlows
from goscope_django.mongodb.document.clock import Clock

PATIENCE: Final = 60.0
"""Seconds after which somebody else makes room, should whoever began never end."""


class Headroom:
    """How many entries this process may still add before it counts again. One for each place, shared by all threads.

    The cache is counted when the room is used up, not at every write, and by one caller: what others store meanwhile
    counts the next time. Other processes' writes are not seen until then, so a large cache may overshoot
    ``MAX_ENTRIES`` for a while; half of what is free is taken at a time to keep that small.
    """

    def __init__(self, limit: int, frequency: int) -> None:
        self.limit = limit
        self.frequency = frequency
        self.left = 0
        self.begin_anew()

    def begin_anew(self) -> None:
        """In a forked child: another thread may have held the lock, or been about to make room."""
        self._lock = threading.Lock()
        self._busy_until = 0.0

    def take(self, entries: int) -> bool:
        """Use up room for ``entries``; ``False`` if the caller must ``cull`` first."""
        with self._lock:
            if self.left >= entries:
                self.left -= entries
                return True
            if (now := time.monotonic()) < self._busy_until:
                return True  # each would remove a share of its own, and all together everything
            self._busy_until = now + PATIENCE
            return False

    def cull(self, clock: Clock, flows: CacheFlows, prefix: str) -> Flow[None]:
        """Count, and where the limit is reached remove one in ``frequency`` (all, if that is 0), the soonest to
        expire."""
        left = 0
        try:
            number = yield from flows.count(clock, prefix)
            if number >= self.limit:
                surplus = number - self.limit
                share = number if self.frequency == 0 else surplus + max(1, (number - surplus) // self.frequency)
                number -= yield from flows.cull(clock, prefix, share)
            free = max(1, self.limit - number)
            left = max(0, (free if self.limit < 1_000 else max(1, free // 2)) - 1)
        finally:
            with self._lock:
                self.left, self._busy_until = left, 0.0


_rooms: dict[tuple[str, int, int], Headroom] = {}


def headroom(place: str, limit: int, frequency: int) -> Headroom:
    """This process's room in ``place``."""
    return _rooms.setdefault((place, limit, frequency), Headroom(limit, frequency))


def _after_fork() -> None:
    for one in _rooms.values():
        one.begin_anew()


at_fork(child=_after_fork)
