"""A cache's own breaker: a server that does not answer in time is not asked for a while, so that nobody waits for it.

There is one for each store in a process, for all of its aliases. It sends nothing. Rules of this file:

* It opens after ``TIMEOUTS`` time-outs in a row. An answer, or a failure of another kind, begins the count anew.
* While it is open nobody asks the server, but for one caller whenever a pause ends. Its answer closes it; another
  time-out doubles the pause.
* It is told once that it opens, and once that it closes.

A server that can't be reached at all is another matter: see ``mongodb.driver.reach``.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from goscope_django import runtime
from goscope_django.core.forking import at_fork
from goscope_django.exceptions import PoolExhausted, StoreError, StoreUnavailable
from goscope_django.mongodb.document.failures import timed_out

TIMEOUTS: Final = 5
"""So many time-outs in a row open it."""
FIRST: Final = 2.0
LONGEST: Final = 30.0
"""Seconds of the first pause, and of the longest."""
FEATURE: Final = "cache.timeouts"


class Overload:
    """What a process knows of how a store answers its caches. Without ``counts`` it never opens."""

    def __init__(self, *, counts: bool = True) -> None:
        self._counts = counts
        self.timeouts = 0
        """Time-outs in a row."""
        self.open = False
        self._asks = False
        """Whether somebody asks the server to find out."""
        self._pause = FIRST
        self._until = 0.0
        self._lock = threading.Lock()

    def refusal(self) -> StoreUnavailable | None:
        """Why the server is not asked now; ``None`` if the caller is to ask it, and to tell what came of it."""
        with self._lock:
            left = self._until - time.monotonic()
            if not self.open or (left <= 0 and not self._asks):
                self._asks = self.open
                return None
        when = f"not asked again for {left:.1f} s" if left > 0 else "being asked by another caller just now"
        return StoreUnavailable(
            f"cache: the server has not answered in time, {self.timeouts} times in a row, and is {when}"
        )

    def failed(self, error: StoreError) -> None:
        """An operation failed."""
        if not self._counts:
            return
        if isinstance(error, PoolExhausted):  # which says nothing of the server
            self.unknown()
        elif not timed_out(error):
            self.answered()
        else:
            with self._lock:
                self.timeouts += 1
                opens = not self.open and self.timeouts >= TIMEOUTS
                if opens or self._asks:  # calls that began before it opened say nothing new
                    self._pause = FIRST if opens else min(LONGEST, self._pause * 2)
                    self._until = time.monotonic() + self._pause
                    self.open, self._asks = True, False
            if opens:
                runtime.emit("degraded", feature=FEATURE, error=str(error))

    def answered(self) -> None:
        """The server answered, or failed in another way than by silence."""
        with self._lock:
            closes, self.open, self.timeouts, self._asks = self.open, False, 0, False
        if closes:
            runtime.emit("recovered", feature=FEATURE)

    def unknown(self) -> None:
        """An operation ended otherwise: if it was to find out, another one shall."""
        self._asks = False

    def forget_lock(self) -> None:
        """In a forked child: another thread may have held it, or have been asking."""
        self._lock, self._asks = threading.Lock(), False


_overloads: dict[str, Overload] = {}


def overload(url: str) -> Overload:
    """This process's breaker for the caches at ``url``."""
    found = _overloads.get(url)
    return found if found is not None else _overloads.setdefault(url, Overload())


def _after_fork() -> None:
    for one in _overloads.values():
        one.forget_lock()


at_fork(child=_after_fork)
