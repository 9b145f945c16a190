"""What an operator does to locks, circuits, tasks and idempotency records; each in both colours.

Rule of this file: an action takes the mark of what the operator saw and hands it to the flow, whose filter has it.
Nothing is read first and written then.
"""

from __future__ import annotations

from goscope_django import circuits, runtime
from goscope_django.contracts import IdempotencyInfo, LockInfo
from goscope_django.core import arguments
from goscope_django.core.flow import Flow, ask
from goscope_django.exceptions import NotFound, StateChanged
from goscope_django.mongodb.checkpoints.history import CHECKPOINTS, CheckpointFlows
from goscope_django.mongodb.checkpoints.queries import TaskQueryFlows
from goscope_django.mongodb.circuits.table import CircuitInfo, Command
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.driver.limits import within
from goscope_django.mongodb.idempotency.flows import delete_idempotency as remove_idempotency
from goscope_django.mongodb.locks.flows import LockFlows
from goscope_django.mongodb.locks.flows import release_lock as remove_lock
from goscope_django.operations.place import ACTION_LIMIT, Place, place
from goscope_django.operations.values import Done


def _mark(token: int | None) -> int | None:
    # A token that somebody wrote by hand may be negative, and must be acted on all the same.
    return None if token is None else arguments.count(token, "token", least=-(2**63))


# Locks


def _released(key: str, token: int | None, found: tuple[bool, LockInfo | None]) -> Done:
    done, now = found
    if done:
        return Done(action="release_lock", target=key, count=1, message=f"Lock {key!r} was released.")
    if now is None:
        raise NotFound(f"lock {key!r} is not held (any more)", target=key)
    raise StateChanged(
        f"lock {key!r} was not released: it is held by {now.owner!r} with token {now.token} now"
        + ("" if token is None else f", not with token {token}"),
        target=key,
    )


def release_lock(key: str, token: int | None = None, owner: str | None = None) -> Done:
    """Take the lock away from its holder, if it is still the acquisition with ``token`` (and ``owner``, for locks of
    Node, which have no token). The holder learns of it at its next renewal. Raises ``NotFound``, ``StateChanged``. One
    command."""
    here = place()
    flows = LockFlows(here.prefix)
    return _released(key, token, here.run(remove_lock, flows, arguments.key(key), _mark(token), owner))


async def arelease_lock(key: str, token: int | None = None, owner: str | None = None) -> Done:
    """Asynchronous twin of ``release_lock``."""
    here = place()
    flows = LockFlows(here.prefix)
    return _released(key, token, await here.arun(remove_lock, flows, arguments.key(key), _mark(token), owner))


# Circuits

_SAID: dict[Command, str] = {
    "force_open": "is forced open until it is reset",
    "force_close": "is forced closed until it is reset",
    "reset": "was reset: closed, with no failures, and no longer forced",
}


def _commanded(command: Command, name: str, generation: int | None, now: CircuitInfo | None, done: bool) -> Done:
    if done:
        return Done(action=command, target=name, count=1, message=f"Circuit {name!r} {_SAID[command]}.")
    if now is None:
        raise NotFound(f"circuit {name!r} does not exist: nothing was ever recorded under that name", target=name)
    raise StateChanged(
        f"circuit {name!r} was left as it is: it has moved, and is {now.state} in generation {now.generation} now, "
        f"not {generation}",
        target=name,
    )


def _circuit(command: Command, name: str, generation: int | None, reason: str) -> Done:
    act = {"force_open": circuits.force_open, "force_close": circuits.force_close, "reset": circuits.reset}[command]
    place().reach()
    with within(ACTION_LIMIT):
        found = act(name, reason, expected_generation=generation)
        now = circuits.get_circuit(name) if found is None else found
    return _commanded(command, name, generation, now, found is not None)


async def _acircuit(command: Command, name: str, generation: int | None, reason: str) -> Done:
    act = {"force_open": circuits.aforce_open, "force_close": circuits.aforce_close, "reset": circuits.areset}[command]
    await place().areach()
    with within(ACTION_LIMIT):
        found = await act(name, reason, expected_generation=generation)
        now = await circuits.aget_circuit(name) if found is None else found
    return _commanded(command, name, generation, now, found is not None)


def open_circuit(name: str, generation: int | None = None, reason: str = "") -> Done:
    """Force the circuit open for the whole fleet until it is reset, if it is still in ``generation``. It is made if it
    does not exist. Raises ``StateChanged``. One command; every process sees it within about a second."""
    return _circuit("force_open", name, generation, reason)


async def aopen_circuit(name: str, generation: int | None = None, reason: str = "") -> Done:
    """Asynchronous twin of ``open_circuit``."""
    return await _acircuit("force_open", name, generation, reason)


def close_circuit(name: str, generation: int | None = None, reason: str = "") -> Done:
    """Force the circuit closed for the whole fleet until it is reset. See ``open_circuit``."""
    return _circuit("force_close", name, generation, reason)


async def aclose_circuit(name: str, generation: int | None = None, reason: str = "") -> Done:
    """Asynchronous twin of ``close_circuit``."""
    return await _acircuit("force_close", name, generation, reason)


def reset_circuit(name: str, generation: int | None = None, reason: str = "") -> Done:
    """Close the circuit, forget its failures and lift what forces it. Raises ``NotFound``, ``StateChanged``. One
    command."""
    return _circuit("reset", name, generation, reason)


async def areset_circuit(name: str, generation: int | None = None, reason: str = "") -> Done:
    """Asynchronous twin of ``reset_circuit``."""
    return await _acircuit("reset", name, generation, reason)


# Tasks


def _flows(here: Place) -> TaskQueryFlows:
    return TaskQueryFlows(CheckpointFlows(here.prefix, runtime.codec()))


def _missing(task_id: str) -> NotFound:
    return NotFound(f"task {task_id!r} does not exist", target=task_id)


def _changed(task_id: str, what: str, status: str, token: int, seen: int | None) -> StateChanged:
    return StateChanged(
        f"task {task_id!r} was not {what}: it is {status} with token {token} now"
        + ("" if seen is None or seen == token else f", not {seen}"),
        target=task_id,
    )


def _delete(clock: Clock, here: Place, task_id: str, token: int | None) -> Flow[Done]:
    flows = _flows(here)
    if (yield from flows.delete(clock, task_id, token, force=False)):
        message = f"Task {task_id!r} and its checkpoints were deleted."
        return Done(action="delete_checkpoint", target=task_id, count=1, message=message)
    now = yield from flows.get(clock, task_id)
    if now is None:
        raise _missing(task_id)
    raise _changed(task_id, "deleted", now.status, now.token, token)


def _cancel(clock: Clock, here: Place, task_id: str, token: int | None) -> Flow[Done]:
    flows = _flows(here)
    if (yield from flows.cancel(clock, task_id, token)):
        message = f"Task {task_id!r} is asked to stop at its next save, and does not start again until it is reset."
        return Done(action="cancel_task", target=task_id, count=1, message=message)
    now = yield from flows.get(clock, task_id)
    if now is None:
        raise _missing(task_id)
    raise _changed(task_id, "cancelled", now.status, now.token, token)


def _reset(clock: Clock, here: Place, task_id: str, token: int | None, discard: bool) -> Flow[Done]:
    flows = _flows(here)
    if (yield from flows.reset(clock, task_id, token, discard=discard)):
        where = "from the beginning" if discard else "where it stopped"
        message = f"Task {task_id!r} may be started again and goes on {where}."
        return Done(action="reset_task", target=task_id, count=1, message=message)
    now = yield from flows.get(clock, task_id)
    if now is None:
        raise _missing(task_id)
    raise _changed(task_id, "reset", now.status, now.token, token)


def _cleanup(clock: Clock, here: Place, task_id: str, keep: int) -> Flow[Done]:
    history = CheckpointFlows(here.prefix, runtime.codec())
    removed = yield from history.cleanup(clock, task_id, keep)
    if not removed:
        there = yield from ask(CHECKPOINTS, "find_one", {"taskId": here.prefix + task_id}, {"_id": True})
        if there is None:
            raise _missing(task_id)
    message = f"{removed} checkpoints of task {task_id!r} were removed; the newest {keep} stay."
    return Done(action="cleanup_checkpoints", target=task_id, count=removed, message=message)


def delete_checkpoint(task_id: str, token: int | None = None) -> Done:
    """Delete the task with all its checkpoints, if nobody runs it and its last run is the one with ``token``.

    Raises ``NotFound``, ``StateChanged`` (it is running, or another run has begun). Three commands at most.
    """
    here = place()
    return here.run(_delete, here, arguments.key(task_id, "task_id"), _mark(token))


async def adelete_checkpoint(task_id: str, token: int | None = None) -> Done:
    """Asynchronous twin of ``delete_checkpoint``."""
    here = place()
    return await here.arun(_delete, here, arguments.key(task_id, "task_id"), _mark(token))


def cancel_task(task_id: str, token: int | None = None) -> Done:
    """Ask the task's runner to stop at its next save; where nobody runs it, it is cancelled at once.

    Raises ``NotFound``, ``StateChanged`` (it is finished, or another run has begun). One command.
    """
    here = place()
    return here.run(_cancel, here, arguments.key(task_id, "task_id"), _mark(token))


async def acancel_task(task_id: str, token: int | None = None) -> Done:
    """Asynchronous twin of ``cancel_task``."""
    here = place()
    return await here.arun(_cancel, here, arguments.key(task_id, "task_id"), _mark(token))


def reset_task(task_id: str, token: int | None = None, discard: bool = False) -> Done:
    """Let a task that nobody runs be started again, where it stopped or, with ``discard``, from the beginning.

    Raises ``NotFound``, ``StateChanged`` (it is running, or another run has begun). Two commands at most.
    """
    here = place()
    return here.run(_reset, here, arguments.key(task_id, "task_id"), _mark(token), discard)


async def areset_task(task_id: str, token: int | None = None, discard: bool = False) -> Done:
    """Asynchronous twin of ``reset_task``."""
    here = place()
    return await here.arun(_reset, here, arguments.key(task_id, "task_id"), _mark(token), discard)


def cleanup_checkpoints(task_id: str, keep: int) -> Done:
    """Remove all but the newest ``keep`` (1 or more) checkpoints of the task. Raises ``NotFound``. Three commands at
    most."""
    here = place()
    return here.run(_cleanup, here, arguments.key(task_id, "task_id"), arguments.count(keep, "keep"))


async def acleanup_checkpoints(task_id: str, keep: int) -> Done:
    """Asynchronous twin of ``cleanup_checkpoints``."""
    here = place()
    return await here.arun(_cleanup, here, arguments.key(task_id, "task_id"), arguments.count(keep, "keep"))


# Idempotency


def _forgotten(key: str, token: int | None, found: tuple[int, IdempotencyInfo | None]) -> Done:
    count, now = found
    if count:
        message = f"Idempotency record {key!r} was deleted: a repeat of its request runs again."
        return Done(action="delete_idempotency", target=key, count=count, message=message)
    if now is None:
        raise NotFound(f"idempotency record {key!r} does not exist (any more)", target=key)
    raise StateChanged(
        f"idempotency record {key!r} was not deleted: it is {now.state} with token {now.token} now, not {token}",
        target=key,
    )


def delete_idempotency(key: str, token: int | None = None) -> Done:
    """Forget the claim or result, so that a repeat runs again, if it still has ``token``.

    A worker that is on it goes on, but can no longer store its result. Raises ``NotFound``, ``StateChanged``. One
    command.
    """
    here = place()
    return _forgotten(key, token, here.run(remove_idempotency, here.prefix, arguments.key(key), _mark(token)))


async def adelete_idempotency(key: str, token: int | None = None) -> Done:
    """Asynchronous twin of ``delete_idempotency``."""
    here = place()
    found = await here.arun(remove_idempotency, here.prefix, arguments.key(key), _mark(token))
    return _forgotten(key, token, found)
