"""Operations on the cache entries in ``go_goscope_cache``, as flows. A key here is always a stored key.

Rules of this file:

* One operation is one command, unless its docstring says otherwise.
* The query itself compares the expiry with the server's clock. So it does not matter when the TTL monitor removes an
  entry, nor whether a process's clock is wrong.
* Entries are found by ``key``, since those of Node have an ObjectId as ``_id``. Ours have the key as ``_id`` too, so
  two racing writers collide even where an index is missing.
* A sealed value (see ``codec.sealed``) is one that the server can't look into. Where every value has to be sealed
  (``OPTIONS["SIGN"]``), a live entry that is not counts as missing in every filter too. Whether a seal is genuine only
  reading tells.
* Many keys are selected by a range of the index. A regular expression only narrows such a range.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import bson
from pymongo.errors import DocumentTooLarge, OperationFailure, PyMongoError

from goscope_django.core.arguments import MAX_KEY_BYTES, shown_key
from goscope_django.core.flow import Emit, Flow, Pause, Query, ask, perform
from goscope_django.exceptions import Contended, InvalidValue, Undecodable
from goscope_django.mongodb.cache.time import stamped, stating, surely_reached
from goscope_django.mongodb.codec import CODEC_OPTIONS, ENTRY_OPTIONS, Codec
from goscope_django.mongodb.codec.plain import INT64_MAX, INT64_MIN, RESERVED
from goscope_django.mongodb.codec.sealed import SEALED, is_sealed
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import instant, literal, named, or_null, prefix_range
from goscope_django.mongodb.document.failures import OVERFLOW, TYPE_MISMATCH, means, no_shard_key, too_large
from goscope_django.mongodb.document.lease import by_id, upsert
from goscope_django.mongodb.document.reading import NOT_A_LIST, named_by_text
from goscope_django.mongodb.driver.execute import CACHE

MAX_BYTES: Final = 16 * 1024 * 1024
"""The largest document that the server stores."""

BATCH: Final = 1_000
"""How many entries one command handles."""

LONG_BATCH: Final = 150
"""The same where keys are as long as ``MAX_KEY_BYTES``."""

BRIEF: Final = 60_000
"""Milliseconds. For an entry that lives shorter than this the server computes the expiry. An expiry that we compute
from our estimate of the server's time counts from before the command is sent, and the command may have to wait for an
election."""

SWAPS: Final = 100
"""Attempts to change a sealed number that others change at the same time: some seconds."""
PAUSE: Final = 0.001
"""Seconds, about, by which the pause between two of them grows."""
LONGEST_PAUSE: Final = 0.1

_SEALED: Final = {"$eq": [or_null("value.t"), SEALED]}
"""True if the value looks like a sealed one."""
_UNSEALED: Final = {"$ne": [or_null("value.t"), SEALED]}


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""What a read gives where there is no entry; ``None`` is a value."""


class Page(NamedTuple):
    """Live keys in order, and what is needed to read on after them."""

    keys: Collection[str] = ()
    last: bool = True
    after: str | None = None
    expired: frozenset[str] | None = None


NO_PAGE: Final = Page()
"""The end of a walk through keys."""


class CacheFlows:
    """The operations on entries. ``ttl`` is in milliseconds, ``None`` means never."""

    def __init__(self, codec: Codec, *, sign: bool = False, min_bytes: int | None = None) -> None:
        """``sign``: every value is sealed, and none is taken that is not. ``min_bytes``: larger ones are compressed."""
        self.codec = codec.of(CACHE).sealing(every=sign, min_bytes=min_bytes)
        self._bare = self.codec.bare
        self._sealed_only = sign

    # A value without a server

    def frozen(self, key: str, value: object) -> bytes:
        """``value`` as it would be stored unsealed, of which ``thawed`` makes as many copies as are wanted."""
        return bson.encode({"value": self._bare.pack(key, value)}, codec_options=CODEC_OPTIONS)

    def thawed(self, key: str, data: bytes) -> Any:
        """What reading it back gives."""
        return self._bare.decode(key, bson.decode(data, ENTRY_OPTIONS)["value"])

    # One entry

    def get(self, clock: Clock, key: str) -> Flow[Any]:
        """The value; ``MISSING`` if there is no live entry, or one that can't be decoded."""
        estimate = clock.estimate
        if estimate is None or estimate.due():
            found = yield from stamped(clock, key)
        else:
            found = yield Query(CACHE, "point", {"key": key})
            passed = False if found is None else estimate.passed(found.get("expiresAt"))
            if passed is None:
                found = yield from stamped(clock, key)
            elif passed:
                return MISSING
        if found is None:
            return MISSING
        try:
            return self.codec.decode(key, found.get("value"))
        except Undecodable as error:
            return (yield from _forged(key, error))

    def set(self, clock: Clock, key: str, value: object, ttl: int | None) -> Flow[None]:
        """Store the value. Raises ``InvalidValue`` if it is too large; the previous value is then gone."""
        yield from _set(clock, key, self.codec.pack(key, value), ttl)

    def add(self, clock: Clock, key: str, value: object, ttl: int | None) -> Flow[bool]:
        """Store the value unless there is a live entry; whether it was stored."""
        packed = self.codec.pack(key, value)
        free = {"$or": [clock.new("updatedAt"), clock.passed(), *([_UNSEALED] if self._sealed_only else [])]}
        change = clock.put(free, _named_entry(key, packed, _times(clock, ttl)))
        try:
            reply = yield from by_id(clock, ask(CACHE, "update", {"_id": key}, change, upsert=True))
            if reply is None:
                reply = yield from _by_key(clock, key, change)
        except (PyMongoError, DocumentTooLarge) as error:
            if not too_large(error):
                raise
            raise _refusal(key, packed) from error
        # An expired entry that is replaced gets a new updatedAt, so it always counts as modified.
        return "upserted" in reply or bool(reply["nModified"])

    def replace(self, clock: Clock, key: str, value: object, ttl: int | None) -> Flow[bool]:
        """Store the value if there is a live entry; whether it was stored. Too large: as for ``set``."""
        packed = self.codec.pack(key, value)
        change = [{"$set": _entry(key, packed, _times(clock, ttl))}]
        try:
            reply = yield from ask(CACHE, "update", self._live(clock, key), change)
        except (PyMongoError, DocumentTooLarge) as error:
            if not too_large(error):
                raise
            yield from ask(CACHE, "delete", {"key": key})  # no value is better than an old one
            raise _refusal(key, packed) from error
        return bool(reply["n"])

    def incr(self, clock: Clock, key: str, delta: int) -> Flow[int | None]:
        """The sum; ``None`` if there is no live integer. The expiry stays. Raises ``InvalidValue`` on overflow.

        Of a sealed value two commands, and two more for each writer who was faster; see ``_swap``.
        """
        if self._sealed_only:
            return (yield from self._swap(clock, key, delta))
        update = {"$inc": {"value": delta}, "$currentDate": {"updatedAt": True}}
        whole = clock.whole_number("value")
        try:
            lately = clock.lately_live()
            if lately is None:
                found = yield from stating(clock, "value", "modify", {**self._live(clock, key), **whole}, update)
            else:
                # A counter's document is small: a projection would cost the server more than sending all of it.
                found = yield Query(CACHE, "modify", {"key": key, **lately, **whole}, update)
        except OperationFailure as error:
            # Not a number: a sealed value, or a list with a number in it, which a filter takes for a number.
            if means(error, TYPE_MISMATCH):
                return (yield from self._swap(clock, key, delta))
            if not means(error, OVERFLOW):
                raise
            raise _overflow(key) from error
        return None if found is None else int(found["value"])

    def _swap(self, clock: Clock, key: str, delta: int) -> Flow[int | None]:
        """``incr`` of a sealed value: read it, and write the sum where the same signature still stands.

        Raises ``Contended`` if others were faster ``SWAPS`` times in a row.
        """
        for attempt in range(SWAPS):
            if attempt:
                yield from perform(Pause(random.uniform(0, min(LONGEST_PAUSE, PAUSE * attempt))))
            found = yield from ask(CACHE, "newest", self._live(clock, key))
            stored = None if found is None else found.get("value")
            if not is_sealed(stored):
                if found is not None and self._sealed_only:
                    yield from _forged(key, Undecodable("forged", "a stored value is not signed"))
                return None
            try:
                number = self.codec.decode(key, stored)
            except Undecodable as error:
                yield from _forged(key, error)
                return None
            if type(number) is not int or not INT64_MIN <= number <= INT64_MAX:
                return None
            total = number + delta
            if not INT64_MIN <= total <= INT64_MAX:
                raise _overflow(key)
            test = {**self._live(clock, key), "value.s": stored["s"]}
            change = {"value": literal(self.codec.pack(key, total)), "updatedAt": clock.now()}
            reply = yield from ask(CACHE, "update", test, [{"$set": change}])
            if reply["n"]:
                return total
        raise Contended(
            f"cache key {shown_key(key)!r:.200}: {SWAPS} times in a row another writer was faster; nothing was changed"
        )

    def touch(self, clock: Clock, key: str, ttl: int | None) -> Flow[bool]:
        """Give a live entry a new expiry; whether there was one."""
        update = [{"$set": {"expiresAt": None if ttl is None else clock.after(ttl)}}]
        reply = yield from ask(CACHE, "update", self._live(clock, key), update)
        return bool(reply["n"])

    def expire_at(self, clock: Clock, key: str, when: datetime) -> Flow[bool]:
        """Let a live entry end at ``when`` by the server's clock; whether there was one. A past one ends it now."""
        reply = yield from ask(CACHE, "update", self._live(clock, key), [{"$set": {"expiresAt": literal(when)}}])
        return bool(reply["n"])

    def delete(self, clock: Clock, key: str) -> Flow[bool]:
        """Remove a live entry; whether there was one. Dead ones are left to the TTL monitor: nothing reads them."""
        lately = clock.lately_live()
        if lately is None:
            return (yield from stating(clock, "updatedAt", "take", {"key": key, "$expr": clock.live()})) is not None
        return bool((yield Query(CACHE, "delete", {"key": key, **lately})))

    def has(self, clock: Clock, key: str) -> Flow[bool]:
        """Whether there is a live entry. Two commands for a value that may be unreadable, which counts as none; one
        where every value is sealed."""
        if clock.estimate is not None and not self._sealed_only:  # mongomock can't look into a list with a number in it
            found = yield from ask(CACHE, "point", self._live(clock, key), {"_id": False, f"value.{RESERVED}": True})
            if found is None or not isinstance(found.get("value"), dict) or not found["value"]:
                return found is not None
        return (yield from self.get(clock, key)) is not MISSING

    def remaining(self, clock: Clock, key: str) -> Flow[int | None]:
        """Milliseconds until the entry expires; ``None`` for never, 0 for no live entry.

        Where every value is sealed it is read as well, to see whether it is genuine.
        """
        fields = {"_id": False, "expiresAt": True, **clock.stamp(), **({"value": True} if self._sealed_only else {})}
        found = yield from ask(CACHE, "point", self._live(clock, key), fields)
        if found is None:
            return 0
        if self._sealed_only:
            try:
                self.codec.opened(key, found.get("value"))
            except Undecodable as error:
                yield from _forged(key, error)
                return 0
        expires_at, now = instant(found.get("expiresAt")), instant(clock.read_stamp(found))
        if expires_at is None or now is None:
            return None
        return max(1, round((expires_at - now).total_seconds() * 1_000))

    # Many entries by their keys

    def get_many(self, clock: Clock, keys: Sequence[str]) -> Flow[dict[str, Any]]:
        """The values of the live ones. One command for each thousand keys."""
        values, decode = {}, self.codec.decode
        for batch in _key_batches(keys):
            test = {"key": {"$in": batch}, "$expr": clock.live()}
            for entry in (yield from ask(CACHE, "many", test, BATCH)):
                key = entry["key"]
                try:
                    values[key] = decode(key, entry.get("value"))
                except Undecodable as error:
                    yield from _forged(key, error)
                except TypeError:  # damaged: its key is a list that holds the one we asked for
                    continue
        return values

    def set_many(self, clock: Clock, values: Mapping[str, object], ttl: int | None) -> Flow[list[str]]:
        """Store many values; the keys of those that were too large, whose previous values are gone.

        One command for each thousand entries, and one more where it overwrites another package's entries.
        """
        refused: list[str] = []
        packed = {key: self.codec.pack(key, value) for key, value in values.items()}
        for keys in _key_batches(list(packed)):
            batch = [(key, packed[key]) for key in keys]
            try:
                yield from _set_batch(clock, batch, ttl)
            except (PyMongoError, DocumentTooLarge) as error:
                if not too_large(error):
                    raise
                # Only the server knows which: the large ones one by one, then the rest, which may not be stored yet.
                large = {key for key, value in batch if _size(value) > MAX_BYTES // 2}
                for key, value in batch:
                    if key in large:
                        try:
                            yield from _set(clock, key, value, ttl)
                        except InvalidValue:
                            refused.append(key)
                if rest := [one for one in batch if one[0] not in large]:
                    yield from _set_batch(clock, rest, ttl)
        return refused

    def delete_many(self, clock: Clock, keys: Sequence[str]) -> Flow[int]:
        """Remove these keys; how many there were. One command for each thousand."""
        removed = 0
        for batch in _key_batches(keys):
            result = yield from ask(CACHE, "delete_many", {"key": {"$in": batch}})
            removed += result.deleted_count
        return removed

    # All entries under a prefix

    def delete_range(self, clock: Clock, prefix: str, regex: str | None = None) -> Flow[int]:
        """Remove what begins with ``prefix`` and matches ``regex``, if that is given; how many there were."""
        test: dict[str, Any] = {"key": prefix_range(prefix)}
        if regex is not None:
            test["key"]["$regex"] = regex
        removed = yield from ask(CACHE, "delete_many", test)
        return int(removed.deleted_count)

    def page(self, clock: Clock, prefix: str, previous: Page | None, size: int = BATCH) -> Flow[Page]:
        """The live keys among the next ``size`` under ``prefix``. Two commands for the first page, then one.

        The first one asks for keys that have expired but are still there. Unless there are very many of them, the
        index alone then gives each page.
        """
        expired = (yield from _expired(clock, prefix)) if previous is None else previous.expired
        after = None if previous is None else previous.after
        test: dict[str, Any] = {"key": prefix_range(prefix, after)}
        if expired is None:
            test["$expr"] = clock.live()
        fields = {"_id": False, "key": True}
        walk = {"sort": [("key", 1)], "limit": size, "batch_size": size + 1}
        found = yield from ask(CACHE, "find", test, fields, **walk)
        if len(named_by_text(found)) < len(found):  # somebody has planted a list of keys: then not from the index alone
            found = yield from ask(CACHE, "find", {**test, "key.0": NOT_A_LIST}, fields, **walk)
        keys = [one["key"] for one in found]
        live = [key for key in keys if key not in expired] if expired else keys
        return Page(live, len(keys) < size, keys[-1] if keys else after, expired)

    def keys(self, clock: Clock, prefix: str) -> Flow[list[str]]:
        """All live keys under ``prefix``. One command for each thousand, and one before them."""
        page = yield from self.page(clock, prefix, None)
        keys = [*page.keys]
        while not page.last:
            page = yield from self.page(clock, prefix, page)
            keys += page.keys
        return keys

    def count(self, clock: Clock, prefix: str) -> Flow[int]:
        """How many entries are under ``prefix``. Expired ones that are still there count."""
        return int((yield from ask(CACHE, "count_documents", {"key": prefix_range(prefix)})))

    def count_live(self, clock: Clock, prefix: str) -> Flow[int]:
        """How many live entries are under ``prefix``."""
        test = {"key": prefix_range(prefix), "$expr": clock.live()}
        return int((yield from ask(CACHE, "count_documents", test)))

    def delete_expired(self, clock: Clock, prefix: str) -> Flow[int]:
        """Remove entries under ``prefix`` that have expired, before the TTL monitor gets to them; how many."""
        test = {"key": prefix_range(prefix), **clock.expired_filter("expiresAt")}
        removed = yield from ask(CACHE, "delete_many", test)
        return int(removed.deleted_count)

    def cull(self, clock: Clock, prefix: str, number: int) -> Flow[int]:
        """Remove ``number`` entries under ``prefix``, those that expire soonest first; how many went.

        Two commands for each thousand. Entries that somebody else removes at the same moment count: they made room too.
        """
        removed = 0
        for timed in ({"$type": "date"}, None):
            while removed < number:
                test = {"key": prefix_range(prefix), "key.0": NOT_A_LIST, "expiresAt": timed}
                limit = min(BATCH, number - removed)
                fields = {"_id": False, "key": True}
                found = yield from ask(
                    CACHE, "find", test, fields, sort=[("expiresAt", 1)], limit=limit, batch_size=limit + 1
                )
                if not found:
                    break
                yield from self.delete_many(clock, [one["key"] for one in named_by_text(found)])
                removed += len(found)
        return removed

    def _live(self, clock: Clock, key: str) -> dict[str, Any]:
        live = clock.live()
        return {"key": key, "$expr": {"$and": [live, _SEALED]} if self._sealed_only else live}


# Reading


def _forged(key: str, error: Undecodable) -> Flow[Any]:
    yield from perform(Emit("cache_entry_forged", key=shown_key(key), reason=error.reason, message=str(error)))
    return MISSING


def _expired(clock: Clock, prefix: str) -> Flow[frozenset[str] | None]:
    """Keys under ``prefix`` that have expired but are still there; ``None`` if there are more than ``BATCH``."""
    test = {"key": prefix_range(prefix), **clock.expired_filter("expiresAt")}
    fields = {"_id": False, "key": True}
    found = yield from ask(CACHE, "find", test, fields, limit=BATCH + 1, batch_size=BATCH + 2)
    return None if len(found) > BATCH else frozenset(one["key"] for one in named_by_text(found))


# Writing: ``packed`` is a value as the codec stores it.


def _times(clock: Clock, ttl: int | None) -> dict[str, Any]:
    return {"expiresAt": None if ttl is None else clock.after(ttl), "updatedAt": clock.now()}


def _entry(key: str, packed: object, times: dict[str, Any]) -> dict[str, Any]:
    return {"key": literal(key), "value": literal(packed), **times}


def _overflow(key: str) -> InvalidValue:
    return InvalidValue(f"cache key {shown_key(key)!r:.200}: the sum does not fit in 64 bits; the value is unchanged")


def _named_entry(key: str, packed: object, times: dict[str, Any]) -> dict[str, Any]:
    """An entry for an upsert by ``key``, which would otherwise get an ObjectId as ``_id``."""
    return {**named(key), **_entry(key, packed, times)}


def _change(clock: Clock, key: str, packed: object, ttl: int | None, reached: datetime | None) -> Any:
    """The update that makes ``key`` this entry. Without expressions where we know the server's time well enough: with
    them the server writes the whole entry, even where nothing in it changes."""
    if reached is None or (ttl is not None and ttl < BRIEF):
        return [{"$set": _entry(key, packed, _times(clock, ttl))}]
    expires_at = None if ttl is None else reached + timedelta(milliseconds=ttl)
    return {"$set": {"key": key, "value": packed, "expiresAt": expires_at, "updatedAt": reached}}


def _set(clock: Clock, key: str, packed: object, ttl: int | None) -> Flow[None]:
    try:
        if (yield from by_id(clock, _put(clock, key, packed, ttl))) is None:
            yield from _by_key(clock, key, [{"$set": _named_entry(key, packed, _times(clock, ttl))}])
    except (PyMongoError, DocumentTooLarge) as error:
        if not too_large(error):
            raise
        yield from ask(CACHE, "delete", {"key": key})  # no value is better than an old one
        raise _refusal(key, packed) from error


def _put(clock: Clock, key: str, packed: object, ttl: int | None) -> Flow[Any]:
    estimate, test = clock.primary, {"_id": key}
    reached = None if estimate is None else estimate.reached()
    change = _change(clock, key, packed, ttl, reached)
    if reached is None and estimate is not None and estimate.due():
        return (yield from stating(clock, "updatedAt", "modify", test, change, upsert=True))
    return (yield Query(CACHE, "update", test, change, upsert=True))


def _by_key(clock: Clock, key: str, change: Any) -> Flow[Any]:
    return (yield from upsert(clock, lambda: Query(CACHE, "update", {"key": key}, change, upsert=True)))


def _set_batch(clock: Clock, batch: Sequence[tuple[str, object]], ttl: int | None) -> Flow[None]:
    # By _id, which is faster. A document whose _id is not its key collides and is then set by key.
    collided: Sequence[int] = range(len(batch))
    changes: list[tuple[dict[str, str], Any]]
    if clock.by_id:
        reached = yield from surely_reached(clock)
        changes = [({"_id": key}, _change(clock, key, packed, ttl, reached)) for key, packed in batch]
        try:
            collided = yield from ask(CACHE, "upsert_many", changes)
        except OperationFailure as error:
            if not no_shard_key(error):
                raise
            clock.by_id = False
    times = _times(clock, ttl)
    for _ in range(5):
        if not collided:
            return
        batch = [batch[at] for at in collided]
        changes = [({"key": key}, [{"$set": _named_entry(key, packed, times)}]) for key, packed in batch]
        collided = yield from ask(CACHE, "upsert_many", changes)


def _size(packed: object) -> int:
    return len(bson.encode({"value": packed}, codec_options=CODEC_OPTIONS))


def _refusal(key: str, packed: object) -> InvalidValue:
    return InvalidValue(
        f"cache key {shown_key(key)!r:.200}: the value takes {_size(packed)} bytes; "
        f"the server holds at most {MAX_BYTES}, key and times included"
    )


def _batches(items: Sequence[Any], size: int = BATCH) -> Iterable[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _key_batches(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    """A thousand keys at a time. Fewer of very long ones, so that each command and its answer fit in one document."""
    for batch in _batches(keys):
        if 4 * sum(map(len, batch)) <= MAX_KEY_BYTES * LONG_BATCH:  # a character takes up to four bytes
            yield batch
        else:
            yield from _batches(batch, LONG_BATCH)
