"""The lock that ``cache.lock`` makes: what django-redis users expect of one, on a lock of this package.

Rules of this file:

* It does what redis-py's ``Lock`` does: ``acquire`` says whether it got the lock, and a ``timeout`` is the longest time
  for which the lock is held. So with a ``timeout`` it is not renewed unless ``auto_extend=True``; without one it is
  renewed for as long as it is held.
* With ``thread_local`` only the thread that acquired it can release it, as in redis-py.
* What may fail is judged by the server, as everywhere: this file only remembers the handle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from types import SimpleNamespace, TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from goscope_django import locks
from goscope_django.contracts import LockHandle
from goscope_django.core import arguments
from goscope_django.core.arguments import Duration
from goscope_django.core.flow import Flow, acarry_out, call, carry_out
from goscope_django.exceptions import LockError, LockLost, LockNotAcquired
from goscope_django.locks import HeldLock
from goscope_django.process.kept_lease import Lost

P = ParamSpec("P")
T = TypeVar("T")


class CacheLock:
    """A lock named like a key of a cache: a sync and async context manager, and an object to acquire and release.

    ``cache.lock`` makes it. ``name`` is the lock's key. ``with`` yields this object; ``token`` is its fencing token.
    ``owner``, ``token``, ``lost`` and ``expires_at`` raise ``LockError`` if the lock was not acquired here. Every
    method that asks the server raises ``StoreError`` if it can't be reached.
    """

    def __init__(
        self,
        name: str,
        timeout: Duration | None = None,
        *,
        sleep: Duration = 0.1,
        blocking: bool = True,
        blocking_timeout: Duration | None = None,
        thread_local: bool = True,
        auto_extend: bool | None = None,
        owner: str | None = None,
    ) -> None:
        """``cache.lock`` makes it.

        :meta private:
        """
        arguments.duration_seconds(sleep, "sleep")
        self.name = arguments.key(name)
        self.timeout = timeout
        self._blocking = blocking
        self._blocking_timeout = blocking_timeout
        self._auto_extend = timeout is None if auto_extend is None else auto_extend
        self._owner = owner
        self._here: Any = threading.local() if arguments.flag(thread_local, "thread_local") else SimpleNamespace()
        self._lock(blocking, blocking_timeout)  # a wrong argument is told where it was written

    def __repr__(self) -> str:
        return f"<lock on {self.name!r}>"

    def _lock(self, blocking: bool | None, blocking_timeout: Duration | None) -> locks.Lock:
        return locks.lock(
            self.name,
            self.timeout,
            blocking=self._blocking if blocking is None else blocking,
            blocking_timeout=self._blocking_timeout if blocking_timeout is None else blocking_timeout,
            auto_extend=self._auto_extend,
            owner=self._owner,
        )

    @property
    def handle(self) -> HeldLock | None:
        """What this thread holds, if it holds the lock by this object; see ``goscope_django.locks``."""
        found: tuple[HeldLock, float] | None = getattr(self._here, "held", None)
        return None if found is None else found[0]

    def _held(self, what: str) -> tuple[HeldLock, float]:
        found: tuple[HeldLock, float] | None = getattr(self._here, "held", None)
        if found is None:
            raise LockError(f"lock {self.name!r}: it can't be {what}, since it was not acquired here", key=self.name)
        return found

    # What the handle says; each raises ``LockError`` if the lock was not acquired here

    @property
    def key(self) -> str:
        """The key that is locked: ``name``."""
        return self.name

    @property
    def inner(self) -> LockHandle:
        """The backend's own handle.

        :meta private:
        """
        return self._held("looked at")[0].inner

    @property
    def owner(self) -> str:
        """The name that observers see."""
        return self._held("looked at")[0].owner

    @property
    def token(self) -> int:
        """The fencing token; see ``goscope_django.fencing``."""
        return self._held("looked at")[0].token

    @property
    def lost(self) -> Lost:
        """Set once the lock is lost: ``is_set()``, ``wait(timeout)`` (seconds)."""
        return self._held("looked at")[0].lost

    def ensure_held(self) -> None:
        """Raise ``LockLost`` if the lock is not held any more, ``LockError`` if it never was here. Sends nothing."""
        self._held("looked at")[0].ensure_held()

    @property
    def expires_at(self) -> datetime:
        """When the lease ends by the server's clock, as far as is known here."""
        return self._held("looked at")[0].expires_at

    # Acquiring and giving back

    def acquire(self, blocking: bool | None = None, blocking_timeout: Duration | None = None) -> bool:
        """Acquire the lock; ``False`` if somebody else held it for all of ``blocking_timeout`` (seconds).

        ``blocking=False`` makes one attempt. What is not given is as it was given to ``cache.lock``. One atomic round
        trip if it is free; see ``goscope_django.locks.lock`` for what waiting costs.
        """
        return carry_out(self._acquire(blocking, blocking_timeout))

    async def aacquire(self, blocking: bool | None = None, blocking_timeout: Duration | None = None) -> bool:
        """Async version of ``acquire``."""
        return await acarry_out(self._acquire(blocking, blocking_timeout))

    def _acquire(self, blocking: bool | None, blocking_timeout: Duration | None) -> Flow[bool]:
        lock = self._lock(blocking, blocking_timeout)
        try:
            handle: HeldLock = yield from call(lock.acquire, lock.aacquire)
        except LockNotAcquired:
            return False
        self._keep(handle, time.monotonic())
        return True

    def _keep(self, handle: HeldLock, since: float, seconds: Duration | None = None) -> None:
        chosen = self.timeout if seconds is None else seconds
        lease = 0.0 if chosen is None else arguments.duration_seconds(chosen, "timeout")
        self._here.held = (handle, since + lease)

    def release(self) -> bool:
        """Give the lock back; ``True``. One atomic round trip.

        Raises ``LockError`` if it was not acquired here, ``LockLost`` (one of them) if it was lost, and ``StoreError``
        if the server can't be reached; it may then be called again.
        """
        return carry_out(self._release())

    async def arelease(self) -> bool:
        """Async version of ``release``."""
        return await acarry_out(self._release())

    def _release(self) -> Flow[bool]:
        held = self._held("released")
        self._here.held = None  # first: another task may acquire it by this object as soon as it is free
        try:
            kept = yield from call(held[0].release, held[0].arelease)
        except BaseException:
            if getattr(self._here, "held", None) is None:
                self._here.held = held
            raise
        if not kept:
            raise LockLost(f"lock {self.name!r}: it was lost before it was released", key=self.name)
        return True

    def extend(self, additional_time: Duration | None = None, replace_ttl: bool = False) -> bool:
        """Add ``additional_time`` (seconds or a ``timedelta``) to what is left of the lease; ``True``.

        With ``replace_ttl`` that is all that is left then. Without a time the lease begins anew. Raises what
        ``release`` raises, and ``InvalidType`` or ``InvalidValue`` for a time that can't be used. One atomic round
        trip.
        """
        return carry_out(self._extend(additional_time, replace_ttl))

    async def aextend(self, additional_time: Duration | None = None, replace_ttl: bool = False) -> bool:
        """Async version of ``extend``."""
        return await acarry_out(self._extend(additional_time, replace_ttl))

    def _extend(self, additional_time: Duration | None, replace_ttl: bool) -> Flow[bool]:
        handle, deadline = self._held("extended")
        seconds, since = additional_time, time.monotonic()
        if seconds is not None:
            seconds = arguments.duration_seconds(seconds, "additional_time")
            if not arguments.flag(replace_ttl, "replace_ttl"):
                seconds += max(0.0, deadline - since)
        if not (yield from call(handle.extend, handle.aextend, timeout=seconds)):
            raise LockLost(f"lock {self.name!r}: it was lost before it was extended", key=self.name)
        self._keep(handle, since, seconds)
        return True

    def reacquire(self) -> bool:
        """``extend`` without a time: the lease begins anew."""
        return self.extend()

    async def areacquire(self) -> bool:
        """Async version of ``reacquire``."""
        return await self.aextend()

    def locked(self) -> bool:
        """Whether anybody holds the lock. One round trip."""
        return locks.backend().get(self.name) is not None

    async def alocked(self) -> bool:
        """Async version of ``locked``."""
        return await locks.backend().aget(self.name) is not None

    def owned(self) -> bool:
        """Whether this object holds the lock, by the server's word. One round trip if it may."""
        handle = self.handle
        return handle is not None and handle.is_valid()

    async def aowned(self) -> bool:
        """Async version of ``owned``."""
        handle = self.handle
        return handle is not None and await handle.ais_valid()

    def _enter(self) -> Flow[Self]:
        if not (yield from self._acquire(None, None)):
            raise LockNotAcquired(f"lock {self.name!r}: somebody else holds it", key=self.name)
        return self

    def _exit(self, error: BaseException | None) -> Flow[None]:
        handle, _ = self._held("released")
        self._here.held = None
        yield from call(handle.leave, handle.aleave, error)

    def __enter__(self) -> Self:
        return carry_out(self._enter())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        carry_out(self._exit(error))

    async def __aenter__(self) -> Self:
        return await acarry_out(self._enter())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await acarry_out(self._exit(error))

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """``function``, each call of it under the lock; see ``goscope_django.locks.locked``."""
        return self._lock(None, None)(function)
