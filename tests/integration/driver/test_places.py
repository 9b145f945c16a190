"""The pool of connections: waiting for one is not the server's time limit, and who holds a lock keeps it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.core.cache import cache as default_cache

from goscope_django import conf, locks, runtime
from goscope_django.core.flow import Flow, ask
from goscope_django.exceptions import PoolExhausted, StoreUnavailable
from goscope_django.mongodb.driver.limits import within
from goscope_django.mongodb.driver.places import NEW
from tests.support.commands import on_server
from tests.support.freezing import freeze
from tests.support.mongod import ReplicaSet, replica_set

cache: Any = default_cache
both = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture(scope="module")
def running() -> Iterator[ReplicaSet]:
    with replica_set(members=1, extra_args=["--setParameter", "enableTestCommands=1"]) as running:
        yield running


@pytest.fixture
def server(running: ReplicaSet) -> ReplicaSet:
    """A server without documents, or ``slow`` would be slow for each."""
    with running.client(directConnection=True) as client:
        client.drop_database("places")
    return running


def url_of(server: ReplicaSet, options: str) -> str:
    return f"mongodb://127.0.0.1:{server.ports[0]}/places?directConnection=true&{options}"


def slow(seconds: float) -> dict[str, Any]:
    """A read for which the server takes this long."""
    return {"$where": f"sleep({int(seconds * 1000)}) || true"}


def test_a_thousand_tasks_that_compute_a_thousand_values_all_get_theirs(mongo_url: str) -> None:
    async def made(number: int) -> int:
        return number

    async def gather() -> list[Any]:
        asked = (cache.aget_or_set(f"k{number}", lambda number=number: made(number)) for number in range(1_000))
        return await asyncio.gather(*asked, return_exceptions=True)

    with on_server(f"{mongo_url}&maxPoolSize=4&serverSelectionTimeoutMS=2000"):
        found = asyncio.run(gather())
        wrong = [one for one in found if isinstance(one, Exception)]
        assert not wrong, f"{len(wrong)} failed: {wrong[0]!r}"
        assert found == list(range(1_000))


def read_slowly(clock: Any, seconds: float) -> Flow[list[Any]]:
    found: list[Any] = yield from ask("go_goscope_locks", "find", slow(seconds))
    return found


async def gathered(number: int, seconds: float) -> list[Any]:
    store = runtime.adapter().lock.store
    asked = (store.arun(read_slowly, seconds) for _ in range(number))
    return list(await asyncio.gather(*asked, return_exceptions=True))


def busy(kind: str, number: int, seconds: float) -> list[Any]:
    """What ``number`` reads get at once, for each of which the server takes ``seconds``: rows, or the error."""
    if kind == "async":
        return asyncio.run(gathered(number, seconds))

    def one(_: int) -> object:
        try:
            return runtime.adapter().lock.store.run(read_slowly, seconds)
        except StoreUnavailable as error:
            return error

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


@both
def test_a_long_line_for_the_pool_takes_nothing_from_a_commands_own_time(server: ReplicaSet, kind: str) -> None:
    """Twelve reads of half a second, one after another, take longer than the two seconds that each of them has."""
    with on_server(url_of(server, "maxPoolSize=1&serverSelectionTimeoutMS=2000")):
        held = locks.backend().acquire("document", 30)
        assert held is not None
        found = busy(kind, 12, 0.5)
        assert [type(one) for one in found] == [list] * 12
        assert held.release()


@both
@pytest.mark.parametrize("option", ["waitQueueTimeoutMS=300", "timeoutMS=800"])
def test_where_waiting_is_bounded_the_error_names_the_pool(server: ReplicaSet, kind: str, option: str) -> None:
    with on_server(url_of(server, f"maxPoolSize=1&{option}")):
        held = locks.backend().acquire("document", 30)
        assert held is not None
        found = busy(kind, 6, 0.5)
        assert any(isinstance(one, list) for one in found)
        refused = [one for one in found if isinstance(one, PoolExhausted)]
        assert refused and all("maxPoolSize" in str(one) for one in refused)
        assert all("no server" not in str(one) for one in refused)
        assert held.release()


def test_within_bounds_the_wait_as_well(server: ReplicaSet) -> None:
    with on_server(url_of(server, "maxPoolSize=1")):
        held = locks.backend().acquire("document", 30)
        assert held is not None
        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(busy, "sync", 1, 2)
            places = runtime.connection().sync()._places  # type: ignore[union-attr]
            while places._free:
                threading.Event().wait(0.01)
            with pytest.raises(PoolExhausted, match="maxPoolSize"), within(0.2):
                locks.backend().get("document")
            assert working.result()
        assert held.release()


@both
def test_a_server_that_hangs_ends_the_wait(server: ReplicaSet, kind: str) -> None:
    """Nobody gives a place back then: that is an error, not a wait without end."""
    port = server.ports[0]
    with on_server(url_of(server, "maxPoolSize=2&serverSelectionTimeoutMS=2000")):
        assert not cache.get("x")
        freeze(server.pids[port])
        try:
            found = busy(kind, 6, 0)
        finally:
            os.kill(server.pids[port], signal.SIGCONT)
        assert all(isinstance(one, Exception) for one in found)
        assert any(isinstance(one, PoolExhausted) for one in found)
        assert cache.get("x") is None, "and afterwards all is well"


@both
def test_a_held_lock_is_renewed_though_others_stand_in_line(server: ReplicaSet, kind: str) -> None:
    """Each read takes about as long as the lease: who holds the lock can't wait for one to end."""
    with on_server(url_of(server, "maxPoolSize=2")):
        if kind == "sync":
            with locks.lock("mine", timeout=1.5) as held:
                busy("sync", 4, 1.2)
                assert not held.lost.is_set() and held.is_valid()
            return

        async def scene() -> None:
            async with locks.lock("mine", timeout=1.5) as held:
                await gathered(4, 1.2)
                assert not held.lost.is_set() and await held.ais_valid()

        asyncio.run(scene())


@both
def test_a_held_lock_is_renewed_though_all_others_make_connections(server: ReplicaSet, kind: str) -> None:
    """The driver makes few at a time. Where that takes long, who needs one waits longer for it than the lease lasts."""
    point: dict[str, Any] = {"configureFailPoint": "failCommand"}
    slowly = {"failCommands": ["hello"], "appName": "places", "blockConnection": True, "blockTimeMS": 300}

    async def scene() -> None:
        async with locks.lock("mine", timeout=2) as held:
            admin.command({**point, "mode": "alwaysOn", "data": slowly})
            await gathered(39, 0.3)
            assert not held.lost.is_set() and await held.ais_valid()

    with on_server(url_of(server, "maxPoolSize=40&appname=places")), server.client() as client:
        admin = client.admin
        try:
            if kind == "async":
                asyncio.run(scene())
                return
            with locks.lock("mine", timeout=2) as held:
                admin.command({**point, "mode": "alwaysOn", "data": slowly})
                busy("sync", 39, 0.3)
                assert not held.lost.is_set() and held.is_valid()
        finally:
            admin.command({**point, "mode": "off"})


@both
def test_writes_that_hang_on_new_connections_hold_up_nobody_else(server: ReplicaSet, kind: str) -> None:
    """As they do while a majority is out of reach, and all connections are new, as after a failover."""
    hanging = {"failCommands": ["findAndModify"], "appName": "hanging", "blockConnection": True, "blockTimeMS": 4_000}

    async def scene() -> float:
        writing = asyncio.gather(cache.aincr("n"), cache.aincr("n"))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        await asyncio.gather(*(cache.aget(f"x{number}") for number in range(6)))
        took = time.monotonic() - began
        assert sorted(await writing) == [6, 7]
        return took

    with on_server(url_of(server, "maxConnecting=2&appname=hanging")), server.client() as client:
        assert cache.set("n", 5)
        conf.reset()
        client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=hanging)
        try:
            if kind == "async":
                assert asyncio.run(scene()) < 3
                return
            with ThreadPoolExecutor(8) as pool:
                writing = [pool.submit(cache.incr, "n") for _ in range(2)]
                time.sleep(0.3)
                began = time.monotonic()
                list(pool.map(lambda number: cache.get(f"x{number}"), range(6)))
                assert time.monotonic() - began < 3
                assert sorted(one.result() for one in writing) == [6, 7]
        finally:
            client.admin.command("configureFailPoint", "failCommand", mode="off")


def test_a_task_that_is_cancelled_in_line_leaves_its_place_to_the_next(server: ReplicaSet) -> None:
    async def scene() -> None:
        await cache.aget("x")
        executor: Any = runtime.connection().asynchronous()
        places = executor._places
        place = places.free()
        assert place == NEW and places.free() is None
        first, second = (asyncio.create_task(cache.aget("x", number)) for number in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        first.cancel()
        places.give(place)
        assert await asyncio.wait_for(second, 5) == 1
        with pytest.raises(asyncio.CancelledError):
            await first
        assert list(places._free) == [NEW]

    with on_server(url_of(server, "maxPoolSize=1")):
        asyncio.run(scene())


def test_a_pool_that_is_used_up_is_no_outage(server: ReplicaSet) -> None:
    with on_server(url_of(server, "maxPoolSize=1&waitQueueTimeoutMS=100"), ON_ERROR="ignore"):
        assert cache.set("x", 1)
        places: Any = runtime.connection().sync()._places  # type: ignore[union-attr]
        place = places.take()
        try:
            assert cache.get("x", "default") == "default"
            assert not default_cache.degraded  # type: ignore[attr-defined]
        finally:
            places.give(place)
        assert cache.get("x") == 1
