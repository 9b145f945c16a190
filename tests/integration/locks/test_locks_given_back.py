"""A release that failed because MongoDB could not be reached is tried again when it can: L6. Sync and async."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from goscope_django import locks, runtime, signals
from goscope_django.exceptions import StoreError, StoreUnavailable
from goscope_django.locks import lock
from tests.support.locks import Async, Sync, Twin, expire, raw, settings_for, take_over
from tests.support.mongod import ReplicaSet, replica_set
from tests.support.proxy import Proxy

PATIENCE = 20.0
"""Seconds, far below the leases here."""


@pytest.fixture(params=[Sync(), Async()], ids=["sync", "async"])
def twin(request: pytest.FixtureRequest) -> Twin:
    found: Twin = request.param
    return found


async def until(test: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not test():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def busy() -> bool:
    """Whether anything is still tried in the background."""
    tasks = [one.get_name() for one in asyncio.all_tasks()]
    return "goscope-release" in [*tasks, *(one.name for one in threading.enumerate())]


@pytest.fixture
async def told() -> AsyncIterator[list[str]]:
    heard: list[str] = []

    def released(**_: Any) -> None:
        heard.append("released")

    def lost(**_: Any) -> None:
        heard.append("lost")

    signals.lock_released.connect(released)
    signals.lock_lost.connect(lost)
    yield heard
    signals.lock_released.disconnect(released)
    signals.lock_lost.disconnect(lost)


class Away:
    """The backend's releases fail while it is away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away = True
        self.tries = 0
        backend: Any = locks.backend()
        release = backend.release

        def tried(handle: Any) -> bool:
            self.tries += 1
            if self.away:
                raise StoreUnavailable("away")
            return bool(release(handle))

        async def atried(handle: Any) -> bool:
            return tried(handle)

        monkeypatch.setattr(backend, "release", tried)
        monkeypatch.setattr(backend, "arelease", atried)


class TestOnMongomock:
    @pytest.fixture(autouse=True)
    def store(self) -> Iterator[None]:
        with settings_for("mongomock://"):
            raw().delete_many({})
            yield

    @pytest.fixture
    def server(self, store: None, monkeypatch: pytest.MonkeyPatch) -> Away:
        return Away(monkeypatch)

    async def failed(self, twin: Twin, lease: float = 60) -> Any:
        handle = await twin.acquire(lock("stock", lease))
        with pytest.raises(StoreUnavailable):
            await twin.release(handle)
        return handle

    async def test_it_is_tried_until_it_is_done(self, twin: Twin, server: Away, told: list[str]) -> None:
        handle = await self.failed(twin)
        await until(lambda: server.tries >= 3)
        assert not handle.released and locks.backend().get("stock")
        server.away = False
        await until(lambda: handle.released)
        assert locks.backend().get("stock") is None
        assert told == ["released"] and not handle.lost.is_set()
        assert not await twin.release(handle), "it has been done"
        await until(lambda: not busy())

    async def test_a_waiter_of_this_process_gets_it_then(self, twin: Twin, server: Away) -> None:
        await self.failed(twin)
        got: list[Any] = []
        waiter = threading.Thread(target=lambda: got.append(lock("stock", blocking_timeout=PATIENCE).acquire()))
        waiter.start()
        server.away = False
        await until(lambda: got)
        waiter.join()
        got[0].release()

    async def test_it_never_releases_a_successors_lock(self, twin: Twin, server: Away, told: list[str]) -> None:
        handle = await self.failed(twin)
        expire("stock")
        take_over("stock")
        tries, server.away = server.tries, False
        await until(lambda: server.tries > tries)
        await until(lambda: not busy())
        found = locks.backend().get("stock")
        assert found and found.owner == "another"
        assert not handle.released and told == []

    async def test_it_ends_with_the_lease(self, twin: Twin, server: Away, told: list[str]) -> None:
        handle = await self.failed(twin, 1)
        await until(handle.lost.is_set)
        await until(lambda: not busy())
        tries = server.tries
        assert tries >= 2 and told == ["lost"]
        with lock("stock", blocking_timeout=PATIENCE):
            server.away = False
            assert server.tries == tries

    async def test_the_holder_may_do_it_itself_meanwhile(self, twin: Twin, server: Away, told: list[str]) -> None:
        handle = await self.failed(twin)
        server.away = False
        assert await twin.release(handle)
        assert handle.released and told == ["released"]
        await until(lambda: not busy())
        assert told == ["released"]


@pytest.fixture(scope="module")
def server() -> Iterator[ReplicaSet]:
    with replica_set(members=1) as running:
        yield running


@pytest.mark.real
async def test_after_an_outage_the_key_is_not_blocked_for_a_lease(server: ReplicaSet, twin: Twin) -> None:
    with Proxy(server.ports[0]) as proxy:
        url = f"mongodb://127.0.0.1:{proxy.port}/givenback?directConnection=true"
        with settings_for(url, CLIENT_OPTIONS={"serverSelectionTimeoutMS": 2_000}):
            runtime.adapter().ensure_indexes()
            handle = await twin.acquire(lock("stock", 600))
            proxy.refuse("delete")
            with pytest.raises(StoreError):
                await twin.release(handle)
            assert raw().count_documents({}) == 1
            proxy.heal()
            await until(lambda: raw().count_documents({}) == 0)
            await until(lambda: handle.released)
