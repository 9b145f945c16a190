"""What the holder of a lock knows without asking the server: its lease, kept alive, and whether it is lost.

Rules of this file:

* A handle is one acquisition. It carries all that belongs to it, so it may be used from any thread or task.
* Nothing is sent here but renewals, which ``renewal`` sends. What asks the server is ``held_lock``'s.
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
from typing import Any, Final, Self

from goscope_django import renewal, runtime, waiting
from goscope_django.contracts import LockHandle
from goscope_django.exceptions import LockLost
from goscope_django.renewal import Extendable, Lost

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
