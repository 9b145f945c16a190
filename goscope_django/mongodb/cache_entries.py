"""Entries of the cache as they are made: ``set``, ``set_many`` and ``add``.

By ``_id``, which costs the server less than by ``key``; by ``key`` where that does not do.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import bson
from pymongo.errors import DocumentTooLarge, OperationFailure, PyMongoError

from goscope_django.exceptions import InvalidValue
from goscope_django.mongodb.cache_ranges import CacheRanges, key_batches
from goscope_django.mongodb.cache_time import stating, surely_reached
from goscope_django.mongodb.codec import CODEC_OPTIONS, Codec
from goscope_django.mongodb.execute import CACHE
from goscope_django.mongodb.expressions import Clock, literal, named
from goscope_django.mongodb.failures import no_shard_key, too_large
from goscope_django.mongodb.flow import Flow, Query, ask
from goscope_django.mongodb.lease import by_id, upsert

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
