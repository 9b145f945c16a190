"""Idempotency records in ``go_goscope_idempotency``: a claim while the work runs, then its result. All as flows.

A record is a leased document with a value. Its ``key`` is ``claim:<stored key>`` while somebody works on it, and the
stored key itself once there is a result, so that a unique index lets one result and one claim of a key exist.

Every write after the claim names the claim's token and holds only while the claim's lease lasts: a slow worker never
overwrites the record of the one that took its work over.

A result that is part of somebody else's transaction is a document of its own, beside the claim (``enter``): the
transaction never writes the claim's document, which is renewed meanwhile. The unique index and ``_id`` let only one
such transaction commit. A live result outranks a claim that was left beside it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import bson
from bson.timestamp import Timestamp
from pymongo import ReturnDocument
from pymongo.errors import DocumentTooLarge, DuplicateKeyError, OperationFailure, PyMongoError

from goscope_django.contracts import IdempotencyClaim, IdempotencyInfo, IdempotencyRecord
from goscope_django.core.flow import Flow, Query, ask, perform
from goscope_django.exceptions import InvalidValue, OutcomeUnknown, StoreUnavailable
from goscope_django.mongodb.codec import CODEC_OPTIONS, Codec
from goscope_django.mongodb.document.clock import Clock, ServerClock, outrun
from goscope_django.mongodb.document.expressions import (
    conditions,
    countable,
    instant,
    literal,
    named,
    or_null,
    prefix_range,
)
from goscope_django.mongodb.document.failures import may_have_happened, too_large
from goscope_django.mongodb.document.lease import Lease, new_claim, upsert, with_time
from goscope_django.mongodb.document.reading import NOT_A_LIST, text, whole_or_none

IDEMPOTENCY: Final = "go_goscope_idempotency"
LEASE: Final = Lease()
SURELY: Final = timedelta(seconds=30)
"""A server's time of operation is at most ten idle seconds old: a result that lives on for so much longer is alive."""

BATCH: Final = 1_000
"""Documents that ``list`` reads with one command."""

_REMEMBERED: Final = 10_000
_LARGEST: Final = 16 * 1024 * 1024 - 64 * 1024
"""Bytes of a result in a transaction; the rest is for the record's other fields and for the command."""
_TRANSIENT: Final = "TransientTransactionError"
_FIELDS: Final = dict.fromkeys(("key", "claim", "token", "fingerprint", "value", "expiresAt", "updatedAt"), True)
_SHOWN: Final = dict.fromkeys(("key", "claim", "token", "holder", "updatedAt", "expiresAt"), True)


def claim_key(full: str) -> str:
    """The ``key`` of a claim on the record ``full``."""
    return f"claim:{full}"


def done_id(full: str) -> str:
    """The ``_id`` of a result that was written in a transaction."""
    return f"done:{full}"


def _either(full: str) -> dict[str, Any]:
    """A filter for the record of ``full``, in progress or finished, whoever made it."""
    return {"key": {"$in": [full, claim_key(full)]}}


class IdempotencyFlows:
    """The operations of one prefix, as flows.

    ``finished`` holds the keys whose result this process has seen, so that a repeat is answered by one read, and
    whether the result was to expire soon. It is a guess about which command to send first, never an answer: no result
    is kept here or taken for granted.
    """

    def __init__(self, prefix: str, codec: Codec) -> None:
        self.prefix = prefix
        self.codec = codec.of(IDEMPOTENCY)
        self.finished: dict[str, bool] = {}

    def full(self, key: str) -> str:
        """The stored key. Raises ``InvalidValue`` for one that would look like a document of another record."""
        full = self.prefix + key
        for start, whose in (("claim:", "claims"), ("done:", "results of transactions")):
            if full.startswith(start):
                raise InvalidValue(f"key={full!r:.80}: stored keys that begin with {start!r} are those of {whose}")
        return full

    # Claims

    def begin(
        self, clock: Clock, key: str, ttl: int, fingerprint: str | None, lease: int, holder: str | None = None
    ) -> Flow[IdempotencyClaim]:
        """One command: a read if this process has seen the result, else the claim. Two if that read found nothing.

        One more to number the claim anew, where another may have come and gone while the command was on its way.
        ``holder`` says who makes the claim, for observers.
        """
        full = self.full(key)
        if full in self.finished:
            found = yield from self._recall(clock, full)
            if found is not None:
                return self._judged(clock, full, found, fingerprint)
            self.finished.pop(full, None)
        claim = new_claim()
        found, answered, again = yield from self._take(clock, full, claim, ttl, fingerprint, lease, holder)
        if found["key"] == full and clock.lapsed(found):  # a transaction's, which is never made a claim
            yield from self._clear(clock, full)
            found, answered, again = yield from self._take(clock, full, claim, ttl, fingerprint, lease, holder)
        if found.get("claim") != claim:
            return self._judged(clock, full, found, fingerprint)
        if again or outrun(found["token"], found["updatedAt"], answered):
            renumbered = yield from self._renumber(clock, full, claim, lease, found["token"])
            if renumbered is None:  # its lease ended on the way
                return IdempotencyClaim("in_progress", retry_after=0.0)
            found = renumbered
        return IdempotencyClaim("started", token=int(found["token"]), claim=claim)

    def _renumber(self, clock: Clock, full: str, claim: str, lease: int, token: int) -> Flow[dict[str, Any] | None]:
        """Give the claim that was just made a token of now. ``None`` if its lease has ended."""
        query: Query[dict[str, Any] | None] = Query(
            IDEMPOTENCY,
            "find_one_and_update",
            LEASE.mine(clock, key=claim_key(full), claim=claim),
            LEASE.renumber(clock, lease),
            projection={"token": True},
            return_document=ReturnDocument.AFTER,
        )
        try:
            try:
                return (yield from perform(query))
            except PyMongoError:  # the predicate is the claim: at worst it is numbered twice
                try:
                    return (yield from perform(query))
                except PyMongoError:
                    now = yield from ask(IDEMPOTENCY, "confirm", {"key": claim_key(full), "claim": claim})
                    if now is None or whole_or_none(now.get("token")) in (None, token):
                        raise
                    return dict(now)  # it was numbered: only the answers were lost
        except GeneratorExit:
            raise
        except BaseException as error:
            with contextlib.suppress(PyMongoError):
                yield from ask(IDEMPOTENCY, "delete_one", {"key": claim_key(full), "claim": claim})
            if not isinstance(error, PyMongoError):
                raise
            raise OutcomeUnknown(
                f"idempotency key {full!r}: a claim was made and could not be numbered; it was given up if the server "
                f"could be reached, and else ends with its lease"
            ) from error

    def _recall(self, clock: Clock, full: str) -> Flow[dict[str, Any] | None]:
        """The live result. An expression on time would make the read a fifth slower, so where possible we compare with
        the time of operation that comes with each answer."""
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
        self, clock: Clock, full: str, claim: str, ttl: int, fingerprint: str | None, lease: int, holder: str | None
    ) -> Flow[tuple[dict[str, Any], Timestamp | None, bool]]:
        """The record's document, the answer's cluster time, and whether it was sent again.

        The document has ``claim`` if it was free to take: no live result and no live claim.
        """

        def query() -> Query[Any]:
            kept = {"$or": [clock.live(), {"$eq": [or_null("_id"), literal(done_id(full))]}]}
            done = {"$and": [{"$eq": [or_null("key"), literal(full)]}, kept]}
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
                holder=literal(holder),
            )
            return Query(
                IDEMPOTENCY,
                "upserted",
                _either(full),
                [{"$set": {**named(full), **grant}}],
                projection={**_FIELDS, **clock.stamp()},
                sort=self._result_first(full),
            )

        try:
            try:
                return *(yield from self._colliding(clock, full, query)), False
            except PyMongoError as error:
                if not may_have_happened(error):
                    raise
                # It is judged by its own claim, so it may be sent again: it finds what it took the first time. When
                # that was, its answer does not tell.
                try:
                    return *(yield from self._colliding(clock, full, query)), True
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

    def _colliding(
        self, clock: Clock, full: str, query: Callable[[], Query[Any]]
    ) -> Flow[tuple[dict[str, Any], Timestamp | None]]:
        try:
            found, answered = yield from upsert(clock, query)
        except DuplicateKeyError:
            yield from self._clear(clock, full)
            found, answered = yield from upsert(clock, query)
        return (yield from with_time(clock, found)), answered

    def _judged(self, clock: Clock, full: str, found: dict[str, Any], fingerprint: str | None) -> IdempotencyClaim:
        """What the caller with ``fingerprint`` is told of the record that is there."""
        finished = found["key"] == full  # what has this key is a result
        if finished:
            self._remember(full)
        known = found.get("fingerprint")
        if fingerprint is not None and known is not None and known != fingerprint:
            return IdempotencyClaim("mismatch")
        if finished:
            return IdempotencyClaim("completed", value=self.codec.decode(full, found.get("value")))
        return IdempotencyClaim("in_progress", retry_after=LEASE.remaining(clock, found))

    def extend(self, clock: Clock, key: str, token: int, lease: int, claim: str | None = None) -> Flow[bool]:
        """One command: let the claim's lease end ``lease`` milliseconds from now."""
        test = self._claimed(clock, self.full(key), token, claim)
        query: Query[Any] = Query(IDEMPOTENCY, "update_one", test, LEASE.renew(clock, lease))
        try:
            changed = yield from perform(query)
        except PyMongoError as error:
            if not may_have_happened(error):
                raise
            changed = yield from perform(query)  # at worst the lease is a little longer
        return bool(changed.matched_count)

    def abandon(self, clock: Clock, key: str, token: int, claim: str | None = None) -> Flow[bool]:
        """One command: remove the live claim, so that the next caller starts at once."""
        return (yield from self._remove(self._claimed(clock, self.full(key), token, claim)))

    # The end of the work

    def complete(
        self,
        clock: Clock,
        key: str,
        token: int,
        value: object,
        ttl: int | None,
        session: Any = None,
        claim: str | None = None,
    ) -> Flow[bool]:
        """One command: store the result and make it the record, if ``token`` and ``claim`` are the live claim's.

        In a ``session`` it takes part in the session's transaction and then commits it: two commands.
        """
        full = self.full(key)
        mine = self._claimed(clock, full, token, claim)
        if ttl is None and not clock.adds:
            # mongomock can't add to a date: what it would add is read before, which is no race within one process.
            found = yield from ask(IDEMPOTENCY, "find_one", mine, {"retention": True})
            ttl = None if found is None else found.get("retention")
        keep = clock.after(ttl) if ttl is not None else clock.after_field("retention", "retainUntil")
        done = {
            "key": literal(full),
            "value": literal(self.codec.encode(full, value)),
            "expiresAt": keep,
            "completedBy": "$claim",
            "claim": None,
            "updatedAt": clock.now(),
        }
        more = {} if session is None else {"session": session}
        query: Query[Any] = Query(IDEMPOTENCY, "update_one", mine, [{"$set": done}], **more)
        # What an unknown outcome is settled by.
        ours: dict[str, Any] = {"token": token} if claim is None else {"token": token, "completedBy": claim}
        try:
            if session is None:
                completed = yield from self._complete(clock, full, mine, ours, query)
            else:
                completed = yield from self._complete_within(full, ours, query, session)
        except (DocumentTooLarge, OperationFailure) as error:
            if not too_large(error):
                raise
            raise _refusal(full, error) from error
        if completed:
            self._remember(full)
        return completed

    def completed(self, clock: Clock, key: str, token: int, claim: str) -> Flow[bool]:
        """One command: whether ``claim`` has stored the result that is there."""
        ours = {"key": self.full(key), "token": token, "completedBy": claim}
        return (yield from ask(IDEMPOTENCY, "confirm", ours)) is not None

    def _complete(
        self, clock: Clock, full: str, mine: dict[str, Any], ours: dict[str, Any], query: Query[Any]
    ) -> Flow[bool]:
        try:
            return bool((yield from perform(query)).matched_count)
        except DuplicateKeyError:
            pass
        except PyMongoError as error:
            if not may_have_happened(error):
                raise
            if (yield from ask(IDEMPOTENCY, "confirm", {"key": full, **ours})) is not None:
                return True
            return bool((yield from perform(query)).matched_count)
        # A client that knows no claims (Node) stored a result meanwhile. If it has expired it is removed; else it was
        # first and stays, and ours is dropped.
        yield from self._clear(clock, full)
        try:
            return bool((yield from perform(query)).matched_count)
        except DuplicateKeyError:
            yield from ask(IDEMPOTENCY, "delete_one", mine)
            return False

    def _complete_within(self, full: str, ours: dict[str, Any], query: Query[Any], session: Any) -> Flow[bool]:
        try:
            if not (yield from perform(query)).matched_count:
                return False
            yield from self._commit(full, ours, session)
        except DuplicateKeyError:
            return False
        except PyMongoError as error:
            if isinstance(error, (DocumentTooLarge, OperationFailure)) and not error.has_error_label(_TRANSIENT):
                raise
            raise StoreUnavailable(
                f"idempotency key {full!r:.200}: the transaction was rolled back: {error}"
            ) from error
        finally:
            yield from ask("", "end", session)
        return True

    def _commit(self, full: str, ours: dict[str, Any], session: Any) -> Flow[None]:
        try:
            yield from ask("", "commit", session)
        except PyMongoError as error:
            if not error.has_error_label("UnknownTransactionCommitResult"):
                raise
            # The driver has sent it twice. The result stands if, and only if, the transaction was committed.
            try:
                found = yield from ask(IDEMPOTENCY, "confirm", {"key": full, **ours})
            except PyMongoError:
                found = None
            if found is None:
                raise OutcomeUnknown(
                    f"idempotency key {full!r:.200}: the transaction may have been committed; its result tells"
                ) from error

    # The end of the work, within a transaction that somebody else commits

    def enter(
        self, clock: Clock, key: str, token: int, value: object, ttl: int, fingerprint: str | None, session: Any
    ) -> Flow[bool]:
        """One command: the result, in the transaction of ``session``; ``False`` if another one's is there.

        What the driver raises is raised as it is, but for a duplicate key, which is another one's result as well: then
        the transaction is over. Raises ``InvalidValue``, before anything is sent, for a result of more than 16 MB.
        """
        full = self.full(key)
        fields = {
            "key": literal(full),
            "value": literal(self._fitting(full, value)),
            "expiresAt": clock.after(ttl),
            "claim": None,
            "token": literal(token),
            "fingerprint": literal(fingerprint),
            "retention": ttl,
            "updatedAt": clock.now(),
        }
        free = {"$or": [clock.new("updatedAt"), clock.passed()]}
        named_done = {"_id": {"$ifNull": ["$_id", literal(done_id(full))]}}
        try:
            found = yield from ask(
                IDEMPOTENCY,
                "find_one_and_update",
                {"key": full},
                [{"$set": {**named_done, **conditions(free, fields)}}],
                projection={"token": True, "updatedAt": True},
                upsert=True,
                return_document=ReturnDocument.AFTER,
                session=session,
            )
        except DuplicateKeyError:
            return False
        return bool(found["token"] == token)

    def _fitting(self, full: str, value: object) -> Any:
        """``value`` as it is stored. The driver would find out too late, in mid-transaction, that it is too large."""
        encoded = self.codec.encode(full, value)
        if (size := len(bson.encode({"": encoded}, codec_options=CODEC_OPTIONS))) > _LARGEST:
            raise InvalidValue(f"idempotency key {full!r:.200}: its result has {size} bytes; at most {_LARGEST} fit")
        return encoded

    def entered(self, clock: Clock, key: str, token: int) -> Flow[bool]:
        """One command, after the commit of ``enter``: remove the claim, which its result outranks already."""
        self._remember(self.full(key))
        return (yield from self.abandon(clock, key, token))

    def outcome(self, clock: Clock, key: str, fingerprint: str | None) -> Flow[IdempotencyClaim]:
        """One command: what a caller with ``fingerprint`` is told now, without a claim. Nothing there: in progress."""
        full = self.full(key)
        test = LEASE.mine(clock, **_either(full))
        found = yield from ask(
            IDEMPOTENCY, "find_one", test, {**_FIELDS, **clock.stamp()}, sort=self._result_first(full)
        )
        if found is None:
            return IdempotencyClaim("in_progress", retry_after=1.0)
        return self._judged(clock, full, found, fingerprint)

    def transactional(self, clock: Clock) -> Flow[None]:
        """Raise ``ConfigurationError`` if the server has no transactions. A ping at most."""
        yield from ask("", "transactional")

    def transaction(self, clock: Clock, key: str, token: int, limit: int, claim: str | None = None) -> Flow[Any | None]:
        """One command: a session with a transaction, and the claim held for ``limit`` milliseconds without renewal.

        ``None`` if ``token`` is not the live claim's. The claim must not be renewed until the transaction ends: a write
        from outside to the document that it is going to write would make it fail.
        """
        session = yield from ask("", "transaction")
        held = False
        try:
            held = yield from self.extend(clock, key, token, limit, claim)
        finally:
            if not held:
                yield from ask("", "end", session)
        return session if held else None

    def rollback(self, clock: Clock, session: Any) -> Flow[None]:
        """Undo what was written in ``session``, and end it."""
        yield from ask("", "end", session)

    # Results

    def get(self, clock: Clock, key: str) -> Flow[IdempotencyRecord | None]:
        """One command: the live result."""
        full = self.full(key)
        found = yield from ask(IDEMPOTENCY, "find_one", {"key": full, "$expr": clock.live()})
        if found is None:
            return None
        return IdempotencyRecord(self.codec.decode(full, found.get("value")), instant(found.get("expiresAt")))

    def set(self, clock: Clock, key: str, value: object, ttl: int | None) -> Flow[None]:
        """One command, two beside a result of Node: the result of ``key``; a claim in progress loses its key."""
        full = self.full(key)
        fields = {
            **named(full),
            "key": literal(full),
            "value": literal(self.codec.encode(full, value)),
            "expiresAt": None if ttl is None else clock.after(ttl),
            "claim": None,
            "completedBy": None,
            "fingerprint": None,
            "token": {"$add": [countable("token"), 1]},
            "updatedAt": clock.now(),
        }

        def query() -> Query[Any]:
            return Query(
                IDEMPOTENCY,
                "find_one_and_update",
                _either(full),
                [{"$set": fields}],
                projection={"key": True},
                sort=self._result_first(full),
                upsert=True,
                return_document=ReturnDocument.BEFORE,
            )

        try:
            before = yield from upsert(clock, query)
        except DocumentTooLarge as error:  # the driver's
            raise _refusal(full, error) from error
        except PyMongoError as error:
            if too_large(error):
                raise _refusal(full, error) from error
            if not may_have_happened(error):
                raise
            before = yield from upsert(clock, query)  # to the same effect
        if before is not None and before["key"] == full and before["_id"] != full:
            yield from ask(IDEMPOTENCY, "delete_one", {"key": claim_key(full), "claim": {"$ne": None}})

    def delete(self, clock: Clock, key: str) -> Flow[bool]:
        """One command: remove the live result, and the live claim beside it."""
        full = self.full(key)
        self.finished.pop(full, None)
        # What has expired counts as gone, whether or not the TTL monitor has removed it.
        return (yield from self._remove(*(LEASE.mine(clock, key=name) for name in (full, claim_key(full)))))

    # For observers

    def in_progress(self, clock: Clock, key: str) -> Flow[bool]:
        """One command: whether somebody works on it now, and there is no result yet. Reads no value."""
        full = self.full(key)
        test = LEASE.mine(clock, **_either(full))
        fields = {"key": True, "claim": True}
        found = yield from ask(IDEMPOTENCY, "find_one", test, fields, sort=self._result_first(full))
        return found is not None and found["key"] != full and found.get("claim") is not None

    def list(self, clock: Clock, pattern: re.Pattern[str] | None, limit: int) -> Flow[list[IdempotencyInfo]]:
        """Live claims, then live results, by key: one command for each thousand, and one more for each kind."""
        shown: list[IdempotencyInfo] = []
        for name, kind in ((claim_key(self.prefix), {"$ne": None}), (self.prefix, None)):
            after: str | None = None
            while len(shown) < limit:
                size = BATCH if pattern is not None else min(BATCH, limit - len(shown))
                test = {"key": prefix_range(name, after), "key.0": NOT_A_LIST, "claim": kind, "$expr": clock.live()}
                found = yield from ask(IDEMPOTENCY, "find", test, _SHOWN, sort=[("key", 1)], limit=size)
                known = [idempotency_info(one, self.prefix) for one in found]
                shown += [one for one in known if pattern is None or pattern.fullmatch(one.key)]
                if len(found) < size:
                    break
                after = found[-1]["key"]
        return shown[:limit]

    # Shared by several operations

    def _result_first(self, full: str) -> Sequence[tuple[str, int]]:
        """A sort, which the index on ``key`` serves, that puts a result before a claim."""
        return [("key", 1 if full.encode("utf-8") < b"claim:" else -1)]

    def _claimed(self, clock: Clock, full: str, token: int, claim: str | None) -> dict[str, Any]:
        """A filter for the live claim with ``token``, and where it is known with the random ``claim``."""
        identity = {"token": token} if claim is None else {"token": token, "claim": claim}
        return LEASE.mine(clock, key=claim_key(full), **identity)

    def _clear(self, clock: Clock, full: str) -> Flow[None]:
        """Remove an expired result that stands beside a claim."""
        yield from ask(IDEMPOTENCY, "delete_many", {"key": full, **clock.expired_filter("expiresAt")})

    def _remove(self, *tests: dict[str, Any]) -> Flow[bool]:
        """Remove one live document for each test. Sent again, the server knows it and tells what it removed then."""
        query: Query[int] = Query(IDEMPOTENCY, "delete", *tests)
        try:
            return bool((yield from perform(query)))
        except PyMongoError as error:
            if not may_have_happened(error):
                raise
            there = (yield from ask(IDEMPOTENCY, "confirm", {"$or": list(tests)})) is not None
            if there and (yield from perform(query)):
                return True
            # That it is not there is no proof that this removed it: it may have ended, or never have been there.
            raise OutcomeUnknown(
                "an idempotency record is not there any more; whether this call has removed it is unknown"
            ) from error

    def _remember(self, full: str) -> None:
        known = self.finished
        known.setdefault(full, False)
        if len(known) > _REMEMBERED:
            with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # another thread was quicker
                del known[next(iter(known))]


def _refusal(full: str, error: Exception) -> InvalidValue:
    return InvalidValue(
        f"idempotency key {full!r:.200}: its result does not fit in one document of 16 MB: {str(error)[:100]}"
    )


def idempotency_info(document: dict[str, Any], prefix: str) -> IdempotencyInfo:
    """A claim or a result as an observer sees it, of its document under ``prefix``."""
    running = document.get("claim") is not None
    return IdempotencyInfo(
        key=document["key"][len(claim_key(prefix) if running else prefix) :],
        state="in_progress" if running else "completed",
        token=whole_or_none(document.get("token")),
        updated_at=instant(document.get("updatedAt")),
        expires_at=instant(document.get("expiresAt")),
        holder=text(document.get("holder")),
    )


def delete_idempotency(
    clock: Clock, prefix: str, key: str, token: int | None
) -> Flow[tuple[int, IdempotencyInfo | None]]:
    """Remove a claim or result that has this token; else what is there. Two commands at most."""
    full = prefix + key
    marked = {} if token is None else {"token": token}
    # One document for each test: so it can be sent again where an answer is lost, and the server knows it.
    removed = yield from ask(IDEMPOTENCY, "delete", *({"key": name, **marked} for name in (full, claim_key(full))))
    if removed:
        return int(removed), None
    found = yield from ask(IDEMPOTENCY, "find_one", {**_either(full), "$expr": clock.live()}, {"value": False})
    return 0, None if found is None else idempotency_info(found, prefix)
