"""``checkpointed``: enters and leaves the block in which a task runs, and decorates functions with it.

Rules of this file:

* At most one runner at a time holds a task. After a crash the next one goes on as soon as the lease has ended.
* A body that is left without an error has completed the task.
* One ``checkpointed`` is in use once at a time; each call of a decorated function makes its own.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from datetime import timedelta
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, overload

from goscope_django import conf, runtime
from goscope_django.checkpoints.decorator import NAME, decorated
from goscope_django.checkpoints.runner import Runner
from goscope_django.checkpoints.task import Task
from goscope_django.core import arguments, decorating
from goscope_django.core.flow import Flow, acarry_out, call, carry_out
from goscope_django.exceptions import GoscopeError, InvalidType, TaskAlreadyRunning, TaskCancelled, TaskExhausted
from goscope_django.mongodb.checkpoints.tasks import TaskFlows
from goscope_django.mongodb.checkpoints.values import Run, Started
from goscope_django.mongodb.document.lease import new_claim
from goscope_django.process import holder

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
INTERVAL: Final = 1.0
"""Seconds between two saves of a tracked loop, unless told otherwise."""
RETENTION: Final = timedelta(days=7)
_current: ContextVar[Task | None] = ContextVar("goscope_task", default=None)


def current_task() -> Task | None:
    """The task whose block or function is running here, if any. Raises nothing and sends nothing."""
    return _current.get()


class checkpointed:  # noqa: N801 - used like a function, as contextlib's are
    """Hold the task ``task_id`` while a block or a function runs, and hand over what it last saved.

    A context manager, sync and async, that gives a ``Task``; and a decorator. A decorated function gets the task as its
    parameter ``task``, or asks ``current_task()``; there ``task_id`` may name the call's arguments
    (``"import:{path}"``), or be a function of them.

    * ``keep``: how many saved states the history keeps (``None``: all). ``interval``: seconds between the saves of a
      tracked loop (1). ``lease``: seconds after which a dead runner's task can be taken over
      (``DEFAULT_LOCK_TIMEOUT``); it is renewed while the task runs.
    * ``max_attempts``: how often the task may fail or die (10; ``None``: no limit). After that it needs ``reset_task``.
    * ``restart=True`` begins anew, also if the task is completed. So does another ``version``, a text that stands for
      the code and the parameters to which the saved state belongs.
    * ``retention``: seconds for which a finished task is remembered (7 days; ``None``: for good).
    * ``owner`` and ``metadata`` (at most 64 KiB) are for operators and for whoever dispatches the task again.
    * ``on_sigterm=False`` leaves SIGTERM alone.

    Making it sends nothing. Entering takes two round trips, the first of which takes the task and is atomic; it raises
    ``TaskAlreadyRunning``, ``TaskExhausted`` or ``TaskCancelled``. A completed task is not held: ``task.completed`` is
    true, ``task.result`` has the result, loops give nothing, saving raises ``TaskLost``; a decorated function is not
    called, and the stored result is returned. Leaving takes one atomic round trip, two more if something is still to be
    saved; it raises ``TaskLost`` if the task was taken over. All of these raise ``StoreError`` if MongoDB can't be
    reached, and ``InvalidType`` or ``InvalidValue`` for a bad argument.
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
        decorating.no_bare_function(task_id, "checkpointed", '@checkpointed("import:{path}")')
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
        self._entered: tuple[Runner, Token[Task | None]] | None = None

    def __enter__(self) -> Task:
        return carry_out(self._enter())

    async def __aenter__(self) -> Task:
        return await acarry_out(self._enter())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        carry_out(self._exit().leave(error))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await acarry_out(self._exit().leave(error))

    @overload
    def __call__(self, function: Callable[Concatenate[Task, P], T]) -> Callable[P, T]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[S, Task, P], T]) -> Callable[Concatenate[S, P], T]: ...
    @overload
    def __call__(self, function: Callable[P, T]) -> Callable[P, T]: ...
    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        arguments.function(function, "checkpointed()")
        one = copy.copy(self)
        one._task_id = decorating.keyed(self._task_id, function, "checkpointed(): task_id", hidden=NAME)
        return decorated(function, one._called)

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Self:
        """The ``checkpointed`` of one call."""
        mine = copy.copy(self)
        mine._entered = None
        if callable(self._task_id):
            mine._task_id = self._task_id(*args, **kwargs)
        return mine

    def _enter(self) -> Flow[Task]:
        if self._entered is not None:
            raise GoscopeError(f"task {self._task_id!r}: this checkpointed() is in use; make another one")
        if not isinstance(self._task_id, str):
            raise InvalidType(
                "task_id: a function of a call's arguments is for a decorator; give text to a `with` block"
            )
        adapter, run = runtime.adapter(), self._run(self._task_id)
        flows, sent = TaskFlows(adapter.checkpoint.flows), time.monotonic()
        found = yield from call(adapter.store.run, adapter.store.arun, flows.start, run)
        _raise_if_refused(run, found)
        runner = Runner(adapter.store, flows, run, found)
        if not runner.state.completed:
            yield from runner.hold(sent)
            if self._on_sigterm:
                runner.interrupts.install()
        task = Task(runner, self._interval)
        self._entered = (runner, _current.set(task))
        return task

    def _exit(self) -> Runner:
        assert self._entered is not None, "left without having been entered"
        (runner, token), self._entered = self._entered, None
        with contextlib.suppress(ValueError):  # left in another context than entered, as generators may be
            _current.reset(token)
        return runner

    def _run(self, task_id: str) -> Run:
        lease = self._lease
        if lease is None:
            lease = arguments.duration_milliseconds(conf.current().default_lock_timeout, "DEFAULT_LOCK_TIMEOUT")
        return Run(
            task_id=arguments.key(task_id, "task_id"),
            claim=new_claim(),
            owner=holder.describe() if self._owner is None else self._owner,
            lease=lease,
            max_attempts=self._max_attempts,
            retention=self._retention,
            keep=self._keep,
            version=self._version,
            restart=self._restart,
            metadata=self._metadata,
        )


def _raise_if_refused(run: Run, found: Started) -> None:
    if found.outcome == "running":
        raise TaskAlreadyRunning(
            f"task {run.task_id!r}: {found.owner!r} runs it; its lease ends in {found.retry_after:.1f} seconds unless "
            f"it is renewed",
            retry_after=found.retry_after,
            task_id=run.task_id,
        )
    if found.outcome == "cancelled":
        raise TaskCancelled(f"task {run.task_id!r}: it was cancelled; reset_task() lets it go on", task_id=run.task_id)
    if found.outcome == "exhausted":
        raise TaskExhausted(
            f"task {run.task_id!r}: it failed {run.max_attempts} times and may not be tried more often; reset_task() "
            f"allows more",
            task_id=run.task_id,
        )
