"""Reading entries so that they may be kept in this process: as the primary has them, with ``_id`` and the time left.

Rules of this file:

* One command for each thousand keys, as without keeping, and one for the tags. It asks for the server's time too, by
  which expiry is judged.
* What is read may be kept only if ``Reading.name`` is an ``_id`` that the change stream tells of.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from bson.objectid import ObjectId

from goscope_django.core.flow import Flow, ask
from goscope_django.mongodb.cache import own, tags
from goscope_django.mongodb.cache.own import Own, Terms, own_of
from goscope_django.mongodb.codec.plain import built_in
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import instant
from goscope_django.mongodb.driver.execute import CACHE

_FIELDS: Final = {**own.FIELDS, "_id": True, "key": True, "value": True}
"""What of an entry is read."""


class Reading(NamedTuple):
    """An entry that was live. ``left`` is in seconds, ``None`` for never. ``over``: it is stale, and serves for so many
    seconds still; ``None`` for a fresh one. ``terms``: on which it was stored."""

    entry: dict[str, Any]
    name: str | ObjectId | None
    left: float | None
    over: float | None = None
    terms: Terms | None = None


def read(clock: Clock, keys: Sequence[str], *, stale: bool = False) -> Flow[tuple[list[Reading] | None, object]]:
    """The live ones of ``keys``, with ``stale`` also those that are not fresh any more; ``None`` if one reply does not
    hold them. And which primary answered."""
    test: dict[str, Any] = {"key": keys[0] if len(keys) == 1 else {"$in": list(keys)}}
    rows, served = yield from ask(CACHE, "fresh", test, {**_FIELDS, **clock.stamp()}, len(keys))
    if rows is None:
        return None, served
    found = [(row, own_of(row)) for row in rows if not clock.lapsed(row)]
    names = {tag for _, kept in found if kept is not None for tag in kept.tags or ()}
    current = (yield from tags.current(clock, names)) if names else {}
    readings = []
    for row, kept in found:
        over = None
        if kept is not None:
            if not _stands(kept, current):
                continue
            if (yield from own.ended(clock, kept, row)):
                if not stale:
                    continue
                over = own.left(clock, kept, row)
        reading = _reading(clock, row, kept) if over is None else Reading(row, None, None)
        readings.append(reading if kept is None else reading._replace(over=over, terms=kept.terms))
    return readings, served


def _stands(kept: Own, current: own.Tags) -> bool:
    return kept.tags is not None and all(current.get(tag) == version for tag, version in kept.tags.items())


def _reading(clock: Clock, row: dict[str, Any], kept: Own | None) -> Reading:
    name, expires_at = row.get("_id"), (kept and kept.fresh_until) or row.get("expiresAt")
    ours = isinstance(name, ObjectId) or (type(name) is str and name == row.get("key"))
    ours = ours and not (kept is not None and kept.tags)
    if expires_at is None:
        return Reading(row, name if ours else None, None)
    if not isinstance(expires_at, datetime):  # nobody knows when this passes
        return Reading(row, None, None)
    ends, now = instant(expires_at), instant(clock.read_stamp(row))
    assert ends is not None
    assert now is not None
    return Reading(row, name if ours else None, (ends - now).total_seconds())


def copied(value: object) -> bool:
    """Whether ``marshal`` gives back ``value`` exactly as it is."""
    return built_in(value)
