"""Flights as documents: who leads, who gets which result, by the server's time; over a real server and mongomock."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from django.test import override_settings

from goscope_django import runtime
from goscope_django.core.flow import Flow, ask
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.single_flight.flows import FLIGHTS, Published
from goscope_django.mongodb.single_flight.provider import MongoDBFlightProvider
from goscope_django.mongodb.single_flight.values import Entered, FlightInfo, Result, Terms
from goscope_django.signals import flight_taken_over
from goscope_django.testing.conformance.base import Drive
from tests.support.flights import in_the_air

TERMS = Terms(60_000, 60_000, "me", 10.0)
SHORT = Terms(250, 60_000, "me", 10.0)
SOON = 0.02


@pytest.fixture(params=["mongomock", "mongod"])
def provider(request: pytest.FixtureRequest) -> Iterator[MongoDBFlightProvider]:
    url = "mongomock://" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    with override_settings(GOSCOPE={"TEST": {"URL": url}}):
        adapter = runtime.adapter()
        adapter.wipe()
        yield MongoDBFlightProvider(adapter.store, key_prefix=adapter.key_prefix)


@pytest.fixture
def taken_over() -> Iterator[list[str]]:
    keys: list[str] = []

    def hear(sender: object, key: str, **_: Any) -> None:
        keys.append(key)

    flight_taken_over.connect(hear)
    yield keys
    flight_taken_over.disconnect(hear)


class Scene:
    """Steps of processes that know nothing of one another."""

    def __init__(self, provider: MongoDBFlightProvider, drive: Drive) -> None:
        self.provider, self.drive = provider, drive

    def enter(self, key: str = "k", since: int | None = None, wait: float = 0.0, terms: Terms = TERMS) -> Entered:
        deadline = time.monotonic() + wait
        found: Entered = self.drive(self.provider, "enter", key, terms, since, lambda *_: SOON, deadline)
        return found

    def publish(self, flight: Entered, value: object = "v", key: str = "k", terms: Terms = TERMS) -> Published:
        said: Published = self.drive(self.provider, "publish", key, flight, "value", value, 0.5, terms)
        return said

    def abort(self, flight: Entered, key: str = "k") -> bool:
        done: bool = self.drive(self.provider, "abort", key, flight, TERMS)
        return done

    def change(self, key: str = "k", **fields: Any) -> None:
        def change(clock: Clock) -> Flow[None]:
            yield from ask(FLIGHTS, "update_one", {"_id": self.provider.stored(key)}, {"$set": fields})

        self.provider.store.run(change)

    def document(self, key: str = "k") -> dict[str, Any] | None:
        def find(clock: Clock) -> Flow[dict[str, Any] | None]:
            found: dict[str, Any] | None = yield from ask(FLIGHTS, "find_one", {"_id": self.provider.stored(key)})
            return found

        return self.provider.store.run(find)

    def remove(self, key: str = "k") -> None:
        def remove(clock: Clock) -> Flow[None]:
            yield from ask(FLIGHTS, "delete_one", {"_id": self.provider.stored(key)})

        self.provider.store.run(remove)

    def die(self, key: str = "k") -> None:
        """The lease of whoever leads has ended, by the server's clock."""
        self.change(key, expiresAt=datetime.now(UTC) - timedelta(hours=1))

    def listed(self, provider: MongoDBFlightProvider | None = None, limit: int = 1_000) -> list[FlightInfo]:
        provider = provider or self.provider
        return in_the_air(provider, limit, partial(self.drive, provider.store, "run"))


@pytest.fixture
def scene(provider: MongoDBFlightProvider, drive: Drive) -> Scene:
    return Scene(provider, drive)


def test_the_first_leads_and_whoever_waits_gets_its_result(scene: Scene) -> None:
    leader = scene.enter()
    assert leader.claim is not None
    waiter = scene.enter()
    assert (waiter.claim, waiter.result, waiter.token) == (None, None, leader.token)
    assert scene.publish(leader, {"$set": "$x", "a": [None]}) == "published"
    found = scene.enter(since=waiter.token, wait=5).result
    assert found is not None
    assert (found.kind, found.value, found.took) == ("value", {"$set": "$x", "a": [None]}, 0.5)


def test_whoever_comes_after_the_publication_leads_a_flight_of_its_own(scene: Scene) -> None:
    scene.publish(scene.enter())
    assert scene.enter().claim is not None


def test_a_result_stays_for_those_who_waited_while_the_next_flight_is_in_the_air(scene: Scene) -> None:
    first = scene.enter()
    scene.publish(first, "first")
    second = scene.enter()
    waiter = scene.enter(since=first.token, wait=5)
    assert waiter.result is not None
    assert waiter.result.value == "first"
    scene.publish(second, "second")
    late = scene.enter(since=first.token, wait=5).result
    assert late is not None
    assert late.value == "second", "a later one will do as well"


def test_a_result_is_of_no_use_to_those_of_a_later_flight(scene: Scene) -> None:
    scene.publish(scene.enter(), "first")
    second = scene.enter()
    assert scene.enter(since=second.token).result is None


def test_after_linger_a_result_is_not_given_out_and_the_waiter_leads(scene: Scene) -> None:
    first = scene.enter()
    scene.publish(first)
    scene.change(keepUntil=datetime.now(UTC) - timedelta(seconds=1))
    assert scene.enter(since=first.token, wait=5).claim is not None


def test_a_dead_leader_is_replaced(scene: Scene, taken_over: list[str]) -> None:
    dead = scene.enter()
    waiter = scene.enter()
    scene.die()
    heir = scene.enter(since=waiter.token, wait=5)
    assert heir.claim is not None
    assert heir.token > dead.token
    assert taken_over == ["k"]
    assert scene.publish(dead, "late") == "lost"
    assert not scene.abort(dead)
    assert scene.publish(heir, "right") == "published"
    document = scene.document()
    assert document is not None
    assert document["value"] == "right"


def test_a_leader_that_lost_its_lease_publishes_nothing_even_if_nobody_followed(scene: Scene) -> None:
    dead = scene.enter()
    scene.die()
    before = scene.document()
    assert scene.publish(dead, "late") == "lost"
    assert scene.document() == before


def test_giving_up_the_lead_is_no_death(scene: Scene, taken_over: list[str]) -> None:
    leader = scene.enter()
    waiter = scene.enter()
    assert scene.abort(leader)
    assert scene.enter(since=waiter.token, wait=5).claim is not None
    assert taken_over == []


def test_a_dead_flight_that_the_ttl_monitor_removed_is_taken_over(scene: Scene, taken_over: list[str]) -> None:
    waiter = scene.enter()
    scene.remove()
    assert scene.enter(since=waiter.token, wait=5).claim is not None
    assert taken_over == ["k"]


def test_keys_and_prefixes_are_apart(scene: Scene) -> None:
    other = MongoDBFlightProvider(scene.provider.store, key_prefix=f"{uuid4()}:")
    assert scene.enter("a").claim is not None
    assert scene.enter("b").claim is not None
    assert scene.drive(other, "enter", "a", TERMS, None, lambda *_: SOON, 0.0).claim is not None
    assert [one.key for one in scene.listed()] == ["a", "b"]
    assert [one.key for one in scene.listed(limit=1)] == ["a"]
    assert [one.key for one in scene.listed(other)] == ["a"]


def test_only_what_is_in_the_air_is_listed(scene: Scene) -> None:
    flight = scene.enter()
    (one,) = scene.listed()
    assert (one.key, one.leader, one.token) == ("k", "me", flight.token)
    assert one.started_at is not None
    assert one.started_at.tzinfo is not None
    scene.publish(flight)
    assert scene.listed() == []


def test_a_value_that_no_document_holds_is_told(scene: Scene, mongo_url: str) -> None:
    if not scene.provider.store.run(_is_real):
        pytest.skip("mongomock: has no limit of size")
    flight = scene.enter()
    assert scene.publish(flight, b"x" * 16 * 1024 * 1024) == "too large"
    assert scene.publish(flight, None) == "published"


def _is_real(clock: Clock) -> Flow[bool]:
    return bool(clock.stamp())
    yield


# Races, on a real server


@pytest.fixture
def real(mongo_url: str) -> Iterator[MongoDBFlightProvider]:
    with override_settings(GOSCOPE={"TEST": {"URL": mongo_url}}):
        adapter = runtime.adapter()
        adapter.wipe()
        yield MongoDBFlightProvider(adapter.store, key_prefix=adapter.key_prefix)


def test_of_many_contenders_one_leads_and_the_others_get_its_result(real: MongoDBFlightProvider) -> None:
    together = threading.Barrier(12)

    def contend(number: int) -> str:
        together.wait(20)
        entered = real.enter("k", TERMS, None, lambda *_: SOON, time.monotonic() + 30)
        if entered.claim is None:
            assert entered.result is not None
            return f"got {entered.result.value}"
        time.sleep(0.3)
        assert real.publish("k", entered, "value", number, 0.3, TERMS) == "published"
        return f"led {number}"

    with ThreadPoolExecutor(12) as pool:
        found = sorted(pool.map(contend, range(12)))
    led = [one for one in found if one.startswith("led")]
    assert len(led) == 1
    assert found[:11] == [led[0].replace("led", "got")] * 11


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_exactly_one_of_many_takes_over(real: MongoDBFlightProvider, taken_over: list[str], mode: str) -> None:
    dead = real.enter("k", SHORT, None, lambda *_: SOON, 0.0)
    assert dead.claim is not None

    def waits() -> Entered:
        entered = real.enter("k", TERMS, None, lambda *_: SOON, time.monotonic() + 30)
        if entered.claim is not None:
            real.publish("k", entered, "value", "heir", 0.0, TERMS)
        return entered

    async def awaits() -> Entered:
        entered = await real.aenter("k", TERMS, None, lambda *_: SOON, time.monotonic() + 30)
        if entered.claim is not None:
            await real.apublish("k", entered, "value", "heir", 0.0, TERMS)
        return entered

    async def gather() -> list[Entered]:
        return list(await asyncio.gather(*(awaits() for _ in range(10))))

    if mode == "sync":
        with ThreadPoolExecutor(10) as pool:
            found = list(pool.map(lambda _: waits(), range(10)))
    else:
        found = asyncio.run(gather())
    assert sum(one.claim is not None for one in found) == 1
    assert [one.result.value for one in found if one.result is not None] == ["heir"] * 9
    assert taken_over == ["k"]


async def test_a_cancelled_contender_leaves_nothing_behind(real: MongoDBFlightProvider) -> None:
    for _ in range(20):
        task = asyncio.ensure_future(real.aenter("k", TERMS, None, lambda *_: SOON, time.monotonic() + 30))
        await asyncio.sleep(0)
        task.cancel()
        try:
            entered = await task
        except asyncio.CancelledError:
            continue
        await real.aabort("k", entered, TERMS)
    deadline = time.monotonic() + 20
    while in_the_air(real):  # a command that was on its way may arrive after it was given up
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


# Who was waiting before a publication


def test_a_moment_counts_as_before_only_when_that_is_certain() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    result = Result("value", None, 0.0, now + timedelta(seconds=10))
    entered = Entered(None, 1, 100.0, now, 105.0, result)
    assert entered.surely_before(99.0, result)
    assert entered.surely_before(105.0, result)
    assert entered.surely_before(109.99, result)
    assert not entered.surely_before(110.0, result), "the server's clock counts whole milliseconds"
    assert not entered.surely_before(111.0, result)
    unproven = Entered(None, 1, 100.0, now - timedelta(seconds=60), -math.inf, result)
    assert unproven.surely_before(150.0, result)
    assert not unproven.surely_before(171.0, result)
