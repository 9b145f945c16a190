"""Places in the pool: how many callers may need a new connection at a time, and what is known after an error."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from pymongo.errors import AutoReconnect, NetworkTimeout, OperationFailure

from goscope_django.mongodb.document.failures import NoPlace
from goscope_django.mongodb.driver import places as places_module
from goscope_django.mongodb.driver.limits import within
from goscope_django.mongodb.driver.places import KNOWN, NEW, NONE, TaskPlaces, ThreadPlaces

Places = ThreadPlaces | TaskPlaces


def client(most: float | None = 10, connecting: int = 4) -> Any:
    pool = SimpleNamespace(max_pool_size=most, max_connecting=connecting, wait_queue_timeout=None)
    return SimpleNamespace(options=SimpleNamespace(pool_options=pool, timeout=None))


@pytest.fixture(params=[ThreadPlaces, TaskPlaces])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def taken(places: Places) -> list[int]:
    """All places that are free now."""
    found = []
    while places._free:
        found.append(places.take() if isinstance(places, ThreadPlaces) else places.free())
    return [one for one in found if one is not None]


def give(places: Places, some: list[int]) -> None:
    for one in some:
        places.give(one)


def test_at_first_there_are_fewer_than_the_driver_makes_connections_at_a_time(kind: Any) -> None:
    places = kind(client(), 1)
    assert taken(places) == [NEW] * 3
    with within(1, urgent=True):
        assert (places.take() if kind is ThreadPlaces else places.free()) == NONE, "a renewal makes the fourth"


def test_each_answer_on_a_new_connection_makes_room_for_one_more_and_one_is_kept_free(kind: Any) -> None:
    places = kind(client(), 1)
    sizes = []
    for _ in range(4):
        some = taken(places)
        sizes.append(len(some))
        give(places, some)
    assert sizes == [3, 6, 9, 9]
    assert Counter(taken(places)) == {KNOWN: 6, NEW: 3}


def test_connections_that_exist_are_used_first(kind: Any) -> None:
    places = kind(client(), 1)
    give(places, taken(places))
    assert taken(places) == [KNOWN] * 3 + [NEW] * 3


@pytest.mark.parametrize(
    ("most", "connecting", "expected"), [(1, 4, 1), (2, 4, 1), (3, 2, 1), (10, 1, 1), (100, 2, 1), (None, 4, 3)]
)
def test_there_is_always_at_least_one_and_never_more_than_the_pool_has(
    kind: Any, most: float | None, connecting: int, expected: int
) -> None:
    places = kind(client(most, connecting), 1)
    assert len(taken(places)) == expected
    for _ in range(300):
        give(places, [NEW] * expected)
        some = taken(places)
        if most is not None:
            assert len(some) <= max(1, most - 1)
        give(places, [one for one in some if one == KNOWN])


def test_an_error_of_the_server_leaves_the_connection_a_time_out_does_not(kind: Any) -> None:
    places = kind(client(), 1)
    give(places, taken(places))
    first, second, *others = taken(places)
    places.fail(first, OperationFailure("no"))
    places.fail(second, NetworkTimeout("timed out"))
    give(places, [one for one in others if one == KNOWN])
    assert Counter(taken(places)) == {KNOWN: 2}


def test_a_broken_connection_is_the_end_of_all(kind: Any) -> None:
    places = kind(client(), 1)
    for _ in range(3):
        give(places, taken(places))
    first = places.take() if kind is ThreadPlaces else places.free()
    assert first == KNOWN
    places.fail(first, AutoReconnect("connection closed"))
    assert taken(places) == [NEW] * 3
    give(places, [NEW] * 3)
    assert Counter(taken(places)) == {KNOWN: 3, NEW: 3}, "and it grows again"


def test_a_call_that_is_cancelled_may_have_closed_its_connection() -> None:
    places = TaskPlaces(client(), 1)
    give(places, taken(places))
    first = places.free()
    assert first == KNOWN
    places.fail(first, asyncio.CancelledError())
    assert Counter(taken(places)) == {KNOWN: 2, NEW: 3}


def wait(places: Places, number: int, seconds: float) -> list[Any]:
    """What so many get who wait at once for so long: a place, or an error."""
    if isinstance(places, ThreadPlaces):

        def one(_: int) -> Any:
            with within(seconds):
                try:
                    return places.take()
                except NoPlace as error:
                    return error

        with ThreadPoolExecutor(number) as pool:
            return list(pool.map(one, range(number)))

    async def together() -> list[Any]:
        with within(seconds):
            return await asyncio.gather(*(places.wait() for _ in range(number)), return_exceptions=True)

    return asyncio.run(together())


def test_a_command_that_takes_long_on_a_new_connection_keeps_nobody_waiting(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is made by then. So one more is, every now and then, as long as the pool has room."""
    monkeypatch.setattr(places_module, "ESTABLISHED", 0.1)
    places = kind(client(6, 2), 5)
    held = taken(places)
    assert held == [NEW]
    found = wait(places, 6, 1.5)
    lent = [one for one in found if one == NEW]
    assert len(lent) == 4 and sum(isinstance(one, NoPlace) for one in found) == 2, "five places, and one is kept free"
    give(places, held + lent)
    assert places.lent == 0 and Counter(taken(places)) == {KNOWN: 4, NEW: 1}


def test_what_was_lent_and_failed_is_no_place_any_more(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places_module, "ESTABLISHED", 0.05)
    places = kind(client(6, 2), 5)
    held = [*taken(places), *wait(places, 2, 1.0)]
    assert held == [NEW] * 3
    for one in held:
        places.fail(one, OperationFailure("no"))
    assert taken(places) == [NEW]


def test_while_connections_are_made_quickly_nothing_is_lent(kind: Any) -> None:
    places = kind(client(6, 2), 5)
    assert taken(places) == [NEW]
    assert all(isinstance(one, NoPlace) for one in wait(places, 3, 0.2)) and places.lent == 0
