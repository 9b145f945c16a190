"""The line of waiters: who asks, who is woken, what is left behind. On a real server, with its commands counted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from goscope_django import locks, runtime
from goscope_django.exceptions import LockNotAcquired
from goscope_django.locks import HeldLock, Lock, lock, waiting
from tests.support.commands import Recorder, on_server
from tests.support.locks import raw, take_over


@pytest.fixture
def sent(mongo_url: str) -> Iterator[Recorder]:
    recorder = Recorder()
    with on_server(mongo_url, client_options={"event_listeners": [recorder]}):
        runtime.adapter().ensure_indexes()
        raw().delete_many({})
        lock("warm").acquire().release()
        recorder.clear()
        yield recorder
    assert not waiting._lines


def until(test: Callable[[], object]) -> None:
    while not test():
        time.sleep(0.002)


def place(key: str) -> Any:
    return lock(key).where()[1]


def in_line(key: str) -> int:
    return waiting.waiting(place(key))


class Waiters:
    """Threads that wait for a lock and hold it for a moment."""

    def __init__(self, key: str, number: int, **options: Any) -> None:
        self.tokens: list[int] = []
        self.errors: list[Exception] = []
        self.inside = 0
        self.threads = [threading.Thread(target=self._work, args=(lock(key, **options),)) for _ in range(number)]
        for thread in self.threads:
            thread.start()

    def _work(self, one: Lock) -> None:
        try:
            with one as handle:
                self.inside += 1
                assert self.inside == 1
                self.tokens.append(handle.token)
                self.inside -= 1
        except Exception as error:
            self.errors.append(error)

    def join(self) -> None:
        for thread in self.threads:
            thread.join()


def test_an_uncontended_block_is_two_commands(sent: Recorder) -> None:
    with lock("a"):
        pass
    assert sent.names == ["findAndModify", "delete"]


def test_one_waiter_of_the_process_reads_and_nobody_contends(sent: Recorder) -> None:
    """Held by another process: eight threads wait, one reads, by the key alone."""
    take_over("a")
    waiters = Waiters("a", 8)
    until(lambda: in_line("a") == 8)
    sent.clear()
    reads = 20
    until(lambda: len(sent.names) >= reads)
    assert set(sent.names) == {"find"}
    assert {thread for event in sent.events for thread in [event.connection_id]}  # they were really sent
    assert all(list(event.command["filter"]) == ["key"] for event in sent.events)
    raw().delete_many({})
    waiters.join()
    assert waiters.errors == []
    assert waiters.tokens == sorted(waiters.tokens)
    assert len(waiters.tokens) == 8


def test_reads_are_rare_enough(sent: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first in line asks to sleep between two reads: 40 a second are allowed, with the read itself."""
    pauses: list[float] = []
    real = waiting.ThreadWaiter.wait

    def wait(self: Any, seconds: float | None) -> None:
        if seconds is not None:
            pauses.append(seconds)
        real(self, seconds)

    monkeypatch.setattr(waiting.ThreadWaiter, "wait", wait)
    take_over("a")
    waiters = Waiters("a", 3)
    until(lambda: len(pauses) >= 40)
    raw().delete_many({})
    waiters.join()
    assert sum(pauses[:40]) / 40 > 1 / 40
    assert len(set(pauses[:40])) > 30  # and never in step with other processes


def test_a_release_in_this_process_wakes_the_next_at_once(sent: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hours between two reads only being woken can hand the lock on."""
    monkeypatch.setattr(waiting, "POLL", 3_600.0)
    monkeypatch.setattr(waiting, "OWN", 3_600.0)
    handle = lock("a", 30).acquire()
    waiters = Waiters("a", 8)
    until(lambda: in_line("a") == 8)
    time.sleep(0.05)
    sent.clear()
    handle.release()
    waiters.join()
    assert waiters.errors == []
    assert len(waiters.tokens) == 8
    # Who becomes the first in line reads once; a read and a release that cross cost an attempt in vain.
    assert sent.names.count("find") <= 16
    assert sent.names.count("findAndModify") <= 16


def test_after_a_streak_other_processes_get_a_chance(sent: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "STREAK", 2)
    signals: list[str] = []
    real = waiting._signal

    def note(line: Any, signal: Any) -> None:
        signals.append(signal)
        real(line, signal)

    monkeypatch.setattr(waiting, "_signal", note)
    handle = lock("a").acquire()
    waiters = Waiters("a", 7)
    until(lambda: in_line("a") == 7)
    handle.release()
    waiters.join()
    assert waiters.errors == []
    assert signals.count("yield") == 2


def test_nobody_sleeps_past_the_end_of_the_holders_lease(sent: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next read is hours away, the holder is dead, and its lease ends in a moment."""
    monkeypatch.setattr(waiting, "POLL", 3_600.0)
    provider = runtime.adapter().lock
    assert provider.acquire("a", 300) is not None
    with lock("a") as handle:
        assert handle.token


def test_while_this_process_holds_it_reads_are_rarer(sent: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "OWN", 3_600.0)
    handle = lock("a").acquire()
    waiters = Waiters("a", 2)
    until(lambda: in_line("a") == 2)
    until(lambda: sent.names.count("find") == 1)
    time.sleep(0.2)
    assert sent.names.count("find") == 1
    handle.release()
    waiters.join()
    assert waiters.errors == []


def test_a_waiter_whose_time_is_up_makes_way(sent: Recorder) -> None:
    take_over("a")
    short = Waiters("a", 2, blocking_timeout=0.2)
    until(lambda: in_line("a") == 2)
    long = Waiters("a", 2)
    short.join()
    assert [type(error) for error in short.errors] == [LockNotAcquired] * 2
    raw().delete_many({})
    long.join()
    assert long.errors == []


def test_who_has_the_patience_of_centuries_waits(sent: Recorder) -> None:
    take_over("a")
    waiters = Waiters("a", 3, blocking_timeout=timedelta(days=900 * 365))
    until(lambda: in_line("a") == 3 or waiters.errors)
    raw().delete_many({})
    waiters.join()
    assert waiters.errors == []
    assert len(waiters.tokens) == 3


def test_an_attempt_without_waiting_does_not_stand_in_line(sent: Recorder) -> None:
    take_over("a")
    waiters = Waiters("a", 1)
    until(lambda: in_line("a") == 1)
    with pytest.raises(LockNotAcquired):
        lock("a", blocking=False).acquire()
    assert in_line("a") == 1
    raw().delete_many({})
    waiters.join()


def test_threads_and_tasks_stand_in_one_line(sent: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "POLL", 3_600.0)
    monkeypatch.setattr(waiting, "OWN", 3_600.0)
    handle = lock("a").acquire()
    threads = Waiters("a", 3)
    tokens: list[int] = []

    async def work() -> None:
        async with lock("a") as mine:
            tokens.append(mine.token)

    async def tasks() -> None:
        await asyncio.gather(*(work() for _ in range(3)))

    loop = threading.Thread(target=lambda: asyncio.run(tasks()))
    loop.start()
    until(lambda: in_line("a") == 6)
    handle.release()
    threads.join()
    loop.join()
    assert threads.errors == []
    assert len({*threads.tokens, *tokens}) == 6


async def test_cancelling_a_waiting_task_leaves_nothing_behind(sent: Recorder) -> None:
    take_over("a")
    tasks = [asyncio.create_task(lock("a").aacquire()) for _ in range(4)]
    while in_line("a") < 4:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    for task in (tasks[0], tasks[2]):
        task.cancel()
    for task in (tasks[0], tasks[2]):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert in_line("a") == 2
    raw().delete_many({})
    got = await tasks[1]
    tasks[3].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[3]
    assert not waiting._lines
    assert await got.arelease()
    assert locks.backend().get("a") is None


@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_cancelling_while_the_attempt_is_on_its_way(sent: Recorder, turns: int) -> None:
    """Whatever the moment: either the caller has the handle, or nobody has the lock."""
    task = asyncio.create_task(lock("a", blocking=False).aacquire())
    for _ in range(turns):
        await asyncio.sleep(0.0002)
    task.cancel()
    try:
        handle: HeldLock = await task
    except asyncio.CancelledError:
        assert locks.backend().get("a") is None
    else:
        assert await handle.arelease()
    assert not waiting._held.get(place("a"))


async def test_cancelled_twice_it_gives_back_all_the_same(sent: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = runtime.adapter().lock
    entered, go = asyncio.Event(), asyncio.Event()
    real = type(provider).aacquire

    async def slow(self: Any, *args: Any, **more: Any) -> Any:
        entered.set()
        await go.wait()
        return await real(self, *args, **more)

    monkeypatch.setattr(type(provider), "aacquire", slow)
    task = asyncio.create_task(lock("a", blocking=False).aacquire())
    await entered.wait()
    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    from goscope_django.locks.locking import _undoing

    while not sent.names.count("delete") or _undoing:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    assert locks.backend().get("a") is None


async def test_leaving_a_block_by_cancellation_releases(sent: Recorder) -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with lock("a"):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert locks.backend().get("a") is None


def test_an_interrupted_waiter_makes_way(sent: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    take_over("a")

    def interrupt(self: Any, seconds: float | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(waiting.ThreadWaiter, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        lock("a").acquire()
    assert not waiting._lines


def test_many_lines_share_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waiting._interval(1) <= waiting.POLL * 1.1
    assert waiting._interval(100) >= waiting.POLL * 100 / waiting.SHARED_BY * 0.9
