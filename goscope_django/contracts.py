"""What a provider must be able to do, and the values that it takes and returns.

Rules of this file: frozen values and ``typing.Protocol`` classes, without behaviour, Django or a driver. A ``ttl`` is
in milliseconds (int) or a ``timedelta``; instants are aware UTC datetimes. Every method has an async version with an
``a`` in front (``acquire`` / ``aacquire``), which is left out here. A ``pattern`` is a regular expression, and so code:
some take without end on a short key, and nothing interrupts them. Never let users write one; for those there are the
cache's globs and ``re.escape``.
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
    """The shared part of a circuit's document."""

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
    """One acquisition. Its methods act on this very acquisition only, whoever holds the lock by then."""

    @property
    def key(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def token(self) -> int: ...
    @property
    def expires_at(self) -> datetime: ...
    def release(self) -> bool: ...
    def extend(self, ttl: Ttl) -> bool: ...
    def is_valid(self) -> bool: ...


class LockProvider(Protocol):
    """Mutual exclusion with leases and fencing tokens."""

    def acquire(self, key: str, ttl: Ttl | None = None, owner: str | None = None) -> LockHandle | None:
        """Take the lock if it is free or expired, in one server-side step; ``None`` if somebody holds it."""

    def extend(self, key: str, ttl: Ttl, owner: str) -> bool:
        """Move the expiry if ``owner`` holds the lock unexpired, in one server-side step."""

    def force_release(self, key: str) -> bool:
        """Remove the lock whoever holds it; ``True`` if there was one."""

    def get(self, key: str) -> LockInfo | None: ...
    def list(self, pattern: str | None = None) -> Sequence[LockInfo]: ...


class CircuitBreakerStateProvider(Protocol):
    """Shared circuit states; every recording is one atomic update."""

    def get_state(self, key: str) -> CircuitBreakerState | None: ...
    def set_state(self, key: str, state: CircuitBreakerState) -> None: ...
    def record_failure(self, key: str, max_failures: int) -> int: ...
    def record_success(self, key: str) -> None: ...
    def list(self, pattern: str | None = None) -> Mapping[str, CircuitBreakerState]: ...
    def delete(self, key: str) -> bool: ...


class CacheProvider(Protocol):
    """Values with an expiry."""

    def get(self, key: str) -> Any: ...
    def set(self, key: str, value: Any, ttl: Ttl | None = None) -> None: ...
    def delete(self, key: str) -> bool: ...
    def has(self, key: str) -> bool: ...
    def clear(self) -> int: ...
    def keys(self, pattern: str | None = None) -> Sequence[str]: ...


class CheckpointProvider(Protocol):
    """Numbered states of tasks. A (task, sequence) is written once."""

    def save(self, checkpoint: Checkpoint) -> None: ...
    def load_latest(self, task_id: str) -> Checkpoint | None: ...
    def load(self, checkpoint_id: str) -> Checkpoint | None: ...
    def list(self, task_id: str) -> Sequence[Checkpoint]: ...
    def tasks(self, pattern: str | None = None) -> Sequence[str]: ...
    def cleanup(self, task_id: str, keep_count: int) -> int: ...
    def delete_all(self, task_id: str) -> int: ...


class IdempotencyProvider(Protocol):
    """Results by key, with a claim while the work is in progress."""

    def get(self, key: str) -> IdempotencyRecord | None: ...
    def set(self, key: str, value: Any, ttl: Ttl | None = None) -> None: ...
    def delete(self, key: str) -> bool: ...
    def begin(
        self, key: str, ttl: Ttl, fingerprint: str | None = None, lease_ttl: Ttl = 60_000
    ) -> IdempotencyClaim: ...
    def complete(self, key: str, token: int, value: Any, ttl: Ttl | None = None) -> bool: ...
    def abandon(self, key: str, token: int) -> bool: ...
    def extend(self, key: str, token: int, lease_ttl: Ttl) -> bool: ...
    def in_progress(self, key: str) -> bool: ...
    def list(self, pattern: str | None = None, limit: int = 1_000) -> Sequence[IdempotencyInfo]: ...
