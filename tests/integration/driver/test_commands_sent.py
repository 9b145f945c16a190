"""How many commands an operation costs, and what each of them carries, in both colours, on a real server."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.cache import cache
from pymongo import MongoClient
from pymongo.monitoring import CommandStartedEvent

from goscope_django import runtime
from goscope_django.contracts import Checkpoint, CircuitBreakerState
from goscope_django.core.flow import Flow
from goscope_django.core.ticks import tick
from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb.document import estimate
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.estimate import HOLDS
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import Recorder, on_server

_numbers = itertools.count()
HUNDRED = [f"k{number}" for number in range(100)]
OPEN = CircuitBreakerState("open", 3, datetime.now(UTC), None)


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def url(mongo_url: str) -> str:
    """A URL that asks for less than coordination needs: the cache follows it, locks and the rest must not."""
    return f"{mongo_url}&w=1&readPreference=secondary&retryWrites=true"


@pytest.fixture(autouse=True)
def settings(url: str, recorder: Recorder) -> Iterator[None]:
    with on_server(url, client_options={"event_listeners": [recorder]}, KEY_PREFIX=f"{next(_numbers)}:"):
        if runtime.connection().pending:
            runtime.connection().prepare(5)
        yield


class Scene:
    """One project on the server: prepares without being counted, then counts."""

    def __init__(self, drive: Drive, recorder: Recorder) -> None:
        self.drive, self.recorder = drive, recorder
        self.adapter = runtime.adapter()
        drive(self.adapter, "ping")  # the client of this event loop is there

    def count(self, subject: Any, method: str, *args: Any, **kwargs: Any) -> tuple[int, Any]:
        self.recorder.clear()
        result = self.drive(subject, method, *args, **kwargs)
        return len(self.recorder.events), result

    @staticmethod
    def stored(key: str) -> str:
        return f"{runtime.adapter().key_prefix}cache::1:{key}"


@pytest.fixture
def scene(drive: Drive, recorder: Recorder) -> Scene:
    return Scene(drive, recorder)


def test_locks_cost_one_command(scene: Scene) -> None:
    locks = scene.adapter.lock
    sent, handle = scene.count(locks, "acquire", "a", 60_000, "me")
    assert (sent, handle is not None) == (1, True)
    assert scene.count(locks, "acquire", "a", 60_000) == (1, None)
    assert scene.count(locks, "get", "a")[0] == 1
    assert scene.count(locks, "list")[0] == 1
    assert scene.count(handle, "is_valid") == (1, True)
    assert scene.count(handle, "extend", 60_000) == (1, True)
    assert scene.count(locks, "extend", "a", 60_000, "me") == (1, True)
    assert scene.count(locks, "extend", "a", 60_000, "you") == (1, False)
    assert scene.count(handle, "release") == (1, True)
    assert scene.count(handle, "release") == (1, False)
    assert scene.count(locks, "force_release", "a") == (1, False)
    locks.acquire("brief", 1)
    runtime.connection().sync().database.command("ping")
    while (taken := scene.count(locks, "acquire", "brief", 60_000))[1] is None:
        pass
    assert taken[0] == 1, "an expired lock is taken over in one command"


def test_locks_are_asked_for_by_id(scene: Scene) -> None:
    """Each release leaves a dead entry in the index of ``key``, and the server passes by all of the last minutes'."""
    locks = scene.adapter.lock
    handle = scene.drive(locks, "acquire", "a", 60_000)
    for subject, method, args in ((locks, "acquire", ("a", 60_000)), (handle, "extend", (60_000,))):
        scene.count(subject, method, *args)
        [command] = scene.recorder.commands
        assert "key" not in command["query"] and "_id" in command["query"]
    scene.count(handle, "is_valid")
    assert "key" not in scene.recorder.commands[0]["filter"]
    scene.count(handle, "release")
    assert "key" not in scene.recorder.commands[0]["deletes"][0]["q"]


def test_a_lock_of_node_costs_one_more(scene: Scene) -> None:
    """Its ``_id`` is its own: held it stays, expired it is taken over, and it is ours by that ``_id`` from then on."""
    locks, collection = scene.adapter.lock, runtime.connection().sync().database.go_goscope_locks
    full = f"{scene.adapter.key_prefix}lock:n"
    node = {"key": full, "owner": "node", "expiresAt": datetime.now(UTC) + timedelta(hours=1)}
    own_id = collection.insert_one(node).inserted_id
    assert scene.count(locks, "acquire", "n", 60_000) == (2, None)
    assert collection.find_one({"key": full})["owner"] == "node"
    collection.update_one({"key": full}, [{"$set": {"expiresAt": {"$subtract": ["$$NOW", 1]}}}])
    sent, handle = scene.count(locks, "acquire", "n", 60_000, "me")
    assert sent == 2 and collection.find_one({"_id": own_id})["owner"] == "me"
    assert scene.count(locks, "acquire", "n", 60_000) == (2, None)
    assert scene.count(handle, "is_valid") == (1, True)
    assert scene.count(handle, "extend", 60_000) == (1, True)
    assert scene.count(locks, "extend", "n", 60_000, "me") == (1, True)
    assert scene.count(handle, "release") == (1, True)
    assert collection.find_one({"key": full}) is None
    assert scene.count(locks, "acquire", "n", 60_000)[0] == 1


def test_what_another_writer_added_is_kept(scene: Scene) -> None:
    """Also where an expired document is taken over."""
    database, past = runtime.connection().sync().database, datetime(2020, 1, 1, tzinfo=UTC)
    node = {"expiresAt": past, "updatedAt": past, "note": "theirs"}
    full = f"{scene.adapter.key_prefix}lock:kept"
    for own_id in ({"_id": full}, {}):
        database.go_goscope_locks.insert_one({**own_id, "key": full, "owner": "node", **node})
        handle = scene.drive(scene.adapter.lock, "acquire", "kept", 60_000)
        assert database.go_goscope_locks.find_one({"key": full})["note"] == "theirs"
        scene.drive(handle, "release")
    for key, own_id in (("a", {"_id": scene.stored("a")}), ("b", {})):
        database.go_goscope_cache.insert_one({**own_id, "key": scene.stored(key), "value": 1, **node})
        assert scene.drive(cache, "add", key, 2) is True
        assert database.go_goscope_cache.find_one({"key": scene.stored(key)})["note"] == "theirs"


def test_an_entry_that_lacks_a_field_is_there_all_the_same(scene: Scene) -> None:
    database = runtime.connection().sync().database
    for own_id in ({"_id": scene.stored("a")}, {}):
        database.go_goscope_cache.insert_one({**own_id, "key": scene.stored("a"), "value": "theirs"})
        assert scene.drive(cache, "add", "a", "ours") is False
        assert scene.drive(cache, "get", "a") == "theirs"
        scene.drive(cache, "delete", "a")


def test_circuits_cost_one_command(scene: Scene) -> None:
    circuits = scene.adapter.circuit_breaker
    assert scene.count(circuits, "get_state", "c") == (1, None)
    assert scene.count(circuits, "record_failure", "c", 5) == (1, 1)
    assert scene.count(circuits, "record_failure", "c", 2) == (1, 2)
    assert scene.count(circuits, "record_success", "c") == (1, None)
    assert scene.count(circuits, "set_state", "c", OPEN) == (1, None)
    assert scene.count(circuits, "list")[0] == 1
    assert scene.count(circuits, "delete", "c") == (1, True)


def test_the_cache_provider_costs_one_command(scene: Scene) -> None:
    provider = scene.adapter.cache
    for value in (1, {"$gt": (1, 2)}, None):
        assert scene.count(provider, "set", "k", value, 60_000) == (1, None)
        assert scene.count(provider, "get", "k") == (1, value)
    assert scene.count(provider, "get", "missing") == (1, None)
    assert scene.count(provider, "has", "k") == (1, True)
    assert scene.count(provider, "keys") == (2, ["k"])
    assert scene.count(provider, "delete", "k") == (1, True)
    assert scene.count(provider, "clear") == (1, 0)


def test_checkpoints_cost_one_command(scene: Scene) -> None:
    checkpoints = scene.adapter.checkpoint
    for number in range(3):
        one = Checkpoint(f"c{number}", "task", number, datetime.now(UTC), data={"at": number})
        assert scene.count(checkpoints, "save", one) == (1, None)
    assert scene.count(checkpoints, "load_latest", "task")[0] == 1
    assert scene.count(checkpoints, "load", "c1")[0] == 1
    assert scene.count(checkpoints, "list", "task")[0] == 1
    assert scene.count(checkpoints, "tasks")[0] == 1
    assert scene.count(checkpoints, "cleanup", "task", 1)[0] <= 2
    assert scene.count(checkpoints, "delete_all", "task")[0] == 1


def test_idempotency_costs_one_or_two_commands(scene: Scene) -> None:
    idempotency = scene.adapter.idempotency
    sent, claim = scene.count(idempotency, "begin", "i", 60_000, "print")
    assert (sent <= 2, claim.outcome) == (True, "started")
    for fingerprint, outcome in (("print", "in_progress"), ("other", "mismatch")):
        sent, found = scene.count(idempotency, "begin", "i", 60_000, fingerprint)
        assert (sent <= 2, found.outcome) == (True, outcome)
    assert scene.count(idempotency, "extend", "i", claim.token, 60_000) == (1, True)
    sent, done = scene.count(idempotency, "complete", "i", claim.token, {"status": 200})
    assert (sent <= 2, done) == (True, True)
    for _ in range(2):
        sent, found = scene.count(idempotency, "begin", "i", 60_000, "print")
        assert (sent <= 2, found.outcome, found.value) == (True, "completed", {"status": 200})
    assert scene.count(idempotency, "get", "i")[0] == 1
    assert scene.count(idempotency, "set", "i", 1)[0] <= 2
    assert scene.count(idempotency, "delete", "i")[0] == 1
    _, claim = scene.count(idempotency, "begin", "j", 60_000)
    assert scene.count(idempotency, "abandon", "j", claim.token) == (1, True)


def test_djangos_cache_costs_one_command(scene: Scene) -> None:
    sent = scene.count
    for method, args, result in (
        ("get", ("k", "missing"), "missing"),
        ("add", ("k", 1), True),
        ("add", ("k", 2), False),
        ("get", ("k",), 1),
        ("set", ("k", 5), True),
        ("set", ("k", 6, None), True),
        ("incr", ("k",), 7),
        ("decr", ("k", 2), 5),
        ("touch", ("k", 60), True),
        ("touch", ("missing", 60), False),
        ("expire", ("k", 60), True),
        ("ttl", ("k",), 60),
        ("pexpire", ("k", 60_000), True),
        ("expire_at", ("k", datetime.now(UTC) + timedelta(hours=1)), True),
        ("pexpire_at", ("k", 4_000_000_000_000), True),
        ("persist", ("k",), True),
        ("pttl", ("k",), None),
        ("has_key", ("k",), True),
        ("get_or_set", ("k", lambda: 1), 5),
        ("get_many", (HUNDRED,), {}),
        ("set_many", (dict.fromkeys(HUNDRED, 1),), []),
        ("set_many", (dict.fromkeys(HUNDRED, "2"),), []),
        ("get_many", (HUNDRED,), dict.fromkeys(HUNDRED, "2")),
        ("delete_many", (HUNDRED,), None),
        ("get_many", ([],), {}),
        ("set_many", ({},), []),
        ("delete_many", ([],), None),
        ("set", ("k", 1, 0), True),
        ("delete", ("k",), False),
        ("delete_pattern", ("p*",), 0),
        ("clear", (), None),
    ):
        expected = 0 if args in (([],), ({},)) else 1
        assert sent(cache, method, *args) == (expected, result), f"{method}{args!r:.60}"
    assert sent(cache, "set", "k", 1, xx=True) == (1, False)
    assert sent(cache, "set", "k", 1, nx=True) == (1, True)
    assert sent(cache, "set", "k", 2, nx=True) == (1, False)
    assert sent(cache, "set", "k", 3, xx=True) == (1, True)
    assert sent(cache, "get_or_set", "computed", lambda: 1) == (5, 1)
    with pytest.raises(ValueError, match="not found"):
        scene.drive(cache, "incr", "missing")
    scene.recorder.clear()
    cache.close()
    assert scene.recorder.names == []


def test_deletes_and_sums_ask_for_the_servers_time_once_a_second(scene: Scene) -> None:
    def sent(method: str, key: str) -> tuple[Any, bool]:
        scene.recorder.clear()
        result = scene.drive(cache, method, key)
        [command] = scene.recorder.commands
        return result, "$$NOW" in str(command)

    for key in ("a", "b", "c"):
        scene.drive(cache, "set", key, 1, 60)
    scene.drive(cache, "set", "dead", 1, 0.05)
    scene.drive(cache, "incr", "c")  # brings the time along, unless it is known
    time.sleep(0.1)
    assert sent("incr", "a") == (2, False)
    assert sent("delete", "b") == (True, False)
    assert sent("delete", "dead") == (False, False)
    with pytest.raises(ValueError, match="not found"):
        sent("incr", "dead")
    time.sleep(HOLDS)
    assert sent("incr", "a") == (3, True)
    assert sent("incr", "a") == (4, False)
    time.sleep(HOLDS)
    assert sent("delete", "dead") == (False, True)
    assert sent("delete", "a") == (True, True)
    assert sent("delete", "c") == (True, False)
    assert sent("delete", "c") == (False, False)


def test_sets_ask_for_the_servers_time_once_a_second(scene: Scene) -> None:
    def sent(key: str, value: Any, timeout: float | None) -> tuple[str, bool]:
        assert scene.count(cache, "set", key, value, timeout) == (1, True)
        [command] = scene.recorder.commands
        left = scene.drive(cache, "pttl", key)
        assert left is None if timeout is None else timeout * 1_000 - 500 < left <= timeout * 1_000
        assert scene.drive(cache, "get", key) == value
        return next(iter(command)), "$$NOW" in str(command)

    database = runtime.connection().sync().database
    for timeout in (60, None):
        time.sleep(HOLDS)
        assert sent("new", 1, timeout) == ("findAndModify", True)
        assert sent("new", 1, timeout) == ("update", False)
        for key, value in (("$x", "$x"), ("a.b", {"$gt": 1, "": ["$y"], "c.d": {"$set": {"$z": 2}}}), ("n", None)):
            assert sent(key, value, timeout) == ("update", False)
        document = database.go_goscope_cache.find_one({"key": scene.stored("a.b")})
        assert set(document) == {"_id", "key", "value", "expiresAt", "updatedAt"} and document["_id"] == document["key"]
        assert abs((datetime.now(UTC) - document["updatedAt"].replace(tzinfo=UTC)).total_seconds()) < 60
    for brief in (0.9, 59):
        assert sent("new", 1, brief) == ("update", True), "to the millisecond"


def test_a_set_that_brings_the_time_along_holds_as_much_as_any(scene: Scene) -> None:
    large = b"x" * (16 * 1024 * 1024 - 400)
    for _ in range(2):
        for seconds in (HOLDS, 0):
            time.sleep(seconds)
            assert scene.count(cache, "set", "k", large, 60) == (1, True)
            assert scene.drive(cache, "get", "k") == large
        time.sleep(HOLDS)
        with pytest.raises(ValueError, match=r"16777\d+ bytes"):
            scene.drive(cache, "set", "k", large + large[:400], 60)
        assert scene.drive(cache, "get", "k") is None


def test_batches_are_sent_without_expressions(scene: Scene) -> None:
    values = dict.fromkeys(HUNDRED, 1) | {"$x": "$x", "a.b": {"$gt": 1, "": ["$y"], "c.d": {"$id": 2}}}
    time.sleep(HOLDS)  # nothing recent is known
    for timeout in (60, None):
        for more in range(4, -1, -1):  # on a very busy machine what one asks for is too old when it is used
            assert scene.count(cache, "set_many", values, timeout) == (1, [])
            if not more or "$$" not in str(scene.recorder.commands):
                break
        [command] = scene.recorder.commands
        assert "$$" not in str(command) and {type(one["u"]) for one in command["updates"]} == {dict}
        assert scene.drive(cache, "get_many", list(values)) == values
        left = {scene.drive(cache, "pttl", key) for key in ("k1", "$x")}
        assert left == {None} if timeout is None else all(59_000 < one <= 60_000 for one in left)
    document = runtime.connection().sync().database.go_goscope_cache.find_one({"key": scene.stored("k1")})
    assert set(document) == {"_id", "key", "value", "expiresAt", "updatedAt"}
    assert abs((datetime.now(UTC) - document["updatedAt"].replace(tzinfo=UTC)).total_seconds()) < 60


def test_what_another_node_says_of_its_time_rules_no_write(scene: Scene) -> None:
    def secondary(clock: Clock, wrong: timedelta) -> Flow[None]:
        # As if one, from which this URL lets the cache read, had answered a ``get`` just now.
        assert clock.estimate is not None
        clock.estimate.learn(datetime.now(UTC).replace(tzinfo=None) + wrong, tick())
        yield from ()

    for wrong in (timedelta(days=1), -timedelta(days=1)):
        scene.drive(cache, "set_many", dict.fromkeys(("a", "b", "c"), 1), 60)
        scene.drive(runtime.store(), "run", secondary, wrong)
        assert scene.drive(cache, "incr", "a") == 2
        assert scene.drive(cache, "delete", "b") is True
        scene.drive(cache, "set_many", {"c": 2}, 60)
        scene.drive(cache, "set", "d", 2, 60)
        for key in ("c", "d"):
            assert 59_000 < scene.drive(cache, "pttl", key) <= 60_000


def test_a_reads_statement_serves_writes_where_one_node_answers_both(mongo_url: str, drive: Drive) -> None:
    recorder = Recorder()
    with on_server(mongo_url, client_options={"event_listeners": [recorder]}):
        drive(cache, "set", "a", 1, 60)
        drive(cache, "get", "a")
        recorder.clear()
        assert drive(cache, "incr", "a") == 2
        assert "$$NOW" not in str(recorder.commands)


class _Hellos(Recorder):
    """Remembers what ``Recorder`` leaves out."""

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name == "hello":
            self.events.append(event)


def test_where_the_time_comes_too_late_batches_do_not_ask_for_it_each_time(
    mongo_url: str, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "MARGIN", 0.0)  # as on a link between continents
    hellos = _Hellos()
    with on_server(mongo_url, client_options={"event_listeners": [hellos]}):
        for number in range(3):
            assert drive(cache, "set_many", dict.fromkeys(HUNDRED, number), 60) == []
            assert len(hellos.events) == 1
            assert drive(cache, "get_many", HUNDRED) == dict.fromkeys(HUNDRED, number)


def test_larger_operations_cost_few_commands(scene: Scene) -> None:
    sent = scene.count
    many = {f"n{number:04}": number for number in range(2_500)}
    assert sent(cache, "set_many", many) == (3, [])
    assert sent(cache, "get_many", list(many))[0] == 3
    assert sent(cache, "keys", "n*") == (1 + 3, sorted(many))
    assert sent(cache, "keys", "n000?") == (2, [f"n000{digit}" for digit in range(10)])
    assert sent(cache, "delete_pattern", "n*") == (1, 2_500)
    scene.drive(cache, "set", "k", 1)
    assert sent(cache, "delete_pattern", "[a-k]*") == (3, 1)
    scene.drive(cache, "set", "k", 1)
    assert sent(cache, "incr_version", "k")[0] <= 4
    # A value that is computed: two reads, a lock taken and given back, and the write.
    assert sent(cache, "get_or_set", "new", lambda: 1)[0] <= 6


def test_where_entries_of_node_are_overwritten_set_many_is_two_commands(scene: Scene) -> None:
    database = runtime.connection().sync().database
    prefix = runtime.adapter().key_prefix
    for key in HUNDRED[:3]:
        database.go_goscope_cache.insert_one({"key": f"{prefix}cache::1:{key}", "value": "node", "expiresAt": None})
    assert scene.count(cache, "set_many", dict.fromkeys(HUNDRED, 1)) == (2, [])
    assert scene.drive(cache, "get_many", HUNDRED) == dict.fromkeys(HUNDRED, 1)
    assert database.go_goscope_cache.count_documents({"key": {"$regex": f"^{prefix}"}}) == 100


def test_nothing_of_the_cache_is_sent_unacknowledged(mongo_url: str, recorder: Recorder) -> None:
    with on_server(f"{mongo_url}&w=0", client_options={"event_listeners": [recorder]}):
        recorder.clear()
        cache.set("a", 1)
        assert cache.incr("a") == 2
        cache.delete_many(["a"])
        assert cache.set_many({"a": 1, "b": 2}) == []
        assert cache.delete("a") is True
        writes = [command for command in recorder.commands if command.keys() & {"update", "findAndModify", "delete"}]
        assert [command["writeConcern"] for command in writes] == [{"w": 1}] * 5


def _coordinating(adapter: MongoDBAdapter, drive: Drive) -> Iterator[Callable[[], Any]]:
    locks, circuits, idempotency = adapter.lock, adapter.circuit_breaker, adapter.idempotency
    handle = drive(locks, "acquire", "a", 60_000, "me")
    yield lambda: drive(handle, "extend", 60_000)
    yield lambda: drive(handle, "is_valid")
    yield lambda: drive(locks, "get", "a")
    yield lambda: drive(locks, "list")
    yield lambda: drive(locks, "acquire", "a", 60_000)
    yield lambda: drive(handle, "release")
    yield lambda: drive(circuits, "record_failure", "c", 3)
    yield lambda: drive(circuits, "record_success", "c")
    yield lambda: drive(circuits, "get_state", "c")
    yield lambda: drive(circuits, "list")
    yield lambda: drive(adapter.checkpoint, "save", Checkpoint("x", "t", 1, datetime.now(UTC)))
    yield lambda: drive(adapter.checkpoint, "load_latest", "t")
    yield lambda: drive(adapter.checkpoint, "list", "t")
    yield lambda: drive(adapter.checkpoint, "tasks")
    claim = drive(idempotency, "begin", "i", 60_000)
    yield lambda: drive(idempotency, "begin", "i", 60_000)
    yield lambda: drive(idempotency, "complete", "i", claim.token, 1)
    yield lambda: drive(idempotency, "get", "i")
    yield lambda: drive(idempotency, "set", "i", 1)
    yield lambda: drive(idempotency, "delete", "i")


READS = {"find", "aggregate", "count", "distinct"}


def test_coordination_is_majority_primary_and_limited_whatever_the_url_says(scene: Scene) -> None:
    for step in _coordinating(scene.adapter, scene.drive):
        scene.recorder.clear()
        step()
        assert scene.recorder.commands
        for command in scene.recorder.commands:
            name = next(iter(command))
            assert 0 < command["maxTimeMS"] <= 10_000, command
            # A driver adds primaryPreferred to what it sends to one node directly.
            assert command.get("$readPreference", {}).get("mode") in (None, "primary", "primaryPreferred"), command
            if name not in READS:
                assert command["writeConcern"] == {"w": "majority"}, command


def test_the_cache_follows_the_url(scene: Scene) -> None:
    for method, args in (("set", ("k", 1)), ("get", ("k",)), ("get_many", (["k"],)), ("add", ("k", 1)), ("clear", ())):
        scene.count(cache, method, *args)
        (command,) = scene.recorder.commands
        if method == "clear":
            assert command["maxTimeMS"] > 60_000, "more than the socket's time limit, for ranges of millions"
        else:
            assert "maxTimeMS" not in command, command
        # Where one node is connected to directly the driver reads from it, come what may: test_failover looks at reads.
        if next(iter(command)) not in READS:
            assert command["writeConcern"] == {"w": 1}, command


def test_a_url_of_its_own_rules_a_cache(mongo_url: str, recorder: Recorder, drive: Drive) -> None:
    location = f"{mongo_url}&w=majority&readConcernLevel=majority"
    caches = {"default": {}, "own": {"LOCATION": location}}
    with on_server(mongo_url, caches=caches, client_options={"event_listeners": [recorder]}):
        from django.core.cache import caches as made

        drive(made["own"], "set", "k", 1)
        recorder.clear()
        drive(made["own"], "set", "k", 1)
        drive(made["own"], "get", "k")
        written, read = recorder.commands
    assert written["writeConcern"] == {"w": "majority"}
    assert read["readConcern"] == {"level": "majority"}


def test_users_values_are_never_expressions(scene: Scene, mongo_url: str) -> None:
    nasty: list[Any] = ["$key", "$$NOW", {"$gt": 1}, {"$literal": 1}, {"$set": {"a": 1}}, ["$$ROOT"], {"a.b": "$x"}]
    for value in nasty:
        for method in ("set", "add"):
            scene.drive(cache, "delete", "k")
            scene.drive(cache, method, "k", value)
            assert scene.drive(cache, "get", "k") == value
        scene.drive(cache, "set_many", {"k": value})
        assert scene.drive(cache, "get_many", ["k"]) == {"k": value}
    with MongoClient[dict[str, Any]](mongo_url) as client:
        collection = client.get_default_database().go_goscope_cache
        stored = collection.find_one({"key": f"{runtime.adapter().key_prefix}cache::1:k"})
    assert stored is not None
    assert stored["value"] == {"a.b": "$x"}
