"""Makes the ``State``.

Rules of this file: one flow asks for everything, section by section, in a bounded number of commands (``COMMANDS`` and
two for each cache alias); all of it has ``TIME_LIMIT`` seconds. A section that fails says so and leaves the rest; once
the server is not reached at all the remaining ones are not tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from goscope_django import runtime
from goscope_django.core import arguments
from goscope_django.core.flow import Flow
from goscope_django.exceptions import GoscopeError, InvalidValue, StoreError, StoreUnavailable
from goscope_django.mongodb import figures as stats
from goscope_django.mongodb import overview
from goscope_django.mongodb.checkpoints.history import CheckpointFlows
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.driver import inspection
from goscope_django.mongodb.driver.limits import within
from goscope_django.operations import cache_section, convert
from goscope_django.operations.place import TIME_LIMIT, Place, place
from goscope_django.operations.values import (
    SECTIONS,
    Cache,
    Circuits,
    Figures,
    Flights,
    Idempotency,
    Locks,
    Server,
    State,
    Tasks,
    Waits,
)

COMMANDS: Final = 26
"""The most that a state costs, without the caches: an alias costs one more, one with a store of its own three."""

LARGEST: Final = 1_000
"""Items of a page at most."""

_UNREAD: Final[Mapping[str, Callable[[str], Any]]] = {
    "server": lambda error: Server(error=error),
    "locks": lambda error: Locks(error=error),
    "circuits": lambda error: Circuits(error=error),
    "tasks": lambda error: Tasks(error=error),
    "flights": lambda error: Flights(error=error),
    "idempotency": lambda error: Idempotency(error=error),
    "figures": lambda error: Figures(error=error),
    "entries": lambda error: Cache(error=error),
}
"""What stands for a part that could not be read, by its name and why."""


@dataclass(slots=True)
class _Making:
    """What has been found so far."""

    here: Place
    limit: int
    search: str
    cursors: Mapping[str, str | None]
    parts: dict[str, Any] = field(default_factory=dict)
    now: datetime | None = None
    lost: GoscopeError | None = None


def _section(making: _Making, name: str, read: Callable[[], Flow[Any]]) -> Flow[None]:
    """Put what ``read`` gives into the parts, or why it could not be read."""
    failed = _UNREAD[name]
    if making.lost is not None:
        making.parts[name] = failed(str(making.lost))
        return
    try:
        found = yield from overview.attempt(read)
    except (GoscopeError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Documents that somebody else wrote may hold anything; the other sections are none the worse.
        making.parts[name] = failed(f"{type(error).__name__}: {error}")
        return
    if isinstance(found, StoreError):
        if isinstance(found, StoreUnavailable):
            making.lost = found
        making.parts[name] = failed(str(found))
    else:
        making.parts[name] = found


def _server(clock: Clock, making: _Making) -> Flow[Server]:
    if making.here.mock:
        making.now = datetime.now(UTC)
        return convert.server((yield from inspection.mock_view(clock)), None)
    making.now, latency = yield from overview.server_time(clock)
    return convert.server((yield from inspection.view(clock)), latency)


def _collect(clock: Clock, making: _Making) -> Flow[None]:
    prefix, limit, search, after = making.here.prefix, making.limit, making.search, making.cursors.get
    yield from _section(making, "server", lambda: _server(clock, making))
    now = making.now or datetime.now(UTC)

    def locks() -> Flow[Locks]:
        return convert.locks((yield from overview.locks(clock, prefix, limit, after("locks"), search)), now)

    def circuits() -> Flow[Circuits]:
        return convert.circuits((yield from overview.circuits(clock, prefix, limit, after("circuits"), search)), now)

    def tasks() -> Flow[Tasks]:
        flows = overview.TaskPages(CheckpointFlows(prefix, runtime.codec()))
        return convert.tasks((yield from flows.page(clock, limit, after("tasks"), search)), now)

    def flights() -> Flow[Flights]:
        return convert.flights((yield from overview.flights(clock, prefix, limit, after("flights"), search)), now)

    def idempotency() -> Flow[Idempotency]:
        page = yield from overview.idempotency(clock, prefix, limit, after("idempotency"), search)
        return convert.idempotency(page, now)

    def figures() -> Flow[stats.Hour]:
        return (yield from stats.read(clock, prefix, now))

    def size() -> Flow[int]:
        return (yield from overview.cache_size(clock))

    yield from _section(making, "locks", locks)
    yield from _section(making, "circuits", circuits)
    yield from _section(making, "tasks", tasks)
    yield from _section(making, "flights", flights)
    yield from _section(making, "idempotency", idempotency)
    yield from _section(making, "figures", figures)
    yield from _section(making, "entries", size)


def _begin(limit: int, cursors: Mapping[str, str | None] | None, search: str) -> _Making:
    size = min(arguments.count(limit, "limit"), LARGEST)
    given = dict(cursors or {})
    for name, cursor in given.items():
        if name not in SECTIONS:
            raise InvalidValue(f"cursors: {name!r} is no section with pages: {', '.join(SECTIONS)}")
        if cursor is not None:
            arguments.key(cursor, f"cursors[{name!r}]")
    return _Making(place(), size, arguments.key(search, "search"), given)


def _finish(making: _Making, cache: Cache, began: float) -> State:
    parts, hour = making.parts, making.parts["figures"]
    figures = hour if isinstance(hour, Figures) else convert.figures(hour)
    waits = (
        Waits(error=hour.error) if isinstance(hour, Figures) else convert.waits(hour, parts["locks"], parts["flights"])
    )
    server: Server = parts["server"]
    lost = making.lost
    return State(
        generated_at=making.now or datetime.now(UTC),
        took=time.monotonic() - began,
        reachable=lost is None,
        error=None if lost is None else str(lost),
        hint=None if lost is None else convert.hint(making.here.connection.target.scheme),
        problems=tuple(convert.problems(making.here.shown, lost, server, cache, parts)),
        url=making.here.shown,
        key_prefix=making.here.prefix,
        limit=making.limit,
        search=making.search,
        server=server,
        locks=parts["locks"],
        circuits=parts["circuits"],
        tasks=parts["tasks"],
        flights=parts["flights"],
        idempotency=parts["idempotency"],
        cache=cache,
        waits=waits,
        figures=figures,
    )


def state(*, limit: int = 50, cursors: Mapping[str, str | None] | None = None, search: str = "") -> State:
    """What there is now, within about ``TIME_LIMIT`` seconds whatever happens to the server.

    ``limit`` (1 to 1,000) bounds each section's items, ``cursors`` are ``next`` values by section for the pages to
    show, and ``search`` is text that keys, names and owners must contain, in any case. Reads only. Raises
    ``ImproperlyConfigured`` for settings that can't be used, and ``InvalidValue`` or ``InvalidType`` for arguments
    that can't; never for a server.
    """
    began, making = time.monotonic(), _begin(limit, cursors, search)
    with within(TIME_LIMIT):
        try:
            making.here.store.run(_collect, making)
        except GoscopeError as error:  # there was no client: nothing was asked
            _gave_up(making, error)
        cache = cache_section.read(making.here, making.parts, making.lost)
    return _finish(making, cache, began)


async def astate(*, limit: int = 50, cursors: Mapping[str, str | None] | None = None, search: str = "") -> State:
    """Asynchronous twin of ``state``."""
    began, making = time.monotonic(), _begin(limit, cursors, search)
    with within(TIME_LIMIT):
        try:
            await making.here.store.arun(_collect, making)
        except GoscopeError as error:
            _gave_up(making, error)
        cache = await cache_section.aread(making.here, making.parts, making.lost)
    return _finish(making, cache, began)


def _gave_up(making: _Making, error: GoscopeError) -> None:
    making.lost = error
    for name, failed in _UNREAD.items():
        making.parts.setdefault(name, failed(str(error)))
