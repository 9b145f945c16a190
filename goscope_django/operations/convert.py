"""From what the store tells to what the state shows: ages and times left instead of bare instants, and problems as
sentences.

Rule of this file: pure functions of what was read and of the server's time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from goscope_django.contracts import IdempotencyInfo, LockInfo
from goscope_django.exceptions import GoscopeError
from goscope_django.figures import SERIES
from goscope_django.mongodb.checkpoints.values import TaskInfo
from goscope_django.mongodb.circuits.table import CircuitInfo
from goscope_django.mongodb.driver.inspection import ServerView
from goscope_django.mongodb.figures import Hour
from goscope_django.mongodb.overview import Page
from goscope_django.mongodb.single_flight.values import FlightInfo
from goscope_django.operations.servers import ENSURE, REPAIR, index_item
from goscope_django.operations.values import (
    Cache,
    CacheFigures,
    CircuitItem,
    Circuits,
    Figures,
    FlightItem,
    Flights,
    Idempotency,
    IdempotencyItem,
    IndexItem,
    LockItem,
    Locks,
    OverrideItem,
    ProbeItem,
    Server,
    TaskItem,
    Tasks,
    TransitionItem,
    WaitItem,
    Waits,
)

CLOCK_TOLERANCE = 60.0


def since(moment: datetime | None, now: datetime) -> float | None:
    """Seconds since ``moment``, not less than 0."""
    return None if moment is None else max(0.0, (now - moment).total_seconds())


def until(moment: datetime | None, now: datetime) -> float | None:
    """Seconds until ``moment``, not less than 0."""
    return None if moment is None else max(0.0, (moment - now).total_seconds())


def server(view: ServerView, latency: float | None) -> Server:
    indexes = tuple(map(index_item, view.indexes))
    return Server(
        topology=view.topology,
        set_name=view.set_name,
        primary=view.primary,
        members=view.members,
        version=view.version,
        clock_offset=view.clock_offset,
        latency=latency,
        indexes=indexes,
        indexes_ok=all(one.state == "present" for one in indexes),
    )


def locks(page: Page[LockInfo], now: datetime) -> Locks:
    items = tuple(
        LockItem(
            key=one.key,
            owner=one.owner,
            token=one.token,
            created_at=one.created_at,
            expires_at=one.expires_at,
            expires_in=until(one.expires_at, page.now or now),
            held_for=since(one.created_at, page.now or now),
        )
        for one in page.items
    )
    return Locks(total=page.total, at_least=page.at_least, items=items, next=page.next)


def circuit(one: CircuitInfo, now: datetime) -> CircuitItem:
    override = one.override
    return CircuitItem(
        name=one.name,
        state=one.state,
        failure_count=one.failure_count,
        generation=one.generation,
        retry_after=one.retry_after,
        opened_at=one.opened_at,
        last_failure_time=one.last_failure_time,
        last_success_time=one.last_success_time,
        updated_at=one.updated_at,
        probes=tuple(ProbeItem(id=probe.id, seconds_left=until(probe.until, now) or 0.0) for probe in one.probes),
        override=None
        if override is None
        else OverrideItem(state=override.state, reason=override.reason, at=override.at),
        history=tuple(
            TransitionItem(
                at=move.at, from_state=move.from_state, to_state=move.to_state, reason=move.reason, note=move.note
            )
            for move in one.history
        ),
    )


def circuits(page: Page[CircuitInfo], now: datetime) -> Circuits:
    counts = dict(page.counts)
    forced = counts.pop("forced", 0)
    return Circuits(
        total=page.total,
        at_least=page.at_least,
        by_state=counts,
        forced=forced,
        items=tuple(circuit(one, page.now or now) for one in page.items),
        next=page.next,
    )


def task(one: TaskInfo, now: datetime) -> TaskItem:
    status: str = one.status
    if one.exhausted:
        status = "exhausted"
    elif one.stalled:
        status = "stalled"
    running = one.status == "running"
    return TaskItem(
        task_id=one.task_id,
        status=status,
        owner=one.owner,
        token=one.token,
        attempt=one.attempt,
        max_attempts=one.max_attempts,
        sequence=one.sequence,
        progress=one.progress,
        done=one.done,
        total=one.total,
        rate=one.rate,
        estimated_time_remaining=one.estimated_time_remaining if running else None,
        started_at=one.started_at,
        finished_at=one.finished_at,
        heartbeat_at=one.heartbeat_at,
        heartbeat_age=since(one.heartbeat_at, now),
        lease_left=until(one.lease_until, now) if running else None,
        cancel_requested=one.cancel_requested,
        failure=one.error,
    )


def tasks(page: Page[TaskInfo], now: datetime) -> Tasks:
    items = tuple(task(one, page.now or now) for one in page.items)
    return Tasks(total=page.total, at_least=page.at_least, by_status=dict(page.counts), items=items, next=page.next)


def flights(page: Page[FlightInfo], now: datetime) -> Flights:
    items = tuple(
        FlightItem(
            key=one.key,
            leader=one.leader,
            token=one.token,
            started_at=one.started_at,
            expires_at=one.expires_at,
            age=since(one.started_at, page.now or now),
            expires_in=until(one.expires_at, page.now or now),
        )
        for one in page.items
    )
    return Flights(total=page.total, at_least=page.at_least, items=items, next=page.next)


def idempotency(page: Page[IdempotencyInfo], now: datetime) -> Idempotency:
    items = tuple(
        IdempotencyItem(
            key=one.key,
            state=one.state,
            token=one.token,
            updated_at=one.updated_at,
            expires_at=one.expires_at,
            age=since(one.updated_at, page.now or now),
            expires_in=until(one.expires_at, page.now or now),
        )
        for one in page.items
    )
    return Idempotency(
        total=page.total,
        at_least=page.at_least,
        in_progress=page.counts["in_progress"],
        completed=page.counts["completed"],
        items=items,
        next=page.next,
    )


def cache_figures(counts: Mapping[str, int]) -> CacheFigures:
    reads = counts.get("hits", 0) + counts.get("misses", 0)
    return CacheFigures(**counts, hit_ratio=counts.get("hits", 0) / reads if reads else None)


def figures(hour: Hour) -> Figures:
    none = (0,) * len(hour.minutes)
    series = {name: hour.series.get(name, none) for name in SERIES}
    return Figures(minutes=hour.minutes, series=series, totals={name: sum(one) for name, one in series.items()})


def waits(hour: Hour, held: Locks, flying: Flights) -> Waits:
    holders = {("lock", one.key): one.owner for one in held.items}
    holders.update({("flight", one.key): one.leader for one in flying.items})
    return Waits(
        items=tuple(
            WaitItem(
                kind=one.kind,
                key=one.key,
                process=one.process,
                count=one.count,
                longest=one.longest,
                seen_at=one.seen_at,
                held_by=holders.get((one.kind, one.key)),
            )
            for one in hour.waits
        )
    )


def hint(scheme: str) -> str:
    """What an operator does about a server that is not reached."""
    if scheme == "embedded":
        return "`manage.py goscope_mongod status` tells what runs there, `manage.py goscope_mongod start` starts it."
    return (
        "Is the server running, does GOSCOPE['URL'] name its host and port, and may this machine connect to it? "
        "`manage.py check --database default` says more."
    )


def index_problems(where: str, indexes: tuple[IndexItem, ...]) -> Iterator[str]:
    """A sentence for all indexes that are missing, and one for each that differs."""
    missing = [f"{one.collection}.{one.name}" for one in indexes if one.state == "missing"]
    if missing:
        word = "index is" if len(missing) == 1 else "indexes are"
        yield f"{where}: {len(missing)} {word} missing ({', '.join(missing)}). `{ENSURE}` makes what is missing."
    for one in indexes:
        if one.state == "different":
            yield (
                f"{where}: index {one.name} of {one.collection} differs: needed is {one.needed}, found is {one.found}. "
                f"`{REPAIR}` replaces it."
            )


def problems(
    url: str, lost: GoscopeError | None, server: Server, cache: Cache, parts: Mapping[str, Any]
) -> Iterator[str]:
    """What is wrong, each with what to do about it."""
    if lost is not None:
        yield f"{url} can't be reached: {lost}"
        return
    yield from index_problems(url, server.indexes)
    for alias in cache.aliases:
        where = f"cache {alias.alias!r}" if alias.url is None else f"cache {alias.alias!r} ({alias.url})"
        yield from index_problems(where, alias.indexes)
        if alias.error is not None:
            yield f"{where} can't be read: {alias.error}"
    if server.topology == "standalone":
        yield (
            f"{url} is a standalone server: fencing tokens may repeat once a lock's document is gone. Make it a "
            f"replica set; one node suffices."
        )
    if server.clock_offset is not None and abs(server.clock_offset) > CLOCK_TOLERANCE:
        yield f"This machine's clock differs from the server's by {server.clock_offset:.0f} seconds. Run NTP on both."
    for name, part in parts.items():
        error = getattr(part, "error", None)
        if error is not None:
            yield f"{name} could not be read: {error}"
