"""What passes between a task's runner and the store: frozen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

TaskStatus = Literal["running", "interrupted", "failed", "completed", "cancelled"]
STATUSES: Final[tuple[TaskStatus, ...]] = ("running", "interrupted", "failed", "completed", "cancelled")
FINISHED: Final[tuple[TaskStatus, ...]] = ("completed", "cancelled")
SEEN_AS: Final = ("running", "stalled", "interrupted", "failed", "exhausted", "completed", "cancelled")
"""What operators see: the statuses, ``stalled`` running ones (no worker) and ``exhausted`` ones (no attempt left)."""


def status_of(head: Mapping[str, Any]) -> TaskStatus:
    """The status in a task's document; what somebody left odd there reads as interrupted, since it can be started."""
    found = head.get("status")
    return next((one for one in STATUSES if one == found), "interrupted")


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task as an operator sees it. ``progress`` is 0 to 100, ``rate`` items per second, times are aware UTC.

    ``status`` is ``running``, ``interrupted`` (let go in order; goes on at the next start), ``failed`` (likewise),
    ``completed`` or ``cancelled``. ``stalled``: it says running, but the lease has ended, so the worker is gone.
    ``exhausted``: it was tried as often as it may be, and waits for ``reset_task``.
    """

    task_id: str
    status: TaskStatus
    stalled: bool
    exhausted: bool
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
    heartbeat_at: datetime | None
    lease_until: datetime | None
    finished_at: datetime | None
    cancel_requested: bool
    error: str | None
    version: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt at a task: what its commands say about it. ``lease`` and ``retention`` are in milliseconds."""

    task_id: str
    claim: str
    owner: str
    lease: int
    max_attempts: int | None
    retention: int | None
    keep: int | None
    version: str | None
    restart: bool
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state to be saved. ``remaining`` is in seconds, ``moment`` the server's time as far as the runner knows."""

    sequence: int
    data: Any
    places: Sequence[Mapping[str, Any]]
    progress: float
    done: int | None
    total: int | None
    rate: float | None
    remaining: float | None
    moment: datetime


@dataclass(frozen=True, slots=True)
class Started:
    """What a start found. Only with ``outcome == "started"`` does the caller hold the task.

    ``resumed`` says whether there was a state to go on from; ``sequence`` is the highest in use.
    """

    outcome: Literal["started", "running", "completed", "cancelled", "exhausted"]
    token: int
    attempt: int
    sequence: int
    resumed: bool
    data: Any
    places: Sequence[Mapping[str, Any]]
    progress: float
    total: int | None
    result: Any
    owner: str | None
    retry_after: float
    moment: datetime


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ends."""

    status: TaskStatus
    result: Any = None
    error: str | None = None
