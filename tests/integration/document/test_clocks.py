"""Processes whose clock is an hour ahead or behind: they neither steal, nor revive, nor lose anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import MongoClient

from goscope_django.contracts import CircuitBreakerState
from goscope_django.mongodb import MongoDBAdapter
from tests.support.commands import on_server
from tests.support.remote import Remote

HOUR = 3_600
pytestmark = pytest.mark.skipif(not shutil.which("faketime"), reason="faketime is not installed")


@pytest.fixture(scope="module", params=["+1h", "-1h"])
def wrong(request: pytest.FixtureRequest, mongo_url: str) -> Iterator[Remote]:
    """Another process, an hour ahead or behind."""
    with Remote(mongo_url, skew=request.param) as other:
        difference = other.call("time", "time") - datetime.now(UTC).timestamp()
        assert abs(abs(difference) - HOUR) < 60, "its clock is really wrong"
        yield other


@pytest.fixture
def database(mongo_url: str, wrong: Remote) -> Iterator[Any]:
    with MongoClient[dict[str, Any]](mongo_url, tz_aware=True) as client:
        database = client.get_default_database()
        for name in database.list_collection_names():
            database[name].delete_many({})
        yield database


def ends_in(document: dict[str, Any] | None, seconds: float) -> bool:
    """Whether the expiry that was written is about so many seconds away, by the server's clock and ours."""
    assert document is not None
    return bool(abs(document["expiresAt"] - datetime.now(UTC) - timedelta(seconds=seconds)) < timedelta(seconds=60))


def aged(collection: Any) -> None:
    """Let everything in ``collection`` have expired just now."""
    collection.update_many({}, [{"$set": {"expiresAt": {"$subtract": ["$$NOW", 1]}}}])


def test_locks(wrong: Remote, adapter: MongoDBAdapter, database: Any) -> None:
    locks, collection = adapter.lock, database.go_goscope_locks
    ours = locks.acquire("a", 600_000, "ours")
    assert ours is not None
    assert wrong.call("lock", "acquire", "a", 600_000) is None, "it does not steal"
    assert wrong.call("lock", "get", "a")["owner"] == "ours", "nor overlook"
    assert ours.is_valid()
    theirs = wrong.call("lock", "acquire", "b", 600_000, "theirs")
    assert ends_in(collection.find_one({"key": "lock:b"}), 600)
    assert locks.acquire("b", 600_000) is None
    assert wrong.call(str(theirs["handle"]), "is_valid") is True
    assert wrong.call(str(theirs["handle"]), "extend", 1_200_000) is True
    assert ends_in(collection.find_one({"key": "lock:b"}), 1_200)
    aged(collection)
    assert wrong.call(str(theirs["handle"]), "is_valid") is False
    assert wrong.call(str(theirs["handle"]), "extend", 600_000) is False, "it does not revive"
    assert wrong.call(str(theirs["handle"]), "release") is False
    assert wrong.call("lock", "list") == []
    second = wrong.call("lock", "acquire", "a", 600_000)
    assert second["token"] > ours.token
    assert ours.extend(600_000) is False and ours.release() is False
    third = locks.acquire("b", 600_000)
    assert third is not None and third.token > theirs["token"]


def test_tokens_grow_whoever_takes_the_lock(wrong: Remote, adapter: MongoDBAdapter, database: Any) -> None:
    tokens = []
    for number in range(12):
        if number % 2:
            tokens.append(wrong.call("lock", "acquire", "turns", 60_000)["token"])
        else:
            handle = adapter.lock.acquire("turns", 60_000)
            assert handle is not None
            tokens.append(handle.token)
        database.go_goscope_locks.delete_many({})
    assert tokens == sorted(set(tokens))


def test_cache_entries(wrong: Remote, mongo_url: str, database: Any) -> None:
    collection = database.go_goscope_cache
    with on_server(mongo_url):
        from django.core.cache import cache as django_cache

        cache: Any = django_cache  # typed as what every backend has; ours has more
        cache.set("ours", 1, 600)
        assert wrong.call("django", "get", "ours") == 1
        assert wrong.call("django", "ttl", "ours") == 600
        assert wrong.call("django", "add", "ours", 2) is False
        wrong.call("django", "set", "theirs", 1, 600)
        assert cache.get("theirs") == 1 and cache.add("theirs", 2) is False
        assert ends_in(collection.find_one({"key": "cache::1:theirs"}), 600)
        wrong.call("django", "set_many", {"m1": 1, "m2": 2}, 600)
        assert cache.get_many(["m1", "m2"]) == {"m1": 1, "m2": 2}
        assert wrong.call("django", "incr", "theirs") == 2
        assert ends_in(collection.find_one({"key": "cache::1:theirs"}), 600), "a sum keeps the expiry"
        assert wrong.call("django", "touch", "ours", 1_200) is True
        assert ends_in(collection.find_one({"key": "cache::1:ours"}), 1_200)
        assert sorted(wrong.call("django", "keys")) == ["m1", "m2", "ours", "theirs"]
        aged(collection)
        for key in ("ours", "theirs"):
            assert wrong.call("django", "get", key) is None
            assert wrong.call("django", "touch", key, 600) is False, "it does not revive"
            assert wrong.call("django", "has_key", key) is False
            with pytest.raises(RuntimeError, match="not found"):
                wrong.call("django", "incr", key)
            assert wrong.call("django", "delete", key) is False
        assert wrong.call("django", "keys") == [] and cache.keys() == []
        assert wrong.call("django", "add", "ours", 3, 600) is True
        assert cache.get("ours") == 3


def test_idempotency(wrong: Remote, adapter: MongoDBAdapter, database: Any) -> None:
    idempotency = adapter.idempotency
    claim = idempotency.begin("ours", 600_000)
    assert wrong.call("idempotency", "begin", "ours", 600_000)["outcome"] == "in_progress"
    theirs = wrong.call("idempotency", "begin", "theirs", 600_000)
    assert theirs["outcome"] == "started"
    waiting = idempotency.begin("theirs", 600_000)
    assert waiting.outcome == "in_progress" and waiting.retry_after is not None and waiting.retry_after <= 61
    assert wrong.call("idempotency", "extend", "theirs", theirs["token"], 60_000) is True
    assert wrong.call("idempotency", "complete", "theirs", theirs["token"], "done") is True
    record = idempotency.get("theirs")
    assert record is not None and record.value == "done"
    assert claim.token is not None and idempotency.complete("ours", claim.token, "done")
    assert wrong.call("idempotency", "begin", "ours", 600_000)["value"] == "done"
    aged(database.go_goscope_idempotency)
    assert wrong.call("idempotency", "get", "ours") is None
    assert wrong.call("idempotency", "begin", "ours", 600_000)["outcome"] == "started"
    assert idempotency.begin("ours", 600_000).outcome == "in_progress"


def test_an_abandoned_claim_is_taken_over_by_the_servers_clock_alone(
    wrong: Remote, adapter: MongoDBAdapter, database: Any
) -> None:
    claim = adapter.idempotency.begin("a", 600_000)
    aged(database.go_goscope_idempotency)
    theirs = wrong.call("idempotency", "begin", "a", 600_000)
    assert theirs["outcome"] == "started"
    assert claim.token is not None and theirs["token"] > claim.token
    assert adapter.idempotency.complete("a", claim.token, "late") is False


def test_circuits(wrong: Remote, adapter: MongoDBAdapter, database: Any) -> None:
    circuits = adapter.circuit_breaker
    assert [wrong.call("circuit_breaker", "record_failure", "c", 3), circuits.record_failure("c", 3)] == [1, 2]
    assert wrong.call("circuit_breaker", "record_failure", "c", 3) == 3
    state = circuits.get_state("c")
    assert state is not None and state.state == "open" and state.last_failure_time is not None
    assert abs(state.last_failure_time - datetime.now(UTC)) < timedelta(seconds=60)
    wrong.call("circuit_breaker", "record_success", "c")
    state = circuits.get_state("c")
    assert state is not None and (state.state, state.failure_count) == ("closed", 0)
    assert state.last_success_time is not None
    assert abs(state.last_success_time - datetime.now(UTC)) < timedelta(seconds=60)
    circuits.set_state("c", CircuitBreakerState("open", 1, datetime.now(UTC)))
    assert wrong.call("circuit_breaker", "get_state", "c")["state"] == "open"
