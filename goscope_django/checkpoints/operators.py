"""What operators, schedulers, commands and the dashboard do with tasks. Each function has an ``a`` twin.

Rule of this file: nothing here takes a task's lease. An update says in its own filter which state it expects.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeVar

from goscope_django import runtime
from goscope_django.core import arguments
from goscope_django.core.flow import Flow, acarry_out, call, carry_out, invoke
from goscope_django.exceptions import DispatchRefused, InvalidType, InvalidValue
from goscope_django.mongodb.checkpoints.queries import PAGE, TaskQueryFlows
from goscope_django.mongodb.checkpoints.values import TaskInfo
from goscope_django.mongodb.document.clock import Clock

logger = logging.getLogger("goscope.checkpoints")
P = ParamSpec("P")
T = TypeVar("T")
Pattern = str | re.Pattern[str] | None
AGAIN_AFTER: Final = 300
"""Seconds until a stalled task that was dispatched and did not start is dispatched again."""


def list_tasks(
    pattern: Pattern = None, limit: int = 100, after: str | None = None, *, stalled: bool = False
) -> list[TaskInfo]:
    """Up to ``limit`` tasks in the order of their ids, behind ``after``, whose whole id matches ``pattern``.

    The pattern is a regular expression, and so code: never a user's text. ``stalled=True``: only tasks whose worker is
    gone, that is, which say that they run while their lease has ended. One round trip; with a pattern one for every 500
    tasks looked at.
    """
    return carry_out(_list(pattern, limit, after, stalled=stalled))


async def alist_tasks(
    pattern: Pattern = None, limit: int = 100, after: str | None = None, *, stalled: bool = False
) -> list[TaskInfo]:
    """Async version of ``list_tasks``."""
    return await acarry_out(_list(pattern, limit, after, stalled=stalled))


def stalled_tasks(limit: int = 100, after: str | None = None) -> list[TaskInfo]:
    """Tasks whose worker is gone: they say that they run, and their lease has ended.

    At most ``limit``, in the order of their ids, behind ``after``. One round trip.
    """
    return carry_out(_list(None, limit, after, stalled=True))


async def astalled_tasks(limit: int = 100, after: str | None = None) -> list[TaskInfo]:
    """Async version of ``stalled_tasks``."""
    return await acarry_out(_list(None, limit, after, stalled=True))


def get_task(task_id: str) -> TaskInfo | None:
    """The task ``task_id``, or ``None``. One round trip."""
    return carry_out(_of_one(TaskQueryFlows.get, task_id))


async def aget_task(task_id: str) -> TaskInfo | None:
    """Async version of ``get_task``."""
    return await acarry_out(_of_one(TaskQueryFlows.get, task_id))


def task_result(task_id: str, default: Any = None) -> Any:
    """The result of the task ``task_id`` if it is completed, else ``default``. One round trip, which only reads.

    Raises ``Undecodable`` for a result that is forged or damaged.
    """
    completed, result = carry_out(_of_one(TaskQueryFlows.result, task_id))
    return result if completed else default


async def atask_result(task_id: str, default: Any = None) -> Any:
    """Async version of ``task_result``."""
    completed, result = await acarry_out(_of_one(TaskQueryFlows.result, task_id))
    return result if completed else default


def cancel_task(task_id: str) -> bool:
    """Ask the task ``task_id`` to stop: its runner learns it with its next save.

    If nobody runs it, it is cancelled at once. ``False`` if there is no such task or it is finished. One atomic round
    trip.
    """
    return carry_out(_of_one(TaskQueryFlows.cancel, task_id))


async def acancel_task(task_id: str) -> bool:
    """Async version of ``cancel_task``."""
    return await acarry_out(_of_one(TaskQueryFlows.cancel, task_id))


def reset_task(task_id: str, *, discard: bool = False) -> bool:
    """Let the failed, exhausted, cancelled or completed task ``task_id`` be started again, from its last state.

    ``discard=True`` removes its state and history. ``False`` if there is no such task or somebody runs it. One atomic
    round trip; with ``discard`` two more, which remove what nobody reads any more.
    """
    return carry_out(_of_one(TaskQueryFlows.reset, task_id, discard=discard))


async def areset_task(task_id: str, *, discard: bool = False) -> bool:
    """Async version of ``reset_task``."""
    return await acarry_out(_of_one(TaskQueryFlows.reset, task_id, discard=discard))


def delete_task(task_id: str, *, expected_token: int | None = None, force: bool = False) -> bool:
    """Remove the task ``task_id`` and its history. ``False`` if there is none or somebody runs it.

    With ``expected_token`` only if the task's token is still this one, so that what was looked at is what is deleted.
    ``force=True`` removes a running task too: its runner can't save any more. Removing the task is atomic, and its
    history goes after it. Three round trips, four where there was nothing but a history.
    """
    return carry_out(_of_one(TaskQueryFlows.delete, task_id, _token(expected_token), force=force))


async def adelete_task(task_id: str, *, expected_token: int | None = None, force: bool = False) -> bool:
    """Async version of ``delete_task``."""
    return await acarry_out(_of_one(TaskQueryFlows.delete, task_id, _token(expected_token), force=force))


def resume_stalled(
    dispatch: Callable[[TaskInfo], object],
    *,
    pattern: Pattern = None,
    limit: int = 100,
    again_after: float | timedelta = AGAIN_AFTER,
) -> list[TaskInfo]:
    """Call ``dispatch(info)`` for each stalled task that may be tried again; returns those that were dispatched.

    For a scheduler: at most ``limit`` tasks, whose whole id matches the regular expression ``pattern``. If several call
    it at once, only one of them dispatches a task, and none does so again for ``again_after`` seconds. If ``dispatch``
    raises anything but ``KeyboardInterrupt`` (``SystemExit`` too), that is logged and the task may be tried at once. If
    it raises ``DispatchRefused``, as ours do for what we have not signed, ``task_refused`` is sent, and the task does
    not count for ``limit``: so planted ones don't keep others from their turn. One round trip for each ``limit``
    stalled tasks that are looked at, one for each that is dispatched, which claims it and is atomic, and two for each
    that fails.

    ``info.metadata`` is what the database holds: a ``dispatch`` of your own must not import or call what it names.
    """
    if inspect.iscoroutinefunction(dispatch):
        raise InvalidValue("dispatch: a coroutine function goes with aresume_stalled()")
    return carry_out(_resume(dispatch, pattern, limit, again_after))


async def aresume_stalled(
    dispatch: Callable[[TaskInfo], Awaitable[object] | object],
    *,
    pattern: Pattern = None,
    limit: int = 100,
    again_after: float | timedelta = AGAIN_AFTER,
) -> list[TaskInfo]:
    """Async version of ``resume_stalled``; ``dispatch`` may be a coroutine function."""
    return await acarry_out(_resume(dispatch, pattern, limit, again_after))


_dispatchers: list[Callable[[TaskInfo], object]] = []


def register_dispatcher(dispatch: Callable[[TaskInfo], object]) -> None:
    """Let operators run a stalled task again: the dashboard's *Run again* and ``run_again`` call ``dispatch(info)``.

    For ``AppConfig.ready()``; ours are ``integrations.celery.dispatch`` and ``integrations.tasks.dispatch``. With
    several the next one is asked where one raises ``DispatchRefused``. Again does no harm. Raises ``InvalidType`` for
    what can't be called, and for a coroutine function. Sends nothing.
    """
    if not callable(dispatch) or inspect.iscoroutinefunction(dispatch):
        raise InvalidType("dispatch: a plain function of one argument, a TaskInfo, is needed")
    if dispatch not in _dispatchers:
        _dispatchers.append(dispatch)


def can_run_again() -> bool:
    """Whether a dispatcher is registered in this process. Raises nothing and sends nothing."""
    return bool(_dispatchers)


def run_again(task_id: str, *, expected_token: int | None = None, again_after: float | timedelta = AGAIN_AFTER) -> bool:
    """Dispatch the stalled task ``task_id`` by the registered dispatchers, wherever one of them can start it.

    ``False`` if it is not stalled, has no attempt left, was dispatched less than ``again_after`` seconds ago, or its
    last run is not the one with ``expected_token``: of several callers only one dispatches it. Raises
    ``DispatchRefused`` if no dispatcher takes it, also where none is registered, and what a dispatcher raises; it may
    then be tried at once. Two round trips, the second of which claims it and is atomic; three where it fails.
    """
    return carry_out(_run_again(task_id, expected_token, again_after))


async def arun_again(
    task_id: str, *, expected_token: int | None = None, again_after: float | timedelta = AGAIN_AFTER
) -> bool:
    """Async version of ``run_again``."""
    return await acarry_out(_run_again(task_id, expected_token, again_after))


def _run_again(task_id: str, expected_token: int | None, again_after: float | timedelta) -> Flow[bool]:
    wait, token = arguments.duration_milliseconds(again_after, "again_after"), _token(expected_token)
    info: TaskInfo | None = yield from _of_one(TaskQueryFlows.get, task_id)
    if info is None or not info.stalled or info.exhausted or token not in (None, info.token):
        return False
    if not (yield from _ask(TaskQueryFlows.claim_dispatch, info, wait)):
        return False
    refused = DispatchRefused(f"task {task_id!r:.200}: no dispatcher is registered in this process", "unknown")
    for dispatch in tuple(_dispatchers):
        try:
            yield from invoke(dispatch, info)
        except DispatchRefused as error:
            refused = error
        except BaseException:
            yield from _ask(TaskQueryFlows.undo_dispatch, info)
            raise
        else:
            return True
    yield from _ask(TaskQueryFlows.undo_dispatch, info)
    runtime.emit("task_refused", task_id=info.task_id, reason=refused.reason)
    raise refused


def cleanup_tasks() -> int:
    """Remove what finished tasks saved, once their retention is over; returns how many states. For daily use.

    Two round trips for every 500 tasks with a history, one more where there is something to remove. Not atomic, and
    harmless while tasks run: only the histories of tasks that are gone are removed.
    """
    return carry_out(_ask(TaskQueryFlows.orphans))


async def acleanup_tasks() -> int:
    """Async version of ``cleanup_tasks``."""
    return await acarry_out(_ask(TaskQueryFlows.orphans))


def _ask(
    operation: Callable[Concatenate[TaskQueryFlows, Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs
) -> Flow[T]:
    """Run an operation of the store."""
    adapter = runtime.adapter()
    bound = functools.partial(operation, TaskQueryFlows(adapter.checkpoint.flows))
    result: T = yield from call(adapter.store.run, adapter.store.arun, bound, *args, **kwargs)
    return result


def _of_one(
    operation: Callable[Concatenate[TaskQueryFlows, Clock, str, P], Flow[T]],
    task_id: str,
    *args: P.args,
    **kwargs: P.kwargs,
) -> Flow[T]:
    """An operation on one task."""
    return _ask(operation, arguments.key(task_id, "task_id"), *args, **kwargs)


def _list(pattern: Pattern, limit: int, after: str | None, *, stalled: bool) -> Flow[list[TaskInfo]]:
    test, most = arguments.pattern(pattern), arguments.count(limit, "limit")
    after = None if after is None else arguments.key(after, "after")
    size = most if test is None else max(most, PAGE)
    found: list[TaskInfo] = []
    while True:
        page = yield from _ask(TaskQueryFlows.list, size, after, stalled=stalled)
        found += [one for one in page if test is None or test.fullmatch(one.task_id)]
        if len(page) < size or len(found) >= most:
            return found[:most]
        after = page[-1].task_id


def _resume(
    dispatch: Callable[[TaskInfo], object], pattern: Pattern, limit: int, again_after: float | timedelta
) -> Flow[list[TaskInfo]]:
    wait = arguments.duration_milliseconds(again_after, "again_after")
    most, tried, after = arguments.count(limit, "limit"), 0, None
    done: list[TaskInfo] = []
    while True:
        page = yield from _list(pattern, most, after, stalled=True)
        for info in page:
            if info.exhausted or not (yield from _ask(TaskQueryFlows.claim_dispatch, info, wait)):
                continue
            outcome = yield from _dispatched(dispatch, info)
            if outcome == "done":
                done.append(info)
            tried += outcome != "refused"
            if tried >= most:
                return done
        if len(page) < most:
            return done
        after = page[-1].task_id


def _dispatched(dispatch: Callable[[TaskInfo], object], info: TaskInfo) -> Flow[Literal["done", "failed", "refused"]]:
    """What came of dispatching a task that was claimed for it."""
    outcome: Literal["failed", "refused"] = "failed"
    try:
        yield from invoke(dispatch, info)
    except DispatchRefused as error:
        outcome = "refused"
        runtime.emit("task_refused", task_id=info.task_id, reason=error.reason)
    except (KeyboardInterrupt, GeneratorExit, asyncio.CancelledError):
        raise
    except BaseException:  # SystemExit too: one task must not end the scheduler, and the others have their turn
        logger.exception("task %r could not be dispatched", info.task_id)
    else:
        return "done"
    yield from _ask(TaskQueryFlows.undo_dispatch, info)
    return outcome


def _token(expected_token: object) -> int | None:
    if expected_token is not None and type(expected_token) is not int:
        raise InvalidType(f"expected_token={expected_token!r}: the token of a task (int) is needed")
    return expected_token
