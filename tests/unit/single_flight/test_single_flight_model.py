"""Flights against a simple model, with a clock moved by hand; and many callers who never get another's value."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import mongomock
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from goscope_django.contracts import Event
from goscope_django.mongodb.document.clock import LocalClock
from goscope_django.mongodb.driver.execute import MockExecutor
from goscope_django.mongodb.driver.store import Store
from goscope_django.mongodb.single_flight.provider import MongoDBFlightProvider
from goscope_django.mongodb.single_flight.values import Entered, Terms
from goscope_django.single_flight import group as single_flight_group
from goscope_django.single_flight import single_flight
from tests.support.flights import in_the_air
from tests.support.long import examples

TERMS = Terms(lease=1_000, linger=2_000, leader="me", limit=5.0)
KEYS = st.sampled_from(["a", "b"])


class ManualClock(LocalClock):
    """Time that passes when a test says so; the process's own clock plays no part."""

    def __init__(self) -> None:
        # Far ahead of real time: mongomock removes expired documents at once, and is to remove none of ours.
        self.time = datetime(2100, 1, 1)  # noqa: DTZ001 - mongomock's instants are naive
        self.tokens = 0

    def _moment(self, milliseconds: int = 0) -> datetime:
        return self.time + timedelta(milliseconds=milliseconds)

    def token(self) -> int:
        self.tokens += 1
        return self.tokens

    def read_stamp(self, document: dict[str, Any]) -> datetime:
        return self.time.replace(tzinfo=UTC)


class Flown:
    """What the model knows of one key."""

    def __init__(self) -> None:
        self.leader: int | None = None
        self.lease_until = -1
        self.result: int | None = None  # the number of the flight whose result is kept
        self.kept_until = -1
        self.number = 0  # of the last flight


class FlightMachine(RuleBasedStateMachine):
    """Leaders, waiters, publications, deaths and time; each step says what must come of it."""

    leaders = Bundle("leaders")
    waiters = Bundle("waiters")

    @initialize()
    def begin(self) -> None:
        self.now = 0
        self.clock = ManualClock()
        executor = MockExecutor(mongomock.MongoClient().db)
        executor.clock = self.clock
        self.events: list[Event] = []
        self.deaths = 0
        store = Store(lambda: executor, lambda: executor, sink=self.events.append)
        self.provider = MongoDBFlightProvider(store)
        self.model = {"a": Flown(), "b": Flown()}

    def _flying(self, flown: Flown) -> bool:
        return flown.leader is not None and flown.lease_until > self.now

    def _take(self, key: str, since: int | None) -> Entered:
        return self.provider.enter(key, TERMS, since, lambda *_: 0.0, time.monotonic() - 1)

    def _led(self, key: str, entered: Entered) -> tuple[str, int, Entered]:
        flown = self.model[key]
        if flown.leader is not None:
            self.deaths += 1
        flown.number += 1
        flown.leader, flown.lease_until = flown.number, self.now + TERMS.lease
        return key, flown.number, entered

    @rule(target=leaders, key=KEYS)
    def lead_or_not(self, key: str) -> Any:
        """A newcomer leads if, and only if, nobody does; no result serves it, however young."""
        flying = self._flying(self.model[key])
        entered = self._take(key, None)
        assert entered.result is None
        assert (entered.claim is None) == flying
        return multiple() if entered.claim is None else self._led(key, entered)

    @rule(target=waiters, key=KEYS)
    def wait(self, key: str) -> Any:
        """A newcomer that finds a flight in the air waits for it."""
        flown = self.model[key]
        if not self._flying(flown):
            return multiple()
        entered = self._take(key, None)
        assert entered.claim is None
        return key, flown.leader, entered.token

    @rule(target=leaders, waiter=consumes(waiters))
    def look(self, waiter: tuple[str, int, int]) -> Any:
        """A waiter gets a result of its flight or a later one, else it goes on waiting, else it leads."""
        key, number, token = waiter
        flown = self.model[key]
        served = flown.result is not None and flown.result >= number and flown.kept_until > self.now
        flying = self._flying(flown)
        entered = self._take(key, token)
        if served and not flying:
            assert entered.claim is None
            found = self.provider.enter(key, TERMS, token, lambda *_: 0.0, time.monotonic() + 5).result
            assert found is not None
            assert found.value == flown.result
            return multiple()
        if flying:
            assert entered.claim is None
            return multiple()
        assert entered.claim is not None
        return self._led(key, entered)

    @rule(leader=leaders)
    def publish(self, leader: tuple[str, int, Entered]) -> None:
        """Only a leader whose lease still lasts publishes."""
        key, number, entered = leader
        flown = self.model[key]
        mine = flown.leader == number and flown.lease_until > self.now
        said = self.provider.publish(key, entered, "value", number, 0.1, TERMS)
        assert said == ("published" if mine else "lost")
        if mine:
            flown.leader, flown.result, flown.kept_until = None, number, self.now + TERMS.linger

    @rule(leader=leaders)
    def abort(self, leader: tuple[str, int, Entered]) -> None:
        key, number, entered = leader
        flown = self.model[key]
        mine = flown.leader == number and flown.lease_until > self.now
        assert self.provider.abort(key, entered, TERMS) == mine
        if mine:
            flown.leader = None

    @rule(milliseconds=st.sampled_from([1, 400, 999, 1_000, 2_500]))
    def pass_time(self, milliseconds: int) -> None:
        self.now += milliseconds
        self.clock.time += timedelta(milliseconds=milliseconds)

    @invariant()
    def the_list_names_what_is_in_the_air(self) -> None:
        if hasattr(self, "model"):
            flying = sorted(key for key, flown in self.model.items() if self._flying(flown))
            assert [one.key for one in in_the_air(self.provider)] == flying

    @invariant()
    def a_takeover_is_told_once_for_each_death(self) -> None:
        if hasattr(self, "model"):
            assert len(self.events) == self.deaths


TestFlights = FlightMachine.TestCase
TestFlights.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)


# Nobody gets another's value


@pytest.fixture
def _clean(goscope: object) -> Iterator[None]:
    yield
    assert not single_flight_group.group._entries
    assert not in_the_air()


@pytest.mark.usefixtures("_clean")
@settings(max_examples=10, deadline=None)
@given(st.lists(st.text(max_size=4), min_size=1, max_size=5, unique=True), st.integers(0, 2**16))
def test_of_many_callers_with_random_keys_none_gets_the_value_of_another_key(keys: list[str], seed: int) -> None:
    chance = random.Random(seed)
    running: dict[str, int] = {}
    lock = threading.Lock()

    @single_flight(
        key=lambda key, pause: f"<{key}>",
        linger=0.2,
        name="of_many_callers_with.value",
    )
    def value(key: str, pause: float) -> tuple[str, str]:
        with lock:
            running[key] = running.get(key, 0) + 1
            assert running[key] == 1, "two ran at once"
        time.sleep(pause)
        with lock:
            running[key] -= 1
        return key, key * 2

    calls = [(chance.choice(keys), chance.random() * 0.004) for _ in range(60)]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda call: value(*call), calls))
    assert found == [(key, key * 2) for key, _ in calls]
