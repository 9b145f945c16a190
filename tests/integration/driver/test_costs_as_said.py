"""The round trips that docstrings state are those that are sent, name by name, on a real server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from django.core.cache import caches
from django.test import override_settings

from goscope_django import checkpoints, circuits, locks, operations, runtime, sessions
from goscope_django.checkpoints import operators
from goscope_django.contracts import Checkpoint, CircuitBreakerState
from tests.architecture.public import Public, public
from tests.support.commands import Recorder
from tests.support.operations import own_store

pytestmark = pytest.mark.real

SAID: Final = re.compile(r"\b(one|two|three|four|five)(?: atomic)? round trips?\b", re.IGNORECASE)
NUMBERS: Final = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
ASKED_FIRST: Final = frozenset({"operations"})
"""Whose functions ask whether the server answers, by a round trip that they do not count."""

PUBLIC: Final = {str(one).removeprefix("goscope_django."): one for one in public()}


def said(one: Public) -> int:
    """The first number of round trips in its text, else in what its class or module says of all."""
    for text in (one.own, one.text, one.around):
        found = SAID.search(text)
        if found is not None:
            return NUMBERS[found[1].lower()]
    raise AssertionError(f"{one} states no number")


@pytest.fixture
def sent(mongo_url: str) -> Iterator[Recorder]:
    recorder = Recorder()
    with (
        own_store(mongo_url, CLIENT_OPTIONS={"event_listeners": [recorder]}),
        override_settings(SESSION_ENGINE="goscope_django.sessions", SESSION_CACHE_ALIAS="default"),
    ):
        runtime.adapter().connect()
        caches["default"].set("warm", 1)
        yield recorder


@pytest.fixture(autouse=True)
def dispatched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tasks that were dispatched, by the only dispatcher that there is."""
    found: list[Any] = []
    monkeypatch.setattr(operators, "_dispatchers", [found.append])
    return found


Measure = Callable[[str, Callable[[], Any]], Any]


@pytest.fixture
def costs(sent: Recorder) -> Measure:
    """Call something by its public name, and compare what was sent with what its docstring says."""

    def measure(name: str, call: Callable[[], Any]) -> Any:
        stated = said(PUBLIC[name])
        sent.clear()
        result = call()
        first = 1 if name.partition(".")[0] in ASKED_FIRST else 0
        assert len(sent.names) - first == stated, (name, sent.names)
        return result

    return measure


def test_the_cache(costs: Measure) -> None:
    cache: Any = caches["default"]
    cache.set_many({"a": 1, "b": 2, "c": 3})
    at = "cache.MongoDBCache."
    costs(at + "get", lambda: cache.get("a"))
    costs(at + "get", lambda: cache.get("missing"))
    costs(at + "set", lambda: cache.set("a", 2))
    costs(at + "set", lambda: cache.set("a", 2, nx=True))
    costs(at + "add", lambda: cache.add("d", 2))
    costs(at + "get_or_set", lambda: cache.get_or_set("a", 5))
    costs(at + "touch", lambda: cache.touch("a", 60))
    costs(at + "expire", lambda: cache.expire("a", 60))
    costs(at + "pexpire", lambda: cache.pexpire("a", 60_000))
    costs(at + "expire_at", lambda: cache.expire_at("a", datetime.now(UTC) + timedelta(hours=1)))
    costs(at + "persist", lambda: cache.persist("a"))
    costs(at + "has_key", lambda: cache.has_key("a"))
    costs(at + "ttl", lambda: cache.ttl("a"))
    costs(at + "pttl", lambda: cache.pttl("a"))
    costs(at + "incr", lambda: cache.incr("a"))
    costs(at + "decr", lambda: cache.decr("a"))
    costs(at + "incr_version", lambda: cache.incr_version("a"))
    costs(at + "get_many", lambda: cache.get_many(["b", "c"]))
    costs(at + "set_many", lambda: cache.set_many({"b": 1, "c": 2}))
    costs(at + "delete_many", lambda: cache.delete_many(["b"]))
    costs(at + "delete", lambda: cache.delete("c"))
    costs(at + "invalidate_tags", lambda: cache.invalidate_tags("x", "y"))
    costs(at + "delete_pattern", lambda: cache.delete_pattern("start*"))
    costs(at + "clear", cache.clear)
    costs(at + "remove_all", cache.remove_all)
    lock = cache.lock("mine", timeout=30)
    at = "cache.CacheLock."
    costs(at + "acquire", lock.acquire)
    costs(at + "locked", lock.locked)
    costs(at + "owned", lock.owned)
    costs(at + "extend", lambda: lock.extend(10))
    costs(at + "reacquire", lock.reacquire)
    costs(at + "release", lock.release)


def test_sessions(costs: Measure) -> None:
    store = sessions.SessionStore()
    at = "sessions.SessionStore."
    costs(at + "create", store.create)
    store["name"] = "x"
    costs(at + "save", store.save)
    key = str(store.session_key)
    costs(at + "load", lambda: sessions.SessionStore(key).load())
    costs(at + "exists", lambda: store.exists(key))
    costs("sessions.count_sessions", sessions.count_sessions)
    costs(at + "clear_expired", sessions.SessionStore.clear_expired)
    costs(at + "delete", lambda: store.delete("a" * 32))
    costs(at + "flush", store.flush)


def test_locks(costs: Measure) -> None:
    handle = costs("locks.Lock.acquire", lambda: locks.lock("stock", 30).acquire())
    costs("locks.HeldLock.is_valid", handle.is_valid)
    costs("locks.HeldLock.extend", handle.extend)
    backend: Any = locks.backend()
    at = "locks.MongoDBLockBackend."
    costs(at + "get", lambda: backend.get("stock"))
    costs(at + "list", backend.list)
    costs(at + "remaining", lambda: backend.remaining("stock"))
    costs(at + "standing", lambda: backend.standing("stock"))
    costs("locks.HeldLock.release", handle.release)
    inner = costs(at + "acquire", lambda: backend.acquire("other", 30))
    costs(at + "extend", lambda: backend.extend(inner, 30))
    costs(at + "release", lambda: backend.release(inner))
    costs(at + "force_release", lambda: backend.force_release("other"))


def test_circuits(costs: Measure) -> None:
    costs("circuits.force_open", lambda: circuits.force_open("mail", "it is down"))
    costs("circuits.force_close", lambda: circuits.force_close("mail"))
    costs("circuits.reset", lambda: circuits.reset("mail"))
    costs("circuits.get_circuit", lambda: circuits.get_circuit("mail"))
    costs("circuits.list_circuits", circuits.list_circuits)


def stall(task_id: str) -> None:
    """Let the worker of the task be gone: it says that it runs, and its lease has ended."""
    adapter = runtime.adapter()
    past = datetime.now(UTC) - timedelta(hours=1)
    fields = {"status": "running", "leaseUntil": past}
    tasks = adapter.store.executor().database["go_goscope_tasks"]
    assert tasks.update_one({"_id": f"{adapter.key_prefix}{task_id}"}, {"$set": fields}).matched_count == 1


def failed(task_id: str) -> None:
    """A task that has saved once, and failed."""
    with pytest.raises(OSError, match="no more"), checkpoints.checkpointed(task_id) as task:  # noqa: PT012
        task.save({"n": 1})
        raise OSError("no more")


def test_tasks(costs: Measure) -> None:
    with checkpoints.checkpointed("import") as task:
        costs("checkpoints.Task.save", lambda: task.save({"n": 1}))
        task.complete(7)
    at = "checkpoints."
    costs(at + "get_task", lambda: checkpoints.get_task("import"))
    costs(at + "list_tasks", checkpoints.list_tasks)
    costs(at + "stalled_tasks", checkpoints.stalled_tasks)
    assert costs(at + "task_result", lambda: checkpoints.task_result("import")) == 7
    costs(at + "cancel_task", lambda: checkpoints.cancel_task("import"))
    costs(at + "cleanup_tasks", checkpoints.cleanup_tasks)
    costs(at + "reset_task", lambda: checkpoints.reset_task("import"))
    costs(at + "delete_task", lambda: checkpoints.delete_task("import"))
    failed("again")
    stall("again")
    assert costs(at + "run_again", lambda: checkpoints.run_again("again"))


def test_with_discard_and_without_a_head_it_is_as_many_more_as_the_text_says(sent: Recorder) -> None:
    failed("import")
    sent.clear()
    assert checkpoints.reset_task("import", discard=True)
    assert len(sent.names) == 3
    assert "with ``discard`` two more" in PUBLIC["checkpoints.reset_task"].own
    runtime.adapter().checkpoint.save(Checkpoint("id", "node's", 1, datetime.now(UTC)))
    sent.clear()
    assert checkpoints.delete_task("node's")
    assert len(sent.names) == 4
    assert "four where there was nothing but a history" in PUBLIC["checkpoints.delete_task"].own
    sent.clear()
    with pytest.raises(operations.NotFound):
        operations.delete_task("nix")
    assert len(sent.names) == 1 + 5
    assert "five where there is no such task" in PUBLIC["operations.delete_task"].own


def test_what_operators_do(costs: Measure, sent: Recorder) -> None:
    handle = locks.lock("stock", 30, auto_extend=False).acquire()
    adapter = runtime.adapter()
    claim = adapter.idempotency.begin("charge", 60_000)
    assert claim.token is not None
    circuits.force_open("mail")
    failed("import")
    at = "operations."
    operations.list_locks()
    costs(at + "get_circuit", lambda: operations.get_circuit("mail"))
    costs(at + "get_task", lambda: operations.get_task("import"))
    costs(at + "list_checkpoints", lambda: operations.list_checkpoints("import"))
    costs(at + "release_lock", lambda: operations.release_lock("stock", handle.token))
    handle.let_expire()
    costs(at + "open_circuit", lambda: operations.open_circuit("mail"))
    costs(at + "close_circuit", lambda: operations.close_circuit("mail"))
    costs(at + "reset_circuit", lambda: operations.reset_circuit("mail"))
    costs(at + "cancel_task", lambda: operations.cancel_task("import"))
    costs(at + "reset_task", lambda: operations.reset_task("import"))
    stall("import")
    costs(at + "run_task_again", lambda: operations.run_task_again("import"))
    operations.cancel_task("import")
    costs(at + "delete_task", lambda: operations.delete_task("import"))
    costs(at + "delete_idempotency", lambda: operations.delete_idempotency("charge"))
    # What is refused takes one more, to see what is there.
    for act, key in ((operations.release_lock, "stock"), (operations.delete_idempotency, "charge")):
        sent.clear()
        with pytest.raises(operations.NotFound):
            act(key)
        assert len(sent.names) == 1 + 2
    sent.clear()
    operations.ping()
    assert len(sent.names) == said(PUBLIC[at + "ping"])
    sent.clear()
    operations.probe()
    assert len(sent.names) == said(PUBLIC[at + "probe"])


def test_listings_take_no_more_than_they_say(sent: Recorder) -> None:
    most = re.compile(r"\b(\w+) round trips at most", re.IGNORECASE)
    numbers = {**NUMBERS, "six": 6}
    failed("import")
    circuits.force_open("mail")
    for name in ("list_locks", "list_circuits", "list_tasks", "list_idempotency"):
        found = most.search(PUBLIC[f"operations.{name}"].own)
        assert found is not None
        sent.clear()
        getattr(operations, name)()
        assert len(sent.names) - 1 <= numbers[found[1].lower()], (name, sent.names)


def test_the_providers(costs: Measure) -> None:
    adapter = runtime.adapter()
    costs("mongodb.MongoDBAdapter.ping", adapter.ping)
    at = "mongodb.locks.provider.MongoDBLock"
    handle = costs(at + "Provider.acquire", lambda: adapter.lock.acquire("k", 5_000, "me"))
    costs(at + "Handle.extend", lambda: handle.extend(5_000))
    costs(at + "Handle.is_valid", handle.is_valid)
    costs(at + "Provider.extend", lambda: adapter.lock.extend("k", 5_000, "me"))
    costs(at + "Provider.get", lambda: adapter.lock.get("k"))
    costs(at + "Provider.list", adapter.lock.list)
    costs(at + "Handle.release", handle.release)
    costs(at + "Provider.force_release", lambda: adapter.lock.force_release("k"))
    at, circuit = "mongodb.circuits.states.MongoDBCircuitBreakerStateProvider.", adapter.circuit_breaker
    costs(at + "record_failure", lambda: circuit.record_failure("c", 3))
    costs(at + "record_success", lambda: circuit.record_success("c"))
    costs(at + "set_state", lambda: circuit.set_state("c", CircuitBreakerState("open")))
    costs(at + "get_state", lambda: circuit.get_state("c"))
    costs(at + "list", circuit.list)
    costs(at + "delete", lambda: circuit.delete("c"))
    at, cache = "mongodb.cache.provider.MongoDBCacheProvider.", adapter.cache
    costs(at + "set", lambda: cache.set("k", 1, 60_000))
    costs(at + "get", lambda: cache.get("k"))
    costs(at + "has", lambda: cache.has("k"))
    costs(at + "delete", lambda: cache.delete("k"))
    costs(at + "clear", cache.clear)
    at, saved = "mongodb.checkpoints.history.MongoDBCheckpointProvider.", adapter.checkpoint
    costs(at + "save", lambda: saved.save(Checkpoint("id", "t", 1, datetime.now(UTC))))
    costs(at + "load", lambda: saved.load("id"))
    costs(at + "list", lambda: saved.list("t"))
    costs(at + "tasks", saved.tasks)
    costs(at + "delete_all", lambda: saved.delete_all("t"))
    at, records = "mongodb.idempotency.provider.MongoDBIdempotencyProvider.", adapter.idempotency
    claim = records.begin("r", 60_000)
    assert claim.token is not None
    token = claim.token
    costs(at + "in_progress", lambda: records.in_progress("r"))
    costs(at + "extend", lambda: records.extend("r", token, 60_000))
    costs(at + "complete", lambda: records.complete("r", token, "done"))
    costs(at + "get", lambda: records.get("r"))
    costs(at + "delete", lambda: records.delete("r"))
    costs(at + "abandon", lambda: records.abandon("r", token))
