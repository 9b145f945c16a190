"""Documents that somebody has damaged by hand, in every collection: no operation fails with an error of another's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from io import StringIO
from typing import Any

import pytest
from bson import Code, Decimal128, MaxKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from django.core.cache import caches
from django.core.management import CommandError, call_command
from django.test import override_settings

from goscope_django import checkpoints, figures, operations, runtime, signals
from goscope_django.checkpoints import checkpointed
from goscope_django.circuits import CircuitBreaker
from goscope_django.contracts import Checkpoint, CircuitBreakerState
from goscope_django.exceptions import CircuitOpen, GoscopeError, Undecodable
from goscope_django.locks import lock
from goscope_django.mongodb import MongoDBAdapter
from goscope_django.process import counters, losses
from goscope_django.testing.conformance.base import Drive
from tests.support.long import share

JUNK: tuple[Any, ...] = (
    *(None, "text", -1, 1.5, float("nan"), float("inf"), 2**62, True, [], ["x", {"a": 1}], {}, {"$gt": 1}, b"x"),
    *(ObjectId(), Decimal128("NaN"), Regex("a"), MaxKey(), datetime(1970, 1, 1, tzinfo=UTC), DatetimeMS(2**62)),
    *(Code("x"), Code("x", {"y": 1}), 2**63 - 1),
)
FEW: tuple[Any, ...] = (None, "text", float("nan"), float("inf"), ["x", {"a": 1}], b"x", MaxKey())
"""For what takes long: a command looks at everything."""

PAST = (datetime(1970, 1, 1, tzinfo=UTC), DatetimeMS(-(2**62)))
"""What has passed; nothing but a date ever does."""

MISSING = object()
Operation = Callable[[], object]


@pytest.fixture
def settings_url(mongo_url: str) -> Iterator[str]:
    with override_settings(GOSCOPE={"URL": mongo_url, "TEST": {"URL": mongo_url}}):
        yield mongo_url


def failures(
    collection: Any, documents: list[dict[str, Any]], operations: dict[str, Operation], values: tuple[Any, ...] = JUNK
) -> dict[str, str]:
    """What fails, once each field of the last document in turn holds what it should not, or nothing."""
    found: dict[str, str] = {}
    *others, damaged = documents
    for turn, field in enumerate(damaged):
        if field in ("_id", "key"):
            continue
        for junk in (*share(values, turn), MISSING):
            document = {name: value for name, value in damaged.items() if name != field}
            if junk is not MISSING:
                document[field] = junk
            for name, operation in operations.items():
                collection.delete_many({})
                collection.insert_many([*others, document])
                try:
                    operation()
                except GoscopeError:
                    pass
                except Exception as error:
                    found.setdefault(f"{name}, {field}: {type(error).__name__}", f"{error} ({junk!r})")
    return found


def no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def command(*arguments: str) -> Operation:
    """A command with ``--json``, whose output must be JSON that any reader takes."""

    def run() -> None:
        out = StringIO()
        try:
            call_command(*arguments, "--json", stdout=out, stderr=StringIO())
        except CommandError as error:
            if error.returncode != 1 or "could not be read" in str(error):  # 1: an unknown key, or a failed check
                raise
        if out.getvalue():
            json.loads(out.getvalue(), parse_constant=no_number)

    return run


def test_locks(adapter: MongoDBAdapter, database: Any) -> None:
    locks, handle = adapter.lock, adapter.lock.acquire("k", 600_000, "me")
    assert handle is not None
    document = database.go_goscope_locks.find_one()
    operations: dict[str, Operation] = {
        "get": lambda: locks.get("k"),
        "list": locks.list,
        "acquire": lambda: locks.acquire("k", 1_000),
        "extend": lambda: locks.extend("k", 1_000, "me"),
        "valid": handle.is_valid,
        "handle extend": lambda: handle.extend(1_000),
        "release": handle.release,
        "force": lambda: locks.force_release("k"),
    }
    assert not failures(database.go_goscope_locks, [document], operations)


def test_an_expired_lock_with_a_damaged_token_can_be_had(adapter: MongoDBAdapter, database: Any) -> None:
    collection, last = database.go_goscope_locks, 0
    for junk in (*JUNK, MISSING):
        collection.delete_many({})
        document = {"key": "lock:k", "owner": "o", "token": junk, "expiresAt": datetime(2020, 1, 1, tzinfo=UTC)}
        collection.insert_one({name: value for name, value in document.items() if value is not MISSING})
        handle = adapter.lock.acquire("k", 60_000)
        assert handle is not None, junk
        assert handle.token > (0 if junk == 2**62 else last), junk
        last = handle.token if junk != 2**62 else last
        assert handle.is_valid() and handle.release()


def test_only_a_date_ends_a_lock(adapter: MongoDBAdapter, database: Any) -> None:
    for junk in (*JUNK, *PAST, Timestamp(1, 1), MISSING):
        document = {"key": "lock:k", "owner": "node", "expiresAt": junk}
        database.go_goscope_locks.insert_one({name: value for name, value in document.items() if value is not MISSING})
        ended = type(junk) in (datetime, DatetimeMS) and junk in PAST
        assert (adapter.lock.get("k") is None) is ended, junk
        assert (adapter.lock.acquire("k", 60_000) is not None) is ended, junk
        assert adapter.lock.force_release("k"), junk


def test_waiting_for_a_damaged_lock(settings_url: str, database: Any) -> None:
    held = runtime.adapter().lock.acquire("k", 600_000, "me")
    assert held is not None
    document = database.go_goscope_locks.find_one()

    def wait() -> None:
        with lock("k", 5, blocking_timeout=0.01):
            pass

    operations = {
        "wait": wait,
        "release": command("goscope_lock", "release", "k", "--no-input"),
        "status": command("goscope_status"),
    }
    assert not failures(database.go_goscope_locks, [document], operations, FEW)


def test_circuits(adapter: MongoDBAdapter, database: Any, settings_url: str) -> None:
    circuits = adapter.circuit_breaker
    for _ in range(3):
        circuits.record_failure("k", 3)
    document = {**database.go_goscope_circuit.find_one(), "state": "half-open", "resetTimeout": 1_000}
    document["probes"] = [{"id": "x", "until": datetime(2020, 1, 1, tzinfo=UTC)}]
    operations: dict[str, Operation] = {
        "get": lambda: circuits.get_state("k"),
        "list": circuits.list,
        "failure": lambda: circuits.record_failure("k", 3),
        "success": lambda: circuits.record_success("k"),
        "set": lambda: circuits.set_state("k", CircuitBreakerState("open", 3)),
    }
    assert not failures(database.go_goscope_circuit, [document], operations)
    operations = {
        "shown": command("goscope_circuit", "show", "k"),
        "opened": command("goscope_circuit", "open", "k", "--no-input"),
        "reset": command("goscope_circuit", "reset", "k", "--no-input"),
        "status": command("goscope_status"),
    }
    assert not failures(database.go_goscope_circuit, [document], operations, FEW)


@pytest.mark.parametrize("field", ["failureCount", "generation", "history", "failures", "probes", "successes"])
def test_a_damaged_circuit_counts_on(adapter: MongoDBAdapter, database: Any, field: str) -> None:
    for junk in JUNK:
        database.go_goscope_circuit.delete_many({})
        database.go_goscope_circuit.insert_one({"key": "circuit:k", "state": "closed", field: junk})
        counts = [adapter.circuit_breaker.record_failure("k", 10**9) for _ in range(3)]
        assert counts[1:] == [counts[0] + 1, counts[0] + 2] or junk == 2**62, junk
        adapter.circuit_breaker.record_success("k")
        state = adapter.circuit_breaker.get_state("k")
        assert state is not None and state.failure_count == 0, junk


@pytest.mark.parametrize("field", ["resetTimeout", "openedAt", "lastFailureTime", "generation"])
def test_a_damaged_open_circuit_hides_no_other_and_can_be_reset(
    settings_url: str, adapter: MongoDBAdapter, database: Any, field: str
) -> None:
    for junk in (*JUNK, 2**63 - 1, 10**15, datetime(9999, 12, 31, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)):
        database.go_goscope_circuit.delete_many({})
        opened = {"state": "open", "openedAt": datetime.now(UTC), "resetTimeout": 60_000, "generation": 3, field: junk}
        database.go_goscope_circuit.insert_many([{"key": "circuit:k", **opened}, {"key": "circuit:l"}])
        found = operations.state().circuits
        assert found.error is None and [one.name for one in found.items] == ["k", "l"], junk
        if junk != 1.5:  # between two generations
            operations.reset_circuit("k", found.items[0].generation)
            assert operations.get_circuit("k").state == "closed", junk


def test_breakers(settings_url: str, database: Any) -> None:
    def call(name: str) -> None:
        breaker = CircuitBreaker(name, failure_threshold=2, reset_timeout=0.001, probe_timeout=5)
        for _ in range(3):
            with suppress(ZeroDivisionError, CircuitOpen):
                breaker.call(lambda: 1 / 0)
        with suppress(CircuitOpen):
            breaker.call(int)

    found: dict[str, str] = {}
    fields = ("state", "generation", "failureCount", "failures", "probes", "openedAt", "resetTimeout", "override")
    for field in (*fields, "history", "successes", "lastFailureTime", "updatedAt"):
        for number, junk in enumerate(JUNK):
            name = f"{field}{number}"  # each of its own, since a process remembers what it has read
            document = {"state": "half-open", "generation": 2, field: junk}
            database.go_goscope_circuit.insert_one({"_id": f"circuit:{name}", "key": f"circuit:{name}", **document})
            try:
                call(name)
            except Exception as error:
                found.setdefault(f"{field}: {type(error).__name__}", f"{error} ({junk!r})")
    assert not found


def test_cache_entries(adapter: MongoDBAdapter, database: Any, settings_url: str) -> None:
    cache = caches["default"]
    cache.set("k", {"a": 1}, 600)
    document = database.go_goscope_cache.find_one()
    operations: dict[str, Operation] = {
        "get": lambda: cache.get("k"),
        "ttl": lambda: cache.ttl("k"),  # type: ignore[attr-defined]
        "touch": lambda: cache.touch("k", 9),
        "keys": lambda: cache.keys("*"),  # type: ignore[attr-defined]
        "set": lambda: cache.set("k", 2),
    }
    assert not failures(database.go_goscope_cache, [document], operations)


@pytest.mark.parametrize("field", ["tag", "version"])
def test_an_entry_whose_tags_can_not_be_read_counts_as_invalidated(
    database: Any, settings_url: str, drive: Drive, field: str
) -> None:
    cache: Any = caches["default"]
    drive(cache, "set", "k", 5, 60, tags=["a"])
    tags = database.go_goscope_cache.find_one({"tags": {"$ne": None}})["tags"]
    for junk in JUNK:
        database.go_goscope_cache.update_one({"tags": {"$ne": None}}, {"$set": {"tags": [{**tags[0], field: junk}]}})
        assert drive(cache, "get", "k") is None
        assert drive(cache, "get_many", ["k"]) == {}
        assert drive(cache, "has_key", "k") is False
        assert drive(cache, "touch", "k", 60) is False
        assert drive(cache, "ttl", "k") == 0


def test_a_mark_whose_key_is_code_hides_no_keys(database: Any, settings_url: str, drive: Drive) -> None:
    cache: Any = caches["default"]
    drive(cache, "get_or_set", "k", 5, 60, stale=60)
    marked = database.go_goscope_cache.find_one({"_id": {"$regex": "-stale$"}})["_id"]
    database.go_goscope_cache.update_one({"_id": marked}, {"$set": {"key": Code("x")}})
    assert drive(cache, "keys", "*") == ["k"]


@pytest.mark.parametrize("sequence", [2**63 - 1, 2**62, -1, float("nan"), Code("x")])
def test_a_checkpoint_with_an_impossible_number_keeps_no_task_from_saving(
    database: Any, settings_url: str, sequence: Any
) -> None:
    database.go_goscope_checkpoints.insert_one({"_id": "x", "taskId": "t", "sequence": sequence, "data": 1})
    for restart in (False, True):
        with checkpointed("t", keep=1, restart=restart) as task:
            task.save({"n": 1})
            assert task.save({"n": 2}).sequence < 10


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_all_agree_whether_a_cache_entry_is_alive(database: Any, settings_url: str, colour: str) -> None:
    drive, cache, entries = Drive(colour), caches["default"], database.go_goscope_cache
    for junk in (
        *JUNK,
        Timestamp(1, 1),
        DatetimeMS(-(2**62)),
        datetime(2999, 1, 1, tzinfo=UTC),
        [datetime(2999, 1, 1, tzinfo=UTC)],
    ):
        for warm in (False, True):
            entries.delete_many({})
            drive(cache, "set", "k", 7, 600)
            drive(cache, "set", "warm", 7, 600)
            entries.update_one({"_id": {"$regex": "k$"}}, {"$set": {"expiresAt": junk}})
            if warm:
                drive(cache, "incr", "warm")
            alive = drive(cache, "has_key", "k")
            assert alive is not (type(junk) in (datetime, DatetimeMS) and junk in PAST), junk
            assert drive(cache, "get", "k", "none") == (7 if alive else "none"), junk
            assert drive(cache, "get_many", ["k"]) == ({"k": 7} if alive else {}), junk
            if alive:
                assert drive(cache, "incr", "k", 0) == 7, junk
            else:
                with pytest.raises(ValueError, match="not found"):
                    drive(cache, "incr", "k", 0)
            assert drive(cache, "add", "k", 8) is not alive, junk
    drive.close()


def test_a_list_of_keys_is_not_an_entry_of_many(database: Any, settings_url: str) -> None:
    cache = caches["default"]
    cache.set_many({"k": 1, "other": 2})
    full = next(one["key"] for one in database.go_goscope_cache.find() if one["value"] == 1)
    database.go_goscope_cache.update_one({"key": full}, {"$set": {"key": [full, "x"]}})
    assert cache.get_many(["k", "other"]) == {"other": 2}
    cache.set("k", 3)
    assert cache.get_many(["k", "other"]) == {"k": 3, "other": 2}


def test_checkpoints(adapter: MongoDBAdapter, database: Any) -> None:
    store, now = adapter.checkpoint, datetime.now(UTC)
    store.save(Checkpoint("i0", "k", 0, now))
    store.save(Checkpoint("i1", "k", 1, now, 5.0, {"a": 1}, 3.0))
    documents = list(database.go_goscope_checkpoints.find().sort("sequence"))
    operations: dict[str, Operation] = {
        "load": lambda: store.load("i1"),
        "latest": lambda: store.load_latest("k"),
        "list": lambda: store.list("k"),
        "tasks": store.tasks,
        "cleanup": lambda: store.cleanup("k", 1),
        "save": lambda: store.save(Checkpoint("i2", "k", 2, now)),
        "delete": lambda: store.delete_all("k"),
    }
    assert not failures(database.go_goscope_checkpoints, documents, operations)


def test_a_checkpoint_without_a_number_hides_no_other(
    adapter: MongoDBAdapter, database: Any, settings_url: str
) -> None:
    store, now = adapter.checkpoint, datetime.now(UTC)
    store.save(Checkpoint("good", "k", 7, now, data="good"))
    for number, junk in enumerate(("9", {}, datetime(2020, 1, 1, tzinfo=UTC), float("nan"), MISSING)):
        bad = {"_id": f"bad{number}", "taskId": "k", "sequence": junk}
        database.go_goscope_checkpoints.insert_one({k: v for k, v in bad.items() if v is not MISSING})
    latest = store.load_latest("k")
    assert latest is not None and latest.data == "good"
    assert [one.id for one in store.list("k")] == ["good"]
    store.save(Checkpoint("next", "k", 8, now))
    assert store.cleanup("k", 1) == 1
    with checkpointed("k") as task:
        assert task.sequence >= 8
    assert store.delete_all("k")
    assert not database.go_goscope_checkpoints.count_documents({"taskId": "k"})


def test_idempotency_records(adapter: MongoDBAdapter, database: Any) -> None:
    store = adapter.idempotency
    claim = store.begin("k", 600_000, "print", 600_000)
    assert claim.token is not None
    token, collection = claim.token, database.go_goscope_idempotency
    running = collection.find_one()
    assert store.complete("k", token, {"a": 1})
    operations: dict[str, Operation] = {
        "get": lambda: store.get("k"),
        "begin": lambda: store.begin("k", 1_000, "print"),
        "complete": lambda: store.complete("k", token, 5),
        "abandon": lambda: store.abandon("k", token),
        "extend": lambda: store.extend("k", token, 1_000),
        "in progress": lambda: store.in_progress("k"),
        "list": store.list,
        "set": lambda: store.set("k", 1),
        "delete": lambda: store.delete("k"),
    }
    assert not failures(collection, [collection.find_one()], operations, FEW)
    assert not failures(collection, [running], operations, FEW)


def test_tasks(settings_url: str, database: Any) -> None:
    with checkpointed("k") as task:
        task.save({"a": 1}, progress=20.0)
        for _ in task.track(range(2)):
            pass
    database.go_goscope_tasks.update_one({}, {"$set": {"status": "interrupted", "expiresAt": None}})
    history = list(database.go_goscope_checkpoints.find())

    def run() -> None:
        database.go_goscope_checkpoints.delete_many({})
        database.go_goscope_checkpoints.insert_many(history)
        with checkpointed("k") as task:
            task.save({"a": 2}, progress=30.0)
            for _ in task.track(range(2)):
                pass

    operations = {
        "run": run,
        "show": command("goscope_checkpoint", "show", "k"),
        "status": command("goscope_status"),
    }
    assert not failures(database.go_goscope_tasks, [database.go_goscope_tasks.find_one()], operations, FEW)


def test_figures(settings_url: str, database: Any) -> None:
    counters.forget()  # what other tests of this process have counted and lost
    losses.forget()
    caches["default"].set("ns:k", 1)
    assert figures.flush()
    collection = database.go_goscope_stats
    documents = list(collection.find())
    assert {"a", "n"} <= set().union(*documents)
    now = datetime.now(UTC)
    odd = ({"b": {"c": {"h": "x"}}}, {"p": {"at": now, "waits": [[1], ["k", "k", "many", "long"]]}}, [[1]], "text", 5)
    with lock("k"):
        pass
    assert figures.flush()
    documents = list(collection.find())
    assert {"e", "h", "at"} <= set().union(*documents)
    counted = ("e", "h", "at")
    of_kinds = {"minute": ("a", "n", "w", *counted), "hour": counted, "totals": counted}
    of_kinds["names"] = ("aliases", "pairs", "book")
    for document in documents:
        (kind,) = [one for one in of_kinds if one in document["_id"]]
        for field in of_kinds[kind]:
            for junk in (*FEW, *odd):
                collection.replace_one({"_id": document["_id"]}, {**document, field: junk})
                state = operations.state()
                assert state.figures.error is None, (field, junk, state.figures.error)
                json.dumps(state.as_json(), allow_nan=False)
        collection.replace_one({"_id": document["_id"]}, document)


def planted(database: Any, collection: str, full: str, **fields: Any) -> None:
    """Documents whose key or task is a list of texts around ``full``; the unique index refuses ``full`` itself."""
    name = "taskId" if collection == "go_goscope_checkpoints" else "key"
    for number, listed in enumerate(
        ([f"{full}0"], [f"{full}1", f"x{full}"], [f"z{full}", f"{full}2", f"{full[:-1]}0"])
    ):
        database[collection].insert_one({name: listed, "sequence": number, **fields})


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_list_in_place_of_a_key_hides_no_other_from_a_listing(
    adapter: MongoDBAdapter, database: Any, settings_url: str, colour: str
) -> None:
    drive = Drive(colour)
    for name in ("a", "b"):
        assert adapter.lock.acquire(name, 600_000)
        adapter.circuit_breaker.record_failure(name, 3)
        adapter.cache.set(name, 1)
        adapter.idempotency.set(name, 1)
        adapter.checkpoint.save(Checkpoint(f"i{name}", name, 9, datetime.now(UTC)))
    for collection, full in (("locks", "lock:a"), ("circuit", "circuit:a"), ("cache", "cache:a")):
        planted(database, f"go_goscope_{collection}", full, value=1)
    planted(database, "go_goscope_idempotency", "a", value=1, claim=None)
    planted(database, "go_goscope_idempotency", "claim:a", value=1, claim="x")
    planted(database, "go_goscope_checkpoints", "a", token=1)

    assert [one.key for one in drive(adapter.lock, "list")] == ["a", "b"]
    assert [one.key for one in drive(adapter.lock, "list", "[ab]")] == ["a", "b"]
    assert list(drive(adapter.circuit_breaker, "list", "[ab]")) == ["a", "b"]
    assert drive(adapter.cache, "keys", "[ab]") == ["a", "b"]
    assert [one.key for one in drive(adapter.idempotency, "list", "[ab]")] == ["a", "b"]
    assert drive(adapter.checkpoint, "tasks") == ["a", "b"]
    assert drive(adapter.checkpoint, "tasks", "[ab]") == ["a", "b"]
    assert [one.sequence for one in drive(adapter.checkpoint, "list", "a")] == [9]
    state = operations.state()
    assert [one.key for one in state.locks.items] == ["a", "b"]
    assert [one.name for one in state.circuits.items] == ["a", "b"]
    assert [one.key for one in state.idempotency.items] == ["a", "b"]
    assert drive(checkpoints, "cleanup_tasks") == 0
    assert [part.error for part in (state.locks, state.circuits, state.idempotency, state.tasks)] == [None] * 4
    drive.close()


def test_a_page_of_planted_keys_ends_no_walk_through_a_cache(database: Any, settings_url: str) -> None:
    cache: Any = caches["default"]
    cache.set_many(dict.fromkeys(("a", "b", "c", "d"), 1))
    for number in range(5):
        database.go_goscope_cache.insert_one({"key": [f"cache::1:a{number}", f"x{number}"], "value": 1})
    assert list(cache.iter_keys("*", itersize=2)) == ["a", "b", "c", "d"]
    assert cache.delete_pattern("?", itersize=2) == 4


UNREADABLE: dict[str, Any] = {
    "of an unknown format": {"__goscope__": 9, "t": "set", "v": []},
    "damaged": {"__goscope__": 1, "t": "set", "v": 5},
    "pickled under a secret that is gone": {"__goscope__": 1, "t": "pickle", "v": 0, "p": b"x", "s": b"y" * 32},
}


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_checkpoint_hides_no_other(
    adapter: MongoDBAdapter, database: Any, settings_url: str, colour: str, kind: str
) -> None:
    drive, store, now = Drive(colour), runtime.adapter().checkpoint, datetime.now(UTC)
    told: list[tuple[str, str]] = []
    found = database.go_goscope_checkpoints

    def receiver(sender: Any, task_id: str, reason: str, **_: Any) -> None:
        told.append((task_id, reason))

    for number in range(6):
        store.save(Checkpoint(f"i{number}", "k", number, now, data=number))
    signals.checkpoint_unreadable.connect(receiver)
    try:
        for lost in ([2, 5], [2, 4, 5]):
            found.update_many({"sequence": {"$in": lost}}, {"$set": {"data": UNREADABLE[kind]}})
            left = [number for number in range(6) if number not in lost]
            told.clear()
            assert [one.data for one in drive(store, "list", "k")] == left
            assert len(told) == len(lost)
            assert drive(store, "load_latest", "k").data == max(left)
            assert {task for task, _ in told} == {"k"}
        assert len(operations.list_checkpoints("k")) == 6, "what is stored in them is not read"
        found.update_many({}, {"$set": {"data": UNREADABLE[kind]}})
        assert drive(store, "list", "k") == []
        with pytest.raises(Undecodable):
            drive(store, "load_latest", "k")
    finally:
        signals.checkpoint_unreadable.disconnect(receiver)
        drive.close()


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_task_whose_metadata_can_not_be_read_hides_no_other(settings_url: str, database: Any, kind: str) -> None:
    for name in "abc":
        with checkpointed(name, metadata={"x": name}):
            pass
    database.go_goscope_tasks.update_one({"_id": "b"}, {"$set": {"metadata": UNREADABLE[kind]}})
    assert [dict(one.metadata) for one in checkpoints.list_tasks()] == [{"x": "a"}, {}, {"x": "c"}]
    assert [one.task_id for one in operations.state().tasks.items] == ["a", "b", "c"]
    shown = checkpoints.get_task("b")
    assert shown is not None and shown.status == "completed"
    command("goscope_status")()
    command("goscope_checkpoint", "list")()
