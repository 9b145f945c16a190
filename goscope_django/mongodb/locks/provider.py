"""``adapter.lock`` and the handles that it gives out.

Each method runs one flow of ``LockFlows``. Rule of this file: arguments are checked before anything is sent.
"""

from __future__ import annotations

import builtins
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from goscope_django.contracts import LockInfo, Ttl
from goscope_django.core import arguments
from goscope_django.mongodb.document.expressions import instant
from goscope_django.mongodb.document.lease import new_claim
from goscope_django.mongodb.driver.store import Store
from goscope_django.mongodb.locks.flows import LockFlows


class MongoDBLockHandle:
    """One acquisition of a lock; a sync and async context manager that releases it. Another thread may use it, too.

    ``token`` is the fencing token. ``expires_at`` is the server's instant as of the last acquisition or extension.
    Every change is atomic. Every method raises ``StoreError`` if MongoDB fails or can't be reached.
    """

    __slots__ = ("_claim", "_id", "_provider", "expires_at", "key", "owner", "token")

    def __init__(self, provider: MongoDBLockProvider, key: str, claim: str, document: dict[str, Any]) -> None:
        """``MongoDBLockProvider.acquire`` makes it.

        :meta private:
        """
        expires_at = instant(document["expiresAt"])
        assert expires_at is not None
        self._provider = provider
        self._claim = claim
        self._id = document["_id"]
        self.key = key
        self.owner: str = document["owner"]
        self.token = int(document["token"])
        self.expires_at: datetime = expires_at

    def __repr__(self) -> str:
        return f"<lock {self.key!r} held by {self.owner!r}, token {self.token}, until {self.expires_at.isoformat()}>"

    @property
    def provider(self) -> MongoDBLockProvider:
        """The provider that it was acquired from.

        :meta private:
        """
        return self._provider

    @property
    def claim(self) -> str:
        """The random text that identifies this acquisition in the document.

        :meta private:
        """
        return self._claim

    def _extended(self, expires_at: datetime | None) -> bool:
        if expires_at is not None:
            self.expires_at = expires_at
        return expires_at is not None

    def release(self) -> bool:
        """Give the lock back; ``False`` if this acquisition no longer held it. One round trip.

        Raises ``OutcomeUnknown`` if the answer was lost and the lease may have ended before; the lock is free then, or
        another's.
        """
        flows = self._provider.flows
        return self._provider.store.run(flows.release, self.key, self._claim, self._id, self.expires_at)

    async def arelease(self) -> bool:
        """Async version of ``release``."""
        flows = self._provider.flows
        return await self._provider.store.arun(flows.release, self.key, self._claim, self._id, self.expires_at)

    def extend(self, ttl: Ttl) -> bool:
        """Let the lease end ``ttl`` (milliseconds or a ``timedelta``) from now. One round trip.

        ``False`` if this acquisition holds the lock no more. Raises ``InvalidType`` or ``InvalidValue`` for a bad
        ``ttl``.
        """
        milliseconds, flows = arguments.ttl_milliseconds(ttl), self._provider.flows
        identity = {"claim": self._claim}
        return self._extended(self._provider.store.run(flows.extend, self.key, milliseconds, identity, self._id))

    async def aextend(self, ttl: Ttl) -> bool:
        """Async version of ``extend``."""
        milliseconds, flows = arguments.ttl_milliseconds(ttl), self._provider.flows
        identity = {"claim": self._claim}
        extended = await self._provider.store.arun(flows.extend, self.key, milliseconds, identity, self._id)
        return self._extended(extended)

    def is_valid(self) -> bool:
        """Whether this acquisition holds the lock now. Only a fenced write proves it later. One round trip."""
        flows = self._provider.flows
        return self._provider.store.run(flows.held, self.key, self._claim, self._id)

    async def ais_valid(self) -> bool:
        """Async version of ``is_valid``."""
        flows = self._provider.flows
        return await self._provider.store.arun(flows.held, self.key, self._claim, self._id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.arelease()


class MongoDBLockProvider:
    """``adapter.lock``: see ``contracts.LockProvider``. Every method is one round trip, and every change is atomic.

    ``key`` is the lock's; ``ttl`` is in milliseconds or a ``timedelta``. Every method raises ``StoreError`` if MongoDB
    fails or can't be reached, and ``InvalidType`` or ``InvalidValue`` for an argument that can't be used.
    """

    def __init__(self, store: Store, *, key_prefix: str = "", default_ttl: Ttl = 30_000) -> None:
        """``MongoDBAdapter`` makes it.

        :meta private:
        """
        self.store = store
        self.flows = LockFlows(key_prefix)
        self.default_ttl = arguments.ttl_milliseconds(default_ttl, "default_lock_ttl")

    def _attempt(self, key: str, ttl: Ttl | None, owner: str | None, claim: str | None) -> tuple[str, int, str]:
        arguments.key(key)
        claim = claim or new_claim()
        milliseconds = self.default_ttl if ttl is None else arguments.ttl_milliseconds(ttl)
        return claim, milliseconds, claim if owner is None else arguments.key(owner, "owner")

    def acquire(
        self, key: str, ttl: Ttl | None = None, owner: str | None = None, *, claim: str | None = None
    ) -> MongoDBLockHandle | None:
        """Take the lock for ``ttl`` (milliseconds or a timedelta; the adapter's default if ``None``).

        ``None`` if anybody holds it, ``owner`` itself included. An expired lock is taken over at once. Atomic: one
        ``findAndModify``. Raises ``OutcomeUnknown`` if the server was lost half-way and can't be asked. ``claim`` is
        the attempt's random text; whoever has to clear up after an ``OutcomeUnknown`` makes it by ``new_claim()`` and
        gives it.
        """
        claim, milliseconds, name = self._attempt(key, ttl, owner, claim)
        found = self.store.run(self.flows.acquire, key, name, claim, milliseconds)
        return MongoDBLockHandle(self, key, claim, found) if found else None

    async def aacquire(
        self, key: str, ttl: Ttl | None = None, owner: str | None = None, *, claim: str | None = None
    ) -> MongoDBLockHandle | None:
        """Async version of ``acquire``. Cancelled while it is sent, it gives back what it may have taken."""
        claim, milliseconds, name = self._attempt(key, ttl, owner, claim)
        found = await self.store.arun(self.flows.acquire, key, name, claim, milliseconds)
        return MongoDBLockHandle(self, key, claim, found) if found else None

    def extend(self, key: str, ttl: Ttl, owner: str) -> bool:
        """Let the lease of ``owner`` end ``ttl`` from now; ``False`` if it does not hold the lock unexpired."""
        milliseconds, identity = arguments.ttl_milliseconds(ttl), {"owner": arguments.key(owner, "owner")}
        arguments.key(key)
        return self.store.run(self.flows.extend, key, milliseconds, identity) is not None

    async def aextend(self, key: str, ttl: Ttl, owner: str) -> bool:
        """Async version of ``extend``."""
        milliseconds, identity = arguments.ttl_milliseconds(ttl), {"owner": arguments.key(owner, "owner")}
        arguments.key(key)
        return await self.store.arun(self.flows.extend, key, milliseconds, identity) is not None

    def force_release(self, key: str) -> bool:
        """Remove the lock, whoever holds it; ``True`` if there was one."""
        arguments.key(key)
        return self.store.run(self.flows.force_release, key)

    async def aforce_release(self, key: str) -> bool:
        """Async version of ``force_release``."""
        arguments.key(key)
        return await self.store.arun(self.flows.force_release, key)

    def get(self, key: str) -> LockInfo | None:
        """The live lock, or ``None``."""
        arguments.key(key)
        return self.store.run(self.flows.get, key)

    async def aget(self, key: str) -> LockInfo | None:
        """Async version of ``get``."""
        arguments.key(key)
        return await self.store.arun(self.flows.get, key)

    def list(self, pattern: str | None = None) -> builtins.list[LockInfo]:
        """All live locks whose whole key matches the regular expression ``pattern``, by key.

        The pattern is code, never a user's text: see ``contracts``.
        """
        test = arguments.pattern(pattern)
        found = self.store.run(self.flows.list)
        return [one for one in found if test is None or test.fullmatch(one.key)]

    async def alist(self, pattern: str | None = None) -> builtins.list[LockInfo]:
        """Async version of ``list``."""
        test = arguments.pattern(pattern)
        found = await self.store.arun(self.flows.list)
        return [one for one in found if test is None or test.fullmatch(one.key)]
