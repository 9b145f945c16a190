"""How many entries ``MAX_ENTRIES`` still allows, as far as this process knows.

Rules of this file:

* The cache is counted when the known room is used up, not at every write, and by one caller at a time. What others
  store meanwhile is seen at the next count.
* Writes of other processes are not seen until then, so a large cache may exceed ``MAX_ENTRIES`` for a while. Half of
  what is free is taken at a time, to keep that small.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from goscope_django.core.flow import Flow
from goscope_django.core.forking import at_fork
from goscope_django.mongodb.cache.flows import CacheFlows
from goscope_django.mongodb.document.clock import Clock

PATIENCE: Final = 60.0
"""Seconds after which another caller makes room, in case the first one never finishes."""


class Headroom:
    """How many entries this process may add before it counts again. All threads share one for each place.

    ``limit`` is ``MAX_ENTRIES``, ``frequency`` is ``CULL_FREQUENCY``.
    """

    def __init__(self, limit: int, frequency: int) -> None:
        self.limit = limit
        self.frequency = frequency
        self.left = 0
        self.begin_anew()

    def begin_anew(self) -> None:
        """In a forked child: a thread of the parent may have held the lock, or been making room."""
        self._lock = threading.Lock()
        self._busy_until = 0.0

    def take(self, entries: int) -> bool:
        """Use up room for ``entries``. ``False`` if there is not enough: then the caller must ``cull``."""
        with self._lock:
            if self.left >= entries:
                self.left -= entries
                return True
            if (now := time.monotonic()) < self._busy_until:
                return True  # if each caller removed a share, they would together remove everything
            self._busy_until = now + PATIENCE
            return False

    def cull(self, clock: Clock, flows: CacheFlows, prefix: str) -> Flow[None]:
        """Count the entries under ``prefix``, and remove some if the limit is reached: those that expire soonest.

        One in ``frequency`` of them goes; all, if that is 0.
        """
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
    found = _rooms.get((place, limit, frequency))
    return found if found is not None else _rooms.setdefault((place, limit, frequency), Headroom(limit, frequency))


def _after_fork() -> None:
    for one in _rooms.values():
        one.begin_anew()


at_fork(child=_after_fork)
