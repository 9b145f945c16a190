"""What operators see: pages of locks, circuits, tasks, flights and records, and how many there are of each.

Rules of this file: it only reads, and never a user's value. Pages and counts have limits, and each takes a bounded
number of commands. A search finds text in the key (or the owner), without regard to case, among all documents of the
prefix and no others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar

from pymongo.errors import PyMongoError

from goscope_django.contracts import Checkpoint, IdempotencyInfo, LockInfo
from goscope_django.core.flow import Flow, Query, ask
from goscope_django.exceptions import StoreError
from goscope_django.mongodb.checkpoints.history import CHECKPOINTS, NUMBERED, CheckpointFlows
from goscope_django.mongodb.checkpoints.queries import TaskQueryFlows
from goscope_django.mongodb.checkpoints.tasks import TASKS
from goscope_django.mongodb.checkpoints.values import SEEN_AS, TaskInfo, status_of
from goscope_django.mongodb.circuits.document import CIRCUITS, override_of, state_of
from goscope_django.mongodb.circuits.document import info as circuit_info
from goscope_django.mongodb.circuits.flows import FIELDS
from goscope_django.mongodb.circuits.table import CircuitInfo
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import instant, prefix_range
from goscope_django.mongodb.document.failures import translated
from goscope_django.mongodb.document.reading import NOT_A_LIST, whole, whole_or_none
from goscope_django.mongodb.driver.execute import CACHE
from goscope_django.mongodb.driver.inspection import ping
from goscope_django.mongodb.idempotency.flows import IDEMPOTENCY, claim_key, idempotency_info
from goscope_django.mongodb.locks.flows import LOCKS, lock_info
from goscope_django.mongodb.single_flight.flows import FLIGHTS, flight_info
from goscope_django.mongodb.single_flight.values import FlightInfo

T = TypeVar("T")
MOST: Final = 100_000
"""The highest count; beyond it a page says ``at_least``."""

MOST_STATES: Final = 10_000
"""Circuits or tasks whose states are counted."""

MOST_ENTRIES: Final = 10_000
"""Entries of a cache that are counted."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some of ``total`` things (``at_least``: there are more). ``next`` is the cursor of the next page."""

    items: tuple[T, ...]
    total: int
    at_least: bool
    next: str | None
    now: datetime | None
    counts: dict[str, int] = field(default_factory=dict)


def _containing(prefix: str, search: str) -> dict[str, str]:
    """A test for stored keys with ``search`` after ``prefix``. NUL is left out: no regex can hold it."""
    text = re.escape(search.replace("\0", ""))
    return {"$regex": f"^{re.escape(prefix)}.*{text}", "$options": "is"}


def _selected(name: str, prefix: str, after: str | None, search: str, *also: str) -> dict[str, Any]:
    test: dict[str, Any] = {name: prefix_range(prefix, None if after is None else prefix + after)}
    if name != "_id":
        test[f"{name}.0"] = NOT_A_LIST  # a list would be found by any of its texts, and has no place in the order
    if search:
        anywhere = {"$regex": re.escape(search.replace("\0", "")), "$options": "i"}
        test["$or"] = [{name: _containing(prefix, search)}, *({field: anywhere} for field in also)]
    return test


@dataclass(frozen=True, slots=True)
class _Listing(Generic[T]):
    """How one kind of document is listed: ``test(after)`` is its filter, ``name`` the field by which it is ordered."""

    collection: str
    name: str
    prefix: str
    test: Callable[[str | None], dict[str, Any]]
    fields: dict[str, Any]
    read: Callable[[dict[str, Any], datetime], T]

    def page(self, clock: Clock, limit: int, after: str | None, *, counted: bool = True) -> Flow[Page[T]]:
        """The page behind ``after``, and if ``counted`` how many there are in all. Two commands at most."""
        fields = {self.name: True, **self.fields, **clock.stamp()}
        found = yield from ask(
            self.collection,
            "find",
            self.test(after),
            fields,
            sort=[(self.name, 1)],
            limit=limit + 1,
            batch_size=limit + 2,
        )
        items, now = [], None
        for document in found[:limit]:
            now = instant(clock.read_stamp(document))
            assert now is not None
            items.append(self.read(document, now))
        cursor = found[limit - 1][self.name][len(self.prefix) :] if len(found) > limit else None
        total = len(items)
        if counted and (cursor is not None or after is not None):
            total = int((yield from ask(self.collection, "count_documents", self.test(None), limit=MOST + 1)))
        return Page(tuple(items), min(total, MOST), total > MOST, cursor, now)


def attempt(read: Callable[[], Flow[T]]) -> Flow[T | StoreError]:
    """What ``read`` gives, or the error that stopped it."""
    try:
        return (yield from read())
    except PyMongoError as error:
        return translated(error, Query("", "find"))


def server_time(clock: Clock) -> Flow[tuple[datetime, float]]:
    """Two commands: the server's time, and how many seconds a command takes."""
    hello = yield from ask("", "command", "hello")
    latency = yield from ping(clock)
    return instant(hello.get("localTime")) or datetime.now(UTC), latency


def locks(clock: Clock, prefix: str, limit: int, after: str | None, search: str) -> Flow[Page[LockInfo]]:
    """Held locks, by key. Two commands at most."""
    full = f"{prefix}lock:"

    def test(behind: str | None) -> dict[str, Any]:
        return {**_selected("key", full, behind, search, "owner"), "$expr": clock.live()}

    def read(document: dict[str, Any], now: datetime) -> LockInfo:
        return lock_info(document, full)

    fields = dict.fromkeys(("owner", "token", "createdAt", "expiresAt"), True)
    return (yield from _Listing(LOCKS, "key", full, test, fields, read).page(clock, limit, after))


def flights(clock: Clock, prefix: str, limit: int, after: str | None, search: str) -> Flow[Page[FlightInfo]]:
    """Running flights, by key. Two commands at most."""
    full = f"{prefix}flight:"

    def test(behind: str | None) -> dict[str, Any]:
        return {**_selected("_id", full, behind, search, "leader"), "claim": {"$ne": None}, "$expr": clock.live()}

    def read(document: dict[str, Any], now: datetime) -> FlightInfo:
        return flight_info(document, full)

    fields = dict.fromkeys(("leader", "token", "startedAt", "expiresAt"), True)
    return (yield from _Listing(FLIGHTS, "_id", full, test, fields, read).page(clock, limit, after))


def circuits(clock: Clock, prefix: str, limit: int, after: str | None, search: str) -> Flow[Page[CircuitInfo]]:
    """Circuits, by name, and how many are in which state (``forced``: under an override). Two commands."""
    full = f"{prefix}circuit:"

    def test(behind: str | None) -> dict[str, Any]:
        return _selected("key", full, behind, search)

    def read(document: dict[str, Any], now: datetime) -> CircuitInfo:
        return circuit_info(document["key"][len(full) :], document, now)

    listing = _Listing(CIRCUITS, "key", full, test, dict(FIELDS), read)
    page = yield from listing.page(clock, limit, after, counted=False)
    counts = {"closed": 0, "open": 0, "half-open": 0, "forced": 0}
    fields = {"_id": True, "state": True, "override": True}
    found = yield from ask(CIRCUITS, "find", test(None), fields, limit=MOST_STATES + 1, batch_size=MOST_STATES + 2)
    for document in found[:MOST_STATES]:
        override = override_of(document)
        counts["forced"] += override is not None
        counts[override.state if override else state_of(document)] += 1
    total = min(len(found), MOST_STATES)
    return Page(page.items, total, len(found) > MOST_STATES, page.next, page.now, counts)


def circuit(clock: Clock, prefix: str, name: str) -> Flow[tuple[CircuitInfo, datetime] | None]:
    """A circuit and the server's time. One command."""
    found = yield from ask(CIRCUITS, "find_one", {"key": f"{prefix}circuit:{name}"}, {**FIELDS, **clock.stamp()})
    now = instant(clock.read_stamp(found)) if found else None
    return None if now is None else (circuit_info(name, found, now), now)


class TaskPages:
    """Tasks, as flows."""

    def __init__(self, history: CheckpointFlows) -> None:
        self._prefix = history.prefix
        self._tasks = TaskQueryFlows(history)

    def page(self, clock: Clock, limit: int, after: str | None, search: str) -> Flow[Page[TaskInfo]]:
        """Tasks by id, and how many are in which status. Two commands."""

        def test(behind: str | None) -> dict[str, Any]:
            return {**_selected("_id", self._prefix, behind, search, "owner"), "$expr": clock.live()}

        found: list[TaskInfo] = yield from self._tasks.find(clock, test(after), limit + 1)
        counts = dict.fromkeys(SEEN_AS, 0)
        fields = {"status": True, "leaseUntil": True, "tries": True, "maxAttempts": True, **clock.stamp()}
        heads = yield from ask(TASKS, "find", test(None), fields, limit=MOST_STATES + 1, batch_size=MOST_STATES + 2)
        now = None
        for head in heads[:MOST_STATES]:
            now = instant(clock.read_stamp(head))
            counts[_seen_as(head, now)] += 1
        cursor = found[limit - 1].task_id if len(found) > limit else None
        total = min(len(heads), MOST_STATES)
        return Page(tuple(found[:limit]), total, len(heads) > MOST_STATES, cursor, now, counts)

    def show(self, clock: Clock, task_id: str) -> Flow[tuple[TaskInfo, datetime] | None]:
        """A task and the server's time. Two commands."""
        found = yield from self._tasks.get(clock, task_id)
        if found is None:
            return None
        head = yield from ask(TASKS, "find_one", {"_id": self._prefix + task_id}, {"_id": True, **clock.stamp()})
        now = instant(clock.read_stamp(head)) if head else None
        return found, now or datetime.now(UTC)


def _seen_as(head: dict[str, Any], now: datetime | None) -> str:
    status, until, most = status_of(head), instant(head.get("leaseUntil")), whole_or_none(head.get("maxAttempts"))
    gone = status == "running" and until is not None and now is not None and until <= now
    if most is not None and whole(head.get("tries")) >= most and (gone or status == "failed"):
        return "exhausted"
    return "stalled" if gone else status


def checkpoints(clock: Clock, prefix: str, task_id: str, limit: int) -> Flow[list[Checkpoint]]:
    """The newest checkpoints of a task, without their data. One command."""
    fields = dict.fromkeys(("taskId", "sequence", "timestamp", "progress"), True)
    history = CheckpointFlows(prefix, Codec(pickle=False))
    test = {"taskId": prefix + task_id, "sequence": NUMBERED}
    found = yield from ask(CHECKPOINTS, "find", test, fields, sort=[("sequence", -1)], limit=limit)
    return (yield from history.readable(task_id, found))


def idempotency(clock: Clock, prefix: str, limit: int, after: str | None, search: str) -> Flow[Page[IdempotencyInfo]]:
    """Claims, then results, by key, and how many of each. Four commands at most. A cursor says which kind it is in."""
    kinds = (("in_progress", claim_key(prefix), {"$ne": None}), ("completed", prefix, None))
    fields = {"claim": True, "token": True, "updatedAt": True, "expiresAt": True}

    def read(document: dict[str, Any], now: datetime) -> IdempotencyInfo:
        return idempotency_info(document, prefix)

    where, _, behind = (after or "in_progress:").partition(":")
    items: list[IdempotencyInfo] = []
    counts, following, now = {}, None, None
    for kind, full, claim in kinds:

        def test(start: str | None, full: str = full, claim: Any = claim) -> dict[str, Any]:
            return {**_selected("key", full, start, search), "claim": claim, "$expr": clock.live()}

        counts[kind] = int((yield from ask(IDEMPOTENCY, "count_documents", test(None), limit=MOST + 1)))
        left = limit - len(items)
        if following is not None or (kind == "in_progress" and where == "completed"):
            continue
        if left <= 0:
            following = f"{kind}:" if counts[kind] else None
            continue
        start = behind if where == kind and behind else None
        listing = _Listing(IDEMPOTENCY, "key", full, test, fields, read)
        page = yield from listing.page(clock, left, start, counted=False)
        items += page.items
        now = now or page.now
        following = None if page.next is None else f"{kind}:{page.next}"
    total = sum(counts.values())
    most = any(one > MOST for one in counts.values())
    return Page(tuple(items), total, most, following, now, counts)


def cache_entries(clock: Clock, prefix: str, regex: str | None) -> Flow[tuple[int, bool]]:
    """One command: the entries under ``prefix``, at most ``MOST_ENTRIES`` of them (then ``True``)."""
    test: dict[str, Any] = {"key": prefix_range(prefix)}
    if regex is not None:
        test["key"]["$regex"] = regex
    found = int((yield from ask(CACHE, "count_documents", test, limit=MOST_ENTRIES + 1)))
    return min(found, MOST_ENTRIES), found > MOST_ENTRIES


def live_entries(clock: Clock, prefix: str) -> Flow[int]:
    """One command: the entries under ``prefix`` that have not expired, at most ``MOST_ENTRIES`` of them."""
    test = {"key": prefix_range(prefix), "$expr": clock.live()}
    return int((yield from ask(CACHE, "count_documents", test, limit=MOST_ENTRIES)))


def cache_size(clock: Clock) -> Flow[int]:
    """One command: the server's estimate of the whole collection."""
    return int((yield from ask(CACHE, "estimated_document_count")))
