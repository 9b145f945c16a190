"""One attempt at a task, as its body sees it: the state handed over, saves, loops.

Rule of this file: both colours, each a line or two over the steps that they share.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from goscope_django import runtime
from goscope_django.checkpoints import loops as task_loops
from goscope_django.checkpoints.interrupts import Interrupts
from goscope_django.checkpoints.pruning import AsyncPruning, Pruning
from goscope_django.checkpoints.state import KEEP, TaskState
from goscope_django.checkpoints.tracking import PAGE, Place, Source
from goscope_django.core.colours import finished
from goscope_django.core.flow import Command, arun, run
from goscope_django.exceptions import StoreError, TaskCancelled, TaskLost
from goscope_django.mongodb.checkpoints.tasks import TaskFlows, lost
from goscope_django.mongodb.checkpoints.values import Ending, Run, Snapshot, Started
from goscope_django.mongodb.driver.store import Store
from goscope_django.process.renewal import Renewal, now
from goscope_django.process.transactions import after_commit, in_transaction

logger = logging.getLogger("goscope.checkpoints")
T = TypeVar("T")
HEARTBEAT: Final = 5.0
"""Seconds between two reports of progress, at least."""
PRUNE_EVERY: Final = 10
"""Saves between two prunings of the history, at least."""


class Step(Command[Any]):
    """One flow for the store to run."""

    __slots__ = ("args", "flow", "kwargs")

    def __init__(self, flow: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.flow = flow
        self.args = args
        self.kwargs = kwargs


Steps = Generator[Command[Any], Any, T]


@dataclass(frozen=True, slots=True)
class Saved:
    """What a save did: ``sequence`` is the last one saved. ``cancelled``: an operator asked the task to stop."""

    sequence: int
    cancelled: bool


class TaskSteps(TaskState):
    """A task's saves and its end."""

    def __init__(self, flows: TaskFlows, run: Run, started: Started) -> None:
        super().__init__(run, started)
        self._flows = flows
        self._run = run
        self._renewal: Renewal | None = None
        self._cancelled = self._noticed = self._completing = False
        self._unpruned = 0
        self._reported = time.monotonic()

    @property
    def lost(self) -> bool:
        """Whether the lease is gone, as far as this process knows. Sends nothing."""
        return self._renewal is not None and not self._renewal.check()

    @property
    def cancelled(self) -> bool:
        """Whether an operator asked the task to stop, as of the last save. A body that leaves then is not completed."""
        self._noticed = self._noticed or self._cancelled
        return self._cancelled

    def raise_if_cancelled(self) -> None:
        """Raise ``TaskCancelled`` if an operator asked the task to stop, as of the last save."""
        if self._cancelled:
            raise TaskCancelled(f"task {self.id!r}: an operator asked it to stop", task_id=self.id)

    def complete(self, result: Any = None) -> None:
        """Say that the work is done, and what came of it; written when the block is left without an error."""
        self._completing, self.result = True, result

    def _proceed(self, *, done: bool = False) -> None:
        """Raise if a loop must not go on; with ``done`` only if what was done does not count any more."""
        if self.lost:
            raise lost(self.id)
        if not done:
            self.raise_if_cancelled()

    def _advance(self, place: Place, key: Any = None, *, ended: bool = False) -> None:
        """One more item of ``place`` is done, or with ``ended`` all. A rollback of its transaction takes it back."""
        if in_transaction() and self._before is None:
            self._before = self._stand()
            after_commit(self._committed, self._rolled_back)
        if ended:
            place.ended = self._dirty = True
        else:
            self._advanced(place, key)

    def _committed(self) -> None:
        self._before = None

    def _held(self) -> None:
        if self.completed:
            raise TaskLost(
                f"task {self.id!r}: it is completed, so there is nothing to save; restart=True runs it again",
                task_id=self.id,
            )
        if self.lost:
            raise lost(self.id)

    def _saving(self, snapshot: Snapshot | None) -> Steps[Saved]:
        self._held()
        snapshot, sent = snapshot or self._snapshot(), now()
        try:
            cancelled = yield Step(self._flows.save, self._run, self.token, snapshot, cancelled=self._cancelled)
        except TaskLost:
            self._lose()
            raise
        self._wrote(cancelled, sent)
        self.sequence = snapshot.sequence
        # What it left out, for a transaction is open or went on behind it, is still to be saved.
        self._dirty = self._dirty and list(snapshot.places) != self._stored_places(uncommitted=True)
        self._unpruned += 1
        return Saved(snapshot.sequence, self._cancelled)

    def _reporting(self) -> Steps[None]:
        if self.completed or time.monotonic() - self._reported < HEARTBEAT:
            return
        self._held()
        sent = now()
        try:
            figures = self._snapshot(numbered=False)
            cancelled = yield Step(self._flows.report, self._run, figures, cancelled=self._cancelled)
        except TaskLost:
            self._lose()
            raise
        self._wrote(cancelled, sent)

    def _pruning_while_held(self) -> Steps[None]:
        if not self.lost:
            yield from self._pruning()

    @property
    def _prunable(self) -> bool:
        return self._run.keep is not None and self._unpruned >= max(PRUNE_EVERY, self._run.keep)

    def _pruning(self) -> Steps[None]:
        if self._run.keep is not None and self._unpruned:
            self._unpruned = 0
            with self._logged("the history could not be pruned"):
                yield Step(self._flows.prune, self._run, self.sequence - self._run.keep)

    def _lose(self) -> None:
        if self._renewal is not None:
            self._renewal.lose()

    def _wrote(self, cancelled: bool, sent: float) -> None:
        self._reported = time.monotonic()
        self._cancelled = cancelled
        if self._renewal is not None:
            self._renewal.extended(sent, self._run.lease)

    @contextlib.contextmanager
    def _logged(self, what: str) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            logger.warning("task %r: %s: %s", self.id, what, error)

    def _ending(self, error: BaseException | None) -> Ending:
        if error is None:
            if self._noticed and not self._completing:
                return Ending("cancelled")
            return Ending("completed", self.result)
        if isinstance(error, TaskCancelled) and error.task_id == self.id:
            return Ending("cancelled")
        if isinstance(error, Exception) and not isinstance(error, asyncio.CancelledError):
            return Ending("failed", error=f"{type(error).__name__}: {error}"[:500])
        return Ending("interrupted")

    def _last_save(self, error: BaseException | None) -> bool:
        """Whether the end should save what was done since the last save."""
        return self._dirty and not self._before and not in_transaction() and (error is None or self.consistent)

    def _over(self, error: BaseException | None) -> bool:
        """Whether there is nothing to be written any more. Raises ``TaskLost`` if the body did not notice its loss."""
        if self._renewal is None or self.lost:
            if error is None and not self.completed:
                raise lost(self.id)
            return True
        self._renewal.stop()
        return isinstance(error, TaskLost) and error.task_id == self.id

    def _finishing(self, ending: Ending, error: BaseException | None, *, save: bool) -> Steps[None]:
        """Let the task go. An error of the body is never hidden by one that comes up here."""
        if self._over(error):
            return
        snapshot = self._snapshot()
        try:
            yield Step(self._flows.finish, self._run, self.token, ending, snapshot, save=save)
        except (StoreError, TaskLost) as failure:
            if error is None:
                raise
            logger.warning("task %r: that it is %s could not be noted: %s", self.id, ending.status, failure)
            return
        except Exception as failure:
            # The state or the result can't be stored. Nothing was sent.
            told = self._ending(failure)
            with self._logged("its failure could not be noted"):
                yield Step(self._flows.finish, self._run, self.token, told, snapshot, save=False)
            self._tell(told, failure)
            if error is None:
                raise
            return
        if save:
            self.sequence, self._dirty = snapshot.sequence, False
            self._unpruned += 1
        self._tell(ending, error)
        yield from self._pruning()

    def _tell(self, ending: Ending, error: BaseException | None) -> None:
        details: dict[str, Any] = {"task_id": self.id, "attempt": self.attempt}
        if ending.status == "failed":
            details["error"] = error
        runtime.emit(f"task_{ending.status}", **details)


__all__ = ["Saved", "Task"]


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
