"""What stands in a cache entry beside its value: until when it is fresh, and its tags. Node's adapter knows neither.

Rules of this file:

* Own fields hold only for the times that ``ownFor`` states (ADR 7). Where another writer has changed one of these, as
  Node's ``set`` does, they are ignored: by all that read and by all that filter.
* Whoever writes a value states them anew, or writes ``ownFor: null``. What moves a time and not the value states them
  again only where they held before.
* An entry whose tags can't be read counts as invalidated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from pymongo.errors import DuplicateKeyError

from goscope_django.core.flow import Flow, ask
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import Expression, instant, is_set, literal, or_null
from goscope_django.mongodb.document.reading import rows, text
from goscope_django.mongodb.driver.execute import CACHE

SPARE: Final = 3_600_000
"""Milliseconds by which what is kept for entries outlasts them, so that not each of them has to see to that."""

NONE: Final[dict[str, Any]] = {"ownFor": None}
"""The own fields of an entry that has none."""

FIELDS: Final[dict[str, bool]] = {
    "_id": False,
    **dict.fromkeys(("updatedAt", "expiresAt", "ownFor", "freshUntil", "tags"), True),
}
"""A projection of what says whether an entry stands."""

Tags = Mapping[str, str]
"""The version of each tag, by the tag's ``_id``."""


_LONG_AGO: Final = datetime(1970, 1, 1)  # noqa: DTZ001  as mongomock holds it


@dataclass(frozen=True, slots=True)
class Terms:
    """What a value is stored with: ``stale`` milliseconds for which it may serve once it is not fresh any more, and the
    versions of its tags."""

    stale: int = 0
    tags: Tags = field(default_factory=dict)

    def times(self, clock: Clock, ttl: int | None) -> dict[str, Any]:
        """The times and own fields of an entry that is fresh for ``ttl`` milliseconds (``None``: always)."""
        now, expires_at = clock.now(), None if ttl is None else clock.after(ttl + self.stale)
        return {
            "expiresAt": expires_at,
            "updatedAt": now,
            "freshUntil": clock.after(ttl) if ttl is not None and self.stale else None,
            "tags": literal([{"tag": tag, "version": one} for tag, one in self.tags.items()]) if self.tags else None,
            "ownFor": {"updatedAt": now, "expiresAt": expires_at},
        }


@dataclass(frozen=True, slots=True)
class Own:
    """The own fields of an entry as it was read. ``tags`` is ``None`` where they can't be read."""

    fresh_until: datetime | None
    tags: Tags | None
    expires_at: Any

    @property
    def terms(self) -> Terms:
        """The terms on which it was stored."""
        until = self.expires_at
        stale = until - self.fresh_until if self.fresh_until and isinstance(until, datetime) else None
        return Terms(0 if stale is None else max(0, round(stale.total_seconds() * 1_000)), self.tags or {})


def own_of(document: Mapping[str, Any]) -> Own | None:
    """The own fields that hold for an entry; ``None`` if it has none."""
    stated = document.get("ownFor")
    if not isinstance(stated, dict) or document.get("updatedAt") is None:
        return None
    expires_at = document.get("expiresAt")
    if stated.get("updatedAt") != document["updatedAt"] or stated.get("expiresAt") != expires_at:
        return None
    moment, tags = document.get("freshUntil"), document.get("tags")
    found: Tags | None = {}
    if tags is not None:
        read = [(text(one.get("tag")), text(one.get("version"))) for one in rows(tags)]
        found = {tag: version for tag, version in read if tag and version}
        if not isinstance(tags, list) or len(found) != len(tags):
            found = None
    return Own(moment if isinstance(moment, datetime) else None, found, expires_at)


def held() -> Expression:
    """True if an entry has own fields that hold."""
    same = [{"$eq": [or_null(f"ownFor.{name}"), or_null(name)]} for name in ("updatedAt", "expiresAt")]
    return {"$and": [is_set("ownFor.updatedAt"), *same]}


def stale(clock: Clock) -> Expression:
    """True if an entry is not fresh any more."""
    return {"$and": [held(), clock.passed("freshUntil")]}


def fresh(clock: Clock) -> Expression:
    """True if an entry is live and fresh. What its tags say only ``tags.current`` knows."""
    return {"$and": [clock.live(), {"$cond": [stale(clock), False, True]}]}


def lately_fresh(reached: datetime) -> dict[str, Any]:
    """A filter for entries that are not stale, or were not when the server's clock came to ``reached``. Of an entry
    without own fields the server computes nothing."""
    fresh = {"$nor": [{"freshUntil": {"$lte": reached}}]}
    return {"$and": [{"$or": [{"ownFor": None}, fresh, {"$expr": {"$cond": [held(), False, True]}}]}]}


def this(key: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A filter for the entry as it was read, unless somebody has written it since."""
    return {"key": key, **{name: found.get(name) for name in ("updatedAt", "expiresAt", "ownFor")}}


def restated(expires_at: Expression, fresh_until: Expression) -> list[dict[str, Any]]:
    """An update that moves the times of an entry whose own fields hold; to be sent with ``this``."""
    stated = {"updatedAt": "$updatedAt", "expiresAt": expires_at}
    return [{"$set": {"expiresAt": expires_at, "freshUntil": fresh_until, "ownFor": stated}}]


def mark(key: str) -> str:
    """The ``_id`` of the document that says, for all keys of the project that ``key`` (or its beginning) belongs to,
    that some entries may be stale. It is no entry: no key of a cache begins like this."""
    return f"{key.partition('cache:')[0]}cache-stale"


def marked(clock: Clock, key: str, ttl: int | None, terms: Terms | None) -> Flow[None]:
    """See to it that the mark is there for as long as an entry on these terms. One command, as a rule one that changes
    nothing; none for an entry that is never stale."""
    if terms is None or not terms.stale or ttl is None:
        return
    name, lasting = mark(key), ttl + terms.stale
    enough = {"$gt": [{"$ifNull": ["$expiresAt", _LONG_AGO]}, clock.after(lasting)]}
    moment = {"$cond": [enough, "$expiresAt", clock.after(2 * lasting + SPARE)]}
    with contextlib.suppress(DuplicateKeyError):  # somebody else makes it at this moment
        yield from ask(
            CACHE, "update", {"_id": name}, [{"$set": {"key": literal(name), "expiresAt": moment}}], upsert=True
        )


def server_time(clock: Clock, found: Mapping[str, Any]) -> Flow[datetime | None]:
    """The server's time, as it came with an entry, or by a command of its own."""
    if clock.estimate is None:
        return clock.read_stamp({})
    now = found.get("now")
    return now if isinstance(now, datetime) else (yield from ask(CACHE, "time"))


def time_for(clock: Clock, moments: Iterable[datetime | None]) -> Flow[dict[str, Any]]:
    """What ``ended`` needs to know of the time for all of these moments: one command where that is not known."""
    estimate = clock.estimate
    if estimate is None or all(estimate.passed(one) is not None for one in moments):
        return {}
    return {"now": (yield from server_time(clock, {}))}


def ended(clock: Clock, own: Own, found: Mapping[str, Any]) -> Flow[bool]:
    """Whether an entry is not fresh any more. A command only where the server's time is not known well enough."""
    moment = own.fresh_until
    if moment is None:
        return False
    if clock.estimate is not None and "now" not in found:
        passed = clock.estimate.passed(moment)
        if passed is not None:
            return passed
    now = yield from server_time(clock, found)
    return now is None or moment <= now


def left(clock: Clock, own: Own, found: Mapping[str, Any]) -> float:
    """Seconds until a stale entry ends, by the server's time as far as it is known; less a little where it is not."""
    now = found.get("now")
    if now is None and clock.estimate is not None:
        now = clock.estimate.reached()
    now = instant(now) or (instant(clock.read_stamp({})) if clock.estimate is None else None)
    until = instant(own.expires_at)
    return 0.0 if now is None or until is None else max(0.0, (until - now).total_seconds())
