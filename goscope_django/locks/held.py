"""A lock that is held: what ``goscope_django.locks.lock`` hands over.

Rules of this file:

* The renewer is stopped before the release is sent. A release that failed can be tried again.
* Once released or lost, no method of the handle touches the lock that somebody else may hold by now.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

from goscope_django import runtime
from goscope_django.contracts import LockHandle, Ttl
from goscope_django.core import arguments
from goscope_django.core.arguments import Duration
from goscope_django.core.colours import finished
from goscope_django.exceptions import LockLost
from goscope_django.locks import waiting
from goscope_django.mongodb.driver.limits import within
from goscope_django.process import renewal
from goscope_django.process.renewal import Extendable, Lost

logger = logging.getLogger("goscope.locks")
HELD: Final = frozenset({"held", "unreleased"})
"""States of a handle that may hold its lock. ``unreleased``: a release failed, so its lease is not renewed any more."""


class Holding:
    """One acquisition of a lock, kept alive in the background.

    ``token`` is the fencing token, ``lost`` tells (like a ``threading.Event``) that the lock is no longer held
    although it was not given back: at the end of its lease at the latest, by this machine's monotonic clock, whether
    or not the server or the renewer can be reached. A forked child does not hold its parent's locks: there ``lost`` is
    set.
    """

    __slots__ = (
        "__weakref__",
        "_backend",
        "_callbacks",
        "_guard",
        "_inner",
        "_milliseconds",
        "_pid",
        "_place",
        "_renewal",
        "_start",
        "_state",
    )

    def __init__(
        self,
        backend: Any,
        inner: LockHandle,
        milliseconds: int,
        started: float,
        *,
        place: Hashable,
        auto_extend: bool,
        asynchronous: bool,
    ) -> None:
        self._backend = backend
        self._inner = inner
        self._milliseconds = milliseconds
        self._place = place
        self._pid = os.getpid()
        self._state = "held"
        self._guard = threading.Lock()
        self._callbacks: list[Callable[[Any], object]] = []
        # Weak, so that a handle that nobody has any more is not kept alive by its own renewal.
        this = weakref.ref(self)

        def lost() -> None:
            handle = this()
            if handle is not None:
                handle._was_lost()

        keep = renewal.akeep if asynchronous else renewal.keep
        self._renewal = keep(self._renewable(), started, lost, renew=auto_extend)
        self._start = (self._renewal.deadline, inner.expires_at)
        waiting.held(place, self)

    def _renewable(self) -> Any:
        backend, inner, seconds = self._backend, self._inner, self._milliseconds / 1_000
        batched = getattr(backend, "renewable", None)
        if batched is not None:
            return batched(inner, self._milliseconds)
        return Extendable(
            inner.key,
            str(inner.token),
            self._milliseconds,
            lambda: backend.extend(inner, seconds),
            lambda: backend.aextend(inner, seconds),
        )

    def __repr__(self) -> str:
        state = "lost" if self.lost.is_set() else self._state
        return f"<lock {self.key!r} {state} by {self.owner!r}, token {self.token}>"

    def __del__(self) -> None:
        if sys.is_finalizing() or getattr(self, "_renewal", None) is None:
            return
        if self._state == "unreleased":
            self._renewal.abandon()
        elif self._state == "held" and self._pid == os.getpid() and self._renewal.active:
            self._renewal.abandon()
            warnings.warn(
                f"{self!r} was dropped without release; it ends with its lease", ResourceWarning, stacklevel=2
            )

    @property
    def key(self) -> str:
        """The key that was locked."""
        return self._inner.key

    @property
    def owner(self) -> str:
        """The name that observers see."""
        return self._inner.owner

    @property
    def token(self) -> int:
        """The fencing token: grows with each acquisition of the key. See ``goscope_django.fencing``."""
        return self._inner.token

    @property
    def inner(self) -> LockHandle:
        """The backend's own handle."""
        return self._inner

    @property
    def expires_at(self) -> datetime:
        """When the lease ends by the server's clock as far as is known here; later with each renewal."""
        deadline, expires_at = self._start
        return expires_at + timedelta(seconds=self._renewal.deadline - deadline)

    @property
    def lost(self) -> Lost:
        """Set once the lock is lost: ``is_set()``, ``wait(timeout)``; ``await handle.wait_lost()`` in a coroutine."""
        return self._renewal.lost

    @property
    def released(self) -> bool:
        """Whether it was given back."""
        return self._state == "released"

    def ensure_held(self) -> None:
        """Raise ``LockLost`` if the lock is not held any more. Asks no server: cheap enough for a loop."""
        if self.lost.is_set():
            raise LockLost(f"lock {self.key!r}: the lease of {self.owner!r} has ended or was taken over", key=self.key)
        if self._state == "released":
            raise LockLost(f"lock {self.key!r}: it was released", key=self.key)

    check = ensure_held

    def on_lost(self, callback: Callable[[Self], object]) -> None:
        """Call ``callback(handle)`` once if the lock is lost (at once if it is): on the thread or task that renews."""
        with self._guard:
            self._callbacks.append(callback)
        if self.lost.is_set():
            self._tell()

    async def wait_lost(self) -> bool:
        """Wait until the lock is lost (``True``) or was released (``False``)."""
        over, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(over.set)

        self._renewal.when_over(wake)
        try:
            while self._renewal.check() and self._renewal.active:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.001, self._renewal.deadline - renewal.now())):
                        await over.wait()
                        over.clear()  # a release that failed is not the end
        finally:
            self._renewal.forget(wake)
        return self.lost.is_set()

    def _was_lost(self) -> None:
        waiting.left(self._place, self, free=False)
        runtime.emit("lock_lost", key=self.key, owner=self.owner, token=self.token)
        self._tell()

    def _tell(self) -> None:
        with self._guard:
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                logger.exception("the callback for the lost lock %r failed", self.key)

    # For transactions on the lock's own document.

    def pause_renewal(self) -> Callable[[], None]:
        """No renewals until the function that is returned is called; the lease's end stays as it is."""
        return self._renewal.pause()

    def sending(self) -> bool:
        """Whether a renewal is on its way."""
        return self._renewal.sending


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
