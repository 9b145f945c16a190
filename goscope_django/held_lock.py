"""A lock that is held: what ``goscope_django.locks.lock`` hands over.

Rules of this file:

* The renewer is stopped before the release is sent. A release that failed can be tried again.
* Once released or lost, no method of the handle touches the lock that somebody else may hold by now.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any, Final, Self

from goscope_django import arguments, renewal, runtime, waiting
from goscope_django.arguments import Duration
from goscope_django.cancellation import finished
from goscope_django.contracts import Ttl
from goscope_django.exceptions import LockLost
from goscope_django.holding import HELD, Holding
from goscope_django.mongodb.limits import within

logger = logging.getLogger("goscope.locks")
_SHORTEST: Final = 1.0
_LONGEST: Final = 10.0


class HeldLock(Holding):
    """``Holding`` with all that asks the server; a context manager of both kinds that releases."""

    __slots__ = ()

    # Release: what goes before the command, and what follows it.

    def _releasing(self) -> bool:
        if self.lost.is_set():
            return False
        with self._guard:
            if self._state not in HELD:
                return False
            self._state = "releasing"
        self._renewal.stop()
        return True

    def _bound(self) -> float:
        # Past its lease the lock is free without us.
        return max(_SHORTEST, min(_LONGEST, self._renewal.deadline - renewal.now()))

    def _released(self, freed: bool) -> bool:
        self._state = "released" if freed else "lost"
        if not freed:
            self._renewal.lose(stopped=True)
            return False
        waiting.left(self._place, self, free=True)
        runtime.emit("lock_released", key=self.key, owner=self.owner, token=self.token)
        return True

    def _not_given_back(self) -> None:
        self._state = "unreleased"
        self._renewal.watch()

    def release(self) -> bool:
        """Give the lock back; ``False`` if it was released or lost before. One round trip, bounded by the lease.

        Raises ``StoreError`` if the server can't be reached; it may then be called again, and is not renewed any more.
        """
        if not self._releasing():
            return False
        try:
            with within(self._bound()):
                freed = self._backend.release(self._inner)
        except BaseException:
            self._not_given_back()
            raise
        return self._released(freed)

    async def _give_back(self) -> bool:
        return self._released(await self._backend.arelease(self._inner))

    async def arelease(self) -> bool:
        """Asynchronous twin of ``release``. Cancelled, it finishes first."""
        if not self._releasing():
            return False
        try:
            with within(self._bound()):
                freed: bool = await finished(self._give_back())
        except BaseException:
            if self._state == "releasing":
                self._not_given_back()
            raise
        return freed

    def _length(self, ttl: Ttl | None, timeout: Duration | None) -> int:
        if timeout is not None:
            return arguments.duration_milliseconds(timeout, "timeout")
        return self._milliseconds if ttl is None else arguments.ttl_milliseconds(ttl)

    def _extended(self, held: bool, started: float, milliseconds: int) -> bool:
        if held:
            self._renewal.extended(started, milliseconds)
        else:
            self._renewal.lose()
        return held

    def extend(self, ttl: Ttl | None = None, *, timeout: Duration | None = None) -> bool:
        """Let the lease end ``ttl`` (**milliseconds** or a timedelta) or ``timeout`` (seconds or a timedelta) from now.

        With neither, as long from now as it was asked for. ``False`` if the lock is no longer held. One round trip.
        """
        milliseconds = self._length(ttl, timeout)
        if self._state not in HELD or self.lost.is_set():
            return False
        started = renewal.now()
        return self._extended(self._backend.extend(self._inner, milliseconds / 1_000), started, milliseconds)

    async def aextend(self, ttl: Ttl | None = None, *, timeout: Duration | None = None) -> bool:
        """Asynchronous twin of ``extend``."""
        milliseconds = self._length(ttl, timeout)
        if self._state not in HELD or self.lost.is_set():
            return False
        started = renewal.now()
        return self._extended(await self._backend.aextend(self._inner, milliseconds / 1_000), started, milliseconds)

    def _valid(self, info: Any) -> bool:
        valid = info is not None and info.token == self.token and info.owner == self.owner
        if not valid:
            self._renewal.lose()
        return valid

    def is_valid(self) -> bool:
        """Ask the server whether this acquisition holds the lock now: one round trip. Only a fenced write proves it."""
        if self._state not in HELD or self.lost.is_set():
            return False
        return self._valid(self._backend.get(self.key))

    async def ais_valid(self) -> bool:
        """Asynchronous twin of ``is_valid``."""
        if self._state not in HELD or self.lost.is_set():
            return False
        return self._valid(await self._backend.aget(self.key))

    # Leaving a block.

    def _left(self, kept: bool, error: BaseException | None) -> None:
        if not kept and error is None:
            raise LockLost(f"lock {self.key!r}: it was lost before the block ended", key=self.key)

    def _not_released(self, error: BaseException) -> None:
        logger.warning("lock %r could not be released, and ends with its lease: %s", self.key, error)

    def leave(self, error: BaseException | None) -> None:
        """Release at the end of a block. If it raised no ``error``, raises ``LockLost`` or what the release does."""
        try:
            kept = self.released or self.release()
        except Exception as failure:
            if error is None:
                raise
            self._not_released(failure)
        else:
            self._left(kept, error)

    async def aleave(self, error: BaseException | None) -> None:
        """Asynchronous twin of ``leave``."""
        try:
            kept = self.released or await self.arelease()
        except Exception as failure:
            if error is None:
                raise
            self._not_released(failure)
        else:
            self._left(kept, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave(error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aleave(error)
