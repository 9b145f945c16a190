"""Makes the ``State``: one flow asks for everything, part by part.

Rules of this file:

* The number of commands is bounded (``COMMANDS``, and some for each cache alias), and so is the time (``TIME_LIMIT``).
* A part that can't be read says why, and the others are shown all the same. Once the server can't be reached, the parts
  that are left are not tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary

from goscope_django import conf, runtime
from goscope_django.core import arguments, histogram
from goscope_django.core.flow import Flow, acarry_out, call, carry_out
from goscope_django.exceptions import (
    GoscopeError,
    InvalidValue,
    MissingRights,
    PoolExhausted,
    StoreError,
    StoreUnavailable,
)
from goscope_django.mongodb import figures as stats
from goscope_django.mongodb import losses, overview, trouble
from goscope_django.mongodb.checkpoints.history import CheckpointFlows
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.indexes import IndexState
from goscope_django.mongodb.driver import inspection
from goscope_django.mongodb.driver.client import Connection
from goscope_django.mongodb.driver.limits import within
from goscope_django.mongodb.finding import Wanted, says, usual
from goscope_django.operations import cache_section, convert
from goscope_django.operations.attention import LEAST_HELD, LONG_HELD, Trouble, attention, usual_hold
from goscope_django.operations.place import TIME_LIMIT, Place, place
from goscope_django.operations.values import (
    SECTION_ORDERS,
    SECTION_STATES,
    SECTIONS,
    Cache,
    Circuits,
    Figures,
    Flights,
    Idempotency,
    Locks,
    Losses,
    Server,
    State,
    Tasks,
    Waits,
)

COMMANDS: Final = 46
"""The most that a state costs without the caches. Each alias costs one more, one with a store of its own three, and
one more where sessions are kept."""

PRESENT: Final = 30.0
"""Seconds for which a process that looks again and again takes indexes as present that were. One that is missing or
differs is asked for each time, so that its repair is seen at once."""

LARGEST: Final = 1_000
"""The most items that a page may have."""

LOOKED: Final = timedelta(minutes=2)
"""Whoever looks at a server that is away at least so often knows since when it is."""

_away: Final[WeakKeyDictionary[Connection, tuple[datetime, datetime]]] = WeakKeyDictionary()
"""When a server was first not reached, and when that was last so."""

_present: Final[WeakKeyDictionary[Connection, tuple[float, tuple[IndexState, ...]]]] = WeakKeyDictionary()


def state(
    *,
    limit: int = 50,
    cursors: Mapping[str, str | None] | None = None,
    search: str = "",
    states: Mapping[str, str] | None = None,
    orders: Mapping[str, str] | None = None,
) -> State:
    """What there is now, within about ``TIME_LIMIT`` seconds whatever happens to the server. Writes nothing.

    ``limit`` (1 to 1,000) bounds the items of each section. ``cursors`` are ``next`` values by section, for the pages
    to show. ``search`` is text that keys, names, owners, holders or states must contain, in any case of letters:
    ``host:pid`` finds all that one process holds and waits for. ``states`` and ``orders`` are, by section, one of its
    ``SECTION_STATES`` to be shown alone and one of its ``SECTION_ORDERS`` (``"-held"``: downwards). Totals are of
    everything all the same. A cursor is for the order that it came with.

    At most 46 round trips, whatever is stored; one more for each cache alias, three for one with a store of its own.
    Never raises for a server; raises ``ImproperlyConfigured`` for settings, and ``InvalidValue`` or ``InvalidType`` for
    arguments, that can't be used.
    """
    return carry_out(_state(limit, cursors, search, states, orders))


async def astate(
    *,
    limit: int = 50,
    cursors: Mapping[str, str | None] | None = None,
    search: str = "",
    states: Mapping[str, str] | None = None,
    orders: Mapping[str, str] | None = None,
) -> State:
    """Async version of ``state``."""
    return await acarry_out(_state(limit, cursors, search, states, orders))


def _state(
    limit: int,
    cursors: Mapping[str, str | None] | None,
    search: str,
    states: Mapping[str, str] | None,
    orders: Mapping[str, str] | None,
) -> Flow[State]:
    began, making = time.monotonic(), _begin(limit, cursors, search, states, orders)
    with within(TIME_LIMIT):
        try:
            yield from call(making.here.store.run, making.here.store.arun, _collect, making)
        except GoscopeError as error:  # there was no client: nothing was asked
            making.lost = error
            for name in _PARTS:
                making.parts.setdefault(name, _unread(name, str(error)))
        cache = yield from cache_section.read(making.here, making.parts, making.lost)
    return _finish(making, cache, began)


@dataclass(slots=True)
class _Making:
    """What was asked for, and what has been found so far."""

    here: Place
    limit: int
    search: str
    cursors: Mapping[str, str | None]
    states: Mapping[str, str]
    orders: Mapping[str, str]
    parts: dict[str, Any] = field(default_factory=dict)
    now: datetime | None = None
    lost: GoscopeError | None = None

    @property
    def moment(self) -> datetime:
        """The server's time, as far as it is known."""
        return self.now or datetime.now(UTC)

    def page(self, name: str) -> Wanted:
        """What page of a section is to be read."""
        order = usual(self.orders.get(name, ""), SECTION_ORDERS[name])
        return Wanted(self.limit, self.cursors.get(name), self.search, self.states.get(name, ""), order)

    @property
    def hour(self) -> stats.Hour | None:
        """The figures, if they could be read. They are read before whatever needs them."""
        found = self.parts.get("figures")
        return found if isinstance(found, stats.Hour) else None

    def waiting(self, kind: str) -> tuple[dict[str, int], tuple[str, ...]]:
        """How many wait for which key, and the keys that a process waits for which the search names."""
        found = convert.waiting(self.hour, kind)
        named = [key for key, one in found.items() if self.search and says(self.search, *one.processes)]
        return {key: one.count for key, one in found.items()}, tuple(named)


def _begin(
    limit: int,
    cursors: Mapping[str, str | None] | None,
    search: str,
    states: Mapping[str, str] | None,
    orders: Mapping[str, str] | None,
) -> _Making:
    size = min(arguments.count(limit, "limit"), LARGEST)
    given = dict(cursors or {})
    for name, cursor in given.items():
        _section(name, "cursors")
        if cursor is not None:
            arguments.key(cursor, f"cursors[{name!r}]")
    _known(states, "states", SECTION_STATES)
    _known(orders, "orders", {name: (*all_, *(f"-{one}" for one in all_)) for name, all_ in SECTION_ORDERS.items()})
    return _Making(place(), size, arguments.key(search, "search"), given, dict(states or {}), dict(orders or {}))


def _section(name: str, what: str) -> None:
    if name not in SECTIONS:
        raise InvalidValue(f"{what}: {name!r} is no section with pages: {', '.join(SECTIONS)}")


def _known(given: Mapping[str, str] | None, what: str, allowed: Mapping[str, tuple[str, ...]]) -> None:
    for name, value in (given or {}).items():
        _section(name, what)
        if value not in ("", *allowed[name]):
            raise InvalidValue(f"{what}[{name!r}]={value!r}: one of {', '.join(allowed[name]) or 'none'} is needed")


def _collect(clock: Clock, making: _Making) -> Flow[None]:
    for name in _PARTS:
        yield from _part(clock, making, name)


def _part(clock: Clock, making: _Making, name: str) -> Flow[None]:
    """Read one part, or note why it can't be read."""
    if making.lost is not None:
        making.parts[name] = _unread(name, str(making.lost))
        return
    try:
        found = yield from overview.attempt(lambda: _PARTS[name][1](clock, making))
    except StoreError as error:
        found = error
    except (GoscopeError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Documents that somebody else wrote may hold anything. The other parts are shown all the same.
        making.parts[name] = _unread(name, f"{type(error).__name__}: {error}")
        return
    if isinstance(found, StoreUnavailable) or (name == "server" and isinstance(found, MissingRights)):
        making.lost = found  # who may not read anything can be shown nothing
    making.parts[name] = _unread(name, str(found)) if isinstance(found, StoreError) else found


def _unread(name: str, error: str) -> Any:
    """What stands for a part that could not be read."""
    return _PARTS[name][0](error=error)


# The parts


def _server(clock: Clock, making: _Making) -> Flow[Server]:
    if making.here.mock:
        making.now = datetime.now(UTC)
        return convert.server((yield from inspection.mock_view(clock)), None)
    making.now, latency = yield from overview.server_time(clock)
    connection = making.here.connection
    until, known = _present.get(connection, (0.0, ()))
    if time.monotonic() > until:
        known = ()
    found = yield from inspection.view(clock, connection.target.database, known)
    if not known and found.indexes and _remembers() and all(one.state == "present" for one in found.indexes):
        _present[connection] = (time.monotonic() + PRESENT, found.indexes)
    return convert.server(found, latency)


def _remembers() -> bool:
    """Whether indexes are taken as present for a while. Under test they come and go."""
    return not conf.testing()


def _locks(clock: Clock, making: _Making) -> Flow[Locks]:
    page = yield from overview.locks(clock, making.here.prefix, making.page("locks"), *making.waiting("lock"))
    return convert.locks(page, making.moment, making.hour)


def _circuits(clock: Clock, making: _Making) -> Flow[Circuits]:
    page = yield from overview.circuits(clock, making.here.prefix, making.page("circuits"))
    return convert.circuits(page, making.moment)


def _tasks(clock: Clock, making: _Making) -> Flow[Tasks]:
    flows = overview.TaskPages(CheckpointFlows(making.here.prefix, runtime.codec()))
    return convert.tasks((yield from flows.page(clock, making.page("tasks"))), making.moment)


def _flights(clock: Clock, making: _Making) -> Flow[Flights]:
    named = making.waiting("flight")[1]
    page = yield from overview.flights(clock, making.here.prefix, making.page("flights"), named)
    return convert.flights(page, making.moment)


def _idempotency(clock: Clock, making: _Making) -> Flow[Idempotency]:
    page = yield from overview.idempotency(clock, making.here.prefix, making.page("idempotency"))
    return convert.idempotency(page, making.moment)


def _figures(clock: Clock, making: _Making) -> Flow[stats.Hour]:
    return (yield from stats.read(clock, making.here.prefix, making.moment))


def _losses(clock: Clock, making: _Making) -> Flow[Losses]:
    return convert.losses((yield from losses.read(clock, making.here.prefix)), making.moment)


def _circuit_trouble(clock: Clock, making: _Making) -> Flow[Trouble]:
    found = yield from trouble.circuits(clock, making.here.prefix)
    return Trouble(circuits=tuple(convert.circuit(one, making.moment) for one in found))


def _task_trouble(clock: Clock, making: _Making) -> Flow[Trouble]:
    found = yield from trouble.tasks(clock, CheckpointFlows(making.here.prefix, runtime.codec()))
    return Trouble(tasks=tuple(convert.task(one, making.moment) for one in found))


def _lock_trouble(clock: Clock, making: _Making) -> Flow[Trouble]:
    hour = making.parts["figures"]
    keys = {one.key for one in hour.waits if one.kind == "lock"} if isinstance(hour, stats.Hour) else ()
    waited = (yield from trouble.locks(clock, making.here.prefix, keys=keys)) if keys else []
    # Who counts by name knows of each how long is unusual. Without that it is the same for all.
    least = LEAST_HELD if conf.current().figures_per_name else _usual_hold(hour, making.moment)
    held = yield from trouble.locks(clock, making.here.prefix, held_for=int(least * 1_000), moment=making.now)
    return Trouble(
        waited=tuple(convert.lock(*one) for one in waited),
        held=tuple(convert.lock(*one) for one in held),
    )


def _usual_hold(hour: object, now: datetime) -> float:
    sums = hour.totals if isinstance(hour, stats.Hour) else None
    if sums is None:
        return LONG_HELD
    held = sums.histograms.get("lock_held", ((),))[0]
    return usual_hold(held[: histogram.BUCKETS], sums.moments[0], now)


def _entries(clock: Clock, making: _Making) -> Flow[int]:
    return (yield from overview.cache_size(clock))


_PARTS: Final[Mapping[str, tuple[type[Any], Callable[[Clock, _Making], Flow[Any]]]]] = {
    "server": (Server, _server),
    "figures": (Figures, _figures),
    "locks": (Locks, _locks),
    "circuits": (Circuits, _circuits),
    "tasks": (Tasks, _tasks),
    "flights": (Flights, _flights),
    "idempotency": (Idempotency, _idempotency),
    "entries": (Cache, _entries),
    "losses": (Losses, _losses),
    "open circuits": (Trouble, _circuit_trouble),
    "failed tasks": (Trouble, _task_trouble),
    "waited locks": (Trouble, _lock_trouble),
}
"""The parts in the order in which they are read: what holds the error where one can't be read, and who reads it."""


def _away_since(
    connection: Connection, lost: GoscopeError | None, took: float
) -> tuple[datetime | None, Literal["process", "member"] | None]:
    """Since when the server can't be reached, and who knows that."""
    if not isinstance(lost, StoreUnavailable) or isinstance(lost, PoolExhausted):
        _away.pop(connection, None)
        return None, None
    now, reaches = datetime.now(UTC), connection.reaches()
    first, looked = _away.get(connection, (now, now))
    if now - looked >= LOOKED or first == now:  # it may have been there in between
        first = now - timedelta(seconds=took)
    _away[connection] = (first, now)
    written = [one for reach in reaches if (one := reach.last_write()) is not None]
    if written:
        return max(written), "member"
    return min([first, *(one.since for one in reaches if one.since is not None)]), "process"


def _finish(making: _Making, cache: Cache, began: float) -> State:
    parts, hour = making.parts, making.parts["figures"]
    figures = hour if isinstance(hour, Figures) else convert.figures(hour)
    stuck: Trouble = parts["waited locks"]
    waits = (
        Waits(error=hour.error)
        if isinstance(hour, Figures)
        else convert.waits(hour, (*parts["locks"].items, *stuck.waited), parts["flights"])
    )
    server: Server = parts["server"]
    lost, settings = making.lost, conf.current()
    away = _away_since(making.here.connection, lost, time.monotonic() - began)
    hint = None if lost is None else convert.hint(making.here.connection.target.scheme, lost)
    if away[1] == "member":
        hint = convert.NO_PRIMARY
    problems = tuple(convert.problems(making.here.shown, lost, server, cache, parts))
    known = replace(stuck, circuits=parts["open circuits"].circuits, tasks=parts["failed tasks"].tasks)
    return State(
        generated_at=making.moment,
        took=time.monotonic() - began,
        reachable=lost is None,
        error=None if lost is None else str(lost),
        hint=hint,
        away_since=away[0],
        away_seen_by=away[1],
        problems=tuple(one.text for one in problems),
        url=making.here.shown,
        chosen_by=settings.chosen_by,
        under_test=settings.testing,
        key_prefix=making.here.prefix,
        limit=making.limit,
        search=making.search,
        attention=attention(known, problems, waits.items, parts["losses"].items, figures, cache, making.moment, hint),
        states={name: state for name, state in making.states.items() if state},
        orders={name: order for name, order in making.orders.items() if order},
        server=server,
        locks=parts["locks"],
        circuits=parts["circuits"],
        tasks=parts["tasks"],
        flights=parts["flights"],
        idempotency=parts["idempotency"],
        cache=cache,
        waits=convert.searched(waits, making.search),
        losses=parts["losses"],
        figures=figures,
    )
