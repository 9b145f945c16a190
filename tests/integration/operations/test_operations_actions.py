"""Operators act on what they saw, and on nothing else."""
# ruff: noqa: PT012 - the body of a task that fails is told in one piece

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.test import override_settings

from goscope_django import operations, runtime
from goscope_django.checkpoints import checkpointed, get_task
from goscope_django.circuits import CircuitBreaker, get_circuit
from goscope_django.exceptions import CircuitOpen, IndexConflict, NotFound, StateChanged, StoreUnavailable
from tests.support.commands import Recorder
from tests.support.operations import Operators, fill, own_store, query, soon

AWAY = {"TEST": {"URL": "mongodb://127.0.0.1:1/x"}}


@pytest.fixture(params=["mongod", "mongomock"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    url = "mongomock://" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    with own_store(url):
        yield request.param


@pytest.fixture(params=["sync", "async"])
def by(request: pytest.FixtureRequest) -> Iterator[Operators]:
    found = Operators(request.param)
    yield found
    found.close()


# Locks


def test_a_lock_is_released_as_it_was_seen(store: str, by: Operators) -> None:
    lock = runtime.adapter().lock
    lock.acquire("k", 60_000, owner="first")
    seen = by.see().locks.items[0]
    done = by.release_lock("k", seen.token)
    assert (done.action, done.target, done.count) == ("release_lock", "k", 1)
    assert lock.get("k") is None


def test_a_lock_that_changed_hands_is_left_alone_and_the_holder_is_named(store: str, by: Operators) -> None:
    lock = runtime.adapter().lock
    first = lock.acquire("k", 60_000, owner="first")
    assert first is not None
    first.release()
    second = lock.acquire("k", 60_000, owner="second")
    assert second is not None
    with pytest.raises(StateChanged, match=f"'second' with token {second.token} now, not with token {first.token}"):
        by.release_lock("k", first.token)
    assert second.is_valid()


def test_a_lock_that_is_gone_is_not_found(store: str, by: Operators) -> None:
    with pytest.raises(NotFound, match="'k' is not held"):
        by.release_lock("k", 5)
    fill(locks=1)
    query("go_goscope_locks", "update_many", {}, {"$set": {"expiresAt": soon(-1)}})
    with pytest.raises(NotFound):
        by.release_lock("l00000")


def test_a_lock_of_node_has_no_token_and_is_known_by_its_owner(store: str, by: Operators) -> None:
    prefix = runtime.adapter().key_prefix
    document = {"key": f"{prefix}lock:n", "owner": "node-1", "createdAt": soon(0), "expiresAt": soon(60)}
    query("go_goscope_locks", "insert_one", document)
    assert by.see().locks.items[0].token is None
    with pytest.raises(StateChanged, match="node-1"):
        by.release_lock("n", None, "node-2")
    by.release_lock("n", None, "node-1")
    assert by.see().locks.total == 0


def test_a_lock_without_an_owner_is_seen_and_released(store: str, by: Operators) -> None:
    prefix = runtime.adapter().key_prefix
    query("go_goscope_locks", "insert_one", {"key": f"{prefix}lock:n"})
    (seen,) = by.see().locks.items
    assert (seen.owner, seen.token, seen.expires_at) == ("", None, None)
    with pytest.raises(StateChanged):
        by.release_lock("n", None, "node-1")
    by.release_lock("n", seen.token, seen.owner)
    assert by.see().locks.total == 0


# Circuits


def test_a_circuit_is_forced_and_reset_for_the_fleet(store: str, by: Operators) -> None:
    breaker = CircuitBreaker("bank")
    assert breaker.call(lambda: 1) == 1
    by.open_circuit("bank", None, "maintenance")
    found = get_circuit("bank")
    assert found is not None and found.state == "open"
    assert found.override is not None and found.override.reason == "maintenance"
    with pytest.raises(CircuitOpen):
        breaker.call(lambda: 1)
    by.close_circuit("bank", found.generation)
    assert breaker.call(lambda: 2) == 2
    by.reset_circuit("bank")
    after = get_circuit("bank")
    assert after is not None and (after.state, after.override) == ("closed", None)


@pytest.mark.parametrize("action", ["open_circuit", "close_circuit", "reset_circuit"])
def test_a_circuit_that_moved_is_left_alone(action: str, store: str, by: Operators) -> None:
    by.open_circuit("bank")
    by.reset_circuit("bank")
    before = get_circuit("bank")
    assert before is not None
    with pytest.raises(StateChanged, match=f"generation {before.generation} now, not 1"):
        getattr(by, action)("bank", 1)
    assert get_circuit("bank") == before


def test_nothing_is_there_to_reset(store: str, by: Operators) -> None:
    with pytest.raises(NotFound, match="'nix' does not exist"):
        by.reset_circuit("nix")


# Tasks


def test_a_task_is_cancelled_at_its_next_save(store: str, by: Operators) -> None:
    with checkpointed("import") as task:
        task.save(1)
        assert not task.cancelled
        by.cancel_task("import", by.see().tasks.items[0].token)
        assert by.see().tasks.items[0].cancel_requested
        task.save(2)
        assert task.cancelled
    found = get_task("import")
    assert found is not None and found.status == "cancelled"
    with pytest.raises(StateChanged, match="cancelled"):
        by.cancel_task("import")
    by.reset_task("import", found.token)
    with checkpointed("import") as task:
        assert task.resumed


@pytest.mark.parametrize("action", ["cancel_task", "reset_task", "delete_task"])
def test_a_task_that_began_another_run_is_left_alone(action: str, store: str, by: Operators) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), checkpointed("import") as task:
            task.save(1)
            raise ZeroDivisionError
    before = get_task("import")
    assert before is not None
    with pytest.raises(StateChanged, match=f"token {before.token} now, not {before.token - 1}"):
        getattr(by, action)("import", before.token - 1)
    assert get_task("import") == before
    getattr(by, action)("import", before.token)


def test_a_running_task_is_not_deleted(store: str, by: Operators) -> None:
    with checkpointed("import") as task:
        task.save({"n": 1})
        with pytest.raises(StateChanged, match="running"):
            by.delete_task("import")
        task.save({"n": 2})
    by.delete_task("import")
    assert get_task("import") is None
    assert runtime.adapter().checkpoint.load_latest("import") is None


def test_old_checkpoints_are_removed(store: str, by: Operators) -> None:
    with checkpointed("import", keep=None) as task:
        for number in range(5):
            task.save(number)
    done = by.cleanup_checkpoints("import", 2)
    assert done.count == len(runtime.adapter().checkpoint.list("import")) + 1
    assert by.cleanup_checkpoints("import", 2).count == 0


@pytest.mark.parametrize(
    ("action", "arguments"),
    [("cancel_task", ()), ("reset_task", ()), ("delete_task", ()), ("cleanup_checkpoints", (1,))],
)
def test_a_task_that_is_not_there(action: str, arguments: tuple[Any, ...], store: str, by: Operators) -> None:
    with pytest.raises(NotFound, match="'nix' does not exist"):
        getattr(by, action)("nix", *arguments)


# Idempotency


def test_a_record_is_forgotten_as_it_was_seen(store: str, by: Operators) -> None:
    provider = runtime.adapter().idempotency
    claim = provider.begin("order", 60_000)
    assert claim.token is not None
    with pytest.raises(StateChanged, match=f"in_progress with token {claim.token} now, not 1"):
        by.delete_idempotency("order", 1)
    by.delete_idempotency("order", claim.token)
    assert not provider.complete("order", claim.token, "late")
    provider.set("order", "done", 60_000)
    by.delete_idempotency("order", by.see().idempotency.items[0].token)
    assert provider.get("order") is None
    with pytest.raises(NotFound):
        by.delete_idempotency("order")


# Caches (sync only, as commands and the dashboard's actions are)


def test_caches_are_listed_and_cleared(store: str) -> None:
    backend = {"BACKEND": "goscope_django.cache.MongoDBCache"}
    with override_settings(CACHES={"default": backend, "other": {**backend, "KEY_PREFIX": "o"}, "dummy": {**DUMMY}}):
        caches["default"].set_many({"user:1": 1, "user:2": 2, "cart:1": 3})
        caches["other"].set("user:1", 1)
        assert operations.cache_aliases() == ["default", "other"]
        assert operations.cache_keys("default", "user:*") == ["user:1", "user:2"]
        assert operations.cache_keys("default", limit=1) == ["cart:1"]
        assert operations.delete_cache_keys("default", ["user:1", "nix"]).count == 1
        assert operations.clear_cache("default", "user:*").count == 1
        assert operations.clear_cache("default").count == 1
        assert caches["other"].get("user:1") == 1
        with pytest.raises(NotFound, match="default, other"):
            operations.clear_cache("dummy")


DUMMY = {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}


def test_a_cache_that_does_without_the_server_does_not_pretend_to_be_cleared() -> None:
    entry = {"BACKEND": "goscope_django.cache.MongoDBCache", "OPTIONS": {"ON_ERROR": "ignore"}}
    with override_settings(GOSCOPE=AWAY, CACHES={"default": entry}):
        for act in (
            lambda: operations.clear_cache("default"),
            lambda: operations.cache_keys("default"),
            lambda: operations.delete_cache_keys("default", ["k"]),
        ):
            with pytest.raises(StoreUnavailable):
                act()


# Indexes


def test_indexes_are_made_and_repaired_but_nothing_is_dropped_unasked(mongo_url: str) -> None:
    with own_store(mongo_url):
        query("go_goscope_locks", "drop_index", "key_1")
        query("go_goscope_stats", "drop_index", "expiresAt_1")
        query("go_goscope_stats", "create_index", [("expiresAt", 1)], expireAfterSeconds=77)
        with pytest.raises(IndexConflict, match="ensure --repair"):
            operations.ensure_indexes()
        (store,) = operations.check_indexes()
        assert [one.collection for one in store.indexes if one.state != "present"] == ["go_goscope_stats"]
        ((store, done),) = operations.ensure_indexes(repair=True)
        assert store.ok and [one.target for one in done] == ["go_goscope_stats.expiresAt_1"]
        assert operations.ensure_indexes()[0][1] == []


# All


@pytest.mark.parametrize(
    ("action", "arguments"),
    [
        ("release_lock", ("k",)),
        ("open_circuit", ("c",)),
        ("reset_circuit", ("c",)),
        ("delete_task", ("t",)),
        ("cancel_task", ("t",)),
        ("delete_idempotency", ("i",)),
    ],
)
def test_without_a_server_an_action_says_so(action: str, arguments: tuple[Any, ...], by: Operators) -> None:
    with override_settings(GOSCOPE=AWAY), pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
        getattr(by, action)(*arguments)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_action_is_one_write(mode: str, mongo_url: str) -> None:
    recorder, by = Recorder(), Operators(mode)
    with own_store(mongo_url, CLIENT_OPTIONS={"event_listeners": [recorder]}):
        fill(locks=1, tasks=1, records=1)
        query("go_goscope_tasks", "update_many", {}, {"$set": {"leaseUntil": soon(-1)}})
        by.see()
        for action, arguments, writes in (
            ("release_lock", ("l00000", 1), ["delete"]),
            ("open_circuit", ("c",), ["findAndModify"]),
            ("cancel_task", ("t0000", 1), ["update"]),
            ("delete_idempotency", ("i0000", 1), ["delete"]),
        ):
            recorder.clear()
            getattr(by, action)(*arguments)
            assert [name for name in recorder.names if name != "ping"] == writes, action
    by.close()
