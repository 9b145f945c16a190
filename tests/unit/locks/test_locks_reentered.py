"""Waiting for a lock that the very same thread or task holds: ``LockReentered`` at once, and where it is none."""

# ruff: noqa: ASYNC110, PT012 - a line tells nobody that somebody joined it; what is tested is what leaving a block raises

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import transaction

from goscope_django import locks
from goscope_django.decorators import locked
from goscope_django.exceptions import LockError, StoreUnavailable
from goscope_django.locks import LockNotAcquired, LockReentered, lock, waiting
from tests.support.locks import expire, settings_for


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    with settings_for("mongomock://"):
        yield
    assert not waiting._lines


def test_what_it_is() -> None:
    assert issubclass(LockReentered, LockNotAcquired) and issubclass(LockNotAcquired, LockError)


@pytest.mark.parametrize("patience", [None, 30])
def test_a_block_inside_a_block(patience: float | None) -> None:
    with lock("stock") as handle:
        with pytest.raises(LockReentered) as raised, lock("stock", blocking_timeout=patience):
            pass
        assert raised.value.key == "stock"
        with pytest.raises(LockReentered):
            lock("stock", 5, owner="me").acquire()
        assert handle.is_valid(), "the outer one is as it was"
    with lock("stock"):
        pass


@pytest.mark.parametrize("patience", [None, 30])
async def test_in_a_task(patience: float | None) -> None:
    async with lock("stock"):
        with pytest.raises(LockReentered):
            async with lock("stock", blocking_timeout=patience):
                pass
        with pytest.raises(LockReentered):
            lock("stock").acquire()
    async with lock("stock"):
        pass


async def test_a_block_without_await_counts_for_its_task() -> None:
    with lock("stock"), pytest.raises(LockReentered):
        await lock("stock").aacquire()


def test_a_loop_that_runs_inside_a_block_would_keep_the_block_from_its_end() -> None:
    async def inside() -> None:
        with pytest.raises(LockReentered):
            await lock("stock").aacquire()

    with lock("stock"):
        asyncio.run(inside())


def test_decorated_calls() -> None:
    @locked("stock")
    def inner() -> str:
        return "never"

    @lock("stock")
    def outer() -> str:
        return inner()

    with pytest.raises(LockReentered):
        outer()
    with lock("stock"), pytest.raises(LockReentered):
        inner()
    assert inner() == "never", "nothing is left behind"


async def test_decorated_coroutines() -> None:
    @locked(lambda: "stock")
    async def inner() -> str:
        return "never"

    @locked("stock")
    async def outer() -> str:
        return await inner()

    with pytest.raises(LockReentered):
        await outer()
    assert await inner() == "never"


@pytest.mark.django_db(transaction=True)
def test_a_lock_that_a_transaction_keeps_for_a_decorated_call() -> None:
    @locked("stock")
    def work() -> None: ...

    with transaction.atomic():
        work()
        work()  # goes on under the lock that the transaction has
        with pytest.raises(LockReentered), lock("stock"):
            pass
    with lock("stock"):
        pass


def test_one_attempt_is_an_ordinary_refusal() -> None:
    with lock("stock"):
        for options in ({"blocking": False}, {"blocking_timeout": 0}):
            with pytest.raises(LockNotAcquired) as raised, lock("stock", **options):
                pass
            assert type(raised.value) is LockNotAcquired


def waits(work: Any) -> bool:
    """Whether ``work`` waits for the lock, and not in vain: it is let in once the line was seen."""
    try:
        work()
    except LockReentered:
        return False
    except LockNotAcquired:
        return True
    raise AssertionError("it got the lock")


def impatient() -> None:
    lock("stock", blocking_timeout=0.05).acquire()


def test_a_handle_from_acquire_does_not_count() -> None:
    handle = lock("stock").acquire()
    assert waits(impatient)
    with handle:
        assert waits(impatient), "nor as a context manager"


async def test_nor_one_from_aacquire() -> None:
    handle = await lock("stock").aacquire()
    with pytest.raises(LockNotAcquired) as raised:
        await lock("stock", blocking_timeout=0.05).aacquire()
    assert type(raised.value) is LockNotAcquired
    await handle.arelease()


def test_a_lock_that_ends_by_itself_is_waited_for() -> None:
    with pytest.raises(locks.LockLost), lock("stock", 0.3, auto_extend=False), lock("stock", blocking_timeout=30):
        pass


def test_another_thread_waits_even_with_a_copy_of_the_context() -> None:
    with lock("stock"), ThreadPoolExecutor() as pool:
        assert pool.submit(contextvars.copy_context().run, waits, impatient).result()


async def test_a_child_task_waits_though_it_has_a_copy_of_the_context() -> None:
    async def child() -> str:
        async with lock("stock", blocking_timeout=30):
            return "got it"

    async with lock("stock"):
        task = asyncio.create_task(child())
        while not waiting.waiting(lock("stock").where()[1]):
            await asyncio.sleep(0.001)
    assert await task == "got it"


def test_a_sibling_greenlet_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greenlet: ...

    one, another = Greenlet(), Greenlet()
    running = [one]
    monkeypatch.setitem(sys.modules, "greenlet", SimpleNamespace(getcurrent=lambda: running[0]))
    with lock("stock"):
        running[0] = another
        assert waits(impatient)
        running[0] = one
        assert not waits(impatient)


def test_a_lock_that_was_taken_away_can_be_had_again() -> None:
    with pytest.raises(locks.LockLost), lock("stock"):
        expire("stock")
        with lock("stock"):
            pass


def test_after_a_release_that_failed_the_block_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: Any) -> bool:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(locks.backend(), "release", fail)
        with pytest.raises(StoreUnavailable), lock("stock", 30):
            pass
        assert waits(impatient)
    lock("stock", blocking_timeout=30).acquire().release()  # it was tried again meanwhile


def test_the_thread_that_holds_it_does_not_join_a_line_of_others() -> None:
    got: list[bool] = []
    with lock("stock"):
        other = threading.Thread(target=lambda: got.append(lock("stock", blocking_timeout=30).acquire().release()))
        other.start()
        while not waiting.waiting(lock("stock").where()[1]):
            pass
        with pytest.raises(LockReentered):
            lock("stock").acquire()
    other.join()
    assert got == [True]
