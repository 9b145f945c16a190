"""What operators see: pages of locks, circuits, tasks, flights and records, and how many there are of each.

Rules of this file: it only reads, and never a user's value. Pages and counts have limits, and each takes a bounded
number of commands. A search finds text in the key, the owner or the name of the state, without regard to case, among
all documents of the prefix and no others. What is counted as ``total``, and by state, is everything all the same;
``matching`` counts what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
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
from goscope_django.mongodb.document.reading import NOT_A_LIST, number, text, whole, whole_or_none
from goscope_django.mongodb.document.reading import rows as documents
from goscope_django.mongodb.driver.execute import CACHE
from goscope_django.mongodb.driver.inspection import ping
from goscope_django.mongodb.finding import Wanted, anywhere, containing, says, sorted_by, states_named
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
    """Some of the ``matching`` things, of ``total`` in all (``at_least``: there are more). ``next`` is the next page's
    cursor."""

    items: tuple[T, ...]
    total: int
    at_least: bool
    next: str | None
    now: datetime | None
    matching: int
    counts: dict[str, int] = field(default_factory=dict)


def _selected(name: str, prefix: str, after: str | None = None, *, down: bool = False) -> dict[str, Any]:
    test: dict[str, Any] = {name: prefix_range(prefix, None if after is None or down else prefix + after)}
    if after is not None and down:
        test[name]["$lt"] = prefix + after
    if name != "_id":
        test[f"{name}.0"] = NOT_A_LIST  # a list would be found by any of its texts, and has no place in the order
    return test


@dataclass(frozen=True, slots=True)
class _Listing(Generic[T]):
    """How one kind of document is listed: ``name`` is the field by which it is ordered, ``also`` are further filters.

    ``owner`` is the field with the holder, ``columns`` are the fields of the other orders (``-``: the older the more),
    ``waiting`` the keys for which somebody waits whom the search names.
    """

    collection: str
    name: str
    prefix: str
    also: Mapping[str, Any]
    fields: dict[str, Any]
    read: Callable[[dict[str, Any], datetime], T]
    owner: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    waiting: tuple[str, ...] = ()

    def test(self, search: str = "", after: str | None = None, *, down: bool = False) -> dict[str, Any]:
        """The filter of all, or of those that match."""
        test = {**_selected(self.name, self.prefix, after, down=down), **self.also}
        if search:
            test["$or"] = [{self.name: containing(self.prefix, search)}]
            if self.owner is not None:
                test["$or"].append({self.owner: anywhere(search)})
            if self.waiting:
                test["$or"].append({self.name: {"$in": [self.prefix + key for key in self.waiting]}})
        return test

    def page(self, clock: Clock, wanted: Wanted, *, counted: bool = True) -> Flow[Page[T]]:
        """The page, and if ``counted`` how many there are in all. Three commands at most."""
        by_key = wanted.column not in self.columns
        found = yield from self.rows(
            clock,
            self.test(wanted.search, wanted.after if by_key else None, down=wanted.down),
            self.order(wanted),
            skip=0 if by_key else wanted.place,
            limit=wanted.limit + 1,
        )
        items, now = self.items(clock, found[: wanted.limit])
        if by_key:
            more = len(found) > wanted.limit
            following = found[wanted.limit - 1][self.name][len(self.prefix) :] if more else None
        else:
            following = wanted.following(len(found))
        total = matching = len(items)
        if counted:
            whole_page = following is None and wanted.after is None
            if not whole_page:
                matching = yield from self.count(wanted.search)
            total = matching if not wanted.search else (yield from self.count())
        return Page(tuple(items), min(total, MOST), total > MOST, following, now, min(matching, MOST))

    def rows(
        self, clock: Clock, test: dict[str, Any], order: list[tuple[str, int]], *, skip: int = 0, limit: int
    ) -> Flow[list[dict[str, Any]]]:
        """Documents. One command."""
        fields = {self.name: True, **self.fields, **clock.stamp()}
        found: list[dict[str, Any]] = yield from ask(
            self.collection, "find", test, fields, sort=order, skip=skip, limit=limit, batch_size=limit + 1
        )
        return found

    def items(self, clock: Clock, found: Iterable[dict[str, Any]]) -> tuple[list[T], datetime | None]:
        """What the documents say, and the server's time."""
        items, now = [], None
        for document in found:
            now = instant(clock.read_stamp(document))
            assert now is not None
            items.append(self.read(document, now))
        return items, now

    def count(self, search: str = "") -> Flow[int]:
        """How many there are, up to ``MOST`` + 1. One command."""
        found = yield from ask(self.collection, "count_documents", self.test(search), limit=MOST + 1)
        return int(found)

    def order(self, wanted: Wanted) -> list[tuple[str, int]]:
        """How the server sorts."""
        named = self.columns.get(wanted.column)
        if named is None:
            return [(self.name, -1 if wanted.down else 1)]
        reversed_ = named.startswith("-") != wanted.down
        return [(named.removeprefix("-"), -1 if reversed_ else 1), (self.name, 1)]


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


def locks(
    clock: Clock, prefix: str, wanted: Wanted, waiters: Mapping[str, int] | None = None, named: tuple[str, ...] = ()
) -> Flow[Page[LockInfo]]:
    """Held locks. Three commands at most, four by ``waiters``.

    ``waiters`` says how many wait for which key, as far as processes have reported it. ``named`` are the keys for which
    a process waits that the search names.
    """
    full = f"{prefix}lock:"

    def read(document: dict[str, Any], now: datetime) -> LockInfo:
        return lock_info(document, full)

    fields = dict.fromkeys(("owner", "token", "createdAt", "expiresAt"), True)
    columns = {"owner": "owner", "token": "token", "held": "-createdAt", "left": "expiresAt"}
    live = {"$expr": clock.live()}
    listing = _Listing(LOCKS, "key", full, live, fields, read, "owner", columns, named)
    if wanted.state == "waited" or wanted.column == "waiters":
        return (yield from _waited(clock, listing, wanted, dict(waiters or {})))
    return (yield from listing.page(clock, wanted))


def _waited(clock: Clock, listing: _Listing[LockInfo], wanted: Wanted, waiters: dict[str, int]) -> Flow[Page[LockInfo]]:
    """The page of locks that somebody waits for, the most first or last, and of the others. Four commands at most."""
    keys = [listing.prefix + key for key in waiters]
    test = listing.test(wanted.search)
    held: list[LockInfo] = []
    rest: list[LockInfo] = []
    now: datetime | None = None
    if keys:
        chosen = {"$and": [test, {"key": {"$in": keys}}]}
        found = yield from listing.rows(clock, chosen, [("key", 1)], limit=len(keys) + 1)
        held, now = listing.items(clock, found)
    if wanted.column == "waiters":
        held = sorted_by(held, lambda one: waiters[one.key], down=wanted.down)
    else:
        held = _in_order(held, wanted)
    matching = yield from listing.count(wanted.search)
    total = matching if not wanted.search else (yield from listing.count())
    if wanted.state == "waited":
        matching = len(held)
    else:
        others = max(0, matching - len(held))
        before = 0 if wanted.down else others  # upwards those for which nobody waits come first
        first = max(0, wanted.place - (len(held) if wanted.down else 0))
        here = held[wanted.place :] if wanted.down else []
        room = wanted.limit + 1 - len(here[: wanted.limit + 1])
        if room and first < others:
            unwaited = {"$and": [test, {"key": {"$nin": keys}}]}
            found = yield from listing.rows(clock, unwaited, [("key", 1)], skip=first, limit=room)
            rest, now = listing.items(clock, found)
        held = here + rest if wanted.down else rest + held[max(0, wanted.place - before) :]
        shown = held[: wanted.limit]
        following = wanted.following(len(held))
        return Page(tuple(shown), min(total, MOST), total > MOST, following, now, min(matching, MOST))
    page = held[wanted.place : wanted.place + wanted.limit]
    following = wanted.following(len(held) - wanted.place)
    return Page(tuple(page), min(total, MOST), total > MOST, following, now, matching)


def _in_order(held: list[LockInfo], wanted: Wanted) -> list[LockInfo]:
    by: Mapping[str, Callable[[LockInfo], Any]] = {
        "owner": lambda one: one.owner,
        "token": lambda one: one.token,
        "held": lambda one: None if one.created_at is None else -one.created_at.timestamp(),
        "left": lambda one: one.expires_at,
    }
    return sorted_by(held, by.get(wanted.column, lambda one: one.key), down=wanted.down)


def flights(clock: Clock, prefix: str, wanted: Wanted, named: tuple[str, ...] = ()) -> Flow[Page[FlightInfo]]:
    """Running flights. Three commands at most. ``named`` are the keys for which a process waits that the search
    names."""
    full = f"{prefix}flight:"

    def read(document: dict[str, Any], now: datetime) -> FlightInfo:
        return flight_info(document, full)

    fields = dict.fromkeys(("leader", "token", "startedAt", "expiresAt"), True)
    columns = {"leader": "leader", "token": "token", "age": "-startedAt", "left": "expiresAt"}
    running = {"claim": {"$ne": None}, "$expr": clock.live()}
    listing = _Listing(FLIGHTS, "_id", full, running, fields, read, "leader", columns, named)
    return (yield from listing.page(clock, wanted))


@dataclass(frozen=True, slots=True)
class _Heads(Generic[T]):
    """Things whose state is no field but follows from some: circuits and tasks. All are read as far as counting needs
    (``MOST_STATES`` of them), and so found and sorted here, where the state is known.

    Beyond that number only the order of the keys and a search in the keys reach every thing.
    """

    listing: _Listing[T]
    fields: dict[str, Any]
    states: Callable[[dict[str, Any]], tuple[str, ...]]
    section: str
    texts: Callable[[dict[str, Any]], tuple[str | None, ...]]
    columns: Mapping[str, Callable[[dict[str, Any]], Any]]

    def page(self, clock: Clock, wanted: Wanted, full: Callable[[list[str]], Flow[list[T]]]) -> Flow[Page[T]]:
        """The page; ``full`` reads things by their stored keys, in that order. Four commands at most."""
        name, prefix = self.listing.name, self.listing.prefix
        fields = {name: True, **self.fields, **clock.stamp()}
        heads: list[dict[str, Any]] = yield from ask(
            self.listing.collection,
            "find",
            self.listing.test(),
            fields,
            sort=[(name, 1)],
            limit=MOST_STATES + 1,
            batch_size=MOST_STATES + 2,
        )
        many = len(heads) > MOST_STATES
        heads = heads[:MOST_STATES]
        counts: dict[str, int] = {}
        for head in heads:
            for state in self.states(head):
                counts[state] = counts.get(state, 0) + 1
        now = instant(clock.read_stamp(heads[0])) if heads else None
        if many and not wanted.state and wanted.column not in self.columns:
            page = yield from self.listing.page(clock, wanted, counted=False)
            matching = len(heads) if not wanted.search else (yield from self.listing.count(wanted.search))
            items = yield from full([prefix + self.key(one) for one in page.items])
            return Page(tuple(items), len(heads), True, page.next, now, matching, counts)
        chosen = [head for head in heads if self._matches(head, wanted)]
        matching = len(chosen)
        column = self.columns.get(wanted.column)
        if column is not None:
            chosen = sorted_by(chosen, column, down=wanted.down)[wanted.place :]
            following = wanted.following(len(chosen))
        else:
            chosen = self._behind(chosen, wanted)
            following = chosen[wanted.limit - 1][name][len(prefix) :] if len(chosen) > wanted.limit else None
        items = yield from full([head[name] for head in chosen[: wanted.limit]])
        return Page(tuple(items), len(heads), many, following, now, matching, counts)

    def _behind(self, chosen: list[dict[str, Any]], wanted: Wanted) -> list[dict[str, Any]]:
        name, cursor = self.listing.name, wanted.after
        if wanted.down:
            chosen.reverse()
        if cursor is None:
            return chosen
        last = self.listing.prefix + cursor
        return [head for head in chosen if (head[name] < last if wanted.down else head[name] > last)]

    def _matches(self, head: dict[str, Any], wanted: Wanted) -> bool:
        if not wanted.state and not wanted.search:
            return True
        states = self.states(head)
        if wanted.state and wanted.state not in states:
            return False
        if not wanted.search:
            return True
        key = head[self.listing.name][len(self.listing.prefix) :]
        return says(wanted.search, key, *self.texts(head)) or any(
            one in states for one in states_named(self.section, wanted.search)
        )

    @staticmethod
    def key(one: Any) -> str:
        """The key of a thing."""
        found: str = one.name if isinstance(one, CircuitInfo) else one.task_id
        return found


def circuits(clock: Clock, prefix: str, wanted: Wanted) -> Flow[Page[CircuitInfo]]:
    """Circuits, and how many are in which state (``forced``: under an override). Four commands at most."""
    start = f"{prefix}circuit:"

    def read(document: dict[str, Any], now: datetime) -> CircuitInfo:
        return circuit_info(document["key"][len(start) :], document, now)

    def states(head: dict[str, Any]) -> tuple[str, ...]:
        override = override_of(head)
        return (state_of(head),) if override is None else (override.state, "forced")

    def retry(head: dict[str, Any]) -> float | None:
        moment = instant(clock.read_stamp(head))
        assert moment is not None
        return read(head, moment).retry_after

    listing = _Listing(CIRCUITS, "key", start, {}, dict(FIELDS), read)

    def full(keys: list[str]) -> Flow[list[CircuitInfo]]:
        if not keys:
            return []
        found = yield from listing.rows(clock, {"key": {"$in": keys}}, [("key", 1)], limit=len(keys))
        return _as_asked(keys, start, listing.items(clock, found)[0])

    def holders(head: dict[str, Any]) -> tuple[str | None, ...]:
        return tuple(text(one.get("holder")) for one in documents(head.get("probes")))

    fields = dict.fromkeys(("state", "override", "failureCount", "updatedAt", "probes.holder"), True)
    if wanted.column == "next":
        fields |= dict.fromkeys(("openedAt", "resetTimeout", "lastFailureTime"), True)
    columns: Mapping[str, Callable[[dict[str, Any]], Any]] = {
        "state": lambda head: states(head)[0],
        "failures": lambda head: whole(head.get("failureCount")),
        "next": retry,
        "changed": lambda head: instant(head.get("updatedAt")),
    }
    heads = _Heads(listing, fields, states, "circuits", holders, columns)
    page = yield from heads.page(clock, wanted, full)
    return replace(page, counts={**dict.fromkeys(("closed", "open", "half-open", "forced"), 0), **page.counts})


def _as_asked(keys: list[str], prefix: str, found: Iterable[Any]) -> list[Any]:
    """The things in the order of their stored ``keys``; one that has gone meanwhile is left out."""
    there = {prefix + _Heads.key(one): one for one in found}
    return [there[key] for key in keys if key in there]


def lock(clock: Clock, prefix: str, key: str) -> Flow[tuple[LockInfo, datetime] | None]:
    """A held lock and the server's time. One command."""
    fields = {**dict.fromkeys(("key", "owner", "token", "createdAt", "expiresAt"), True), **clock.stamp()}
    found = yield from ask(LOCKS, "find_one", {"key": f"{prefix}lock:{key}", "$expr": clock.live()}, fields)
    now = instant(clock.read_stamp(found)) if found else None
    return None if now is None else (lock_info(found, f"{prefix}lock:"), now)


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

    def page(self, clock: Clock, wanted: Wanted) -> Flow[Page[TaskInfo]]:
        """Tasks, and how many are in which status. Four commands at most."""
        live = {"$expr": clock.live()}

        def seen(head: dict[str, Any]) -> str:
            return _seen_as(head, instant(clock.read_stamp(head)))

        def running(name: str) -> Callable[[dict[str, Any]], Any]:
            return lambda head: number(head.get(name)) if seen(head) in ("running", "stalled") else None

        def heard(head: dict[str, Any]) -> float | None:
            moment = instant(head.get("heartbeatAt"))
            return -moment.timestamp() if moment is not None and seen(head) in ("running", "stalled") else None

        def full(keys: list[str]) -> Flow[list[TaskInfo]]:
            if not keys:
                return []
            found = yield from self._tasks.find(clock, {"_id": {"$in": keys}}, len(keys))
            return _as_asked(keys, self._prefix, found)

        def read(document: dict[str, Any], now: datetime) -> TaskInfo:
            return self._tasks.info(clock, document)

        columns: Mapping[str, Callable[[dict[str, Any]], Any]] = {
            "status": seen,
            "progress": lambda head: number(head.get("progress")),
            "rate": running("rate"),
            "left": running("estimatedTimeRemaining"),
            "owner": lambda head: text(head.get("owner")),
            "heard": heard,
        }
        listing = _Listing(TASKS, "_id", self._prefix, live, {"_id": True}, read, "owner")
        names = {"owner", "status", "leaseUntil", "tries", "maxAttempts", "heartbeatAt"}
        names |= {"rate", "estimatedTimeRemaining", "progress"}
        fields = dict.fromkeys(sorted(names), True)
        owner: Callable[[dict[str, Any]], tuple[str | None]] = lambda head: (text(head.get("owner")),)  # noqa: E731
        heads = _Heads(listing, fields, lambda head: (seen(head),), "tasks", owner, columns)
        page = yield from heads.page(clock, wanted, full)
        return replace(page, counts={**dict.fromkeys(SEEN_AS, 0), **page.counts})

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


def idempotency(clock: Clock, prefix: str, wanted: Wanted) -> Flow[Page[IdempotencyInfo]]:
    """Claims, then results, by key or in another order, and how many of each. Six commands at most.

    A cursor in the order of the keys says which kind it is in.
    """
    fields = dict.fromkeys(("claim", "token", "updatedAt", "expiresAt", "holder"), True)
    columns = {"holder": "holder", "token": "token", "age": "-updatedAt", "left": "expiresAt"}

    def read(document: dict[str, Any], now: datetime) -> IdempotencyInfo:
        return idempotency_info(document, prefix)

    def listing(start: str, claim: Any) -> _Listing[IdempotencyInfo]:
        also = {"claim": claim, "$expr": clock.live()}
        return _Listing(IDEMPOTENCY, "key", start, also, fields, read, "holder", columns)

    kinds = {"in_progress": listing(claim_key(prefix), {"$ne": None}), "completed": listing(prefix, None)}
    counts, matching = {}, {}
    meant = states_named("idempotency", wanted.search)
    for kind, one in kinds.items():
        counts[kind] = yield from one.count()
        matching[kind] = counts[kind]
        if wanted.state not in ("", kind):
            matching[kind] = 0
        elif wanted.search and kind not in meant:
            matching[kind] = yield from one.count(wanted.search)
    total, found = sum(counts.values()), sum(matching.values())
    most = any(one > MOST for one in counts.values())
    by_key = wanted.column not in columns
    among = {
        kind: (one, "" if kind in meant else wanted.search)
        for kind, one in kinds.items()
        if wanted.state in ("", kind) and matching[kind]
    }
    items: list[IdempotencyInfo] = []
    following, now = None, None
    if not by_key and among:
        (first, _), *_ = among.values()
        test = {"$or": [one.test(search) for one, search in among.values()]}
        order = first.order(wanted)
        rows = yield from first.rows(clock, test, order, skip=wanted.place, limit=wanted.limit + 1)
        items, now = first.items(clock, rows[: wanted.limit])
        following = wanted.following(len(rows))
    elif by_key:
        where, _, behind = (wanted.after or ":").partition(":")
        names = list(among)[::-1] if wanted.down else list(among)
        keys = replace(wanted, order=wanted.order if wanted.column == "key" else "")
        for kind in names[names.index(where) :] if where in names else names:
            one, search = among[kind]
            left = wanted.limit - len(items)
            if left <= 0:
                following = f"{kind}:"
                break
            start = behind if kind == where and behind else None
            page = yield from one.page(clock, replace(keys, limit=left, after=start, search=search), counted=False)
            items += page.items
            now = now or page.now
            if page.next is not None:
                following = f"{kind}:{page.next}"
                break
    return Page(tuple(items), total, most, following, now, found, counts)


def record(clock: Clock, prefix: str, key: str) -> Flow[tuple[IdempotencyInfo, datetime] | None]:
    """A live result, or else the claim, and the server's time. One command."""
    fields = dict.fromkeys(("key", "claim", "token", "updatedAt", "expiresAt", "holder"), True)
    keys = [prefix + key, claim_key(prefix + key)]
    test = {"key": {"$in": keys}, "$expr": clock.live()}
    found = yield from ask(IDEMPOTENCY, "find", test, {**fields, **clock.stamp()}, limit=2, batch_size=3)
    for document in sorted(found, key=lambda one: one.get("claim") is not None):
        now = instant(clock.read_stamp(document))
        if now is not None:
            return idempotency_info(document, prefix), now
    return None


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
