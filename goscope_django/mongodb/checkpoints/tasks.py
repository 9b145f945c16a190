"""What the runner of a task does in the store: take it, save, report, end. Each task has one document, its head.

The head stands in ``go_goscope_tasks`` and says who runs the task and what was saved last. A copy of each saved state
goes to the history, ``go_goscope_checkpoints``, which other programs read.

Rules of this file:

* A head is a leased document. A save is one update of the head, under the runner's claim, with the next sequence and
  the state. Then the same state is inserted into the history.
* The head decides, for only there can the server refuse a runner that lost the lease. A runner that is killed between
  the two writes leaves a history without the last state; the next start adds it.
* History without a ``token`` was written by a program that knows no heads. If it is ahead of the head, the higher
  sequence wins and its state is taken up.
* History with a ``token`` that is ahead of the head is left from a run whose head was removed. No task goes on from it.
* A save in somebody else's transaction (``enter``) never writes the head, whose lease is renewed meanwhile. It writes
  the history, marked ``atomic``, and the task's *fence*: a document that each start of such a task writes as well. So a
  runner that was replaced can't commit, and a start waits for a commit that is under way. The head follows afterwards;
  a history that is marked and ahead of the head is where the next start goes on.

After occurrent's fenced checkpoint writes and Spring Batch's restartable executions.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final

import bson
from bson.raw_bson import RawBSONDocument
from pymongo import ReturnDocument
from pymongo.errors import PyMongoError

from goscope_django.contracts import Checkpoint
from goscope_django.core.flow import Emit, Flow, Query, ask, perform
from goscope_django.exceptions import CheckpointConflict, CheckpointTooLarge, InvalidValue, OutcomeUnknown, TaskLost
from goscope_django.mongodb.checkpoints.history import CHECKPOINTS, FOLLOWED, CheckpointFlows
from goscope_django.mongodb.checkpoints.values import FINISHED, Ending, Run, Snapshot, Started
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import Expression, countable, is_null, literal, named, or_null
from goscope_django.mongodb.document.failures import TOO_LARGE_FOR_CACHE, may_have_happened, means
from goscope_django.mongodb.document.lease import Lease, timed, upsert
from goscope_django.mongodb.document.reading import number, rows, text, whole, whole_or_none

TASKS: Final = "go_goscope_tasks"
LEASE: Final = Lease(holder="claim", deadline="leaseUntil")

MAX_METADATA: Final = 64 * 1024
"""Bytes of a task's metadata."""
MAX_STATE: Final = 16 * 1024 * 1024 - 256 * 1024
"""Bytes of a saved state with its names and places. The head also holds a result, metadata and an error."""
_READ: Final = dict.fromkeys(
    (
        *("claim", "token", "leaseUntil", "owner", "status", "attempt", "cancelRequested", "result"),
        *("sequence", "saved", "data", "places", "progress", "total", "atomic"),
    ),
    True,
)


def fence_id(full: str) -> dict[str, str]:
    """The ``_id`` of a task's fence. It is no text, so that no list of tasks has it."""
    return {"fence": full}


class TaskFlows:
    """What the runner of a task does, as flows, for the keys of one prefix."""

    def __init__(self, history: CheckpointFlows) -> None:
        self.prefix = history.prefix
        self.codec = history.codec.of(TASKS)
        # A state is in the head and in the history, and signed for the latter.
        self.states = history.codec
        self.history = history

    def start(self, clock: Clock, run: Run) -> Flow[Started]:
        """Take the task if nobody runs it and it is not finished.

        Two commands; three for a task that saved in transactions; more if the history lacks something. Raises
        ``TaskLost`` if the lease has ended before all answers were here: then another one may run the task.
        """
        full, sent = self.prefix + run.task_id, time.monotonic()
        try:
            found = yield from self._take(clock, full, run)
        except (GeneratorExit, PyMongoError):
            raise
        except BaseException:
            # Cancelled or interrupted while the command was on its way: it may have taken the task, for nobody.
            with contextlib.suppress(PyMongoError):
                yield from self._give_back(clock, full, run)
            raise
        if found.get("claim") != run.claim:
            return (yield from self._refused(clock, full, found))
        try:
            if found.get("atomic") is True:
                yield from self._fence(clock, full, run)
            found = yield from self._reconciled(clock, full, run, found)
            if time.monotonic() - sent >= run.lease / 1_000:
                raise lost(run.task_id, "Nothing was run")
            return self._started(clock, full, found, "started")
        except GeneratorExit:
            raise
        except BaseException:
            with contextlib.suppress(PyMongoError):
                yield from self._give_back(clock, full, run)
            raise

    def save(self, clock: Clock, run: Run, token: int, snapshot: Snapshot, *, cancelled: bool) -> Flow[bool]:
        """Save the state in the head, then in the history. Returns whether an operator asked the task to stop.

        Two commands; the first save that learns of the operator's wish takes three. ``cancelled`` says that it is
        known already. Raises ``TaskLost`` if the run's lease has ended, and ``CheckpointTooLarge`` before anything is
        sent.
        """
        checkpoint, document, data, places = self._document(run, token, snapshot)
        fields = {**self._state(clock, snapshot, data, places), "leaseUntil": clock.after(run.lease)}
        cancelled = yield from self._write(clock, run, fields, cancelled, sequence={"$lte": snapshot.sequence})
        if not (yield from self._add(run, checkpoint, document)):
            raise lost(run.task_id, SAVED)
        yield Emit("checkpoint_saved", task_id=run.task_id, sequence=snapshot.sequence, progress=snapshot.progress)
        return cancelled

    def exact(self, clock: Clock, run: Run) -> Flow[None]:
        """From now on this run may ``enter`` transactions. Two commands. Raises ``TaskLost``."""
        full = self.prefix + run.task_id
        if not (yield from self._update(run, LEASE.mine(clock, _id=full, claim=run.claim), {"atomic": True})):
            raise lost(run.task_id)
        yield from self._fence(clock, full, run)

    def enter(self, clock: Clock, run: Run, token: int, snapshot: Snapshot, session: Any) -> Flow[None]:
        """Save the state in the transaction of ``session``: two commands. ``settle`` is to follow its commit.

        Raises ``TaskLost`` if another run has started, the driver's errors as they are, ``CheckpointTooLarge`` before
        anything is sent.
        """
        _, document, _, _ = self._document(run, token, snapshot, atomic=True)
        test = {"_id": fence_id(self.prefix + run.task_id), "claim": run.claim}
        fenced = yield from ask(TASKS, "update_one", test, {"$set": {"sequence": snapshot.sequence}}, session=session)
        if not fenced.matched_count:
            raise lost(run.task_id)
        yield from ask(CHECKPOINTS, "insert_one", document, session=session)

    def settle(self, clock: Clock, run: Run, token: int, snapshot: Snapshot, *, cancelled: bool) -> Flow[bool]:
        """Write the state that ``enter`` saved to the head as well. One command. Returns and raises like ``save``."""
        _, _, data, places = self._document(run, token, snapshot)
        fields = {**self._state(clock, snapshot, data, places), "leaseUntil": clock.after(run.lease)}
        cancelled = yield from self._write(clock, run, fields, cancelled, sequence={"$lte": snapshot.sequence})
        yield Emit("checkpoint_saved", task_id=run.task_id, sequence=snapshot.sequence, progress=snapshot.progress)
        return cancelled

    def transactional(self, clock: Clock) -> Flow[None]:
        """Raise ``ConfigurationError`` if the server has no transactions. A ping at most."""
        yield from ask("", "transactional")

    def _fence(self, clock: Clock, full: str, run: Run) -> Flow[None]:
        """Let no other run commit from now on. It waits for a commit that is under way."""

        def query() -> Query[Any]:
            return Query(TASKS, "update_one", {"_id": fence_id(full)}, {"$set": {"claim": run.claim}}, upsert=True)

        yield from upsert(clock, query)

    def report(self, clock: Clock, run: Run, snapshot: Snapshot, *, cancelled: bool) -> Flow[bool]:
        """Write the progress alone and renew the lease. One command. Returns and raises like ``save``."""
        fields = {**self._figures(clock, snapshot), "leaseUntil": clock.after(run.lease)}
        return (yield from self._write(clock, run, fields, cancelled))

    def prune(self, clock: Clock, run: Run, sequence: int) -> Flow[None]:
        """Remove the history up to ``sequence``. One command."""
        yield from ask(
            CHECKPOINTS, "delete_many", {"taskId": self.prefix + run.task_id, "sequence": {"$lte": sequence}}
        )

    def finish(
        self, clock: Clock, run: Run, token: int, ending: Ending, snapshot: Snapshot, *, save: bool, exact: bool = False
    ) -> Flow[None]:
        """Let the task go. One command; with ``save`` it writes ``snapshot`` too, which takes one more. So does
        ``exact``, after which this run can enter no transaction.

        Raises ``TaskLost`` if the run's lease has ended.
        """
        full = self.prefix + run.task_id
        result = self.codec.encode(full, ending.result)
        fields: dict[str, Expression] = {}
        history: Flow[bool] | None = None
        if save or result is not None:
            checkpoint, document, data, places = self._document(run, token, snapshot)
            # Made only to check the size, since the head will hold both the state and the result.
            self.history.document(checkpoint, run.claim, stored=data, most=MAX_STATE, more={"result": result})
            if save:
                fields = self._state(clock, snapshot, data, places)
                history = self._add(run, checkpoint, document)
        if ending.status in FINISHED:
            fields["finishedAt"] = clock.now()
            fields["expiresAt"] = None if run.retention is None else clock.after(run.retention)
        if ending.error is not None:
            told = {"error": literal(ending.error), "trace": literal(list(ending.trace))}
            fields["lastFailure"] = {**told, "at": clock.now(), "attempt": "$attempt"}
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
        changed, _ = yield from self._update(run, test, fields)
        # If it was sent twice, the second one finds nothing: then the head must have this claim as its last.
        if not changed and (yield from ask(TASKS, "confirm", {"_id": full, "lastClaim": run.claim})) is None:
            raise lost(run.task_id)
        if history is not None:
            yield from history
            yield Emit("checkpoint_saved", task_id=run.task_id, sequence=snapshot.sequence, progress=snapshot.progress)
        if exact:
            with contextlib.suppress(PyMongoError):  # the next start writes it anew
                yield from ask(TASKS, "delete_one", {"_id": fence_id(full), "claim": run.claim})

    def _take(self, clock: Clock, full: str, run: Run) -> Flow[dict[str, Any]]:
        def query() -> Query[dict[str, Any]]:
            fields = {**named(full), **self._grant(clock, run)}
            projection = {**_READ, **clock.stamp()}
            return Query(
                TASKS,
                "find_one_and_update",
                {"_id": full},
                [{"$set": fields}],
                projection=projection,
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )

        for last in (False, True):
            try:
                found: dict[str, Any] = yield from timed(clock, upsert(clock, query))
                return found
            except PyMongoError as error:
                # Sending it again is harmless: it leaves a head that is held as it is, also if this run holds it.
                if not may_have_happened(error):
                    raise
                if last:
                    raise OutcomeUnknown(
                        f"task {run.task_id!r}: it may have been taken; if so, its lease ends by itself"
                    ) from error
        raise AssertionError("unreachable")

    def _grant(self, clock: Clock, run: Run) -> dict[str, Expression]:
        done = {"$in": [or_null("status"), list(FINISHED)]}
        # Begin anew: a new head, one whose retention is over, one of another version, or on request.
        reasons = [is_null("attempt"), {"$and": [done, clock.passed()]}]
        if run.version is not None:
            reasons.append({"$ne": [or_null("version"), literal(run.version)]})
        anew: Expression = True if run.restart else {"$or": reasons}
        refusals = [done, {"$eq": [or_null("cancelRequested"), True]}]
        if run.max_attempts is not None:
            refusals.append({"$gte": [countable("tries"), run.max_attempts]})

        def keep(field: str, otherwise: Expression = None, value: Expression = None) -> Expression:
            return {"$cond": [anew, otherwise, or_null(field) if value is None else value]}

        return LEASE.take(
            clock,
            run.claim,
            run.lease,
            unless={"$cond": [anew, False, {"$or": refusals}]},
            status="running",
            owner=literal(run.owner),
            attempt={"$add": [keep("attempt", 0, countable("attempt")), 1]},
            # Counted at the start, so that a crash counts. An attempt that ends in order takes it back.
            tries={"$add": [keep("tries", 0, countable("tries")), 1]},
            maxAttempts=run.max_attempts,
            retention=run.retention,
            version=literal(run.version),
            metadata=literal(self._metadata(run)),
            sequence=countable("sequence"),
            saved=keep("saved", False),
            data=keep("data"),
            places=keep("places"),
            progress=keep("progress", 0),
            done=keep("done"),
            total=keep("total"),
            rate=None,
            estimatedTimeRemaining=None,
            startedAt={"$ifNull": [keep("startedAt"), clock.now()]},
            heartbeatAt=clock.now(),
            finishedAt=None,
            expiresAt=None,
            result=None,
            error=None,
            cancelRequested=False,
            dispatchedAt=None,
            lastClaim=None,
        )

    def _metadata(self, run: Run) -> Any:
        encoded = self.codec.encode(self.prefix + run.task_id, dict(run.metadata))
        if run.metadata and (size := len(bson.encode({"": encoded}))) > MAX_METADATA:
            raise InvalidValue(f"metadata of task {run.task_id!r}: {size} bytes; at most {MAX_METADATA} are allowed")
        return encoded

    def _refused(self, clock: Clock, full: str, found: dict[str, Any]) -> Flow[Started]:
        wait = LEASE.remaining(clock, found) if found.get("claim") is not None else 0.0
        if found.get("status") in FINISHED:
            outcome = found["status"]
        elif wait > 0:
            outcome = "running"
        elif found.get("cancelRequested"):
            outcome = "cancelled"
            yield from ask(
                TASKS,
                "update_one",
                {"_id": full, "cancelRequested": True, "$expr": LEASE.free(clock)},
                [{"$set": cancellation(clock)}],
            )
        else:
            outcome = "exhausted"
        if outcome != "completed":
            found.update(data=None, result=None)
        return self._started(clock, full, found, outcome, wait)

    def _started(
        self, clock: Clock, full: str, found: dict[str, Any], outcome: Any, retry_after: float = 0.0
    ) -> Started:
        return Started(
            outcome=outcome,
            token=whole(found.get("token")),
            attempt=whole(found.get("attempt")),
            sequence=whole(found.get("sequence")),
            resumed=bool(found.get("saved")),
            data=self.states.decode(full, found.get("data")),
            places=[
                one for one in rows(self.states.decode(full, found.get("places"))) if text(one.get("name")) is not None
            ],
            progress=float(number(found.get("progress")) or 0),
            total=whole_or_none(found.get("total")),
            result=self.codec.decode(full, found.get("result")),
            owner=text(found.get("owner")),
            retry_after=retry_after,
            moment=clock.read_stamp(found),
            exact=found.get("atomic") is True,
        )

    def _reconciled(self, clock: Clock, full: str, run: Run, head: dict[str, Any]) -> Flow[dict[str, Any]]:
        """Compare the head, just taken, with the history. One command if they agree."""
        fields = {"sequence": True, "token": True, "atomic": True, "_id": True}
        last = yield from ask(
            CHECKPOINTS, "point", {"taskId": full, "sequence": FOLLOWED}, fields, sort=[("sequence", -1)]
        )
        held, known = whole(head.get("sequence")), -1 if last is None else whole(last.get("sequence"))
        if head["saved"] and known < held:
            yield from self._add_missing(clock, full, run, head)
        foreign = last is not None and last.get("token") is None
        # Committed, and then its runner died. At a first attempt it is left from a task that is gone.
        ahead = last is not None and last.get("atomic") is True and whole(head.get("attempt")) > 1
        if run.restart:
            if last is not None:
                yield from ask(CHECKPOINTS, "delete_many", {"taskId": full, "sequence": {"$lte": known}})
        elif last is not None and known > held and (ahead or (foreign and run.version is None)):
            found = yield from ask(CHECKPOINTS, "find_one", {"_id": last["_id"]})
            if found is not None:
                places = found.get("places") if ahead else None
                taken = {"data": found.get("data"), "places": places, "progress": found.get("progress"), "saved": True}
                return {**head, **taken, "sequence": known}
        elif last is not None and not head["saved"]:
            remains = {"taskId": full, "sequence": {"$lte": known}, "token": {"$ne": None}}
            yield from ask(CHECKPOINTS, "delete_many", remains)
        return {**head, "sequence": max(held, known)}

    def _add(self, run: Run, checkpoint: Checkpoint, document: RawBSONDocument) -> Flow[bool]:
        """Add what the head has to the history. One command. ``False`` if the next runner has done that already, which
        takes one more: then it has started from this very state."""
        try:
            yield from self.history.insert(checkpoint, run.claim, document)
        except CheckpointConflict:
            test = {"taskId": self.prefix + run.task_id, "sequence": checkpoint.sequence}
            found = yield from ask(CHECKPOINTS, "confirm", test)
            if found is None or found.get("token") is None:  # another program's
                raise
            return False
        return True

    def _add_missing(self, clock: Clock, full: str, run: Run, head: dict[str, Any]) -> Flow[None]:
        sequence = whole(head.get("sequence"))
        missing = Checkpoint(
            f"{run.task_id}:{sequence}",
            run.task_id,
            sequence,
            clock.read_stamp(head),
            float(number(head.get("progress")) or 0),
        )
        more = {"token": head["token"], "places": head.get("places")}
        document = self.history.document(missing, run.claim, stored=head.get("data"), more=more)
        with contextlib.suppress(CheckpointConflict):  # the runner before added it late
            yield from self.history.insert(missing, run.claim, document)

    def _give_back(self, clock: Clock, full: str, run: Run) -> Flow[None]:
        yield from ask(TASKS, "update_one", {"_id": full, "claim": run.claim}, [{"$set": let_go("interrupted")}])

    def _document(
        self, run: Run, token: int, snapshot: Snapshot, **marks: Any
    ) -> tuple[Checkpoint, RawBSONDocument, Any, Any]:
        full = self.prefix + run.task_id
        data = self.states.encode(full, snapshot.data)
        places = self.states.encode(full, [dict(one) for one in snapshot.places])
        checkpoint = Checkpoint(
            id=f"{run.task_id}:{snapshot.sequence}",
            task_id=run.task_id,
            sequence=snapshot.sequence,
            timestamp=snapshot.moment,
            progress=snapshot.progress,
            estimated_time_remaining=snapshot.remaining,
        )
        more = {"token": token, "places": places, **marks}
        document = self.history.document(checkpoint, run.claim, stored=data, most=MAX_STATE, more=more)
        return checkpoint, document, data, places

    def _state(self, clock: Clock, snapshot: Snapshot, data: Any, places: Any) -> dict[str, Expression]:
        return {
            "sequence": snapshot.sequence,
            "saved": True,
            "data": literal(data),
            "places": literal(places),
            **self._figures(clock, snapshot),
        }

    def _figures(self, clock: Clock, snapshot: Snapshot) -> dict[str, Expression]:
        return {
            "progress": snapshot.progress,
            "done": snapshot.done,
            "total": snapshot.total,
            "rate": snapshot.rate,
            "estimatedTimeRemaining": None if snapshot.remaining is None else snapshot.remaining * 1_000,
            "heartbeatAt": clock.now(),
        }

    def _write(self, clock: Clock, run: Run, fields: dict[str, Expression], cancelled: bool, **more: Any) -> Flow[bool]:
        # The filter asks for the flag. A findAndModify would return it, but then the server keeps an image of the whole
        # document: that costs time and, with a large state, more of the server's cache than it grants.
        test = LEASE.mine(clock, _id=self.prefix + run.task_id, claim=run.claim, **more)
        unsure = False
        if not cancelled:
            changed, unsure = yield from self._update(run, {**test, "cancelRequested": {"$ne": True}}, fields)
            if changed:
                return False
        changed, again = yield from self._update(run, test, fields)
        if not changed:
            raise lost(run.task_id, (yield from self._saved(run, fields)) if unsure or again else NOT_SAVED)
        return True

    def _saved(self, run: Run, fields: dict[str, Expression]) -> Flow[str]:
        """What became of a write whose first answer was lost and that could not be repeated. One command."""
        sequence = fields.get("sequence")
        if sequence is None:
            return "Its progress may have been written"
        try:
            head = yield from ask(TASKS, "confirm", {"_id": self.prefix + run.task_id, "claim": run.claim})
        except PyMongoError:
            head = None
        if head is None:  # another runner holds it by now, or nobody can say
            return "This state may have been saved; the next runner then goes on from it"
        if whole(head.get("sequence")) == sequence and head.get("saved"):
            return SAVED
        return NOT_SAVED

    def _update(self, run: Run, test: dict[str, Any], fields: dict[str, Expression]) -> Flow[tuple[bool, bool]]:
        """Whether it was written, and whether it had to be sent again without knowing what became of it."""
        query: Query[Any] = Query(TASKS, "update_one", test, [{"$set": fields}])
        try:
            return bool((yield from perform(query)).matched_count), False
        except PyMongoError as error:
            if means(error, TOO_LARGE_FOR_CACHE):
                raise CheckpointTooLarge(
                    f"task {run.task_id!r}: the state does not fit in the server's cache: {error}", task_id=run.task_id
                ) from error
            if not may_have_happened(error):
                raise
            # The same fields again, under the run's own claim.
            return bool((yield from perform(query)).matched_count), True


def let_go(status: str) -> dict[str, Expression]:
    """The fields of a head that nobody holds any more. An interrupted attempt does not count as a try."""
    fields: dict[str, Expression] = {"claim": None, "leaseUntil": None, "status": status}
    if status == "interrupted":
        fields["tries"] = {"$max": [0, {"$add": [countable("tries"), -1]}]}
    return fields


def cancellation(clock: Clock) -> dict[str, Expression]:
    """The fields of a head that is cancelled while nobody runs the task."""
    keep = clock.after_field("retention", "finishedAt")
    return {
        "status": "cancelled",
        "cancelRequested": True,
        "claim": None,
        "leaseUntil": None,
        "finishedAt": clock.now(),
        "expiresAt": {"$cond": [is_null("retention"), None, keep]},
    }


NOT_SAVED: Final = "Nothing was saved"
SAVED: Final = "This state was saved, and the next runner goes on from it"


def lost(task_id: str, known: str = NOT_SAVED) -> TaskLost:
    """The error of a runner whose lease has ended. ``known`` says what became of what it wanted to write."""
    return TaskLost(
        f"task {task_id!r}: this runner's lease has ended; another one may run it. {known}", task_id=task_id
    )
