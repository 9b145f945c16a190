"""Mutated values are decoded, and planted documents read by every public call: nothing crashes, hangs or surprises.

Run it as ``python -m tests.soak.planted --decoded 1000000 --planted 100000 --seed 1`` (``make soak``). Rules:

* Everything follows from the seed: a fault is told with what repeats it.
* A decoded value is a value or ``Undecodable``, and where every value is sealed one that was sealed. A call returns, or
  raises what its documentation says.
* Nothing may take longer than ``LONGEST`` seconds; where the interpreter itself hangs, its stacks are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime as dt
import decimal
import faulthandler
import itertools
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final

import bson
from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo import WriteConcern
from pymongo.errors import BulkWriteError

LONGEST: Final = 20.0
"""Seconds that one value or call may take, on a busy machine."""
MOST_FAULTS: Final = 20
TAGS: Final = (
    *("tree", "pickle", "tuple", "set", "frozenset", "dict", "ordereddict", "son", "str", "int", "bytearray"),
    *("complex", "decimal", "uuid", "date", "timedelta", "datetime", "time", "enum", "int64", "datetimems", "binary"),
    *("timestamp", "regex", "code", "dbref", "safestring", "response", "streaming", "nothing", "sealed"),
)
PRIME: Final = 2**61 - 1
BACKEND: Final = "goscope_django.cache.MongoDBCache"
CACHES: Final = {
    "default": {"BACKEND": BACKEND},
    "signed": {"BACKEND": BACKEND, "OPTIONS": {"SIGN": True, "COMPRESS": {"MIN_BYTES": 10}}},
}
Call = Callable[[], object]
Column = tuple[tuple[str, ...], dict[str, Call]]
"""Calls that write, and to which collections."""
DOCUMENTED: Final[dict[str, type[BaseException]]] = {
    "cache.incr": ValueError,
    "signed.incr": ValueError,
    "cache.incr_version": ValueError,
}
"""What is documented and no error of ours: Django's own contract has it, where there is no such entry."""


class Faults:
    """What went wrong, each kind once; and how often what was done, and how that ended."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.counts = Counter[str]()

    def add(self, what: str, error: object, where: object) -> None:
        if len(self.found) < MOST_FAULTS:
            self.found.setdefault(f"{what}: {type(error).__name__}", f"{error!s:.300} <- {where!s:.4500}")

    def __str__(self) -> str:
        return "\n".join(f"{name}: {said}" for name, said in self.found.items())

    @property
    def counted(self) -> str:
        """The counts, for people."""
        return ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))


@contextlib.contextmanager
def watched(seconds: float = 6 * LONGEST) -> Iterator[None]:
    """End the process with its stacks if what is inside hangs, be it in C."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


# What is planted


def leaf(dice: random.Random) -> Any:
    """A value that no program of ours would have put there."""
    made: tuple[Callable[[], Any], ...] = (
        lambda: dice.choice((None, True, False, -1, 0, 1, 1.5, 2**31, 2**62, -(2**63), 2**63 - 1, 10**12)),
        lambda: dice.choice((float("nan"), float("inf"), -float("inf"), 1e308, -0.0)),
        lambda: dice.choice(("", "x", "a\r\nb: c", "os", "9" * 5_000, "0x" + "f" * 99, "1e999999999", "-Infinity")),
        lambda: dice.choice(("../../etc/passwd", "Europe/Berlin", "2020-01-01", "24:00", "\0", "é" * 50, "$x", "a.b")),
        lambda: dice.choice((b"", b"x", b"cos\nsystem\n(S'true'\ntR.", Binary(b"x", 4), Binary(b"\0" * 16, 4))),
        lambda: dice.choice((Decimal128("NaN"), Decimal128("1E+6144"), MinKey(), MaxKey(), ObjectId(b"x" * 12))),
        lambda: dice.choice((Regex("(a+)+$"), Code("x", {"y": 1}), Timestamp(1, 1), Timestamp(2**32 - 1, 1))),
        lambda: dice.choice(
            (DatetimeMS(2**62), DatetimeMS(-(2**62)), dt.datetime(1, 1, 1, tzinfo=dt.UTC), DatetimeMS(253402214400000))
        ),
        lambda: dice.choice(({}, [], [[]], [None], {"$gt": 1}, {"x": {}}, {"$ref": "a", "$id": 1}, {"0": 1}, ["x", 1])),
        lambda: {"$ref": "a", "$id": 1, "$db": dice.choice((1, None, "x"))},
        lambda: nested(dice.choice((5, 60, 120))),
        lambda: envelope(dice),
    )
    return dice.choice(made)()


def nested(levels: int) -> Any:
    found: Any = 1
    for level in range(levels):
        found = [found] if level % 2 else {"x": found}
    return found


def envelope(dice: random.Random) -> dict[str, Any]:
    data: Any = leaf(dice) if dice.random() < 0.5 else [leaf(dice) for _ in range(dice.randrange(4))]
    if dice.random() < 0.005:
        data = [{"__goscope__": 1, "t": "int", "v": str(PRIME * number)} for number in range(1, 3_000)]
    found = {"__goscope__": dice.choice((1, 1, 1, 1, 2, None, "1")), "t": dice.choice(TAGS), "v": data}
    if dice.random() < 0.3:
        found.update(p=leaf(dice), s=leaf(dice))
    return found


def mutated(value: Any, dice: random.Random, rate: float) -> Any:
    """``value`` with some of its parts replaced, removed, repeated or moved."""
    if dice.random() < rate:
        return leaf(dice)
    if isinstance(value, dict):
        items = [(name, mutated(item, dice, rate)) for name, item in value.items()]
        if items and dice.random() < rate:
            items.pop(dice.randrange(len(items)))
        if len(items) > 1 and dice.random() < rate:
            (one, first), (two, second) = items[0], items[-1]
            items[0], items[-1] = (one, second), (two, first)
        if dice.random() < rate:
            items.append((dice.choice(("__goscope__", "t", "v", "vary", "reads", "x")), leaf(dice)))
        return dict(items)
    if isinstance(value, list):
        items = [mutated(item, dice, rate) for item in value]
        if items and dice.random() < rate:
            items.append(items[0])
        if items and dice.random() < rate:
            items.pop()
        return items
    return value


# Decoding


def samples() -> list[object]:
    """Values of every type that has a tag."""
    from django.http import HttpResponse, JsonResponse
    from django.utils.safestring import mark_safe

    response = HttpResponse("body", status=201, headers={"X-One": "1"})
    response.set_cookie("name", "value", max_age=5)
    moment = dt.datetime(2020, 1, 2, 3, 4, 5, 6, dt.UTC)
    plain = [1, "two", 3.0, None, {"four": [5]}, moment, b"six"]
    tagged: list[object] = [
        (1, "2"),
        {1, 2},
        frozenset("ab"),
        {1: 2, "a": (3,)},
        OrderedDict(a=1),
        2**70,
        bytearray(b"x"),
        1j,
        decimal.Decimal("1.50"),
        uuid.UUID(int=5),
        moment.date(),
        moment.time(),
        moment.replace(tzinfo=dt.timezone(dt.timedelta(hours=2), "here")),
        dt.timedelta(1, 2, 3),
        logging.Filterer,
        Int64(5),
        DBRef("a", 1),
        mark_safe("<b>"),
        response,
        JsonResponse({"a": 1}),
        "\ud800",
    ]
    return [*plain, *tagged, {"all": [*plain, *tagged]}, [[(one,)] for one in tagged]]


def decode(count: int, seed: int) -> Faults:
    """Decode ``count`` mutated values."""
    from goscope_django.codec import make_codec
    from goscope_django.exceptions import Undecodable
    from goscope_django.mongodb.codec import CODEC_OPTIONS

    faults, dice, codec = Faults(), random.Random(seed), make_codec().of("go_goscope_cache")
    sealing = codec.sealing(every=True, min_bytes=64)
    codecs = make_codec(pickle=False), codec, codec.sealing(), sealing
    stored = [wired({"value": codec.encode("k", one)}, CODEC_OPTIONS)["value"] for one in samples()]
    sealed = [wired({"value": sealing.pack("k", one)}, CODEC_OPTIONS)["value"] for one in samples()]
    genuine = {(one["v"], one["s"], one.get("z")) for one in sealed}
    stored += sealed
    for number in range(count):
        if not number % 1_000:
            faulthandler.dump_traceback_later(6 * LONGEST, exit=True)
        value = mutated(copy.deepcopy(dice.choice(stored)), dice, dice.choice((0.02, 0.1, 0.5)))
        try:
            value = wired({"value": value}, CODEC_OPTIONS)["value"]
        except Exception:
            faults.counts["that BSON can't hold"] += 1
            continue
        shown, began = f"seed {seed}, number {number}: {value!r:.1200}", time.monotonic()
        try:
            chosen = codecs[number % 4]
            chosen.decode("k", value)
            if chosen is sealing and (value["v"], value["s"], value.get("z")) not in genuine:
                faults.add("decode", AssertionError("a value was read that nobody sealed"), shown)
            faults.counts["read"] += 1
        except Undecodable as error:
            faults.counts[f"refused as {error.reason}"] += 1
        except BaseException as error:
            faults.add("decode", error, shown)
        if time.monotonic() - began > LONGEST:
            faults.add("decode takes long", TimeoutError(), shown)
    faulthandler.cancel_dump_traceback_later()
    return faults


def wired(document: dict[str, Any], options: Any) -> dict[str, Any]:
    return bson.decode(bson.encode(document, codec_options=options), codec_options=options)


# Planting


class Scene:
    """Documents of every collection, made by using each feature once, and the calls that read them."""

    def __init__(self) -> None:
        from django.core.cache import caches

        from goscope_django import runtime
        from goscope_django.contracts import Checkpoint
        from goscope_django.mongodb.codec import CODEC_OPTIONS

        self.adapter = runtime.adapter()
        self.database = runtime.connection().sync().database
        self.prefix = self.adapter.key_prefix
        self.cache: Any = caches["default"]
        self.signed: Any = caches["signed"]
        self.now = dt.datetime.now(dt.UTC)
        self.checkpoint = Checkpoint
        self.documents: dict[str, list[dict[str, Any]]] = {}
        for make in (self._use, self._land):
            make()
            for name in self.database.list_collection_names():
                if name.startswith("go_goscope_"):
                    self.documents.setdefault(name, []).extend(self.database[name].find())
        self.reading, self.writing = self._calls()
        # One node has it: nothing is to survive, and a majority is slower.
        self._at_once = {
            name: self.database[name].with_options(CODEC_OPTIONS, write_concern=WriteConcern(1, j=False))
            for name in self.documents
        }

    def _use(self) -> None:
        from goscope_django import figures
        from goscope_django.checkpoints import checkpointed
        from goscope_django.sessions import SessionStore

        adapter = self.adapter
        held = adapter.lock.acquire("k", 600_000, "me")
        assert held is not None
        self.token = held.token
        session = SessionStore()
        session["user"] = 1
        session.create()
        self.session = session.session_key
        for _ in range(3):
            adapter.circuit_breaker.record_failure("k", 3)
        self.cache.set("k", {"a": (1, 2)}, 600)
        self.cache.set("n", 5, 600)
        self.signed.set("signed", {"a": (1, 2)}, 600)
        self.signed.set("signed-n", 5, 600)
        self.cache.get_or_set("tagged", [1], 600, tags=["tag"], stale=600)
        self.signed.get_or_set("signed-tagged", [1], 600, tags=["tag"], stale=600)
        adapter.checkpoint.save(self.checkpoint("i", "c", 1, self.now, 5.0, {"a": (1,)}, 3.0))
        adapter.idempotency.set("k", {"result": 1})
        self.claim = adapter.idempotency.begin("running", 600_000, "print", 600_000).token or 0
        with contextlib.suppress(KeyError), checkpointed("t", metadata={"celery": {"task": "x"}}) as task:
            task.save({"a": (1,)}, progress=20.0)
            raise KeyError
        figures.flush()

    def _land(self) -> None:
        moment = self.now + dt.timedelta(hours=1)
        response = {"status": 200, "reason": "OK", "headers": [["X", "y"]], "body": b"x", "extra": {}}
        for kind, value in (("response", {"is": response, "reads": [], "digest": "x"}), ("value", 1), ("error", {})):
            self.database.go_goscope_flights.insert_one(
                {
                    "_id": f"{self.prefix}flight:{kind}",
                    "claim": None,
                    "token": 2,
                    "published": 2**40,
                    "state": "landed",
                    "kind": kind,
                    "value": value,
                    "took": 5,
                    "leader": "x",
                    "publishedAt": moment,
                    "keepUntil": moment,
                    "startedAt": self.now,
                    "expiresAt": moment,
                }
            )

    def _calls(self) -> tuple[dict[str, Call], list[list[Column]]]:
        from goscope_django import checkpoints, circuits, operations
        from goscope_django.checkpoints import messages
        from goscope_django.contracts import Checkpoint, CircuitBreakerState
        from goscope_django.idempotency import idempotent
        from goscope_django.locks import lock
        from goscope_django.sessions import SessionStore, count_sessions
        from goscope_django.single_flight import single_flight

        one, cache, signed = self.adapter, self.cache, self.signed

        def locked() -> None:
            with lock("k", 5, blocking=False):
                pass

        def task() -> None:
            with checkpoints.checkpointed("t") as found:
                for _ in found.track(range(2)):
                    found.save(1)

        def dispatch(info: checkpoints.TaskInfo) -> None:
            messages.opened("celery", info)
            raise AssertionError("something planted was dispatched")

        def circuit_state() -> CircuitBreakerState:
            return CircuitBreakerState("open", 3, self.now, self.now)

        def saved(session: Any) -> None:
            session["a"] = 1
            session.save()

        flight = single_flight(1, 0.05, key="k")(plain)
        once = idempotent(key="k")(plain)
        reading: dict[str, Call] = {
            "lock.get": lambda: one.lock.get("k"),
            "lock.list": lambda: one.lock.list("k.*"),
            "circuit.get": lambda: one.circuit_breaker.get_state("k"),
            "circuit.list": lambda: one.circuit_breaker.list("k"),
            "circuits": lambda: circuits.list_circuits(".*"),
            "circuit": lambda: circuits.get_circuit("k"),
            "provider cache.get": lambda: one.cache.get("k"),
            "provider cache.has": lambda: one.cache.has("k"),
            "provider cache.keys": lambda: one.cache.keys("k.*"),
            "cache.get": lambda: cache.get("k"),
            "cache.get tagged": lambda: cache.get("tagged"),
            "cache.get_many": lambda: cache.get_many(["k", "n", "tagged"]),
            "cache.has_key": lambda: cache.has_key("k"),
            "cache.has_key tagged": lambda: cache.has_key("tagged"),
            "cache.ttl": lambda: cache.ttl("k"),
            "cache.pttl tagged": lambda: cache.pttl("tagged"),
            "cache.keys": lambda: cache.keys("*"),
            "cache.count_keys": lambda: cache.count_keys("*"),
            "signed.get": lambda: expect(signed.get("signed"), None, {"a": (1, 2)}),
            "signed.get tagged": lambda: expect(signed.get("signed-tagged"), None, [1]),
            "signed.get_many": lambda: expect(signed.get_many(["signed"]), {}, {"signed": {"a": (1, 2)}}),
            "signed.has_key": lambda: signed.has_key("signed"),
            "signed.ttl": lambda: signed.ttl("signed"),
            "checkpoint.load": lambda: one.checkpoint.load("i"),
            "checkpoint.load_latest": lambda: one.checkpoint.load_latest("c"),
            "checkpoint.list": lambda: one.checkpoint.list("c"),
            "checkpoint.tasks": lambda: one.checkpoint.tasks(".*"),
            "idempotency.get": lambda: one.idempotency.get("k"),
            "idempotency.in_progress": lambda: one.idempotency.in_progress("running"),
            "idempotency.list": lambda: one.idempotency.list(".*"),
            "tasks": lambda: checkpoints.list_tasks(".*"),
            "task.get": lambda: checkpoints.get_task("t"),
            "task.result": lambda: checkpoints.task_result("t"),
            "tasks stalled": checkpoints.stalled_tasks,
            "session": lambda: SessionStore(self.session).load(),
            "session.exists": lambda: SessionStore().exists(self.session),
            "sessions": count_sessions,
            "state": state,
            "checkpoints": lambda: operations.list_checkpoints("c"),
            "cache keys": lambda: operations.cache_keys("default"),
            "details of a lock": lambda: operations.details("lock", "k"),
            "details of a circuit": lambda: operations.details("circuit", "k"),
            "details of a task": lambda: operations.details("task", "t"),
            "details of a record": lambda: operations.details("idempotency", "running"),
            "matches": self._joined,
        }
        # In each column what writes to one thing. One of each column is called, then the collections are planted again.
        columns: list[Column] = [
            (
                ("locks",),
                {
                    "lock.acquire": lambda: one.lock.acquire("k", 1_000),
                    "lock.extend": lambda: one.lock.extend("k", 1_000, "me"),
                    "lock.force_release": lambda: one.lock.force_release("k"),
                    "lock": locked,
                    "release": lambda: operations.release_lock("k", self.token),
                },
            ),
            (
                ("circuit",),
                {
                    "circuit.failure": lambda: one.circuit_breaker.record_failure("k", 3),
                    "circuit.success": lambda: one.circuit_breaker.record_success("k"),
                    "circuit.set_state": lambda: one.circuit_breaker.set_state("k", circuit_state()),
                    "circuit.delete": lambda: one.circuit_breaker.delete("k"),
                    "breaker": lambda: circuits.CircuitBreaker("k").call(plain),
                    "circuit.force_open": lambda: circuits.force_open("k"),
                    "circuit.force_close": lambda: circuits.force_close("k"),
                    "circuit.reset": lambda: circuits.reset("k"),
                    "open circuit": lambda: operations.open_circuit("k", 1),
                },
            ),
            (
                ("cache",),
                {
                    "cache.touch": lambda: cache.touch("k"),
                    "cache.get_or_set": lambda: cache.get_or_set("k", 5),
                    "cache.add": lambda: cache.add("k", 5),
                    "cache.set": lambda: cache.set("k", 5, tags=["tag"]),
                    "cache.incr_version": lambda: cache.incr_version("k"),
                },
            ),
            (
                ("cache",),
                {
                    "cache.touch tagged": lambda: cache.touch("tagged"),
                    "cache.get_or_set tagged": lambda: cache.get_or_set("tagged", plain, 5, tags=["tag"], stale=5),
                    "cache.add tagged": lambda: cache.add("tagged", 5),
                    "cache.persist": lambda: cache.persist("tagged"),
                    "cache.expire": lambda: cache.expire("tagged", 5),
                    "cache.delete": lambda: cache.delete("tagged"),
                },
            ),
            (("cache",), {"cache.incr": lambda: cache.incr("n")}),
            (("cache",), {"signed.incr": lambda: expect(signed.incr("signed-n"), 6)}),
            (("cache",), {"signed.get_or_set": lambda: expect(signed.get_or_set("signed-tagged", [1]), [1])}),
            (
                ("cache",),
                {
                    "signed.touch": lambda: signed.touch("signed"),
                    "signed.add": lambda: signed.add("signed", {"a": (1, 2)}),
                },
            ),
            (
                ("cache",),
                {
                    "session.save": lambda: saved(SessionStore(self.session)),
                    "session.cycle_key": lambda: SessionStore(self.session).cycle_key(),
                    "session.delete": lambda: SessionStore().delete(self.session),
                },
            ),
            (
                ("tasks", "checkpoints"),
                {
                    "checkpoint.save": lambda: one.checkpoint.save(Checkpoint("j", "c", 2, self.now)),
                    "checkpoint.cleanup": lambda: one.checkpoint.cleanup("c", 1),
                    "checkpoint.delete_all": lambda: one.checkpoint.delete_all("c"),
                    "task": task,
                    "task.cancel": lambda: checkpoints.cancel_task("t"),
                    "task.reset": lambda: checkpoints.reset_task("t"),
                    "task.delete": lambda: checkpoints.delete_task("t"),
                    "task.resume": lambda: checkpoints.resume_stalled(dispatch),
                    "task.run_again": lambda: checkpoints.run_again("t"),
                    "task.cleanup": checkpoints.cleanup_tasks,
                },
            ),
            (
                ("idempotency",),
                {
                    "idempotency.begin": lambda: one.idempotency.begin("running", 1_000, "print", 1_000),
                    "idempotency.complete": lambda: one.idempotency.complete("running", self.claim, 1),
                    "idempotency.extend": lambda: one.idempotency.extend("running", self.claim, 1_000),
                    "idempotency.abandon": lambda: one.idempotency.abandon("running", self.claim),
                    "idempotency.set": lambda: one.idempotency.set("running", 1),
                    "idempotency.delete": lambda: one.idempotency.delete("k"),
                    "idempotent": once,
                },
            ),
            (("flights",), {"single flight": flight}),
        ]
        whole: list[Column] = [
            (
                ("cache",),
                {
                    "cache.set_many": lambda: cache.set_many({"k": 5, "tagged": 6}),
                    "cache.delete_many": lambda: cache.delete_many(["k", "tagged"]),
                    "cache.delete_pattern": lambda: cache.delete_pattern("t*"),
                    "cache.invalidate_tags": lambda: cache.invalidate_tags("tag"),
                    "clear": lambda: operations.clear_cache("default"),
                },
            )
        ]
        writing = [columns, whole]
        return reading, writing

    def _joined(self) -> None:
        """What a caller that has waited for a flight makes of what is published there."""
        from goscope_django.http import responses
        from goscope_django.mongodb.codec import CODEC_OPTIONS

        for found in self.database.get_collection("go_goscope_flights", codec_options=CODEC_OPTIONS).find():
            value = found.get("value")
            with contextlib.suppress(KeyError, TypeError, ValueError):
                responses.unpack(value["is"] if isinstance(value, dict) else value)

    def clear(self) -> None:
        """Remove what was planted."""
        for name in self.documents:
            self.database[name].delete_many({})

    def mutate(self, dice: random.Random) -> dict[str, list[Any]]:
        """Some of all documents, by collection: each of it mutated more or less, or not at all."""
        found: dict[str, list[Any]] = {}
        for name, documents in self.documents.items():
            rate = dice.choice((0.0, 0.05, 0.2, 0.6))
            made = [{**mutated_fields(one, dice, rate), "_id": one["_id"]} if rate else one for one in documents]
            found[name] = [one for one in map(encoded, made) if one is not None]
        return found

    def plant(self, there: dict[str, list[Any]], only: Collection[str]) -> int:
        """Put these documents in place of all that there are in some collections; how many the server took."""
        planted = 0
        for name in only:
            documents = there[name]
            collection = self._at_once[name]
            collection.delete_many({})
            try:
                planted += len(collection.insert_many(documents, ordered=False).inserted_ids)
            except BulkWriteError as error:  # what the server refuses can't be planted
                planted += error.details["nInserted"]
        return planted

    def changes(self, there: dict[str, list[Any]]) -> dict[str, Any]:
        """The fields that were mutated, for people."""
        from goscope_django.mongodb.codec import CODEC_OPTIONS

        found: dict[str, Any] = {}
        for name, documents in there.items():
            known = {str(one["_id"]): one for one in self.documents[name]}
            for raw in documents:
                one = bson.decode(raw.raw, CODEC_OPTIONS)
                before = known[str(one["_id"])]
                changed = {field: value for field, value in one.items() if repr(value) != repr(before.get(field))}
                missing = dict.fromkeys(before.keys() - one.keys(), "(missing)")
                if changed or missing:
                    found[f"{name} {one['_id']}"] = changed | missing
        return found


def encoded(document: dict[str, Any]) -> RawBSONDocument | None:
    """A document as it is sent, or ``None`` if BSON can't hold it."""
    from goscope_django.mongodb.codec import CODEC_OPTIONS

    try:
        return RawBSONDocument(bson.encode(document), CODEC_OPTIONS.with_options(document_class=RawBSONDocument))
    except Exception:
        return None


def mutated_fields(document: dict[str, Any], dice: random.Random, rate: float) -> dict[str, Any]:
    found = {}
    for name, value in document.items():
        if dice.random() < rate * 0.2:
            continue
        found[name] = mutated(value, dice, rate)
    return found


def plain() -> int:
    return 1


def expect(found: object, *allowed: object) -> None:
    if found not in allowed:
        raise AssertionError("a value was read that nobody signed")


def state() -> None:
    """The dashboard's data: every section is read."""
    from goscope_django import operations

    found = operations.state()
    for name in ("locks", "circuits", "tasks", "flights", "idempotency"):
        error = getattr(found, name).error
        if error is not None:
            raise AssertionError(f"the section {name} could not be read: {error}")


def plant(count: int, seed: int) -> Faults:
    """Plant ``count`` documents and let every call read them: those that only read at once, the others each in turn."""
    logging.disable(logging.CRITICAL)
    faults, dice, scene, planted = Faults(), random.Random(seed), Scene(), 0
    try:
        while planted < count:
            there = scene.mutate(dice)
            planted += (landed := scene.plant(there, there))
            faults.counts["documents"] += landed
            for name in dice.sample(list(scene.reading), len(scene.reading)):
                tried(faults, scene, name, scene.reading[name], there, seed)
            touched: set[str] = set()
            for columns in scene.writing:
                orders = [
                    [(where, *one) for one in dice.sample(list(calls.items()), len(calls))] for where, calls in columns
                ]
                for row in itertools.zip_longest(*orders):
                    scene.plant(there, touched)
                    touched = set()
                    for where, name, call in filter(None, row):
                        touched |= {f"go_goscope_{one}" for one in where}
                        tried(faults, scene, name, call, there, seed)
    finally:
        logging.disable(logging.NOTSET)
        scene.clear()
    return faults


def tried(faults: Faults, scene: Scene, name: str, call: Call, there: dict[str, list[Any]], seed: int) -> None:
    """Call it. It has to return, or to raise what is documented."""
    from goscope_django.exceptions import GoscopeError

    began = time.monotonic()
    try:
        with watched():
            call()
        faults.counts["calls answered"] += 1
    except GoscopeError:
        faults.counts["calls that raised what is documented"] += 1
    except BaseException as error:
        documented = name in DOCUMENTED and isinstance(error, DOCUMENTED[name])
        if not documented:
            faults.add(name, error, f"seed {seed}, {place_of(error)}, {scene.changes(there)!r:.4000}")
    if time.monotonic() - began > LONGEST:
        faults.add(f"{name} takes long", TimeoutError(), scene.changes(there))


def place_of(error: BaseException) -> str:
    """Where it was raised, and the last places of ours on the way."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "goscope_django" in frame.filename]
    return " < ".join(f"{frame.filename.rpartition('goscope_django/')[2]}:{frame.lineno}" for frame in frames[:-4:-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoded", type=int, default=1_000_000)
    parser.add_argument("--planted", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--url", help="an empty MongoDB database; without it a private server is started")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="each with a server and a seed")
    options = parser.parse_args()
    if options.processes > 1 and not options.url:
        return shared(options.decoded, options.planted, options.seed, options.processes)
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or f"embedded://{Path(folder) / 'mongod'}"
        configure(url)
        from goscope_django import runtime

        runtime.adapter().ensure_indexes()
        found = Counter[str]()
        for what, work, count in (
            ("values decoded", decode, options.decoded),
            ("documents planted", plant, options.planted),
        ):
            began = time.monotonic()
            faults = work(count, options.seed) if count else Faults()
            took = time.monotonic() - began
            print(
                f"{count} {what} in {took:.0f} s: {len(faults.found)} faults ({faults.counted})\n{faults}", flush=True
            )
            found.update(faults.found)
    return 1 if found else 0


def shared(decoded: int, planted: int, seed: int, processes: int) -> int:
    """The same by several processes, each with its share, a server and a seed of its own, from ``seed`` on."""
    share = [f"--decoded={-(-decoded // processes)}", f"--planted={-(-planted // processes)}", "--processes=1"]
    command = [sys.executable, "-m", "tests.soak.planted", *share]
    running = [subprocess.Popen([*command, f"--seed={seed + number}"]) for number in range(processes)]
    return max(one.wait() for one in running)


def configure(url: str, **more: Any) -> None:
    import django
    from django.conf import settings

    settings.configure(
        SECRET_KEY="soak-" + "s" * 50,
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "goscope_django"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        CACHES=CACHES,
        GOSCOPE={"URL": url, "CONNECT_ON_READY": False, **more},
    )
    django.setup()


if __name__ == "__main__":
    sys.exit(main())
