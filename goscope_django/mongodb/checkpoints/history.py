"""Checkpoints in ``go_goscope_checkpoints``: the saved states of tasks, with numbers.

Rule of this file: nothing is overwritten. The unique index refuses a second document of one task and sequence, and
``_id`` refuses a second one of one checkpoint id.
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.errors import DuplicateKeyError, PyMongoError

from goscope_django.contracts import Checkpoint
from goscope_django.core import arguments
from goscope_django.core.flow import Emit, Flow, Query, ask, perform
from goscope_django.exceptions import (
    CheckpointConflict,
    CheckpointTooLarge,
    InvalidType,
    InvalidValue,
    OutcomeUnknown,
    Undecodable,
)
from goscope_django.mongodb.codec import CODEC_OPTIONS, Codec
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import COUNTABLE, instant, prefix_range
from goscope_django.mongodb.document.failures import may_have_happened
from goscope_django.mongodb.document.lease import new_claim
from goscope_django.mongodb.document.reading import MOST, named_by_text, number, text, whole_or_none
from goscope_django.mongodb.driver.store import Store

CHECKPOINTS: Final = "go_goscope_checkpoints"
MOST_BACK: Final = 16
"""Checkpoints that ``load_latest`` looks at, at most, until it finds one that can be read."""
MAX_BYTES: Final = 16 * 1024 * 1024 - 16 * 1024
"""The server takes a little more than 16 MiB; the difference is for the driver's own fields."""
NUMBERED: Final = {"$gte": 0, "$lte": MOST}
"""A number in ``sequence``. A document without one is never the latest."""
FOLLOWED: Final = {"$gte": 0, "$lt": COUNTABLE}
"""One that a task goes on from. None of ours is higher, and BSON can't hold the one after the highest."""


class CheckpointFlows:
    """The operations on checkpoints, as flows, for the keys of one prefix."""

    def __init__(self, prefix: str, codec: Codec) -> None:
        self.prefix = prefix
        self.codec = codec.of(CHECKPOINTS)

    def document(
        self,
        checkpoint: Checkpoint,
        claim: str,
        *,
        stored: Any = None,
        most: int = MAX_BYTES,
        more: Mapping[str, Any] | None = None,
    ) -> RawBSONDocument:
        """The checkpoint as BSON, encoded once. Raises ``CheckpointTooLarge`` if it has more than ``most`` bytes.

        ``stored`` is its data after ``codec.encode``, if that is done already. ``more`` are further fields.
        """
        task = self.prefix + checkpoint.task_id
        remaining = checkpoint.estimated_time_remaining
        encoded = bson.encode(
            {
                "_id": self.prefix + checkpoint.id,
                "taskId": task,
                "sequence": checkpoint.sequence,
                "timestamp": checkpoint.timestamp,
                "progress": checkpoint.progress,
                "data": self.codec.encode(task, checkpoint.data) if stored is None else stored,
                "estimatedTimeRemaining": None if remaining is None else remaining * 1_000,
                "claim": claim,
                **(more or {}),
            },
            codec_options=CODEC_OPTIONS,
        )
        if len(encoded) > most:
            raise CheckpointTooLarge(
                f"checkpoint {checkpoint.id!r} of task {checkpoint.task_id!r}: {len(encoded)} bytes; at most {most}",
                task_id=checkpoint.task_id,
            )
        return RawBSONDocument(encoded)

    def checkpoint(self, document: dict[str, Any]) -> Checkpoint:
        """The checkpoint of a document. Raises ``Undecodable`` if it has no number or its data can't be decoded."""
        name, remaining = str(document["_id"])[len(self.prefix) :], number(document.get("estimatedTimeRemaining"))
        sequence, task = whole_or_none(document.get("sequence")), text(document.get("taskId"))
        if sequence is None:
            raise Undecodable("damaged", f"checkpoint {name!r}: its sequence is not a number")
        if task is None:
            raise Undecodable("damaged", f"checkpoint {name!r}: it names no task")
        return Checkpoint(
            id=name,
            task_id=task[len(self.prefix) :],
            sequence=sequence,
            timestamp=instant(document.get("timestamp")) or _of_milliseconds(document.get("timestamp")),
            progress=number(document.get("progress")) or 0.0,
            data=self.codec.decode(task, document.get("data")),
            estimated_time_remaining=None if remaining is None else remaining / 1_000,
        )

    def save(self, clock: Clock, checkpoint: Checkpoint) -> Flow[None]:
        """Insert it. One command. Raises ``CheckpointConflict`` if the task has this sequence, or the id exists."""
        claim = new_claim()
        yield from self.insert(checkpoint, claim, self.document(checkpoint, claim))

    def insert(self, checkpoint: Checkpoint, claim: str, document: RawBSONDocument) -> Flow[None]:
        """Insert ``document``, which ``claim`` marks. One command, and a read if its outcome is unknown."""
        query: Query[Any] = Query(CHECKPOINTS, "insert_one", document)
        test = {"taskId": self.prefix + checkpoint.task_id, "sequence": checkpoint.sequence}
        for again in (False, True):
            try:
                yield from perform(query)
                return
            except DuplicateKeyError as error:
                # Sent again, it may find its own document: then the first one arrived after all.
                found = (yield from ask(CHECKPOINTS, "confirm", test)) if again else None
                if found is None or found.get("claim") != claim:
                    raise self._conflict(checkpoint) from error
                return
            except PyMongoError as error:
                if not may_have_happened(error):
                    raise
                try:
                    found = yield from ask(CHECKPOINTS, "confirm", test)
                except PyMongoError:
                    found = None
                    again = True
                if found is None and again:
                    raise OutcomeUnknown(f"checkpoint {checkpoint.id!r}: it may have been saved") from error
                if found is not None:
                    if found.get("claim") != claim:
                        raise self._conflict(checkpoint) from error
                    return

    def _conflict(self, checkpoint: Checkpoint) -> CheckpointConflict:
        return CheckpointConflict(
            f"task {checkpoint.task_id!r}: sequence {checkpoint.sequence} or checkpoint id {checkpoint.id!r} exists",
            task_id=checkpoint.task_id,
        )

    def load_latest(self, clock: Clock, task_id: str) -> Flow[Checkpoint | None]:
        test = {"taskId": self.prefix + task_id, "sequence": NUMBERED}
        found = yield from ask(CHECKPOINTS, "point", test, sort=[("sequence", -1)])
        if not found:
            return None
        try:
            return self.checkpoint(found)
        except Undecodable as error:
            unreadable = error
        yield from perform(_unreadable(task_id, unreadable))
        for passed in range(1, MOST_BACK):
            older = yield from ask(CHECKPOINTS, "find", test, sort=[("sequence", -1)], skip=passed, limit=1)
            if not older:
                break
            try:
                return self.checkpoint(older[0])
            except Undecodable as error:
                yield from perform(_unreadable(task_id, error))
        raise unreadable

    def load(self, clock: Clock, checkpoint_id: str) -> Flow[Checkpoint | None]:
        found = yield from ask(CHECKPOINTS, "point", {"_id": self.prefix + checkpoint_id})
        task = text(found.get("taskId")) if found else None
        if task is None or not task.startswith(self.prefix):
            return None
        return self.checkpoint(found)

    def list(self, clock: Clock, task_id: str) -> Flow[builtins.list[Checkpoint]]:
        test = {"taskId": self.prefix + task_id, "sequence": NUMBERED}
        found = yield from ask(CHECKPOINTS, "find", test, sort=[("sequence", 1)])
        return (yield from self.readable(task_id, found))

    def readable(self, task_id: str, found: Iterable[dict[str, Any]]) -> Flow[builtins.list[Checkpoint]]:
        """The checkpoints of these documents, without those that can't be read: each of them is told. No command."""
        shown = []
        for one in found:
            try:
                shown.append(self.checkpoint(one))
            except Undecodable as error:
                yield from perform(_unreadable(task_id, error))
        return shown

    def tasks(self, clock: Clock) -> Flow[builtins.list[str]]:
        pipeline = [
            {"$match": {"taskId": prefix_range(self.prefix)}},
            {"$group": {"_id": "$taskId"}},
            {"$sort": {"_id": 1}},
        ]
        found = yield from ask(CHECKPOINTS, "aggregate", pipeline)
        return [one["_id"][len(self.prefix) :] for one in named_by_text(found, "_id")]

    def cleanup(self, clock: Clock, task_id: str, keep_count: int) -> Flow[int]:
        """Find the oldest one to keep and remove what is older. Two commands. A save in between loses nothing."""
        full = self.prefix + task_id
        test: dict[str, Any] = {"taskId": full}
        if keep_count:
            fields, numbered = {"_id": False, "taskId": True, "sequence": True}, {"taskId": full, "sequence": NUMBERED}
            oldest = yield from ask(
                CHECKPOINTS, "find", numbered, fields, sort=[("sequence", -1)], skip=keep_count - 1, limit=1
            )
            if not oldest:
                return 0
            test["sequence"] = {"$lt": oldest[0]["sequence"]}
        removed = yield from ask(CHECKPOINTS, "delete_many", test)
        return int(removed.deleted_count)


def _unreadable(task_id: str, error: Undecodable) -> Emit:
    return Emit("checkpoint_unreadable", task_id=task_id, reason=error.reason, message=str(error))


def _of_milliseconds(value: object) -> datetime:
    """The time that another program wrote as JavaScript's milliseconds; 1970 for anything else."""
    with contextlib.suppress(OverflowError, ValueError, OSError):
        return datetime.fromtimestamp((number(value) or 0) / 1_000, UTC)
    return datetime.fromtimestamp(0, UTC)


def _valid(checkpoint: object) -> Checkpoint:
    if not isinstance(checkpoint, Checkpoint):
        raise InvalidType(f"checkpoint={type(checkpoint).__name__}: a Checkpoint is needed")
    arguments.key(checkpoint.id, "checkpoint.id")
    arguments.key(checkpoint.task_id, "checkpoint.task_id")
    arguments.count(checkpoint.sequence, "checkpoint.sequence", least=0)
    progress, moment = checkpoint.progress, checkpoint.timestamp
    if isinstance(progress, bool) or not isinstance(progress, (int, float)):
        raise InvalidType(f"checkpoint.progress={progress!r}: a number from 0 to 100 is needed")
    if not 0 <= progress <= 100:
        raise InvalidValue(f"checkpoint.progress={progress!r}: must be from 0 to 100")
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise InvalidType(f"checkpoint.timestamp={moment!r}: an aware datetime is needed")
    if checkpoint.estimated_time_remaining is not None:
        arguments.duration_seconds(
            checkpoint.estimated_time_remaining, "checkpoint.estimated_time_remaining", zero=True
        )
    return checkpoint


class MongoDBCheckpointProvider:
    """``adapter.checkpoint``: see ``contracts.CheckpointProvider``. Each method is one round trip; ``cleanup`` is two.

    ``task_id`` is the task's id. Every method raises ``StoreError`` if MongoDB fails or can't be reached, and
    ``InvalidType`` or ``InvalidValue`` for an argument that can't be used.
    """

    def __init__(self, store: Store, *, key_prefix: str = "", codec: Codec | None = None) -> None:
        """``MongoDBAdapter`` makes it.

        :meta private:
        """
        self.store = store
        self.flows = CheckpointFlows(key_prefix, codec or Codec(pickle=False))

    def save(self, checkpoint: Checkpoint) -> None:
        """Insert ``checkpoint``, which is atomic.

        Raises ``CheckpointConflict`` if its (task, sequence) exists, ``CheckpointTooLarge`` over 16 MB.
        """
        self.store.run(self.flows.save, _valid(checkpoint))

    async def asave(self, checkpoint: Checkpoint) -> None:
        """Async version of ``save``."""
        await self.store.arun(self.flows.save, _valid(checkpoint))

    def load_latest(self, task_id: str) -> Checkpoint | None:
        """The checkpoint with the task's highest sequence.

        One that can't be read (damaged, or pickled under a secret that is gone) is told as ``checkpoint_unreadable``,
        and the newest that can be read is returned: one more round trip for each passed over, at most 16. Raises
        ``Undecodable`` where none of these can be read.
        """
        return self.store.run(self.flows.load_latest, arguments.key(task_id, "task_id"))

    async def aload_latest(self, task_id: str) -> Checkpoint | None:
        """Async version of ``load_latest``."""
        return await self.store.arun(self.flows.load_latest, arguments.key(task_id, "task_id"))

    def load(self, checkpoint_id: str) -> Checkpoint | None:
        """The checkpoint with the id ``checkpoint_id``, or ``None``.

        Raises ``Undecodable`` if its data are forged or damaged.
        """
        return self.store.run(self.flows.load, arguments.key(checkpoint_id, "checkpoint_id"))

    async def aload(self, checkpoint_id: str) -> Checkpoint | None:
        """Async version of ``load``."""
        return await self.store.arun(self.flows.load, arguments.key(checkpoint_id, "checkpoint_id"))

    def list(self, task_id: str) -> builtins.list[Checkpoint]:
        """All checkpoints of a task that can be read, the oldest first. The others are told: see ``load_latest``."""
        return self.store.run(self.flows.list, arguments.key(task_id, "task_id"))

    async def alist(self, task_id: str) -> builtins.list[Checkpoint]:
        """Async version of ``list``."""
        return await self.store.arun(self.flows.list, arguments.key(task_id, "task_id"))

    def tasks(self, pattern: str | None = None) -> builtins.list[str]:
        """Ids of the tasks that have checkpoints and match the regular expression ``pattern`` as a whole.

        Changes nothing. The pattern is code, never a user's text: see ``contracts``.
        """
        test = arguments.pattern(pattern)
        return [one for one in self.store.run(self.flows.tasks) if test is None or test.fullmatch(one)]

    async def atasks(self, pattern: str | None = None) -> builtins.list[str]:
        """Async version of ``tasks``."""
        test = arguments.pattern(pattern)
        return [one for one in await self.store.arun(self.flows.tasks) if test is None or test.fullmatch(one)]

    def cleanup(self, task_id: str, keep_count: int) -> int:
        """Remove all but the ``keep_count`` latest; returns how many were removed. Not atomic.

        A save in between loses nothing.
        """
        keep = arguments.count(keep_count, "keep_count", least=0)
        return self.store.run(self.flows.cleanup, arguments.key(task_id, "task_id"), keep)

    async def acleanup(self, task_id: str, keep_count: int) -> int:
        """Async version of ``cleanup``."""
        keep = arguments.count(keep_count, "keep_count", least=0)
        return await self.store.arun(self.flows.cleanup, arguments.key(task_id, "task_id"), keep)

    def delete_all(self, task_id: str) -> int:
        """Remove all checkpoints of a task; returns how many there were. Not atomic."""
        return self.store.run(self.flows.cleanup, arguments.key(task_id, "task_id"), 0)

    async def adelete_all(self, task_id: str) -> int:
        """Async version of ``delete_all``."""
        return await self.store.arun(self.flows.cleanup, arguments.key(task_id, "task_id"), 0)
