"""Frozen values that a task's runner, its operators and the store pass to each other.

Rule of this file: no behaviour, nothing is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

TaskStatus = Literal["running", "interrupted", "failed", "completed", "cancelled"]
STATUSES: Final[tuple[TaskStatus, ...]] = ("running", "interrupted", "failed", "completed", "cancelled")
FINISHED: Final[tuple[TaskStatus, ...]] = ("completed", "cancelled")
SEEN_AS: Final = ("running", "stalled", "interrupted", "failed", "exhausted", "completed", "cancelled")
"""What operators see: a running task without a worker is ``stalled``, one without attempts left ``exhausted``."""


def status_of(head: Mapping[str, Any]) -> TaskStatus:
    """The status in a task's head. Anything unknown counts as interrupted, so that the task can be started."""
    found = head.get("status")
    return next((one for one in STATUSES if one == found), "interrupted")


@dataclass(frozen=True, slots=True)
class TaskFailure:
    """The last time that a task failed: why (``error``, cleaned and shortened), where that was raised (``trace``, the
    last frames without values), when, and in which attempt."""

    error: str
    trace: tuple[str, ...]
    at: datetime | None
    attempt: int


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task as an operator sees it. ``progress`` is 0 to 100, ``rate`` items per second, ``estimated_time_remaining``
    seconds; times are aware UTC.

    ``status`` is ``running``, ``interrupted`` (let go in order), ``failed``, ``completed`` or ``cancelled``. An
    interrupted or failed task goes on at the next start. ``stalled``: the status is running, but the lease has ended,
    so the worker is gone. ``exhausted``: it has no attempt left and waits for ``reset_task``. ``error`` is why the last
    run failed, ``None`` again while another one runs; ``last_failure`` stays.
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
    last_failure: TaskFailure | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt at a task, as its commands describe it. ``lease`` and ``retention`` are in milliseconds."""

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
    """A state to be saved. ``remaining`` is in seconds; ``moment`` is the server's time as the runner counts it."""

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
    """What a start found. The caller holds the task only if ``outcome == "started"``.

    ``resumed`` says whether there was a saved state; ``sequence`` is the highest in use; ``retry_after`` is in seconds.
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
    exact: bool = False
    """Whether the run may save in transactions of Django's database already."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ends."""

    status: TaskStatus
    result: Any = None
    error: str | None = None
    trace: Sequence[str] = ()
