"""One entry of a near cache, in any order of events: readings, writes of this process and of others, and the stream.

Who has once got a value never gets an older one from the near cache, and when the stream has brought all and what it
wants read again was read, nothing older than the server's value is there.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goscope_django.cache import near as near_module
from goscope_django.cache.near import Near
from goscope_django.cache.options import NearOptions
from goscope_django.mongodb.cache.flows import MISSING, CacheFlows
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.document.clock import ServerClock
from tests.support.near import OpenStream, asked, forget_those_with_open_streams

KEY = "cache:k"
NOW = datetime(2026, 1, 1)  # noqa: DTZ001  as the driver gives it
SIDE_BY_SIDE = 3
EVENTS = (
    "hit",
    "begin",
    "look",
    "end",
    "set",
    "write",
    "apply",
    "ack",
    "keep",
    "other",
    "tell",
    "ask_again",
    "answer_again",
)


@dataclass
class Under:
    """A reading or a write that is under way: ``value`` is what it found or writes; ``done``: at the server. Only
    those that may be kept have a ``flow``."""

    flow: Generator[Any, Any, Any] | None
    value: int = 0
    done: bool = False


@dataclass
class World:
    """A server with one entry, and a process with a near cache of it. Values are numbers; ``written`` says in which
    order the server got them, ``got`` which of them is the last one that the process has met."""

    written: list[int] = field(default_factory=lambda: [0])
    got: int = 0
    untold: int = 0
    readings: list[Under] = field(default_factory=list)
    writes: list[Under] = field(default_factory=list)
    ended: list[Under] = field(default_factory=list)
    again: Under | None = None
    values: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.near = Near(NearOptions(), OpenStream())
        self.flows = CacheFlows(Codec(pickle=False))
        self.clock = ServerClock()

    def step(self, event: str, number: int) -> None:
        getattr(self, event)(number)

    # This process

    def hit(self, _: int) -> None:
        found = self.near.found(self.flows, KEY)
        if found is not MISSING:
            at = self.written.index(found)
            assert at >= self.got, "what is older than what was got"
            self.got = at

    def begin(self, _: int) -> None:
        if len(self.readings) < SIDE_BY_SIDE:
            self.readings.append(self.asked(self.near.get(self.clock, self.flows, KEY)))

    def look(self, number: int) -> None:
        for one in chosen(self.readings, number, done=False):
            one.value, one.done = self.written[-1], True

    def end(self, number: int) -> None:
        for one in chosen(self.readings, number, done=True):
            self.readings.remove(one)
            assert self.answered(one, self.row(one)) == one.value, "whoever asks gets what was read"
            self.got = max(self.got, self.written.index(one.value))

    def set(self, _: int) -> None:
        if len(self.writes) < SIDE_BY_SIDE:
            value = next(self.values)
            self.writes.append(self.asked(self.near.set(self.clock, self.flows, KEY, value, 300_000), value))
            self.near.writing({KEY})

    def write(self, _: int) -> None:
        if len(self.writes) < SIDE_BY_SIDE:
            self.writes.append(Under(None, next(self.values)))
            self.near.writing({KEY})

    def ack(self, number: int) -> None:
        for one in chosen(self.writes, number, done=True):
            self.writes.remove(one)
            self.near.wrote({KEY})
            if one.flow is None:
                self.got = max(self.got, self.written.index(one.value))
            else:
                self.ended.append(one)

    def keep(self, number: int) -> None:
        for one in chosen(self.ended, number, done=True):
            self.ended.remove(one)
            self.answered(one, {"now": NOW})
            self.got = max(self.got, self.written.index(one.value))

    # The server and others

    def apply(self, number: int) -> None:
        for one in chosen(self.writes, number, done=False):
            one.done = True
            self.stored(one.value)

    def other(self, _: int) -> None:
        self.stored(next(self.values))

    def stored(self, value: int) -> None:
        self.written.append(value)
        self.untold += 1

    # The stream

    def tell(self, _: int) -> None:
        if self.untold and self.again is None:  # it is one thread
            self.untold -= 1
            self.near.changed(KEY)

    def ask_again(self, _: int) -> None:
        if self.again is None:
            self.near.catch_up(Asking(self))  # type: ignore[arg-type]

    def answer_again(self, _: int) -> None:
        if self.again is not None:
            one, self.again = self.again, None
            self.answered(one, self.row(one))

    # Helpers

    @staticmethod
    def asked(flow: Generator[Any, Any, Any], value: int = 0) -> Under:
        asked(flow)
        return Under(flow, value)

    @staticmethod
    def answered(one: Under, answer: Any) -> Any:
        assert one.flow is not None
        with pytest.raises(StopIteration) as ended:
            asked(one.flow, answer)
        return ended.value.value

    @staticmethod
    def row(one: Under) -> Any:
        return [{"_id": KEY, "key": KEY, "value": one.value, "expiresAt": None, "now": NOW}], "primary"

    def settle(self) -> None:
        """All that is under way ends, and the stream brings all."""
        self.answer_again(0)
        for event in ("look", "end", "apply", "ack", "keep", "keep") * SIDE_BY_SIDE:
            self.step(event, 0)
        for event in (*["tell"] * self.untold, "ask_again", "answer_again"):
            self.step(event, 0)
        found = self.near.found(self.flows, KEY)
        assert found in (MISSING, self.written[-1]), "what is older than what the stream has told of"


class Asking:
    """An executor that takes one query and leaves its answer to the world: its flow is run by hand."""

    def __init__(self, world: World) -> None:
        self.world, self.clock = world, world.clock


def chosen(among: list[Under], number: int, *, done: bool) -> list[Under]:
    wanted = [one for one in among if one.done == done]
    return [wanted[number % len(wanted)]] if wanted else []


def run_by_hand(flow: Generator[Any, Any, Any], executor: Asking) -> None:
    executor.world.again = World.asked(flow, executor.world.written[-1])


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(near_module, "run", run_by_hand)
    yield
    forget_those_with_open_streams()


STEPS = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, SIDE_BY_SIDE - 1)), max_size=60)


@given(steps=STEPS)
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nobody_gets_what_is_older_than_what_he_got(steps: list[tuple[str, int]]) -> None:
    happens(steps)


def happens(steps: list[tuple[str, int]]) -> None:
    world = World()
    for event, number in steps:
        world.step(event, number)
    world.settle()


def some_steps(numbers: random.Random) -> list[tuple[str, int]]:
    """Of some kinds of events only, as a rule: then more of the others come together."""
    among = [one for one in EVENTS if numbers.random() < 0.7] or EVENTS
    return [(numbers.choice(among), numbers.randrange(SIDE_BY_SIDE)) for _ in range(60)]


def test_nobody_does_in_very_many_orders() -> None:
    for seed in range(2_000):
        happens(some_steps(random.Random(seed)))


FAULTS: dict[str, tuple[str, Any]] = {
    "of readings side by side the last one is kept": ("_in_order", lambda self, entry, began: True),
    "a change is not noted for who is reading": ("_note", lambda self, name: None),
    "a change does not matter": ("changed", lambda self, name: None),
    "the end of a write does not matter": ("wrote", lambda self, keys: self._writing.clear()),
    "nothing that is changed is removed": ("_serves_on", lambda self, full: True),
    "what was written between the end of a set and its keeping does not matter": (
        "_keep_written",
        lambda self, entry, began, served, mine: self._put(entry) if mine.ended != -1 else None,
    ),
    "what is set is kept whatever else happened": ("_keep_written", lambda self, entry, *more: self._put(entry)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_this_test_finds(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, instead = FAULTS[fault]
    monkeypatch.setattr(Near, name, instead)

    for seed in range(20_000):
        try:
            happens(some_steps(random.Random(seed)))
        except AssertionError:
            return
    raise AssertionError("it was not found")
