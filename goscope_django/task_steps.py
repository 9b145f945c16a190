"""What an attempt at a task does with the store, written once for both colours.

Rules of this file:

* Whether a save or an end still counts is decided by the server, under this attempt's claim. The local view (the
  renewal's deadline) only makes the runner stop earlier.
* The renewal is stopped before the task is let go.
* A method here is a generator that yields steps, each a flow for the store, and gets the results.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from goscope_django import runtime
from goscope_django.exceptions import StoreError, TaskCancelled, TaskLost
from goscope_django.mongodb.flow import Command
from goscope_django.mongodb.task_values import Ending, Run, Snapshot, Started
from goscope_django.mongodb.tasks import TaskFlows, lost
from goscope_django.renewal import Renewal, now
from goscope_django.task_state import TaskState
from goscope_django.tracking import Place
from goscope_django.transactions import after_commit, in_transaction

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
