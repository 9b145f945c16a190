"""Makes what the state shows of what the store tells: instants get ages and times left, problems become sentences.

Rule of this file: pure functions of what was read and of the server's time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from goscope_django.circuits import CircuitInfo
from goscope_django.contracts import IdempotencyInfo, LockInfo
from goscope_django.core import histogram
from goscope_django.exceptions import CredentialsRefused, GoscopeError, MissingRights
from goscope_django.figures import SERIES
from goscope_django.mongodb.checkpoints.values import TaskInfo
from goscope_django.mongodb.document.indexes import REPAIR
from goscope_django.mongodb.driver.inspection import ServerView
from goscope_django.mongodb.figures import CIRCUIT, HISTOGRAMS, LOCK, OTHER, Counted, Hour, Layout
from goscope_django.mongodb.finding import says
from goscope_django.mongodb.losses import LossSeen
from goscope_django.mongodb.overview import Page
from goscope_django.mongodb.single_flight.values import FlightInfo
from goscope_django.operations.servers import ENSURE, index_item
from goscope_django.operations.values import (
    AttentionKind,
    Cache,
    CacheFigures,
    CircuitFigures,
    CircuitItem,
    Circuits,
    DayFigures,
    Figures,
    FlightItem,
    Flights,
    Idempotency,
    IdempotencyItem,
    IndexItem,
    LockFigures,
    LockItem,
    Locks,
    Losses,
    LossItem,
    NameFigures,
    ProbeItem,
    Section,
    Server,
    SumFigures,
    TaskItem,
    Tasks,
    Timing,
    WaitItem,
    Waits,
    copied,
)

CLOCK_TOLERANCE: Final = 60.0
"""Seconds by which a process's clock may differ from the server's before that is a problem."""

T = TypeVar("T")
S = TypeVar("S", bound=Section[Any])


def since(moment: datetime | None, now: datetime) -> float | None:
    """Seconds since ``moment``, not less than 0."""
    return None if moment is None else max(0.0, (now - moment).total_seconds())


def until(moment: datetime | None, now: datetime) -> float | None:
    """Seconds until ``moment``, not less than 0."""
    return None if moment is None else max(0.0, (moment - now).total_seconds())


def server(view: ServerView, latency: float | None) -> Server:
    indexes = tuple(map(index_item, view.indexes))
    ok = all(one.state == "present" for one in indexes)
    return copied(
        Server,
        view,
        latency=latency,
        indexes=indexes,
        indexes_ok=ok if indexes else None,
        faults=tuple(str(one) for one in view.findings if one.fatal),
        notices=tuple(str(one) for one in view.findings if not one.fatal),
    )


def _section(kind: type[S], page: Page[T], item: Callable[[T, datetime], object], now: datetime, **more: object) -> S:
    """The section that shows ``page``, each of its things as an ``item``."""
    moment = page.now or now
    items = tuple(item(one, moment) for one in page.items)
    return copied(kind, page, items=items, **more)


def locks(page: Page[LockInfo], now: datetime, hour: Hour | None = None) -> Locks:
    waited = waiting(hour, "lock")

    def item(one: LockInfo, moment: datetime) -> LockItem:
        return lock(one, moment, waited.get(one.key))

    return _section(Locks, page, item, now)


def lock(one: LockInfo, now: datetime, waited: Waiting | None = None) -> LockItem:
    count, longest = (0, None) if waited is None else (waited.count, waited.longest)
    return copied(
        LockItem,
        one,
        expires_in=until(one.expires_at, now),
        held_for=since(one.created_at, now),
        waiters=count,
        longest_wait=longest,
    )


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many wait for one thing, the first of them for ``longest`` seconds, and in which processes."""

    count: int
    longest: float
    processes: tuple[str, ...]


def waiting(hour: Hour | None, kind: str) -> dict[str, Waiting]:
    """By key: who waits for things of this kind, as far as processes have reported it."""
    found: dict[str, Waiting] = {}
    for one in hour.waits if hour is not None else ():
        if one.kind == kind:
            so_far = found.get(one.key, Waiting(0, 0.0, ()))
            found[one.key] = Waiting(
                so_far.count + one.count, max(so_far.longest, one.longest), (*so_far.processes, one.process)
            )
    return found


def circuits(page: Page[CircuitInfo], now: datetime) -> Circuits:
    counts = dict(page.counts)
    return _section(Circuits, page, circuit, now, forced=counts.pop("forced", 0), by_state=counts)


def circuit(one: CircuitInfo, now: datetime) -> CircuitItem:
    probes = tuple(
        ProbeItem(id=probe.id, seconds_left=until(probe.until, now) or 0.0, holder=probe.holder) for probe in one.probes
    )
    return copied(CircuitItem, one, probes=probes, open_for=since(one.opened_at, now))


def tasks(page: Page[TaskInfo], now: datetime) -> Tasks:
    return _section(Tasks, page, task, now, by_status=dict(page.counts))


def task(one: TaskInfo, now: datetime) -> TaskItem:
    running = one.status == "running"
    return copied(
        TaskItem,
        one,
        status="exhausted" if one.exhausted else "stalled" if one.stalled else one.status,
        estimated_time_remaining=one.estimated_time_remaining if running else None,
        heartbeat_age=since(one.heartbeat_at, now),
        lease_left=until(one.lease_until, now) if running else None,
        failure=one.error,
    )


def flights(page: Page[FlightInfo], now: datetime) -> Flights:
    return _section(Flights, page, flight, now)


def flight(one: FlightInfo, now: datetime) -> FlightItem:
    return copied(FlightItem, one, age=since(one.started_at, now), expires_in=until(one.expires_at, now))


def idempotency(page: Page[IdempotencyInfo], now: datetime) -> Idempotency:
    return _section(Idempotency, page, record, now, **page.counts)


def record(one: IdempotencyInfo, now: datetime) -> IdempotencyItem:
    return copied(IdempotencyItem, one, age=since(one.updated_at, now), expires_in=until(one.expires_at, now))


def cache_figures(counts: Mapping[str, int]) -> CacheFigures:
    reads = counts.get("hits", 0) + counts.get("misses", 0)
    return CacheFigures(**counts, hit_ratio=counts.get("hits", 0) / reads if reads else None)


def figures(hour: Hour) -> Figures:
    last, day, ever = Counted(hour.minutes, hour.series, hour.histograms), hour.day, hour.totals
    ever = ever or Counted((), {}, {})
    return Figures(
        minutes=hour.minutes,
        **_of(last),
        bounds=histogram.BOUNDS,
        day=DayFigures(hours=day.moments, **_of(day)),
        sums=SumFigures(since=ever.moments[0] if ever.moments else None, **_of(ever, series=False)),
        names=tuple(_names(began, kinds) for began, kinds in sorted(hour.named.items())),
    )


def _names(began: datetime, kinds: Mapping[str, Mapping[str, Sequence[int]]]) -> NameFigures:
    return NameFigures(
        hour=began,
        locks=tuple(
            LockFigures(
                name=name,
                **dict(zip(LOCK.counters, row, strict=False)),
                wait=_timing([row[LOCK.start("lock_wait") :][: histogram.WIDTH]], parts=False),
                held=_timing([row[LOCK.start("lock_held") :][: histogram.WIDTH]], parts=False),
            )
            for name, row in _busiest(LOCK, kinds)
        ),
        circuits=tuple(
            CircuitFigures(name=name, **dict(zip(CIRCUIT.counters, row, strict=False)))
            for name, row in _busiest(CIRCUIT, kinds)
        ),
    )


def _busiest(layout: Layout, kinds: Mapping[str, Mapping[str, Sequence[int]]]) -> list[tuple[str, Sequence[int]]]:
    """The rows of a kind, the most active first, those of all other names last."""
    rows = kinds.get(layout.kind, {})
    return sorted(rows.items(), key=lambda one: (one[0] == OTHER, -sum(one[1][: len(layout.counters)]), one[0]))


def _of(counted: Counted, *, series: bool = True) -> dict[str, Any]:
    """The fields of figures that ``counted`` fills."""
    none = (0,) * len(counted.moments)
    every = {name: counted.series.get(name, none) for name in SERIES}
    found: dict[str, Any] = {
        "totals": {name: sum(one) for name, one in every.items()},
        "timings": {name: _timing(counted.histograms.get(name, ()), parts=series) for name in HISTOGRAMS},
    }
    return {**found, "series": every} if series else found


def _timing(rows: Sequence[Sequence[int]], *, parts: bool) -> Timing:
    whole = [sum(column) for column in zip(*rows, strict=True)] or [0] * histogram.WIDTH
    found = Timing(
        count=sum(whole[: histogram.BUCKETS]),
        seconds=whole[histogram.BUCKETS] / 1e6,
        p50=histogram.quantile(whole, 0.5),
        p95=histogram.quantile(whole, 0.95),
        buckets=tuple(whole[: histogram.BUCKETS]),
    )
    if not parts:
        return found
    return replace(
        found,
        counts=tuple(sum(row[: histogram.BUCKETS]) for row in rows),
        p50s=tuple(histogram.quantile(row, 0.5) for row in rows),
        p95s=tuple(histogram.quantile(row, 0.95) for row in rows),
    )


def waits(hour: Hour, held: Iterable[LockItem], flying: Flights) -> Waits:
    holders = {("lock", one.key): one.owner for one in held}
    holders.update({("flight", one.key): one.leader for one in flying.items})
    items = (copied(WaitItem, one, held_by=holders.get((one.kind, one.key))) for one in hour.waits)
    return Waits(items=tuple(items))


def searched(found: Waits, search: str) -> Waits:
    """Those waits with ``search`` in their key, the process that waits, or who has it."""
    items = (one for one in found.items if not search or says(search, one.key, one.process, one.held_by))
    return replace(found, items=tuple(items))


def losses(found: Iterable[LossSeen], now: datetime) -> Losses:
    return Losses(items=tuple(copied(LossItem, one, age=since(one.at, now)) for one in found))


def hint(scheme: str, error: GoscopeError | None = None) -> str:
    """What an operator does about a server that is not reached, or that refuses the user."""
    if isinstance(error, CredentialsRefused):
        return (
            "Check the user, the password and authSource in GOSCOPE['URL'] or in CLIENT_OPTIONS. Special characters in "
            "a URL have to be escaped."
        )
    if isinstance(error, MissingRights):
        return "docs/how-to/servers.md lists the rights that are needed."
    if scheme == "embedded":
        return "`manage.py goscope_mongod status` tells what runs there, `manage.py goscope_mongod start` starts it."
    return (
        "Is the server running, does GOSCOPE['URL'] name its host and port, and may this machine connect to it? "
        "`manage.py check --database default` says more."
    )


NO_PRIMARY: Final = (
    "Members of the replica set answer, but none of them is its primary: most of them have to run and to see one "
    "another. `rs.status()` in mongosh on one of them says which are missing."
)
"""The same where members are seen."""


def unusable(error: GoscopeError | None) -> str:
    """In a word or two: why there is nothing to be shown."""
    if isinstance(error, MissingRights):
        return "can't be read"
    return "refuses the user" if isinstance(error, CredentialsRefused) else "can't be reached"


class Problem(NamedTuple):
    """A sentence that says what is wrong and what to do about it. ``key`` is the alias or part that it is about."""

    kind: AttentionKind
    key: str
    text: str


def index_problems(where: str, indexes: tuple[IndexItem, ...]) -> Iterator[Problem]:
    """One sentence for all indexes that are missing, and one for each that differs."""
    missing = [f"{one.collection}.{one.name}" for one in indexes if one.state == "missing"]
    if missing:
        word = "index is" if len(missing) == 1 else "indexes are"
        text = f"{where}: {len(missing)} {word} missing ({', '.join(missing)}). `{ENSURE}` makes what is missing."
        yield Problem("indexes", "", text)
    for one in indexes:
        if one.state == "different":
            text = (
                f"{where}: index {one.name} of {one.collection} differs: needed is {one.needed}, found is {one.found}. "
                f"`{REPAIR}` replaces it."
            )
            yield Problem("indexes", f"{one.collection}.{one.name}", text)


def problems(
    url: str, lost: GoscopeError | None, server: Server, cache: Cache, parts: Mapping[str, Any]
) -> Iterator[Problem]:
    """What is wrong, each with what to do about it."""
    if lost is not None:
        yield Problem("unreachable", "", f"{url} {unusable(lost)}: {lost}")
        return
    yield from index_problems(url, server.indexes)
    for alias in cache.aliases:
        where = f"cache {alias.alias!r}" if alias.url is None else f"cache {alias.alias!r} ({alias.url})"
        yield from index_problems(where, alias.indexes)
        if alias.error is not None:
            yield Problem("cache_unread", alias.alias, f"{where} can't be read: {alias.error}")
    for fault in server.faults:
        yield Problem("server", "", f"{url}: {fault}")
    if server.clock_offset is not None and abs(server.clock_offset) > CLOCK_TOLERANCE:
        text = f"This machine's clock differs from the server's by {server.clock_offset:.0f} seconds. Run NTP on both."
        yield Problem("clock", "", text)
    for name, part in parts.items():
        error = getattr(part, "error", None)
        if error is not None:
            yield Problem("unread", name, f"{name} could not be read: {error}")
