"""Python and the TypeScript package on one database: locks, circuits, cache and idempotency, both ways."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from pymongo import AsyncMongoClient, MongoClient
from pymongo.database import Database

from goscope_django.contracts import CircuitBreakerState, IdempotencyRecord, LockHandle
from goscope_django.mongodb import MongoDBAdapter
from tests.conftest import with_database
from tests.interop.node import Node, NodeMissing, install
from tests.support.commands import on_server

pytestmark = pytest.mark.real

Documents = Database[dict[str, Any]]
PREFIX = "shop:"
SHARED: dict[str, set[tuple[tuple[str, int], ...]]] = {
    "go_goscope_locks": {(("key", 1),), (("expiresAt", 1),)},
    "go_goscope_circuit": {(("key", 1),)},
    "go_goscope_cache": {(("key", 1),), (("expiresAt", 1),)},
    "go_goscope_checkpoints": {(("taskId", 1), ("sequence", 1)), (("taskId", 1),)},
    "go_goscope_idempotency": {(("key", 1),), (("expiresAt", 1),)},
}


@pytest.fixture(scope="session")
def packages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the npm packages; skips where the registry can't be reached, except in CI."""
    kept = getattr(request.config, "cache", None)  # there is none under -p no:cacheprovider
    try:
        return install(kept.mkdir("interop") if kept else tmp_path_factory.mktemp("interop"))
    except NodeMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no Node to talk to: {error}")


@pytest.fixture(scope="module")
def db(mongo_url: str) -> Iterator[Documents]:
    client: MongoClient[dict[str, Any]] = MongoClient(mongo_url, tz_aware=True)
    with client:
        yield client.get_default_database()


@pytest.fixture(autouse=True)
def _clean(db: Documents) -> None:
    for name in db.list_collection_names():
        db[name].delete_many({})


@pytest.fixture(scope="module")
def node(packages: Path, mongo_url: str) -> Iterator[Node]:
    with Node(packages, mongo_url, PREFIX) as process:
        process("connect")
        yield process


class Asynchronously:
    """What it wraps, with each method replaced by its async version, run to its end in one event loop."""

    def __init__(self, wrapped: Any, runner: asyncio.Runner) -> None:
        self._wrapped = wrapped
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._wrapped, f"a{name}", None)
        if not callable(method):
            found = getattr(self._wrapped, name)
            return Asynchronously(found, self._runner) if name in PROVIDERS else found

        def call(*args: Any, **kwargs: Any) -> Any:
            result = self._runner.run(method(*args, **kwargs))
            return Asynchronously(result, self._runner) if isinstance(result, LockHandle) else result

        return call


PROVIDERS = {"lock", "circuit_breaker", "cache", "checkpoint", "idempotency"}


@pytest.fixture(scope="module", params=["sync", "async"])
def python(db: Documents, mongo_url: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """An adapter on the same database and prefix, sync or async; typed as a sync one."""
    if request.param == "sync":
        adapter = MongoDBAdapter(db, key_prefix=PREFIX)
        adapter.connect()
        yield adapter
        adapter.disconnect()
        return
    with asyncio.Runner() as runner:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongo_url)
        wrapped = Asynchronously(MongoDBAdapter(client[db.name], key_prefix=PREFIX), runner)
        wrapped.connect()
        yield wrapped
        wrapped.disconnect()
        runner.run(client.close())


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it did not come true within 20 seconds"
        time.sleep(0.02)


class TestLocks:
    def test_node_does_not_get_what_python_holds(self, python: MongoDBAdapter, node: Node) -> None:
        handle = python.lock.acquire("stock", 60_000)
        assert handle
        assert node("acquire", "stock", 60_000) is False
        assert handle.is_valid()
        assert handle.release()
        assert node("acquire", "stock", 60_000) is True

    def test_python_does_not_get_what_node_holds(self, python: MongoDBAdapter, node: Node) -> None:
        assert node("acquire", "stock", 60_000, "a node") is True
        assert python.lock.acquire("stock", 60_000) is None
        assert python.lock.acquire("stock", 60_000, owner="a node") is None
        assert node("handle.isValid", "stock") is True
        node("handle.release", "stock")
        assert python.lock.acquire("stock", 60_000)

    def test_python_describes_the_lock_of_node(self, python: MongoDBAdapter, node: Node) -> None:
        before = datetime.now(UTC)
        node("acquire", "stock", 60_000, "a node")
        info = python.lock.get("stock")
        assert info
        assert (info.key, info.owner, info.token) == ("stock", "a node", None)
        assert info.expires_at
        # Both clocks are this machine's; documents hold whole milliseconds.
        assert abs(info.expires_at - before - timedelta(seconds=60)) < timedelta(seconds=30)
        assert list(python.lock.list()) == [info]

    def test_both_extend_for_the_owner_only(self, python: MongoDBAdapter, node: Node) -> None:
        node("acquire", "by-node", 60_000, "a node")
        assert python.lock.extend("by-node", 900_000, "a node") is True
        assert python.lock.extend("by-node", 900_000, "another") is False
        handle = python.lock.acquire("by-python", 60_000, owner="a python")
        assert handle
        assert node("extend", "by-python", 900_000, "a python") is True
        assert node("extend", "by-python", 900_000, "another") is False
        for key in ("by-node", "by-python"):
            info = python.lock.get(key)
            assert info
            assert info.expires_at
            assert info.expires_at > datetime.now(UTC) + timedelta(seconds=600)

    def test_both_can_force_the_others_lock_open(self, python: MongoDBAdapter, node: Node) -> None:
        handle = python.lock.acquire("by-python", 60_000)
        assert handle
        node("forceRelease", "by-python")
        assert not handle.is_valid()
        assert not handle.extend(60_000)
        node("acquire", "by-node", 60_000)
        assert python.lock.force_release("by-node") is True
        assert node("handle.isValid", "by-node") is False

    def test_a_python_that_lost_its_lock_leaves_that_of_node_alone(self, python: MongoDBAdapter, node: Node) -> None:
        handle = python.lock.acquire("stock", 60_000, owner="same name")
        assert handle
        node("forceRelease", "stock")
        assert node("acquire", "stock", 60_000, "same name") is True
        assert handle.release() is False
        assert handle.extend(60_000) is False
        assert node("handle.isValid", "stock") is True

    def test_python_takes_over_what_node_let_expire(self, python: MongoDBAdapter, node: Node, db: Documents) -> None:
        node("acquire", "stock", 1)
        # The TTL monitor comes about once a minute; whoever had to wait for it would wait past this deadline.
        eventually(lambda: python.lock.acquire("stock", 60_000) is not None)
        assert node("handle.isValid", "stock") is False
        assert node("acquire", "stock", 60_000) is False
        assert db["go_goscope_locks"].count_documents({}) == 1

    def test_tokens_grow_over_the_locks_of_node_that_have_none(self, python: MongoDBAdapter, node: Node) -> None:
        tokens = []
        for ending in ("released", "expired", "forced open"):
            handle = python.lock.acquire("stock", 60_000)
            assert handle
            tokens.append(handle.token)
            handle.release()
            assert node("acquire", "stock", 1 if ending == "expired" else 60_000) is True
            if ending == "released":
                node("handle.release", "stock")
            elif ending == "forced open":
                python.lock.force_release("stock")
            else:
                eventually(lambda: python.lock.get("stock") is None)
        last = python.lock.acquire("stock", 60_000)
        assert last
        assert tokens == sorted(set(tokens))
        assert last.token > tokens[-1]

    def test_a_lock_without_expiry_is_held(self, python: MongoDBAdapter, node: Node, db: Documents) -> None:
        node("acquire", "stock", 60_000)
        for update in ({"$set": {"expiresAt": None}}, {"$unset": {"expiresAt": ""}}):
            db["go_goscope_locks"].update_one({}, update)
            assert python.lock.acquire("stock", 60_000) is None
        assert node("acquire", "stock", 60_000) is False


class TestCircuits:
    def test_failures_are_counted_together(self, python: MongoDBAdapter, node: Node) -> None:
        assert node("recordFailure", "supplier", 3) == 1
        assert python.circuit_breaker.record_failure("supplier", 3) == 2
        assert node("getState", "supplier")["state"] == "closed"
        assert node("recordFailure", "supplier", 3) == 3
        state = python.circuit_breaker.get_state("supplier")
        assert state
        assert (state.state, state.failure_count) == ("open", 3)

    def test_python_opens_for_node(self, python: MongoDBAdapter, node: Node) -> None:
        python.circuit_breaker.record_failure("supplier", 2)
        python.circuit_breaker.record_failure("supplier", 2)
        seen = node("getState", "supplier")
        state = python.circuit_breaker.get_state("supplier")
        assert state
        assert state.last_failure_time
        assert (seen["state"], seen["failureCount"]) == ("open", 2)
        assert seen["lastFailureTime"] == round(state.last_failure_time.timestamp() * 1_000)

    @pytest.mark.parametrize("who", ["node", "python"])
    def test_a_success_closes_for_both(self, python: MongoDBAdapter, node: Node, who: str) -> None:
        python.circuit_breaker.record_failure("supplier", 1)
        if who == "node":
            node("recordSuccess", "supplier")
        else:
            python.circuit_breaker.record_success("supplier")
        state = python.circuit_breaker.get_state("supplier")
        seen = node("getState", "supplier")
        assert state
        assert state.last_success_time
        assert (state.state, state.failure_count) == (seen["state"], seen["failureCount"]) == ("closed", 0)
        assert seen["lastSuccessTime"] == round(state.last_success_time.timestamp() * 1_000)

    @pytest.mark.parametrize("word", ["closed", "open", "half-open"])
    def test_a_state_that_was_set_reads_the_same(self, python: MongoDBAdapter, node: Node, word: Any) -> None:
        moment = datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC)
        milliseconds = round(moment.timestamp() * 1_000)
        state = CircuitBreakerState(word, 4, moment, moment)
        python.circuit_breaker.set_state("by-python", state)
        told = {"state": word, "failureCount": 4, "lastFailureTime": milliseconds, "lastSuccessTime": milliseconds}
        node("setState", "by-node", told)
        assert node("getState", "by-python") == told
        assert python.circuit_breaker.get_state("by-node") == state
        assert dict(python.circuit_breaker.list()) == {"by-node": state, "by-python": state}

    def test_fields_of_another_writer_are_kept(self, python: MongoDBAdapter, node: Node, db: Documents) -> None:
        node("recordFailure", "supplier", 5)
        db["go_goscope_circuit"].update_one({}, {"$set": {"note": "by hand"}})
        python.circuit_breaker.record_failure("supplier", 5)
        python.circuit_breaker.record_success("supplier")
        python.circuit_breaker.set_state("supplier", CircuitBreakerState("open", 5))
        (document,) = db["go_goscope_circuit"].find()
        assert document["note"] == "by hand"


VALUES: list[Any] = [
    "text",
    "$x",
    "",
    7,
    2**40,
    1.5,
    True,
    [1, "two", [3.0, None]],
    {"name": "Tea", "price": {"amount": 3.5}, "a.b": {"$gt": 1}},
    datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC),
]


class TestCache:
    @pytest.mark.parametrize("value", VALUES, ids=repr)
    @pytest.mark.parametrize("ttl", [None, 60_000])
    def test_a_value_reads_the_same_on_the_other_side(
        self, python: MongoDBAdapter, node: Node, value: Any, ttl: int | None
    ) -> None:
        python.cache.set("by-python", value, ttl)
        assert node("cache.get", "by-python") == value
        node("cache.set", "by-node", value, ttl)
        found = python.cache.get("by-node")
        assert found == value
        if not isinstance(value, int):  # JavaScript has one kind of number; 1 may come as a double
            assert type(found) is type(value)
        assert python.cache.has("by-node")
        assert node("cache.has", "by-python") is True

    def test_each_overwrites_the_other(self, python: MongoDBAdapter, node: Node, db: Documents) -> None:
        node("cache.set", "price", "from node")
        python.cache.set("price", "from python")
        assert node("cache.get", "price") == "from python"
        node("cache.set", "price", "from node")
        assert python.cache.get("price") == "from node"
        assert db["go_goscope_cache"].count_documents({}) == 1

    def test_a_value_of_node_replaces_one_that_python_had_to_tag(self, python: MongoDBAdapter, node: Node) -> None:
        python.cache.set("price", ("a", {"tuple"}))
        node("cache.set", "price", "plain")
        assert python.cache.get("price") == "plain"

    def test_what_is_signed_or_compressed_and_overwritten_by_node_is_never_mixed(
        self, node: Node, db: Documents, mongo_url: str
    ) -> None:
        key = {"KEY_FUNCTION": "goscope_django.cache.plain_key"}
        aliases: dict[str, dict[str, Any]] = {
            "default": key,
            "signed": {**key, "OPTIONS": {"SIGN": True}},
            "compressed": {**key, "OPTIONS": {"COMPRESS": {"MIN_BYTES": 100}}},
        }
        large = {"rows": ["a row"] * 1_000}
        with on_server(mongo_url, caches=aliases, KEY_PREFIX=PREFIX):
            for alias, theirs in itertools.product(("signed", "compressed"), ("text", 7, {"a": [1]}, None)):
                caches[alias].set("price", large, 60)
                assert caches["default"].get("price") == large
                assert node("cache.get", "price")["__goscope__"] == 1, "Node sees that it is not for it"
                node("cache.set", "price", theirs, 60_000)
                assert caches["default"].get("price", "a miss") == theirs
                assert caches["compressed"].get("price", "a miss") == theirs
                assert caches["signed"].get("price", "a miss") == "a miss"
                assert not caches["signed"].touch("price", 60) and not caches["signed"].has_key("price")
                assert caches["signed"].add("price", "ours")
                assert caches["signed"].get("price") == caches["default"].get("price") == "ours"
                assert db["go_goscope_cache"].count_documents({}) == 1
            node("cache.set", "count", 5)
            assert caches["default"].incr("count") == 6
            with pytest.raises(ValueError, match="not found"):
                caches["signed"].incr("count")

    def test_each_deletes_the_others(self, python: MongoDBAdapter, node: Node) -> None:
        node("cache.set", "by-node", 1)
        assert python.cache.delete("by-node") is True
        assert node("cache.has", "by-node") is False
        python.cache.set("by-python", 1)
        node("cache.delete", "by-python")
        assert python.cache.has("by-python") is False
        assert python.cache.get("by-python") is None

    def test_what_one_let_expire_is_a_miss_for_the_other(self, python: MongoDBAdapter, node: Node) -> None:
        python.cache.set("by-python", 1, 1)
        node("cache.set", "by-node", 1, 1)
        eventually(lambda: node("cache.get", "by-python") is None)
        eventually(lambda: python.cache.get("by-node") is None and not python.cache.has("by-node"))

    def test_without_a_ttl_nothing_expires(self, python: MongoDBAdapter, node: Node, db: Documents) -> None:
        node("cache.set", "price", "a", 60_000)
        python.cache.set("price", "b")
        assert db["go_goscope_cache"].find_one({"expiresAt": {"$ne": None}}) is None
        node("cache.set", "price", "c")
        assert python.cache.get("price") == "c"

    def test_both_list_the_same_keys(self, python: MongoDBAdapter, node: Node) -> None:
        python.cache.set("a:python", 1)
        node("cache.set", "a:node", 1)
        node("cache.set", "b:node", 1)
        assert sorted(python.cache.keys()) == sorted(node("cache.keys")) == ["a:node", "a:python", "b:node"]
        assert sorted(python.cache.keys("a:.*")) == sorted(node("cache.keys", "a:*")) == ["a:node", "a:python"]

    def test_clear_reaches_the_others_entries_and_no_other_prefix(
        self, python: MongoDBAdapter, node: Node, db: Documents
    ) -> None:
        stranger = MongoDBAdapter(db, key_prefix="other:")
        for clear in (python.cache.clear, lambda: node("cache.clear")):
            stranger.cache.set("kept", 1)
            python.cache.set("by-python", 1)
            node("cache.set", "by-node", 1)
            clear()
            assert not python.cache.keys()
            assert stranger.cache.get("kept") == 1


class TestIdempotency:
    @pytest.mark.parametrize("ttl", [None, 60_000])
    def test_python_replays_what_node_finished(self, python: MongoDBAdapter, node: Node, ttl: int | None) -> None:
        node("idempotency.set", "order-1", {"status": 201, "body": "made"}, ttl)
        record = python.idempotency.get("order-1")
        assert record
        assert record.value == {"status": 201, "body": "made"}
        assert (record.expires_at is None) is (ttl is None)
        claim = python.idempotency.begin("order-1", 60_000)
        assert (claim.outcome, claim.value) == ("completed", record.value)

    def test_node_replays_what_python_finished(self, python: MongoDBAdapter, node: Node) -> None:
        claim = python.idempotency.begin("order-1", 60_000)
        assert claim.outcome == "started"
        assert claim.token
        assert python.idempotency.complete("order-1", claim.token, {"status": 201}, 60_000)
        seen = node("idempotency.get", "order-1")
        record = python.idempotency.get("order-1")
        assert record
        assert record.expires_at
        assert seen == {"value": {"status": 201}, "expiresAt": round(record.expires_at.timestamp() * 1_000)}

    def test_what_python_set_reads_the_same(self, python: MongoDBAdapter, node: Node) -> None:
        python.idempotency.set("order-1", ["a", 1.5])
        assert node("idempotency.get", "order-1") == {"value": ["a", 1.5], "expiresAt": None}
        node("idempotency.set", "order-1", "again")
        assert python.idempotency.get("order-1") == IdempotencyRecord("again", None)

    def test_node_never_sees_a_claim_in_progress(self, python: MongoDBAdapter, node: Node) -> None:
        claim = python.idempotency.begin("order-1", 60_000)
        assert node("idempotency.get", "order-1") is None
        assert python.idempotency.begin("order-1", 60_000).outcome == "in_progress"
        assert claim.token
        assert python.idempotency.complete("order-1", claim.token, "done")
        assert node("idempotency.get", "order-1") == {"value": "done", **expiry(python, "order-1")}

    def test_node_never_deletes_a_claim_whose_lease_ended(
        self, python: MongoDBAdapter, node: Node, db: Documents
    ) -> None:
        claim = python.idempotency.begin("order-1", 60_000, None, 1)
        assert claim.token
        first = claim.token
        (document,) = db["go_goscope_idempotency"].find()
        time.sleep(0.05)  # the lease was a millisecond
        assert node("idempotency.get", "order-1") is None
        assert db["go_goscope_idempotency"].find_one({"_id": document["_id"]}), "Node deleted the claim"
        again = python.idempotency.begin("order-1", 60_000)
        assert again.outcome == "started"
        assert again.token
        assert again.token > first
        assert python.idempotency.complete("order-1", first, "late") is False
        assert python.idempotency.complete("order-1", again.token, "done") is True
        assert node("idempotency.get", "order-1")["value"] == "done"

    def test_each_deletes_the_others(self, python: MongoDBAdapter, node: Node) -> None:
        node("idempotency.set", "by-node", 1)
        assert python.idempotency.delete("by-node") is True
        assert node("idempotency.get", "by-node") is None
        python.idempotency.set("by-python", 1)
        node("idempotency.delete", "by-python")
        assert python.idempotency.get("by-python") is None

    def test_what_node_let_expire_begins_anew(self, python: MongoDBAdapter, node: Node) -> None:
        node("idempotency.set", "order-1", "old", 1)
        eventually(lambda: python.idempotency.get("order-1") is None)
        claim = python.idempotency.begin("order-1", 60_000)
        assert claim.outcome == "started"
        assert claim.token
        assert python.idempotency.complete("order-1", claim.token, "new")
        assert node("idempotency.get", "order-1")["value"] == "new"

    def test_a_result_that_node_writes_meanwhile_leaves_one_answer(
        self, python: MongoDBAdapter, node: Node, db: Documents
    ) -> None:
        """Node has no claims: it may finish a key while Python works on it. There is one result then."""
        claim = python.idempotency.begin("order-1", 60_000)
        assert claim.token
        node("idempotency.set", "order-1", "of node")
        finished = python.idempotency.complete("order-1", claim.token, "of python")
        record = python.idempotency.get("order-1")
        assert record
        assert record.value == ("of python" if finished else "of node")
        assert node("idempotency.get", "order-1")["value"] == record.value
        assert db["go_goscope_idempotency"].count_documents({"key": f"{PREFIX}order-1"}) == 1
        assert python.idempotency.begin("order-1", 60_000).outcome == "completed"

    def test_an_expired_result_of_node_beside_a_claim_changes_nothing(
        self, python: MongoDBAdapter, node: Node, db: Documents
    ) -> None:
        """The TTL monitor may leave Node's document for a minute; the claim is what counts."""
        claim = python.idempotency.begin("order-1", 60_000)
        assert claim.token
        node("idempotency.set", "order-1", "of node", 1)
        eventually(lambda: python.idempotency.get("order-1") is None)
        if db["go_goscope_idempotency"].count_documents({}) == 2:  # the monitor has not just been here
            assert python.idempotency.begin("order-1", 60_000).outcome == "in_progress"
        assert python.idempotency.complete("order-1", claim.token, "of python")
        assert node("idempotency.get", "order-1")["value"] == "of python"

    def test_python_overwrites_a_result_of_node_that_stands_beside_a_claim(
        self, python: MongoDBAdapter, node: Node, db: Documents
    ) -> None:
        claim = python.idempotency.begin("order-1", 60_000)
        node("idempotency.set", "order-1", "of node")
        assert claim.token
        python.idempotency.set("order-1", "by hand")
        assert node("idempotency.get", "order-1")["value"] == "by hand"
        assert python.idempotency.complete("order-1", claim.token, "late") is False
        assert python.idempotency.get("order-1") == IdempotencyRecord("by hand", None)
        assert db["go_goscope_idempotency"].count_documents({}) == 1


def expiry(python: MongoDBAdapter, key: str) -> dict[str, int]:
    """What Node shows of a record's expiry."""
    record = python.idempotency.get(key)
    assert record
    assert record.expires_at
    return {"expiresAt": round(record.expires_at.timestamp() * 1_000)}


class TestIndexes:
    @pytest.fixture
    def database(self, mongo_url: str, db: Documents) -> Iterator[Callable[[str], tuple[str, Documents]]]:
        """Make an empty database of the given suffix: its URL and its handle."""
        made: list[str] = []

        def make(suffix: str) -> tuple[str, Documents]:
            name = f"{db.name}_{suffix}"
            made.append(name)
            return with_database(mongo_url, name), db.client[name]

        yield make
        for name in made:
            db.client.drop_database(name)

    def test_the_definitions_are_equal_whoever_connects_first(
        self, packages: Path, database: Callable[[str], tuple[str, Documents]]
    ) -> None:
        found: dict[str, Any] = {}
        for order in ("node", "python", "node, python", "python, node"):
            url, db = database(order.replace(", ", "_"))
            for who in order.split(", "):
                if who == "node":
                    with Node(packages, url) as node:
                        node("connect")
                else:
                    MongoDBAdapter(db).connect()
            found[order] = {name: definitions(db, name) for name in SHARED}
        assert found["python"] == found["node"]
        assert found["node, python"] == found["python, node"] == found["node"]
        for name, keys in SHARED.items():
            assert {tuple(one["key"].items()) for one in found["node"][name].values()} == keys | {(("_id", 1),)}


def definitions(db: Documents, collection: str) -> dict[str, Any]:
    return {index["name"]: {**index, "key": dict(index["key"])} for index in db[collection].list_indexes()}
