"""The start of a task: take its head, and mend what a killed runner or a foreign writer left in the history.

Rule of this file: what may be taken is decided by the server, in the pipeline that takes it; an attempt is judged by
its claim.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import bson
from pymongo import ReturnDocument
from pymongo.errors import PyMongoError

from goscope_django.contracts import Checkpoint
from goscope_django.exceptions import CheckpointConflict, InvalidValue, OutcomeUnknown
from goscope_django.mongodb.checkpoints import CHECKPOINTS, NUMBERED, CheckpointFlows
from goscope_django.mongodb.expressions import Clock, Expression, countable, is_null, literal, named, or_null
from goscope_django.mongodb.failures import may_have_happened
from goscope_django.mongodb.flow import Flow, Query, ask
from goscope_django.mongodb.lease import Lease, upsert
from goscope_django.mongodb.reading import number, rows, text, whole, whole_or_none
from goscope_django.mongodb.task_values import FINISHED, Run, Started

TASKS: Final = "go_goscope_tasks"
LEASE: Final = Lease(holder="claim", deadline="leaseUntil")

MAX_METADATA: Final = 64 * 1024

_READ: Final = dict.fromkeys(
    (
        *("claim", "token", "leaseUntil", "owner", "status", "attempt", "cancelRequested", "result"),
        *("sequence", "saved", "data", "places", "progress", "total"),
    ),
    True,
)


class StartFlows:
    """The start of a task, as a flow."""

    def __init__(self, history: CheckpointFlows) -> None:
        self.prefix = history.prefix
        self.codec = history.codec
        self.history = history

    def start(self, clock: Clock, run: Run) -> Flow[Started]:
        """Take the task if nobody runs it and it is not done: two commands, more where the history must be mended."""
        full = self.prefix + run.task_id
        try:
            found = yield from self._take(clock, full, run)
        except (GeneratorExit, PyMongoError):
            raise
        except BaseException:
            # Cancelled or interrupted with the command on its way: nobody will ever use what it may have taken.
            with contextlib.suppress(PyMongoError):
                yield from self._give_back(clock, full, run)
            raise
        if found.get("claim") != run.claim:
            return (yield from self._refused(clock, full, found))
        try:
            found = yield from self._reconciled(clock, full, run, found)
            return self._started(clock, full, found, "started")
        except GeneratorExit:
            raise
        except BaseException:
            with contextlib.suppress(PyMongoError):
                yield from self._give_back(clock, full, run)
            raise

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
                found: dict[str, Any] = yield from upsert(clock, query)
                return found
            except PyMongoError as error:
                # Sent again it changes nothing that it has done: a held head stays as it is, whoever holds it.
                if not may_have_happened(error):
                    raise
                if last:
                    raise OutcomeUnknown(
                        f"task {run.task_id!r}: it may have been taken; if so, its lease ends by itself"
                    ) from error
        raise AssertionError("unreachable")

    def _grant(self, clock: Clock, run: Run) -> dict[str, Expression]:
        done = {"$in": [or_null("status"), list(FINISHED)]}
        # Begun from nothing: a new head, one that is past its retention, one of another version, or on request.
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
            # Counted when it starts, so that a crash counts; an attempt that ends in order takes it back.
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
                cancelled(clock),
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
            data=self.codec.decode(full, found.get("data")),
            places=[
                one for one in rows(self.codec.decode(full, found.get("places"))) if text(one.get("name")) is not None
            ],
            progress=float(number(found.get("progress")) or 0),
            total=whole_or_none(found.get("total")),
            result=self.codec.decode(full, found.get("result")),
            owner=text(found.get("owner")),
            retry_after=retry_after,
            moment=clock.read_stamp(found),
        )

    def _reconciled(self, clock: Clock, full: str, run: Run, head: dict[str, Any]) -> Flow[dict[str, Any]]:
        """Compare the head, just taken, with the history: one command where they agree."""
        fields = {"sequence": True, "token": True, "_id": True}
        last = yield from ask(
            CHECKPOINTS, "point", {"taskId": full, "sequence": NUMBERED}, fields, sort=[("sequence", -1)]
        )
        held, known = whole(head.get("sequence")), -1 if last is None else whole(last.get("sequence"))
        if head["saved"] and known < held:
            yield from self._add_missing(clock, full, run, head)
        foreign = last is not None and last.get("token") is None
        if run.restart:
            if last is not None:
                yield from ask(CHECKPOINTS, "delete_many", {"taskId": full, "sequence": {"$lte": known}})
        elif foreign and known > held and run.version is None:
            found = yield from ask(CHECKPOINTS, "find_one", {"_id": last["_id"]})
            if found is not None:
                taken = {"data": found.get("data"), "places": None, "progress": found.get("progress"), "saved": True}
                return {**head, **taken, "sequence": known}
        elif last is not None and not head["saved"]:
            remains = {"taskId": full, "sequence": {"$lte": known}, "token": {"$ne": None}}
            yield from ask(CHECKPOINTS, "delete_many", remains)
        return {**head, "sequence": max(held, known)}

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
        with contextlib.suppress(CheckpointConflict):  # the runner before was only slow to add it
            yield from self.history.insert(missing, run.claim, document)

    def _give_back(self, clock: Clock, full: str, run: Run) -> Flow[None]:
        yield from ask(TASKS, "update_one", {"_id": full, "claim": run.claim}, [{"$set": let_go("interrupted")}])


def let_go(status: str) -> dict[str, Expression]:
    """The fields of a head that nobody holds any more. An attempt that ends in order does not count as a try."""
    fields: dict[str, Expression] = {"claim": None, "leaseUntil": None, "status": status}
    if status == "interrupted":
        fields["tries"] = {"$max": [0, {"$add": [countable("tries"), -1]}]}
    return fields


def cancelled(clock: Clock) -> list[dict[str, Any]]:
    """An update that cancels a task that nobody runs."""
    keep = clock.after_field("retention", "finishedAt")
    fields = {
        "status": "cancelled",
        "cancelRequested": True,
        "claim": None,
        "leaseUntil": None,
        "finishedAt": clock.now(),
        "expiresAt": {"$cond": [is_null("retention"), None, keep]},
    }
    return [{"$set": fields}]
