"""An old primary that has not noticed that there is a new one, and a new one whose clock is wrong: what is promised of
them in ``docs/explanation/guarantees.md`` ("Time", "Writes with an unknown outcome"), step by step.

``nemesis`` does the same to clients of all features, at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from django.core.cache import caches
from pymongo import WriteConcern

from goscope_django.contracts import Checkpoint
from goscope_django.exceptions import OutcomeUnknown, StoreError, StoreUnavailable, TaskLost
from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb.checkpoints.history import CheckpointFlows
from goscope_django.mongodb.checkpoints.tasks import TaskFlows
from goscope_django.mongodb.checkpoints.values import Ending, Run, Snapshot
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.driver.execute import SyncExecutor
from goscope_django.mongodb.driver.store import Store
from goscope_django.mongodb.single_flight.flows import FlightFlows
from goscope_django.mongodb.single_flight.values import Terms
from tests.consistency import faults, harness
from tests.consistency.nodes import CLOCKS, NOTICED, Nodes, nodes
from tests.support.commands import on_server
from tests.support.near import opened

pytestmark = [pytest.mark.real, pytest.mark.fleet, pytest.mark.slow]

NOW = datetime(2026, 1, 31, tzinfo=UTC)
TASKS = TaskFlows(CheckpointFlows("", Codec(pickle=False)))
FLIGHTS, TERMS = FlightFlows(""), Terms(600_000, 600_000, "me", 2.0)
SNAPSHOT = Snapshot(1, {"n": 1}, [], 10.0, None, None, None, None, NOW)
WRONG = 40.0
"""Seconds that a clock is wrong by."""
LEASE = 20_000
LIMIT = 4.0
"""Seconds for one command."""


@pytest.fixture(scope="module")
def running() -> Iterator[Nodes]:
    with nodes(3) as started:
        yield started


@pytest.fixture
def name(running: Nodes, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of the test's own."""
    name = f"parts_{abs(hash(request.node.nodeid)) % 10**9}"
    yield name
    with running.client() as client:
        client.drop_database(name)


def run_of(claim: str, name: str = "t") -> Run:
    return Run(name, claim, "me", LEASE, None, None, None, None, False, {})


def until(test: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def make_primary(running: Nodes, port: int) -> None:
    def done() -> bool:
        running.step_up(port)
        return running.primary_port() == port

    until(done)


class Everything:
    """Every kind of write, once in a state that was acknowledged before the network was cut."""

    def __init__(self, adapter: MongoDBAdapter) -> None:
        self.adapter = adapter
        self.handle = adapter.lock.acquire("held", 600_000, "me")
        adapter.lock.acquire("other", 600_000)
        self.claim = adapter.idempotency.begin("begun", 600_000, None, 600_000)
        self.flight = adapter.store.run(FLIGHTS.enter, "f", TERMS, None, lambda *_: 0.01, 0.0)
        self.task, self.ending = (adapter.store.run(TASKS.start, run_of("me", name)) for name in "te")
        adapter.cache.set("n", 5)
        adapter.idempotency.set("done", "value")
        for number in (1, 2):
            adapter.checkpoint.save(Checkpoint(f"c{number}", "c", number, NOW))
        adapter.circuit_breaker.record_failure("c", 9)

    def writes(self, mine: MongoDBAdapter) -> dict[str, Callable[[], Any]]:
        """What is tried through ``mine``, by name. An answer that is true is an acknowledgement."""
        lock, cache, circuits = mine.lock, mine.cache, mine.circuit_breaker
        checkpoint, idempotency, store = mine.checkpoint, mine.idempotency, mine.store
        begun, flight, task, ending = self.claim, self.flight, self.task, self.ending
        completed = Ending("completed", None, None)

        def done(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
            return lambda: (call(*args, **kwargs), True)[1]

        return {
            "lock.acquire": lambda: lock.acquire("free", 60_000),
            "lock.extend": lambda: lock.extend("held", 900_000, "me"),
            "lock.force_release": lambda: lock.force_release("other"),
            "circuit.failure": lambda: circuits.record_failure("c", 9),
            "circuit.success": done(circuits.record_success, "c"),
            "circuit.delete": lambda: circuits.delete("c"),
            "cache.set": done(cache.set, "k", 1),
            "cache.delete": lambda: cache.delete("n"),
            "checkpoint.save": done(checkpoint.save, Checkpoint("c3", "c", 3, NOW)),
            "checkpoint.cleanup": lambda: checkpoint.cleanup("c", 1),
            "idempotency.begin": lambda: idempotency.begin("new", 60_000).outcome == "started",
            "idempotency.set": done(idempotency.set, "i", 1),
            "idempotency.delete": lambda: idempotency.delete("done"),
            "idempotency.complete": lambda: idempotency.complete("begun", begun.token or 0, 1),
            "flight.publish": lambda: store.run(FLIGHTS.publish, "f", flight, "kind", 1, 0.1, TERMS) == "published",
            "task.save": done(store.run, TASKS.save, run_of("me"), task.token, SNAPSHOT, cancelled=False),
            "task.finish": done(
                store.run, TASKS.finish, run_of("me", "e"), ending.token, completed, SNAPSHOT, save=False
            ),
        }


def acknowledged_by_the_old(running: Nodes, name: str) -> tuple[set[str], dict[str, BaseException]]:
    """The writes that a primary acknowledged which was replaced without its noticing, and the errors of the others."""
    with running.client() as client:
        everything = Everything(MongoDBAdapter(client[name]))
    running.wait_for_all()
    old = running.primary_port()
    others = [port for port in running.ports if port != old]
    acknowledged, errors = set[str](), dict[str, BaseException]()

    def tried(one: str, call: Callable[[], Any]) -> None:
        try:
            if call():
                acknowledged.add(one)
        except (OutcomeUnknown, StoreUnavailable, TaskLost) as error:
            errors[one] = error

    with running.direct(old, maxConnecting=30) as client, ThreadPoolExecutor(20) as pool:
        executor = SyncExecutor(client[name], limit=LIMIT)
        writes = everything.writes(MongoDBAdapter.on(Store(lambda: executor, None)))
        for _ in range(5):
            running.isolate(old)
            running.step_up(others[0])
            until(lambda: any(map(running.believes, others)))
            if running.believes(old):
                break  # there are two primaries; a busy machine may be too late for that
            running.wires.heal()
            running.wait_for_all()
            make_primary(running, old)
        for future in [pool.submit(tried, *one) for one in writes.items()]:
            future.result(30)
    with running.direct(next(filter(running.believes, others))) as client:
        there = MongoDBAdapter(client[name])
        assert there.lock.get("held") and not there.lock.get("free")
        assert there.idempotency.begin("begun", 60_000).outcome == "in_progress"
        assert there.cache.get("n") == 5
    running.wires.heal()
    until(lambda: not running.believes(old))
    assert acknowledged | errors.keys() == writes.keys()
    return acknowledged, errors


@pytest.mark.timeout(120)
def test_an_old_primary_that_has_not_noticed_acknowledges_nothing(running: Nodes, name: str) -> None:
    began = time.monotonic()
    acknowledged, errors = acknowledged_by_the_old(running, name)
    assert not acknowledged
    assert any(isinstance(error, OutcomeUnknown) for error in errors.values()), "they reached it"
    assert time.monotonic() - began < 40
    with running.client() as client:
        adapter = MongoDBAdapter(client[name])
        assert adapter.circuit_breaker.record_failure("c", 9) == 2, "what was not acknowledged was undone"


@pytest.mark.timeout(120)
def test_it_would_where_one_node_is_enough(running: Nodes, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faults.plant("unconfirmed_writes", monkeypatch.setattr)
    acknowledged, _ = acknowledged_by_the_old(running, name)
    assert acknowledged >= {"lock.acquire", "circuit.failure", "idempotency.begin", "task.save"}


@pytest.mark.timeout(120)
def test_a_near_cache_beside_an_old_primary(running: Nodes, name: str) -> None:
    """While that primary takes itself for one its reads are as old as it is, whoever asks it. Afterwards nothing is
    older than ``MAX_STALE``: then there is no answer at all, until the new primary is reached."""
    stale = 0.5
    near: dict[str, dict[str, Any]] = {"default": {"OPTIONS": {"NEAR": {"MAX_STALE": stale}}}}
    with harness.ways_to(running) as ways:
        url = harness.url_of((way.port for way in ways.values()), name, serverSelectionTimeoutMS=500)
        with on_server(url, caches=near):
            cache = caches["default"]
            cache.set("k", "old", None)
            opened(cache)
            until(lambda: cache.get("k") == "old")
            running.wait_for_all()
            old = running.primary_port()
            others = [port for port in running.ports if port != old]
            for port in others:
                ways[port].cut()
            running.isolate(old)
            running.step_up(others[0])
            until(lambda: any(map(running.believes, others)))
            with running.direct(next(filter(running.believes, others))) as client:
                entries = client[name].get_collection("go_goscope_cache", write_concern=WriteConcern("majority"))
                assert entries.update_one({"value": "old"}, {"$set": {"value": "new"}}).modified_count == 1
            until(lambda: not running.believes(old))
            time.sleep(stale + 0.2)
            for _ in range(4):
                with suppress(StoreError):
                    assert cache.get("k") == "new"
            running.wires.heal()
            for way in ways.values():
                way.heal()
            until(lambda: seen(cache) == "new")


def seen(cache: Any) -> Any:
    with suppress(StoreError):
        return cache.get("k")
    return None


# Clocks


@pytest.fixture(params=[WRONG, -WRONG], ids=["ahead", "behind"])
def wrong(request: pytest.FixtureRequest) -> float:
    if not CLOCKS:
        pytest.skip("libfaketime is not installed")
    return float(request.param)


def fail_over(running: Nodes, ahead: float) -> None:
    """Let a member become the primary whose clock is that many seconds ahead of the old one's."""
    running.wait_for_all()
    old = running.primary_port()
    new = next(port for port in running.ports if port != old)
    running.set_clock(new, running.clocks[old] + ahead)
    until(lambda: abs(running.ahead(new) - running.ahead(old) - ahead) < 1)
    time.sleep(NOTICED)
    make_primary(running, new)


@pytest.fixture
def agreeing(running: Nodes) -> Iterator[None]:
    """Afterwards all clocks agree. None is set back: a member whose clock is may not copy from others for as long."""
    yield
    for port in running.ports:
        running.set_clock(port, max(running.clocks.values()))
    agree(running)


def agree(running: Nodes) -> None:
    """Wait until each member has the clock that it was told, and until none makes another the primary because of it."""
    time.sleep(NOTICED)
    until(lambda: all(abs(running.ahead(port) - running.clocks[port]) < 1 for port in running.ports))
    time.sleep(NOTICED)
    running.wait_for_all()


@pytest.mark.timeout(120)
def test_after_a_failover_to_a_wrong_clock(running: Nodes, name: str, wrong: float, agreeing: None) -> None:
    """A lease, a claim and an entry end as much earlier or later. Nothing that was acknowledged is undone, tokens rise,
    and whoever was replaced changes nothing."""
    ended = wrong > 0
    with running.client() as client:
        adapter = MongoDBAdapter(client[name])
        locks, store, idempotency = adapter.lock, adapter.store, adapter.idempotency
        held, removed = locks.acquire("held", LEASE, "me"), locks.acquire("removed", LEASE)
        assert held is not None and removed is not None
        claim = idempotency.begin("begun", 600_000, None, LEASE)
        idempotency.set("done", "value", 600_000)
        task = store.run(TASKS.start, run_of("me"))
        adapter.cache.set("k", 1, LEASE)
        assert [adapter.circuit_breaker.record_failure("c", 9) for _ in "ab"] == [1, 2]
        fail_over(running, wrong)
        time.sleep(1.1)  # for a second the cache goes by the clock that it knew

        assert adapter.circuit_breaker.record_failure("c", 9) == 3
        assert adapter.cache.get("k") == (None if ended else 1)
        stored = idempotency.get("done")
        assert stored is not None and stored.value == "value"

        locks.force_release("removed")
        client[name].go_goscope_locks.delete_many({"key": "lock:removed"})
        again = locks.acquire("removed", LEASE)
        assert again is not None and again.token > removed.token

        taken = locks.acquire("held", LEASE, "other")
        assert (taken is not None) == ended
        if taken is not None:
            assert taken.token > held.token and taken.is_valid()
        assert [held.is_valid(), held.extend(LEASE), held.release()] == [not ended] * 3
        if taken is None:
            later = locks.acquire("held", LEASE, "other")
            assert later is not None and later.token > held.token

        second = idempotency.begin("begun", 600_000, None, LEASE)
        assert second.outcome == ("started" if ended else "in_progress")
        assert idempotency.complete("begun", claim.token or 0, "first") is not ended
        if ended:
            assert idempotency.complete("begun", second.token or 0, "second")
        replayed = idempotency.begin("begun", 600_000)
        assert (replayed.outcome, replayed.value) == ("completed", "second" if ended else "first")

        other = store.run(TASKS.start, run_of("other"))
        assert other.outcome == ("started" if ended else "running")
        if ended:
            assert other.token > task.token
            with pytest.raises(TaskLost):
                store.run(TASKS.save, run_of("me"), task.token, SNAPSHOT, cancelled=False)
        else:
            store.run(TASKS.save, run_of("me"), task.token, SNAPSHOT, cancelled=False)


@pytest.mark.timeout(120)
def test_tokens_of_the_time_of_day_would_go_back(
    running: Nodes, name: str, agreeing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not CLOCKS:
        pytest.skip("libfaketime is not installed")
    faults.plant("wall_clock_tokens", monkeypatch.setattr)
    with running.client() as client:
        locks = MongoDBAdapter(client[name]).lock
        before = locks.acquire("k", 60_000)
        fail_over(running, -WRONG)
        client[name].go_goscope_locks.delete_many({})
        after = locks.acquire("k", 60_000)
    assert before is not None and after is not None and after.token < before.token
