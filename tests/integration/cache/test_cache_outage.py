"""A cache whose server is away: with ``"raise"`` an error that names it, with ``"ignore"`` a site that goes on."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.core.cache import cache, caches

from goscope_django import signals
from goscope_django.exceptions import GoscopeError, OutcomeUnknown, StoreError, StoreUnavailable
from goscope_django.process import outage
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import on_server
from tests.support.freezing import freeze
from tests.support.mongod import ReplicaSet, replica_set

AWAY = "mongodb://user:hunter2@127.0.0.1:9/goscope"  # the port "discard", on which nobody listens
BRIEF = {"serverSelectionTimeoutMS": 100, "connectTimeoutMS": 100}


class Clock:
    """Stands in for monotonic time in ``outage``."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(outage, "time", clock)
    monkeypatch.setattr(outage, "_outages", {})
    return clock


@pytest.fixture
def told() -> Iterator[list[str]]:
    found: list[str] = []

    def away(sender: Any, signal: Any, **details: Any) -> None:
        found.append(f"degraded {details['feature']}")
        assert "hunter2" not in str(details)

    def back(sender: Any, signal: Any, **details: Any) -> None:
        found.append(f"recovered {details['feature']}")

    signals.degraded.connect(away)
    signals.recovered.connect(back)
    yield found
    signals.degraded.disconnect(away)
    signals.recovered.disconnect(back)


@pytest.fixture(scope="module")
def server() -> Iterator[ReplicaSet]:
    with replica_set(members=1) as running:
        yield running


def url_of(server: ReplicaSet) -> str:
    return f"mongodb://127.0.0.1:{server.ports[0]}/outage?directConnection=true"


def stop(server: ReplicaSet, port: int) -> None:
    """Stop the member, and wait until all of its threads have: until then it still answers."""
    freeze(server.pids[port])
    os.waitpid(server.pids[port], os.WUNTRACED)


def test_raise_is_an_error_that_says_what_and_hides_the_password(drive: Drive) -> None:
    with on_server(AWAY, client_options=BRIEF):
        for method, args in (("get", ("k",)), ("set", ("k", 1)), ("get_many", (["k"],)), ("clear", ()), ("keys", ())):
            with pytest.raises(StoreUnavailable, match="no server was reached") as caught:
                drive(cache, method, *args)
            assert "hunter2" not in f"{caught.value}{caught.value!r}{caught.value.__cause__!r}"
            assert caught.value.__cause__ is not None


def test_a_name_server_that_does_not_know_the_host_is_an_outage_too(
    drive: Drive, clock: Clock, told: list[str]
) -> None:
    url = "mongodb+srv://user:hunter2@cluster.invalid/goscope"
    with on_server(url, client_options=BRIEF, ON_ERROR="ignore"):
        assert drive(cache, "get", "k", "default") == "default"
        assert told == ["degraded cache"]
    with on_server(url, client_options=BRIEF), pytest.raises(StoreError) as caught:
        drive(cache, "get", "k")
    assert "hunter2" not in str(caught.value)


def test_ignored_every_method_does_without(drive: Drive, clock: Clock, told: list[str]) -> None:
    with on_server(AWAY, client_options=BRIEF, ON_ERROR="ignore"):
        for method, args, result in (
            ("get", ("k", "default"), "default"),
            ("set", ("k", 1), False),
            ("add", ("k", 1), False),
            ("touch", ("k",), False),
            ("delete", ("k",), False),
            ("has_key", ("k",), False),
            ("get_many", (["k"],), {}),
            ("set_many", ({"k": 1},), ["k"]),
            ("delete_many", (["k"],), None),
            ("get_or_set", ("k", 5), 5),
            ("get_or_set", ("k", lambda: 6), 6),
            ("keys", (), []),
            ("delete_pattern", ("a*b",), 0),
            ("ttl", ("k",), 0),
            ("clear", (), None),
        ):
            assert drive(cache, method, *args) == result, method
        with pytest.raises(ValueError, match="not found"):
            drive(cache, "incr", "k")
    assert told == ["degraded cache"]


def test_the_options_of_a_cache_go_before_the_project(drive: Drive, clock: Clock) -> None:
    entries = {"default": {}, "ignoring": {"OPTIONS": {"ON_ERROR": "ignore"}}}
    with on_server(AWAY, caches=entries, client_options=BRIEF):
        assert drive(caches["ignoring"], "get", "k", 1) == 1
        with pytest.raises(GoscopeError):
            drive(cache, "get", "k")
    entries = {"default": {}, "raising": {"OPTIONS": {"ON_ERROR": "raise"}}}
    with on_server(AWAY, caches=entries, client_options=BRIEF, ON_ERROR="ignore"):
        assert drive(cache, "get", "k", 1) == 1
        with pytest.raises(GoscopeError):
            drive(caches["raising"], "get", "k")


@pytest.mark.filterwarnings("ignore::django.core.cache.backends.base.CacheKeyWarning")
def test_mistakes_are_not_ignored(drive: Drive, mongo_url: str) -> None:
    with on_server(mongo_url, ON_ERROR="ignore"):
        for error, method, args in (
            (ValueError, "set", ("k" * 100_000, 1)),
            (TypeError, "set", ("k", 1, "soon")),
            (ValueError, "set", ("k", "x" * 17_000_000)),
            (ValueError, "incr", ("missing",)),
        ):
            with pytest.raises(error):
                drive(cache, method, *args)


class Counting:
    """A store's runs, counted. ``before`` is called before each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: Callable[[], None] = lambda: None) -> None:
        from goscope_django.mongodb.driver.store import Store

        self.tries = 0
        run, arun = Store.run, Store.arun

        def counted(store: Any, *args: Any, **kwargs: Any) -> Any:
            self.tries += 1
            before()
            return run(store, *args, **kwargs)

        async def acounted(store: Any, *args: Any, **kwargs: Any) -> Any:
            self.tries += 1
            before()
            return await arun(store, *args, **kwargs)

        monkeypatch.setattr(Store, "run", counted)
        monkeypatch.setattr(Store, "arun", acounted)


@pytest.mark.parametrize(
    ("took", "expected"),
    [(0.0, [1, 2, 4, 4, 4, 4, 4]), (5.0, [1, 2, 4, 8, 16, 20, 20]), (10.0, [1, 2, 4, 8, 16, 30, 30])],
)
def test_the_server_is_not_tried_at_every_call(
    drive: Drive, clock: Clock, monkeypatch: pytest.MonkeyPatch, took: float, expected: list[float]
) -> None:
    """The less a try costs, the sooner there is the next one, but none are more than half a minute apart."""
    counting = Counting(monkeypatch, lambda: setattr(clock, "now", clock.now + took))
    with on_server(AWAY, client_options=BRIEF, ON_ERROR="ignore"):
        for _ in range(20):
            drive(cache, "get", "k")
        assert counting.tries == 1
        pauses: list[float] = []
        for _ in range(7):
            began = clock.now
            while counting.tries == len(pauses) + 1:
                clock.now += 0.5
                drive(cache, "get", "k")
            pauses.append(clock.now - began - took)
        assert pauses == expected


def test_when_the_pause_ends_one_of_many_threads_tries(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    with on_server(AWAY, client_options=BRIEF, ON_ERROR="ignore"):
        cache.get("k")
        assert counting.tries == 1
        clock.now += 1
        barrier = threading.Barrier(8)

        def read(_: int) -> Any:
            barrier.wait(10)
            return cache.get("k", "default")

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(read, range(8))) == ["default"] * 8
        assert counting.tries == 2, "the others need not wait for a server that is not there"


@pytest.mark.parametrize(
    ("error", "method", "argument"),
    [
        (StoreUnavailable, "get", "k"),
        (StoreUnavailable, "get_many", ["k"]),
        (OutcomeUnknown, "incr", "k"),
        (OutcomeUnknown, "set_many", {"k": 2}),
    ],
)
def test_what_became_of_it_is_unknown_for_writes_only(
    server: ReplicaSet, drive: Drive, error: type[GoscopeError], method: str, argument: Any
) -> None:
    with on_server(url_of(server), client_options={"timeoutMS": 500}):
        drive(cache, "set", "k", 1)
        port = server.primary_port()
        drive(cache, "get", "k")  # brings the server's time along, for which a batch would ask first
        stop(server, port)
        try:
            with pytest.raises(error) as caught:
                drive(cache, method, argument)
        finally:
            server.resume(port)
    assert type(caught.value) is error


@pytest.mark.parametrize("kind", ["killed", "stopped"])
@pytest.mark.slow
def test_it_comes_back(kind: str, server: ReplicaSet, clock: Clock, told: list[str]) -> None:
    """Killed, or stopped so that its sockets stay open and silent; in one event loop, as in a server process."""
    options = {**BRIEF, "timeoutMS": 500}

    async def scenario() -> None:
        await cache.aset("k", "before")
        cache.set("k2", "before")
        if kind == "killed":
            port = server.kill_primary()
        else:
            port = server.ports[0]
            stop(server, port)
        try:
            for _ in range(20):
                assert await cache.aget("k", "default") == "default"
                assert cache.get("k2", "default") == "default"
                await cache.aset("k", "lost")
            assert told == ["degraded cache"]
        finally:
            server.resume(port)
        await asyncio.to_thread(server.primary_port)
        deadline = asyncio.get_running_loop().time() + 30
        found: list[object] = []
        # Two clients, each of which finds the server again at its own next look.
        while found != ["after", "after"] and asyncio.get_running_loop().time() < deadline:
            clock.now += 30
            await cache.aset("k", "after")
            cache.set("k2", "after")
            found = [cache.get("k"), await cache.aget("k2")]
        assert found == ["after", "after"]
        assert told[:2] == ["degraded cache", "recovered cache"] and told[-1] == "recovered cache"

    with on_server(url_of(server), client_options=options, ON_ERROR="ignore"):
        asyncio.run(scenario())
