"""What is done with an idempotency record once it is claimed: results, second writes, lists. All as flows.

Every second write names the token of its claim and holds only while the claim's lease lasts: a slow worker never
overwrites the record of the one that took its work over.
"""

from __future__ import annotations

import re
from typing import Any, Final

from pymongo import ReturnDocument
from pymongo.errors import DocumentTooLarge, DuplicateKeyError, OperationFailure, PyMongoError

from goscope_django.contracts import IdempotencyInfo, IdempotencyRecord
from goscope_django.exceptions import InvalidValue, OutcomeUnknown, StoreUnavailable
from goscope_django.mongodb.expressions import Clock, countable, instant, literal, named, prefix_range
from goscope_django.mongodb.failures import may_have_happened, too_large
from goscope_django.mongodb.flow import Flow, Query, ask, perform
from goscope_django.mongodb.idempotency_claims import IDEMPOTENCY, LEASE, ClaimFlows, claim_key
from goscope_django.mongodb.lease import upsert
from goscope_django.mongodb.reading import whole_or_none

BATCH: Final = 1_000
"""Documents that ``list`` reads with one command."""

_TRANSIENT: Final = "TransientTransactionError"
_SHOWN: Final = dict.fromkeys(("key", "claim", "token", "updatedAt", "expiresAt"), True)


def _refusal(full: str, error: Exception) -> InvalidValue:
    return InvalidValue(
        f"idempotency key {full!r:.200}: its result does not fit in one document of 16 MB: {str(error)[:100]}"
    )


class IdempotencyFlows(ClaimFlows):
    """The operations of one prefix, as flows."""

    def complete(
        self, clock: Clock, key: str, token: int, value: object, ttl: int | None, session: Any = None
    ) -> Flow[bool]:
        """One command: store the result and make it the record, if ``token`` is the live claim's.

        In a ``session`` it takes part in the session's transaction and then commits it: two commands.
        """
        full = self.full(key)
        if ttl is None and not clock.adds:
            # mongomock can't add to a date: what it would add is read before, which is no race within one process.
            found = yield from ask(IDEMPOTENCY, "find_one", self.claimed(clock, full, token), {"retention": True})
            ttl = None if found is None else found.get("retention")
        keep = clock.after(ttl) if ttl is not None else clock.after_field("retention", "retainUntil")
        done = {
            "key": literal(full),
            "value": literal(self.codec.encode(full, value)),
            "expiresAt": keep,
            "claim": None,
            "updatedAt": clock.now(),
        }
        more = {} if session is None else {"session": session}
        query: Query[Any] = Query(IDEMPOTENCY, "update_one", self.claimed(clock, full, token), [{"$set": done}], **more)
        try:
            if session is None:
                completed = yield from self._complete(clock, full, token, query)
            else:
                completed = yield from self._complete_within(full, token, query, session)
        except (DocumentTooLarge, OperationFailure) as error:
            if not too_large(error):
                raise
            raise _refusal(full, error) from error
        if completed:
            self.remember(full)
        return completed

    def _complete(self, clock: Clock, full: str, token: int, query: Query[Any]) -> Flow[bool]:
        try:
            return bool((yield from perform(query)).matched_count)
        except DuplicateKeyError:
            pass
        except PyMongoError as error:
            if not may_have_happened(error):
                raise
            found = yield from ask(IDEMPOTENCY, "confirm", {**self.either(full), "token": token})
            if found is None or found["key"] == full:
                return found is not None
            return bool((yield from perform(query)).matched_count)
        # Somebody who knows no claims (Node) stored a result meanwhile. One that has expired goes; else it is the first
        # and stands, and ours is dropped.
        yield from self.clear(clock, full)
        try:
            return bool((yield from perform(query)).matched_count)
        except DuplicateKeyError:
            yield from ask(IDEMPOTENCY, "delete_one", self.claimed(clock, full, token))
            return False

    def _complete_within(self, full: str, token: int, query: Query[Any], session: Any) -> Flow[bool]:
        try:
            if not (yield from perform(query)).matched_count:
                return False
            yield from self._commit(full, token, session)
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

    def _commit(self, full: str, token: int, session: Any) -> Flow[None]:
        try:
            yield from ask("", "commit", session)
        except PyMongoError as error:
            if not error.has_error_label("UnknownTransactionCommitResult"):
                raise
            # The driver has sent it twice. The result stands if, and only if, the transaction was committed.
            try:
                found = yield from ask(IDEMPOTENCY, "confirm", {"key": full, "token": token})
            except PyMongoError:
                found = None
            if found is None:
                raise OutcomeUnknown(
                    f"idempotency key {full!r:.200}: the transaction may have been committed; its result tells"
                ) from error

    def transaction(self, clock: Clock, key: str, token: int, limit: int) -> Flow[Any | None]:
        """One command: a session with a transaction, and the claim held for ``limit`` milliseconds without renewal.

        ``None`` if ``token`` is not the live claim's. The claim must not be renewed until the transaction ends: a write
        from outside to the document that it is going to write would make it fail.
        """
        session = yield from ask("", "transaction")
        held = False
        try:
            held = yield from self.extend(clock, key, token, limit)
        finally:
            if not held:
                yield from ask("", "end", session)
        return session if held else None

    def rollback(self, clock: Clock, session: Any) -> Flow[None]:
        """Undo what was written in ``session``, and end it."""
        yield from ask("", "end", session)

    def abandon(self, clock: Clock, key: str, token: int) -> Flow[bool]:
        """One command: remove the live claim, so that the next caller starts at once."""
        return (yield from self._remove("delete_one", self.claimed(clock, self.full(key), token)))

    def _remove(self, method: str, test: dict[str, Any]) -> Flow[bool]:
        query: Query[Any] = Query(IDEMPOTENCY, method, test)
        try:
            return bool((yield from perform(query)).deleted_count)
        except PyMongoError as error:
            if not may_have_happened(error):
                raise
            if (yield from ask(IDEMPOTENCY, "confirm", test)) is not None:
                yield from perform(query)
            return True

    def extend(self, clock: Clock, key: str, token: int, lease: int) -> Flow[bool]:
        """One command: let the claim's lease end ``lease`` milliseconds from now."""
        test = self.claimed(clock, self.full(key), token)
        query: Query[Any] = Query(IDEMPOTENCY, "update_one", test, LEASE.renew(clock, lease))
        try:
            changed = yield from perform(query)
        except PyMongoError as error:
            if not may_have_happened(error):
                raise
            changed = yield from perform(query)  # at worst the lease is a little longer
        return bool(changed.matched_count)

    # Results

    def get(self, clock: Clock, key: str) -> Flow[IdempotencyRecord | None]:
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
            "fingerprint": None,
            "token": {"$add": [countable("token"), 1]},
            "updatedAt": clock.now(),
        }

        def query() -> Query[Any]:
            return Query(
                IDEMPOTENCY,
                "find_one_and_update",
                self.either(full),
                [{"$set": fields}],
                projection={"key": True},
                sort=self.result_first(full),
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
        full = self.full(key)
        self.finished.pop(full, None)
        # What has expired is not there, whether or not the TTL monitor has been by.
        return (yield from self._remove("delete_many", LEASE.mine(clock, **self.either(full))))

    # For observers

    def in_progress(self, clock: Clock, key: str) -> Flow[bool]:
        """Whether somebody works on it now: one read that carries nothing."""
        test = {**LEASE.mine(clock, key=claim_key(self.full(key))), "claim": {"$ne": None}}
        return (yield from ask(IDEMPOTENCY, "find_one", test, {"_id": True})) is not None

    def list(self, clock: Clock, pattern: re.Pattern[str] | None, limit: int) -> Flow[list[IdempotencyInfo]]:
        """Live claims, then live results, by key: one command for each thousand, and one for the end of each kind."""
        shown: list[IdempotencyInfo] = []
        for name, kind in ((claim_key(self.prefix), {"$ne": None}), (self.prefix, None)):
            after: str | None = None
            while len(shown) < limit:
                size = BATCH if pattern is not None else min(BATCH, limit - len(shown))
                test = {"key": prefix_range(name, after), "claim": kind, "$expr": clock.live()}
                found = yield from ask(IDEMPOTENCY, "find", test, _SHOWN, sort=[("key", 1)], limit=size)
                known = [idempotency_info(one, self.prefix) for one in found]
                shown += [one for one in known if pattern is None or pattern.fullmatch(one.key)]
                if len(found) < size:
                    break
                after = found[-1]["key"]
        return shown[:limit]


def idempotency_info(document: dict[str, Any], prefix: str) -> IdempotencyInfo:
    """A claim or a result as an observer sees it, of its document under ``prefix``."""
    running = document.get("claim") is not None
    return IdempotencyInfo(
        key=document["key"][len(claim_key(prefix) if running else prefix) :],
        state="in_progress" if running else "completed",
        token=whole_or_none(document.get("token")),
        updated_at=instant(document.get("updatedAt")),
        expires_at=instant(document.get("expiresAt")),
    )
