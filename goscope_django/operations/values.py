"""The state that the page, ``state.json``, ``goscope_status --json`` and the metrics show: frozen values, one tree.

::

    State
    ├── server       Server        topology, version, members, clock, latency, indexes
    ├── locks        Locks         items: LockItem
    ├── circuits     Circuits      items: CircuitItem, by_state
    ├── tasks        Tasks         items: TaskItem, by_status
    ├── flights      Flights       items: FlightItem
    ├── idempotency  Idempotency   items: IdempotencyItem, in_progress, completed
    ├── cache        Cache         aliases: CacheAlias, each with its namespaces
    ├── waits        Waits         items: WaitItem
    └── figures      Figures       the last hour by the minute

Rules of this file: no behaviour but ``as_json``. Instants are aware UTC datetimes of the server, durations are seconds
(float) as of ``State.generated_at``. A section whose ``error`` is not ``None`` could not be read and says why;
whatever else it holds is then empty. ``total`` counts all that match, not just this page; where ``at_least`` is true
there are more still. ``next`` is the cursor of the next page (``None`` on the last one). No stored value of a user is
ever in here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from goscope_django.mongodb.checkpoints.values import SEEN_AS


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexItem:
    """One index. ``needed`` and ``found`` describe it, ``found`` only where it differs."""

    collection: str
    name: str
    state: Literal["present", "missing", "different"]
    needed: str
    found: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockItem:
    """A held lock. ``token`` is ``None`` on a lock of Node, ``expires_at`` and ``expires_in`` on one that never
    ends."""

    key: str
    owner: str
    token: int | None
    created_at: datetime | None
    expires_at: datetime | None
    expires_in: float | None
    held_for: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitionItem:
    """One move of a circuit. ``note`` is what the operator wrote."""

    at: datetime | None
    from_state: str
    to_state: str
    reason: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeItem:
    """A trial call on a half-open circuit; its place is free again in ``seconds_left`` at the latest."""

    id: str
    seconds_left: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OverrideItem:
    """An operator's word: ``open`` or ``closed`` until the circuit is reset."""

    state: str
    reason: str
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitItem:
    """A circuit as seen now. ``retry_after`` is 0 for an open one whose next call is a trial, ``None`` where there is
    nothing to wait for. ``generation`` grows with every move: an action that names it is refused once the circuit has
    moved."""

    name: str
    state: str
    failure_count: int
    generation: int
    retry_after: float | None
    opened_at: datetime | None
    last_failure_time: datetime | None
    last_success_time: datetime | None
    updated_at: datetime | None
    probes: tuple[ProbeItem, ...]
    override: OverrideItem | None
    history: tuple[TransitionItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskItem:
    """A task. ``status`` is ``running``, ``stalled`` (its worker is gone: the lease has ended), ``interrupted``,
    ``failed``, ``exhausted`` (tried as often as it may be), ``completed`` or ``cancelled``.

    ``progress`` is 0 to 100, ``rate`` items a second, ``token`` that of the last run: an action that names it is
    refused once another run has begun.
    """

    task_id: str
    status: str
    owner: str | None
    token: int
    attempt: int
    max_attempts: int | None
    sequence: int
    progress: float
    done: int | None
    total: int | None
    rate: float | None
    estimated_time_remaining: float | None
    started_at: datetime | None
    finished_at: datetime | None
    heartbeat_at: datetime | None
    heartbeat_age: float | None
    lease_left: float | None
    cancel_requested: bool
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlightItem:
    """A flight in the air: ``leader`` runs it since ``age`` seconds, its lease ends in ``expires_in``."""

    key: str
    leader: str
    token: int
    started_at: datetime | None
    expires_at: datetime | None
    age: float | None
    expires_in: float | None
    state: str = "flying"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyItem:
    """A live claim (``in_progress``) or result (``completed``), without what is stored. ``age`` is since it was
    claimed or stored; ``expires_in`` until the claim's lease ends or the result is forgotten. ``token`` is ``None`` on
    Node's results."""

    key: str
    state: Literal["in_progress", "completed"]
    token: int | None
    updated_at: datetime | None
    expires_at: datetime | None
    age: float | None
    expires_in: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFigures:
    """Of the last hour, the whole fleet. ``bytes_read`` and ``bytes_written`` count values that are bytes or plain
    ASCII text only: of others the size is not known without encoding them again. ``hit_ratio`` is 0 to 1, ``None``
    without a read."""

    hits: int = 0
    misses: int = 0
    sets: int = 0
    deletes: int = 0
    errors: int = 0
    forged: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    hit_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceItem:
    """The keys of an alias that begin alike, up to the first colon. ``(none)`` are those without one, ``(other)``
    those beyond the number of namespaces that is kept."""

    namespace: str
    figures: CacheFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitItem:
    """``count`` callers of one process wait for ``key`` (of a ``kind``: ``lock``, ``flight``, ``idempotency``), the
    first of them since ``longest`` seconds. ``held_by`` is who has it, where that is on this page of the state."""

    kind: str
    key: str
    process: str
    count: int
    longest: float
    seen_at: datetime
    held_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointItem:
    """One saved state of a task, without the state."""

    id: str
    sequence: int
    timestamp: datetime
    progress: float


SCHEMA_VERSION: Final = 1
"""Of every JSON document. It grows when a key changes its meaning or goes, not when one is added."""

SECTIONS: Final = ("locks", "circuits", "tasks", "flights", "idempotency")
"""The sections that have pages: their names are the keys of ``cursors``."""

TASK_STATUSES: Final = SEEN_AS
"""Every ``status`` of a ``TaskItem``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server of ``GOSCOPE["URL"]``.

    ``clock_offset`` is how many seconds this process's clock is ahead of the server's, ``latency`` how long one
    command took, the way there and back included. ``indexes_ok`` is ``None`` where they could not be read.
    """

    error: str | None = None
    topology: str | None = None
    set_name: str | None = None
    primary: str | None = None
    members: tuple[str, ...] = ()
    version: str | None = None
    clock_offset: float | None = None
    latency: float | None = None
    indexes: tuple[IndexItem, ...] = ()
    indexes_ok: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Locks:
    """Held locks, by key."""

    error: str | None = None
    total: int = 0
    at_least: bool = False
    items: tuple[LockItem, ...] = ()
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuits:
    """Circuits, by name. ``by_state`` counts ``closed``, ``open``, ``half-open``; ``forced`` those under an
    override."""

    error: str | None = None
    total: int = 0
    at_least: bool = False
    by_state: dict[str, int] = field(default_factory=lambda: {"closed": 0, "open": 0, "half-open": 0})
    forced: int = 0
    items: tuple[CircuitItem, ...] = ()
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """Tasks, by id. ``by_status`` counts each status of ``TaskItem``."""

    error: str | None = None
    total: int = 0
    at_least: bool = False
    by_status: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TASK_STATUSES, 0))
    items: tuple[TaskItem, ...] = ()
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flights:
    """Flights in the air, by key."""

    error: str | None = None
    total: int = 0
    at_least: bool = False
    items: tuple[FlightItem, ...] = ()
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """Claims first, then results, by key."""

    error: str | None = None
    total: int = 0
    at_least: bool = False
    in_progress: int = 0
    completed: int = 0
    items: tuple[IdempotencyItem, ...] = ()
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheAlias:
    """One entry of ``CACHES``. ``entries`` counts what is stored under its prefix, expired entries that still stand
    there included, at most a fixed number of them (then ``at_least``). ``url`` (masked) only where it has a store of
    its own.

    ``degraded`` tells that this process does without the server at the moment.
    """

    alias: str
    key_prefix: str
    error: str | None = None
    url: str | None = None
    entries: int | None = None
    at_least: bool = False
    max_entries: int | None = None
    degraded: bool = False
    figures: CacheFigures = field(default_factory=CacheFigures)
    namespaces: tuple[NamespaceItem, ...] = ()
    indexes: tuple[IndexItem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """All aliases that use our backend. ``entries`` is the server's own estimate of the whole collection."""

    error: str | None = None
    entries: int | None = None
    figures: CacheFigures = field(default_factory=CacheFigures)
    aliases: tuple[CacheAlias, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """What processes told along with their figures, so up to ten seconds late: long waits only, and not all of them."""

    error: str | None = None
    items: tuple[WaitItem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The last hour of the whole fleet, by the minute, up to about ten seconds ago.

    ``minutes`` are the beginnings of 60 minutes, the current one last; each of ``series`` has one number for each of
    them, and ``totals`` their sums. The names are those of ``goscope_django.figures.SERIES``: ``cache_hits``,
    ``locks_acquired`` and so on.
    """

    error: str | None = None
    minutes: tuple[datetime, ...] = ()
    series: dict[str, tuple[int, ...]] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything, as of ``generated_at`` by the server's clock (by this process's own where ``reachable`` is false).

    ``error`` says why the server could not be reached and ``hint`` what to do about it. ``problems`` are sentences for
    an operator: what is wrong and the command that repairs it. ``took`` is how long the making took; ``limit`` and
    ``search`` are what was asked for.
    """

    schema_version: int = SCHEMA_VERSION
    generated_at: datetime
    took: float
    reachable: bool
    error: str | None = None
    hint: str | None = None
    problems: tuple[str, ...] = ()
    url: str
    key_prefix: str
    limit: int
    search: str = ""
    server: Server
    locks: Locks
    circuits: Circuits
    tasks: Tasks
    flights: Flights
    idempotency: Idempotency
    cache: Cache
    waits: Waits
    figures: Figures

    def as_json(self) -> dict[str, Any]:
        """The same as plain data for ``json.dumps``: instants as ISO 8601 text in UTC with milliseconds."""
        found: dict[str, Any] = plain(self)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What an action did. ``count`` is how many things it changed, ``message`` a sentence for the operator."""

    action: str
    target: str
    count: int
    message: str


def plain(value: Any) -> Any:
    """``value`` as dicts, lists, text and numbers."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, float):
        return round(value, 6)
    return value
