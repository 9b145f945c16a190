"""Cache entries in ``go_goscope_cache``.

One command an operation. Expiry is judged by the server's clock in the query itself, so that neither the TTL monitor's
delay nor a wrong clock of a process shows. Entries are found by ``key`` (Node's have an ObjectId as ``_id``); ours
carry the key as ``_id`` too, so that two racing writers collide whatever the indexes. Keys are selected by ranges over
the index, never by regular expressions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pymongo.errors import OperationFailure

from goscope_django.exceptions import InvalidValue, Undecodable
from goscope_django.mongodb.cache_entries import CacheEntries
from goscope_django.mongodb.cache_ranges import BATCH, key_batches
from goscope_django.mongodb.cache_time import stamped, stating
from goscope_django.mongodb.codec_plain import RESERVED
from goscope_django.mongodb.execute import CACHE
from goscope_django.mongodb.expressions import Clock, instant
from goscope_django.mongodb.flow import Emit, Flow, Query, ask, perform

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
