"""Figures for operators, in ``go_goscope_stats``: by the minute, by the hour, and in all.

All processes add to the same few documents, each batch by one command, which no other comes between in a document:

* ``<prefix>minute:2026-11-24T21:05`` is kept for two hours. It alone has the cache's counters by alias and namespace.
* ``<prefix>hour:2026-11-24T21`` is kept for a day and has the sums: what its minutes have together.
* ``<prefix>totals`` has the sums since it was made, which only grow. It goes after a month without a count.
* ``<prefix>names:2026-11-24T21``: names (cache aliases, key namespaces) are users' text and can't be field names. This
  gives each of them a number, for an hour, up to a limit. Names without a number are still in the sums.
* ``<prefix>named:2026-11-24T21`` has the counters of single locks and circuits, if ``FIGURES_PER_NAME`` asks for them.

So the size of everything is bounded for the whole fleet, however many processes there are and whatever keys they use.

Rule of this file: counts may be lost (with a process that is killed), but are never added twice: if an outcome is
unknown, the batch counts as sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import quote, unquote

from pymongo import ReturnDocument
from pymongo.errors import BulkWriteError, PyMongoError

from goscope_django.core import histogram
from goscope_django.core.flow import Flow, Query, ask
from goscope_django.exceptions import OutcomeUnknown
from goscope_django.mongodb.document import reading
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import instant, literal
from goscope_django.mongodb.document.lease import new_claim, timed, upsert

STATS: Final = "go_goscope_stats"
MINUTES: Final = 60
HOURS: Final = 24
KEPT: Final = timedelta(hours=2)
KEPT_HOURS: Final = timedelta(hours=HOURS + 2)
KEPT_TOTALS: Final = timedelta(days=31)
MAX_ALIASES: Final = 16
MAX_NAMESPACES: Final = 48
"""Of an hour, in the whole fleet."""

MAX_PROCESSES: Final = 50
"""Processes whose waits are read of a minute, at most."""

BUSY: Final = 10
"""A lock or circuit that was used so often in one batch may have one of the last places for names."""

CACHE_COUNTERS: Final = ("hits", "misses", "sets", "deletes", "errors", "forged", "bytes_read", "bytes_written")
_CODES: Final = "hmsdefrw"
OTHER: Final = "(other)"


@dataclass(frozen=True, slots=True)
class Layout:
    """What is counted of one kind of thing: in a row of numbers first the counters, then the histograms.

    ``series`` are the names that the counters have in the state's figures.
    """

    kind: str
    counters: tuple[str, ...]
    series: tuple[str, ...]
    histograms: tuple[str, ...]

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        return len(self.counters) + histogram.WIDTH * len(self.histograms)

    def start(self, name: str) -> int:
        """Where the histogram ``name`` begins in a row."""
        return len(self.counters) + histogram.WIDTH * self.histograms.index(name)


LOCK: Final = Layout(
    "lock",
    ("acquired", "contended", "not_acquired", "lost"),
    ("locks_acquired", "locks_contended", "locks_not_acquired", "locks_lost"),
    ("lock_wait", "lock_held"),
)
CIRCUIT: Final = Layout(
    "circuit",
    ("calls", "failures", "rejections", "opened"),
    ("circuit_calls", "circuit_failures", "circuit_rejections", "circuits_opened"),
    (),
)
FLIGHT: Final = Layout("flight", (), (), ("flight_time",))
LAYOUTS: Final = (LOCK, CIRCUIT, FLIGHT)
NAMED: Final = (LOCK, CIRCUIT)
HISTOGRAMS: Final = tuple(name for layout in LAYOUTS for name in layout.histograms)

_COLLISIONS: Final = 5
Pair = tuple[str, str]
Change = tuple[Mapping[str, Any], Mapping[str, Any]]
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
    named: Named | None = None

    def lack(self, batch: Batch) -> bool:
        """Whether there are names in ``batch`` that may still get a number."""
        if any(name not in self.aliases for name in batch.aliases) and len(self.aliases) < MAX_ALIASES:
            return True
        return not self.full and any(pair not in self.pairs for pair in batch.pairs)


@dataclass(slots=True)
class Named:
    """The same for the names of locks and circuits, by kind and name."""

    hour: datetime
    book: str
    numbers: dict[Pair, int]

    def wanted(self, batch: Batch, layout: Layout) -> tuple[list[str], list[str]]:
        """The names of a kind that may still get a number, the most active first, and those of them that are busy.

        A quarter of all places is for busy ones, so that many names that are used once take no place from them.
        """
        rows = batch.boards.get(layout, {})
        activity = {name: sum(row[: len(layout.counters)]) for name, row in rows.items() if name != OTHER}
        new = [name for name in activity if (layout.kind, name) not in self.numbers]
        new.sort(key=lambda name: (-activity[name], name))
        taken = sum(kind == layout.kind for kind, _ in self.numbers)
        busy = [name for name in new if activity[name] >= BUSY] if taken < batch.names else []
        return new[: batch.names] if taken < batch.ordinary else [], busy[: batch.names]

    def lack(self, batch: Batch) -> bool:
        """Whether there are names in ``batch`` that may still get a number."""
        return any(any(self.wanted(batch, layout)) for layout in NAMED)


@dataclass(frozen=True, slots=True)
class Batch:
    """What to add: counters in the order of ``CACHE_COUNTERS`` by alias and by (alias, namespace); events by name."""

    process: str
    aliases: Mapping[str, Sequence[int]]
    pairs: Mapping[Pair, Sequence[int]]
    events: Mapping[str, int]
    waits: Sequence[Wait] = ()
    boards: Mapping[Layout, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    """Rows of things that are counted by name, or under ``OTHER``."""

    names: int = 0
    """How many names of each kind may be kept apart."""

    @property
    def ordinary(self) -> int:
        """How many of them need not be busy."""
        return self.names - self.names // 4

    def sums(self) -> dict[str, int]:
        """The sums of everything, by field."""
        found = {f"e.{name}": count for name, count in self.events.items()}
        for layout, rows in self.boards.items():
            row = [sum(column) for column in zip(*rows.values(), strict=True)]
            for name, count in zip(layout.series, row, strict=False):
                found[f"e.{name}"] = found.get(f"e.{name}", 0) + count
            for name in layout.histograms:
                begin = layout.start(name)
                for position in range(histogram.WIDTH):
                    found[f"h.{name}.{position}"] = row[begin + position]
        return {name: count for name, count in found.items() if count}

    def of_caches(self) -> dict[str, int]:
        """The sums of the caches, by field."""
        sums = [sum(column) for column in zip(*self.aliases.values(), strict=True)]
        return {f"e.cache_{name}": count for name, count in zip(CACHE_COUNTERS, sums, strict=False) if count}


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
class Counted:
    """What was counted in a stretch of time, in equal parts. ``moments`` are their beginnings, the current one last.

    Each of ``series`` has a number, and each of ``histograms`` a row of ``histogram.WIDTH`` numbers, for each part.
    """

    moments: tuple[datetime, ...]
    series: dict[str, tuple[int, ...]]
    histograms: dict[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True, slots=True)
class Hour:
    """The last hour by the minute (``minutes``, ``series``, ``histograms``), the last day by the hour, the sums since
    ``totals`` began (``None``: nothing was ever counted), and of the hours that it lies in what was counted by name:
    rows by kind and name."""

    minutes: tuple[datetime, ...]
    series: dict[str, tuple[int, ...]]
    aliases: dict[str, dict[str, int]]
    pairs: dict[Pair, dict[str, int]]
    waits: tuple[WaitSeen, ...]
    histograms: dict[str, tuple[tuple[int, ...], ...]]
    day: Counted
    totals: Counted | None
    named: dict[datetime, dict[str, dict[str, tuple[int, ...]]]]


def process_field(mark: str, process: str) -> str:
    """The field for the waits of a process (``host:pid``): ``mark`` tells it apart, and there are no dots in it."""
    return f"{mark}@{quote(process, safe=':').replace('.', '%2E')}"


def _process_of(field_name: str) -> str:
    return unquote(field_name.partition("@")[2]) or field_name


def _minute_id(prefix: str, minute: datetime) -> str:
    return f"{prefix}minute:{minute:%Y-%m-%dT%H:%M}"


def _hour_id(prefix: str, hour: datetime) -> str:
    return f"{prefix}hour:{hour:%Y-%m-%dT%H}"


def _totals_id(prefix: str) -> str:
    return f"{prefix}totals"


def _names_id(prefix: str, hour: datetime) -> str:
    return f"{prefix}names:{hour:%Y-%m-%dT%H}"


def _named_id(prefix: str, hour: datetime) -> str:
    return f"{prefix}named:{hour:%Y-%m-%dT%H}"


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _appended(name: str, new: list[Any], most: int) -> Any:
    """The array in ``name`` with those of ``new`` that are not in it, up to ``most`` in all; what is there keeps its
    place, however much that is."""
    there = {"$ifNull": [f"${name}", []]}
    unknown = {"$filter": {"input": literal(new), "as": "x", "cond": {"$cond": [{"$in": ["$$x", there]}, False, True]}}}
    more = {"$slice": [{"$concatArrays": [there, unknown]}, most]}
    return {"$cond": [{"$gte": [{"$size": there}, most]}, there, more]}


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


def _register_named(clock: Clock, prefix: str, hour: datetime, batch: Batch, slots: Slots) -> Flow[None]:
    """One command: get numbers for the batch's names of locks and circuits in ``hour``."""
    known = slots.named if slots.named is not None and slots.named.hour == hour else Named(hour, "", {})
    wanted = {layout.kind: known.wanted(batch, layout) for layout in NAMED}

    def query() -> Query[Any]:
        ordinary = {kind: _appended(kind, found[0], batch.ordinary) for kind, found in wanted.items()}
        busy = {kind: _appended(kind, found[1], batch.names) for kind, found in wanted.items()}
        kept = {"book": {"$ifNull": ["$book", new_claim()[:6]]}, "expiresAt": hour + KEPT + timedelta(hours=1)}
        return Query(
            STATS,
            "find_one_and_update",
            {"_id": _named_id(prefix, hour)},
            [{"$set": {**kept, **busy}}, {"$set": ordinary}],
            projection={"book": True, **dict.fromkeys(wanted, True)},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )

    found = yield from upsert(clock, query)
    numbers = {(kind, name): number for kind in wanted for number, name in enumerate(found[kind])}
    slots.named = Named(hour, found["book"], numbers)


def add(clock: Clock, prefix: str, batch: Batch, slots: Slots, moment: datetime) -> Flow[datetime | None]:
    """Add ``batch`` to the minute of ``moment`` (the server's time, as far as known). One command, and one more in
    each hour and for names that are new to this process (two, where locks and circuits are counted by name). The
    server's time, where it was told."""
    now: datetime | None = None
    if slots.hour != _hour(moment) or slots.lack(batch):
        now = yield from _register(clock, prefix, _hour(moment), batch, slots)
        if _hour(now) != slots.hour:  # this process's clock is off, or the hour has just changed
            now = yield from _register(clock, prefix, _hour(now), batch, slots)
        moment = now
    if batch.names and any(layout in batch.boards for layout in NAMED):
        hour = _hour(moment)
        if slots.named is None or slots.named.hour != hour or slots.named.lack(batch):
            yield from _register_named(clock, prefix, hour, batch, slots)
    yield from _send(list(_changes(prefix, batch, slots, moment)))
    return now


def _changes(prefix: str, batch: Batch, slots: Slots, moment: datetime) -> Iterable[Change]:
    """What is to be added to which document."""
    minute, hour = moment.replace(second=0, microsecond=0), _hour(moment)
    sums, of_caches = batch.sums(), batch.of_caches()
    by_minute: dict[str, Any] = {"$setOnInsert": {"at": minute, "expiresAt": minute + KEPT}}
    if counts := {**dict(_increments(batch, slots)), **sums}:
        by_minute["$inc"] = counts
    if batch.waits:
        told = [[kind, key, count, round(longest, 3)] for kind, key, count, longest in batch.waits]
        by_minute["$set"] = {f"w.{batch.process}": {"at": moment, "waits": told}}
    yield {"_id": _minute_id(prefix, minute)}, by_minute
    if counts := {**sums, **of_caches}:
        by_hour = {"$setOnInsert": {"at": hour, "expiresAt": hour + KEPT_HOURS}, "$inc": counts}
        yield {"_id": _hour_id(prefix, hour)}, by_hour
        kept = {"expiresAt": moment + KEPT_TOTALS}
        yield {"_id": _totals_id(prefix)}, {"$setOnInsert": {"at": moment}, "$max": kept, "$inc": counts}
    named = slots.named
    if batch.names and named is not None and (counts := dict(_by_name(batch, named))):
        kept = {"expiresAt": hour + KEPT + timedelta(hours=1)}
        yield {"_id": _named_id(prefix, named.hour)}, {"$setOnInsert": kept, "$inc": counts}


def _by_name(batch: Batch, named: Named) -> Iterable[tuple[str, int]]:
    """What to add to the counters of names, by field; ``x`` stands for all names without a number."""
    for layout in NAMED:
        beyond = [0] * layout.width
        for name, row in batch.boards.get(layout, {}).items():
            number = named.numbers.get((layout.kind, name))
            if number is None:
                beyond = [one + more for one, more in zip(beyond, row, strict=True)]
            else:
                yield from _row_fields(f"p.{named.book}.{layout.kind}.{number}", row)
        yield from _row_fields(f"p.{named.book}.{layout.kind}.x", beyond)


def _row_fields(start: str, row: Sequence[int]) -> Iterable[tuple[str, int]]:
    return [(f"{start}.{position}", count) for position, count in enumerate(row) if count]


def _send(changes: list[Change]) -> Flow[None]:
    """One command, and one more where another process made one of the documents at the same moment."""
    left = changes
    for _ in range(_COLLISIONS):
        try:
            collided = yield from ask(STATS, "upsert_many", left)
        except BulkWriteError as error:
            raise OutcomeUnknown("some of the figures may be added, and others not") from error
        except PyMongoError as error:
            if left is changes:
                raise
            raise OutcomeUnknown("some of the figures are added, and others may not be") from error
        left = [left[position] for position in collided]
        if not left:
            return
    raise OutcomeUnknown("some of the figures are not added: their documents can't be made")


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


def _fields(start: str, counts: Sequence[int]) -> Iterable[tuple[str, int]]:
    return [(f"{start}.{code}", count) for code, count in zip(_CODES, counts, strict=True) if count]


def read(clock: Clock, prefix: str, now: datetime) -> Flow[Hour]:
    """One command: the hour and the day before ``now``, and the sums."""
    last = now.replace(second=0, microsecond=0)
    minutes = tuple(last - timedelta(minutes=back) for back in range(MINUTES - 1, -1, -1))
    hours = tuple(_hour(last) - timedelta(hours=back) for back in range(HOURS - 1, -1, -1))
    numbered = sorted({_hour(minute) for minute in minutes})
    ids = [_minute_id(prefix, one) for one in minutes] + [_names_id(prefix, one) for one in numbered]
    ids += [_hour_id(prefix, one) for one in hours] + [_totals_id(prefix)]
    ids += [_named_id(prefix, one) for one in numbered]
    found = yield from ask(STATS, "find", {"_id": {"$in": ids}}, batch_size=len(ids) + 1)
    documents = {one["_id"]: one for one in found}
    names = {hour: documents.get(_names_id(prefix, hour), {}) for hour in numbered}
    by_minute = [documents.get(_minute_id(prefix, minute), {}) for minute in minutes]
    counted = _counted(minutes, by_minute)
    series = {name: list(counts) for name, counts in counted.series.items()}
    aliases: dict[str, dict[str, int]] = {}
    pairs: dict[Pair, dict[str, int]] = {}
    for position, minute in enumerate(minutes):
        document, known = by_minute[position], names[_hour(minute)]
        for book, number, counts in _table(document, "a"):
            alias = _named(known, "aliases", book, number)
            _sum(aliases.setdefault(OTHER if alias is None else str(alias), {}), counts)
            for name, count in counts.items():
                series.setdefault(f"cache_{name}", [0] * MINUTES)[position] += count
        for book, number, counts in _table(document, "n"):
            pair = _named(known, "pairs", book, number)
            if isinstance(pair, list) and len(pair) == 2:
                _sum(pairs.setdefault((str(pair[0]), str(pair[1])), {}), counts)
    totals = documents.get(_totals_id(prefix))
    since = None if totals is None else instant(totals.get("at"))
    return Hour(
        minutes,
        {name: tuple(counts) for name, counts in series.items()},
        aliases,
        pairs,
        _waits(by_minute[-2:], now),
        counted.histograms,
        _counted(hours, [documents.get(_hour_id(prefix, hour), {}) for hour in hours]),
        None if totals is None or since is None else _counted((since,), [totals]),
        {one: rows for one in numbered if (rows := _rows_by_name(documents.get(_named_id(prefix, one), {})))},
    )


def _rows_by_name(document: Mapping[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Rows by kind and name, as ``_by_name`` stored them; empty if there are none."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for book, kinds in reading.document(document.get("p")).items():
        for layout in NAMED:
            rows = found.setdefault(layout.kind, {})
            for number, counts in reading.document(reading.document(kinds).get(layout.kind)).items():
                given = reading.text(_named(document, layout.kind, book, number))
                name = OTHER if given is None else given
                held = reading.document(counts)
                more = [max(0, reading.whole(held.get(str(position)))) for position in range(layout.width)]
                rows[name] = tuple(a + b for a, b in zip(rows.get(name, (0,) * layout.width), more, strict=True))
    return found


def _counted(moments: tuple[datetime, ...], documents: Sequence[Mapping[str, Any]]) -> Counted:
    series: dict[str, list[int]] = {}
    histograms: dict[str, list[tuple[int, ...]]] = {}
    for position, document in enumerate(documents):
        for name, count in reading.document(document.get("e")).items():
            series.setdefault(name, [0] * len(moments))[position] += reading.whole(count)
        for name, counts in reading.document(document.get("h")).items():
            row = tuple(max(0, reading.whole(reading.document(counts).get(str(one)))) for one in _POSITIONS)
            histograms.setdefault(name, [_NOTHING] * len(moments))[position] = row
    return Counted(
        moments,
        {name: tuple(counts) for name, counts in series.items()},
        {name: tuple(rows) for name, rows in histograms.items()},
    )


_POSITIONS: Final = range(histogram.WIDTH)
_NOTHING: Final = (0,) * histogram.WIDTH


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
                found.append(WaitSeen(_process_of(process), str(kind), str(key), reading.whole(count), longest, at))
    return tuple(sorted(found, key=lambda one: (one.kind, one.key, one.process)))
