"""Idempotency records in ``go_goscope_idempotency``: a claim while the work runs, then its result.

A claim is a leased document. Other packages read any live document under the record's key as finished, so a claim stands
under a key of its own (``claim:<key>``) with the record's key as ``_id``; completing moves ``key`` in the same update. The
shape follows aws-powertools' state machine, with the predicate on the owner that its second writes lack.
"""

from __future__ import annotations

from typing import Any, Final

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, PyMongoError

from goscope_django import arguments
from goscope_django.contracts import IdempotencyClaim, IdempotencyRecord, Ttl
from goscope_django.exceptions import InvalidType, OutcomeUnknown
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.expressions import Clock, instant, literal, or_null
from goscope_django.mongodb.failures import may_have_happened
from goscope_django.mongodb.flow import ask, perform, Flow, Query
from goscope_django.mongodb.lease import Lease, new_claim, upsert
from goscope_django.mongodb.store import Store

IDEMPOTENCY: Final = "go_goscope_idempotency"
LEASE: Final = Lease()
_FIELDS: Final = dict.fromkeys(("key", "claim", "token", "fingerprint", "value", "expiresAt"), True)


class IdempotencyFlows:
    """The operations of one prefix, as flows."""

    def __init__(self, prefix: str, codec: Codec) -> None:
        self.prefix = prefix
        self.codec = codec

    def _either(self, full: str) -> dict[str, Any]:
        """A filter for the record of ``full``, in progress or finished, whoever made it."""
        return {"$or": [{"_id": full}, {"key": {"$in": [full, f"claim:{full}"]}}]}

    def _claimed(self, clock: Clock, full: str, token: int) -> dict[str, Any]:
        """A filter for the live claim with ``token``."""
        return LEASE.mine(clock, key=f"claim:{full}", token=token)

    def begin(self, clock: Clock, key: str, ttl: int, fingerprint: str | None, lease: int) -> Flow[IdempotencyClaim]:
        """One command, and one more if its outcome has to be looked up."""
        full, claim = self.prefix + key, new_claim()

        def query() -> Query[dict[str, Any]]:
            # Free to take is what has no claim and no live result, or a claim whose lease has ended.
            finished = {"$and": [{"$eq": [or_null("key"), literal(full)]}, clock.live()]}
            grant = LEASE.take(
                clock,
                claim,
                lease,
                unless=finished,
                key=literal(f"claim:{full}"),
                fingerprint=literal(fingerprint),
                value=None,
                retention=ttl,
                retainUntil=clock.after(ttl),
                updatedAt=clock.now(),
            )
            return Query(
                IDEMPOTENCY,
                "find_one_and_update",
                self._either(full),
                [{"$set": {"_id": {"$ifNull": ["$_id", literal(full)]}, **grant}}],
                projection={**_FIELDS, **clock.stamp()},
                sort=[("claim", 1)],
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )

        try:
            found = yield from upsert(clock, query)
        except PyMongoError as error:
            if not may_have_happened(error):
                raise
            found = yield from self._settle(full, claim, error)
        if found.get("claim") == claim:
            return IdempotencyClaim("started", token=int(found["token"]), claim=claim)
        known = found.get("fingerprint")
        if fingerprint is not None and known is not None and known != fingerprint:
            return IdempotencyClaim("mismatch")
        if found.get("claim") is not None:
            wait = LEASE.remaining(clock, found) if "now" in found or not clock.stamp() else lease / 1_000
            return IdempotencyClaim("in_progress", retry_after=wait)
        return IdempotencyClaim("completed", value=self.codec.decode(full, found.get("value")))

    def _settle(self, full: str, claim: str, error: PyMongoError) -> Flow[dict[str, Any]]:
        try:
            found: dict[str, Any] | None = yield from ask(IDEMPOTENCY, "confirm", self._either(full))
        except PyMongoError:
            found = None
        if found is None:
            raise OutcomeUnknown(
                f"idempotency key {full!r}: a claim may have been made; it ends with its lease"
            ) from error
        return found

    def complete(self, clock: Clock, key: str, token: int, value: object, ttl: int | None) -> Flow[bool]:
        """One command: store the result and make it the record, if ``token`` is the live claim's."""
        full = self.prefix + key
        keep = clock.after(ttl) if ttl is not None else clock.after_field("retention", "retainUntil")
        done = {
            "key": literal(full),
            "value": literal(self.codec.encode(full, value)),
            "expiresAt": keep,
            "claim": None,
            "updatedAt": clock.now(),
        }
        query: Query[Any] = Query(IDEMPOTENCY, "update_one", self._claimed(clock, full, token), [{"$set": done}])
        try:
            return bool((yield from perform(query)).matched_count)
        except DuplicateKeyError:
            # Somebody who knows no claims (Node) stored a result meanwhile: the first result stands, ours is dropped.
            yield from ask(IDEMPOTENCY, "delete_one", self._claimed(clock, full, token))
            return False
        except PyMongoError as error:
            if not may_have_happened(error):
                raise
            test = {"key": {"$in": [full, f"claim:{full}"]}, "token": token}
            found = yield from ask(IDEMPOTENCY, "confirm", test)
            if found is None:
                return False
            if found["key"] == full:
                return True
            return bool((yield from perform(query)).matched_count)

    def abandon(self, clock: Clock, key: str, token: int) -> Flow[bool]:
        """One command: remove the live claim, so that the next caller starts at once."""
        removed = yield from ask(IDEMPOTENCY, "delete_one", self._claimed(clock, self.prefix + key, token))
        return bool(removed.deleted_count)

    def extend(self, clock: Clock, key: str, token: int, lease: int) -> Flow[bool]:
        """One command: let the claim's lease end ``lease`` milliseconds from now."""
        test = self._claimed(clock, self.prefix + key, token)
        changed = yield from ask(IDEMPOTENCY, "update_one", test, LEASE.renew(clock, lease))
        return bool(changed.matched_count)

    def get(self, clock: Clock, key: str) -> Flow[IdempotencyRecord | None]:
        full = self.prefix + key
        found = yield from ask(IDEMPOTENCY, "find_one", {"key": full, "$expr": clock.live()})
        if found is None:
            return None
        return IdempotencyRecord(self.codec.decode(full, found.get("value")), instant(found.get("expiresAt")))

    def set(self, clock: Clock, key: str, value: object, ttl: int | None) -> Flow[None]:
        """One command: the result of ``key``, whatever was there before; a claim in progress loses its key."""
        full = self.prefix + key
        fields = {
            "_id": {"$ifNull": ["$_id", literal(full)]},
            "key": literal(full),
            "value": literal(self.codec.encode(full, value)),
            "expiresAt": None if ttl is None else clock.after(ttl),
            "claim": None,
            "fingerprint": None,
            "updatedAt": clock.now(),
        }

        def query() -> Query[Any]:
            return Query(IDEMPOTENCY, "update_one", self._either(full), [{"$set": fields}], upsert=True)

        yield from upsert(clock, query)

    def delete(self, clock: Clock, key: str) -> Flow[bool]:
        removed = yield from ask(IDEMPOTENCY, "delete_many", self._either(self.prefix + key))
        return bool(removed.deleted_count)


class MongoDBIdempotencyProvider:
    """``adapter.idempotency``: see ``contracts.IdempotencyProvider``. Every method is one round trip."""

    def __init__(self, store: Store, *, key_prefix: str = "", codec: Codec | None = None) -> None:
        self.store = store
        self.flows = IdempotencyFlows(key_prefix, codec or Codec(pickle=False))

    @staticmethod
    def _begin(ttl: Ttl, fingerprint: str | None, lease_ttl: Ttl) -> tuple[int, str | None, int]:
        if fingerprint is not None:
            arguments.key(fingerprint, "fingerprint")
        return arguments.ttl_milliseconds(ttl), fingerprint, arguments.ttl_milliseconds(lease_ttl, "lease_ttl")

    @staticmethod
    def _token(token: int) -> int:
        if type(token) is not int:
            raise InvalidType(f"token={token!r}: the token of a claim (int) is needed")
        return token

    @staticmethod
    def _ttl(ttl: Ttl | None) -> int | None:
        return None if ttl is None else arguments.ttl_milliseconds(ttl)

    def begin(self, key: str, ttl: Ttl, fingerprint: str | None = None, lease_ttl: Ttl = 60_000) -> IdempotencyClaim:
        """Claim ``key``, or say what stands in the way. Atomic: of concurrent calls exactly one is ``started``.

        ``ttl`` is how long the result will be kept, ``lease_ttl`` how long the claim holds unless extended. Raises
        ``OutcomeUnknown`` if the server was lost half-way and can't be asked, ``Undecodable`` if the stored result is
        damaged.
        """
        return self.store.run(self.flows.begin, arguments.key(key), *self._begin(ttl, fingerprint, lease_ttl))

    async def abegin(
        self, key: str, ttl: Ttl, fingerprint: str | None = None, lease_ttl: Ttl = 60_000
    ) -> IdempotencyClaim:
        """Asynchronous twin of ``begin``."""
        return await self.store.arun(self.flows.begin, arguments.key(key), *self._begin(ttl, fingerprint, lease_ttl))

    def complete(self, key: str, token: int, value: Any, ttl: Ttl | None = None) -> bool:
        """Store the result, kept for ``ttl`` (``begin``'s if ``None``); ``False`` unless ``token`` is the live claim's."""
        return self.store.run(self.flows.complete, arguments.key(key), self._token(token), value, self._ttl(ttl))

    async def acomplete(self, key: str, token: int, value: Any, ttl: Ttl | None = None) -> bool:
        """Asynchronous twin of ``complete``."""
        return await self.store.arun(self.flows.complete, arguments.key(key), self._token(token), value, self._ttl(ttl))

    def abandon(self, key: str, token: int) -> bool:
        """Give the claim up without a result; ``False`` unless ``token`` is the live claim's."""
        return self.store.run(self.flows.abandon, arguments.key(key), self._token(token))

    async def aabandon(self, key: str, token: int) -> bool:
        """Asynchronous twin of ``abandon``."""
        return await self.store.arun(self.flows.abandon, arguments.key(key), self._token(token))

    def extend(self, key: str, token: int, lease_ttl: Ttl) -> bool:
        """Let the claim's lease end ``lease_ttl`` from now; ``False`` unless ``token`` is the live claim's."""
        lease = arguments.ttl_milliseconds(lease_ttl, "lease_ttl")
        return self.store.run(self.flows.extend, arguments.key(key), self._token(token), lease)

    async def aextend(self, key: str, token: int, lease_ttl: Ttl) -> bool:
        """Asynchronous twin of ``extend``."""
        lease = arguments.ttl_milliseconds(lease_ttl, "lease_ttl")
        return await self.store.arun(self.flows.extend, arguments.key(key), self._token(token), lease)

    def get(self, key: str) -> IdempotencyRecord | None:
        """The result, or ``None`` if there is none yet or it has expired. A claim in progress is no result."""
        return self.store.run(self.flows.get, arguments.key(key))

    async def aget(self, key: str) -> IdempotencyRecord | None:
        """Asynchronous twin of ``get``."""
        return await self.store.arun(self.flows.get, arguments.key(key))

    def set(self, key: str, value: Any, ttl: Ttl | None = None) -> None:
        """Store a result without a claim, overwriting whatever is there. ``ttl=None`` keeps it for good."""
        self.store.run(self.flows.set, arguments.key(key), value, self._ttl(ttl))

    async def aset(self, key: str, value: Any, ttl: Ttl | None = None) -> None:
        """Asynchronous twin of ``set``."""
        await self.store.arun(self.flows.set, arguments.key(key), value, self._ttl(ttl))

    def delete(self, key: str) -> bool:
        """Remove the result, and a claim in progress; ``True`` if there was one."""
        return self.store.run(self.flows.delete, arguments.key(key))

    async def adelete(self, key: str) -> bool:
        """Asynchronous twin of ``delete``."""
        return await self.store.arun(self.flows.delete, arguments.key(key))
