"""Checkpoints: saving and loading against one raw command each, and against langgraph's checkpointer."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pymongo
from pymongo import MongoClient, WriteConcern

from benchmarks.commands import counted, number_of
from benchmarks.harness import Contender, Goal, Operation, Report
from goscope_django import runtime
from goscope_django.checkpoints import checkpointed
from goscope_django.contracts import Checkpoint

OURS = "goscope_django"
RAW = "raw pymongo"
PEER = "langgraph MongoDBSaver"
DATA = {"cursor": 12_345, "text": "x" * 1_000}


class RawCheckpoints:
    """Numbered states in the plainest way."""

    def __init__(self, client: MongoClient[dict[str, Any]], database: str) -> None:
        base = client[database]["raw_checkpoints"]
        base.create_index([("taskId", 1), ("sequence", 1)], unique=True)
        base.create_index("taskId")
        self.collection = base.with_options(write_concern=WriteConcern("majority"))

    @staticmethod
    def document(task: str, sequence: int) -> dict[str, Any]:
        return {
            "_id": f"{task}:{sequence}",
            "taskId": task,
            "sequence": sequence,
            "timestamp": datetime.now(UTC),
            "progress": 50.0,
            "data": DATA,
            "estimatedTimeRemaining": None,
        }

    def save(self, task: str, sequence: int) -> None:
        self.collection.insert_one(self.document(task, sequence))

    def latest(self, task: str) -> Any:
        found = self.collection.find_one({"taskId": task}, sort=[("sequence", -1)])
        assert found is not None
        return found["data"]

    def latest_in_time(self, task: str) -> Any:
        """The same, within ten seconds at worst, as all that coordinates is bounded in goscope_django."""
        with pymongo.timeout(10):
            return self.latest(task)


class RawHeads:
    """A head that is updated, and a history that is inserted into."""

    def __init__(self, raw: RawCheckpoints) -> None:
        self.raw = raw
        self.heads = raw.collection.database["raw_tasks"].with_options(write_concern=WriteConcern("majority"))
        self.heads.replace_one({"_id": "task"}, {"_id": "task", "claim": "me", "sequence": 0}, upsert=True)

    def save(self, task: str, sequence: int) -> None:
        fields = {"sequence": sequence, "data": DATA, "progress": 50.0, "heartbeatAt": datetime.now(UTC)}
        assert self.heads.update_one({"_id": "task", "claim": "me"}, {"$set": fields}).matched_count
        self.raw.save(task, sequence)


def _ours(task: str, sequence: int) -> Checkpoint:
    return Checkpoint(
        id=f"{task}:{sequence}",
        task_id=task,
        sequence=sequence,
        timestamp=datetime.now(UTC),
        progress=50.0,
        data=DATA,
    )


class _Peer:
    """langgraph's checkpointer, told to write at majority concern as well."""

    def __init__(self, client: MongoClient[dict[str, Any]], database: str) -> None:
        # Not there to be type-checked where it is not installed.
        base = importlib.import_module("langgraph.checkpoint.base")
        saver = importlib.import_module("langgraph.checkpoint.mongodb").MongoDBSaver
        self.saver: Any = saver(client, db_name=f"{database}_langgraph")
        self.id: Callable[[], object] = importlib.import_module("langgraph.checkpoint.base.id").uuid6
        self.state: dict[str, Any] = {**base.empty_checkpoint(), "channel_values": DATA}

    def put(self, task: str) -> None:
        config = {"configurable": {"thread_id": task, "checkpoint_ns": ""}}
        self.saver.put(config, {**self.state, "id": str(self.id())}, {"source": "loop", "step": 1, "parents": {}}, {})

    def get(self, task: str) -> None:
        assert self.saver.get_tuple({"configurable": {"thread_id": task}}) is not None


def _numbered(save: Callable[[str, int], object]) -> Callable[[int], Operation]:
    numbers, task = itertools.count(), uuid.uuid4().hex
    return lambda _: lambda: save(task, next(numbers))


def _commands(report: Report, url: str) -> None:
    report.figures("Checkpoints, commands")
    with counted(url) as counter:
        provider, task = runtime.adapter().checkpoint, uuid.uuid4().hex
        provider.save(_ours(task, 0))
        report.figure("save", OURS, number_of(counter, lambda: provider.save(_ours(task, 1))), "commands", most=1)
        report.figure("load_latest", OURS, number_of(counter, lambda: provider.load_latest(task)), "commands", most=1)
        with checkpointed(uuid.uuid4().hex) as held:
            sent = number_of(counter, lambda: held.save(DATA))
        report.figure("task.save, fenced", OURS, sent, "commands", most=2)


def run(report: Report, url: str, client: MongoClient[dict[str, Any]], database: str, *, quick: bool) -> None:
    """All rows of checkpoints."""
    _commands(report, url)
    raw, provider = RawCheckpoints(client, database), runtime.adapter().checkpoint
    history, task = 200 if quick else 1_000, uuid.uuid4().hex
    raw.collection.insert_many([raw.document(task, sequence) for sequence in range(history)])
    for sequence in range(history):
        provider.save(_ours(task, sequence))
    saves = [
        Contender(RAW, _numbered(raw.save)),
        Contender(OURS, _numbered(lambda name, number: provider.save(_ours(name, number)))),
    ]
    reads = [
        Contender(RAW, lambda _: lambda: raw.latest(task)),
        Contender("raw, with a time limit", lambda _: lambda: raw.latest_in_time(task)),
        Contender(OURS, lambda _: lambda: provider.load_latest(task)),
    ]
    if importlib.util.find_spec("langgraph") and importlib.util.find_spec("langgraph.checkpoint.mongodb"):
        peer = _Peer(client, database)
        for _ in range(history):
            peer.put(task)
        saves.append(Contender(PEER, _numbered(lambda name, _: peer.put(name))))
        reads.append(Contender(PEER, lambda _: lambda: peer.get(task)))
    else:
        print("langgraph-checkpoint-mongodb is not installed: it is left out")
    report.section("Checkpoints of 1 KB, majority (all)")
    report.compare("save", saves, Goal(OURS, 0.9, 1.1), finer=4, further=[Goal(OURS, 1.2, against=PEER)])
    report.compare(
        f"latest of {history:,}", reads, Goal(OURS, 0.95, 1.1), finer=4, further=[Goal(OURS, 1.5, against=PEER)]
    )
    with checkpointed(uuid.uuid4().hex) as held:
        report.compare(
            "fenced save, two commands",
            [
                Contender(RAW, _numbered(RawHeads(raw).save)),
                Contender(f"{OURS}, task.save", lambda _: lambda: held.save(DATA)),
            ],
            finer=4,
        )
