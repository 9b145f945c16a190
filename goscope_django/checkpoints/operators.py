"""What an operator, a scheduler, a command or the dashboard does with tasks. Every function has an ``a`` twin.

Rule of this file: nothing here takes a task's lease. What changes a task says so in the filter that it sends.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from goscope_django import runtime
from goscope_django.core import arguments
from goscope_django.exceptions import InvalidType, InvalidValue
from goscope_django.mongodb.checkpoints.queries import PAGE, TaskQueryFlows
from goscope_django.mongodb.checkpoints.values import TaskInfo
from goscope_django.mongodb.driver.store import Store

logger = logging.getLogger("goscope.checkpoints")
Pattern = str | re.Pattern[str] | None
AGAIN_AFTER = 300
"""Seconds until a stalled task that was dispatched and did not start is dispatched again."""


def _flows() -> tuple[Store, TaskQueryFlows]:
    adapter = runtime.adapter()
    return adapter.store, TaskQueryFlows(adapter.checkpoint.flows)


class _Pages:
    """Goes through the tasks page by page until ``limit`` of them match."""

    def __init__(self, pattern: Pattern, limit: int, after: str | None) -> None:
        self.test = arguments.pattern(pattern)
        self.limit = arguments.count(limit, "limit")
        self.after = None if after is None else arguments.key(after, "after")
        self.found: list[TaskInfo] = []
        self.size = self.limit if self.test is None else max(self.limit, PAGE)

    def add(self, page: list[TaskInfo]) -> bool:
        """Whether to go on."""
        self.found += [one for one in page if self.test is None or self.test.fullmatch(one.task_id)]
        if page:
            self.after = page[-1].task_id
        return len(page) == self.size and len(self.found) < self.limit


def list_tasks(
    pattern: Pattern = None, limit: int = 100, after: str | None = None, *, stalled: bool = False
) -> list[TaskInfo]:
    """Up to ``limit`` tasks in the order of their ids, behind ``after``, whose whole id matches ``pattern``.

    ``stalled=True``: only those that say they run but whose lease has ended. One command; with a pattern one for every
    500 tasks looked at.
    """
    pages, (store, flows) = _Pages(pattern, limit, after), _flows()
    while pages.add(store.run(flows.list, pages.size, pages.after, stalled=stalled)):
        pass
    return pages.found[: pages.limit]


async def alist_tasks(
    pattern: Pattern = None, limit: int = 100, after: str | None = None, *, stalled: bool = False
) -> list[TaskInfo]:
    """Asynchronous twin of ``list_tasks``."""
    pages, (store, flows) = _Pages(pattern, limit, after), _flows()
    while pages.add(await store.arun(flows.list, pages.size, pages.after, stalled=stalled)):
        pass
    return pages.found[: pages.limit]


def get_task(task_id: str) -> TaskInfo | None:
    """The task, or ``None``. One command."""
    store, flows = _flows()
    return store.run(flows.get, arguments.key(task_id, "task_id"))


async def aget_task(task_id: str) -> TaskInfo | None:
    """Asynchronous twin of ``get_task``."""
    store, flows = _flows()
    return await store.arun(flows.get, arguments.key(task_id, "task_id"))


def task_result(task_id: str, default: Any = None) -> Any:
    """The result of a completed task, else ``default``. One command."""
    store, flows = _flows()
    completed, result = store.run(flows.result, arguments.key(task_id, "task_id"))
    return result if completed else default


async def atask_result(task_id: str, default: Any = None) -> Any:
    """Asynchronous twin of ``task_result``."""
    store, flows = _flows()
    completed, result = await store.arun(flows.result, arguments.key(task_id, "task_id"))
    return result if completed else default


def cancel_task(task_id: str) -> bool:
    """Ask the task to stop: its runner learns it with its next save; a task that nobody runs is cancelled at once.

    ``False`` if there is no such task or it is finished. One command.
    """
    store, flows = _flows()
    return store.run(flows.cancel, arguments.key(task_id, "task_id"))


async def acancel_task(task_id: str) -> bool:
    """Asynchronous twin of ``cancel_task``."""
    store, flows = _flows()
    return await store.arun(flows.cancel, arguments.key(task_id, "task_id"))


def reset_task(task_id: str, *, discard: bool = False) -> bool:
    """Let a failed, exhausted, cancelled or completed task be started again, from its last state.

    ``discard=True`` throws its state and history away. ``False`` if there is no such task or somebody runs it.
    """
    store, flows = _flows()
    return store.run(flows.reset, arguments.key(task_id, "task_id"), discard=discard)


async def areset_task(task_id: str, *, discard: bool = False) -> bool:
    """Asynchronous twin of ``reset_task``."""
    store, flows = _flows()
    return await store.arun(flows.reset, arguments.key(task_id, "task_id"), discard=discard)


def _token(expected_token: object) -> int | None:
    if expected_token is not None and type(expected_token) is not int:
        raise InvalidType(f"expected_token={expected_token!r}: the token of a task (int) is needed")
    return expected_token


def delete_task(task_id: str, *, expected_token: int | None = None, force: bool = False) -> bool:
    """Remove a task and its history; ``False`` if there is none, somebody runs it, or it was started meanwhile.

    With ``expected_token`` only if the task's token is still this one: what was looked at is what is deleted. With
    ``force=True`` a running one too: its runner can't save any more. Three commands at most.
    """
    store, flows = _flows()
    return store.run(flows.delete, arguments.key(task_id, "task_id"), _token(expected_token), force=force)


async def adelete_task(task_id: str, *, expected_token: int | None = None, force: bool = False) -> bool:
    """Asynchronous twin of ``delete_task``."""
    store, flows = _flows()
    return await store.arun(flows.delete, arguments.key(task_id, "task_id"), _token(expected_token), force=force)


def stalled_tasks(limit: int = 100, after: str | None = None) -> list[TaskInfo]:
    """Tasks whose worker is gone: they say that they run, and their lease has ended. One command."""
    return list_tasks(None, limit, after, stalled=True)


async def astalled_tasks(limit: int = 100, after: str | None = None) -> list[TaskInfo]:
    """Asynchronous twin of ``stalled_tasks``."""
    return await alist_tasks(None, limit, after, stalled=True)


def _again_after(again_after: float | timedelta) -> int:
    return arguments.duration_milliseconds(again_after, "again_after")


def resume_stalled(
    dispatch: Callable[[TaskInfo], object],
    *,
    pattern: Pattern = None,
    limit: int = 100,
    again_after: float | timedelta = AGAIN_AFTER,
) -> list[TaskInfo]:
    """Call ``dispatch(info)`` for each stalled task that may be tried again; those that were dispatched.

    For a scheduler: of several that call it at once only one dispatches a task, and not again for ``again_after``
    seconds. A ``dispatch`` that raises is logged and may be tried at once. One command, and one for each task.
    """
    if inspect.iscoroutinefunction(dispatch):
        raise InvalidValue("dispatch: a coroutine function goes with aresume_stalled()")
    (store, flows), wait, done = _flows(), _again_after(again_after), []
    for info in list_tasks(pattern, limit, stalled=True):
        if info.exhausted or not store.run(flows.claim_dispatch, info, wait):
            continue
        try:
            dispatch(info)
        except Exception:
            logger.exception("task %r could not be dispatched", info.task_id)
            store.run(flows.undo_dispatch, info)
        else:
            done.append(info)
    return done


async def aresume_stalled(
    dispatch: Callable[[TaskInfo], Awaitable[object] | object],
    *,
    pattern: Pattern = None,
    limit: int = 100,
    again_after: float | timedelta = AGAIN_AFTER,
) -> list[TaskInfo]:
    """Asynchronous twin of ``resume_stalled``; ``dispatch`` may be a coroutine function."""
    (store, flows), wait, done = _flows(), _again_after(again_after), []
    for info in await alist_tasks(pattern, limit, stalled=True):
        if info.exhausted or not await store.arun(flows.claim_dispatch, info, wait):
            continue
        try:
            outcome = dispatch(info)
            if inspect.isawaitable(outcome):
                await outcome
        except Exception:
            logger.exception("task %r could not be dispatched", info.task_id)
            await store.arun(flows.undo_dispatch, info)
        else:
            done.append(info)
    return done


def cleanup_tasks() -> int:
    """Remove what finished tasks saved, once their retention is over; how many states. For a scheduler, daily or so."""
    store, flows = _flows()
    return store.run(flows.orphans)


async def acleanup_tasks() -> int:
    """Asynchronous twin of ``cleanup_tasks``."""
    store, flows = _flows()
    return await store.arun(flows.orphans)
