"""One kind of thing at a time: pages of locks, circuits and tasks, and a single one in full.

Each function is two commands at most, within ``ACTION_LIMIT``, and reads only.
"""

from __future__ import annotations

from datetime import UTC, datetime

from goscope_django import runtime
from goscope_django.core import arguments
from goscope_django.exceptions import NotFound
from goscope_django.mongodb import overview
from goscope_django.mongodb.checkpoints.history import CheckpointFlows
from goscope_django.operations import convert
from goscope_django.operations.place import place
from goscope_django.operations.values import CheckpointItem, CircuitItem, Circuits, Locks, TaskItem, Tasks


def _now() -> datetime:
    # Pages bring the server's time along; where a page is empty, nothing has an age.
    return datetime.now(UTC)


def list_locks(limit: int = 100, after: str | None = None, search: str = "") -> Locks:
    """Held locks by key, behind ``after``, whose key or owner contains ``search``. Raises ``StoreError``."""
    here = place()
    page = here.run(
        overview.locks, here.prefix, arguments.count(limit, "limit"), after, arguments.key(search, "search")
    )
    return convert.locks(page, _now())


def list_circuits(limit: int = 100, after: str | None = None, search: str = "") -> Circuits:
    """Circuits by name, behind ``after``, whose name contains ``search``. Raises ``StoreError``."""
    here, text = place(), arguments.key(search, "search")
    page = here.run(overview.circuits, here.prefix, arguments.count(limit, "limit"), after, text)
    return convert.circuits(page, _now())


def get_circuit(name: str) -> CircuitItem:
    """The circuit. Raises ``NotFound``, ``StoreError``."""
    here = place()
    found = here.run(overview.circuit, here.prefix, arguments.key(name, "name"))
    if found is None:
        raise NotFound(f"circuit {name!r} does not exist: nothing was ever recorded under that name", target=name)
    return convert.circuit(*found)


def list_tasks(limit: int = 100, after: str | None = None, search: str = "") -> Tasks:
    """Tasks by id, behind ``after``, whose id or owner contains ``search``. Raises ``StoreError``."""
    here, text = place(), arguments.key(search, "search")
    flows = overview.TaskPages(CheckpointFlows(here.prefix, runtime.codec()))
    return convert.tasks(here.run(flows.page, arguments.count(limit, "limit"), after, text), _now())


def get_task(task_id: str) -> TaskItem:
    """The task. Raises ``NotFound``, ``StoreError``."""
    here = place()
    flows = overview.TaskPages(CheckpointFlows(here.prefix, runtime.codec()))
    found = here.run(flows.show, arguments.key(task_id, "task_id"))
    if found is None:
        raise NotFound(f"task {task_id!r} does not exist", target=task_id)
    info, now = found
    return convert.task(info, now)


def list_checkpoints(task_id: str, limit: int = 100) -> tuple[CheckpointItem, ...]:
    """The newest checkpoints of the task, without what is stored. Raises ``StoreError``."""
    here = place()
    found = here.run(
        overview.checkpoints, here.prefix, arguments.key(task_id, "task_id"), arguments.count(limit, "limit")
    )
    return tuple(
        CheckpointItem(id=one.id, sequence=one.sequence, timestamp=one.timestamp, progress=one.progress)
        for one in found
    )
