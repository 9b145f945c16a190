"""One client for a process, one for an event loop, however many threads, tasks and cache objects there are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.core.cache import cache, caches
from django.core.signals import request_finished
from pymongo import AsyncMongoClient, MongoClient

from goscope_django import operations, runtime
from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb.driver import client as clients
from tests.support.commands import on_server

WORKERS = 50


class Made:
    """Counts clients as they are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sync: list[Any] = []
        self.asynchronous: list[Any] = []
        for kind, found in ((MongoClient, self.sync), (AsyncMongoClient, self.asynchronous)):
            monkeypatch.setattr(kind, "__init__", self._counted(kind, found))

    @staticmethod
    def _counted(kind: Any, found: list[Any]) -> Any:
        original = kind.__init__

        def made(self: Any, *args: Any, **kwargs: Any) -> None:
            found.append(self)
            original(self, *args, **kwargs)

        return made


@pytest.fixture
def made(mongo_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    with on_server(mongo_url, client_options={"appname": "clients"}):
        runtime.connection().prepare(5)
        yield Made(monkeypatch)
        runtime.connection().close()


def together(work: Any) -> list[Any]:
    barrier = threading.Barrier(WORKERS)

    def begin(number: int) -> Any:
        barrier.wait(30)
        return work(number)

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(begin, range(WORKERS)))


def test_fifty_threads_share_one_client(made: Made) -> None:
    objects = set()

    def work(number: int) -> Any:
        objects.add(id(caches["default"]))
        cache.set(f"t{number}", number)
        return cache.get(f"t{number}")

    assert together(work) == list(range(WORKERS))
    assert len(objects) > 1, "Django makes a cache object for each thread"
    assert (len(made.sync), len(made.asynchronous)) == (1, 0)


def test_fifty_tasks_share_one_client(made: Made) -> None:
    objects = set()

    async def work(number: int) -> Any:
        objects.add(id(caches["default"]))
        await cache.aset(f"a{number}", number)
        return await cache.aget(f"a{number}")

    async def main() -> list[Any]:
        return await asyncio.gather(*(work(number) for number in range(WORKERS)))

    assert asyncio.run(main()) == list(range(WORKERS))
    assert len(objects) > 1, "Django makes a cache object for each task"
    assert (len(made.sync), len(made.asynchronous)) == (0, 1)


def test_an_event_loop_for_each_thread_has_a_client_for_each(made: Made) -> None:
    async def work(number: int) -> Any:
        await cache.aset(f"l{number}", number)
        return await cache.aget(f"l{number}")

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda number: asyncio.run(work(number)), range(8))) == list(range(8))
    assert (len(made.sync), len(made.asynchronous)) == (0, 8)
    assert all(one._closed for one in made.asynchronous), "each ended with its loop"


def test_providers_and_caches_of_one_url_share_it_with_each_other(made: Made, mongo_url: str) -> None:
    cache.set("k", 1)
    adapter = runtime.adapter()
    handle = adapter.lock.acquire("k", 5_000)
    assert handle is not None and handle.release()
    assert adapter.check_indexes()
    entries: dict[str, dict[str, Any]] = {
        "default": {},
        "other": {"KEY_PREFIX": "other"},
        "same": {"LOCATION": mongo_url},
    }
    with on_server(mongo_url, caches=entries, client_options={"appname": "clients"}):
        for alias in entries:
            caches[alias].set("k", alias)
    assert len(made.sync) == 1


@pytest.mark.django_db
def test_the_end_of_a_request_keeps_the_pool_open(made: Made) -> None:
    cache.set("k", 1)
    database = runtime.connection().sync().database
    before = database.client.admin.command("hello")["connectionId"]
    for _ in range(3):
        request_finished.send(sender=None)
        assert cache.get("k") == 1
    assert database.client.admin.command("hello")["connectionId"] == before
    assert len(made.sync) == 1


def test_mongomock_that_was_closed_is_empty_and_has_its_indexes_again() -> None:
    with on_server("mongomock://closed"):
        runtime.connection().prepare(5)
        cache.set("k", 1)
        runtime.connection().close()
        assert cache.get("k") is None
        assert operations.state().server.indexes_ok
        runtime.connection().close()


def test_a_client_that_was_closed_is_made_anew(made: Made) -> None:
    cache.set("k", 1)
    runtime.connection().close()
    assert cache.get("k") == 1
    assert len(made.sync) == 2


def test_nothing_is_opened_by_settings_providers_or_cache_objects(made: Made) -> None:
    runtime.adapter()
    runtime.store()
    caches["default"].make_key("k")
    assert (made.sync, made.asynchronous) == ([], [])


def test_different_options_are_different_clients(made: Made, mongo_url: str) -> None:
    for name in ("one", "two", "one"):
        with on_server(mongo_url, client_options={"appname": name}):
            cache.set("k", name)
            assert runtime.connection().sync().database.client.options.pool_options.appname == name
    assert len(made.sync) == 2


async def test_an_adapter_of_an_asynchronous_database(mongo_url: str) -> None:
    async with AsyncMongoClient[dict[str, Any]](mongo_url) as client:
        adapter = MongoDBAdapter(client.get_default_database())
        await adapter.aconnect()
        assert await adapter.ais_connected()
        handle = await adapter.lock.aacquire("k", 5_000)
        assert handle is not None and await handle.arelease()
        with pytest.raises(ValueError, match="asynchronous database"):
            adapter.lock.acquire("k", 5_000)


def test_an_adapter_of_a_synchronous_database_serves_every_event_loop(mongo_url: str) -> None:
    with MongoClient[dict[str, Any]](mongo_url) as client:
        adapter = MongoDBAdapter(client.get_default_database())
        adapter.connect()

        async def work() -> Any:
            await adapter.cache.aset("k", 1)
            return await adapter.cache.aget("k")

        assert [asyncio.run(work()) for _ in range(3)] == [1, 1, 1]
        assert adapter.cache.get("k") == 1


def test_what_is_no_database_is_refused() -> None:
    for wrong in (None, "mongodb://localhost/x", object()):
        with pytest.raises(TypeError, match="Database"):
            MongoDBAdapter(wrong)


def test_an_unknown_scheme_opens_nothing() -> None:
    with pytest.raises(ValueError, match="scheme"):
        clients.connection("redis://localhost/0")
