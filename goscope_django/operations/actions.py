"""What an operator does to locks, circuits, tasks and idempotency records.

Rules of this file:

* An action takes the mark of what the operator saw (a token, a generation) and hands it to the store, whose filter has
  it. Nothing is read first and written then.
* Each action first makes sure that the server answers (``Place.reach``). Commands are counted without that one.
"""

from __future__ import annotations

from collections.abc import Callable

from goscope_django import checkpoints, circuits, runtime
from goscope_django.core import arguments
from goscope_django.core.flow import Flow, acarry_out, ask, call, carry_out
from goscope_django.exceptions import DispatchRefused, GoscopeError, NotFound, StateChanged
from goscope_django.mongodb.checkpoints.history import CHECKPOINTS, CheckpointFlows
from goscope_django.mongodb.checkpoints.queries import TaskQueryFlows
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.driver.limits import within
from goscope_django.mongodb.idempotency import flows as idempotency
from goscope_django.mongodb.locks import flows as locks
from goscope_django.operations.place import ACTION_LIMIT, place
from goscope_django.operations.values import Done

# Locks


def release_lock(key: str, token: int | None = None, owner: str | None = None) -> Done:
    """Take the lock on ``key`` away from its holder, who learns of it at its next renewal.

    With ``token`` (or ``owner``, for locks of Node, which have no token) only if it is still that acquisition. One
    atomic round trip, two where it is refused. Raises ``NotFound`` and ``StateChanged``.
    """
    return carry_out(_release_lock(key, token, owner))


async def arelease_lock(key: str, token: int | None = None, owner: str | None = None) -> Done:
    """Async version of ``release_lock``."""
    return await acarry_out(_release_lock(key, token, owner))


def _release_lock(key: str, token: int | None, owner: str | None) -> Flow[Done]:
    here = place()
    flows = locks.LockFlows(here.prefix)
    done, now = yield from here.act(locks.release_lock, flows, arguments.key(key), _mark(token), owner)
    if done:
        return Done(action="release_lock", target=key, count=1, message=f"Lock {key!r} was released.")
    if now is None:
        raise NotFound(f"lock {key!r} is not held (any more)", target=key)
    raise StateChanged(
        f"lock {key!r} was not released: it is held by {now.owner!r} with token {now.token} now"
        + ("" if token is None else f", not with token {token}"),
        target=key,
    )


# Circuits


def open_circuit(name: str, generation: int | None = None, reason: str = "") -> Done:
    """Force the circuit ``name`` open until it is reset: every process refuses calls through it within about a second.

    With ``generation`` only if the circuit is still in it. A circuit that does not exist is made. ``reason`` is kept in
    its history. One atomic round trip, two where it is refused. Raises ``StateChanged``.
    """
    return carry_out(_command_circuit("force_open", name, generation, reason))


async def aopen_circuit(name: str, generation: int | None = None, reason: str = "") -> Done:
    """Async version of ``open_circuit``."""
    return await acarry_out(_command_circuit("force_open", name, generation, reason))


def close_circuit(name: str, generation: int | None = None, reason: str = "") -> Done:
    """Force the circuit closed until it is reset: every process lets all calls through. Else like ``open_circuit``."""
    return carry_out(_command_circuit("force_close", name, generation, reason))


async def aclose_circuit(name: str, generation: int | None = None, reason: str = "") -> Done:
    """Async version of ``close_circuit``."""
    return await acarry_out(_command_circuit("force_close", name, generation, reason))


def reset_circuit(name: str, generation: int | None = None, reason: str = "") -> Done:
    """Close the circuit, forget its failures and remove what forces it. Raises ``NotFound`` if there is no such
    circuit. Else like ``open_circuit``."""
    return carry_out(_command_circuit("reset", name, generation, reason))


async def areset_circuit(name: str, generation: int | None = None, reason: str = "") -> Done:
    """Async version of ``reset_circuit``."""
    return await acarry_out(_command_circuit("reset", name, generation, reason))


_CIRCUITS = {
    "force_open": (circuits.force_open, circuits.aforce_open, "is forced open until it is reset"),
    "force_close": (circuits.force_close, circuits.aforce_close, "is forced closed until it is reset"),
    "reset": (circuits.reset, circuits.areset, "was reset: closed, with no failures, and no longer forced"),
}


def _command_circuit(command: str, name: str, generation: int | None, reason: str) -> Flow[Done]:
    plain, twin, message = _CIRCUITS[command]
    yield from place().reach()
    with within(ACTION_LIMIT):
        if (yield from call(plain, twin, name, reason, expected_generation=generation)) is not None:
            return Done(action=command, target=name, count=1, message=f"Circuit {name!r} {message}.")
        now = yield from call(circuits.get_circuit, circuits.aget_circuit, name)
    if now is None:
        raise NotFound(f"circuit {name!r} does not exist: nothing was ever recorded under that name", target=name)
    raise StateChanged(
        f"circuit {name!r} was left as it is: it has changed, and is {now.state} in generation {now.generation} now, "
        f"not {generation}",
        target=name,
    )


# Tasks


def delete_task(task_id: str, token: int | None = None) -> Done:
    """Delete the task ``task_id`` and its checkpoints, if nobody runs it and its last run is the one with ``token``.

    Deleting the task is atomic, and its checkpoints go after it. Three round trips, five where there is no such task.
    Raises ``NotFound`` and ``StateChanged`` (it is running, or another run has begun).
    """
    return carry_out(_delete_task(task_id, token))


async def adelete_task(task_id: str, token: int | None = None) -> Done:
    """Async version of ``delete_task``."""
    return await acarry_out(_delete_task(task_id, token))


def _delete_task(task_id: str, token: int | None) -> Flow[Done]:
    def delete(tasks: TaskQueryFlows, clock: Clock) -> Flow[bool]:
        return (yield from tasks.delete(clock, task_id, token, force=False))

    message = f"Task {task_id!r} and its checkpoints were deleted."
    return (yield from _change_task("delete_task", "deleted", message, task_id, token, delete))


def cancel_task(task_id: str, token: int | None = None) -> Done:
    """Ask the runner of the task ``task_id`` to stop at its next save. A task that nobody runs is cancelled at once.

    With ``token`` only if its last run is still that one. One atomic round trip, two where it is refused. Raises
    ``NotFound`` and ``StateChanged`` (it is finished, or another run has begun).
    """
    return carry_out(_cancel_task(task_id, token))


async def acancel_task(task_id: str, token: int | None = None) -> Done:
    """Async version of ``cancel_task``."""
    return await acarry_out(_cancel_task(task_id, token))


def _cancel_task(task_id: str, token: int | None) -> Flow[Done]:
    def cancel(tasks: TaskQueryFlows, clock: Clock) -> Flow[bool]:
        return (yield from tasks.cancel(clock, task_id, token))

    message = f"Task {task_id!r} is asked to stop at its next save, and does not start again until it is reset."
    return (yield from _change_task("cancel_task", "cancelled", message, task_id, token, cancel))


def reset_task(task_id: str, token: int | None = None, discard: bool = False) -> Done:
    """Let the task ``task_id``, if nobody runs it, be started again, where it stopped or, with ``discard``, from the
    beginning.

    With ``token`` only if its last run is still that one. One atomic round trip, two where it is refused; with
    ``discard`` two more, which remove what nobody reads any more. Raises ``NotFound`` and ``StateChanged`` (it is
    running, or another run has begun).
    """
    return carry_out(_reset_task(task_id, token, discard))


async def areset_task(task_id: str, token: int | None = None, discard: bool = False) -> Done:
    """Async version of ``reset_task``."""
    return await acarry_out(_reset_task(task_id, token, discard))


def _reset_task(task_id: str, token: int | None, discard: bool) -> Flow[Done]:
    def reset(tasks: TaskQueryFlows, clock: Clock) -> Flow[bool]:
        return (yield from tasks.reset(clock, task_id, token, discard=discard))

    where = "from the beginning" if discard else "where it stopped"
    message = f"Task {task_id!r} may be started again and goes on {where}."
    return (yield from _change_task("reset_task", "reset", message, task_id, token, reset))


def _change_task(
    action: str,
    word: str,
    message: str,
    task_id: str,
    token: int | None,
    change: Callable[[TaskQueryFlows, Clock], Flow[bool]],
) -> Flow[Done]:
    """``change`` the task, or tell what is there instead."""
    here = place()
    arguments.key(task_id, "task_id")
    _mark(token)

    def operation(clock: Clock) -> Flow[Done]:
        tasks = TaskQueryFlows(CheckpointFlows(here.prefix, runtime.codec()))
        if (yield from change(tasks, clock)):
            return Done(action=action, target=task_id, count=1, message=message)
        now = yield from tasks.get(clock, task_id)
        if now is None:
            raise _no_task(task_id)
        raise StateChanged(
            f"task {task_id!r} was not {word}: it is {now.status} with token {now.token} now"
            + ("" if token in (None, now.token) else f", not {token}"),
            target=task_id,
        )

    return (yield from here.act(operation))


def run_task_again(task_id: str, token: int | None = None) -> Done:
    """Dispatch the stalled task ``task_id`` by the dispatchers that ``checkpoints.register_dispatcher`` knows.

    With ``token`` only if its last run is still that one. Claiming it is atomic: of several only one dispatches it. Two
    round trips, four at most where it is refused or fails. Raises ``NotFound``, ``StateChanged``
    (it is not stalled, or was dispatched in the last minutes) and ``DispatchRefused``; ``DispatchRefused`` too if a
    dispatcher fails, chained to what it raised.
    """
    return carry_out(_run_task_again(task_id, token))


async def arun_task_again(task_id: str, token: int | None = None) -> Done:
    """Async version of ``run_task_again``."""
    return await acarry_out(_run_task_again(task_id, token))


def _run_task_again(task_id: str, token: int | None) -> Flow[Done]:
    _mark(token)
    yield from place().reach()
    with within(ACTION_LIMIT):
        try:
            done = yield from call(checkpoints.run_again, checkpoints.arun_again, task_id, expected_token=token)
        except GoscopeError:
            raise
        except Exception as error:
            kind = type(error).__name__
            message = f"task {task_id!r:.200} could not be dispatched: its dispatcher raised {kind}"
            raise DispatchRefused(message, "failed") from error
        if done:
            message = f"Task {task_id!r} was dispatched: it goes on where it stopped, as soon as a worker takes it."
            return Done(action="run_task_again", target=task_id, count=1, message=message)
        now = yield from call(checkpoints.get_task, checkpoints.aget_task, task_id)
    if now is None:
        raise _no_task(task_id)
    if now.stalled and not now.exhausted and token in (None, now.token):
        raise StateChanged(
            f"task {task_id!r} was dispatched in the last minutes, and has not started yet", target=task_id
        )
    seen = "exhausted" if now.exhausted else "stalled" if now.stalled else now.status
    raise StateChanged(f"task {task_id!r} was not dispatched: it is {seen} with token {now.token} now", target=task_id)


def cleanup_checkpoints(task_id: str, keep: int) -> Done:
    """Remove all but the newest ``keep`` (1 or more) checkpoints of the task ``task_id``.

    Not atomic; a save in between loses nothing. Three round trips at most. Raises ``NotFound``.
    """
    return carry_out(_cleanup_checkpoints(task_id, keep))


async def acleanup_checkpoints(task_id: str, keep: int) -> Done:
    """Async version of ``cleanup_checkpoints``."""
    return await acarry_out(_cleanup_checkpoints(task_id, keep))


def _cleanup_checkpoints(task_id: str, keep: int) -> Flow[Done]:
    here = place()
    arguments.key(task_id, "task_id")
    arguments.count(keep, "keep")

    def operation(clock: Clock) -> Flow[Done]:
        removed = yield from CheckpointFlows(here.prefix, runtime.codec()).cleanup(clock, task_id, keep)
        if not removed:
            there = yield from ask(CHECKPOINTS, "find_one", {"taskId": here.prefix + task_id}, {"_id": True})
            if there is None:
                raise _no_task(task_id)
        message = f"{removed} checkpoints of task {task_id!r} were removed; the newest {keep} stay."
        return Done(action="cleanup_checkpoints", target=task_id, count=removed, message=message)

    return (yield from here.act(operation))


def _no_task(task_id: str) -> NotFound:
    return NotFound(f"task {task_id!r} does not exist", target=task_id)


# Idempotency


def delete_idempotency(key: str, token: int | None = None) -> Done:
    """Delete the claim or result of ``key``, so that a repeat of the request runs again.

    With ``token`` only if it still has it. A worker that runs the request goes on, but can no longer store its result.
    One atomic round trip, two where it is refused. Raises ``NotFound`` and ``StateChanged``.
    """
    return carry_out(_delete_idempotency(key, token))


async def adelete_idempotency(key: str, token: int | None = None) -> Done:
    """Async version of ``delete_idempotency``."""
    return await acarry_out(_delete_idempotency(key, token))


def _delete_idempotency(key: str, token: int | None) -> Flow[Done]:
    here = place()
    count, now = yield from here.act(idempotency.delete_idempotency, here.prefix, arguments.key(key), _mark(token))
    if count:
        message = f"Idempotency record {key!r} was deleted: a repeat of its request runs again."
        return Done(action="delete_idempotency", target=key, count=count, message=message)
    if now is None:
        raise NotFound(f"idempotency record {key!r} does not exist (any more)", target=key)
    raise StateChanged(
        f"idempotency record {key!r} was not deleted: it is {now.state} with token {now.token} now, not {token}",
        target=key,
    )


def _mark(token: int | None) -> int | None:
    # A token that somebody wrote by hand may be negative. Whatever has it must be acted on all the same.
    return None if token is None else arguments.count(token, "token", least=-(2**63))
