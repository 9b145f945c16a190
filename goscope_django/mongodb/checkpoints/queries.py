"""What an operator does with tasks in the store: list, show, cancel, reset, delete, dispatch again.

Rule of this file: nothing here holds a task. An update of a head says in its filter that nobody runs the task, or it
only asks the runner for something.
"""

from __future__ import annotations

import builtins
from typing import Any, Final

from goscope_django.core.flow import Flow, ask
from goscope_django.exceptions import Undecodable
from goscope_django.mongodb.checkpoints.history import CHECKPOINTS, CheckpointFlows
from goscope_django.mongodb.checkpoints.tasks import LEASE, TASKS, cancellation, fence_id
from goscope_django.mongodb.checkpoints.values import TaskFailure, TaskInfo, status_of
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import conditions, instant, literal, prefix_range
from goscope_django.mongodb.document.reading import (
    NOT_A_LIST,
    document,
    named_by_text,
    number,
    text,
    whole,
    whole_or_none,
)

PAGE: Final = 500
"""Tasks that one command reads where more are looked at than returned."""
_HIDDEN: Final = {"data": False, "places": False, "result": False}


def _failure(found: object) -> TaskFailure | None:
    known = document(found)
    error, trace = text(known.get("error")), known.get("trace")
    if error is None:
        return None
    lines = tuple(one for one in trace if isinstance(one, str)) if isinstance(trace, list) else ()
    return TaskFailure(error, lines, instant(known.get("at")), whole(known.get("attempt")))


class TaskQueryFlows:
    """The operators' operations, as flows, for the keys of one prefix."""

    def __init__(self, history: CheckpointFlows) -> None:
        self.prefix = history.prefix
        self.codec = history.codec.of(TASKS)

    def get(self, clock: Clock, task_id: str) -> Flow[TaskInfo | None]:
        """The task. One command."""
        found = yield from self.find(clock, {"_id": self.prefix + task_id}, 1)
        return found[0] if found else None

    def list(
        self, clock: Clock, limit: int, after: str | None, *, stalled: bool = False
    ) -> Flow[builtins.list[TaskInfo]]:
        """Up to ``limit`` tasks behind ``after``, in the order of their ids. One command."""
        test: dict[str, Any] = {
            "_id": prefix_range(self.prefix, None if after is None else self.prefix + after),
            "$expr": clock.live(),
        }
        if stalled:
            test.update(status="running", cancelRequested=False)
            test["$expr"] = clock.passed("leaseUntil")
        return (yield from self.find(clock, test, limit))

    def find(self, clock: Clock, test: dict[str, Any], limit: int) -> Flow[builtins.list[TaskInfo]]:
        """Up to ``limit`` tasks whose heads match ``test``, in the order of their ids. One command."""
        pipeline: builtins.list[dict[str, Any]] = [{"$match": test}, {"$sort": {"_id": 1}}, {"$limit": limit}]
        if clock.stamp():
            pipeline.append({"$addFields": clock.stamp()})
        pipeline.append({"$project": _HIDDEN})
        found = yield from ask(TASKS, "aggregate", pipeline, batchSize=limit + 1)
        return [self.info(clock, one) for one in found]

    def info(self, clock: Clock, head: dict[str, Any]) -> TaskInfo:
        """What an operator sees of a head that was read with ``Clock.stamp``."""
        status = status_of(head)
        running = status == "running"
        full, tries, most = head["_id"], whole(head.get("tries")), whole_or_none(head.get("maxAttempts"))
        left = number(head.get("estimatedTimeRemaining"))
        stalled = running and LEASE.remaining(clock, head) <= 0
        try:
            metadata = self.codec.decode(full, head.get("metadata"))
        except Undecodable:  # it hides neither this task nor the others, and nothing is dispatched by it
            metadata = None
        return TaskInfo(
            task_id=full[len(self.prefix) :],
            status=status,
            stalled=stalled,
            exhausted=most is not None and tries >= most and (stalled or status == "failed"),
            owner=text(head.get("owner")),
            token=whole(head.get("token")),
            attempt=whole(head.get("attempt")),
            max_attempts=most,
            sequence=whole(head.get("sequence")),
            progress=float(number(head.get("progress")) or 0),
            done=whole_or_none(head.get("done")),
            total=whole_or_none(head.get("total")),
            rate=number(head.get("rate")),
            estimated_time_remaining=None if left is None else left / 1_000,
            started_at=instant(head.get("startedAt")),
            heartbeat_at=instant(head.get("heartbeatAt")),
            lease_until=instant(head.get("leaseUntil")),
            finished_at=instant(head.get("finishedAt")),
            cancel_requested=bool(head.get("cancelRequested")),
            error=text(head.get("error")),
            version=text(head.get("version")),
            metadata=metadata if isinstance(metadata, dict) else {},
            last_failure=_failure(head.get("lastFailure")),
        )

    def result(self, clock: Clock, task_id: str) -> Flow[tuple[bool, Any]]:
        """Whether the task is completed, and its result. One command."""
        full = self.prefix + task_id
        test = {"_id": full, "status": "completed", "$expr": clock.live()}
        found = yield from ask(TASKS, "find_one", test, {"result": True})
        return (False, None) if found is None else (True, self.codec.decode(full, found.get("result")))

    def cancel(self, clock: Clock, task_id: str, token: int | None = None) -> Flow[bool]:
        """Ask the runner (of the run ``token``) to stop; cancel the task at once if nobody runs it. One command."""
        test: dict[str, Any] = {"_id": self.prefix + task_id, "status": {"$nin": ["completed", "cancelled"]}}
        if token is not None:
            test["token"] = token
        fields = conditions(LEASE.free(clock), cancellation(clock))
        changed = yield from ask(TASKS, "update_one", test, [{"$set": {**fields, "cancelRequested": True}}])
        return bool(changed.matched_count)

    def reset(self, clock: Clock, task_id: str, token: int | None = None, *, discard: bool) -> Flow[bool]:
        """Let a task that nobody runs be started again. One command, three with ``discard``."""
        full = self.prefix + task_id
        fields: dict[str, Any] = {
            "status": "interrupted",
            "claim": None,
            "leaseUntil": None,
            "tries": 0,
            "cancelRequested": False,
            "error": None,
            "finishedAt": None,
            "expiresAt": None,
            "dispatchedAt": None,
        }
        if discard:
            fields.update(saved=False, data=None, places=None, result=None, progress=0, done=None, startedAt=None)
        test: dict[str, Any] = {"_id": full, "$expr": LEASE.free(clock)}
        if token is not None:
            test["token"] = token
        changed = yield from ask(TASKS, "update_one", test, [{"$set": fields}])
        if discard and changed.matched_count:
            yield from ask(TASKS, "delete_one", {"_id": fence_id(full)})
            yield from ask(CHECKPOINTS, "delete_many", {"taskId": full})
        return bool(changed.matched_count)

    def delete(self, clock: Clock, task_id: str, token: int | None, *, force: bool) -> Flow[bool]:
        """Remove the head, unless somebody runs the task, then fence and history. Four commands at most."""
        full = self.prefix + task_id
        test: dict[str, Any] = {"_id": full}
        if token is not None:
            test["token"] = token
        if not force:
            test["$expr"] = LEASE.free(clock)
        removed = yield from ask(TASKS, "delete_one", test)
        if not removed.deleted_count:
            # Without a head there may be a history of another program's. It goes too, unless one run was meant.
            head = yield from ask(TASKS, "find_one", {"_id": full}, {"_id": True})
            if head is not None or token is not None:
                return False
        # The fence first: a runner that was cut off can commit no more.
        yield from ask(TASKS, "delete_one", {"_id": fence_id(full)})
        gone = yield from ask(CHECKPOINTS, "delete_many", {"taskId": full})
        return bool(removed.deleted_count or gone.deleted_count)

    def claim_dispatch(self, clock: Clock, info: TaskInfo, again_after: int) -> Flow[bool]:
        """Note that a stalled task is being dispatched; ``False`` if it runs or was dispatched lately. One command."""
        recent = {"$gt": [{"$ifNull": ["$dispatchedAt", clock.before(again_after)]}, clock.before(again_after)]}
        test = {
            "_id": self.prefix + info.task_id,
            "token": info.token,
            "status": "running",
            "$expr": {"$and": [clock.passed("leaseUntil"), {"$cond": [recent, False, True]}]},
        }
        changed = yield from ask(TASKS, "update_one", test, [{"$set": {"dispatchedAt": clock.now()}}])
        return bool(changed.matched_count)

    def undo_dispatch(self, clock: Clock, info: TaskInfo) -> Flow[None]:
        """Forget that it was dispatched. One command."""
        test = {"_id": self.prefix + info.task_id, "token": info.token}
        yield from ask(TASKS, "update_one", test, [{"$set": {"dispatchedAt": literal(None)}}])

    def orphans(self, clock: Clock) -> Flow[int]:
        """Remove the histories of our tasks whose heads are gone; returns how many states.

        Two commands for every 500 tasks, three where there is something to remove.
        """
        after, removed = None, 0
        while True:
            pipeline: builtins.list[dict[str, Any]] = [
                {"$match": {"taskId": prefix_range(self.prefix, after), "token": {"$ne": None}}},
                {"$match": {"taskId.0": NOT_A_LIST}},
                {"$group": {"_id": "$taskId"}},
                {"$sort": {"_id": 1}},
                {"$limit": PAGE},
            ]
            groups = yield from ask(CHECKPOINTS, "aggregate", pipeline)
            ids = [one["_id"] for one in named_by_text(groups, "_id")]
            heads = yield from ask(TASKS, "find", {"_id": {"$in": ids}}, {"_id": True})
            gone = set(ids).difference(one["_id"] for one in heads)
            if gone:
                result = yield from ask(
                    CHECKPOINTS, "delete_many", {"taskId": {"$in": sorted(gone)}, "token": {"$ne": None}}
                )
                removed += int(result.deleted_count)
            if len(ids) < PAGE:
                return removed
            after = ids[-1]
