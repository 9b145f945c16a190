"""Who computes a missing value: one process of the fleet, on a lease, while the others wait for it.

Rules of this file:

* Waiting saves work and nothing more. Whatever stands in the way of it (the server, the pool of connections, the time)
  means to compute without waiting, never an error.
* A process that waited for another one and finds no value when that one has ended computes at once, whether or not it
  gets the lease: so that the failures of a callable never add up along a line.
* One that died while it computed is replaced by one other process; the rest wait for that one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Final

from goscope_django import locks
from goscope_django.contracts import LockInfo
from goscope_django.core.flow import Flow, Pause, call, perform
from goscope_django.exceptions import LockNotAcquired, StoreError
from goscope_django.locks import HeldLock
from goscope_django.mongodb.cache.flows import MISSING

POLL: Final = 0.03
"""Seconds between two looks at whether another process has ended."""
SHARED_BY: Final = 4
"""So many values are waited for at the full rate; with more of them each is looked at less often."""
LONGEST: Final = 0.5

_waiting: list[str] = []
Read = Callable[[], Flow[Any]]


class Turn:
    """A process's part in computing one value. ``lease`` is held if it got it."""

    def __init__(self, name: str, deadline: float, read: Read) -> None:
        """``name`` is the lease's, ``deadline`` (monotonic) ends the wait, ``read`` reads the value (``MISSING``)."""
        self.lease: HeldLock | None = None
        self._name = name
        self._deadline = deadline
        self._read = read

    def take(self) -> Flow[Any]:
        """The value if another process has computed it meanwhile; ``MISSING`` if it is to be computed here."""
        try:
            yield from self._attempt()
            if self.lease is None:
                return (yield from self._wait())
            return (yield from self._read())
        except StoreError:
            return MISSING

    def give_back(self) -> Flow[None]:
        """Let go of the lease. While MongoDB can't be reached it ends by itself."""
        lease, self.lease = self.lease, None
        if lease is not None:
            try:
                yield from call(lease.release, lease.arelease)
            except StoreError:
                return

    def abandon(self) -> None:
        """Nobody runs this flow any more: the lease ends by itself."""
        self.lease = None

    def _attempt(self) -> Flow[None]:
        lock = locks.lock(self._name, blocking=False)
        try:
            self.lease = yield from call(lock.acquire, lock.aacquire)
        except LockNotAcquired:
            return

    def _holder(self) -> Flow[LockInfo | None]:
        store, name = locks.backend(), self._name
        found: LockInfo | None = yield from call(lambda: store.get(name), lambda: store.aget(name))
        return found

    def _wait(self) -> Flow[Any]:
        holder: LockInfo | None = None
        _waiting.append(self._name)
        try:
            while True:
                now = yield from self._holder()
                if now is None or (holder is not None and now.token != holder.token):
                    found = yield from self._read()
                    if found is not MISSING:
                        return found
                    if now is None:
                        yield from self._attempt()
                        now = None if self.lease is not None else (yield from self._holder())
                    if not _took_over(now, holder):
                        return MISSING
                holder, left = now, self._deadline - time.monotonic()
                if left <= 0:
                    return MISSING
                yield from perform(Pause(min(left, _interval())))
        finally:
            _waiting.remove(self._name)


def _took_over(now: LockInfo | None, before: LockInfo | None) -> bool:
    """Whether ``now`` holds the lease because that of ``before`` ran out: its process died, it did not fail."""
    if now is None or before is None or before.expires_at is None or now.created_at is None:
        return False
    return now.created_at >= before.expires_at


def _interval() -> float:
    return min(LONGEST, POLL * max(1.0, len(_waiting) / SHARED_BY)) * random.uniform(0.9, 1.1)
