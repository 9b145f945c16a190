"""A server that is reached and does not answer: every call ends within the limits that the documentation tells."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.cache import cache as default_cache

from goscope_django import locks, runtime
from goscope_django.cache.overload import TIMEOUTS
from goscope_django.checkpoints import checkpointed
from goscope_django.circuits import CircuitBreaker
from goscope_django.decorators import idempotent, single_flight
from goscope_django.exceptions import StoreError, StoreUnavailable
from goscope_django.sessions import SessionStore
from tests.support.commands import Recorder, on_server
from tests.support.mongod import ReplicaSet, replica_set

pytestmark = [pytest.mark.real, pytest.mark.slow]
cache: Any = default_cache
SILENCE = 10.0
"""Seconds for which the server keeps each command waiting: whoever waited for it would get an answer and no error. With
the options below a command has 2 seconds (a cache's has twice 0.4), and these calls take three at most."""
LIMIT = 60.0
OPTIONS = "directConnection=true&serverSelectionTimeoutMS=1000&socketTimeoutMS=400&appname=slow"
COMMANDS = ("find", "update", "insert", "delete", "findAndModify", "aggregate", "count", "getMore")


@pytest.fixture(scope="module")
def server() -> Iterator[ReplicaSet]:
    with replica_set(members=1, extra_args=["--setParameter", "enableTestCommands=1"]) as running:
        yield running


@pytest.fixture
def url(server: ReplicaSet) -> str:
    return f"mongodb://127.0.0.1:{server.ports[0]}/slow?{OPTIONS}"


@contextmanager
def silent(server: ReplicaSet, seconds: float) -> Iterator[None]:
    """The server does not answer our commands, each for so long."""
    data = {"failCommands": COMMANDS, "appName": "slow", "blockConnection": True, "blockTimeMS": int(seconds * 1_000)}
    with server.client() as client:
        client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=data)
        try:
            yield
        finally:
            client.admin.command("configureFailPoint", "failCommand", mode="off")


def measured(calls: dict[str, Callable[[], object]]) -> dict[str, tuple[float, object]]:
    """How long each takes, all at once, and what it gives or raises."""
    found: dict[str, tuple[float, object]] = {}

    def run(name: str) -> None:
        began = time.monotonic()
        try:
            outcome = calls[name]()
        except Exception as error:
            outcome = error
        found[name] = (time.monotonic() - began, outcome)

    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert found.keys() == calls.keys(), f"no end of {calls.keys() - found.keys()}"
    return found


def test_every_call_ends_and_says_so(server: ReplicaSet, url: str) -> None:
    @single_flight(key="flight", name="slow.flight")
    def flight() -> str:
        return "ran"

    @idempotent(key="order", name="slow.order")
    def order() -> str:
        return "ran"

    def task() -> None:
        with checkpointed("import"):
            pass

    with on_server(url):
        for warm in (lambda: cache.set("k", 1), flight, order, task):
            warm()
        held, kept = locks.lock("held").acquire(), checkpointed("kept")
        with kept as going:
            adapter = runtime.adapter()
            calls: dict[str, Callable[[], object]] = {
                "get": lambda: cache.get("k"),
                "set": lambda: cache.set("k", 1),
                "add": lambda: cache.add("k", 1),
                "incr": lambda: cache.incr("k"),
                "touch": lambda: cache.touch("k"),
                "delete": lambda: cache.delete("k"),
                "ttl": lambda: cache.ttl("k"),
                "get_many": lambda: cache.get_many(["k", "l"]),
                "set_many": lambda: cache.set_many({"k": 1, "l": 2}),
                "keys": lambda: cache.keys("*"),
                "get_or_set": lambda: cache.get_or_set("other", lambda: 1),
                "session": lambda: SessionStore("x" * 32).exists("x" * 32),
                "acquire": lambda: locks.lock("free", blocking_timeout=1).acquire(),
                "release": held.release,
                "list": adapter.lock.list,
                "flight": flight,
                "order": order,
                "start": task,
                "save": lambda: going.save(1),
                "circuit": lambda: CircuitBreaker("supplier").call(lambda: "ran"),
            }
            with silent(server, SILENCE):
                found = measured(calls)
        outcomes = {name: outcome for name, (_, outcome) in found.items()}
        assert outcomes.pop("circuit") == "ran"
        assert all(isinstance(one, StoreError) for one in outcomes.values()), outcomes


def test_a_cache_stops_asking_and_needs_no_restart(server: ReplicaSet, url: str) -> None:
    commands = Recorder()
    with on_server(url, client_options={"event_listeners": [commands]}):
        cache.set("k", 1)
        with silent(server, 1):
            for _ in range(TIMEOUTS):
                with pytest.raises(StoreUnavailable, match="timed out"):
                    cache.get("k")
            commands.clear()
            for _ in range(50):
                with pytest.raises(StoreUnavailable, match="is not asked again"):
                    cache.get("k")
            assert commands.names == []
        deadline = time.monotonic() + LIMIT
        while True:
            assert time.monotonic() < deadline
            try:
                assert cache.get("k") == 1
                break
            except StoreUnavailable:
                time.sleep(0.05)
