"""Heads of tasks in ``go_goscope_tasks``: who runs a task, and its last saved state.

A head is a leased document. A save is one update of the head, under the holder's claim, that takes the next sequence
and carries the state; then the same state is inserted into the history (``go_goscope_checkpoints``), which other
programs read.

The head is the truth: only there can a write be refused to whoever lost the lease. A runner that is killed between the
two writes leaves a history that lacks the last state; the next start adds it. A history that is *ahead* of the head was
written by a program that knows no heads (its documents have no ``token``): the higher sequence wins, so that state is
taken up. Documents with a ``token`` that are ahead of their head belong to a run whose head was removed; they are no
state to go on from.

After occurrent's fenced checkpoint writes and Spring Batch's restartable executions.
"""

from __future__ import annotations

from typing import Any, Final

from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure, PyMongoError

from goscope_django.contracts import Checkpoint
from goscope_django.exceptions import CheckpointTooLarge, TaskLost
from goscope_django.mongodb.checkpoints import CHECKPOINTS
from goscope_django.mongodb.expressions import Clock, Expression, literal
from goscope_django.mongodb.failures import may_have_happened
from goscope_django.mongodb.flow import Emit, Flow, Query, ask, perform
from goscope_django.mongodb.task_start import LEASE, TASKS, StartFlows, let_go
from goscope_django.mongodb.task_values import FINISHED, Ending, Run, Snapshot

MAX_STATE: Final = 16 * 1024 * 1024 - 256 * 1024
"""Bytes of a saved state, its names and its place included: the head holds a result, metadata and an error besides."""

_TOO_LARGE_FOR_CACHE: Final = 388
"""A server with little memory refuses documents that are far smaller than 16 MB."""


class TaskFlows(StartFlows):
    """What the runner of a task does, as flows."""

    def _document(self, run: Run, token: int, snapshot: Snapshot) -> tuple[Checkpoint, RawBSONDocument, Any, Any]:
        full = self.prefix + run.task_id
        data = self.codec.encode(full, snapshot.data)
        places = self.codec.encode(full, [dict(one) for one in snapshot.places])
        checkpoint = Checkpoint(
            id=f"{run.task_id}:{snapshot.sequence}",
            task_id=run.task_id,
            sequence=snapshot.sequence,
            timestamp=snapshot.moment,
            progress=snapshot.progress,
            estimated_time_remaining=snapshot.remaining,
        )
        more = {"token": token, "places": places}
        document = self.history.document(checkpoint, run.claim, stored=data, most=MAX_STATE, more=more)
        return checkpoint, document, data, places

    @staticmethod
    def _state(clock: Clock, snapshot: Snapshot, data: Any, places: Any) -> dict[str, Expression]:
        return {
            "sequence": snapshot.sequence,
            "saved": True,
            "data": literal(data),
            "places": literal(places),
            **TaskFlows._figures(clock, snapshot),
        }

    @staticmethod
    def _figures(clock: Clock, snapshot: Snapshot) -> dict[str, Expression]:
        return {
            "progress": snapshot.progress,
            "done": snapshot.done,
            "total": snapshot.total,
            "rate": snapshot.rate,
            "estimatedTimeRemaining": None if snapshot.remaining is None else snapshot.remaining * 1_000,
            "heartbeatAt": clock.now(),
        }

    def save(self, clock: Clock, run: Run, token: int, snapshot: Snapshot, *, cancelled: bool) -> Flow[bool]:
        """Two commands: the head, then the history; one more, once, when an operator has asked the task to stop.

        Whether one has. With ``cancelled`` that is known. Raises ``TaskLost`` if the run's lease has ended, and
        ``CheckpointTooLarge`` before anything is sent.
        """
        checkpoint, document, data, places = self._document(run, token, snapshot)
        fields = {**self._state(clock, snapshot, data, places), "leaseUntil": clock.after(run.lease)}
        cancelled = yield from self._write(clock, run, fields, cancelled, sequence={"$lte": snapshot.sequence})
        yield from self.history.insert(checkpoint, run.claim, document)
        yield Emit("checkpoint_saved", task_id=run.task_id, sequence=snapshot.sequence, progress=snapshot.progress)
        return cancelled

    def report(self, clock: Clock, run: Run, snapshot: Snapshot, *, cancelled: bool) -> Flow[bool]:
        """One command: progress alone, and the lease renewed. See ``save``."""
        fields = {**self._figures(clock, snapshot), "leaseUntil": clock.after(run.lease)}
        return (yield from self._write(clock, run, fields, cancelled))

    def _write(self, clock: Clock, run: Run, fields: dict[str, Expression], cancelled: bool, **more: Any) -> Flow[bool]:
        # The flag is asked for in the filter. A findAndModify would return it, but the server keeps an image of the
        # whole document for each, which costs time and, with a large state, more of its cache than it grants.
        test = LEASE.mine(clock, _id=self.prefix + run.task_id, claim=run.claim, **more)
        if not cancelled and (yield from self._update(run, {**test, "cancelRequested": {"$ne": True}}, fields)):
            return False
        if not (yield from self._update(run, test, fields)):
            raise lost(run.task_id)
        return True

    def _update(self, run: Run, test: dict[str, Any], fields: dict[str, Expression]) -> Flow[bool]:
        query: Query[Any] = Query(TASKS, "update_one", test, [{"$set": fields}])
        try:
            changed = yield from perform(query)
        except PyMongoError as error:
            if isinstance(error, OperationFailure) and error.code == _TOO_LARGE_FOR_CACHE:
                raise CheckpointTooLarge(
                    f"task {run.task_id!r}: the state does not fit in the server's cache: {error}", task_id=run.task_id
                ) from error
            if not may_have_happened(error):
                raise
            changed = yield from perform(query)  # the same fields again, under one's own claim
        return bool(changed.matched_count)

    def prune(self, clock: Clock, run: Run, sequence: int) -> Flow[None]:
        """One command: remove the history up to ``sequence``."""
        yield from ask(
            CHECKPOINTS, "delete_many", {"taskId": self.prefix + run.task_id, "sequence": {"$lte": sequence}}
        )

    def finish(
        self, clock: Clock, run: Run, token: int, ending: Ending, snapshot: Snapshot, *, save: bool
    ) -> Flow[None]:
        """Let the task go: one command, and one more with ``save``, which writes ``snapshot`` with it.

        Raises ``TaskLost`` if the run's lease has ended.
        """
        full = self.prefix + run.task_id
        result = self.codec.encode(full, ending.result)
        fields: dict[str, Expression] = {}
        history: Flow[None] | None = None
        if save or result is not None:
            checkpoint, document, data, places = self._document(run, token, snapshot)
            # The head holds both; only its size is of interest here.
            self.history.document(checkpoint, run.claim, stored=data, most=MAX_STATE, more={"result": result})
            if save:
                fields = self._state(clock, snapshot, data, places)
                history = self.history.insert(checkpoint, run.claim, document)
        if ending.status in FINISHED:
            fields["finishedAt"] = clock.now()
            fields["expiresAt"] = None if run.retention is None else clock.after(run.retention)
        if ending.status == "cancelled":
            fields["cancelRequested"] = True
        if ending.status == "completed":
            fields.update(progress=100.0, estimatedTimeRemaining=0.0)
        fields.update(
            let_go(ending.status),
            result=literal(result),
            error=literal(ending.error),
            lastClaim=literal(run.claim),
        )
        test = LEASE.mine(clock, _id=full, claim=run.claim)
        changed = yield from self._update(run, test, fields)
        # Sent twice it finds nothing the second time, and its claim then.
        if not changed and (yield from ask(TASKS, "confirm", {"_id": full, "lastClaim": run.claim})) is None:
            raise lost(run.task_id)
        if history is not None:
            yield from history
            yield Emit("checkpoint_saved", task_id=run.task_id, sequence=snapshot.sequence, progress=snapshot.progress)


def lost(task_id: str) -> TaskLost:
    """The error of a runner whose lease has ended."""
    return TaskLost(
        f"task {task_id!r}: this runner's lease has ended; another one may run it. Nothing was saved", task_id=task_id
    )
