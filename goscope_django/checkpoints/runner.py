"""What holds a task in this process: it keeps the lease, saves, reports and ends. The body sees it as a ``Task``.

Rules of this file:

* Whatever decides is a flow, written once for sync and async. One flow of a task runs at a time.
* An error of the body is never hidden by one that comes up while its end is written.
* A cancelled asyncio task writes the end of its task all the same.
* An end that could not be written for want of the server is tried again in the background until the lease ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from django.db.transaction import TransactionManagementError

from goscope_django import conf, runtime
from goscope_django.checkpoints.interrupts import Interrupts
from goscope_django.checkpoints.pruning import AsyncPruning, Pruning
from goscope_django.checkpoints.state import TaskState
from goscope_django.conf import BadSettings
from goscope_django.core.flow import Flow, acarry_out, call, carry_out, invoke, last_call, run
from goscope_django.core.reasons import reason, trace
from goscope_django.exceptions import ConfigurationError, OutcomeUnknown, StoreError, TaskCancelled, TaskLost
from goscope_django.mongodb.checkpoints.tasks import LEASE, TASKS, TaskFlows, lost
from goscope_django.mongodb.checkpoints.values import Ending, Run, Snapshot, Started
from goscope_django.mongodb.driver.execute import SyncExecutor
from goscope_django.mongodb.driver.limits import within
from goscope_django.mongodb.driver.store import Store
from goscope_django.process import renewal
from goscope_django.process.backend_session import atomic, mongodb_session, require_store, store_database
from goscope_django.process.transactions import after_commit, in_transaction

logger = logging.getLogger("goscope.checkpoints")
T = TypeVar("T")
HEARTBEAT: Final = 5.0
"""Seconds between two reports of progress, at least."""
PRUNE_EVERY: Final = 10
"""Saves between two prunings of the history, at least."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a save did. ``sequence`` is the last one saved; ``cancelled``: an operator asked the task to stop."""

    sequence: int
    cancelled: bool


def _failed(error: Exception) -> Ending:
    if not conf.current().record_failures:
        return Ending("failed", error=type(error).__name__)
    why = reason(error)
    return Ending("failed", error=f"{why.type}: {why.text}", trace=trace(error))


class Together:
    """How a transaction with a save in it ended."""

    def __init__(self, state: TaskState) -> None:
        self._state = state
        self.committed = False
        self.aside: list[Callable[[bool], None]] = []
        """What is to be told of the commit, or with ``False`` of the rollback."""

    def done(self) -> None:
        self.committed = True
        self._tell()

    def undone(self) -> None:
        self._tell()

    def _tell(self) -> None:
        for over in self.aside:
            over(self.committed)

    def unknown(self) -> None:
        self._state.unsure = True


class Runner:
    """Runs one attempt at a task."""

    def __init__(self, store: Store, flows: TaskFlows, run: Run, started: Started) -> None:
        self.state = TaskState(run, started)
        self.interrupts = Interrupts()
        self._store = store
        self._flows = flows
        self._run = run
        self._unpruned = 0
        self.alias: str | None = None
        """The database whose transaction takes the saves now."""
        self._ending_of: Together | None = None
        self._entered: Snapshot | None = None
        self._reported = time.monotonic()
        # Weak, so that a loop that is left with ``break`` is closed there and then, and its transaction with it.
        self._loops: list[weakref.ref[Any]] = []
        self._lock = threading.RLock()
        self._alock = asyncio.Lock()
        self._pruner = Pruning(lambda: self.do(self._pruning_while_held()))
        self._apruner = AsyncPruning(lambda: self.ado(self._pruning_while_held()))

    def do(self, flow: Flow[T]) -> T:
        """Run a flow of this task on this thread. A SIGTERM waits until it is over."""
        with self.interrupts.deferred(), self._lock:
            return carry_out(flow)

    async def ado(self, flow: Flow[T]) -> T:
        """Async version of ``do``. There SIGTERM cancels, and nothing is deferred."""
        async with self._alock:
            return await acarry_out(flow)

    # While the task runs

    def hold(self, sent: float) -> Flow[None]:
        """Keep the lease alive that was granted by a command sent at ``sent`` (monotonic seconds), and tell."""
        details = {"task_id": self.state.id, "attempt": self.state.attempt}
        key, run = self._flows.prefix + self.state.id, self._run
        lease = renewal.Renewable(self._store, TASKS, key, run.claim, run.lease, name="_id", lease=LEASE)
        on_lost = functools.partial(runtime.emit, "task_lost", **details)
        self.state.renewal = yield from call(renewal.keep, renewal.akeep, lease, sent, on_lost)
        if self.state.resumed:
            runtime.emit("task_resumed", sequence=self.state.sequence, **details)
        else:
            runtime.emit("task_started", **details)

    def track(self, loop: T) -> T:
        """Close ``loop`` at the end at the latest."""
        self._loops.append(weakref.ref(loop))
        return loop

    def save(self, snapshot: Snapshot | None = None) -> Flow[Saved]:
        """Save ``snapshot``, else the state of now. Two commands. The history is pruned a moment later if due.

        Inside ``together`` it is part of that transaction.
        """
        self._held()
        if self.alias is not None:
            return self._enter(self.alias)
        if self.state.unsure:
            raise OutcomeUnknown(
                f"task {self.state.id!r}: its last transaction may have been committed; start it again, which will tell"
            )
        snapshot = snapshot or self.state.snapshot()
        yield from self._write(self._flows.save, self.state.token, snapshot)
        yield from self._saved(snapshot)
        return Saved(snapshot.sequence, self.state.cancel_requested)

    def _saved(self, snapshot: Snapshot) -> Flow[None]:
        self.state.saved(snapshot)
        self._unpruned += 1
        if self._run.keep is not None and self._unpruned >= max(PRUNE_EVERY, self._run.keep):
            yield from call(self._pruner.soon, self._apruner.soon)

    # Together with business data, on django_mongodb_backend

    def prepare(self, alias: str) -> Flow[None]:
        """Make ready for ``together``. Two commands at the first time. Raises ``ImproperlyConfigured``."""
        require_store(alias, f"track(atomic={alias!r})")
        if self.state.exact:
            return
        self._held()
        try:
            yield from self._ask_store(self._flows.transactional)
        except ConfigurationError as error:
            raise BadSettings(f"track(atomic={alias!r}): {error}") from None
        yield from self._ask(self._flows.exact)
        self.state.exact = True

    @contextlib.contextmanager
    def together(self, alias: str) -> Iterator[Together]:
        """A transaction of the backend. What ``save`` saves in it is committed with everything else, or not at all."""
        if mongodb_session(alias) is not None:
            raise RuntimeError(f"track(atomic={alias!r}) opens transactions and can't be used inside of one")
        ending = Together(self.state)
        try:
            with atomic(alias):
                after_commit(ending.done, ending.undone, alias, unknown=ending.unknown)
                self.alias, self._ending_of = alias, ending
                yield ending
        finally:
            self.alias = self._ending_of = None

    def set_aside(self, before: Any) -> None:
        """If the transaction is rolled back, ``before`` are the task's data again."""
        if self._ending_of is not None:
            self._ending_of.aside.append(self.state.set_aside(before)[2])

    def _enter(self, alias: str) -> Saved:
        session, state = mongodb_session(alias), self.state
        if session is None:
            raise TransactionManagementError(f"task {state.id!r}: the batch's transaction has ended; nothing was saved")
        snapshot = state.snapshot(places=state.places(uncommitted=True))
        executor = SyncExecutor(store_database(alias))
        try:
            run(self._flows.enter(executor.clock, self._run, state.token, snapshot, session), executor)
        except TaskLost:
            if state.renewal is not None:
                state.renewal.lose()
            raise
        self._entered = snapshot
        return Saved(snapshot.sequence, state.cancel_requested)

    def settle(self) -> Flow[None]:
        """After the commit of ``together``: the head learns of its last save. One command."""
        snapshot, self._entered = self._entered, None
        if snapshot is not None:
            self._held()
            yield from self._write(self._flows.settle, self.state.token, snapshot)
            yield from self._saved(snapshot)

    def autosave(self) -> Flow[None]:
        """``save``, except in a transaction, which may still be rolled back."""
        if not in_transaction():
            yield from self.save()

    def report(self) -> Flow[None]:
        """Write the progress if it was not written within ``HEARTBEAT``. One command."""
        if not self.state.completed and time.monotonic() - self._reported >= HEARTBEAT:
            self._held()
            yield from self._write(self._flows.report, self.state.snapshot(numbered=False))

    def _held(self) -> None:
        if self.state.completed:
            raise TaskLost(
                f"task {self.state.id!r}: it is completed, so there is nothing to save; restart=True runs it again",
                task_id=self.state.id,
            )
        if self.state.lost:
            raise lost(self.state.id)

    def _write(self, operation: Callable[..., Flow[bool]], *args: Any) -> Flow[None]:
        """A save or a report: renews the lease, and tells whether an operator asked the task to stop."""
        state, sent = self.state, renewal.now()
        try:
            state.cancel_requested = yield from self._ask(operation, *args, cancelled=state.cancel_requested)
        except TaskLost:
            if state.renewal is not None:
                state.renewal.lose()
            raise
        self._reported = time.monotonic()
        if state.renewal is not None:
            state.renewal.extended(sent, self._run.lease)

    def _ask_store(self, operation: Callable[..., Flow[T]]) -> Flow[T]:
        result: T = yield from call(self._store.run, self._store.arun, operation)
        return result

    def _ask(self, operation: Callable[..., Flow[T]], *args: Any, **kwargs: Any) -> Flow[T]:
        result: T = yield from call(self._store.run, self._store.arun, operation, self._run, *args, **kwargs)
        return result

    def _pruning_while_held(self) -> Flow[None]:
        if not self.state.lost:
            yield from self._pruning()

    def _pruning(self) -> Flow[None]:
        if self._run.keep is not None and self._unpruned:
            self._unpruned = 0
            with self._logged("the history could not be pruned"):
                yield from self._ask(self._flows.prune, self.state.sequence - self._run.keep)

    # The end

    def leave(self, error: BaseException | None) -> Flow[None]:
        """The block is left with ``error``: close its loops and let the task go."""
        self.interrupts.leave()
        self._pruner.stop()
        try:
            for loop in filter(None, [reference() for reference in self._loops]):
                yield from invoke(_close, loop)
            yield from last_call(self._end, self._aend, error)
        finally:  # not by a command: a flow that is closed can't send any more
            self.interrupts.restore(error)

    def _end(self, error: BaseException | None) -> None:
        """Inside ``atomic()`` the completion waits for the commit; a rollback leaves the task failed."""
        ending, undone = self._ending(error), Ending("failed", error="the transaction was rolled back")
        unknown = Ending("failed", error="whether the transaction was committed is unknown")
        if error is not None or not after_commit(
            lambda: self.do(self._finish(ending, save=self.state.last_save(None))),
            lambda: self.do(self._finish(undone, save=False)),
            unknown=lambda: self.do(self._finish(unknown, save=False)),
        ):
            self.do(self._finish(ending, error, save=self.state.last_save(error)))

    async def _aend(self, error: BaseException | None) -> None:
        """Async version of ``_end``. A coroutine is in no transaction of Django's."""
        await self._apruner.stop()
        await self.ado(self._finish(self._ending(error), error, save=self.state.last_save(error)))

    def _ending(self, error: BaseException | None) -> Ending:
        if error is None:
            return Ending("cancelled") if self.state.stopping else Ending("completed", self.state.result)
        if isinstance(error, TaskCancelled) and error.task_id == self.state.id:
            return Ending("cancelled")
        if isinstance(error, Exception) and not isinstance(error, asyncio.CancelledError):
            return _failed(error)
        return Ending("interrupted")

    def _finish(self, ending: Ending, error: BaseException | None = None, *, save: bool) -> Flow[None]:
        if self._over(error):
            return
        snapshot = self.state.snapshot()
        try:
            yield from self._note(ending, error, snapshot, save=save)
        except (StoreError, TaskLost) as failure:
            if error is None:
                raise
            logger.warning("task %r: that it is %s could not be noted: %s", self.state.id, ending.status, failure)
        except Exception as failure:
            # The state or the result can't be stored. Nothing was sent.
            with self._logged("its failure could not be noted"):
                yield from self._note(self._ending(failure), failure, snapshot, save=False)
            if error is None:
                raise

    def _note(self, ending: Ending, error: BaseException | None, snapshot: Snapshot, *, save: bool) -> Flow[None]:
        """Write the end; if MongoDB can't be reached, as soon as it answers. Raises in any case what came up now."""
        try:
            yield from self._noted(ending, error, snapshot, save=save)
        except StoreError:
            yield from self._note_later(ending, error, snapshot, save=save)
            raise

    def _noted(self, ending: Ending, error: BaseException | None, snapshot: Snapshot, *, save: bool) -> Flow[None]:
        exact = self.state.exact
        yield from self._ask(self._flows.finish, self.state.token, ending, snapshot, save=save, exact=exact)
        if save:
            self.state.saved(snapshot)
            self._unpruned += 1
        self._tell(ending, error)
        yield from self._pruning()

    def _note_later(self, ending: Ending, error: BaseException | None, snapshot: Snapshot, *, save: bool) -> Flow[None]:
        """Write the end in the background, until that is done or the lease has ended."""
        held = self.state.renewal
        left = 0.0 if held is None else held.deadline - renewal.now()
        if left <= 0:
            return
        # From here on the data are their owner's, who may change them.
        ending, snapshot, end, over = *copy.deepcopy((ending, snapshot)), time.monotonic() + left, False

        def attempt() -> Flow[bool]:
            nonlocal over
            try:
                with within(end - time.monotonic()):
                    yield from self._noted(ending, error, snapshot, save=save)
            except TaskLost:
                return False  # another runner has it
            over = True
            return False

        def told() -> None:
            if not over:
                logger.warning("task %r: that it is %s was never noted", self.state.id, ending.status)

        milliseconds = max(1, int(left * 1_000))
        again = (lambda: carry_out(attempt()), lambda: acarry_out(attempt()))
        yield from renewal.give_back_later(
            renewal.GivenBack(self.state.id, self._run.claim, milliseconds, *again), told
        )

    def _over(self, error: BaseException | None) -> bool:
        """Whether there is nothing to write any more. Raises ``TaskLost`` if the body did not notice its loss."""
        state = self.state
        if state.renewal is None or state.lost:
            if error is None and not state.completed:
                raise lost(state.id)
            return True
        state.renewal.stop()
        return isinstance(error, TaskLost) and error.task_id == state.id

    def _tell(self, ending: Ending, error: BaseException | None) -> None:
        details: dict[str, Any] = {"task_id": self.state.id, "attempt": self.state.attempt}
        if ending.status == "failed":
            details["error"] = error
        runtime.emit(f"task_{ending.status}", **details)

    @contextlib.contextmanager
    def _logged(self, what: str) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            logger.warning("task %r: %s: %s", self.state.id, what, error)


def _close(loop: Any) -> Any:
    return loop.close() if isinstance(loop, Generator) else loop.aclose()
