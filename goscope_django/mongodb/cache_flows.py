"""Cache entries in ``go_goscope_cache``.

One command an operation. Expiry is judged by the server's clock in the query itself, so that neither the TTL monitor's
delay nor a wrong clock of a process shows. Entries are found by ``key`` (Node's have an ObjectId as ``_id``); ours
carry the key as ``_id`` too, so that two racing writers collide whatever the indexes. Keys are selected by ranges over
the index, never by regular expressions.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import bson
from pymongo.errors import DocumentTooLarge, DuplicateKeyError, OperationFailure, PyMongoError

from goscope_django.exceptions import InvalidValue, Undecodable
from goscope_django.mongodb.cache_ranges import BATCH, CacheRanges, key_batches
from goscope_django.mongodb.codec import CODEC_OPTIONS, Codec
from goscope_django.mongodb.estimate import tick
from goscope_django.mongodb.execute import CACHE
from goscope_django.mongodb.expressions import Clock, conditions, instant, is_null, literal, named
from goscope_django.mongodb.failures import no_shard_key, too_large
from goscope_django.mongodb.flow import Emit, Flow, Query, ask, perform
from goscope_django.mongodb.lease import upsert

MAX_BYTES: Final = 16 * 1024 * 1024
_OVERFLOW: Final = 2
_TYPE_MISMATCH: Final = 14


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""What a read gives for no entry; ``None`` is a value."""


def _size(stored: object) -> int:
    return len(bson.encode({"value": stored}, codec_options=CODEC_OPTIONS))


def _refusal(full: str, stored: object) -> InvalidValue:
    return InvalidValue(
        f"cache key {full!r:.200}: the value takes {_size(stored)} bytes; "
        f"the server holds at most {MAX_BYTES}, key and times included"
    )


_ENTRY: Final = {"_id": False, "value": True, "expiresAt": True}


class CacheFlows(CacheRanges):
    """The operations on stored keys, as flows. ``ttl`` is in milliseconds, ``None`` means never."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def _live(self, clock: Clock, full: str) -> dict[str, Any]:
        return {"key": full, "$expr": clock.live()}

    def _forged(self, full: str, error: Undecodable) -> Flow[Any]:
        yield from perform(Emit("cache_entry_forged", key=full, reason=error.reason, message=str(error)))
        return MISSING

    def get(self, clock: Clock, full: str) -> Flow[Any]:
        estimate = clock.estimate
        if estimate is None or estimate.due():
            found = yield from self._stamped(clock, full)
        else:
            found = yield Query(CACHE, "point", {"key": full})
            passed = False if found is None else estimate.passed(found.get("expiresAt"))
            if passed is None:
                found = yield from self._stamped(clock, full)
            elif passed:
                return MISSING
        if found is None:
            return MISSING
        try:
            return self.codec.decode(full, found.get("value"))
        except Undecodable as error:
            return (yield from self._forged(full, error))

    def _stamped(self, clock: Clock, full: str) -> Flow[Any]:
        """The live entry, read with the server's time and judged by it."""
        sent = tick()
        found = yield from ask(CACHE, "point", {"key": full}, {**_ENTRY, **clock.stamp()})
        if clock.estimate is not None:
            clock.estimate.learn(found and found.get("now"), sent)
        return None if found is None or clock.lapsed(found) else found

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

    @staticmethod
    def _times(clock: Clock, ttl: int | None) -> dict[str, Any]:
        return {"expiresAt": None if ttl is None else clock.after(ttl), "updatedAt": clock.now()}

    @staticmethod
    def _entry(full: str, stored: object, times: dict[str, Any]) -> dict[str, Any]:
        return {"key": literal(full), "value": literal(stored), **times}

    def set(self, clock: Clock, full: str, value: object, ttl: int | None) -> Flow[None]:
        yield from self._set(clock, full, self.codec.pack(full, value), ttl)

    @staticmethod
    def _upsert(clock: Clock, full: str, fields: dict[str, Any]) -> Flow[Any]:
        """Send an upsert: by ``_id``, which costs the server less; by ``key`` where a document of another package,
        whose ``_id`` is its own, collides with that, and in a sharded collection."""
        if clock.by_id:
            try:
                return (yield Query(CACHE, "update", {"_id": full}, [{"$set": fields}], upsert=True))
            except DuplicateKeyError:
                pass
            except OperationFailure as error:
                if not no_shard_key(error):
                    raise
                clock.by_id = False
        change = [{"$set": {**named(full), **fields}}]
        return (yield from upsert(clock, lambda: Query(CACHE, "update", {"key": full}, change, upsert=True)))

    def _set(self, clock: Clock, full: str, stored: object, ttl: int | None) -> Flow[None]:
        try:
            yield from self._upsert(clock, full, self._entry(full, stored, self._times(clock, ttl)))
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
            reached = yield from self._reached(clock)
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
            changes = [
                ({"key": full}, [{"$set": {**named(full), **self._entry(full, stored, times)}}])
                for full, stored in batch
            ]
            collided = yield from ask(CACHE, "upsert_many", changes)

    @staticmethod
    def _reached(clock: Clock) -> Flow[datetime | None]:
        """What the server's clock has surely come to. Once a second that is one more command, next to a batch of them;
        ``None`` where it can't be told in time."""
        estimate = clock.primary
        if estimate is None:
            return None
        reached = estimate.reached()
        if reached is None and estimate.question():
            sent = tick()
            estimate.learn((yield from ask(CACHE, "time")), sent)
            reached = estimate.reached()
        return reached

    def _change(self, clock: Clock, full: str, stored: object, ttl: int | None, reached: datetime | None) -> Any:
        """What makes ``full`` an entry, all of it; without expressions, which cost the server a fifth of a batch, where
        the time is known."""
        if reached is None:
            return [{"$set": self._entry(full, stored, self._times(clock, ttl))}]
        expires_at = None if ttl is None else reached + timedelta(milliseconds=ttl)
        fields = {"key": full, "value": stored, "expiresAt": expires_at}
        return {"$set": fields, "$currentDate": {"updatedAt": True}}

    def add(self, clock: Clock, full: str, value: object, ttl: int | None) -> Flow[bool]:
        stored = self.codec.pack(full, value)
        free = {"$or": [is_null("updatedAt"), clock.passed()]}
        fields = conditions(free, self._entry(full, stored, self._times(clock, ttl)))
        try:
            reply = yield from self._upsert(clock, full, fields)
        except (PyMongoError, DocumentTooLarge) as error:
            if not too_large(error):
                raise
            raise _refusal(full, stored) from error
        # An entry taken over after its expiry has a new updatedAt, so it always counts as modified.
        return "upserted" in reply or bool(reply["nModified"])

    @staticmethod
    def _stating(clock: Clock, field: str, method: str, test: Mapping[str, Any], *change: Any) -> Flow[Any]:
        """A write to one entry, answered with ``field`` and the server's time, which serves the next second's."""
        sent = tick()
        found = yield from ask(CACHE, method, test, *change, {"_id": False, field: True, **clock.stamp()})
        if clock.primary is not None:
            clock.primary.learn(found and found.get("now"), sent)
        return found

    def incr(self, clock: Clock, full: str, delta: int) -> Flow[int | None]:
        """The sum; ``None`` if there is no live integer. The expiry stays. Raises ``InvalidValue`` on overflow."""
        update = {"$inc": {"value": delta}, "$currentDate": {"updatedAt": True}}
        whole = clock.whole_number("value")
        try:
            lately = clock.lately_live()
            if lately is None:
                found = yield from self._stating(clock, "value", "modify", {**self._live(clock, full), **whole}, update)
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
            return (yield from self._stating(clock, "updatedAt", "take", self._live(clock, full))) is not None
        return bool((yield Query(CACHE, "delete", {"key": full, **lately})))

    def has(self, clock: Clock, full: str) -> Flow[bool]:
        found = yield from ask(CACHE, "point", self._live(clock, full), {"_id": True})
        return found is not None

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
