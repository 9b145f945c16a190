"""The filters and updates of ``go_goscope_locks``: leases with fencing tokens, as flows.

Acquiring is one ``findAndModify`` whose pipeline decides, by server time, whether the lock is free (after
madelson/DistributedLock's MongoDB lock). Rules of this file:

* Each attempt is judged by a random claim of its own, never by counts.
* It goes by ``_id``, or by the unique ``key`` where a document of another package stands.
* The fencing token grows with each acquisition (Kleppmann, 2016); ``document.clock`` says why.
* The document of a released lock is gone. A lock of another package (Node's) has no claim: whatever stands under the
  key holds the lock until it expires.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from bson.timestamp import Timestamp
from pymongo import ReturnDocument
from pymongo.errors import PyMongoError

from goscope_django.contracts import LockInfo
from goscope_django.core.flow import Flow, Query, ask, perform
from goscope_django.exceptions import OutcomeUnknown, StoreUnavailable
from goscope_django.mongodb.document.clock import Clock, outrun
from goscope_django.mongodb.document.expressions import instant, literal, named, prefix_range
from goscope_django.mongodb.document.failures import may_have_happened
from goscope_django.mongodb.document.lease import Lease, by_id, surely_lasts, upsert
from goscope_django.mongodb.document.reading import NOT_A_LIST, whole_or_none

LOCKS: Final = "go_goscope_locks"
LEASE: Final = Lease(holder=None)


class LockFlows:
    """The operations of one prefix, as flows."""

    def __init__(self, prefix: str) -> None:
        self.prefix = f"{prefix}lock:"

    def acquire(self, clock: Clock, key: str, owner: str, claim: str, ttl: int) -> Flow[dict[str, Any] | None]:
        """The document if ``claim`` holds the lock now, else ``None``. One command.

        One more where the answer's time says that another holder may have come and gone while the command was on its
        way: then the lock gets a token of now.
        """
        full = self.prefix + key
        found: dict[str, Any] | None
        try:
            found, answered = yield from self._take(clock, full, owner, claim, ttl)
            # mongomock drops what has expired before it can be read; a lock that short was never held.
            if found is None or found.get("claim") != claim:
                return None
            anew = outrun(found["token"], found["createdAt"], answered)
        except PyMongoError as error:
            if not may_have_happened(error):
                raise
            found = yield from self._settle(clock, full, claim, error)
            if found is None:
                return None
            anew = True  # its answer, which would tell, is lost
        except GeneratorExit:
            raise
        except BaseException:
            # Cancelled or interrupted with the command on its way: nobody will ever use what it may have taken.
            with contextlib.suppress(PyMongoError):
                yield from ask(LOCKS, "delete_one", {"key": full, "claim": claim})
            raise
        return (yield from self._renumber(clock, key, found, ttl)) if anew else found

    def _renumber(self, clock: Clock, key: str, found: dict[str, Any], ttl: int) -> Flow[dict[str, Any] | None]:
        """Give the lock that was just taken a token of now. ``None`` if its lease has ended."""
        mine = {**self._place(clock, key, found["_id"]), "claim": found["claim"]}
        query: Query[dict[str, Any] | None] = Query(
            LOCKS,
            "find_one_and_update",
            LEASE.mine(clock, **mine),
            LEASE.renumber(clock, ttl),
            return_document=ReturnDocument.AFTER,
        )
        try:
            try:
                return (yield from perform(query))
            except PyMongoError:  # the predicate is the claim: at worst it is numbered twice
                try:
                    return (yield from perform(query))
                except PyMongoError:
                    now = yield from ask(LOCKS, "confirm", mine)
                    if now is None or whole_or_none(now.get("token")) in (None, found["token"]):
                        raise
                    return dict(now)  # it was numbered: only the answers were lost
        except GeneratorExit:
            raise
        except BaseException as error:
            with contextlib.suppress(PyMongoError):
                yield from ask(LOCKS, "delete_one", mine)
            if not isinstance(error, PyMongoError):
                raise
            raise OutcomeUnknown(
                f"lock {self.prefix + key!r}: it was acquired and could not be numbered; it was given back if the "
                f"server could be reached, and else ends with its lease"
            ) from error

    @staticmethod
    def _take(
        clock: Clock, full: str, owner: str, claim: str, ttl: int
    ) -> Flow[tuple[dict[str, Any], Timestamp | None]]:
        """Take the lock if it is free: the document as it is afterwards, and the answer's cluster time, if any."""

        def query(name: str) -> Query[tuple[dict[str, Any], Timestamp | None]]:
            grant = LEASE.grant(clock, claim, ttl, owner=literal(owner), createdAt=clock.now())
            change = clock.put(LEASE.free(clock), {**named(full), "key": literal(full), **grant})
            return Query(LOCKS, "upserted", {name: full}, change)

        found = yield from by_id(clock, perform(query("_id")))
        if found is None:
            found = yield from upsert(clock, lambda: query("key"))
        return found

    def _place(self, clock: Clock, key: str, own_id: object) -> dict[str, Any]:
        """What finds the document of ``key``, whose ``_id`` is known or else ``None``.

        By ``_id`` where possible: each release leaves a dead entry in the index of ``key``, and for some minutes the
        server reads all of them before it comes to the living one.
        """
        return {"key": self.prefix + key} if own_id is None or not clock.by_id else {"_id": own_id}

    def _settle(self, clock: Clock, full: str, claim: str, error: PyMongoError) -> Flow[dict[str, Any] | None]:
        """Find out whether an acquisition happened. If that can't be known either, give back what may be ours."""
        stands = {"key": full, "$or": [{"claim": claim}, {"$expr": clock.live()}]}
        try:
            found: dict[str, Any] | None = yield from ask(LOCKS, "confirm", stands)
        except PyMongoError:
            with contextlib.suppress(PyMongoError):
                yield from ask(LOCKS, "delete_one", {"key": full, "claim": claim})
            raise OutcomeUnknown(
                f"lock {full!r}: it may have been acquired; it was given back if the server could be reached, and else "
                f"ends with its lease"
            ) from error
        if found is None:
            raise StoreUnavailable(f"lock {full!r}: the server did not carry out the acquisition: {error}") from error
        return found if found.get("claim") == claim else None

    def extend(
        self, clock: Clock, key: str, ttl: int, identity: dict[str, str], own_id: object = None
    ) -> Flow[datetime | None]:
        """One command; the new expiry, or ``None`` if ``identity`` does not hold the lock any more."""
        query: Query[dict[str, Any] | None] = Query(
            LOCKS,
            "find_one_and_update",
            LEASE.mine(clock, **self._place(clock, key, own_id), **identity),
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

    def release(
        self, clock: Clock, key: str, claim: str, own_id: object = None, until: datetime | None = None
    ) -> Flow[bool]:
        """One command; ``True`` if the lock was still held by ``claim``, whose lease lasts ``until`` at least.

        If its outcome is unknown it takes more: a document that is not there was removed by us only if nobody else can
        have taken it. Raises ``OutcomeUnknown`` if somebody can.
        """
        place = self._place(clock, key, own_id)
        query: Query[Any] = Query(LOCKS, "delete_one", LEASE.mine(clock, **place, claim=claim))
        try:
            return bool((yield from perform(query)).deleted_count)
        except PyMongoError as error:
            if not may_have_happened(error):
                raise
            ours = {**place, "claim": claim}
            if (yield from ask(LOCKS, "confirm", ours)) is not None:
                if (yield from perform(query)).deleted_count:
                    return True
                if (yield from ask(LOCKS, "confirm", ours)) is not None:
                    return False  # its lease has ended
            if (yield from surely_lasts(clock, until)):
                return True
            raise OutcomeUnknown(
                f"lock {self.prefix + key!r}: it is not held by this acquisition any more; whether its release or the "
                f"end of its lease came first is unknown"
            ) from error

    def force_release(self, clock: Clock, key: str) -> Flow[bool]:
        removed = yield from ask(LOCKS, "delete_one", LEASE.mine(clock, key=self.prefix + key))
        return bool(removed.deleted_count)

    def held(self, clock: Clock, key: str, claim: str, own_id: object) -> Flow[bool]:
        test = LEASE.mine(clock, **self._place(clock, key, own_id), claim=claim)
        return (yield from ask(LOCKS, "find_one", test, {"_id": True})) is not None

    def get(self, clock: Clock, key: str) -> Flow[LockInfo | None]:
        test = {"key": self.prefix + key, "$expr": clock.live()}
        found = yield from ask(LOCKS, "find_one", test)
        return lock_info(found, self.prefix) if found else None

    def remaining(self, clock: Clock, key: str) -> Flow[float]:
        """Seconds until the lock is free if nobody gives it back; 0 if it is free now. One read."""
        return (yield from self.standing(clock, key))[0]

    def standing(self, clock: Clock, key: str) -> Flow[tuple[float, float]]:
        """``remaining``, and for how many seconds the lock has been held. One read."""
        projection = {"expiresAt": True, "createdAt": True, **clock.stamp()}
        found = yield from ask(LOCKS, "find_one", {"key": self.prefix + key}, projection)
        if not found:
            return 0.0, 0.0
        now, since = instant(clock.read_stamp(found)), instant(found.get("createdAt"))
        age = 0.0 if now is None or since is None else max(0.0, (now - since).total_seconds())
        return LEASE.remaining(clock, found), age

    def list(self, clock: Clock, limit: int = 0) -> Flow[Sequence[LockInfo]]:
        test = {"key": prefix_range(self.prefix), "key.0": NOT_A_LIST, "$expr": clock.live()}
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


def release_lock(
    clock: Clock, flows: LockFlows, key: str, token: int | None, owner: str | None
) -> Flow[tuple[bool, LockInfo | None]]:
    """Remove a held lock if it has this token and owner (``None``: any); else what is there. Two commands at most."""
    identity: dict[str, Any] = {"key": flows.prefix + key}
    if token is not None:
        identity["token"] = token
    if owner is not None:
        identity["owner"] = owner or {"$in": ["", None]}  # as it was seen: one without an owner has "" for it
    removed = yield from ask(LOCKS, "delete_one", LEASE.mine(clock, **identity))
    if removed.deleted_count:
        return True, None
    return False, (yield from flows.get(clock, key))
