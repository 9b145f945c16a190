"""One kind of thing at a time: pages of locks, circuits and tasks, and one of them in full.

Rule of this file: each function reads only, within ``ACTION_LIMIT``, with six commands at most, beside the one that
makes sure that the server answers.
"""

from __future__ import annotations

from datetime import UTC, datetime

from goscope_django import runtime
from goscope_django.core import arguments
from goscope_django.exceptions import InvalidValue, NotFound
from goscope_django.mongodb import overview
from goscope_django.mongodb.checkpoints.history import CheckpointFlows
from goscope_django.mongodb.finding import Wanted
from goscope_django.operations import convert
from goscope_django.operations.place import Place, place
from goscope_django.operations.values import (
    SECTION_STATES,
    CheckpointItem,
    CircuitItem,
    Circuits,
    Idempotency,
    Locks,
    TaskItem,
    Tasks,
    copied,
)


def list_locks(limit: int = 100, after: str | None = None, search: str = "") -> Locks:
    """Held locks by key: at most ``limit``, behind the key ``after``, whose key or owner contains ``search``.

    Three round trips at most.
    """
    here, most, text = place(), arguments.count(limit, "limit"), arguments.key(search, "search")
    return convert.locks(here.run(overview.locks, here.prefix, Wanted(most, after, text)), _now())


def list_circuits(limit: int = 100, after: str | None = None, search: str = "", state: str = "") -> Circuits:
    """Circuits by name: at most ``limit``, behind the name ``after``, whose name contains ``search``, and that are in
    ``state``, one of ``SECTION_STATES["circuits"]``.

    Four round trips at most.
    """
    here, wanted = place(), _wanted("circuits", limit, after, search, state)
    return convert.circuits(here.run(overview.circuits, here.prefix, wanted), _now())


def get_circuit(name: str) -> CircuitItem:
    """The circuit ``name``. One round trip. Raises ``NotFound`` and ``StoreError``."""
    here = place()
    found = here.run(overview.circuit, here.prefix, arguments.key(name, "name"))
    if found is None:
        raise NotFound(f"circuit {name!r} does not exist: nothing was ever recorded under that name", target=name)
    return convert.circuit(*found)


def list_tasks(limit: int = 100, after: str | None = None, search: str = "", state: str = "") -> Tasks:
    """Tasks by id: at most ``limit``, behind the id ``after``, whose id or owner contains ``search``, and that are in
    ``state``, one of ``SECTION_STATES["tasks"]``.

    Four round trips at most.
    """
    here, wanted = place(), _wanted("tasks", limit, after, search, state)
    return convert.tasks(here.run(task_pages(here).page, wanted), _now())


def get_task(task_id: str) -> TaskItem:
    """The task ``task_id``. Two round trips. Raises ``NotFound`` and ``StoreError``."""
    here = place()
    found = here.run(task_pages(here).show, arguments.key(task_id, "task_id"))
    if found is None:
        raise NotFound(f"task {task_id!r} does not exist", target=task_id)
    return convert.task(*found)


def list_idempotency(limit: int = 100, after: str | None = None, search: str = "") -> Idempotency:
    """Claims, then results, by key: at most ``limit``, behind the cursor ``after``, whose key or holder contains
    ``search``; never what is stored. Six round trips at most."""
    here, most, text = place(), arguments.count(limit, "limit"), arguments.key(search, "search")
    return convert.idempotency(here.run(overview.idempotency, here.prefix, Wanted(most, after, text)), _now())


def list_checkpoints(task_id: str, limit: int = 100) -> tuple[CheckpointItem, ...]:
    """The newest checkpoints of the task ``task_id``, at most ``limit``, without what is stored in them.

    One round trip.
    """
    here, most = place(), arguments.count(limit, "limit")
    found = here.run(overview.checkpoints, here.prefix, arguments.key(task_id, "task_id"), most)
    return tuple(copied(CheckpointItem, one) for one in found)


def _wanted(section: str, limit: int, after: str | None, search: str, state: str) -> Wanted:
    known = SECTION_STATES[section]
    if state not in ("", *known):
        raise InvalidValue(f"state={state!r}: one of {', '.join(known)} is needed")
    return Wanted(arguments.count(limit, "limit"), after, arguments.key(search, "search"), state)


def task_pages(here: Place) -> overview.TaskPages:
    """The flows that read tasks."""
    return overview.TaskPages(CheckpointFlows(here.prefix, runtime.codec()))


def _now() -> datetime:
    # A page brings the server's time along. An empty one has nothing with an age.
    return datetime.now(UTC)
