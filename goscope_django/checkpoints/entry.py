"""Tasks that resume: ``checkpointed``.

>>> from goscope_django.checkpoints import checkpointed
>>> with checkpointed("nightly-import") as task:
...     for row in task.track(rows):
...         import_row(row)

Rules of this file:

* At most one runner at a time holds a task; nothing but the end of its lease is needed to go on after a crash.
* Items are processed at least once. Repeated is what was done since the last save.
* A body that is left without an error has completed the task; it is not run again unless asked.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from datetime import timedelta
from types import TracebackType
from typing import Any, Final

from goscope_django import conf, runtime
from goscope_django.checkpoints.decorator import Decorates
from goscope_django.checkpoints.task import Task
from goscope_django.core import arguments
from goscope_django.exceptions import GoscopeError, InvalidType, TaskAlreadyRunning, TaskCancelled, TaskExhausted
from goscope_django.mongodb.checkpoints.tasks import LEASE, TASKS, TaskFlows
from goscope_django.mongodb.checkpoints.values import Run, Started
from goscope_django.mongodb.document.lease import new_claim
from goscope_django.process import renewal
from goscope_django.process.renewal import Renewable

INTERVAL: Final = 1.0
"""Seconds between two saves of a tracked loop, where nothing is said."""
RETENTION: Final = timedelta(days=7)
_current: ContextVar[Task | None] = ContextVar("goscope_task", default=None)


def current_task() -> Task | None:
    """The task whose block or function is running here, if any."""
    return _current.get()


class checkpointed(Decorates):  # noqa: N801 - used like a function, as contextlib's are
    """Hold the task ``task_id`` while a block or a function runs, and hand over what it last saved.

    A context manager of both kinds that gives a ``Task``, and a decorator: of a function whose parameter ``task`` gets
    it, or that asks ``current_task()``. For a decorator ``task_id`` may be a function of the call's arguments.

    * ``keep``: how many saved states the history keeps (``None``: all). ``interval``: seconds between the saves of a
      tracked loop (1). ``lease``: seconds after which a dead runner's task can be taken over
      (``DEFAULT_LOCK_TIMEOUT``); it is renewed while the task runs.
    * ``max_attempts``: how often in all it may fail or die (10; ``None``: no limit). Then ``reset_task`` is needed.
    * ``restart=True`` begins anew, also if the task is completed. So does another ``version`` (a text that stands for
      the code and the parameters to which the saved state belongs).
    * ``retention``: seconds for which a finished task is remembered (7 days; ``None``: for good).
    * ``owner`` and ``metadata`` are for operators; ``metadata`` (at most 64 KiB) for whoever dispatches it again.
    * ``on_sigterm=False`` leaves SIGTERM alone.

    Entering takes two commands and raises ``TaskAlreadyRunning``, ``TaskExhausted`` or ``TaskCancelled``. A task that
    is completed is not held: ``task.completed`` is true, ``task.result`` there, loops give nothing, saving raises
    ``TaskLost``; a decorated function is not called, its stored result is returned. Leaving takes one command, two more
    if something is still to be saved; it raises ``TaskLost`` if the task was taken over.
    """

    def __init__(
        self,
        task_id: str | Callable[..., str],
        *,
        keep: int | None = 10,
        interval: float | timedelta | None = None,
        lease: float | timedelta | None = None,
        max_attempts: int | None = 10,
        retention: float | timedelta | None = RETENTION,
        restart: bool = False,
        version: str | None = None,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        on_sigterm: bool = True,
    ) -> None:
        if not callable(task_id):
            arguments.key(task_id, "task_id")
        self._task_id = task_id
        self._keep = None if keep is None else arguments.count(keep, "keep")
        self._interval = INTERVAL if interval is None else arguments.duration_seconds(interval, "interval", zero=True)
        self._lease = None if lease is None else arguments.duration_milliseconds(lease, "lease")
        self._max_attempts = None if max_attempts is None else arguments.count(max_attempts, "max_attempts")
        self._retention = None if retention is None else arguments.duration_milliseconds(retention, "retention")
        self._restart = arguments.flag(restart, "restart")
        self._version = None if version is None else arguments.key(version, "version")
        self._owner = None if owner is None else arguments.key(owner, "owner")
        if metadata is not None and not isinstance(metadata, Mapping):
            raise InvalidType(f"metadata={type(metadata).__name__}: a mapping is needed")
        self._metadata = dict(metadata or {})
        self._on_sigterm = arguments.flag(on_sigterm, "on_sigterm")
        self._entered: tuple[Task, Token[Task | None]] | None = None

    def _run(self, task_id: str) -> Run:
        lease = self._lease
        if lease is None:
            lease = arguments.duration_milliseconds(conf.current().default_lock_timeout, "DEFAULT_LOCK_TIMEOUT")
        return Run(
            task_id=arguments.key(task_id, "task_id"),
            claim=new_claim(),
            owner=f"{socket.gethostname()}:{os.getpid()}" if self._owner is None else self._owner,
            lease=lease,
            max_attempts=self._max_attempts,
            retention=self._retention,
            keep=self._keep,
            version=self._version,
            restart=self._restart,
            metadata=self._metadata,
        )

    def _prepared(self) -> tuple[TaskFlows, Run]:
        if self._entered is not None:
            raise GoscopeError(f"task {self._task_id!r}: this checkpointed() is in use; make another one")
        if not isinstance(self._task_id, str):
            raise InvalidType(
                "task_id: a function of a call's arguments is for a decorator; give text to a `with` block"
            )
        return TaskFlows(runtime.adapter().checkpoint.flows), self._run(self._task_id)

    def _begun(self, flows: TaskFlows, run: Run, found: Started, sent: float, keep: Any) -> Task:
        named = {"task_id": run.task_id}
        if found.outcome == "running":
            raise TaskAlreadyRunning(
                f"task {run.task_id!r}: {found.owner!r} runs it; as things are its lease ends in "
                f"{found.retry_after:.1f} seconds",
                retry_after=found.retry_after,
                **named,
            )
        if found.outcome == "cancelled":
            raise TaskCancelled(f"task {run.task_id!r}: it was cancelled; reset_task() lets it go on", **named)
        if found.outcome == "exhausted":
            raise TaskExhausted(
                f"task {run.task_id!r}: it failed {run.max_attempts} times, which is as often as it may; reset_task() "
                f"allows more",
                **named,
            )
        store = runtime.adapter().store
        task = Task(store, flows, run, found, self._interval)
        if task.completed:
            return task
        details = {**named, "attempt": found.attempt}
        what = Renewable(store, TASKS, flows.prefix + run.task_id, run.claim, run.lease, name="_id", lease=LEASE)
        task._renewal = keep(what, sent, lambda: runtime.emit("task_lost", **details))
        if found.resumed:
            runtime.emit("task_resumed", sequence=found.sequence, **details)
        else:
            runtime.emit("task_started", **details)
        if self._on_sigterm:
            task._interrupts.install()
        return task

    def _enter(self, task: Task) -> Task:
        self._entered = (task, _current.set(task))
        return task

    def _exit(self) -> Task:
        assert self._entered is not None, "left without having been entered"
        (task, token), self._entered = self._entered, None
        with contextlib.suppress(ValueError):  # left in another context than entered, as generators may be
            _current.reset(token)
        return task

    def __enter__(self) -> Task:
        flows, run = self._prepared()
        sent = time.monotonic()
        found = runtime.adapter().store.run(flows.start, run)
        return self._enter(self._begun(flows, run, found, sent, renewal.keep))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit()._leave(error)

    async def __aenter__(self) -> Task:
        flows, run = self._prepared()
        sent = time.monotonic()
        found = await runtime.adapter().store.arun(flows.start, run)
        return self._enter(self._begun(flows, run, found, sent, renewal.akeep))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit()._aleave(error)
