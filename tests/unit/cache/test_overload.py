"""A cache whose server does not answer in time is not asked for a while, until it answers again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.sessions.backends.base import SessionBase
from django.core.cache import cache as default_cache
from django.core.cache import caches as all_caches
from pymongo.errors import AutoReconnect, NetworkTimeout, ServerSelectionTimeoutError, WaitQueueTimeoutError

from goscope_django import figures, operations, signals
from goscope_django.cache import overload
from goscope_django.cache.overload import TIMEOUTS
from goscope_django.exceptions import StoreUnavailable
from goscope_django.mongodb.driver.execute import MockExecutor
from goscope_django.process import outage
from goscope_django.sessions import SessionStore
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import on_server

cache: Any = default_cache
caches: Any = all_caches
SLOW = NetworkTimeout("127.0.0.1:27017: timed out")
IGNORES = {"OPTIONS": {"ON_ERROR": "ignore"}}


class Server:
    """What the cache's commands meet: ``trouble`` is raised for each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trouble: Exception | None = None
        self.asked = 0
        call = MockExecutor.__call__

        def carried_out(executor: MockExecutor, command: Any) -> Any:
            if getattr(command, "collection", "") == "go_goscope_cache":
                self.asked += 1
                if self.trouble is not None:
                    raise self.trouble
            return call(executor, command)

        monkeypatch.setattr(MockExecutor, "__call__", carried_out)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1_000.0)
    clock.monotonic = lambda: clock.now
    for module in (overload, outage):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(overload, "_overloads", {})
    monkeypatch.setattr(outage, "_outages", {})
    return clock


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace) -> Iterator[Server]:
    entries: dict[str, dict[str, Any]] = {
        "default": {},
        "other": {"KEY_PREFIX": "other"},
        "lenient": {"KEY_PREFIX": "lenient", **IGNORES},
    }
    with on_server("mongomock://", caches=entries):
        yield Server(monkeypatch)


@pytest.fixture
def told() -> Iterator[list[str]]:
    found: list[str] = []

    def away(feature: str, **_: Any) -> None:
        found.append(f"degraded {feature}")

    def back(feature: str, **_: Any) -> None:
        found.append(f"recovered {feature}")

    signals.degraded.connect(away)
    signals.recovered.connect(back)
    yield found
    signals.degraded.disconnect(away)
    signals.recovered.disconnect(back)


def fail(drive: Drive, number: int, subject: Any = None) -> list[StoreUnavailable]:
    found = []
    for _ in range(number):
        with pytest.raises(StoreUnavailable) as caught:
            drive(subject or cache, "get", "k")
        found.append(caught.value)
    return found


def test_after_some_time_outs_in_a_row_it_raises_at_once_and_says_for_how_long(
    drive: Drive, server: Server, told: list[str]
) -> None:
    server.trouble = SLOW
    assert all(one.__cause__ is SLOW for one in fail(drive, TIMEOUTS))
    (refused,) = fail(drive, 1)
    assert str(refused) == (
        f"cache: the server has not answered in time, {TIMEOUTS} times in a row, and is not asked again for 2.0 s"
    )
    with pytest.raises(StoreUnavailable, match="is not asked again"):
        drive(caches["other"], "set", "k", 1)  # another alias on the same store
    assert server.asked == TIMEOUTS
    assert told == ["degraded cache.timeouts"]


def test_where_that_is_ignored_all_are_misses_at_once(drive: Drive, server: Server) -> None:
    server.trouble = SLOW
    fail(drive, TIMEOUTS)
    lenient = caches["lenient"]
    before = figures.alias("lenient").row("")[4]
    assert drive(lenient, "get", "k", "default") == "default"
    assert drive(lenient, "get_or_set", "k", lambda: "computed") == "computed"
    assert drive(lenient, "set", "k", 1) is False
    assert lenient.degraded and not cache.degraded
    assert server.asked == TIMEOUTS, "the first of them did not have to find out"
    assert figures.alias("lenient").row("")[4] >= before + 3, "each is counted"


def test_one_caller_asks_when_the_pause_ends_and_its_answer_ends_it(
    drive: Drive, server: Server, clock: SimpleNamespace, told: list[str]
) -> None:
    server.trouble = SLOW
    fail(drive, TIMEOUTS)
    pauses = []
    for _ in range(6):
        began, asked = clock.now, server.asked
        while server.asked == asked:
            clock.now += 0.5
            fail(drive, 1)
        pauses.append(clock.now - began)
    assert pauses == [2, 4, 8, 16, 30, 30]
    server.trouble, clock.now = None, clock.now + 30
    assert drive(cache, "get", "k", "default") == "default"
    assert drive(caches["other"], "set", "k", 1)
    assert told == ["degraded cache.timeouts", "recovered cache.timeouts"]
    server.trouble = SLOW
    asked = server.asked
    fail(drive, TIMEOUTS + 1)
    assert server.asked == asked + TIMEOUTS, "and it counts anew"


def test_of_many_threads_one_asks(server: Server, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    server.trouble = SLOW
    fail(Drive("sync"), TIMEOUTS)
    clock.now += 2
    asks, go_on = threading.Event(), threading.Event()
    carried_out = MockExecutor.__call__

    def slowly(executor: MockExecutor, command: Any) -> Any:
        asks.set()
        assert go_on.wait(20)
        return carried_out(executor, command)

    monkeypatch.setattr(MockExecutor, "__call__", slowly)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fail, Drive("sync"), 1)
        assert asks.wait(20)
        clock.now += 100
        refused = fail(Drive("sync"), 20)
        go_on.set()
        assert first.result()[0].__cause__ is SLOW
    assert all("being asked by another caller" in str(one) for one in refused)
    assert server.asked == TIMEOUTS + 1


@pytest.mark.parametrize(
    "trouble",
    [
        AutoReconnect("connection closed"),
        ServerSelectionTimeoutError("127.0.0.1:9: connection refused"),
        WaitQueueTimeoutError("the pool is used up"),
    ],
)
def test_other_failures_are_no_time_outs(drive: Drive, server: Server, trouble: Exception) -> None:
    server.trouble = trouble
    for _ in range(TIMEOUTS * 3):
        with pytest.raises(StoreUnavailable):
            drive(cache, "get", "k")
    assert server.asked == TIMEOUTS * 3


def test_an_answer_between_two_time_outs_begins_the_count_anew(drive: Drive, server: Server) -> None:
    for _ in range(3):
        server.trouble = SLOW
        fail(drive, TIMEOUTS - 1)
        server.trouble = None
        drive(cache, "get", "k")
    assert server.asked == TIMEOUTS * 3


def test_a_mistake_of_who_should_have_asked_leaves_it_to_the_next(
    drive: Drive, server: Server, clock: SimpleNamespace
) -> None:
    server.trouble = SLOW
    fail(drive, TIMEOUTS)
    server.trouble, clock.now = None, clock.now + 2
    with pytest.raises(TypeError):
        drive(cache, "set", "k", threading.Lock())  # nothing was sent
    with pytest.raises(ValueError, match="not found"):
        drive(cache, "incr", "missing")  # an answer
    assert drive(cache, "get", "k") is None


def test_sessions_and_operators_always_ask(drive: Drive, server: Server) -> None:
    server.trouble = SLOW
    fail(drive, TIMEOUTS + 1)
    asked = server.asked
    session: SessionBase = SessionStore("x" * 32)
    with pytest.raises(StoreUnavailable):
        drive(session, "exists", "x" * 32)
    with pytest.raises(StoreUnavailable):
        operations.cache_keys("default")
    assert server.asked == asked + 2
    server.trouble = None
    assert drive(session, "exists", "x" * 32) is False
    fail(drive, 1)


def test_the_state_shows_which_aliases_do_without(drive: Drive, server: Server) -> None:
    server.trouble = SLOW
    fail(drive, TIMEOUTS)
    shown = {one.alias: one.degraded for one in operations.state().cache.aliases}
    assert shown == {"default": False, "other": False, "lenient": True}
