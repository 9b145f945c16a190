"""How an idempotency key is claimed in ``go_goscope_idempotency``, as flows; ``idempotency_flows`` has what follows.

A claim is a leased document. Other packages read any live document under the record's key as finished, so a claim
stands under a key of its own (``claim:<key>``) with the record's key as ``_id``; completing moves ``key`` in the same
update. The shape follows aws-powertools' state machine, with the predicate on the owner that its second writes lack.

Of one record there are at most two documents: the unique index allows one under each of the two keys, and two only if
another package, which knows no claims, stored a result while a claim stood. Then the live result is what counts, and an
expired one is out of the way at the first collision with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, PyMongoError

from goscope_django.contracts import IdempotencyClaim
from goscope_django.exceptions import InvalidValue, OutcomeUnknown
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.expressions import Clock, ServerClock, instant, literal, named, or_null
from goscope_django.mongodb.failures import may_have_happened
from goscope_django.mongodb.flow import Flow, Query, ask
from goscope_django.mongodb.lease import Lease, new_claim, upsert

IDEMPOTENCY: Final = "go_goscope_idempotency"
LEASE: Final = Lease()
SURELY: Final = timedelta(seconds=30)
"""A server's time of operation is at most ten idle seconds old: a result that lives on for so much longer is alive."""

_REMEMBERED: Final = 10_000
_FIELDS: Final = dict.fromkeys(("key", "claim", "token", "fingerprint", "value", "expiresAt"), True)


def claim_key(full: str) -> str:
    """The ``key`` of a claim on the record ``full``."""
    return f"claim:{full}"


class ClaimFlows:
    """The claims of one prefix.

    ``finished`` holds the keys whose result this process has seen, so that a repeat is answered by one read, and
    whether the result was to expire soon. It is a guess about the order of commands, never an answer: results are
    neither kept here nor taken for granted.
    """

    def __init__(self, prefix: str, codec: Codec) -> None:
        self.prefix = prefix
        self.codec = codec
        self.finished: dict[str, bool] = {}

    def full(self, key: str) -> str:
        """The stored key. Raises ``InvalidValue`` for one that would look like the claim of another record."""
        full = self.prefix + key
        if full.startswith("claim:"):
            raise InvalidValue(f"key={full!r:.80}: stored keys that begin with 'claim:' are those of claims")
        return full

    def either(self, full: str) -> dict[str, Any]:
        """A filter for the record of ``full``, in progress or finished, whoever made it."""
        return {"key": {"$in": [full, claim_key(full)]}}

    def result_first(self, full: str) -> list[tuple[str, int]]:
        """A sort, which the index on ``key`` serves, that puts a result before a claim."""
        return [("key", 1 if full.encode("utf-8") < b"claim:" else -1)]

    def claimed(self, clock: Clock, full: str, token: int) -> dict[str, Any]:
        """A filter for the live claim with ``token``."""
        return LEASE.mine(clock, key=claim_key(full), token=token)

    def remember(self, full: str) -> None:
        known = self.finished
        known.setdefault(full, False)
        if len(known) > _REMEMBERED:
            with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # another thread was quicker
                del known[next(iter(known))]

    # Claim

    def begin(self, clock: Clock, key: str, ttl: int, fingerprint: str | None, lease: int) -> Flow[IdempotencyClaim]:
        """One command: a read where the result was seen before, else the claim; two where that was in vain."""
        full = self.full(key)
        if full in self.finished:
            found = yield from self._recall(clock, full)
            if found is not None:
                return self._judged(clock, full, found, fingerprint, lease)
            self.finished.pop(full, None)
        claim = new_claim()
        found = yield from self._take(clock, full, claim, ttl, fingerprint, lease)
        if found.get("claim") == claim:
            return IdempotencyClaim("started", token=int(found["token"]), claim=claim)
        return self._judged(clock, full, found, fingerprint, lease)

    def _recall(self, clock: Clock, full: str) -> Flow[dict[str, Any] | None]:
        """The live result. An expression on time would cost the server a fifth of the read, so the time of operation
        that comes with each answer decides where it can."""
        found: dict[str, Any] | None
        if isinstance(clock, ServerClock) and clock.cluster_time and not self.finished.get(full):
            moment: datetime | None
            found, moment = yield from ask(IDEMPOTENCY, "recent", {"key": full})
            expires = instant(found.get("expiresAt")) if found else None
            if found is None or expires is None or (moment is not None and expires - moment > SURELY):
                return found
            self.finished[full] = True
        found = yield from ask(IDEMPOTENCY, "find_one", {"key": full, "$expr": clock.live()})
        return found

    def _take(
        self, clock: Clock, full: str, claim: str, ttl: int, fingerprint: str | None, lease: int
    ) -> Flow[dict[str, Any]]:
        """The record's document, which has ``claim`` if it was free to take: no live result and no live claim."""

        def query() -> Query[dict[str, Any]]:
            done = {"$and": [{"$eq": [or_null("key"), literal(full)]}, clock.live()]}
            grant = LEASE.take(
                clock,
                claim,
                lease,
                unless=done,
                key=literal(claim_key(full)),
                fingerprint=literal(fingerprint),
                value=None,
                retention=ttl,
                retainUntil=clock.after(ttl),
                updatedAt=clock.now(),
            )
            return Query(
                IDEMPOTENCY,
                "find_one_and_update",
                self.either(full),
                [{"$set": {**named(full), **grant}}],
                projection={**_FIELDS, **clock.stamp()},
                sort=self.result_first(full),
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )

        try:
            try:
                return (yield from self._colliding(clock, full, query))
            except PyMongoError as error:
                if not may_have_happened(error):
                    raise
                # It is judged by its own claim, so it may go out again: what it took the first time it finds.
                try:
                    return (yield from self._colliding(clock, full, query))
                except PyMongoError:
                    raise OutcomeUnknown(
                        f"idempotency key {full!r}: a claim may have been made; it ends with its lease"
                    ) from error
        except (GeneratorExit, PyMongoError, OutcomeUnknown):
            raise
        except BaseException:
            # Cancelled or interrupted with the command on its way: nobody will ever use what it may have taken.
            with contextlib.suppress(PyMongoError):
                yield from ask(IDEMPOTENCY, "delete_one", {"key": claim_key(full), "claim": claim})
            raise

    def _colliding(self, clock: Clock, full: str, query: Callable[[], Query[Any]]) -> Flow[dict[str, Any]]:
        found: dict[str, Any]
        try:
            found = yield from upsert(clock, query)
        except DuplicateKeyError:
            yield from self.clear(clock, full)
            found = yield from upsert(clock, query)
        return found

    def clear(self, clock: Clock, full: str) -> Flow[None]:
        """Remove an expired result that stands beside a claim."""
        yield from ask(IDEMPOTENCY, "delete_many", {"key": full, **clock.expired_filter("expiresAt")})

    def _judged(
        self, clock: Clock, full: str, found: dict[str, Any], fingerprint: str | None, lease: int
    ) -> IdempotencyClaim:
        """What stands in the way of a caller with ``fingerprint``."""
        finished = found["key"] == full  # whatever stands in the way under this key is a result
        if finished:
            self.remember(full)
        known = found.get("fingerprint")
        if fingerprint is not None and known is not None and known != fingerprint:
            return IdempotencyClaim("mismatch")
        if finished:
            return IdempotencyClaim("completed", value=self.codec.decode(full, found.get("value")))
        return IdempotencyClaim("in_progress", retry_after=LEASE.remaining(clock, found))
