"""Many processes at once on one server: nothing is lost, nobody is inside twice, tokens only grow."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from goscope_django.mongodb import MongoDBAdapter
from tests.support.fleet import run_fleet
from tests.support.remote import Remote

PROCESSES, TIMES = 8, 200
pytestmark = pytest.mark.fleet


@pytest.fixture(params=["indexes", "no indexes"])
def indexes(request: pytest.FixtureRequest, database: Any) -> Iterator[str]:
    """With our indexes, and with none but the one on ``_id``: exclusion must not hang on them."""
    names = ("go_goscope_locks", "go_goscope_cache", "go_goscope_circuit", "go_goscope_idempotency")
    for name in names:
        database.drop_collection(name)
        database.create_collection(name)
    if request.param == "indexes":
        MongoDBAdapter(database).connect()
    yield request.param
    for name in names:
        database.drop_collection(name)


@pytest.mark.slow
def test_no_failure_is_lost(mongo_url: str, adapter: MongoDBAdapter) -> None:
    counts = run_fleet("failures", PROCESSES, mongo_url, TIMES)
    assert sorted(itertools.chain(*counts)) == list(range(1, PROCESSES * TIMES + 1)), "each count was given out once"
    state = adapter.circuit_breaker.get_state("shared")
    assert state is not None
    assert state.failure_count == PROCESSES * TIMES


@pytest.mark.slow
def test_no_increment_is_lost(mongo_url: str, adapter: MongoDBAdapter) -> None:
    adapter.cache.set("counter", 0, 60_000)
    sums = run_fleet("increments", PROCESSES, mongo_url, TIMES)
    assert sorted(itertools.chain(*sums)) == list(range(1, PROCESSES * TIMES + 1))
    assert adapter.cache.get("counter") == PROCESSES * TIMES


@pytest.mark.slow
def test_no_signed_increment_is_lost(mongo_url: str, adapter: MongoDBAdapter) -> None:
    sums = run_fleet("signed_increments", 4, mongo_url, 50)
    assert sorted(itertools.chain(*sums)) == list(range(1, 201))


@pytest.mark.slow
def test_sixteen_processes_are_never_inside_at_once(mongo_url: str, indexes: str, tmp_path: Path) -> None:
    tokens = run_fleet("critical_sections", 16, mongo_url, "shared", str(tmp_path), 2.5)
    assert sum(map(len, tokens)) > 20, "some got in"
    assert all(own == sorted(set(own)) for own in tokens)
    assert len(set(itertools.chain(*tokens))) == sum(map(len, tokens)), "no token was given out twice"


def test_of_racing_processes_one_gets_each_lock_entry_and_claim(mongo_url: str, indexes: str, database: Any) -> None:
    keys = [f"k{number}" for number in range(60)]
    for task in ("one_acquisition", "additions", "beginnings"):
        won = [
            one[0] if isinstance(one, list) else one for one in itertools.chain(*run_fleet(task, 4, mongo_url, keys))
        ]
        assert sorted(won) == sorted(keys), f"{task}: each key was won, and by one process alone"
    for name in ("go_goscope_locks", "go_goscope_cache", "go_goscope_idempotency"):
        assert database[name].count_documents({}) == len(keys)


def test_tokens_grow_over_expiry_in_many_processes(mongo_url: str, indexes: str) -> None:
    tokens = list(itertools.chain(*run_fleet("leases_of_the_dead", 3, mongo_url, "shared", 15)))
    assert len(tokens) == len(set(tokens))


def test_tokens_grow_over_release_expiry_and_removal_by_hand(adapter: MongoDBAdapter, database: Any) -> None:
    collection, tokens = database.go_goscope_locks, []
    for number in range(240):
        if number == 120:
            collection.drop_index("key_1")
        handle = adapter.lock.acquire("shared", 60_000)
        assert handle is not None, number
        tokens.append(handle.token)
        match number % 4:
            case 0:
                assert handle.release()
            case 1:
                assert collection.delete_one({"key": "lock:shared"}).deleted_count == 1
            case 2:
                assert adapter.lock.force_release("shared")
            case 3:  # expires without anybody's doing
                collection.update_one({"key": "lock:shared"}, [{"$set": {"expiresAt": "$$NOW"}}])
    assert tokens == sorted(set(tokens))


def test_the_lock_of_a_killed_process_is_had_when_its_lease_ends(
    mongo_url: str, adapter: MongoDBAdapter, database: Any
) -> None:
    # The TTL monitor comes once a minute; it is off here, so that only the takeover can free the lock.
    database.client.admin.command("setParameter", 1, ttlMonitorEnabled=False)
    try:
        with Remote(mongo_url) as other:
            first = other.call("lock", "acquire", "report", 1_500, "doomed")
            other.kill()
        held = adapter.lock.get("report")
        assert held is not None and held.expires_at is not None
        while (handle := adapter.lock.acquire("report", 60_000)) is None:
            pass
        assert handle.token > first["token"]
        found = adapter.lock.get("report")
        assert found is not None and found.created_at is not None
        late = found.created_at - held.expires_at
        assert 0 <= late.total_seconds() < 5, "not before the lease ended, and at once then"
    finally:
        database.client.admin.command("setParameter", 1, ttlMonitorEnabled=True)


def test_a_killed_claim_is_taken_over_and_its_late_result_refused(mongo_url: str, adapter: MongoDBAdapter) -> None:
    with Remote(mongo_url) as other:
        lost = other.call("idempotency", "begin", "order", 60_000, None, 300)
        assert adapter.idempotency.begin("order", 60_000).outcome == "in_progress"
        while (claim := adapter.idempotency.begin("order", 60_000)).outcome != "started":
            pass
        assert claim.token is not None and claim.token > lost["token"]
        assert other.call("idempotency", "complete", "order", lost["token"], "late") is False
    assert adapter.idempotency.complete("order", claim.token, "first") is True
    record = adapter.idempotency.get("order")
    assert record is not None and record.value == "first"
