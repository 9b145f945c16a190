"""Cache entries in ``go_goscope_cache``.

One command an operation. Expiry is judged by the server's clock in the query itself, so that neither the TTL monitor's
delay nor a wrong clock of a process shows. Entries are found by ``key`` (Node's have an ObjectId as ``_id``); ours
carry the key as ``_id`` too, so that two racing writers collide whatever the indexes. Keys are selected by ranges over
the index, never by regular expressions.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import bson
from pymongo.errors import DocumentTooLarge, OperationFailure, PyMongoError

from goscope_django.core.arguments import MAX_KEY_BYTES
from goscope_django.core.flow import Emit, Flow, Query, ask, perform
from goscope_django.exceptions import InvalidValue, Undecodable
from goscope_django.mongodb.cache.time import stamped, stating, surely_reached
from goscope_django.mongodb.codec import CODEC_OPTIONS, Codec
from goscope_django.mongodb.codec.plain import RESERVED
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import instant, literal, named, prefix_range
from goscope_django.mongodb.document.failures import no_shard_key, too_large
from goscope_django.mongodb.document.lease import by_id, upsert
from goscope_django.mongodb.driver.execute import CACHE

BATCH: Final = 1_000
"""Entries for one command of many."""
LONG_BATCH: Final = 150
"""The same where keys have as much as ``MAX_KEY_BYTES``."""


def batches(items: Sequence[Any], size: int = BATCH) -> Iterable[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def key_batches(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    """A thousand keys at a time, or as many very long ones as fit in a command and its answer, each one document."""
    for batch in batches(keys):
        if 4 * sum(map(len, batch)) <= MAX_KEY_BYTES * LONG_BATCH:  # a character takes up to four bytes
            yield batch
        else:
            yield from batches(batch, LONG_BATCH)


class CacheRanges:
    """Operations on many stored keys, as flows."""

    def delete_many(self, clock: Clock, keys: Sequence[str]) -> Flow[int]:
        removed = 0
        for batch in key_batches(keys):
            result = yield from ask(CACHE, "delete_many", {"key": {"$in": batch}})
            removed += result.deleted_count
        return removed

    def delete_range(self, clock: Clock, prefix: str, regex: str | None = None) -> Flow[int]:
        """One command: remove what begins with ``prefix`` (and matches ``regex``, for finer cuts of ours)."""
        test: dict[str, Any] = {"key": prefix_range(prefix)}
        if regex is not None:
            test["key"]["$regex"] = regex
        removed = yield from ask(CACHE, "delete_many", test)
        return int(removed.deleted_count)

    def expired(self, clock: Clock, prefix: str, limit: int = BATCH) -> Flow[frozenset[str] | None]:
        """Keys under ``prefix`` that have expired but still stand there; ``None`` if there are more than ``limit``."""
        test = {"key": prefix_range(prefix), **clock.expired_filter("expiresAt")}
        fields = {"_id": False, "key": True}
        found = yield from ask(CACHE, "find", test, fields, limit=limit + 1, batch_size=limit + 2)
        return None if len(found) > limit else frozenset(one["key"] for one in found)

    def page(
        self, clock: Clock, prefix: str, after: str | None, expired: frozenset[str] | None
    ) -> Flow[builtins.list[str]]:
        """The next thousand keys under ``prefix``, by key. Served by the index alone where ``expired`` is known."""
        test: dict[str, Any] = {"key": prefix_range(prefix, after)}
        if expired is None:
            test["$expr"] = clock.live()
        found = yield from ask(
            CACHE,
            "find",
            test,
            {"_id": False, "key": True},
            sort=[("key", 1)],
            limit=BATCH,
            batch_size=BATCH + 1,
        )
        return [one["key"] for one in found]

    def keys(self, clock: Clock, prefix: str) -> Flow[builtins.list[str]]:
        """All live keys under ``prefix``: a page for each thousand, and one command before them."""
        expired = yield from self.expired(clock, prefix)
        keys: builtins.list[str] = []
        after = None
        while page := (yield from self.page(clock, prefix, after, expired)):
            after = page[-1]
            keys += [key for key in page if not expired or key not in expired]
            if len(page) < BATCH:
                break
        return keys

    def count(self, clock: Clock, prefix: str) -> Flow[int]:
        """Entries under ``prefix``, expired ones that still stand there included."""
        return int((yield from ask(CACHE, "count_documents", {"key": prefix_range(prefix)})))

    def cull(self, clock: Clock, prefix: str, number: int) -> Flow[int]:
        """Remove ``number`` entries under ``prefix``, those that expire soonest first, in bounded batches.

        Those that somebody else removes in the same moment count: they made room as well.
        """
        removed = 0
        for timed in ({"$type": "date"}, None):
            while removed < number:
                test = {"key": prefix_range(prefix), "expiresAt": timed}
                limit = min(BATCH, number - removed)
                fields = {"_id": False, "key": True}
                found = yield from ask(
                    CACHE, "find", test, fields, sort=[("expiresAt", 1)], limit=limit, batch_size=limit + 1
                )
                if not found:
                    break
                yield from self.delete_many(clock, [one["key"] for one in found])
                removed += len(found)
        return removed


MAX_BYTES: Final = 16 * 1024 * 1024

BRIEF: Final = 60_000
"""Milliseconds. An entry that lives shorter than that has its expiry computed by the server: what is written from what
is known of its time begins to count before the command is sent, which may wait for a primary to be elected."""


def _size(stored: object) -> int:
    return len(bson.encode({"value": stored}, codec_options=CODEC_OPTIONS))


def _refusal(full: str, stored: object) -> InvalidValue:
    return InvalidValue(
        f"cache key {full!r:.200}: the value takes {_size(stored)} bytes; "
        f"the server holds at most {MAX_BYTES}, key and times included"
    )


class CacheEntries(CacheRanges):
    """The flows that make entries. ``ttl`` is in milliseconds, ``None`` means never."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    @staticmethod
    def _times(clock: Clock, ttl: int | None) -> dict[str, Any]:
        return {"expiresAt": None if ttl is None else clock.after(ttl), "updatedAt": clock.now()}

    @staticmethod
    def _entry(full: str, stored: object, times: dict[str, Any]) -> dict[str, Any]:
        return {"key": literal(full), "value": literal(stored), **times}

    def _named_entry(self, full: str, stored: object, times: dict[str, Any]) -> dict[str, Any]:
        """An entry that is asked for by ``key``, and so has no ``_id`` when it is new."""
        return {**named(full), **self._entry(full, stored, times)}

    def set(self, clock: Clock, full: str, value: object, ttl: int | None) -> Flow[None]:
        yield from self._set(clock, full, self.codec.pack(full, value), ttl)

    @staticmethod
    def _by_key(clock: Clock, full: str, change: Any) -> Flow[Any]:
        return (yield from upsert(clock, lambda: Query(CACHE, "update", {"key": full}, change, upsert=True)))

    def _put(self, clock: Clock, full: str, stored: object, ttl: int | None) -> Flow[Any]:
        estimate, test = clock.primary, {"_id": full}
        reached = None if estimate is None else estimate.reached()
        change = self._change(clock, full, stored, ttl, reached)
        if reached is None and estimate is not None and estimate.due():
            return (yield from stating(clock, "updatedAt", "modify", test, change, upsert=True))
        return (yield Query(CACHE, "update", test, change, upsert=True))

    def _set(self, clock: Clock, full: str, stored: object, ttl: int | None) -> Flow[None]:
        try:
            if (yield from by_id(clock, self._put(clock, full, stored, ttl))) is None:
                entry = self._named_entry(full, stored, self._times(clock, ttl))
                yield from self._by_key(clock, full, [{"$set": entry}])
        except (PyMongoError, DocumentTooLarge) as error:
            if not too_large(error):
                raise
            # Rather no value than a stale one.
            yield from ask(CACHE, "delete", {"key": full})
            raise _refusal(full, stored) from error

    def set_many(self, clock: Clock, values: Mapping[str, object], ttl: int | None) -> Flow[builtins.list[str]]:
        """One command for each thousand entries, and one more where another package's documents stand in the way.

        Returns the keys that were too large; their previous values are gone.
        """
        refused: builtins.list[str] = []
        encoded = {full: self.codec.pack(full, value) for full, value in values.items()}
        for keys in key_batches(list(encoded)):
            batch = [(full, encoded[full]) for full in keys]
            try:
                yield from self._set_batch(clock, batch, ttl)
            except (PyMongoError, DocumentTooLarge) as error:
                if not too_large(error):
                    raise
                # The suspects one by one, since only the server knows; then the rest, in case it is not in.
                large = {full for full, stored in batch if _size(stored) > MAX_BYTES // 2}
                for full, stored in batch:
                    if full in large:
                        try:
                            yield from self._set(clock, full, stored, ttl)
                        except InvalidValue:
                            refused.append(full)
                rest = [one for one in batch if one[0] not in large]
                if rest:
                    yield from self._set_batch(clock, rest, ttl)
        return refused

    def _set_batch(self, clock: Clock, batch: Sequence[tuple[str, object]], ttl: int | None) -> Flow[None]:
        # By _id, which is faster; a document whose _id is not its key collides and is then set by key.
        collided: Sequence[int] = range(len(batch))
        changes: builtins.list[tuple[dict[str, str], Any]]
        if clock.by_id:
            reached = yield from surely_reached(clock)
            changes = [({"_id": full}, self._change(clock, full, stored, ttl, reached)) for full, stored in batch]
            try:
                collided = yield from ask(CACHE, "upsert_many", changes)
            except OperationFailure as error:
                if not no_shard_key(error):
                    raise
                clock.by_id = False
        times = self._times(clock, ttl)
        for _ in range(5):
            if not collided:
                return
            batch = [batch[at] for at in collided]
            changes = [({"key": full}, [{"$set": self._named_entry(full, stored, times)}]) for full, stored in batch]
            collided = yield from ask(CACHE, "upsert_many", changes)

    def _change(self, clock: Clock, full: str, stored: object, ttl: int | None, reached: datetime | None) -> Any:
        """What makes ``full`` an entry, all of it. Where the time is known well enough it has no expressions, for which
        the server would write the whole entry, whatever stays the same."""
        if reached is None or (ttl is not None and ttl < BRIEF):
            return [{"$set": self._entry(full, stored, self._times(clock, ttl))}]
        expires_at = None if ttl is None else reached + timedelta(milliseconds=ttl)
        return {"$set": {"key": full, "value": stored, "expiresAt": expires_at, "updatedAt": reached}}

    def add(self, clock: Clock, full: str, value: object, ttl: int | None) -> Flow[bool]:
        stored = self.codec.pack(full, value)
        free = {"$or": [clock.new("updatedAt"), clock.passed()]}
        change = clock.put(free, self._named_entry(full, stored, self._times(clock, ttl)))
        try:
            reply = yield from by_id(clock, ask(CACHE, "update", {"_id": full}, change, upsert=True))
            if reply is None:
                reply = yield from self._by_key(clock, full, change)
        except (PyMongoError, DocumentTooLarge) as error:
            if not too_large(error):
                raise
            raise _refusal(full, stored) from error
        # An entry taken over after its expiry has a new updatedAt, so it always counts as modified.
        return "upserted" in reply or bool(reply["nModified"])


_OVERFLOW: Final = 2
_TYPE_MISMATCH: Final = 14


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""What a read gives for no entry; ``None`` is a value."""


class CacheFlows(CacheEntries):
    """The operations on stored keys, as flows. ``ttl`` is in milliseconds, ``None`` means never."""

    def _live(self, clock: Clock, full: str) -> dict[str, Any]:
        return {"key": full, "$expr": clock.live()}

    def _forged(self, full: str, error: Undecodable) -> Flow[Any]:
        yield from perform(Emit("cache_entry_forged", key=full, reason=error.reason, message=str(error)))
        return MISSING

    def get(self, clock: Clock, full: str) -> Flow[Any]:
        estimate = clock.estimate
        if estimate is None or estimate.due():
            found = yield from stamped(clock, full)
        else:
            found = yield Query(CACHE, "point", {"key": full})
            passed = False if found is None else estimate.passed(found.get("expiresAt"))
            if passed is None:
                found = yield from stamped(clock, full)
            elif passed:
                return MISSING
        if found is None:
            return MISSING
        try:
            return self.codec.decode(full, found.get("value"))
        except Undecodable as error:
            return (yield from self._forged(full, error))

    def get_many(self, clock: Clock, keys: Sequence[str]) -> Flow[dict[str, Any]]:
        """One command for each thousand keys. Missing keys are left out."""
        values, decode = {}, self.codec.decode
        for batch in key_batches(keys):
            test = {"key": {"$in": batch}, "$expr": clock.live()}
            for entry in (yield from ask(CACHE, "many", test, BATCH)):
                full = entry["key"]
                try:
                    values[full] = decode(full, entry.get("value"))
                except Undecodable as error:
                    yield from self._forged(full, error)
                except TypeError:  # damaged: a list of keys, of which one was asked for
                    continue
        return values

    def incr(self, clock: Clock, full: str, delta: int) -> Flow[int | None]:
        """The sum; ``None`` if there is no live integer. The expiry stays. Raises ``InvalidValue`` on overflow."""
        update = {"$inc": {"value": delta}, "$currentDate": {"updatedAt": True}}
        whole = clock.whole_number("value")
        try:
            lately = clock.lately_live()
            if lately is None:
                found = yield from stating(clock, "value", "modify", {**self._live(clock, full), **whole}, update)
            else:
                # A counter's document is small; to project it would cost the server more than to send all of it.
                found = yield Query(CACHE, "modify", {"key": full, **lately, **whole}, update)
        except OperationFailure as error:
            if error.code == _TYPE_MISMATCH:  # a list with a number in it, which passes as one in a filter
                return None
            if error.code != _OVERFLOW:
                raise
            raise InvalidValue(
                f"cache key {full!r:.200}: the sum does not fit in 64 bits; the value is unchanged"
            ) from error
        return None if found is None else int(found["value"])

    def touch(self, clock: Clock, full: str, ttl: int | None) -> Flow[bool]:
        update = [{"$set": {"expiresAt": None if ttl is None else clock.after(ttl)}}]
        reply = yield from ask(CACHE, "update", self._live(clock, full), update)
        return bool(reply["n"])

    def delete(self, clock: Clock, full: str) -> Flow[bool]:
        """``True`` if there was a live entry. A dead one is left to the TTL monitor: nothing reads it."""
        lately = clock.lately_live()
        if lately is None:
            return (yield from stating(clock, "updatedAt", "take", self._live(clock, full))) is not None
        return bool((yield Query(CACHE, "delete", {"key": full, **lately})))

    def has(self, clock: Clock, full: str) -> Flow[bool]:
        """One command; two for a value that may turn out to be unreadable, which is none."""
        if clock.estimate is not None:  # mongomock can't look into a list with a number in it
            found = yield from ask(CACHE, "point", self._live(clock, full), {"_id": False, f"value.{RESERVED}": True})
            if found is None or not isinstance(found.get("value"), dict) or not found["value"]:
                return found is not None
        return (yield from self.get(clock, full)) is not MISSING

    def remaining(self, clock: Clock, full: str) -> Flow[int | None]:
        """Milliseconds until the entry expires; ``None`` for never, 0 for no live entry."""
        fields = {"_id": False, "expiresAt": True, **clock.stamp()}
        found = yield from ask(CACHE, "point", self._live(clock, full), fields)
        if found is None:
            return 0
        expires_at, now = instant(found.get("expiresAt")), instant(clock.read_stamp(found))
        if expires_at is None or now is None:
            return None
        return max(1, round((expires_at - now).total_seconds() * 1_000))
