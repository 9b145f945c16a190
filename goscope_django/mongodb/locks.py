"""Locks in ``go_goscope_locks``: leases with fencing tokens.

Acquiring is one ``findAndModify`` by the unique key whose pipeline decides, by server time, whether the lock is free
(after madelson/DistributedLock's MongoDB lock); each attempt is judged by a random claim of its own. The fencing
token is Kleppmann's (2016): see ``expressions`` for why it grows. A released lock's document is gone, and other
packages' locks (Node's) have no claim: whatever stands under the key holds the lock until it expires.
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

from pymongo import ReturnDocument
from pymongo.errors import PyMongoError

from goscope_django import arguments
from goscope_django.contracts import LockInfo, Ttl
from goscope_django.exceptions import OutcomeUnknown, StoreUnavailable
from goscope_django.mongodb.expressions import Clock, instant, literal, named, prefix_range
from goscope_django.mongodb.failures import may_have_happened
from goscope_django.mongodb.flow import Flow, Query, ask, perform
from goscope_django.mongodb.lease import Lease, new_claim, upsert
from goscope_django.mongodb.reading import whole_or_none
from goscope_django.mongodb.store import Store

LOCKS: Final = "go_goscope_locks"
LEASE: Final = Lease(holder=None)


class LockFlows:
    """The operations of one prefix, as flows."""

    def __init__(self, prefix: str) -> None:
        self.prefix = f"{prefix}lock:"

    def acquire(self, clock: Clock, key: str, owner: str, claim: str, ttl: int) -> Flow[dict[str, Any] | None]:
        """One command. The document if ``claim`` holds the lock now, else ``None``."""
        full = self.prefix + key

        def query() -> Query[dict[str, Any]]:
            fields = LEASE.take(clock, claim, ttl, owner=literal(owner), createdAt=clock.now())
            update = [{"$set": {**named(full), **fields}}]
            return Query(
                LOCKS, "find_one_and_update", {"key": full}, update, upsert=True, return_document=ReturnDocument.AFTER
            )

        try:
            found = yield from upsert(clock, query)
        except PyMongoError as error:
            if not may_have_happened(error):
                raise
            return (yield from self._settle(clock, full, claim, error))
        except GeneratorExit:
            raise
        except BaseException:
            # Cancelled or interrupted with the command on its way: nobody will ever use what it may have taken.
            with contextlib.suppress(PyMongoError):
                yield from ask(LOCKS, "delete_one", {"key": full, "claim": claim})
            raise
        # mongomock drops what has expired before it can be given back; a lock that short was never held.
        return found if found and found.get("claim") == claim else None

    def _settle(self, clock: Clock, full: str, claim: str, error: PyMongoError) -> Flow[dict[str, Any] | None]:
        """Find out whether an acquisition happened; if that can't be known either, give back what may be ours."""
        try:
            found: dict[str, Any] | None = yield from ask(LOCKS, "confirm", {"key": full})
        except PyMongoError:
            with contextlib.suppress(PyMongoError):
                yield from ask(LOCKS, "delete_one", {"key": full, "claim": claim})
            raise OutcomeUnknown(
                f"lock {full!r}: it may have been acquired; it was given back if the server could be reached, and else "
                f"ends with its lease"
            ) from error
        if found is None or found.get("claim") != claim:
            if found is not None:
                return None
            raise StoreUnavailable(f"lock {full!r}: the server did not carry out the acquisition: {error}") from error
        return found

    def extend(self, clock: Clock, key: str, ttl: int, identity: dict[str, str]) -> Flow[datetime | None]:
        """One command; the new expiry, or ``None`` if ``identity`` does not hold the lock any more."""
        query: Query[dict[str, Any] | None] = Query(
            LOCKS,
            "find_one_and_update",
            LEASE.mine(clock, key=self.prefix + key, **identity),
            LEASE.renew(clock, ttl),
            projection={"expiresAt": True},
            return_document=ReturnDocument.AFTER,
        )
        try:
            found = yield from perform(query)
        except PyMongoError as error:
            if not may_have_happened(error):
                raise
            # Its predicate is the holder's identity, so it may go out again: at worst the lease is a little longer.
            found = yield from perform(query)
        return instant(found["expiresAt"]) if found else None

    def release(self, clock: Clock, key: str, claim: str) -> Flow[bool]:
        """One command; ``True`` if the lock was still held by ``claim``."""
        full = self.prefix + key
        query: Query[Any] = Query(LOCKS, "delete_one", LEASE.mine(clock, key=full, claim=claim))
        try:
            return bool((yield from perform(query)).deleted_count)
        except PyMongoError as error:
            if not may_have_happened(error):
                raise
            if (yield from ask(LOCKS, "confirm", {"key": full, "claim": claim})) is None:
                return True
            yield from perform(query)
            return True

    def force_release(self, clock: Clock, key: str) -> Flow[bool]:
        removed = yield from ask(LOCKS, "delete_one", LEASE.mine(clock, key=self.prefix + key))
        return bool(removed.deleted_count)

    def held(self, clock: Clock, key: str, identity: dict[str, str]) -> Flow[bool]:
        test = LEASE.mine(clock, key=self.prefix + key, **identity)
        return (yield from ask(LOCKS, "find_one", test, {"_id": True})) is not None

    def get(self, clock: Clock, key: str) -> Flow[LockInfo | None]:
        test = {"key": self.prefix + key, "$expr": clock.live()}
        found = yield from ask(LOCKS, "find_one", test)
        return lock_info(found, self.prefix) if found else None

    def remaining(self, clock: Clock, key: str) -> Flow[float]:
        """Seconds until the lock can be had if nobody gives it back; 0 if it can be had now. One read."""
        projection = {"expiresAt": True, **clock.stamp()}
        found = yield from ask(LOCKS, "find_one", {"key": self.prefix + key}, projection)
        return LEASE.remaining(clock, found) if found else 0.0

    def list(self, clock: Clock, limit: int = 0) -> Flow[Sequence[LockInfo]]:
        test = {"key": prefix_range(self.prefix), "$expr": clock.live()}
        found = yield from ask(LOCKS, "find", test, sort=[("key", 1)], limit=limit)
        return [lock_info(one, self.prefix) for one in found]


def lock_info(document: dict[str, Any], prefix: str) -> LockInfo:
    """A lock as an observer sees it, of its document under ``prefix``. One without an owner has ``""`` for it."""
    owner = document.get("owner")
    return LockInfo(
        key=document["key"][len(prefix) :],
        owner="" if owner is None else str(owner),
        token=whole_or_none(document.get("token")),
        created_at=instant(document.get("createdAt")),
        expires_at=instant(document.get("expiresAt")),
    )


class MongoDBLockHandle:
    """One acquisition of a lock. May be handed to another thread; a context manager of both kinds that releases.

    ``token`` is the fencing token. ``expires_at`` is the server's instant as of the last acquisition or extension.
    """

    __slots__ = ("_claim", "_provider", "expires_at", "key", "owner", "token")

    def __init__(self, provider: MongoDBLockProvider, key: str, claim: str, document: dict[str, Any]) -> None:
        expires_at = instant(document["expiresAt"])
        assert expires_at is not None
        self._provider = provider
        self._claim = claim
        self.key = key
        self.owner: str = document["owner"]
        self.token = int(document["token"])
        self.expires_at: datetime = expires_at

    def __repr__(self) -> str:
        return f"<lock {self.key!r} held by {self.owner!r}, token {self.token}, until {self.expires_at.isoformat()}>"

    @property
    def provider(self) -> MongoDBLockProvider:
        """The provider that it was acquired from."""
        return self._provider

    @property
    def claim(self) -> str:
        """The random text that identifies this acquisition in the document."""
        return self._claim

    def _extended(self, expires_at: datetime | None) -> bool:
        if expires_at is not None:
            self.expires_at = expires_at
        return expires_at is not None

    def release(self) -> bool:
        """Give the lock back; ``False`` if this acquisition no longer held it. One round trip."""
        flows = self._provider.flows
        return self._provider.store.run(flows.release, self.key, self._claim)

    async def arelease(self) -> bool:
        """Asynchronous twin of ``release``."""
        flows = self._provider.flows
        return await self._provider.store.arun(flows.release, self.key, self._claim)

    def extend(self, ttl: Ttl) -> bool:
        """Let the lease end ``ttl`` from now; ``False`` if this acquisition holds it no more. One round trip."""
        milliseconds, flows = arguments.ttl_milliseconds(ttl), self._provider.flows
        identity = {"claim": self._claim}
        return self._extended(self._provider.store.run(flows.extend, self.key, milliseconds, identity))

    async def aextend(self, ttl: Ttl) -> bool:
        """Asynchronous twin of ``extend``."""
        milliseconds, flows = arguments.ttl_milliseconds(ttl), self._provider.flows
        identity = {"claim": self._claim}
        return self._extended(await self._provider.store.arun(flows.extend, self.key, milliseconds, identity))

    def is_valid(self) -> bool:
        """Whether this acquisition holds the lock now. Only a fenced write proves it later. One round trip."""
        flows = self._provider.flows
        return self._provider.store.run(flows.held, self.key, {"claim": self._claim})

    async def ais_valid(self) -> bool:
        """Asynchronous twin of ``is_valid``."""
        flows = self._provider.flows
        return await self._provider.store.arun(flows.held, self.key, {"claim": self._claim})

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
    """``adapter.lock``: see ``contracts.LockProvider``. Every method is one round trip."""

    def __init__(self, store: Store, *, key_prefix: str = "", default_ttl: Ttl = 30_000) -> None:
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
        the attempt's random text; whoever has to clear up after an ``OutcomeUnknown`` makes it himself, by
        ``new_claim()``.
        """
        claim, milliseconds, name = self._attempt(key, ttl, owner, claim)
        found = self.store.run(self.flows.acquire, key, name, claim, milliseconds)
        return MongoDBLockHandle(self, key, claim, found) if found else None

    async def aacquire(
        self, key: str, ttl: Ttl | None = None, owner: str | None = None, *, claim: str | None = None
    ) -> MongoDBLockHandle | None:
        """Asynchronous twin of ``acquire``. Cancelled while it is sent, it gives back what it may have taken."""
        claim, milliseconds, name = self._attempt(key, ttl, owner, claim)
        found = await self.store.arun(self.flows.acquire, key, name, claim, milliseconds)
        return MongoDBLockHandle(self, key, claim, found) if found else None

    def extend(self, key: str, ttl: Ttl, owner: str) -> bool:
        """Let the lease of ``owner`` end ``ttl`` from now; ``False`` if it does not hold the lock unexpired."""
        milliseconds, identity = arguments.ttl_milliseconds(ttl), {"owner": arguments.key(owner, "owner")}
        arguments.key(key)
        return self.store.run(self.flows.extend, key, milliseconds, identity) is not None

    async def aextend(self, key: str, ttl: Ttl, owner: str) -> bool:
        """Asynchronous twin of ``extend``."""
        milliseconds, identity = arguments.ttl_milliseconds(ttl), {"owner": arguments.key(owner, "owner")}
        arguments.key(key)
        return await self.store.arun(self.flows.extend, key, milliseconds, identity) is not None

    def force_release(self, key: str) -> bool:
        """Remove the lock, whoever holds it; ``True`` if there was one."""
        arguments.key(key)
        return self.store.run(self.flows.force_release, key)

    async def aforce_release(self, key: str) -> bool:
        """Asynchronous twin of ``force_release``."""
        arguments.key(key)
        return await self.store.arun(self.flows.force_release, key)

    def get(self, key: str) -> LockInfo | None:
        """The live lock, or ``None``."""
        arguments.key(key)
        return self.store.run(self.flows.get, key)

    async def aget(self, key: str) -> LockInfo | None:
        """Asynchronous twin of ``get``."""
        arguments.key(key)
        return await self.store.arun(self.flows.get, key)

    def list(self, pattern: str | None = None) -> builtins.list[LockInfo]:
        """All live locks whose whole key matches the regular expression ``pattern``, by key."""
        test = arguments.pattern(pattern)
        found = self.store.run(self.flows.list)
        return [one for one in found if test is None or test.fullmatch(one.key)]

    async def alist(self, pattern: str | None = None) -> builtins.list[LockInfo]:
        """Asynchronous twin of ``list``."""
        test = arguments.pattern(pattern)
        found = await self.store.arun(self.flows.list)
        return [one for one in found if test is None or test.fullmatch(one.key)]
