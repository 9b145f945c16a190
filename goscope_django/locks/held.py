"""A lock that is held: the handle that ``goscope_django.locks.lock`` gives to whoever got the lock.

It keeps the lock alive, says whether it is lost, and gives it back. Rules of this file:

* The renewal is stopped before the release is sent. A release that failed is tried again in the background, until it
  is done or the lease has ended.
* Once the lock is released or lost, no method of the handle touches it: somebody else may hold it by now.
* What asks the backend is a flow, written once for sync and async.
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
from goscope_django.core.flow import Flow, acarry_out, call, carry_out
from goscope_django.exceptions import LockLost
from goscope_django.locks import waiting
from goscope_django.locks.backends import limited, renews_together
from goscope_django.process import counters
from goscope_django.process.kept_lease import Extendable, GivenBack, Lost, Renewable, Renewal, now
from goscope_django.process.renewal import give_back_later

logger = logging.getLogger("goscope.locks")

HELD: Final = frozenset({"held", "unreleased"})
"""States of a handle that may hold its lock. ``unreleased``: a release failed, so its lease is not renewed any more."""


class HeldLock:
    """One acquisition of a lock, kept alive in the background; a sync and async context manager that releases it.

    ``token`` is the fencing token. ``lost`` is asked like a ``threading.Event``: it is set when the lock is no longer
    held although it was not given back. That is at the end of its lease at the latest, by this machine's monotonic
    clock, whether or not the server can be reached or the renewal still runs. A forked child does not hold its
    parent's locks: ``lost`` is set there.

    ``lock`` makes it.
    """

    __slots__ = (
        "__weakref__",
        "_auto_extend",
        "_backend",
        "_callbacks",
        "_entered_by",
        "_freed",
        "_guard",
        "_inner",
        "_milliseconds",
        "_pid",
        "_place",
        "_renewal",
        "_start",
        "_state",
        "_taken",
    )

    def __init__(
        self,
        keep: Callable[..., Renewal],
        backend: Any,
        inner: LockHandle,
        milliseconds: int,
        started: float,
        place: Hashable,
        *,
        auto_extend: bool,
    ) -> None:
        """``keep`` is ``renewal.keep`` or ``renewal.akeep``; ``started`` is ``time.monotonic()`` before the attempt.

        :meta private:
        """
        self._backend = backend
        self._inner = inner
        self._milliseconds = milliseconds
        self._place = place
        self._pid = os.getpid()
        self._state = "held"
        self._auto_extend = auto_extend
        self._entered_by: Hashable = None
        self._freed = False
        self._guard = threading.Lock()
        self._callbacks: list[Callable[[Any], object]] = []
        # Weak, so that a handle that nobody has any more is not kept alive by its own renewal.
        this = weakref.ref(self)

        def lost() -> None:
            handle = this()
            if handle is not None:
                handle._was_lost()

        self._renewal = keep(_renewable(backend, inner, milliseconds), started, lost, renew=auto_extend)
        self._start = (self._renewal.deadline, inner.expires_at)
        self._taken = now()
        waiting.held(place, self)

    def __repr__(self) -> str:
        state = "lost" if self.lost.is_set() else self._state
        return f"<lock {self.key!r} {state} by {self.owner!r}, token {self.token}>"

    def __del__(self) -> None:
        if sys.is_finalizing() or getattr(self, "_renewal", None) is None:
            return
        if self._state == "unreleased":
            self._renewal.abandon()
        elif self._state == "held" and self._pid == os.getpid() and self._renewal.active:
            renewed = not self._renewal.paused
            self._renewal.abandon()
            if renewed:  # one that is not was meant to end by itself
                warnings.warn(
                    f"{self!r} was dropped without release; it ends with its lease", ResourceWarning, stacklevel=2
                )

    # What it is

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
        """The backend's own handle.

        :meta private:
        """
        return self._inner

    @property
    def expires_at(self) -> datetime:
        """When the lease ends by the server's clock, as far as is known here; later with each renewal."""
        deadline, expires_at = self._start
        return expires_at + timedelta(seconds=self._renewal.deadline - deadline)

    @property
    def released(self) -> bool:
        """Whether it was given back."""
        return self._state == "released"

    def enter(self, by: Hashable) -> None:
        """A block or decorated call of ``by`` (see ``holder.whoami``) holds it from here on, until ``leave``.

        :meta private:
        """
        self._entered_by = by

    def keeps_out(self, me: tuple[Hashable, ...]) -> bool:
        """Whether ``me`` (see ``holder.myself``) would wait for itself: it holds this without an end.

        :meta private:
        """
        return self._entered_by in me and self._auto_extend and self._state == "held" and not self.lost.is_set()

    # Whether it is lost

    @property
    def lost(self) -> Lost:
        """Set once the lock is lost: ``is_set()``, ``wait(timeout)``; ``await handle.wait_lost()`` in a coroutine."""
        return self._renewal.lost

    def ensure_held(self) -> None:
        """Raise ``LockLost`` if the lock is not held any more. Sends nothing: cheap enough for a loop."""
        if self.lost.is_set():
            raise LockLost(f"lock {self.key!r}: the lease of {self.owner!r} has ended or was taken over", key=self.key)
        if self._state == "released":
            raise LockLost(f"lock {self.key!r}: it was released", key=self.key)

    check = ensure_held

    def on_lost(self, callback: Callable[[Self], object]) -> None:
        """Call ``callback(handle)`` once when the lock is lost, on the thread or task that renews; now if it is.

        Raises nothing and sends nothing: what the callback raises is logged.
        """
        with self._guard:
            self._callbacks.append(callback)
        if self.lost.is_set():
            self._tell()

    async def wait_lost(self) -> bool:
        """Wait until the lock is lost (``True``) or was released (``False``). Raises nothing and sends nothing."""
        over, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(over.set)

        self._renewal.when_over(wake)
        try:
            while self._renewal.check() and self._renewal.active:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.001, self._renewal.deadline - now())):
                        await over.wait()
                        over.clear()  # a release that failed is not the end
        finally:
            self._renewal.forget(wake)
        return self.lost.is_set()

    def _was_lost(self) -> None:
        waiting.left(self._place, self, free=False)
        self._count_hold()
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

    # What asks the backend

    def release(self) -> bool:
        """Give the lock back; ``False`` if it was released or lost before. One atomic round trip, bounded by the lease.

        Raises ``StoreError`` if the server can't be reached. It is then not renewed any more. Until its lease ends it
        is tried again in the background, so that the lock is free as soon as the server answers; you may call
        ``release`` again, too.
        """
        return carry_out(self._release())

    async def arelease(self) -> bool:
        """Async version of ``release``. Cancelled, it finishes first."""
        return bool(await finished(acarry_out(self._release())))

    def _release(self) -> Flow[bool]:
        if not self._begins_release():
            return False
        try:
            return (yield from self._give_back())
        except Exception:
            left = self._renewal.deadline - now()
            if left > 0:
                again = GivenBack(
                    self.key,
                    str(self.token),
                    max(1, int(left * 1_000)),
                    lambda: carry_out(self._release_again()),
                    lambda: acarry_out(self._release_again()),
                )
                yield from give_back_later(again)
            raise

    def _release_again(self) -> Flow[bool]:
        """In the background. ``False``: there is nothing left to do, since it is given back, lost or being released."""
        if self._state != "unreleased" or self.lost.is_set():
            return False
        self._freed = bool((yield from self._send_release())) or self._freed
        held = not self.lost.is_set()
        with self._guard:
            # Else the holder calls ``release`` as well, and goes by ``_freed``. That nothing was there is no loss: the
            # release that failed may have been carried out.
            mine = held and self._state == "unreleased"
            if mine:
                self._state = "released" if self._freed else "lost"
        if mine:
            self._renewal.stop()
            self._is_over()
        return False

    def _give_back(self) -> Flow[bool]:
        self._renewal.stop()
        try:
            freed = yield from self._send_release()
        except BaseException:
            self._state = "unreleased"
            self._renewal.watch()
            raise
        if not (freed or self._freed):
            self._state = "lost"
            self._renewal.lose(stopped=True)
            return False
        self._state = "released"
        self._is_over()
        return True

    def _send_release(self) -> Flow[bool]:
        backend, inner = self._backend, self._inner
        with limited(self._renewal.deadline - now()):  # past its lease the lock is free without us
            freed: bool = yield from call(lambda: backend.release(inner), lambda: backend.arelease(inner))
        return freed

    def _is_over(self) -> None:
        waiting.left(self._place, self, free=self._state == "released")
        if self._state == "released":
            self._count_hold()
            runtime.emit("lock_released", key=self.key, owner=self.owner, token=self.token)

    def _count_hold(self) -> None:
        counters.locks.note(self.key, counters.HELD, now() - self._taken)

    def _begins_release(self) -> bool:
        """``False`` if the lock is gone, or another thread or task is releasing it."""
        if self.lost.is_set():
            return False
        with self._guard:
            if self._state not in HELD:
                return False
            self._state = "releasing"
        return True

    def let_expire(self) -> None:
        """Neither renew it nor give it back: it ends with its lease. Raises nothing and sends nothing."""
        with self._guard:
            if self._state not in HELD:
                return
            self._state = "unreleased"
        self._renewal.watch()

    def extend(self, ttl: Ttl | None = None, *, timeout: Duration | None = None) -> bool:
        """Let the lease end ``ttl`` (**milliseconds** or a timedelta) or ``timeout`` (seconds or a timedelta) from now.

        With neither, it ends as long from now as was asked for at first. ``False`` if the lock is no longer held. One
        atomic round trip; none if it is known to be lost. Raises ``InvalidType`` or ``InvalidValue`` for a time that
        can't be used, ``StoreError`` if the server can't be reached.
        """
        return carry_out(self._extend(ttl, timeout))

    async def aextend(self, ttl: Ttl | None = None, *, timeout: Duration | None = None) -> bool:
        """Async version of ``extend``."""
        return await acarry_out(self._extend(ttl, timeout))

    def _extend(self, ttl: Ttl | None, timeout: Duration | None) -> Flow[bool]:
        milliseconds = self._milliseconds
        if timeout is not None:
            milliseconds = arguments.duration_milliseconds(timeout, "timeout")
        elif ttl is not None:
            milliseconds = arguments.ttl_milliseconds(ttl)
        if not self._may_hold():
            return False
        backend, inner, seconds, started = self._backend, self._inner, milliseconds / 1_000, now()
        held = yield from call(lambda: backend.extend(inner, seconds), lambda: backend.aextend(inner, seconds))
        if held:
            self._renewal.extended(started, milliseconds)
        else:
            self._renewal.lose()
        return bool(held)

    def is_valid(self) -> bool:
        """Ask the server whether this acquisition holds the lock now. Only a fenced write proves it.

        One round trip; none if it is known to be lost. Raises ``StoreError`` if the server can't be reached.
        """
        return carry_out(self._is_valid())

    async def ais_valid(self) -> bool:
        """Async version of ``is_valid``."""
        return await acarry_out(self._is_valid())

    def _is_valid(self) -> Flow[bool]:
        if not self._may_hold():
            return False
        backend, key = self._backend, self.key
        info = yield from call(lambda: backend.get(key), lambda: backend.aget(key))
        valid = info is not None and info.token == self.token and info.owner == self.owner
        if not valid:
            self._renewal.lose()
        return valid

    def _may_hold(self) -> bool:
        return self._state in HELD and not self.lost.is_set()

    # The end of a block

    def leave(self, error: BaseException | None) -> None:
        """Release at the end of a block that raised ``error``, or ``None``.

        If it raised nothing, raises ``LockLost`` if the lock is lost, or what the release raises.

        :meta private:
        """
        carry_out(self._leave(error))

    async def aleave(self, error: BaseException | None) -> None:
        """Async version of ``leave``.

        :meta private:
        """
        await acarry_out(self._leave(error))

    def _leave(self, error: BaseException | None) -> Flow[None]:
        self._entered_by = None
        try:
            kept = self.released or (yield from call(self.release, self.arelease))
        except Exception as failure:
            if error is None:
                raise
            logger.warning(
                "lock %r could not be released; it is tried again until its lease ends: %s", self.key, failure
            )
            return
        if not kept and error is None:
            raise LockLost(f"lock {self.key!r}: it was lost before the block ended", key=self.key)

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

    # For transactions on the lock's own document

    def pause_renewal(self) -> Callable[[], None]:
        """No renewals until the function that is returned is called; the lease's end stays as it is.

        :meta private:
        """
        return self._renewal.pause()

    def sending(self) -> bool:
        """Whether a renewal is on its way.

        :meta private:
        """
        return self._renewal.sending


def _renewable(backend: Any, inner: LockHandle, milliseconds: int) -> Renewable | Extendable:
    if renews_together(backend):
        return backend.renewable(inner, milliseconds)
    seconds = milliseconds / 1_000
    return Extendable(
        inner.key,
        str(inner.token),
        milliseconds,
        lambda: backend.extend(inner, seconds),
        lambda: backend.aextend(inner, seconds),
    )
