"""What a feature does while the server is away and it may do without.

Rule of this file: it remembers, for one process, that the server is away, so that not every call waits for a server
that is not there (a request that users of django-redis have made since 2018). Said once when it begins, once when it
ends.
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
LONGEST: Final = 30.0
_outages: dict[str, Outage] = {}


class Outage:
    """The state of one feature. All threads of a process share it."""

    __slots__ = ("_lock", "_pause", "_trying", "_until", "away", "feature", "ignored")

    def __init__(self, feature: str) -> None:
        self.feature = feature
        self.away = False
        self.ignored = 0
        """Calls that did without the server, since the process began."""
        self._until = 0.0
        self._pause = FIRST
        self._trying = False
        self._lock = threading.Lock()

    def skips(self) -> bool:
        """Whether the server should not even be tried now. When a pause ends one caller tries; nobody waits with it."""
        if not self.away:
            return False
        with self._lock:
            if self.away and (now := time.monotonic()) < self._until:
                self.ignored += 1
                return True
            if self.away:
                self._trying, self._until = True, now + self._pause
        return False

    def failed(self, error: StoreError) -> None:
        """The server was tried in vain."""
        with self._lock:
            self.ignored += 1
            began, self.away = not self.away, True
            if began or self._trying:  # others began while it was still there, and say nothing new
                self._pause = FIRST if began else min(LONGEST, self._pause * 2)
                self._until = time.monotonic() + self._pause
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
