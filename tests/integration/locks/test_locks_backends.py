"""A lock backend of the user's own: all that is built on it works, and MongoDB is never asked."""

# ruff: noqa: PT012 - what is tested is what leaving a block raises

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from goscope_django import locks
from goscope_django.decorators import locked
from goscope_django.exceptions import InvalidType, LockLost, LockNotAcquired
from goscope_django.fencing import fenced_transaction, token_of
from goscope_django.locks import MongoDBLockBackend, lock
from tests.support.lock_backend import MemoryBackend
from tests.support.locks import Async, Sync, Twin, settings_for

NOWHERE = "mongodb://127.0.0.1:1/never?serverSelectionTimeoutMS=100"


@pytest.fixture
def memory() -> Iterator[MemoryBackend]:
    with settings_for(NOWHERE, LOCK_BACKEND="tests.support.lock_backend.MemoryBackend"):
        store: Any = locks.backend()
        assert isinstance(store, MemoryBackend)
        assert locks.backend() is store
        yield store


@pytest.fixture(params=[Sync(), Async()], ids=["sync", "async"])
def twin(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_it_holds_renews_and_releases(memory: MemoryBackend, twin: Twin) -> None:
    async with twin.block(lock("a", 0.3, owner="me")) as handle:
        assert (handle.key, handle.owner, handle.token) == ("a", "me", 1)
        first = handle.expires_at
        while memory.calls.count("extend") < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not handle.lost.is_set()
        assert handle.expires_at > first
        assert await twin.is_valid(handle)
        assert await twin.extend(handle, timeout=5)
        with pytest.raises(LockNotAcquired):
            await twin.acquire(lock("a", blocking=False))
        with pytest.raises(LockNotAcquired):
            await twin.acquire(lock("a", blocking_timeout=0.1))
    assert memory.held == {}
    assert token_of(handle) == 1


async def test_a_loss(memory: MemoryBackend, twin: Twin) -> None:
    with pytest.raises(LockLost):
        async with twin.block(lock("a", 0.3)) as handle:
            memory.held.clear()
            assert await handle.wait_lost()


def test_a_backend_that_hangs_hides_no_loss(memory: MemoryBackend) -> None:
    memory.hang = threading.Event()
    with pytest.raises(LockLost), lock("a", 0.3) as handle:
        assert handle.lost.wait()
    memory.hang.set()


def test_waiters_and_decorators(memory: MemoryBackend) -> None:
    inside: list[int] = []

    @locked("a", 5)
    def work() -> None:
        inside.append(len(memory.held))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == [1] * 8
    assert memory.held == {}


def test_sync_code_needs_no_async_versions() -> None:
    with settings_for(NOWHERE, LOCK_BACKEND="tests.support.lock_backend.SyncBackend"):
        with lock("a", 0.3) as handle:
            first = handle.expires_at
            assert handle.is_valid()
            while handle.expires_at == first:
                assert not handle.lost.wait(0.01)
            assert handle.extend(timeout=5)
            with pytest.raises(LockNotAcquired):
                lock("a", blocking_timeout=0.1).acquire()
        assert locks.backend().get("a") is None
        assert locked("a")(lambda: 7)() == 7


def test_transactions_need_a_lock_in_mongodb(memory: MemoryBackend) -> None:
    with lock("a") as handle, pytest.raises(InvalidType):
        fenced_transaction(handle)


def test_settings_choose_it_and_are_read_when_used() -> None:
    assert isinstance(locks.backend(), MongoDBLockBackend)
    with settings_for("mongomock://", LOCK_BACKEND="tests.support.lock_backend.MemoryBackend"):
        first: Any = locks.backend()
    with settings_for("mongomock://", LOCK_BACKEND="tests.support.lock_backend.MemoryBackend"):
        second: Any = locks.backend()
    assert isinstance(second, MemoryBackend)
    assert first is not second
    for wrong in ("tests.support.lock_backend.Missing", "no.such.module", "tests.support.lock_backend.datetime"):
        with (
            settings_for("mongomock://", LOCK_BACKEND=wrong),
            pytest.raises(ImproperlyConfigured, match="LOCK_BACKEND"),
        ):
            lock("a").acquire()
