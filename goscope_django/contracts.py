"""What a provider must be able to do, and the values that it takes and returns.

Rules of this file: frozen values and ``typing.Protocol`` classes, without behaviour, Django or a driver. A ``ttl`` is
in milliseconds (int) or a ``timedelta``; instants are aware UTC datetimes. Every method has an async version with an
``a`` in front (``acquire`` / ``aacquire``), which is left out here. A ``pattern`` is a regular expression, and so code:
some take without end on a short key, and nothing interrupts them. Never let users write one; for those there are the
cache's globs and ``re.escape``.

Every method raises ``StoreError`` if the store fails or can't be reached, and ``InvalidType`` or ``InvalidValue`` for
an argument that can't be used. Every method is one round trip unless its text says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, runtime_checkable

from goscope_django.exceptions import InvalidType, InvalidValue

Ttl = int | timedelta
CircuitState = Literal["closed", "open", "half-open"]
Outcome = Literal["started", "in_progress", "completed", "mismatch"]
CIRCUIT_STATES: tuple[CircuitState, ...] = ("closed", "open", "half-open")


@dataclass(frozen=True, slots=True)
class LockInfo:
    """A held lock. ``token`` is ``None`` on a lock that Node took, ``expires_at`` on one that never expires."""

    key: str
    owner: str
    token: int | None
    created_at: datetime | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class CircuitBreakerState:
    """The shared part of a circuit's document.

    ``state`` is ``closed``, ``open`` or ``half-open``, ``failure_count`` how many failures there were since the last
    success; the times are aware UTC, ``None`` for never.
    """

    state: CircuitState = "closed"
    failure_count: int = 0
    last_failure_time: datetime | None = None
    last_success_time: datetime | None = None

    def __post_init__(self) -> None:
        if self.state not in CIRCUIT_STATES:
            raise InvalidValue(f"state={self.state!r}: one of {', '.join(CIRCUIT_STATES)} is allowed")
        if type(self.failure_count) is not int:
            raise InvalidType(f"failure_count={self.failure_count!r}: a whole number (int) is needed")
        if self.failure_count < 0:
            raise InvalidValue(f"failure_count={self.failure_count!r}: must be zero or more")
        for name in ("last_failure_time", "last_success_time"):
            moment = getattr(self, name)
            if moment is not None and not (isinstance(moment, datetime) and moment.tzinfo is not None):
                raise InvalidType(f"{name}={moment!r}: an aware datetime or None is needed")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One saved state of a task. ``progress`` is 0 to 100, ``estimated_time_remaining`` in seconds."""

    id: str
    task_id: str
    sequence: int
    timestamp: datetime
    progress: float = 0.0
    data: Any = None
    estimated_time_remaining: float | None = None


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """A stored result. ``expires_at`` is ``None`` if it is kept forever."""

    value: Any
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class IdempotencyInfo:
    """A live claim or result, without the stored value.

    ``token`` is ``None`` on a result that Node stored; ``updated_at`` is when the claim was taken or the result stored.
    ``expires_at`` is when the claim's lease ends or the result is forgotten, ``None`` for never. ``holder`` says who
    made the claim, if that is known.
    """

    key: str
    state: Literal["in_progress", "completed"]
    token: int | None
    updated_at: datetime | None
    expires_at: datetime | None
    holder: str | None = None


@dataclass(frozen=True, slots=True)
class IdempotencyClaim:
    """What ``begin`` found.

    ``outcome`` is ``started`` (the caller does the work; ``token`` is its claim's fencing token), ``in_progress``
    (somebody else does; ask again in ``retry_after`` seconds), ``completed`` (``value`` is the result) or ``mismatch``
    (the key was used with another fingerprint).
    """

    outcome: Outcome
    token: int | None = None
    value: Any = None
    retry_after: float | None = None
    claim: str | None = field(default=None, repr=False, compare=False)
    """The random text by which a renewal finds a ``started`` claim in its document."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened and was written. ``name`` says what, ``details`` are its documented arguments."""

    name: str
    details: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class LockHandle(Protocol):
    """One acquisition. Its methods act on this very acquisition only, whoever holds the lock by then.

    Every method is one round trip, and every change is atomic. ``ttl`` is in milliseconds or a ``timedelta``. Every
    method raises ``StoreError`` if the store fails or can't be reached.
    """

    @property
    def key(self) -> str:
        """The key that was locked."""

    @property
    def owner(self) -> str:
        """Who holds it, for observers."""

    @property
    def token(self) -> int:
        """The fencing token, which grows with each acquisition of the key."""

    @property
    def expires_at(self) -> datetime:
        """When the lease ends, by the store's clock, as far as is known here."""

    def release(self) -> bool:
        """Give the lock back; ``False`` if this acquisition no longer held it."""

    def extend(self, ttl: Ttl) -> bool:
        """Let the lease end ``ttl`` from now; ``False`` if this acquisition no longer holds the lock."""

    def is_valid(self) -> bool:
        """Whether this acquisition holds the lock now."""


class LockProvider(Protocol):
    """Mutual exclusion with leases and fencing tokens. Every change is atomic.

    ``key`` is the lock's; ``ttl`` is for how long the lease lasts, in milliseconds or as a ``timedelta``.
    """

    def acquire(self, key: str, ttl: Ttl | None = None, owner: str | None = None) -> LockHandle | None:
        """Take the lock if it is free or expired; ``None`` if somebody holds it, be it ``owner`` itself.

        ``ttl=None`` is the provider's default. ``owner`` is a name for observers, random text if ``None``. Raises
        ``OutcomeUnknown`` if the answer was lost and can't be asked for.
        """

    def extend(self, key: str, ttl: Ttl, owner: str) -> bool:
        """Let the lease end ``ttl`` from now; ``False`` unless ``owner`` holds the lock unexpired."""

    def force_release(self, key: str) -> bool:
        """Remove the lock whoever holds it; ``True`` if there was one."""

    def get(self, key: str) -> LockInfo | None:
        """The live lock, or ``None``."""

    def list(self, pattern: str | None = None) -> Sequence[LockInfo]:
        """Live locks whose whole key matches ``pattern``, by key."""


class CircuitBreakerStateProvider(Protocol):
    """Shared circuit states. Every change is one atomic update. ``key`` is the circuit's name."""

    def get_state(self, key: str) -> CircuitBreakerState | None:
        """The circuit's state; ``None`` where nothing was ever recorded. Never changes it."""

    def set_state(self, key: str, state: CircuitBreakerState) -> None:
        """Overwrite the circuit's state with ``state``."""

    def record_failure(self, key: str, max_failures: int) -> int:
        """Count a failure, and open the circuit when the count is ``max_failures``; the new count."""

    def record_success(self, key: str) -> None:
        """Close the circuit and forget its failures."""

    def list(self, pattern: str | None = None) -> Mapping[str, CircuitBreakerState]:
        """States by key, of the circuits whose whole key matches ``pattern``."""

    def delete(self, key: str) -> bool:
        """Remove the circuit; ``True`` if there was one."""


class CacheProvider(Protocol):
    """Values with an expiry. Every change of one entry is atomic. ``key`` is the entry's, without a prefix."""

    def get(self, key: str) -> Any:
        """The value; ``None`` if it is missing or expired."""

    def set(self, key: str, value: Any, ttl: Ttl | None = None) -> None:
        """Store ``value`` for ``ttl`` (milliseconds or a ``timedelta``), for good if ``None``."""

    def delete(self, key: str) -> bool:
        """Remove the entry; ``True`` if there was a live one."""

    def has(self, key: str) -> bool:
        """Whether there is a live entry."""

    def clear(self) -> int:
        """Remove all entries of this prefix; how many there were. Not atomic as a whole."""

    def keys(self, pattern: str | None = None) -> Sequence[str]:
        """Live keys that match ``pattern`` as a whole, in order. It may take several round trips."""


class CheckpointProvider(Protocol):
    """Numbered states of tasks. A (task, sequence) is written once. ``task_id`` is the task's id."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Insert ``checkpoint``; atomic.

        Raises ``CheckpointConflict`` if its task has this sequence already, and overwrites nothing; and
        ``CheckpointTooLarge`` if it does not fit.
        """

    def load_latest(self, task_id: str) -> Checkpoint | None:
        """The checkpoint with the task's highest sequence; ``None`` if there is none."""

    def load(self, checkpoint_id: str) -> Checkpoint | None:
        """The checkpoint with the id ``checkpoint_id``; ``None`` if there is none."""

    def list(self, task_id: str) -> Sequence[Checkpoint]:
        """All checkpoints of the task, the oldest first."""

    def tasks(self, pattern: str | None = None) -> Sequence[str]:
        """Ids of the tasks that have checkpoints and match ``pattern`` as a whole. Changes nothing."""

    def cleanup(self, task_id: str, keep_count: int) -> int:
        """Remove all but the ``keep_count`` latest; how many. It may take two round trips, and is not atomic."""

    def delete_all(self, task_id: str) -> int:
        """Remove all checkpoints of the task; how many there were. Not atomic."""


class IdempotencyProvider(Protocol):
    """Results by ``key``, with a claim while the work is in progress. Every change is atomic.

    ``ttl`` is how long a result is kept, ``lease_ttl`` how long a claim holds unless it is extended, both in
    milliseconds or as a ``timedelta``; ``token`` is that of the claim. ``complete``, ``abandon`` and ``extend`` are
    ``False``, and change nothing, unless ``token`` is the live claim's.
    """

    def get(self, key: str) -> IdempotencyRecord | None:
        """The result; ``None`` if there is none or it has expired. A claim in progress is no result."""

    def set(self, key: str, value: Any, ttl: Ttl | None = None) -> None:
        """Store the result ``value`` without a claim, whatever is there. ``ttl=None`` keeps it for good."""

    def delete(self, key: str) -> bool:
        """Remove the result, and a claim in progress; ``True`` if there was one."""

    def begin(self, key: str, ttl: Ttl, fingerprint: str | None = None, lease_ttl: Ttl = 60_000) -> IdempotencyClaim:
        """Claim the key, or tell what is there: of concurrent calls exactly one is ``started``.

        A key that was used with another ``fingerprint`` is a ``mismatch``. Raises ``OutcomeUnknown`` if the answer was
        lost and can't be asked for. It may take two round trips.
        """

    def complete(self, key: str, token: int, value: Any, ttl: Ttl | None = None) -> bool:
        """Store the result ``value``, kept for ``ttl`` (that of ``begin`` if ``None``)."""

    def abandon(self, key: str, token: int) -> bool:
        """Give the claim up without a result, so that the next caller starts at once."""

    def extend(self, key: str, token: int, lease_ttl: Ttl) -> bool:
        """Let the claim's lease end ``lease_ttl`` from now."""

    def in_progress(self, key: str) -> bool:
        """Whether somebody works on the key now. Changes nothing."""

    def list(self, pattern: str | None = None, limit: int = 1_000) -> Sequence[IdempotencyInfo]:
        """Live claims, then live results, whose whole key matches ``pattern``, by key; at most ``limit``.

        It may take several round trips.
        """
