"""The renewer without a server: deadlines, attempts, batches, loss. What is renewed here answers from memory."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest

from goscope_django import runtime
from goscope_django.core.flow import acarry_out
from goscope_django.exceptions import StoreUnavailable
from goscope_django.process import renewal
from goscope_django.process.renewal import Extendable, Renewal, akeep, keep
from tests.support.commands import on_server

LONG = 60_000


class _Fake:
    """Something to renew. ``answer`` is called for each batch and says which claims still hold theirs."""

    lane: ClassVar[str] = "renewal"

    def __init__(self, answer: Callable[[list[str]], frozenset[str]] = frozenset, milliseconds: int = 300) -> None:
        self.claim = os.urandom(4).hex()
        self.key = "k"
        self.milliseconds = milliseconds
        self.answer = answer
        self.batches: list[int] = []
        self.limits: list[float] = []
        self.called = threading.Event()

    @property
    def kind(self) -> Any:
        return (self.answer, self.milliseconds)

    def renew(self, group: Sequence[Any], seconds: float) -> frozenset[str]:
        self.batches.append(len(group))
        self.limits.append(seconds)
        self.called.set()
        return self.answer([one.claim for one in group])

    async def arenew(self, group: Sequence[Any], seconds: float) -> frozenset[str]:
        return self.renew(group, seconds)


Fake: Any = _Fake


def start(fake: Any, *, age: float = 0.0, on_lost: Callable[[], object] | None = None, renew: bool = True) -> Renewal:
    return keep(fake, time.monotonic() - age, on_lost, renew=renew)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    for thread in renewal._threads.values():
        for one in list(thread.book.entries):
            one.stop()
    assert not any(thread.book.entries for thread in renewal._threads.values())


def until(test: Callable[[], object]) -> None:
    """Wait until ``test`` holds; the time limit of the suite is the only one."""
    while not test():
        time.sleep(0.005)


async def auntil(test: Callable[[], object]) -> None:
    while not test():  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.005)


def test_a_lease_is_renewed_at_a_third_and_outlives_its_length() -> None:
    fake = Fake()
    one = start(fake)
    assert one.due - (one.deadline - 0.3) == pytest.approx(0.1)
    first = one.deadline
    until(lambda: one.deadline > first + 0.3)
    assert one.check()
    assert not one.lost.is_set()
    one.stop()


def test_the_deadline_counts_from_before_the_command_was_sent() -> None:
    asked = time.monotonic()
    one = start(Fake(milliseconds=LONG), age=5.0)
    assert one.deadline <= renewal.now() + (asked - time.monotonic()) + 55.01
    one.stop()


def test_all_that_is_due_goes_with_one_command() -> None:
    fakes = [Fake(milliseconds=900) for _ in range(50)]
    renewals = [start(fake) for fake in fakes]
    first = max(one.deadline for one in renewals)
    until(lambda: all(one.deadline > first for one in renewals))
    assert sum(sum(fake.batches) for fake in fakes) >= 50
    assert sum(len(fake.batches) for fake in fakes) < 10
    for one in renewals:
        one.stop()


def test_a_batch_has_a_bound_in_number_and_in_bytes() -> None:
    small = [Renewal(Fake(milliseconds=LONG), 0.0, None, renew=True) for _ in range(2_500)]
    assert [len(batch) for batch in renewal._batches(small)] == [1_000, 1_000, 500]
    big = [Renewal(Fake(milliseconds=LONG), 0.0, None, renew=True) for _ in range(40)]
    for one in big:
        fake: Any = one.renewable
        fake.key = "x" * 65_000
    assert all(sum(len(one.renewable.key) for one in batch) <= 1_000_000 for batch in renewal._batches(big))
    assert sum(len(batch) for batch in renewal._batches(big)) == 40


def test_one_thread_for_all() -> None:
    renewals = [start(Fake(milliseconds=LONG)) for _ in range(100)]
    assert [thread.name for thread in threading.enumerate()].count("goscope-renewal") == 1
    for one in renewals:
        one.stop()


def test_a_lease_that_was_taken_over_is_lost_and_told_once() -> None:
    told: list[int] = []
    one = start(Fake(lambda claims: frozenset()), on_lost=lambda: told.append(1))
    assert one.lost.wait()
    until(lambda: told)
    one.lose()
    assert one.check() is False
    assert told == [1]


def test_l9_a_failed_renewal_is_tried_again_before_the_deadline() -> None:
    failures = 2

    def answer(claims: list[str]) -> frozenset[str]:
        nonlocal failures
        if failures:
            failures -= 1
            raise StoreUnavailable("away")
        return frozenset(claims)

    fake = Fake(answer, milliseconds=2_000)
    one = start(fake)
    first = one.deadline
    until(lambda: one.deadline > first or one.lost.is_set())
    assert not one.lost.is_set()
    assert len(fake.batches) >= 3
    assert one.failures == 0
    one.stop()


def test_l7_the_server_away_past_the_lease_is_a_loss() -> None:
    def answer(claims: list[str]) -> frozenset[str]:
        raise StoreUnavailable("away")

    told = threading.Event()
    one = start(Fake(answer), on_lost=told.set)
    deadline = one.deadline
    assert one.lost.wait()
    assert renewal.now() >= deadline
    assert told.wait(30)


def test_an_unexpected_error_does_not_end_the_renewer(caplog: pytest.LogCaptureFixture) -> None:
    def answer(claims: list[str]) -> frozenset[str]:
        raise ZeroDivisionError

    bad = start(Fake(answer))
    good = start(Fake())
    first = good.deadline
    until(lambda: good.deadline > first + 0.3)
    assert bad.lost.is_set()
    assert good.check()
    assert "could not be renewed" in caplog.text
    good.stop()


def test_l7_a_renewer_that_hangs_hides_no_loss() -> None:
    going = threading.Event()

    def hang(claims: list[str]) -> frozenset[str]:
        going.wait()
        return frozenset(claims)

    fake = Fake(hang)
    one = start(fake)
    assert fake.called.wait()
    assert one.lost.wait()  # by the clock: the renewer is still inside
    assert not going.is_set()
    going.set()
    until(lambda: one not in renewal._threads["renewal"].book.entries)
    assert one.lost.is_set()  # what it brought came too late


def test_l7_a_renewer_that_starves_hides_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal._Thread, "work", lambda self: None)
    monkeypatch.setattr(renewal, "_threads", {})
    one = start(Fake())
    assert one.lost.wait()


def test_a_lease_of_centuries_harms_no_other() -> None:
    forever = start(Fake(milliseconds=900 * 365 * 86_400_000))
    assert not forever.lost.wait(0.1)
    thread = renewal._threads["renewal"].thread
    assert thread is not None
    waited = threading.Thread(target=forever.lost.wait, daemon=True)  # without a timeout
    waited.start()
    fake = Fake(milliseconds=300)
    other = start(fake)
    assert fake.called.wait(10)
    assert renewal._threads["renewal"].thread is thread
    assert thread.is_alive()
    assert waited.is_alive()
    other.stop()
    forever.stop()
    waited.join(10)
    assert not waited.is_alive()


def test_attempts_are_bounded_by_the_lease() -> None:
    fake = Fake(milliseconds=400)
    one = start(fake)
    assert fake.called.wait()
    assert renewal.SHORTEST <= fake.limits[0] <= max(renewal.SHORTEST, 0.4 / 3)
    one.stop()


def test_another_stores_hanging_renewal_has_a_thread_of_its_own() -> None:
    going = threading.Event()

    async def never() -> bool:
        raise AssertionError

    stuck = start(Extendable("k", "c", 300, going.wait, never))
    fake = Fake()
    fine = start(fake)
    first = fine.deadline
    until(lambda: fine.deadline > first + 0.3)
    assert fine.check()
    assert stuck.lost.is_set()
    going.set()
    fine.stop()


def test_without_renewal_the_deadline_is_watched() -> None:
    fake = Fake()
    told = threading.Event()
    one = start(fake, renew=False, on_lost=told.set)
    assert told.wait(30)
    assert one.lost.is_set()
    assert fake.batches == []


def test_l8_a_renewal_that_was_stopped_is_never_sent_again() -> None:
    fake = Fake()
    one = start(fake)
    assert fake.called.wait()
    one.stop()
    until(lambda: not one.sending)
    sent = len(fake.batches)
    other = start(Fake(milliseconds=600))
    first = other.deadline
    until(lambda: other.deadline > first + 0.5)
    assert len(fake.batches) == sent
    assert not one.lost.is_set()
    other.stop()


def test_a_wait_ends_when_the_lease_is_given_back() -> None:
    one = start(Fake(milliseconds=LONG))
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(one.lost.wait()))
    thread.start()
    one.stop()
    thread.join()
    assert answers == [False]
    assert one.lost.wait(0.001) is False


def test_an_extension_and_a_renewal_that_cross() -> None:
    """The renewal was sent before the extension was answered: it says nothing about where the lease ends now."""
    one = Renewal(Fake(milliseconds=LONG), renewal.now(), None, renew=True)
    sent = renewal.now()
    one.extended(renewal.now(), 1_000)
    short = one.deadline
    one.renewed(sent)
    assert one.deadline == short
    one.renewed(renewal.now())
    assert one.deadline > short


def test_a_renewal_after_a_longer_extension_shortens_nothing() -> None:
    one = Renewal(Fake(milliseconds=1_000), renewal.now(), None, renew=True)
    one.extended(renewal.now(), LONG)
    far, due = one.deadline, one.due
    one.renewed(renewal.now())
    assert (one.deadline, one.due) == (far, due)
    assert due > renewal.now() + 50  # and no command is wasted before it is needed


def test_a_pause_is_a_pause() -> None:
    fake = Fake(milliseconds=1_200)
    one = start(fake)
    resume = one.pause()
    other = start(Fake(milliseconds=450))
    first = other.deadline
    until(lambda: other.deadline > first + 0.45)
    assert fake.batches == []
    resume()
    assert fake.called.wait(30)
    one.stop()
    other.stop()


def test_a_failing_callback_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    one = start(Fake(lambda claims: frozenset()), on_lost=lambda: 1 / 0)
    until(lambda: "callback" in caplog.text)
    assert one.lost.is_set()
    others = Fake()
    other = start(others)
    assert others.called.wait(30)
    other.stop()


def test_the_clock_does_not_follow_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    one = start(Fake(milliseconds=LONG))
    monkeypatch.setattr(time, "time", lambda: 10.0**10)
    assert one.check()
    one.stop()


def test_the_clock_counts_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of sleep is an hour on CLOCK_BOOTTIME and nothing on the monotonic clock."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("this system has no such clock")
    one = Renewal(Fake(milliseconds=LONG), renewal.now(), None, renew=True)
    real = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: real(clock) + 3_600)
    assert not one.check()


async def test_the_task_of_a_loop_renews_and_ends() -> None:
    fake = Fake()
    one = akeep(fake, time.monotonic())
    first = one.deadline
    await auntil(lambda: one.deadline > first + 0.3)
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert names.count("goscope-renewal") == 1
    assert one.check()
    one.stop()
    await auntil(lambda: all(task.get_name() != "goscope-renewal" for task in asyncio.all_tasks()))
    assert asyncio.get_running_loop() not in renewal._tasks


async def test_a_loop_that_is_blocked_hides_no_loss() -> None:
    one = akeep(Fake(), time.monotonic())
    assert one.lost.wait()  # blocks the loop: its task can't run


async def test_the_task_starts_again_after_a_pause() -> None:
    for _ in range(3):
        one = akeep(Fake(), time.monotonic())
        first = one.deadline
        while one.deadline <= first:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.005)
        one.stop()
        await asyncio.sleep(0.02)


def test_a_loop_that_ends_leaves_no_warning_and_nothing_behind() -> None:
    async def work() -> None:
        akeep(Fake(milliseconds=LONG), time.monotonic()).stop()
        await asyncio.sleep(0)

    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(work())
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        assert loop not in renewal._tasks
    gc.collect()


def test_a_forked_child_has_none_of_its_parents_leases() -> None:
    told: list[int] = []
    one = start(Fake(milliseconds=LONG), on_lost=lambda: told.append(1))
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            mine = start(Fake(milliseconds=LONG))
            verdict = (one.lost.is_set(), told == [], mine.check(), len(renewal._threads["renewal"].book.entries) == 1)
            os.write(writing, repr(verdict).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 100) == b"(True, True, True, True)"
    os.close(reading)
    os.close(writing)
    assert one.check()
    one.stop()


EXIT = """
import os, threading, time
from goscope_django.process import renewal
from goscope_django.exceptions import StoreUnavailable
inside = threading.Event()
class Slow:
    lane, key, claim, milliseconds, kind = "renewal", "k", "c", 300, 1
    def renew(self, group, seconds):
        inside.set()
        time.sleep(0.05)
        raise StoreUnavailable("its client was closed")
renewal.logger.addHandler(renewal.logging.StreamHandler())
kept = renewal.keep(Slow(), time.monotonic())
inside.wait()
renewal.logger.handlers[0].stream.flush()
"""


def test_the_end_of_the_interpreter_is_quiet() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", EXIT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_failures_are_logged_loudly_once(caplog: pytest.LogCaptureFixture) -> None:
    def answer(claims: list[str]) -> frozenset[str]:
        raise StoreUnavailable("away")

    caplog.set_level(logging.DEBUG, "goscope.renewal")
    fake = Fake(answer, milliseconds=600)
    one = start(fake)
    assert one.lost.wait()
    levels = [record.levelno for record in caplog.records if "could not be renewed" in record.message]
    assert levels.count(logging.WARNING) == 1
    assert len(levels) > 1


class Gone:
    """Something that can't be given back in an event loop, since none lasts that long, and can on a thread."""

    def __init__(self) -> None:
        self.tries = 0
        self.given_back = threading.Event()

    def give_back(self) -> bool:
        self.given_back.set()
        return False

    async def agive_back(self) -> bool:
        self.tries += 1
        raise StoreUnavailable("away")

    async def later(self) -> None:
        what = renewal.GivenBack("k", "claim", LONG, self.give_back, self.agive_back)
        await acarry_out(renewal.give_back_later(what))


def test_what_a_loop_could_not_give_back_is_given_back_by_the_process() -> None:
    gone = Gone()

    async def scene() -> None:
        await gone.later()
        await auntil(lambda: gone.tries)

    asyncio.run(scene())
    assert gone.given_back.wait(20)


def test_so_is_what_failed_while_the_loop_ended() -> None:
    """A task that is cancelled at the end of ``asyncio.run`` may leave a block then, and fail to give its lock back."""
    gone = Gone()

    async def holds() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await gone.later()

    async def scene() -> None:
        runtime.connection().asynchronous()  # as whoever holds a lock has it
        scene.task = asyncio.create_task(holds())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    with on_server("mongodb://127.0.0.1:9/goscope"):
        asyncio.run(scene())
    assert gone.given_back.wait(20)
    assert not gone.tries
