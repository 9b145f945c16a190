"""The single things in the state: one lock, one circuit, one task. See ``values``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal


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
