"""Sync and async tasks from tests that are written once, and what their stored documents look like."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from django.test import override_settings

from goscope_django import checkpoints, runtime, signals
from goscope_django.checkpoints import Task, checkpointed

SIGNALS = ("task_started", "task_resumed", "task_completed", "task_failed", "task_lost", "checkpoint_saved")
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


class Colour:
    """What a task's body does, sync or async."""

    def __init__(self, name: str, runner: asyncio.Runner) -> None:
        self.name = name
        self._runner = runner

    @contextmanager
    def task(self, task_id: str, **options: Any) -> Iterator[Task]:
        """``with checkpointed(...)``, or ``async with``."""
        block = checkpointed(task_id, **options)
        if self.name == "sync":
            with block as task:
                yield task
            return
        task = self._runner.run(block.__aenter__())
        try:
            yield task
        except BaseException as error:
            self._runner.run(block.__aexit__(type(error), error, None))
            raise
        else:
            self._runner.run(block.__aexit__(None, None, None))

    def save(self, task: Task, *args: Any, **kwargs: Any) -> checkpoints.Saved:
        return task.save(*args, **kwargs) if self.name == "sync" else self._runner.run(task.asave(*args, **kwargs))

    def idle(self, seconds: float) -> None:
        """Do nothing, where the task's own thread or event loop goes on."""
        if self.name == "sync":
            time.sleep(seconds)
        else:
            self._runner.run(asyncio.sleep(seconds))

    def wait(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Idle until ``condition()``."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it took too long"
            self.idle(0.02)

    def report(self, task: Task, **kwargs: Any) -> None:
        if self.name == "sync":
            task.report(**kwargs)
        else:
            self._runner.run(task.areport(**kwargs))

    def track(self, task: Task, items: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        if self.name == "sync":
            yield from task.track(items, *args, **kwargs)
            return
        loop = task.atrack(items, *args, **kwargs)
        end = object()

        async def following() -> Any:
            return await anext(loop, end)

        while (item := self._runner.run(following())) is not end:
            yield item

    def operate(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """``checkpoints.<name>(...)``, or its twin."""
        if self.name == "sync":
            return getattr(checkpoints, name)(*args, **kwargs)
        return self._runner.run(getattr(checkpoints, f"a{name}")(*args, **kwargs))


@contextmanager
def colour(name: str) -> Iterator[Colour]:
    with asyncio.Runner() as runner:
        yield Colour(name, runner)


@contextmanager
def own_store(url: str, **settings: Any) -> Iterator[str]:
    """Settings for ``url`` with a key prefix of the test's own, which is yielded."""
    prefix = f"{uuid.uuid4().hex[:8]}:"
    with override_settings(GOSCOPE={"TEST": {"URL": url, "KEY_PREFIX": prefix}, **settings}):
        if url.startswith("mongodb"):
            runtime.adapter().connect()
        yield prefix


def collection(name: str) -> Any:
    """A raw collection, of either store."""
    return runtime.connection().sync().database[name]


def head(task_id: str) -> dict[str, Any]:
    """The task's raw head."""
    found: dict[str, Any] = collection("go_goscope_tasks").find_one({"_id": runtime.adapter().key_prefix + task_id})
    return found


def change(task_id: str, **fields: Any) -> None:
    """Change the task's head behind everybody's back."""
    collection("go_goscope_tasks").update_one({"_id": runtime.adapter().key_prefix + task_id}, {"$set": fields})


def end_lease(task_id: str) -> None:
    """Let the lease have ended, as if the worker had been killed."""
    change(task_id, leaseUntil=datetime.now(UTC) - timedelta(hours=1))


def history(task_id: str) -> list[int]:
    """The sequences in the task's history."""
    return [one.sequence for one in runtime.adapter().checkpoint.list(task_id)]


@contextmanager
def heard() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The signals of tasks that are sent in the block."""
    received: list[tuple[str, dict[str, Any]]] = []

    def receiver_of(name: str) -> Any:
        return lambda sender, signal, **details: received.append((name, details))

    receivers = [(signals.SIGNALS[name], receiver_of(name)) for name in SIGNALS]
    for signal, receiver in receivers:
        signal.connect(receiver, weak=False)
    try:
        yield received
    finally:
        for signal, receiver in receivers:
            signal.disconnect(receiver)


def die(block: Any) -> None:
    """Abandon an entered block as a killed process does: nothing is written, and nobody renews the lease."""
    task, _ = block._entered
    task._renewal.stop()
    task._interrupts.leave()
    task._interrupts.restore(None)
