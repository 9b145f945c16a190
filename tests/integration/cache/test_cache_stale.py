"""Stale values: who computes, who gets the old value, for how long, and what every other method makes of it."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.utils import translation
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from goscope_django import locks, runtime
from goscope_django.cache import computing
from goscope_django.cache.background import background
from goscope_django.cache.together import together
from goscope_django.circuits import CircuitBreaker
from goscope_django.exceptions import InvalidType, InvalidValue
from goscope_django.mongodb.cache import flows
from goscope_django.process import counters
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import Recorder, on_server
from tests.support.own_fields import ago, document, entries, let_end, make_stale, node_sets

ROOT = Path(__file__).resolve().parents[3]
CALLERS = 8


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(params=["mongod", "mongomock"])
def store(request: pytest.FixtureRequest, recorder: Recorder) -> Iterator[str]:
    url = "mongomock://stale" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    options = {} if request.param == "mongomock" else {"event_listeners": [recorder]}
    with on_server(url, client_options=options):
        runtime.adapter().ensure_indexes()
        entries().delete_many({})
        for one in locks.backend().list():
            locks.backend().force_release(one.key)
        computing._elsewhere.clear()
        yield request.param


def here() -> Any:
    """The default cache of this thread or task."""
    return caches["default"]


@pytest.fixture
def cache(store: str) -> Any:
    return here()


def failing() -> Any:
    raise LookupError("secret: the upstream's password")


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def counted(name: str) -> int:
    return counters._events[name]


def test_a_fresh_value_is_not_computed(cache: Any, drive: Drive) -> None:
    assert drive(cache, "get_or_set", "key", lambda: 1, 60, stale=30) == 1
    assert drive(cache, "get_or_set", "key", failing, 60, stale=30) == 1
    assert drive(cache, "get", "key") == 1
    assert 59 <= drive(cache, "ttl", "key") <= 60
    found = document("key")
    assert (found["expiresAt"] - found["freshUntil"]) == timedelta(seconds=30)
    assert found["ownFor"] == {"updatedAt": found["updatedAt"], "expiresAt": found["expiresAt"]}


def test_past_its_timeout_one_computes_and_the_value_is_new(cache: Any, drive: Drive) -> None:
    drive(cache, "get_or_set", "key", lambda: 1, 60, stale=30)
    make_stale("key")
    assert drive(cache, "get_or_set", "key", lambda: 2, 60, stale=30) == 2
    assert drive(cache, "get", "key") == 2
    assert locks.backend().list() == [] and together._entries == {}


def test_every_other_method_takes_it_for_expired(cache: Any, drive: Drive) -> None:
    missing = object()

    def again() -> None:
        entries().delete_many({})
        drive(cache, "get_or_set", "key", lambda: 1, 60, stale=30)
        make_stale("key")

    again()
    assert drive(cache, "get", "key", missing) is missing
    assert drive(cache, "get_many", ["key"]) == {}
    assert drive(cache, "has_key", "key") is False
    assert drive(cache, "ttl", "key") == 0
    assert drive(cache, "touch", "key", 100) is False
    assert drive(cache, "persist", "key") is False
    assert drive(cache, "expire_at", "key", 4_000_000_000) is False
    assert drive(cache, "set", "key", 2, xx=True) is False
    with pytest.raises(ValueError, match="not found"):
        drive(cache, "incr", "key")
    with pytest.raises(ValueError, match="not found"):
        drive(cache, "incr_version", "key")
    assert drive(cache, "count_keys", "k") == 0
    assert drive(cache, "keys", "*") == []
    assert document("key")["value"] == 1, "none of these has changed it"
    assert drive(cache, "get_or_set", "key", lambda: 3, 60) == 3, "who gives no stale= wants no stale value"
    again()
    assert drive(cache, "add", "key", 3) is True and drive(cache, "get", "key") == 3
    again()
    assert drive(cache, "delete", "key") is False
    assert drive(cache, "get_or_set", "key", lambda: 4, 60, stale=30) == 4, "what was deleted serves no more"


def test_a_fresh_one_is_like_any_other(cache: Any, drive: Drive) -> None:
    drive(cache, "get_or_set", "key", lambda: 1, 60, stale=30)
    assert drive(cache, "add", "key", 2) is False
    assert drive(cache, "keys", "*") == ["key"]
    assert drive(cache, "incr", "key") == 2
    assert drive(cache, "touch", "key", 500) is True
    assert 499 <= drive(cache, "ttl", "key") <= 500
    found = document("key")
    longer = found["expiresAt"] - found["freshUntil"] - timedelta(seconds=30)
    assert abs(longer) <= timedelta(milliseconds=5), "it may serve as long as before (mongomock looks twice)"
    make_stale("key")
    assert drive(cache, "get_or_set", "key", failing, 60, stale=30) == 2
    drive(cache, "get_or_set", "key", lambda: 3, 60, stale=30)
    assert drive(cache, "persist", "key") is True and drive(cache, "ttl", "key") is None
    assert drive(cache, "delete", "key") is True
    drive(cache, "get_or_set", "key", lambda: 4, None, stale=30)
    assert drive(cache, "ttl", "key") is None


def test_the_old_value_serves_while_the_callable_fails(
    cache: Any, drive: Drive, caplog: pytest.LogCaptureFixture
) -> None:
    drive(cache, "get_or_set", "key", lambda: "old", 60, stale=30)
    make_stale("key")
    before = counted("cache_refreshes_failed"), counted("cache_stale_served")
    with caplog.at_level(logging.WARNING, logger="goscope.cache"):
        assert drive(cache, "get_or_set", "key", failing, 60, stale=30) == "old"
    assert counted("cache_refreshes_failed") == before[0] + 1 and counted("cache_stale_served") == before[1] + 1
    assert "LookupError" in caplog.text and "cache_refresh_failed" in caplog.text
    assert "secret" not in caplog.text and "old" not in caplog.text
    let_end("key")
    with pytest.raises(LookupError):
        drive(cache, "get_or_set", "key", failing, 60, stale=30)
    assert locks.backend().list() == [] and together._entries == {}


def test_a_failure_that_comes_after_the_end_of_stale_is_raised(cache: Any, drive: Drive) -> None:
    drive(cache, "get_or_set", "key", lambda: "old", 60, stale=30)
    entries().update_one({"value": {"$exists": True}}, [{"$set": {"freshUntil": "$updatedAt"}}])
    ends = document("key")["expiresAt"] - timedelta(seconds=89)
    entries().update_one({"value": {"$exists": True}}, {"$set": {"expiresAt": ends, "ownFor.expiresAt": ends}})

    def slowly() -> Any:
        time.sleep(1.2)
        failing()

    with pytest.raises(LookupError):
        drive(cache, "get_or_set", "key", slowly, 60, stale=30)


def test_the_old_value_serves_while_a_circuit_is_open(cache: Any, drive: Drive) -> None:
    breaker = CircuitBreaker("upstream-of-stale", failure_threshold=1)
    drive(cache, "get_or_set", "key", lambda: "old", 60, stale=30)
    make_stale("key")
    assert drive(cache, "get_or_set", "key", lambda: breaker.call(failing), 60, stale=30) == "old"
    assert drive(cache, "get_or_set", "key", lambda: breaker.call(lambda: "new"), 60, stale=30) == "old"
    assert drive(cache, "get", "key") is None


def test_what_ends_a_process_is_not_held_back(cache: Any, drive: Drive) -> None:
    def interrupted() -> Any:
        raise KeyboardInterrupt

    drive(cache, "get_or_set", "key", lambda: "old", 60, stale=30)
    make_stale("key")
    with pytest.raises(KeyboardInterrupt):
        drive(cache, "get_or_set", "key", interrupted, 60, stale=30)
    assert locks.backend().list() == [] and together._entries == {}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_one_of_many_computes_and_the_others_do_not_wait(cache: Any, kind: str) -> None:
    cache.get_or_set("key", lambda: "old", 60, stale=30)
    make_stale("key")
    calls, done = [], threading.Event()

    def compute() -> str:
        calls.append(1)
        assert done.wait(30)
        return "new"

    async def acompute() -> str:
        calls.append(1)
        while not done.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return "new"

    if kind == "sync":
        with ThreadPoolExecutor(1) as leader:
            first = leader.submit(cache.get_or_set, "key", compute, 60, stale=30)
            wait_for(lambda: calls)
            with ThreadPoolExecutor(CALLERS) as pool:
                found = list(pool.map(lambda _: cache.get_or_set("key", compute, 60, stale=30), range(CALLERS)))
            done.set()
            new = first.result()
    else:

        async def together_() -> tuple[list[Any], Any]:
            first = asyncio.create_task(cache.aget_or_set("key", acompute, 60, stale=30))
            while not calls:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            found = await asyncio.gather(
                *(cache.aget_or_set("key", acompute, 60, stale=30) for _ in range(CALLERS)),
            )
            done.set()
            return found, await first

        found, new = asyncio.run(together_())
    assert found == ["old"] * CALLERS and new == "new" and len(calls) == 1


def test_another_process_computes_and_is_replaced_when_its_lease_ends(cache: Any, drive: Drive) -> None:
    drive(cache, "get_or_set", "key", lambda: "old", 60, stale=30)
    make_stale("key")
    taken = locks.backend().acquire("get_or_set:cache::1:key", timedelta(seconds=30), "another process")
    assert taken is not None
    assert drive(cache, "get_or_set", "key", failing, 60, stale=30) == "old"
    locks.backend().force_release("get_or_set:cache::1:key")
    computing._elsewhere.clear()
    assert drive(cache, "get_or_set", "key", lambda: "new", 60, stale=30) == "new"


def test_what_another_one_has_computed_meanwhile_is_taken(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.get_or_set("key", lambda: "old", 60, stale=30)
    make_stale("key")
    attempt = computing.Turn.attempt

    def slowly(turn: computing.Turn) -> Any:
        cache.set("key", "theirs", 60)
        return attempt(turn)

    monkeypatch.setattr(computing.Turn, "attempt", slowly)
    assert cache.get_or_set("key", failing, 60, stale=30) == "theirs"


def test_in_the_background_nobody_waits(cache: Any, drive: Drive) -> None:
    drive(cache, "get_or_set", "key", lambda: "old", 60, stale=30)
    make_stale("key")
    go, threads = threading.Event(), []

    def compute() -> str:
        threads.append((threading.current_thread(), translation.get_language()))
        if drive.kind == "sync":
            assert go.wait(30)
        return "new"

    with translation.override("de"):
        for _ in range(3 if drive.kind == "sync" else 1):
            assert drive(cache, "get_or_set", "key", compute, 60, stale=30, background=True) == "old"
    if drive.kind == "sync":
        assert cache.get_or_set("key", failing, 60, stale=30, background=True) == "old"
        go.set()
        wait_for(lambda: cache.get("key") == "new")
        assert threads[0][0].daemon and threads[0][0] is not threading.current_thread()
    else:

        async def later() -> None:
            # The task gives its lease back afterwards, which it can't once nothing runs the loop.
            while await cache.aget("key") != "new" or background._tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        assert drive._runner is not None
        drive._runner.run(asyncio.wait_for(later(), 30))
    assert len(threads) == 1
    if drive.kind == "sync":  # a runner has a context of its own
        assert threads[0][1] == "de"
    wait_for(lambda: not background._threads and not together._entries)


def test_a_failure_in_the_background_is_logged_and_the_old_value_serves(
    cache: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cache.get_or_set("key", lambda: "old", 60, stale=30)
    make_stale("key")
    with caplog.at_level(logging.WARNING, logger="goscope.cache"):
        assert cache.get_or_set("key", failing, 60, stale=30, background=True) == "old"
        wait_for(lambda: not background._threads)
    assert "cache_refresh_failed" in caplog.text and "secret" not in caplog.text
    assert cache.get_or_set("key", lambda: "new", 60, stale=30) == "new"


def test_more_than_there_are_threads_is_computed_all_the_same(cache: Any) -> None:
    names = [f"key{number}" for number in range(20)]
    for name in names:
        cache.get_or_set(name, lambda: "old", 60, stale=30)
        make_stale(name)
    for name in names:
        assert cache.get_or_set(name, lambda: "new", 60, stale=30, background=True) == "old"
    wait_for(lambda: set(cache.get_many(names).values()) == {"new"} and len(cache.get_many(names)) == 20)


def test_where_no_thread_can_be_started_the_old_value_serves(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    cache.get_or_set("key", lambda: "old", 60, stale=30)
    make_stale("key")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert cache.get_or_set("key", lambda: "new", 60, stale=30, background=True) == "old"
    assert together._entries == {} and not background._threads


def test_a_value_that_is_no_callable_is_stored_anew(cache: Any, drive: Drive) -> None:
    assert drive(cache, "get_or_set", "key", 1, 60, stale=30) == 1
    make_stale("key")
    assert drive(cache, "get_or_set", "key", 2, 60, stale=30) == 2
    assert drive(cache, "get", "key") == 2


def test_listings_leave_out_what_is_stale_however_many_there_are(
    cache: Any, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "BATCH", 5)
    for number in range(9):
        cache.get_or_set(f"s{number}", lambda: 1, 60, stale=30)
        cache.set(f"s{number}-fresh", 1, 60)
    entries().update_many({"freshUntil": {"$ne": None}}, {"$set": {"freshUntil": ago(1)}})
    assert drive(cache, "keys", "s*") == [f"s{number}-fresh" for number in range(9)]
    assert drive(cache, "keys", "s[0-2]*") == [f"s{number}-fresh" for number in range(3)]
    assert drive(cache, "delete_pattern", "s3*") == 2, "what is stale goes too"
    cache.clear()
    assert drive(cache, "keys", "*") == []


def test_what_was_invalidated_serves_no_more(cache: Any, drive: Drive) -> None:
    drive(cache, "get_or_set", "key", lambda: "old", 60, stale=30, tags=("a",))
    make_stale("key")
    assert drive(cache, "get_or_set", "key", failing, 60, stale=30, tags=("a",)) == "old"
    drive(cache, "invalidate_tags", "a")
    with pytest.raises(LookupError):
        drive(cache, "get_or_set", "key", failing, 60, stale=30, tags=("a",))


def test_what_node_writes_over_a_stale_entry_is_nodes(cache: Any, drive: Drive) -> None:
    drive(cache, "get_or_set", "key", lambda: "old", 60, stale=30)
    make_stale("key")
    node_sets("key", "node")
    assert drive(cache, "get", "key") == "node"
    assert drive(cache, "get_or_set", "key", failing, 60, stale=30) == "node"


@pytest.mark.parametrize("damage", [5, "later", {"a": 1}, None])
def test_a_freshness_that_is_no_date_is_none(cache: Any, drive: Drive, damage: Any) -> None:
    drive(cache, "get_or_set", "key", lambda: "old", 60, stale=30)
    entries().update_one({"value": {"$exists": True}}, {"$set": {"freshUntil": damage}})
    assert drive(cache, "get", "key") == "old" and drive(cache, "add", "key", 1) is False


def test_what_cant_be_used_is_refused(cache: Any, drive: Drive) -> None:
    for stale in (True, "5"):
        with pytest.raises(InvalidType):
            drive(cache, "get_or_set", "key", 1, 60, stale=stale)
    for value in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InvalidValue):
            drive(cache, "get_or_set", "key", 1, 60, stale=value)
    with pytest.raises(InvalidType):
        drive(cache, "get_or_set", "key", 1, 60, stale=5, background=1)
    with pytest.raises(InvalidValue, match="stale"):
        drive(cache, "get_or_set", "key", 1, 60, background=True)


def test_what_it_costs(cache: Any, store: str, recorder: Recorder) -> None:
    if store == "mongomock":
        pytest.skip("mongomock: sends no commands")
    cache.get("time")
    cache.get_or_set("key", lambda: 1, 60, stale=30)

    def sends(number: int) -> None:
        # On a slow machine the server's time may not be known at one moment; then it is asked for with a second read.
        for _ in range(50):
            recorder.clear()
            for _ in range(number):
                assert cache.get_or_set("key", failing, 60, stale=30) == 1
            if recorder.names == ["find"] * number:
                return
        raise AssertionError(recorder.names)

    sends(1)
    make_stale("key")
    lease = locks.backend().acquire("get_or_set:cache::1:key", timedelta(seconds=30), "another process")
    assert lease is not None
    cache.get_or_set("key", failing, 60, stale=30)
    computing._elsewhere[next(iter(computing._elsewhere))] += 60
    sends(5)  # not every caller asks for the lease


END = """
import os, sys, threading, time
import django
from django.conf import settings
settings.configure(
    SECRET_KEY="x", GOSCOPE={"URL": sys.argv[1]}, INSTALLED_APPS=["goscope_django"],
    CACHES={"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}},
)
django.setup()
from django.core.cache import cache
begun = threading.Event()
def compute():
    begun.set()
    time.sleep(600)
assert cache.get_or_set("key", compute, 60, stale=30, background=True) == "old"
assert begun.wait(30)
pid = os.fork()
if pid == 0:
    from goscope_django.cache.background import background
    from goscope_django.cache.together import together
    assert not background._threads and not together._entries
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print("end")
"""


def test_neither_the_process_nor_its_child_waits_for_the_background(cache: Any, store: str, mongo_url: str) -> None:
    if store == "mongomock":
        pytest.skip("mongomock: a store of one process")
    cache.get_or_set("key", lambda: "old", 60, stale=30)
    make_stale("key")
    done = subprocess.run(
        [sys.executable, "-c", END, mongo_url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "end\n" and done.returncode == 0, done.stderr


# A model


class Clockwork(RuleBasedStateMachine):
    """One entry, and a clock that the test moves by moving what stands in the document."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: Any = caches["default"]
        entries().delete_many({})
        self.now = 0.0
        self.entry: tuple[int, float, float] | None = None  # the value, fresh until, ends
        self.number = 0

    def fresh(self) -> int | None:
        return self.entry[0] if self.entry and self.now < self.entry[1] else None

    def serves(self) -> int | None:
        return self.entry[0] if self.entry and self.now < self.entry[2] else None

    def store(self, timeout: float, stale: float) -> int:
        self.number += 1
        self.entry = (self.number, self.now + timeout, self.now + timeout + stale)
        return self.number

    @rule(seconds=st.sampled_from([300, 1_000, 4_000]))
    def passes(self, seconds: int) -> None:
        self.now += seconds
        found = document("key")
        if found is None:
            return
        less = timedelta(seconds=seconds)
        change = {"expiresAt": found["expiresAt"] - less, "ownFor": found.get("ownFor")}
        if found.get("freshUntil"):
            change["freshUntil"] = found["freshUntil"] - less
        if change["ownFor"]:
            change["ownFor"] = {**change["ownFor"], "expiresAt": change["expiresAt"]}
        entries().update_one({"_id": found["_id"]}, {"$set": change})

    @rule(timeout=st.sampled_from([500, 2_000]), stale=st.sampled_from([None, 600, 3_000]), fails=st.booleans())
    def get_or_set(self, timeout: int, stale: int | None, fails: bool) -> None:
        def compute() -> int:
            if fails:
                raise LookupError
            return self.number + 1

        expected: int | type = LookupError
        if self.fresh() is not None:
            expected = self.fresh() or 0
        elif not fails:
            expected = self.store(timeout, stale or 0)
            self.number -= 1
        elif stale is not None and self.serves() is not None:
            expected = self.serves() or 0
        try:
            found: int | type = self.cache.get_or_set("key", compute, timeout, stale=stale)
        except LookupError as error:
            found = type(error)
        assert found == expected
        self.number += 1

    @rule(timeout=st.sampled_from([700]))
    def set(self, timeout: int) -> None:
        assert self.cache.set("key", self.store(timeout, 0), timeout)

    @rule(timeout=st.sampled_from([700]))
    def add(self, timeout: int) -> None:
        free = self.fresh() is None
        assert self.cache.add("key", self.number + 1, timeout) is free
        if free:
            self.store(timeout, 0)

    @rule(timeout=st.sampled_from([900]))
    def touch(self, timeout: int) -> None:
        there = self.fresh() is not None
        assert self.cache.touch("key", timeout) is there
        if there and self.entry:
            more = self.entry[2] - self.entry[1]
            self.entry = (self.entry[0], self.now + timeout, self.now + timeout + more)

    @rule()
    def reads(self) -> None:
        value = self.fresh()
        assert self.cache.get("key") == value
        assert self.cache.has_key("key") is (value is not None)
        assert self.cache.get_many(["key"]) == ({} if value is None else {"key": value})
        assert bool(self.cache.ttl("key")) is (value is not None)

    @rule()
    def delete(self) -> None:
        assert self.cache.delete("key") is (self.fresh() is not None)
        self.entry = None


def test_it_does_as_its_model(store: str) -> None:
    if store == "mongomock":
        pytest.skip("mongomock: drops expired documents at once")
    steps = settings(max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Clockwork, settings=steps)
