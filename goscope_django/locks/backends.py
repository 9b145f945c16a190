"""Where locks are kept: the interface, and the one that keeps them in MongoDB.

``GOSCOPE["LOCK_BACKEND"]`` names a class. Its object needs the methods of ``LockBackend`` and nothing of MongoDB;
everything that waits, renews, tells of losses and decorates is built on these.
"""

from __future__ import annotations

import builtins
import time
from typing import Any, Protocol

from goscope_django import conf, runtime
from goscope_django.contracts import LockHandle, LockInfo
from goscope_django.core import arguments
from goscope_django.core.arguments import Duration
from goscope_django.exceptions import InvalidType, OutcomeUnknown
from goscope_django.mongodb.document.lease import new_claim
from goscope_django.mongodb.locks.flows import LEASE, LOCKS
from goscope_django.mongodb.locks.provider import MongoDBLockHandle, MongoDBLockProvider
from goscope_django.process import renewal
from goscope_django.process.kept_lease import Extendable, Renewable, Renewal


class LockBackend(Protocol):
    """What ``GOSCOPE["LOCK_BACKEND"]`` must be able to do. ``timeout`` is seconds or a ``timedelta``.

    ``acquire`` makes one attempt, which is judged by whether this very attempt succeeded; a lock whose lease has ended
    must be free. ``extend`` and ``release`` get the handle that ``acquire`` returned and act on that acquisition only:
    ``False`` if it no longer holds the lock. A handle needs ``key``, ``owner``, ``token`` (grows with each acquisition
    of the key) and ``expires_at``. ``get`` and ``list`` tell of live locks. Every method has a twin with an ``a`` in
    front, needed for ``async with`` and asynchronous functions.
    """

    def acquire(self, key: str, timeout: Duration | None = None, owner: str | None = None) -> Any: ...
    def extend(self, handle: Any, timeout: Duration) -> bool: ...
    def release(self, handle: Any) -> bool: ...
    def force_release(self, key: str) -> bool: ...
    def get(self, key: str) -> LockInfo | None: ...
    def list(self, pattern: str | None = None) -> builtins.list[LockInfo]: ...
    async def aacquire(self, key: str, timeout: Duration | None = None, owner: str | None = None) -> Any: ...
    async def aextend(self, handle: Any, timeout: Duration) -> bool: ...
    async def arelease(self, handle: Any) -> bool: ...
    async def aforce_release(self, key: str) -> bool: ...
    async def aget(self, key: str) -> LockInfo | None: ...
    async def alist(self, pattern: str | None = None) -> builtins.list[LockInfo]: ...


def _handle(value: object) -> MongoDBLockHandle:
    inner = getattr(value, "inner", value)
    if not isinstance(inner, MongoDBLockHandle):
        raise InvalidType(f"handle={value!r:.80}: what acquire() returned is needed")
    return inner


def _ttl(timeout: Duration | None) -> int:
    if timeout is None:
        timeout = conf.current().default_lock_timeout
    return arguments.duration_milliseconds(timeout, "timeout")


def _soon(orphan: Renewal) -> None:
    orphan.due = renewal.now() + renewal.RETRY
    if orphan.renewer is not None:
        orphan.renewer.hurry(orphan)


class MongoDBLockBackend:
    """Locks in ``go_goscope_locks`` of ``GOSCOPE["URL"]``: see ``LockBackend``. Each method is one round trip.

    Raises ``StoreUnavailable`` or ``OutcomeUnknown`` if the server can't be reached.
    """

    def _provider(self) -> MongoDBLockProvider:
        return runtime.adapter().lock

    def acquire(self, key: str, timeout: Duration | None = None, owner: str | None = None) -> LockHandle | None:
        """Take the lock if it is free or its lease has ended, in one atomic step; ``None`` if somebody holds it.

        After an ``OutcomeUnknown`` what may have been acquired is given back in the background, once the server
        answers.
        """
        claim, milliseconds = new_claim(), _ttl(timeout)
        try:
            return self._provider().acquire(key, milliseconds, owner, claim=claim)
        except OutcomeUnknown:
            _soon(renewal.keep(self._orphan(key, claim, milliseconds), time.monotonic()))
            raise

    async def aacquire(self, key: str, timeout: Duration | None = None, owner: str | None = None) -> LockHandle | None:
        """Asynchronous twin of ``acquire``."""
        claim, milliseconds = new_claim(), _ttl(timeout)
        try:
            return await self._provider().aacquire(key, milliseconds, owner, claim=claim)
        except OutcomeUnknown:
            _soon(renewal.akeep(self._orphan(key, claim, milliseconds), time.monotonic()))
            raise

    def _orphan(self, key: str, claim: str, milliseconds: int) -> Extendable:
        """What nobody holds and nobody knows to be there: not renewed but given back, tried until its lease has
        ended."""
        provider = self._provider()

        def give_back() -> bool:
            provider.store.run(provider.flows.release, key, claim)
            return False

        async def agive_back() -> bool:
            await provider.store.arun(provider.flows.release, key, claim)
            return False

        return Extendable(key, claim, milliseconds, give_back, agive_back)

    def extend(self, handle: LockHandle, timeout: Duration) -> bool:
        """Let the lease end ``timeout`` from now; ``False`` if this acquisition no longer holds the lock."""
        return _handle(handle).extend(_ttl(timeout))

    async def aextend(self, handle: LockHandle, timeout: Duration) -> bool:
        """Asynchronous twin of ``extend``."""
        return await _handle(handle).aextend(_ttl(timeout))

    def release(self, handle: LockHandle) -> bool:
        """Give the lock back; ``False`` if this acquisition no longer holds it."""
        return _handle(handle).release()

    async def arelease(self, handle: LockHandle) -> bool:
        """Asynchronous twin of ``release``."""
        return await _handle(handle).arelease()

    def force_release(self, key: str) -> bool:
        """Take the lock away from whoever holds it; ``True`` if there was one."""
        return self._provider().force_release(key)

    async def aforce_release(self, key: str) -> bool:
        """Asynchronous twin of ``force_release``."""
        return await self._provider().aforce_release(key)

    def get(self, key: str) -> LockInfo | None:
        """The live lock, or ``None``."""
        return self._provider().get(key)

    async def aget(self, key: str) -> LockInfo | None:
        """Asynchronous twin of ``get``."""
        return await self._provider().aget(key)

    def list(self, pattern: str | None = None) -> builtins.list[LockInfo]:
        """All live locks whose whole key matches the regular expression ``pattern``, by key."""
        return self._provider().list(pattern)

    async def alist(self, pattern: str | None = None) -> builtins.list[LockInfo]:
        """Asynchronous twin of ``list``."""
        return await self._provider().alist(pattern)

    # What a backend may have besides: it saves commands.

    def remaining(self, key: str) -> float:
        """Seconds until the lock can be had if nobody gives it back, by the server's clock; 0 if it can be had now."""
        provider = self._provider()
        return provider.store.run(provider.flows.remaining, key)

    async def aremaining(self, key: str) -> float:
        """Asynchronous twin of ``remaining``."""
        provider = self._provider()
        return await provider.store.arun(provider.flows.remaining, key)

    def renewable(self, handle: LockHandle, milliseconds: int) -> Renewable:
        """What lets the renewal of many locks be one command."""
        inner, provider = _handle(handle), _handle(handle).provider
        return Renewable(
            provider.store, LOCKS, provider.flows.prefix + inner.key, inner.claim, milliseconds, lease=LEASE
        )
