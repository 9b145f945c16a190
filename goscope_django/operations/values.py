"""The state that the page, ``state.json``, ``goscope_status --json`` and the metrics show: frozen values, one tree.

::

    State
    ├── attention    Attention     items: AttentionItem, what needs an operator, the most urgent first
    ├── server       Server        topology, version, members, clock, latency, indexes
    ├── locks        Locks         items: LockItem
    ├── circuits     Circuits      items: CircuitItem, by_state
    ├── tasks        Tasks         items: TaskItem, by_status
    ├── flights      Flights       items: FlightItem
    ├── idempotency  Idempotency   items: IdempotencyItem, in_progress, completed
    ├── cache        Cache         aliases: CacheAlias, each with its namespaces
    ├── waits        Waits         items: WaitItem
    ├── losses       Losses        items: LossItem
    └── figures      Figures       the last hour by the minute, the last day by the hour, and the sums

Rules of this file:

* Values only; the field names are the keys of the JSON document, whose shape has a version.
* Instants are aware UTC datetimes of the server. Durations are seconds (float) as of ``State.generated_at``.
* A section whose ``error`` is not ``None`` could not be read, and is empty. The error says why.
* No stored value of a user is ever in here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, get_args

from goscope_django.circuits import CircuitFailure, CircuitOverride, CircuitTransition
from goscope_django.mongodb.checkpoints.values import SEEN_AS, TaskFailure
from goscope_django.mongodb.finding import ORDERS, STATES

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    D = TypeVar("D", bound=DataclassInstance)

T = TypeVar("T")

SCHEMA_VERSION: Final = 1
"""Of every JSON document. It grows when a key goes or changes its meaning, not when one is added."""

SECTIONS: Final = ("locks", "circuits", "tasks", "flights", "idempotency")
"""The sections that have pages. Their names are the keys of ``cursors``."""

SECTION_STATES: Final = STATES
"""By section: the states by which it can be filtered."""

SECTION_ORDERS: Final = ORDERS
"""By section: the columns by which it can be sorted, the usual one first. ``-`` before it sorts downwards."""

TASK_STATUSES: Final = SEEN_AS
"""Every ``status`` of a ``TaskItem``."""


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
    """A held lock. ``token`` is ``None`` for a lock of Node; ``expires_at`` and ``expires_in`` are for one that never
    ends. ``waiters`` wait for it, as far as processes have reported it, the first of them for ``longest_wait``;
    ``held_for``, ``expires_in`` and ``longest_wait`` are seconds."""

    key: str
    owner: str
    token: int | None
    created_at: datetime | None
    expires_at: datetime | None
    expires_in: float | None
    held_for: float | None
    waiters: int = 0
    longest_wait: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeItem:
    """A trial call on a half-open circuit, made by ``holder``. Its place is free again in ``seconds_left`` seconds at
    the latest."""

    id: str
    seconds_left: float
    holder: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitItem:
    """A circuit.

    ``retry_after`` (seconds) is 0 for an open one whose next call is a trial, ``None`` where there is nothing to wait
    for. ``open_for`` is for how many seconds it has been open, ``opened_by`` the failure that opened it,
    ``last_failure`` the last one. ``generation`` grows with every change of the state: an action that names it is
    refused after the next change.
    """

    name: str
    state: str
    failure_count: int
    generation: int
    retry_after: float | None
    opened_at: datetime | None
    open_for: float | None
    last_failure_time: datetime | None
    last_success_time: datetime | None
    updated_at: datetime | None
    probes: tuple[ProbeItem, ...]
    override: CircuitOverride | None
    history: tuple[CircuitTransition, ...]
    opened_by: CircuitFailure | None = None
    last_failure: CircuitFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskItem:
    """A task. ``status`` is ``running``, ``stalled`` (its worker is gone: the lease has ended), ``interrupted``,
    ``failed``, ``exhausted`` (tried as often as it may be), ``completed`` or ``cancelled``.

    ``failure`` is why the last run failed, ``last_failure`` the same with its trace and attempt; it stays while another
    run is under way. ``progress`` is 0 to 100, ``rate`` items per second; ``estimated_time_remaining``,
    ``heartbeat_age`` (since the last save or renewal) and ``lease_left`` are seconds. ``token`` is that of the last
    run: an action that names it is refused once another run has begun.
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
    last_failure: TaskFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlightItem:
    """A flight that runs: ``leader`` has run it for ``age`` seconds, and its lease ends in ``expires_in`` seconds."""

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
    """A live claim (``in_progress``) or result (``completed``), without what is stored.

    ``age`` is the seconds since it was claimed or stored, ``expires_in`` those until the claim's lease ends or the
    result is forgotten. ``token`` is ``None`` for a result of Node. ``holder`` says who made the claim, if that is
    known.
    """

    key: str
    state: Literal["in_progress", "completed"]
    token: int | None
    updated_at: datetime | None
    expires_at: datetime | None
    age: float | None
    expires_in: float | None
    holder: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFigures:
    """What happened in the last hour, in the whole fleet.

    ``bytes_read`` and ``bytes_written`` count only values that are bytes or ASCII text: the size of others is not known
    without encoding them again. ``hit_ratio`` is a share of 0 to 1, and ``None`` if nothing was read.
    """

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
    """The keys of an alias that begin alike, up to the first colon. ``(none)`` are keys without a colon, ``(other)``
    those of the namespaces for which there was no room."""

    namespace: str
    figures: CacheFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitItem:
    """``count`` callers of one process (``host:pid``) wait for ``key``, the first of them for ``longest`` seconds.

    ``kind`` is ``lock``, ``flight`` or ``idempotency``. ``held_by`` is who has it, if that is on this page of the
    state.
    """

    kind: str
    key: str
    process: str
    count: int
    longest: float
    seen_at: datetime
    held_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointItem:
    """One saved state of a task, without the data. ``progress`` is 0 to 100."""

    id: str
    sequence: int
    timestamp: datetime
    progress: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server of ``GOSCOPE["URL"]``.

    ``clock_offset`` is by how many seconds this process's clock is ahead of the server's, ``latency`` how many seconds
    one round trip took. ``indexes_ok`` is ``None`` if they could not be read. ``faults`` are sentences that say what
    must be mended (missing rights, a server that is not supported), ``notices`` what is good to know (its end of life,
    a standalone server, no change streams).
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
    faults: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section(Generic[T]):
    """One page of one kind of thing.

    ``total`` counts all that there are, ``matching`` those that match search and state; where ``at_least`` is true
    there are more still. ``next`` is the cursor of the next page, ``None`` on the last one.
    """

    error: str | None = None
    total: int = 0
    matching: int = 0
    at_least: bool = False
    items: tuple[T, ...] = ()
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Locks(Section[LockItem]):
    """Held locks, by key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuits(Section[CircuitItem]):
    """Circuits, by name. ``by_state`` counts those ``closed``, ``open`` and ``half-open``, ``forced`` those that an
    operator forces."""

    by_state: dict[str, int] = field(default_factory=lambda: {"closed": 0, "open": 0, "half-open": 0})
    forced: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks(Section[TaskItem]):
    """Tasks, by id. ``by_status`` counts each status of ``TaskItem``."""

    by_status: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TASK_STATUSES, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flights(Section[FlightItem]):
    """Flights that run now, by key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency(Section[IdempotencyItem]):
    """Claims first, then results, by key."""

    in_progress: int = 0
    completed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NearItem:
    """The near cache of an alias in the process that answered, ``process``.

    ``stream`` is ``open``, ``opening`` or ``none`` (there are no change streams, so it goes by time alone).
    ``proved_ago`` is the age of its proof in seconds, ``None`` without one. ``hits``, ``removed`` (entries that
    somebody changed), ``renewed`` (those that were read again at once), ``emptied`` and ``evicted`` count since the
    process began. ``bytes`` is an estimate.
    """

    process: str
    stream: str
    entries: int
    bytes: int
    hits: int
    removed: int
    renewed: int
    emptied: int
    evicted: int
    proved_ago: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheAlias:
    """One entry of ``CACHES``.

    ``entries`` counts what is stored under its prefix, also entries that have expired and are not removed yet. Counting
    stops at a fixed number; then ``at_least`` is true. ``url`` (masked) is given only if it has a store of its own.
    ``sessions`` counts the live sessions that clearing it removes, up to that number; ``None`` if none are kept in it.
    ``degraded``: in this process it works without MongoDB at the moment. ``near``: what this process keeps of it;
    ``None`` without the option, and where it has not read yet.
    """

    alias: str
    key_prefix: str
    error: str | None = None
    url: str | None = None
    entries: int | None = None
    at_least: bool = False
    sessions: int | None = None
    max_entries: int | None = None
    degraded: bool = False
    near: NearItem | None = None
    figures: CacheFigures = field(default_factory=CacheFigures)
    namespaces: tuple[NamespaceItem, ...] = ()
    indexes: tuple[IndexItem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """All aliases that use our backend. ``entries`` is the server's estimate for the whole collection, ``sessions`` the
    number of live sessions (``None``: they are kept elsewhere, or could not be counted)."""

    error: str | None = None
    entries: int | None = None
    sessions: int | None = None
    figures: CacheFigures = field(default_factory=CacheFigures)
    aliases: tuple[CacheAlias, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Long waits, as processes report them with their figures: up to ten seconds late, and not all of them."""

    error: str | None = None
    items: tuple[WaitItem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long something took: ``count`` is how often it was measured, ``seconds`` the sum, ``p50`` and ``p95`` the
    seconds that a half and 95 of a hundred did not exceed (``None``: it was not measured).

    ``buckets`` counts what took at most ``Figures.bounds`` and longer than the bound before; the last one what took
    longer than all bounds. ``counts``, ``p50s`` and ``p95s`` are the same (in seconds) for each minute or hour.
    """

    count: int = 0
    seconds: float = 0.0
    p50: float | None = None
    p95: float | None = None
    buckets: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    p50s: tuple[float | None, ...] = ()
    p95s: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DayFigures:
    """The same as ``Figures`` for the last day: ``hours`` are the beginnings of 24 hours, the current one last."""

    hours: tuple[datetime, ...] = ()
    series: dict[str, tuple[int, ...]] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SumFigures:
    """The same for all that was counted ``since`` (``None``: nothing was). They only grow."""

    since: datetime | None = None
    totals: dict[str, int] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockFigures:
    """What was counted of one lock. ``(other)`` are all locks for which there was no room."""

    name: str
    acquired: int
    contended: int
    not_acquired: int
    lost: int
    wait: Timing
    held: Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitFigures:
    """What was counted of one circuit. ``(other)`` are all circuits for which there was no room."""

    name: str
    calls: int
    failures: int
    rejections: int
    opened: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NameFigures:
    """The counters of single locks and circuits in the hour that began at ``hour``, the most active first."""

    hour: datetime
    locks: tuple[LockFigures, ...] = ()
    circuits: tuple[CircuitFigures, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LossItem:
    """A lease that ended while ``holder`` still worked. ``kind`` is ``lock``, ``task`` or ``idempotency``, ``age`` how
    many seconds ago that was."""

    kind: str
    key: str
    holder: str
    token: int | None
    at: datetime | None
    age: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The last hundred leases that were lost within a week, the newest first: up to about ten seconds ago."""

    error: str | None = None
    items: tuple[LossItem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The last hour of the whole fleet, by the minute, up to about ten seconds ago.

    ``minutes`` are the beginnings of 60 minutes, the current one last. Each of ``series`` has one number for each
    minute, and ``totals`` has their sums. The names are those of ``goscope_django.figures.SERIES``: ``cache_hits``,
    ``locks_acquired`` and so on. ``timings`` has how long callers waited for a lock (``lock_wait``; those that did not
    have to wait are not in it), how long locks were held (``lock_held``) and how long flights took (``flight_time``).
    ``day`` and ``sums`` have the same for the last day by the hour, and since counting began. ``names`` are the hour
    before and the one that runs, with what was counted by name there (``FIGURES_PER_NAME``). ``bounds`` are those of
    the timings' buckets, in seconds.
    """

    error: str | None = None
    minutes: tuple[datetime, ...] = ()
    series: dict[str, tuple[int, ...]] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    bounds: tuple[float, ...] = ()
    timings: dict[str, Timing] = field(default_factory=dict)
    day: DayFigures = field(default_factory=DayFigures)
    sums: SumFigures = field(default_factory=SumFigures)
    names: tuple[NameFigures, ...] = ()


AttentionKind = Literal[
    "unreachable",
    "server",
    "indexes",
    "clock",
    "cache_unread",
    "unread",
    "circuit_open",
    "circuit_forced",
    "task_exhausted",
    "task_failed",
    "task_stalled",
    "lock_waited",
    "lock_held_long",
    "lease_lost",
    "forged",
]
ATTENTION_KINDS: Final[tuple[AttentionKind, ...]] = get_args(AttentionKind)
"""Every ``kind`` of an ``AttentionItem``, the most urgent first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionItem:
    """One thing that needs an operator: a ``sentence``, what to do about it (``action``), and the ``command`` to begin
    with, if there is one.

    ``target`` says what it is about, and with ``key`` where it is found: ``lock``, ``circuit``, ``task`` or ``cache``
    of that name, ``figures`` (``key`` names the figure), or ``server``. ``seconds`` is for how long it has been so,
    where that is known. ``token`` is the lock's or the task's, or the circuit's generation: an action that names it is
    refused if the thing has changed since. ``docs`` is its section of the runbook.
    """

    kind: AttentionKind
    key: str
    target: Literal["lock", "circuit", "task", "cache", "figures", "server"]
    sentence: str
    action: str
    command: str | None = None
    seconds: float | None = None
    token: int | None = None
    docs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """What needs an operator now, the most urgent kind first, and within a kind what has lasted longest.

    It is of everything, whatever the state's ``search``, ``limit`` and ``cursors``. ``summary`` says it in one line,
    also that nothing needs attention. ``by_kind`` counts the kinds that there are. Up to a hundred of each are counted,
    and ``at_least`` is true where there are more; ``items`` has at most twenty of each. ``complete`` is false if
    something could not be read: there is an item that says so.
    """

    summary: str
    total: int = 0
    at_least: bool = False
    complete: bool = True
    by_kind: dict[str, int] = field(default_factory=dict)
    items: tuple[AttentionItem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything, as of ``generated_at`` by the server's clock (by this process's clock if ``reachable`` is false).

    ``error`` says why the server could not be reached, and ``hint`` what to do about it. ``away_since`` is since when,
    as far as ``away_seen_by`` knows: this ``process`` (it may be longer), or a ``member`` of the replica set that still
    answers (the last write that it has; there is no primary). ``problems`` are sentences:
    what is wrong, and the command that repairs it. ``took`` is how many seconds it took to make the state. ``limit``,
    ``search``, ``states`` and ``orders`` (by section) are what was asked for. ``chosen_by`` names the setting that
    ``url`` comes from, ``under_test`` says whether a test environment runs in this process.
    """

    schema_version: int = SCHEMA_VERSION
    generated_at: datetime
    took: float
    reachable: bool
    error: str | None = None
    hint: str | None = None
    away_since: datetime | None = None
    away_seen_by: Literal["process", "member"] | None = None
    problems: tuple[str, ...] = ()
    url: str
    chosen_by: str
    under_test: bool
    key_prefix: str
    limit: int
    search: str = ""
    states: dict[str, str] = field(default_factory=dict)
    orders: dict[str, str] = field(default_factory=dict)
    attention: Attention
    server: Server
    locks: Locks
    circuits: Circuits
    tasks: Tasks
    flights: Flights
    idempotency: Idempotency
    cache: Cache
    waits: Waits
    losses: Losses
    figures: Figures

    def as_json(self) -> dict[str, Any]:
        """The same as data for ``json.dumps``. Instants are ISO 8601 text in UTC with milliseconds.

        The numbers of a section that could not be read are null. Raises nothing and sends nothing.
        """
        found: dict[str, Any] = plain(self)
        for name, part in found.items():
            if isinstance(part, dict) and part.get("error") is not None:
                found[name] = _unknown(part)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What happened at ``at``, or will."""

    at: datetime | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What an action did. ``count`` is how many things it changed, ``message`` a sentence for the operator."""

    action: str
    target: str
    count: int
    message: str


def copied(kind: type[D], source: object, **more: Any) -> D:
    """A ``kind`` of the fields that ``source`` has under the same names, and of ``more``.

    :meta private:
    """
    names = [one.name for one in fields(kind) if one.name not in more and hasattr(source, one.name)]
    return kind(**{name: getattr(source, name) for name in names}, **more)


def _unknown(value: Any) -> Any:
    """``value``, which is data, with null for each number in it, but not for those of a list's items."""
    if isinstance(value, dict):
        return {name: _unknown(one) for name, one in value.items()}
    return None if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def plain(value: Any) -> Any:
    """``value`` as dicts, lists, text and numbers.

    :meta private:
    """
    kind = type(value)
    if kind in _AS_IT_IS:
        return value
    if kind is float:
        return round(value, 6)
    names = _NAMES.get(kind)
    if names is not None:
        return {one: plain(getattr(value, one)) for one in names}
    if is_dataclass(value) and not isinstance(value, type):
        _NAMES[kind] = tuple(one.name for one in fields(value))
        return plain(value)
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, float):
        return round(value, 6)
    return value


_AS_IT_IS: Final = frozenset((str, int, bool, type(None)))
_NAMES: Final[dict[type[Any], tuple[str, ...]]] = {}
"""The fields of each dataclass that was seen: a state has a thousand of some."""
