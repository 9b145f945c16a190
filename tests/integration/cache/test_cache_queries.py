"""The queries behind key listings and range deletes: a range over the index, covered where it can be, memory constant.

What is explained are the very commands that the cache sent.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.cache import cache as django_cache
from pymongo import MongoClient

from goscope_django import runtime
from tests.support.commands import Recorder, explainable, on_server, stages

ENTRIES = 50_000
cache: Any = django_cache  # typed as what every backend has; ours has more


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def database(mongo_url: str) -> Iterator[Any]:
    """A cache with many entries, and as many of somebody else's before and behind them."""
    with MongoClient[dict[str, Any]](mongo_url) as client:
        database = client.get_default_database()
        later = datetime.now(UTC) + timedelta(hours=1)
        for prefix in ("cache::1:a", "cache:", "cache:z:1:"):
            number = ENTRIES if prefix == "cache::1:a" else 2_000
            keys = [f"{prefix}{i:06}" for i in range(number)]
            rows = [{"_id": key, "key": key, "value": 1, "expiresAt": later, "updatedAt": later} for key in keys]
            database.go_goscope_cache.insert_many(rows, ordered=False)
        yield database


@pytest.fixture(autouse=True)
def settings(mongo_url: str, database: Any, recorder: Recorder) -> Iterator[None]:
    with on_server(mongo_url, client_options={"event_listeners": [recorder]}):
        runtime.adapter().ensure_indexes()
        recorder.clear()
        yield


def explained(database: Any, command: dict[str, Any]) -> tuple[set[str], dict[str, Any]]:
    found = database.command({"explain": explainable(command), "verbosity": "executionStats"})
    return stages(found), found["executionStats"]


def plans(database: Any, recorder: Recorder) -> list[tuple[set[str], dict[str, Any]]]:
    commands = recorder.commands
    assert commands
    return [explained(database, command) for command in commands]


def test_pages_of_keys_are_covered_by_the_index(database: Any, recorder: Recorder) -> None:
    found = cache.iter_keys("a00[0-4]*")
    assert next(found) == "a000000"
    assert len(list(found)) == 4_999
    first, *pages = plans(database, recorder)
    assert len(pages) == 11  # ten thousand keys begin with "a00", and a last page finds none
    for names, statistics in pages:
        assert "IXSCAN" in names
        assert not names & {"COLLSCAN", "FETCH", "SORT"}
        assert statistics["totalDocsExamined"] == 0
        assert statistics["totalKeysExamined"] <= statistics["nReturned"] + 1
    # Before them, what has expired but still stands there: found by the index on the expiry.
    names, statistics = first
    assert "IXSCAN" in names and "COLLSCAN" not in names
    assert statistics["totalDocsExamined"] == 0


def test_the_pages_stay_on_the_index_when_much_has_expired(database: Any, recorder: Recorder) -> None:
    past = datetime.now(UTC) - timedelta(hours=1)
    # Where TTL monitors are slow, or many entries end at once.
    database.client.admin.command("setParameter", 1, ttlMonitorEnabled=False)
    try:
        rows = [{"_id": f"cache::1:b{i:04}", "key": f"cache::1:b{i:04}", "expiresAt": past} for i in range(1_500)]
        database.go_goscope_cache.insert_many(rows)
        assert cache.keys("b*") == []
        assert cache.keys("*9999") == [f"a{n:02}9999" for n in range(5)]
        for names, _ in plans(database, recorder):
            assert "IXSCAN" in names and "COLLSCAN" not in names and "SORT" not in names
    finally:
        database.client.admin.command("setParameter", 1, ttlMonitorEnabled=True)
        database.go_goscope_cache.delete_many({"key": {"$regex": "^cache::1:b"}})


def test_a_prefix_costs_what_it_holds(database: Any, recorder: Recorder) -> None:
    assert len(cache.keys("a0001*")) == 100
    _, (_, statistics) = plans(database, recorder)
    assert statistics["totalKeysExamined"] <= 101


def test_clear_and_delete_pattern_are_ranges_over_the_index(
    database: Any, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.delete_pattern("nothing-begins-so*") == 0
    assert cache.delete_pattern("a0499*") == 100
    ((names, statistics), _) = plans(database, recorder)
    assert "IXSCAN" in names and "COLLSCAN" not in names
    assert statistics["totalKeysExamined"] == 0
    recorder.clear()
    sample = [{"_id": f"cache::2:{i}", "key": f"cache::2:{i}"} for i in range(3)]
    database.go_goscope_cache.insert_many(sample)
    cache.clear()
    ((names, _),) = plans(database, recorder)
    assert "IXSCAN" in names and "COLLSCAN" not in names
    assert database.go_goscope_cache.count_documents({}) == 4_000, "what others stored is still there"
    rows = [{"_id": f"cache::1:a{i:06}", "key": f"cache::1:a{i:06}"} for i in range(ENTRIES)]
    database.go_goscope_cache.insert_many(rows, ordered=False)


def test_other_operations_use_the_index(database: Any, recorder: Recorder) -> None:
    cache.get("a000001")
    cache.get_many(["a000001", "a000002"])
    cache.has_key("a000001")
    cache.ttl("a000001")
    for names, statistics in plans(database, recorder):
        assert "IXSCAN" in names and "COLLSCAN" not in names
        assert statistics["totalKeysExamined"] <= 3
    recorder.clear()
    cache.touch("missing")
    cache.delete("missing")
    assert cache.add("new", 1)
    for names, _ in plans(database, recorder):
        assert names & {"IXSCAN", "IDHACK", "EOF"} and "COLLSCAN" not in names
    cache.delete("new")


@pytest.mark.slow
def test_memory_stays_constant_however_many_keys_are_listed(database: Any) -> None:
    def peak(pattern: str) -> tuple[int, int]:
        tracemalloc.start()
        try:
            number = sum(1 for _ in cache.iter_keys(pattern))
            return number, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak("a00*")
    few, small = peak("a00*")
    many, large = peak("a*")
    assert (few, many) == (10_000, ENTRIES)
    assert large < 1.5 * small
