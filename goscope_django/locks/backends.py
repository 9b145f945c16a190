"""Where locks are kept: what a lock backend must be able to do, and the backend that keeps locks in MongoDB.

``GOSCOPE["LOCK_BACKEND"]`` names the class of the backend in use. Rules of this file:

* A backend needs the methods of ``LockBackend`` and nothing of MongoDB: waiting, renewal, losses and decorators are
  built on these. A backend for sync code alone needs no async versions.
* What a backend may offer besides saves commands, and has a Protocol of its own.
"""

from __future__ import annotations

import builtins
import functools
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, TypeGuard, runtime_checkable

from goscope_django import conf, runtime
from goscope_django.contracts import LockHandle, LockInfo
from goscope_django.core import arguments
from goscope_django.core.arguments import Duration
from goscope_django.core.flow import Flow, acarry_out, call, carry_out
from goscope_django.exceptions import InvalidType, OutcomeUnknown
from goscope_django.mongodb.document.lease import new_claim
from goscope_django.mongodb.driver.limits import within
from goscope_django.mongodb.locks.flows import LEASE, LOCKS
from goscope_django.mongodb.locks.provider import MongoDBLockHandle, MongoDBLockProvider
from goscope_django.process import renewal
from goscope_django.process.kept_lease import GivenBack, Renewable

_SHORTEST: Final = 1.0
_LONGEST: Final = 10.0
"""Seconds that one command gets: a shorter one could not find out what became of it."""


class LockBackend(Protocol):
    """What ``GOSCOPE["LOCK_BACKEND"]`` must be able to do. ``timeout`` is seconds or a ``timedelta``.

    ``acquire`` makes one attempt, which is judged by whether this very attempt succeeded; a lock whose lease has ended
    must be free. ``extend`` and ``release`` get the handle that ``acquire`` returned and act on that acquisition only:
    ``False`` if it no longer holds the lock. A handle needs ``key``, ``owner``, ``token`` (grows with each acquisition
    of the key) and ``expires_at``. ``get`` and ``list`` tell of live locks. Every method has an async version with an
    ``a`` in front, needed for ``async with`` and async functions.

    Every method that changes a lock must do so in one atomic step, and should be one round trip. Every method raises
    ``StoreError`` if the locks can't be reached.
    """

    def acquire(self, key: str, timeout: Duration | None = None, owner: str | None = None) -> Any:
        """Make one attempt at the lock on ``key``, for ``timeout``, in the name of ``owner``: a handle, or ``None``."""

    def extend(self, handle: Any, timeout: Duration) -> bool:
        """Let the lease of ``handle`` end ``timeout`` from now."""

    def release(self, handle: Any) -> bool:
        """Give back what ``handle`` holds."""

    def force_release(self, key: str) -> bool:
        """Remove the lock on ``key``, whoever holds it; ``True`` if there was one."""

    def get(self, key: str) -> LockInfo | None:
        """The live lock on ``key``, or ``None``."""

    def list(self, pattern: str | None = None) -> builtins.list[LockInfo]:
        """Live locks whose whole key matches the regular expression ``pattern``, by key."""

    async def aacquire(self, key: str, timeout: Duration | None = None, owner: str | None = None) -> Any:
        """Async version of ``acquire``."""

    async def aextend(self, handle: Any, timeout: Duration) -> bool:
        """Async version of ``extend``."""

    async def arelease(self, handle: Any) -> bool:
        """Async version of ``release``."""

    async def aforce_release(self, key: str) -> bool:
        """Async version of ``force_release``."""

    async def aget(self, key: str) -> LockInfo | None:
        """Async version of ``get``."""

    async def alist(self, pattern: str | None = None) -> builtins.list[LockInfo]:
        """Async version of ``list``."""


@runtime_checkable
class KnowsRemaining(Protocol):
    """A backend that knows for how many seconds a lock is held at most; 0 if it can be had now. Else ``get`` is asked,
    and whoever waits looks again and again."""

    def remaining(self, key: str) -> float: ...
    async def aremaining(self, key: str) -> float: ...


@runtime_checkable
class KnowsStanding(Protocol):
    """A backend that also knows for how many seconds the lock has been held: who has held it for long is asked less
    often. (seconds until it is free at most, 0 if it can be had now; seconds since it was acquired)"""

    def standing(self, key: str) -> tuple[float, float]: ...
    async def astanding(self, key: str) -> tuple[float, float]: ...


@runtime_checkable
class RenewsTogether(Protocol):
    """A backend that renews many locks with one command. Else each lock is renewed by ``extend``."""

    def renewable(self, handle: Any, milliseconds: int) -> Renewable: ...


def knows_remaining(backend: Any) -> TypeGuard[KnowsRemaining]:
    """Whether ``backend`` is a ``KnowsRemaining``."""
    return _offers(backend.__class__, KnowsRemaining)


def knows_standing(backend: Any) -> TypeGuard[KnowsStanding]:
    """Whether ``backend`` is a ``KnowsStanding``."""
    return _offers(backend.__class__, KnowsStanding)


def renews_together(backend: Any) -> TypeGuard[RenewsTogether]:
    """Whether ``backend`` is a ``RenewsTogether``."""
    return _offers(backend.__class__, RenewsTogether)


@functools.cache
def _offers(kind: Any, protocol: Any) -> bool:
    # Asked once for each class: isinstance() with a Protocol takes about 20 microseconds in Python 3.11.
    return issubclass(kind, protocol)


def limited(seconds: float) -> AbstractContextManager[None]:
    """A backend's command that is sent inside ends within ``seconds``, but gets 1 at least and 10 at most."""
    return within(max(_SHORTEST, min(_LONGEST, seconds)))


def _handle(value: object) -> MongoDBLockHandle:
    inner = getattr(value, "inner", value)
    if not isinstance(inner, MongoDBLockHandle):
        raise InvalidType(f"handle={value!r:.80}: what acquire() returned is needed")
    return inner


def _ttl(timeout: Duration | None) -> int:
    if timeout is None:
        timeout = conf.current().default_lock_timeout
    return arguments.duration_milliseconds(timeout, "timeout")


class MongoDBLockBackend:
    """Locks in ``go_goscope_locks`` of ``GOSCOPE["URL"]``: see ``LockBackend``. Each method is one round trip.

    ``key`` is the lock's, ``handle`` what ``acquire`` returned; ``timeout`` is seconds or a ``timedelta``. Every change
    is atomic. Every method raises ``StoreUnavailable`` or ``OutcomeUnknown`` if the server can't be reached, and
    ``InvalidType`` or ``InvalidValue`` for a bad argument.
    """

    def _provider(self) -> MongoDBLockProvider:
        return runtime.adapter().lock

    def acquire(self, key: str, timeout: Duration | None = None, owner: str | None = None) -> LockHandle | None:
        """Take the lock if it is free or its lease has ended; ``None`` if somebody holds it.

        The lease lasts ``timeout`` (``DEFAULT_LOCK_TIMEOUT`` if ``None``); ``owner`` is a name for observers, random
        text if ``None``. After an ``OutcomeUnknown`` what may have been acquired is given back in the background, once
        the server answers.
        """
        return carry_out(self._acquire(key, timeout, owner))

    async def aacquire(self, key: str, timeout: Duration | None = None, owner: str | None = None) -> LockHandle | None:
        """Async version of ``acquire``."""
        return await acarry_out(self._acquire(key, timeout, owner))

    def _acquire(self, key: str, timeout: Duration | None, owner: str | None) -> Flow[LockHandle | None]:
        claim, milliseconds, provider = new_claim(), _ttl(timeout), self._provider()
        try:
            found: LockHandle | None = yield from call(
                provider.acquire, provider.aacquire, key, milliseconds, owner, claim=claim
            )
        except OutcomeUnknown:
            orphan = self._orphan(provider, key, claim, milliseconds)
            yield from renewal.give_back_later(orphan)
            raise
        return found

    @staticmethod
    def _orphan(provider: MongoDBLockProvider, key: str, claim: str, milliseconds: int) -> GivenBack:
        """What may have been acquired and nobody holds. It is not renewed but given back, until its lease has ended."""

        def give_back() -> Flow[bool]:
            yield from call(provider.store.run, provider.store.arun, provider.flows.release, key, claim)
            return False

        return GivenBack(key, claim, milliseconds, lambda: carry_out(give_back()), lambda: acarry_out(give_back()))

    def extend(self, handle: LockHandle, timeout: Duration) -> bool:
        """Let the lease end ``timeout`` from now; ``False`` if this acquisition no longer holds the lock."""
        return _handle(handle).extend(_ttl(timeout))

    async def aextend(self, handle: LockHandle, timeout: Duration) -> bool:
        """Async version of ``extend``."""
        return await _handle(handle).aextend(_ttl(timeout))

    def release(self, handle: LockHandle) -> bool:
        """Give the lock back; ``False`` if this acquisition no longer holds it."""
        return _handle(handle).release()

    async def arelease(self, handle: LockHandle) -> bool:
        """Async version of ``release``."""
        return await _handle(handle).arelease()

    def force_release(self, key: str) -> bool:
        """Take the lock away from whoever holds it; ``True`` if there was one."""
        return self._provider().force_release(key)

    async def aforce_release(self, key: str) -> bool:
        """Async version of ``force_release``."""
        return await self._provider().aforce_release(key)

    def get(self, key: str) -> LockInfo | None:
        """The live lock, or ``None``."""
        return self._provider().get(key)

    async def aget(self, key: str) -> LockInfo | None:
        """Async version of ``get``."""
        return await self._provider().aget(key)

    def list(self, pattern: str | None = None) -> builtins.list[LockInfo]:
        """All live locks whose whole key matches the regular expression ``pattern``, by key."""
        return self._provider().list(pattern)

    async def alist(self, pattern: str | None = None) -> builtins.list[LockInfo]:
        """Async version of ``list``."""
        return await self._provider().alist(pattern)

    # What a backend may offer besides

    def remaining(self, key: str) -> float:
        """Seconds until the lock is free if nobody gives it back, by the server's clock; 0 if it is free now.

        Changes nothing.
        """
        provider = self._provider()
        return provider.store.run(provider.flows.remaining, key)

    async def aremaining(self, key: str) -> float:
        """Async version of ``remaining``."""
        provider = self._provider()
        return await provider.store.arun(provider.flows.remaining, key)

    def standing(self, key: str) -> tuple[float, float]:
        """``remaining``, and for how many seconds the lock has been held, by the server's clock."""
        provider = self._provider()
        return provider.store.run(provider.flows.standing, key)

    async def astanding(self, key: str) -> tuple[float, float]:
        """Async version of ``standing``."""
        provider = self._provider()
        return await provider.store.arun(provider.flows.standing, key)

    def renewable(self, handle: LockHandle, milliseconds: int) -> Renewable:
        """The lock as one of many leases that one command renews.

        :meta private:
        """
        inner = _handle(handle)
        provider = inner.provider
        return Renewable(
            provider.store, LOCKS, provider.flows.prefix + inner.key, inner.claim, milliseconds, lease=LEASE
        )
