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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, TypeVar

import bson
from pymongo.errors import DocumentTooLarge, DuplicateKeyError, OperationFailure, PyMongoError

from goscope_django.core.arguments import MAX_KEY_BYTES, shown_key
from goscope_django.core.flow import Emit, Flow, Pause, Query, ask, perform
from goscope_django.exceptions import Contended, InvalidValue, Undecodable
from goscope_django.mongodb.cache import own, tags
from goscope_django.mongodb.cache.own import FIELDS, Own, Terms, own_of
from goscope_django.mongodb.cache.time import STAMPED, stamped, stating, surely_reached
from goscope_django.mongodb.codec import CODEC_OPTIONS, ENTRY_OPTIONS, Codec
from goscope_django.mongodb.codec.plain import INT64_MAX, INT64_MIN, RESERVED
from goscope_django.mongodb.codec.sealed import SEALED, is_sealed
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import FAR, conditions, instant, literal, named, or_null, prefix_range
from goscope_django.mongodb.document.failures import OVERFLOW, TYPE_MISMATCH, means, no_shard_key, too_large
from goscope_django.mongodb.document.lease import by_id, upsert
from goscope_django.mongodb.document.reading import NOT_A_LIST, document, named_by_text
from goscope_django.mongodb.driver.execute import CACHE

T = TypeVar("T")

MAX_BYTES: Final = 16 * 1024 * 1024
"""The largest document that the server stores."""

BATCH: Final = 1_000
"""How many entries one command handles."""

ATTEMPTS: Final = 5
"""How often an entry that others change meanwhile is looked at anew."""

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


class Seen(NamedTuple):
    """A value, fresh or stale; ``MISSING`` if there is none. ``left``: the seconds for which a stale one still serves;
    ``None`` for a fresh one. ``terms``: on which it was stored."""

    value: Any = MISSING
    left: float | None = None
    terms: Terms | None = None


NOTHING: Final = Seen()
"""No entry."""


class CacheFlows:
    """The operations on entries. ``ttl`` is in milliseconds, ``None`` means never."""

    def __init__(self, codec: Codec, *, sign: bool = False, min_bytes: int | None = None) -> None:
        """``sign``: every value is sealed, and none is taken that is not. ``min_bytes``: larger ones are compressed."""
        self.codec = codec.of(CACHE).sealing(every=sign, min_bytes=min_bytes)
        self._bare = self.codec.bare
        self._sealed_only = self.codec.takes_sealed_only

    # A value without a server

    def frozen(self, key: str, value: object) -> bytes:
        """``value`` as it would be stored unsealed, of which ``thawed`` makes as many copies as are wanted."""
        return bson.encode({"value": self._bare.pack(key, value)}, codec_options=CODEC_OPTIONS)

    def thawed(self, key: str, data: bytes) -> Any:
        """What reading it back gives."""
        return self._bare.decode(key, bson.decode(data, ENTRY_OPTIONS)["value"])

    # One entry

    def get(self, clock: Clock, key: str) -> Flow[Any]:
        """The value; ``MISSING`` if there is no live entry, or one that can't be decoded. Two commands if it has
        tags."""
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
        if found is None or (found.get("ownFor") is not None and not (yield from _stands(clock, found))):
            return MISSING
        return (yield from self.opened(key, found))

    def newest(self, clock: Clock, key: str) -> Flow[Any]:
        """``get`` from the primary, whatever the URL says: for who has waited for another one's value, which a
        secondary may not have yet. As many commands."""
        if clock.primary is clock.estimate:  # reads go there anyway
            return (yield from self.get(clock, key))
        rows, _ = yield from ask(CACHE, "fresh", {"key": key}, {**STAMPED, **clock.stamp()}, 1)
        found = next(iter(rows or ()), None)
        if found is None or clock.lapsed(found) or not (yield from _stands(clock, found)):
            return MISSING
        return (yield from self.opened(key, found))

    def look(self, clock: Clock, key: str) -> Flow[Seen]:
        """The value, also one that is not fresh any more. One command, two if it has tags.

        One command more where the process does not know the server's time well enough.
        """
        estimate = clock.estimate
        if estimate is None or estimate.due():
            found = yield from stamped(clock, key)
        else:
            found = yield Query(CACHE, "point", {"key": key})
            if found is not None:
                kept = own_of(found)
                passed = estimate.passed(found.get("expiresAt"))
                if passed is None or (kept is not None and estimate.passed(kept.fresh_until) is None):
                    found = yield from stamped(clock, key)
                elif passed:
                    return NOTHING
        if found is None:
            return NOTHING
        kept, left = own_of(found), None
        if kept is not None:
            if kept.tags is None or not (yield from tags.stand(clock, kept.tags)):
                return NOTHING
            if (yield from own.ended(clock, kept, found)):
                left = own.left(clock, kept, found)
        value = yield from self.opened(key, found)
        return NOTHING if value is MISSING else Seen(value, left, None if kept is None else kept.terms)

    def opened(self, key: str, found: Mapping[str, Any]) -> Flow[Any]:
        """The value of an entry that was read; ``MISSING`` if it can't be decoded. The entry is used up."""
        try:
            return self.codec.decode(key, found.get("value"))
        except Undecodable as error:
            return (yield from _forged(key, error))

    def set(self, clock: Clock, key: str, value: object, ttl: int | None, terms: Terms | None = None) -> Flow[None]:
        """Store the value. Raises ``InvalidValue`` if it is too large; the previous value is then gone."""
        packed = self.codec.pack(key, value)
        yield from own.marked(clock, key, ttl, terms)
        yield from _set(clock, key, packed, ttl, terms)

    def add(self, clock: Clock, key: str, value: object, ttl: int | None, terms: Terms | None = None) -> Flow[bool]:
        """Store the value unless there is a live entry; whether it was stored. Two commands and more where one with
        tags is in the way."""
        packed = self.codec.pack(key, value)
        entry = _named_entry(key, packed, _times(clock, ttl, terms))
        refused, fields = ([_UNSEALED], {**FIELDS, "value.t": True}) if self._sealed_only else ([], FIELDS)
        change = clock.put({"$or": [clock.new("updatedAt"), clock.passed(), own.stale(clock), *refused]}, entry)
        yield from own.marked(clock, key, ttl, terms)
        try:
            for _ in range(ATTEMPTS):
                before = yield from by_id(clock, _before(clock, {"_id": key}, change, fields, upsert=True))
                if before is None:
                    before = yield from _added_by_key(clock, key, change, fields)
                found = before[0]
                if found is None or clock.lapsed(found):
                    return True
                if self._sealed_only and document(found.get("value")).get("t") != SEALED:
                    return True
                kept = own_of(found)
                if kept is None:
                    return False
                if (yield from own.ended(clock, kept, found)):
                    return True
                if kept.tags is not None and (yield from tags.stand(clock, kept.tags)):
                    return False
                if (yield from ask(CACHE, "update", own.this(key, found), [{"$set": entry}]))["n"]:
                    return True
        except (PyMongoError, DocumentTooLarge) as error:
            if not too_large(error):
                raise
            raise _refusal(key, packed) from error
        return False  # others store there all the time

    def replace(self, clock: Clock, key: str, value: object, ttl: int | None, terms: Terms | None = None) -> Flow[bool]:
        """Store the value if there is a live entry; whether it was stored. Too large: as for ``set``.

        Two commands where it replaces a value with own fields, three where that has tags.
        """
        packed = self.codec.pack(key, value)
        entry = _entry(key, packed, _times(clock, ttl, terms))
        yield from own.marked(clock, key, ttl, terms)
        try:
            change = [{"$set": entry}]
            return (yield from self._rewritten(clock, key, entry, lambda kept, found: _always(change)))
        except (PyMongoError, DocumentTooLarge) as error:
            if not too_large(error):
                raise
            yield from ask(CACHE, "delete", {"key": key})  # no value is better than an old one
            raise _refusal(key, packed) from error

    def incr(self, clock: Clock, key: str, delta: int) -> Flow[int | None]:
        """The sum; ``None`` if there is no live integer. The expiry stays. Raises ``InvalidValue`` on overflow.

        One command more if the entry has tags. Of a sealed value two commands, and two more for each writer who was
        faster; see ``_swap``.
        """
        if self._sealed_only:
            return (yield from self._swap(clock, key, delta))
        # The times stay as they are, so own fields that hold go on to hold. An entry that turns out to have been
        # invalidated is changed in vain: it is never read again.
        update, whole = {"$inc": {"value": delta}}, clock.whole_number("value")
        lately, reached = clock.lately_live(), None if clock.primary is None else clock.primary.reached()
        try:
            if lately is None or reached is None:
                test = {"key": key, "$expr": own.fresh(clock), **whole}
                found = yield from stating(clock, {**FIELDS, "value": True}, "modify", test, update)
            else:
                # A counter's document is small: a projection would cost the server more than sending all of it.
                test = {"key": key, **lately, **own.lately_fresh(reached), **whole}
                found = yield Query(CACHE, "modify", test, update)
        except OperationFailure as error:
            # Not a number: a sealed value, or a list with a number in it, which a filter takes for a number.
            if means(error, TYPE_MISMATCH):
                return (yield from self._swap(clock, key, delta))
            if not means(error, OVERFLOW):
                raise
            raise _overflow(key) from error
        if found is None or (found.get("ownFor") is not None and not (yield from _tagged(clock, found))):
            return None
        return int(found["value"])

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
            if not (yield from _stands(clock, found)):
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
            test = {**self._live(clock, key), **own.this(key, found), "value.s": stored["s"]}
            # Where own fields hold the times stay as they are, so that the fields go on to hold.
            times = {"updatedAt": clock.now(), **own.NONE} if own_of(found) is None else {}
            change = {"value": literal(self.codec.pack(key, total)), **times}
            reply = yield from ask(CACHE, "update", test, [{"$set": change}])
            if reply["n"]:
                return total
        raise Contended(
            f"cache key {shown_key(key)!r:.200}: {SWAPS} times in a row another writer was faster; nothing was changed"
        )

    def touch(self, clock: Clock, key: str, ttl: int | None) -> Flow[bool]:
        """Give a live entry a new expiry; whether there was one. Two commands if it has own fields, three if tags."""

        def after(more: int) -> Any:
            return None if ttl is None else clock.after(ttl + more)

        def moved(kept: Own, _: Mapping[str, Any]) -> Flow[Any]:
            return _moved(clock, key, kept, after, ttl)

        return (yield from self._rewritten(clock, key, {"expiresAt": after(0)}, moved))

    def expire_at(self, clock: Clock, key: str, when: datetime) -> Flow[bool]:
        """Let a live entry end at ``when`` by the server's clock; whether there was one. A past one ends it now."""

        def after(more: int) -> Any:
            return literal(when + timedelta(milliseconds=more))

        def moved(kept: Own, found: Mapping[str, Any]) -> Flow[Any]:
            now = instant((yield from own.server_time(clock, found)))
            left = 0 if now is None else max(0, round((when - now).total_seconds() * 1_000))
            return (yield from _moved(clock, key, kept, after, left))

        return (yield from self._rewritten(clock, key, {"expiresAt": after(0)}, moved))

    def delete(self, clock: Clock, key: str) -> Flow[bool]:
        """Remove a live entry; whether there was one. Dead ones are left to the TTL monitor: nothing reads them."""
        lately = clock.lately_live()
        if lately is None:
            found = yield from stating(clock, FIELDS, "take", {"key": key, "$expr": clock.live()})
        else:
            found = yield Query(CACHE, "take", {"key": key, **lately}, FIELDS)
        return found is not None and (yield from _stands(clock, found))

    def has(self, clock: Clock, key: str) -> Flow[bool]:
        """Whether there is a live entry. Two commands for a value that may be unreadable, which counts as none, and for
        one with tags; one where every value is sealed."""
        if clock.estimate is not None and not self._sealed_only:  # mongomock can't look into a list with a number in it
            fields = {**FIELDS, f"value.{RESERVED}": True, **clock.stamp()}
            found = yield from ask(CACHE, "point", self._live(clock, key), fields)
            if found is None or not isinstance(found.get("value"), dict) or not found["value"]:
                return found is not None and (yield from _stands(clock, found))
        return (yield from self.get(clock, key)) is not MISSING

    def remaining(self, clock: Clock, key: str) -> Flow[int | None]:
        """Milliseconds until the entry expires; ``None`` for never, 0 for no live entry. Two commands if it has tags.

        Where every value is sealed it is read as well, to see whether it is genuine.
        """
        fields = {**FIELDS, **clock.stamp(), **({"value": True} if self._sealed_only else {})}
        found = yield from ask(CACHE, "point", self._live(clock, key), fields)
        if found is None or not (yield from _stands(clock, found)):
            return 0
        if self._sealed_only:
            try:
                self.codec.opened(key, found.get("value"))
            except Undecodable as error:
                yield from _forged(key, error)
                return 0
        kept, now = own_of(found), instant(clock.read_stamp(found))
        expires_at = instant((kept and kept.fresh_until) or found.get("expiresAt"))
        if expires_at is None or now is None:
            return None
        return max(1, round((expires_at - now).total_seconds() * 1_000))

    # Many entries by their keys

    @staticmethod
    def batches(keys: Sequence[str]) -> Iterable[Sequence[str]]:
        """As many keys at a time as one command takes."""
        return _key_batches(keys)

    def get_many(self, clock: Clock, keys: Sequence[str]) -> Flow[dict[str, Any]]:
        """The values of the live ones. One command for each thousand keys, one more for those with tags."""
        values, decode = {}, self.codec.decode
        for batch in _key_batches(keys):
            test = {"key": {"$in": batch}, "$expr": clock.live()}
            found = yield from ask(CACHE, "many", test, BATCH)
            if any("ownFor" in entry for entry in found):
                found = yield from _standing(clock, found)
            for entry in found:
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
        """The live keys among the next ``size`` under ``prefix``. Two commands for the first page, then one. Three
        for the first one where there are entries that may be stale.

        The first one asks for keys that have expired but are still there. Unless there are very many of them, the
        index alone then gives each page.
        """
        expired = (yield from _expired(clock, prefix)) if previous is None else previous.expired
        after = None if previous is None else previous.after
        test: dict[str, Any] = {"key": prefix_range(prefix, after)}
        if expired is None:
            test["$expr"] = own.fresh(clock)
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
        test = {"key": prefix_range(prefix), "$expr": own.fresh(clock)}
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

    def _rewritten(
        self, clock: Clock, key: str, plain: Mapping[str, Any], owned: Callable[[Own, Mapping[str, Any]], Flow[Any]]
    ) -> Flow[bool]:
        """Give a live entry the fields ``plain``; whether there was one. One command.

        Where its own fields hold, the first command leaves it as it is. It then gets the change that ``owned`` gives
        (``None``: it has been invalidated), unless somebody has written to it meanwhile: then from the beginning.
        """
        holds = own.held()
        change = [{"$set": conditions({"$cond": [holds, False, True]}, {**own.NONE, **plain})}]
        for _ in range(ATTEMPTS):
            (found,) = yield from _before(clock, self._live(clock, key), change)
            if found is None:
                return False
            kept = own_of(found)
            if kept is None:
                return True
            if not (yield from _stands(clock, found)):
                return False
            other = yield from owned(kept, found)
            if other is None:
                return False
            if (yield from ask(CACHE, "update", own.this(key, found), other))["n"]:
                return True
        return False  # others write there all the time

    def _live(self, clock: Clock, key: str) -> dict[str, Any]:
        live = clock.live()
        return {"key": key, "$expr": {"$and": [live, _SEALED]} if self._sealed_only else live}


# Reading


def _stands(clock: Clock, found: Mapping[str, Any]) -> Flow[bool]:
    """Whether a live entry is fresh and none of its tags was invalidated. One command if it has tags."""
    kept = own_of(found)
    if kept is None:
        return True
    return not (yield from own.ended(clock, kept, found)) and (yield from _tagged(clock, found))


def _tagged(clock: Clock, found: Mapping[str, Any]) -> Flow[bool]:
    """Whether none of the tags of an entry was invalidated. One command if it has any."""
    kept = own_of(found)
    return kept is None or (kept.tags is not None and (yield from tags.stand(clock, kept.tags)))


def _standing(clock: Clock, found: Sequence[dict[str, Any]]) -> Flow[list[dict[str, Any]]]:
    """Those of many live entries that ``_stands``. One command for the tags of all of them."""
    kept = {place: one for place, entry in enumerate(found) if (one := own_of(entry)) is not None}
    names = {tag for one in kept.values() for tag in one.tags or ()}
    current = (yield from tags.current(clock, names)) if names else {}
    now = yield from own.time_for(clock, [one.fresh_until for one in kept.values()])
    standing = []
    for place, entry in enumerate(found):
        one = kept.get(place)
        if one is None or (
            one.tags is not None
            and all(current.get(tag) == version for tag, version in one.tags.items())
            and not (yield from own.ended(clock, one, now))
        ):
            standing.append(entry)
    return standing


def _forged(key: str, error: Undecodable) -> Flow[Any]:
    yield from perform(Emit("cache_entry_forged", key=shown_key(key), reason=error.reason, message=str(error)))
    return MISSING


def _expired(clock: Clock, prefix: str) -> Flow[frozenset[str] | None]:
    """Keys under ``prefix`` that have expired but are still there; ``None`` if there are more than ``BATCH``.

    One command. A second one looks for those that are only stale, where the first has met the mark that there may be
    some: no index tells them.
    """
    fields, most = {"_id": False, "key": True}, {"limit": BATCH + 1, "batch_size": BATCH + 2}
    mark = own.mark(prefix)
    passed = {"key": prefix_range(prefix), **clock.expired_filter("expiresAt")}
    found = yield from ask(CACHE, "find", {"$or": [passed, {"_id": mark}]}, fields, **most)
    keys = {one["key"] for one in named_by_text(found)}
    if mark in keys and len(found) <= BATCH:
        keys.discard(mark)
        test = {"key": prefix_range(prefix), "freshUntil": {"$type": "date"}, "$expr": own.stale(clock)}
        found = yield from ask(CACHE, "find", test, fields, **most)
        keys |= {one["key"] for one in named_by_text(found)}
    return None if len(found) > BATCH else frozenset(keys)


# Writing: ``packed`` is a value as the codec stores it.


def _times(clock: Clock, ttl: int | None, terms: Terms | None = None) -> dict[str, Any]:
    if terms is not None:
        return terms.times(clock, ttl)
    return {"expiresAt": None if ttl is None else clock.after(ttl), "updatedAt": clock.now(), **own.NONE}


def _entry(key: str, packed: object, times: dict[str, Any]) -> dict[str, Any]:
    return {"key": literal(key), "value": literal(packed), **times}


def _overflow(key: str) -> InvalidValue:
    return InvalidValue(f"cache key {shown_key(key)!r:.200}: the sum does not fit in 64 bits; the value is unchanged")


def _named_entry(key: str, packed: object, times: dict[str, Any]) -> dict[str, Any]:
    """An entry for an upsert by ``key``, which would otherwise get an ObjectId as ``_id``."""
    return {**named(key), **_entry(key, packed, times)}


def _change(
    clock: Clock, key: str, packed: object, ttl: int | None, reached: datetime | None, terms: Terms | None = None
) -> Any:
    """The update that makes ``key`` this entry. Without expressions where we know the server's time well enough: with
    them the server writes the whole entry, even where nothing in it changes."""
    if reached is None or terms is not None or (ttl is not None and ttl < BRIEF):
        return [{"$set": _entry(key, packed, _times(clock, ttl, terms))}]
    expires_at = None if ttl is None else reached + timedelta(milliseconds=ttl)
    entry = {"key": key, "value": packed, "expiresAt": expires_at, "updatedAt": reached}
    return {"$set": entry, "$unset": dict.fromkeys(own.NONE, "")}


def _set(clock: Clock, key: str, packed: object, ttl: int | None, terms: Terms | None = None) -> Flow[None]:
    try:
        if (yield from by_id(clock, _put(clock, key, packed, ttl, terms))) is None:
            yield from _by_key(clock, key, [{"$set": _named_entry(key, packed, _times(clock, ttl, terms))}])
    except (PyMongoError, DocumentTooLarge) as error:
        if not too_large(error):
            raise
        yield from ask(CACHE, "delete", {"key": key})  # no value is better than an old one
        raise _refusal(key, packed) from error


def _put(clock: Clock, key: str, packed: object, ttl: int | None, terms: Terms | None) -> Flow[Any]:
    estimate, test = clock.primary, {"_id": key}
    reached = None if estimate is None else estimate.reached()
    change = _change(clock, key, packed, ttl, reached, terms)
    if reached is None and estimate is not None and estimate.due():
        return (yield from stating(clock, {"updatedAt": True}, "modify", test, change, upsert=True))
    return (yield Query(CACHE, "update", test, change, upsert=True))


def _by_key(clock: Clock, key: str, change: Any) -> Flow[Any]:
    return (yield from upsert(clock, lambda: Query(CACHE, "update", {"key": key}, change, upsert=True)))


# Writing where it depends on what is there


def _before(
    clock: Clock, test: Mapping[str, Any], change: Any, fields: Mapping[str, bool] = FIELDS, *, upsert: bool = False
) -> Flow[tuple[dict[str, Any] | None]]:
    """Change an entry; what it was before, ``None`` if there was none. With the server's time. One command."""
    found = yield Query(CACHE, "modify", test, change, {**fields, **clock.stamp()}, upsert=upsert, before=True)
    if found is not None and clock.estimate is not None and "now" not in found:
        # The driver has sent it twice, and the server answers from its record of the first one: the whole document.
        found["now"] = (yield from ask(CACHE, "time")) or FAR
    return (found,)


def _added_by_key(
    clock: Clock, key: str, change: Any, fields: Mapping[str, bool]
) -> Flow[tuple[dict[str, Any] | None]]:
    for attempt in range(ATTEMPTS):
        try:
            return (yield from _before(clock, {"key": key}, change, fields, upsert=True))
        except DuplicateKeyError:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _always(change: T) -> Flow[T]:
    yield from ()
    return change


def _moved(clock: Clock, key: str, kept: Own, after: Callable[[int], Any], lasting: int | None) -> Flow[Any]:
    """The change that lets an entry with own fields be fresh until ``after(0)``, and its tags last as long."""
    stale = kept.terms.stale
    yield from own.marked(clock, key, lasting, kept.terms)
    if kept.tags:
        reach = None if lasting is None else lasting + stale
        if (yield from tags.versions(clock, kept.tags, reach)) != kept.tags:
            return None
    return own.restated(after(stale), after(0) if stale else None)


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
