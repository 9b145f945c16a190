"""One attempt at a task, as its body sees it: the state handed over, saves, loops.

Rule of this file: both colours, each a line or two over the steps that they share.
"""

from __future__ import annotations

import asyncio
import copy
import threading
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeVar

from goscope_django import task_loops
from goscope_django.cancellation import finished
from goscope_django.interrupts import Interrupts
from goscope_django.mongodb.flow import arun, run
from goscope_django.mongodb.store import Store
from goscope_django.mongodb.task_values import Ending, Run, Snapshot, Started
from goscope_django.mongodb.tasks import TaskFlows
from goscope_django.task_pruning import AsyncPruning, Pruning
from goscope_django.task_state import KEEP
from goscope_django.task_steps import Saved, Steps, TaskSteps
from goscope_django.tracking import PAGE, Source
from goscope_django.transactions import after_commit, in_transaction

__all__ = ["Saved", "Task"]

T = TypeVar("T")


class Task(TaskSteps):
    """A task that is held, or that is completed already (``completed``; then there is nothing to do).

    ``data`` is the last saved state (``None`` at first), ``resumed`` whether there was one, ``attempt`` counts the
    starts, ``token`` is the fencing token, ``sequence`` the number of the last save, ``result`` what a completed task
    came to. ``progress`` (0 to 100), ``done``, ``total``, ``rate`` (items per second) and ``estimated_time_remaining``
    (seconds) say how it goes. Methods that reach the store have ``a`` twins.
    """

    def __init__(self, store: Store, flows: TaskFlows, run: Run, started: Started, interval: float) -> None:
        super().__init__(flows, run, started)
        self._store = store
        self._interval = interval
        self._interrupts = Interrupts()
        # Not held: a loop that is left with ``break`` is closed there and then, and its transaction with it.
        self._loops: list[weakref.ref[Any]] = []
        self._lock = threading.RLock()
        self._alock = asyncio.Lock()
        self._pruner = Pruning(lambda: self._do(self._pruning_while_held()))
        self._apruner = AsyncPruning(lambda: self._ado(self._pruning_while_held()))

    def __repr__(self) -> str:
        return f"<task {self.id!r}, attempt {self.attempt}, sequence {self.sequence}, {self.progress:g} %>"

    def _do(self, steps: Steps[T]) -> T:
        store = self._store
        with self._lock:
            return run(steps, lambda step: store.run(step.flow, *step.args, **step.kwargs))  # type: ignore[attr-defined]

    async def _ado(self, steps: Steps[T]) -> T:
        store = self._store
        async with self._alock:
            return await arun(steps, lambda step: store.arun(step.flow, *step.args, **step.kwargs))  # type: ignore[attr-defined]

    def save(
        self,
        data: Any = KEEP,
        *,
        progress: float | None = None,
        done: int | None = None,
        total: int | None = None,
        on_commit: bool = False,
    ) -> Saved:
        """Save ``data`` (else what ``task.data`` is) and the places of tracked loops. Two commands; renews the lease.

        ``progress`` is 0 to 100; ``done`` of ``total`` items give it too. With ``on_commit=True`` inside ``atomic()``
        it waits for the commit, and a rollback drops it; without, places that a transaction of this thread may still
        take back are saved as they were before it. Raises ``TaskLost`` if this runner does not hold the task any
        more, ``CheckpointTooLarge`` before anything is sent. About every tenth has the history pruned a moment later.
        """
        before = self._data
        self._accept(data, progress, done, total)
        if on_commit and in_transaction():
            # Copies: what the rows being committed account for is the state of now.
            kept, places = copy.deepcopy(self._data), self._stored_places(uncommitted=True)
            over = self._dropping(before)

            def committed() -> None:
                over(True)
                self._save(self._snapshot(kept, places))

            after_commit(committed, lambda: over(False))
            return Saved(self.sequence, self._cancelled)
        return self._save()

    def _save(self, snapshot: Snapshot | None = None) -> Saved:
        with self._interrupts.deferred():
            saved = self._do(self._saving(snapshot))
            if self._prunable:
                self._pruner.soon()
            return saved

    async def _asave(self) -> Saved:
        saved = await self._ado(self._saving(None))
        if self._prunable:
            self._apruner.soon()
        return saved

    async def asave(
        self,
        data: Any = KEEP,
        *,
        progress: float | None = None,
        done: int | None = None,
        total: int | None = None,
        on_commit: bool = False,
    ) -> Saved:
        """Asynchronous twin of ``save``. A coroutine has no ``atomic()``, so there ``on_commit`` saves at once."""
        self._accept(data, progress, done, total)
        return await self._asave()

    def report(self, *, progress: float | None = None, done: int | None = None, total: int | None = None) -> None:
        """Tell how far it is. Written with the next save, and by itself (one command) at most every five seconds."""
        self._accept(KEEP, progress, done, total)
        with self._interrupts.deferred():
            self._do(self._reporting())

    async def areport(
        self, *, progress: float | None = None, done: int | None = None, total: int | None = None
    ) -> None:
        """Asynchronous twin of ``report``."""
        self._accept(KEEP, progress, done, total)
        await self._ado(self._reporting())

    def track(
        self,
        items: Iterable[T] | Callable[[Any], Iterable[T]],
        total: int | None = None,
        *,
        key: str | Callable[[Any], Any] | None = None,
        every: int | None = None,
        interval: float | None = None,
        name: str = "",
        atomic: bool | str = False,
        page: int = PAGE,
    ) -> Iterator[T]:
        """The items that are not done yet, one by one; where the loop stands is saved as it goes.

        Saves after ``every`` items or ``interval`` seconds (the task's if neither is said), and at the end. An item is
        done when the next one is asked for; items since the last save are repeated after a crash. A queryset goes on
        behind the last row by ``key`` (a unique field; ``pk`` if the queryset is not ordered), ``page`` rows a query;
        other iterables are counted, and must give the same items in the same order again. With functions for ``items``
        and ``key``, ``items(last key or None)`` gives what comes behind. A second loop needs a ``name``.

        ``atomic=True`` (or a database alias) processes ``every`` items in a transaction and saves after its commit.
        Raises ``TaskLost`` or ``TaskCancelled`` instead of giving the next item. Inside a transaction that somebody
        else opened nothing is saved until it is over.
        """
        source, policy = Source(items, key, total, page), task_loops.Policy(every, interval, self._interval)
        loop: Iterator[T]
        if atomic is False:
            loop = task_loops.loop(self, source, self._begin(name), policy)
        else:
            using = task_loops.database(atomic, items)
            loop = task_loops.batches(self, source, self._begin(name), policy.every or task_loops.BATCH, using)
        self._loops.append(weakref.ref(loop))
        return loop

    def atrack(
        self,
        items: AsyncIterable[T] | Iterable[T] | Callable[[Any], AsyncIterable[T] | Iterable[T]],
        total: int | None = None,
        *,
        key: str | Callable[[Any], Any] | None = None,
        every: int | None = None,
        interval: float | None = None,
        name: str = "",
        page: int = PAGE,
    ) -> AsyncIterator[T]:
        """Asynchronous twin of ``track``, for asynchronous and ordinary iterables and querysets.

        Without ``atomic``: Django's transactions are synchronous.
        """
        source, policy = Source(items, key, total, page), task_loops.Policy(every, interval, self._interval)
        loop = task_loops.aloop(self, source, self._begin(name), policy)
        self._loops.append(weakref.ref(loop))
        return loop

    def _autosave(self) -> None:
        if not in_transaction():
            self._save()

    async def _aautosave(self) -> None:
        if not in_transaction():
            await self._asave()

    def _finish(self, ending: Ending, error: BaseException | None = None, *, save: bool) -> None:
        self._do(self._finishing(ending, error, save=save))

    def _leave(self, error: BaseException | None) -> None:
        """The block is left with ``error``. Inside ``atomic()`` its completion waits for the commit."""
        self._interrupts.leave()
        self._pruner.stop()
        try:
            for loop in filter(None, [reference() for reference in self._loops]):
                loop.close()
            ending, undone = self._ending(error), Ending("failed", error="the transaction was rolled back")
            if error is not None or not after_commit(
                lambda: self._finish(ending, save=self._last_save(None)), lambda: self._finish(undone, save=False)
            ):
                self._finish(ending, error, save=self._last_save(error))
        finally:
            self._interrupts.restore(error)

    async def _aend(self, error: BaseException | None) -> None:
        await self._apruner.stop()
        await self._ado(self._finishing(self._ending(error), error, save=self._last_save(error)))

    async def _aleave(self, error: BaseException | None) -> None:
        """Asynchronous twin of ``_leave``."""
        self._interrupts.leave()
        try:
            for loop in filter(None, [reference() for reference in self._loops]):
                await loop.aclose()
            await finished(self._aend(error))
        finally:
            self._interrupts.restore(error)
