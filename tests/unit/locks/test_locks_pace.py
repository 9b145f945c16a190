"""How often a waiter reads: less often the longer the lock has been held, and where the server is slow."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

from goscope_django.core.flow import Flow, carry_out
from goscope_django.locks import waiting
from goscope_django.locks.waiting import OWN, POLL, SHARED_BY, SLOWEST, contend


class Clock:
    """Time that passes only while somebody waits or reads. Whoever waits is woken by nobody."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, read: float = 0.001) -> None:
        self.time = 100.0
        self.read = read
        self.reads: list[float] = []
        self.signal: Any = None
        monkeypatch.setattr(waiting, "now", lambda: self.time)
        monkeypatch.setattr("random.uniform", lambda low, high: 1.0)

    def wake(self) -> None: ...

    def calm(self) -> None: ...

    def wait(self, seconds: float | None) -> None:
        assert seconds is not None
        self.time += seconds

    def hand_off(self, hold: float, *, holds: Callable[[float], float] | None = None) -> float:
        """Seconds from the release to the acquisition, of a lock that is given back after ``hold`` seconds."""
        free = self.time + hold
        since = self.time

        def attempt(left: float) -> Flow[bool | None]:
            yield from ()
            return True if self.time >= free else None

        def standing() -> Flow[tuple[float, float]]:
            yield from ()
            self.time += self.read
            self.reads.append(self.time)
            if self.time >= free:
                return 0.0, 0.0
            age = self.time - since
            return 1_000.0, age if holds is None else holds(age)

        assert carry_out(contend(("place", hold), self, 1_000.0, attempt, standing))
        return self.time - free


@pytest.mark.parametrize("hold", [0.01, 0.1, 0.4])
def test_a_short_hold_is_read_at_the_full_rate(hold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert clock.hand_off(hold) <= POLL + 2 * clock.read
    assert len(clock.reads) >= hold / (POLL + clock.read)


@pytest.mark.parametrize(("hold", "most"), [(2, 60), (10, 100), (60, 350)])
def test_a_long_hold_is_read_less_often_and_handed_on_in_time(
    hold: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    assert clock.hand_off(hold) < 0.25
    assert len(clock.reads) <= most, f"the full rate would be {hold / POLL:.0f}"


def test_a_lock_that_changes_hands_quickly_is_read_at_the_full_rate_however_long_somebody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    clock.hand_off(20, holds=lambda age: age % 0.3)
    assert len(clock.reads) > 600


def test_a_server_that_is_slow_to_answer_is_asked_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, read=0.2)
    clock.hand_off(10, holds=lambda _: 0.0)
    assert len(clock.reads) <= 11


@pytest.mark.parametrize(("held", "most"), [(0.5, 40), (1, 33), (2, 15), (4, 6), (60, 6)])
def test_so_many_reads_a_second_and_no_more(held: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second before the lock has been ``held`` for so long. What the docs tell a shared server's operator."""
    clock = Clock(monkeypatch)
    began = clock.time
    clock.hand_off(held)
    assert sum(held - 1 < one - began <= held for one in clock.reads) <= most


def test_a_process_with_many_locks_to_wait_for_reads_no_more_than_with_a_few() -> None:
    few = SHARED_BY / waiting._interval(SHARED_BY)
    for lines in (10, 100, 1_000):
        assert lines / waiting._interval(lines) <= few * 1.3


def test_the_bounds_are_those_that_the_docs_tell() -> None:
    assert 1 / POLL < 40 and SLOWEST * 1.1 < 0.25 and OWN == 0.25


def test_a_lock_that_is_left_to_its_lease_leaves_nothing_behind() -> None:
    """Its handle is dropped, and nobody says that it is free."""

    class Handle:
        pass

    def there() -> set[object]:
        return {place for place in waiting._held if isinstance(place, tuple) and place[0] == "dropped"}

    kept = Handle()
    waiting.held(("dropped", "kept"), kept)
    for number in range(100):
        waiting.held(("dropped", number), Handle())
    gc.collect()
    waiting.held(("dropped", 0), kept)  # one that was dropped, and is held again
    assert there() == {("dropped", "kept"), ("dropped", 0)}
    assert waiting.holder_at(("dropped", 0)) is kept and not waiting._dropped
    for place in there():
        waiting.left(place, kept, free=True)
    assert not there()
