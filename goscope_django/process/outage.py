"""Remembers, for one process, that MongoDB can't be reached. Features that may work without it ask here first.

Rules of this file:

* During an outage not every call tries the server and waits for a timeout: one caller tries now and then, the more
  seldom the longer a try takes. Where the driver knows at once that there is no server, every few seconds.
* The outage is told once when it begins and once when it ends.

Users of django-redis have asked for this since 2018.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from goscope_django import runtime
from goscope_django.core.forking import at_fork
from goscope_django.exceptions import StoreError

FIRST: Final = 1.0
OFTEN: Final = 4.0
"""Seconds between two tries that cost nothing, at most."""
SHARE: Final = 4
"""A pause is no longer than so many times as long as the try took, if that is more."""
LONGEST: Final = 30.0
_outages: dict[str, Outage] = {}


class Outage:
    """Whether one feature can reach MongoDB. All threads of a process share it."""

    __slots__ = ("_lock", "_pause", "_tried", "_trying", "_until", "away", "feature", "ignored")

    def __init__(self, feature: str) -> None:
        self.feature = feature
        self.away = False
        self.ignored = 0
        """Calls that worked without the server, since the process began."""
        self._until = 0.0
        self._pause = FIRST
        self._tried = 0.0
        self._trying = False
        self._lock = threading.Lock()

    def skips(self) -> bool:
        """Whether not to try the server now. When a pause ends one caller tries; the others don't wait for it."""
        if not self.away:
            return False
        with self._lock:
            if self.away and (now := time.monotonic()) < self._until:
                self.ignored += 1
                return True
            if self.away:
                self._trying, self._tried, self._until = True, now, now + self._pause
        return False

    def failed(self, error: StoreError) -> None:
        """The server was tried and could not be reached."""
        with self._lock:
            self.ignored += 1
            began, self.away = not self.away, True
            if began or self._trying:  # calls that began before the outage say nothing new
                now = time.monotonic()
                longest = FIRST if began else max(OFTEN, (now - self._tried) * SHARE)
                self._pause = min(longest, LONGEST, self._pause * 2)
                self._until = now + self._pause
                self._trying = False
        logging.getLogger(f"goscope.{self.feature}").debug("without the server: %s", error)
        if began:
            runtime.emit("degraded", feature=self.feature, error=str(error))

    def worked(self) -> None:
        """The server answered."""
        if not self.away:
            return
        with self._lock:
            ended, self.away, self._trying = self.away, False, False
        if ended:
            runtime.emit("recovered", feature=self.feature)

    def forget_lock(self) -> None:
        """In a forked child: another thread may have held it."""
        self._lock = threading.Lock()


def outage(feature: str, place: str = "") -> Outage:
    """This process's state for ``feature`` at ``place`` (a URL; empty for the only one that the feature has)."""
    key = f"{feature} {place}" if place else feature
    found = _outages.get(key)
    return found if found is not None else _outages.setdefault(key, Outage(feature))


def _after_fork() -> None:
    for one in _outages.values():
        one.forget_lock()


at_fork(child=_after_fork)
