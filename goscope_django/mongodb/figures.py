"""Figures for operators, in ``go_goscope_stats``: a document for each minute and one for the names of each hour.

``<prefix>minute:2026-11-24T21:05`` is counted up by all processes alike, one ``$inc`` for each batch. Names (cache
aliases, key namespaces) are users' text and can't be field names: ``<prefix>names:2026-11-24T21`` gives each of them a
number, for an hour, up to a limit. Names without a number are still in the sums. So the size of both documents is
bounded for the whole fleet, however many processes there are and whatever keys they use.

Rule of this file: counts may be lost (with a process that is killed), but are never added twice: if an outcome is
unknown, the batch counts as sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from pymongo import ReturnDocument

from goscope_django.core.flow import Flow, Query, ask
from goscope_django.mongodb.document import reading
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import instant, literal
from goscope_django.mongodb.document.lease import new_claim, timed, upsert

STATS: Final = "go_goscope_stats"
MINUTES: Final = 60
KEPT: Final = timedelta(hours=2)
MAX_ALIASES: Final = 16
MAX_NAMESPACES: Final = 48
"""Of an hour, in the whole fleet."""

MAX_PROCESSES: Final = 50
"""Processes whose waits are read of a minute, at most."""

CACHE_COUNTERS: Final = ("hits", "misses", "sets", "deletes", "errors", "forged", "bytes_read", "bytes_written")
_CODES: Final = "hmsdefrw"
OTHER: Final = "(other)"

Pair = tuple[str, str]
Wait = tuple[str, str, int, float]
"""Kind, key, how many, and since how many seconds the first."""


@dataclass(slots=True)
class Slots:
    """The numbers of the names of one hour, as far as this process knows them. ``book`` is where they stand: if that is
    removed meanwhile, what was counted under its numbers must not be read by those of the next one."""

    hour: datetime | None = None
    book: str = ""
    aliases: dict[str, int] = field(default_factory=dict)
    pairs: dict[Pair, int] = field(default_factory=dict)
    full: bool = False

    def lack(self, batch: Batch) -> bool:
        """Whether there are names in ``batch`` that may still get a number."""
        if any(name not in self.aliases for name in batch.aliases) and len(self.aliases) < MAX_ALIASES:
            return True
        return not self.full and any(pair not in self.pairs for pair in batch.pairs)


@dataclass(frozen=True, slots=True)
class Batch:
    """What to add: counters in the order of ``CACHE_COUNTERS`` by alias and by (alias, namespace); events by name."""

    process: str
    aliases: Mapping[str, Sequence[int]]
    pairs: Mapping[Pair, Sequence[int]]
    events: Mapping[str, int]
    waits: Sequence[Wait] = ()


@dataclass(frozen=True, slots=True)
class WaitSeen:
    """What a process told that it waits for."""

    process: str
    kind: str
    key: str
    count: int
    longest: float
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class Hour:
    """The last hour: 60 minutes, the current one last."""

    minutes: tuple[datetime, ...]
    series: dict[str, tuple[int, ...]]
    aliases: dict[str, dict[str, int]]
    pairs: dict[Pair, dict[str, int]]
    waits: tuple[WaitSeen, ...]


def _minute_id(prefix: str, minute: datetime) -> str:
    return f"{prefix}minute:{minute:%Y-%m-%dT%H:%M}"


def _names_id(prefix: str, hour: datetime) -> str:
    return f"{prefix}names:{hour:%Y-%m-%dT%H}"


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _appended(name: str, new: list[Any], most: int) -> Any:
    """The array in ``name`` with those of ``new`` that are not in it, up to ``most`` in all; what is there keeps its
    place."""
    there = {"$ifNull": [f"${name}", []]}
    unknown = {"$filter": {"input": literal(new), "as": "x", "cond": {"$cond": [{"$in": ["$$x", there]}, False, True]}}}
    return {"$slice": [{"$concatArrays": [there, unknown]}, most]}


def _register(clock: Clock, prefix: str, hour: datetime, batch: Batch, slots: Slots) -> Flow[datetime]:
    """One command: get numbers for the batch's names in ``hour``; the server's time."""
    aliases, pairs = sorted(batch.aliases), [list(pair) for pair in sorted(batch.pairs)]

    def query() -> Query[Any]:
        fields = {
            "book": {"$ifNull": ["$book", new_claim()[:6]]},
            "aliases": _appended("aliases", aliases, MAX_ALIASES),
            "pairs": _appended("pairs", pairs, MAX_NAMESPACES),
            "expiresAt": hour + KEPT + timedelta(hours=1),
        }
        return Query(
            STATS,
            "find_one_and_update",
            {"_id": _names_id(prefix, hour)},
            [{"$set": fields}],
            projection={"book": True, "aliases": True, "pairs": True, **clock.stamp()},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )

    found = yield from timed(clock, upsert(clock, query))
    slots.hour, slots.book = hour, found["book"]
    slots.aliases = {name: number for number, name in enumerate(found["aliases"])}
    slots.pairs = {(alias, name): number for number, (alias, name) in enumerate(found["pairs"])}
    slots.full = len(found["pairs"]) >= MAX_NAMESPACES
    now = instant(clock.read_stamp(found))
    assert now is not None
    return now


def add(clock: Clock, prefix: str, batch: Batch, slots: Slots, moment: datetime) -> Flow[datetime | None]:
    """Add ``batch`` to the minute of ``moment`` (the server's time, as far as known). One command, and one more in
    each hour and for names that are new to this process. The server's time, where it was told."""
    now: datetime | None = None
    if slots.hour != _hour(moment) or slots.lack(batch):
        now = yield from _register(clock, prefix, _hour(moment), batch, slots)
        if _hour(now) != slots.hour:  # this process's clock is off, or the hour has just changed
            now = yield from _register(clock, prefix, _hour(now), batch, slots)
        moment = now
    minute = moment.replace(second=0, microsecond=0)
    update: dict[str, Any] = {"$setOnInsert": {"at": minute, "expiresAt": minute + KEPT}}
    counts = dict(_increments(batch, slots))
    if counts:
        update["$inc"] = counts
    if batch.waits:
        told = [[kind, key, count, round(longest, 3)] for kind, key, count, longest in batch.waits]
        update["$set"] = {f"w.{batch.process}": {"at": moment, "waits": told}}
    yield from upsert(
        clock, lambda: Query(STATS, "update_one", {"_id": _minute_id(prefix, minute)}, update, upsert=True)
    )
    return now


def _increments(batch: Batch, slots: Slots) -> Iterable[tuple[str, int]]:
    beyond = [0] * len(_CODES)
    for alias, counts in batch.aliases.items():
        number = slots.aliases.get(alias)
        if number is None:
            beyond = [one + more for one, more in zip(beyond, counts, strict=True)]
        else:
            yield from _fields(f"a.{slots.book}.{number}", counts)
    yield from _fields(f"a.{slots.book}.x", beyond)
    for pair, counts in batch.pairs.items():
        if pair in slots.pairs:
            yield from _fields(f"n.{slots.book}.{slots.pairs[pair]}", counts)
    for name, count in batch.events.items():
        if count:
            yield f"e.{name}", count


def _fields(start: str, counts: Sequence[int]) -> Iterable[tuple[str, int]]:
    return [(f"{start}.{code}", count) for code, count in zip(_CODES, counts, strict=True) if count]


def read(clock: Clock, prefix: str, now: datetime) -> Flow[Hour]:
    """One command: the hour before ``now``."""
    last = now.replace(second=0, microsecond=0)
    minutes = tuple(last - timedelta(minutes=back) for back in range(MINUTES - 1, -1, -1))
    hours = sorted({_hour(minute) for minute in minutes})
    ids = [_minute_id(prefix, one) for one in minutes] + [_names_id(prefix, one) for one in hours]
    found = yield from ask(STATS, "find", {"_id": {"$in": ids}}, batch_size=len(ids) + 1)
    documents = {one["_id"]: one for one in found}
    names = {hour: documents.get(_names_id(prefix, hour), {}) for hour in hours}
    series: dict[str, list[int]] = {}
    aliases: dict[str, dict[str, int]] = {}
    pairs: dict[Pair, dict[str, int]] = {}
    for position, minute in enumerate(minutes):
        document = documents.get(_minute_id(prefix, minute), {})
        known = names[_hour(minute)]
        for book, number, counts in _table(document, "a"):
            alias = _named(known, "aliases", book, number)
            _sum(aliases.setdefault(OTHER if alias is None else str(alias), {}), counts)
            for name, count in counts.items():
                series.setdefault(f"cache_{name}", [0] * MINUTES)[position] += count
        for book, number, counts in _table(document, "n"):
            pair = _named(known, "pairs", book, number)
            if isinstance(pair, list) and len(pair) == 2:
                _sum(pairs.setdefault((str(pair[0]), str(pair[1])), {}), counts)
        for name, count in reading.document(document.get("e")).items():
            series.setdefault(name, [0] * MINUTES)[position] += reading.whole(count)
    waits = _waits([documents.get(_minute_id(prefix, one), {}) for one in minutes[-2:]], now)
    return Hour(minutes, {name: tuple(counts) for name, counts in series.items()}, aliases, pairs, waits)


def _table(document: Mapping[str, Any], name: str) -> Iterable[tuple[str, str, dict[str, int]]]:
    for book, numbers in reading.document(document.get(name)).items():
        for number, counts in reading.document(numbers).items():
            yield (
                book,
                number,
                {
                    counter: reading.whole(counts[code])
                    for code, counter in zip(_CODES, CACHE_COUNTERS, strict=True)
                    if code in reading.document(counts)
                },
            )


def _named(known: Mapping[str, Any], kind: str, book: str, number: str) -> Any:
    names = known.get(kind)
    if not isinstance(names, list) or known.get("book") != book or not number.isdecimal() or len(number) > 9:
        return None
    return names[int(number)] if int(number) < len(names) else None


def _sum(into: dict[str, int], counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        into[name] = into.get(name, 0) + count


def _waits(documents: Sequence[Mapping[str, Any]], now: datetime) -> tuple[WaitSeen, ...]:
    """What processes told within the last half minute, each one's last word alone."""
    told: dict[str, Any] = {}
    for document in documents:
        told.update(reading.document(document.get("w")))
    found = []
    for process, word in list(told.items())[-MAX_PROCESSES:]:
        at, waits = instant(reading.document(word).get("at")), reading.document(word).get("waits")
        if at is None or now - at > timedelta(seconds=30) or not isinstance(waits, list):
            continue
        for one in waits:
            if isinstance(one, list) and len(one) == 4:
                kind, key, count, longest = one
                longest = float(reading.number(longest) or 0)
                found.append(WaitSeen(process, str(kind), str(key), reading.whole(count), longest, at))
    return tuple(sorted(found, key=lambda one: (one.kind, one.key, one.process)))
