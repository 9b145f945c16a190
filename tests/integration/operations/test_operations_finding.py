"""Finding: every order, every state and a search give what a plain reading of everything gives, page by page."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from goscope_django import operations, runtime
from goscope_django.circuits import CircuitBreaker
from goscope_django.exceptions import InvalidValue
from goscope_django.operations import SECTION_ORDERS, SECTION_STATES, State
from goscope_django.operations.collect import COMMANDS
from tests.support.commands import Recorder
from tests.support.operations import Operators, fill, own_store, query, soon


def back(moment: Any) -> float | None:
    """The earlier the greater, as ages are, but not on the move."""
    return None if moment is None else -moment.timestamp()


VALUE: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("locks", "held"): lambda one: back(one.created_at),
    ("locks", "left"): lambda one: one.expires_at,
    ("circuits", "failures"): lambda one: one.failure_count,
    ("circuits", "next"): lambda one: one.opened_at if one.retry_after is not None else None,
    ("circuits", "changed"): lambda one: one.updated_at,
    ("tasks", "name"): lambda one: one.task_id,
    ("tasks", "left"): lambda one: one.estimated_time_remaining if one.status == "running" else None,
    ("tasks", "heard"): lambda one: back(one.heartbeat_at) if one.status in ("running", "stalled") else None,
    ("tasks", "rate"): lambda one: one.rate if one.status in ("running", "stalled") else None,
    ("idempotency", "left"): lambda one: one.expires_at,
    ("idempotency", "age"): lambda one: back(one.updated_at),
    ("flights", "left"): lambda one: one.expires_at,
    ("flights", "age"): lambda one: back(one.started_at),
}
KEY = {"circuits": "name", "tasks": "task_id"}


def various() -> None:
    """Things that differ in all that they are sorted by."""
    fill(locks=9, circuits=9, tasks=9, flights=7, records=8)
    prefix = runtime.adapter().key_prefix
    for n in range(9):
        moments = {"createdAt": soon(-(n * 37 % 10) - 1), "expiresAt": soon(900 + n * 53 % 9), "owner": f"w{n % 4}"}
        query("go_goscope_locks", "update_one", {"_id": f"{prefix}lock:l{n:05}"}, {"$set": moments})
        moved = {"updatedAt": soon(-(n * 5 % 9) - 1), "openedAt": soon(-(n * 5 % 9) - 1), "failureCount": n * 7 % 5}
        query("go_goscope_circuit", "update_one", {"_id": f"{prefix}circuit:c{n:04}"}, {"$set": moved})
        rate = {
            "rate": None if n == 3 else float(n * 11 % 6),
            "heartbeatAt": soon(-(n * 3 % 7)),
            "progress": n * 31 % 90,
        }
        query("go_goscope_tasks", "update_one", {"_id": f"{prefix}t{n:04}"}, {"$set": rate})
    query("go_goscope_tasks", "update_one", {"_id": f"{prefix}t0008"}, {"$set": {"status": "failed"}})
    for n in range(7):
        moments = {"startedAt": soon(-(n * 3 % 7)), "expiresAt": soon(900 + n * 5 % 7), "leader": f"w{n % 3}"}
        query("go_goscope_flights", "update_one", {"_id": f"{prefix}flight:f{n:04}"}, {"$set": moments})
    for n in range(8):
        moments = {"updatedAt": soon(-(n * 3 % 8)), "expiresAt": soon(900 + n * 5 % 8)}
        query("go_goscope_idempotency", "update_one", {"_id": f"{prefix}i{n:04}"}, {"$set": moments})
    operations.open_circuit("c0000")


@pytest.fixture(params=["mongod", "mongomock"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    url = "mongomock://" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    with own_store(url):
        yield request.param


def walked(name: str, see: Callable[..., State] = operations.state, **asked: Any) -> tuple[list[Any], Any]:
    """All items of a section, page by page, and the section of the first page."""
    items: list[Any] = []
    cursor, first = None, None
    for _ in range(20):
        found = getattr(see(limit=4, cursors={name: cursor}, **asked), name)
        assert found.error is None
        first = first or found
        items += found.items
        cursor = found.next
        if cursor is None:
            return items, first
        assert found.items
    raise AssertionError("the pages do not end")


def keys(name: str, items: Any) -> list[str]:
    return [getattr(one, KEY.get(name, "key")) for one in items]


@pytest.mark.parametrize("name", SECTION_ORDERS)
def test_every_order_is_that_of_the_values_shown(name: str, store: str) -> None:
    various()
    everything = list(getattr(operations.state(limit=100), name).items)
    for column, sign in itertools.product(SECTION_ORDERS[name], ("", "-")):
        found, first = walked(name, orders={name: sign + column})
        assert (first.total, first.matching) == (len(everything), len(everything))
        assert sorted(keys(name, found)) == sorted(keys(name, everything)), column
        value = VALUE.get((name, column), lambda one, column=column: getattr(one, column))
        shown = [one for one in map(value, found) if one is not None]
        if (name, column) in (("idempotency", "key"), ("idempotency", "state")):
            kinds = [one.state for one in found]
            assert kinds == sorted(kinds, reverse=not sign), (column, sign)
        else:
            assert shown == sorted(shown, reverse=bool(sign)), (column, sign)
        missing = [value(one) is None for one in found]
        assert missing == sorted(missing) or name in ("locks", "flights", "idempotency"), column


@pytest.mark.parametrize("name", SECTION_STATES)
def test_a_state_shows_its_own_and_leaves_the_totals(name: str, store: str) -> None:
    various()
    before = operations.state(limit=100)
    everything = getattr(before, name).items
    for state in SECTION_STATES[name]:
        if name == "locks":
            continue
        for order in ("", f"-{SECTION_ORDERS[name][-1]}", f"-{SECTION_ORDERS[name][0]}"):
            found, first = walked(name, states={name: state}, orders={name: order})
            expected = [
                one
                for one in everything
                if state == getattr(one, "state", getattr(one, "status", None))
                or (state == "forced" and one.override is not None)
            ]
            assert sorted(keys(name, found)) == sorted(keys(name, expected)), (state, order)
            assert (first.total, first.matching) == (len(everything), len(expected))
    if name == "tasks":
        assert operations.state(states={"tasks": "stalled"}).tasks.by_status == before.tasks.by_status
        assert before.tasks.by_status["stalled"] and before.tasks.by_status["failed"] == 1
    if name == "circuits":
        circuits = operations.state(states={"circuits": "forced"}).circuits
        assert (circuits.by_state, circuits.forced) == (before.circuits.by_state, 1)


def test_a_search_knows_states(store: str) -> None:
    various()
    found = operations.state(search="stalled")
    assert {one.status for one in found.tasks.items} == {"stalled"} and found.tasks.matching > 1
    assert found.locks.matching == 0 and found.locks.total == 9
    found = operations.state(search="half")
    assert {one.state for one in found.circuits.items} == {"half-open"}
    assert {one.state for one in operations.state(search="Open").circuits.items} == {"open"}
    assert keys("circuits", operations.state(search="forced").circuits.items) == ["c0000"]
    found = operations.state(search="in progress")
    assert {one.state for one in found.idempotency.items} == {"in_progress"}
    assert found.idempotency.matching == found.idempotency.in_progress == 4


def wait(prefix: str, *waits: tuple[str, str, int, float], process: str = "web-1:7") -> None:
    """A process has told that it waits."""
    minute = soon(0).replace(second=0, microsecond=0)
    told = {"at": soon(0), "waits": [list(one) for one in waits]}
    query(
        "go_goscope_stats",
        "update_one",
        {"_id": f"{prefix}minute:{minute:%Y-%m-%dT%H:%M}"},
        {"$set": {f"w.{process}": told}, "$setOnInsert": {"at": minute, "expiresAt": soon(600)}},
        upsert=True,
    )


def test_locks_that_others_wait_for(store: str) -> None:
    fill(locks=9)
    prefix = runtime.adapter().key_prefix
    wait(prefix, ("lock", "l00004", 2, 3.0), ("lock", "l00007", 1, 9.0), ("lock", "gone", 5, 1.0))
    wait(prefix, ("lock", "l00004", 3, 12.0), ("flight", "l00001", 1, 1.0), process="web-2:8")
    items, first = walked("locks", orders={"locks": "-waiters"})
    assert keys("locks", items)[:3] == ["l00004", "l00007", "l00000"]
    assert [(one.waiters, one.longest_wait) for one in items[:3]] == [(5, 12.0), (1, 9.0), (0, None)]
    assert sorted(keys("locks", items)) == [f"l{n:05}" for n in range(9)]
    items, _ = walked("locks", orders={"locks": "waiters"})
    assert keys("locks", items)[-2:] == ["l00007", "l00004"]
    assert sorted(keys("locks", items)) == [f"l{n:05}" for n in range(9)]
    for order, expected in (
        ("", ["l00004", "l00007"]),
        ("-key", ["l00007", "l00004"]),
        ("-token", ["l00007", "l00004"]),
    ):
        items, first = walked("locks", states={"locks": "waited"}, orders={"locks": order})
        assert keys("locks", items) == expected
        assert (first.total, first.matching) == (9, 2)
    # Who types a process sees what it waits for, too.
    assert keys("locks", operations.state(search="web-2:8").locks.items) == ["l00004"]
    assert keys("locks", operations.state(search="web-").locks.items) == ["l00004", "l00007"]
    found = operations.state(search="l0000", states={"locks": "waited"}, orders={"locks": "-waiters"}).locks
    assert (keys("locks", found.items), found.total, found.matching) == (["l00004", "l00007"], 9, 2)


def test_what_makes_no_sense_is_refused(store: str) -> None:
    for wrong in (
        {"states": {"locks": "open"}},
        {"states": {"waits": "x"}},
        {"states": {"flights": "flying"}},
        {"orders": {"locks": "value"}},
        {"orders": {"locks": "--held"}},
        {"orders": {"caches": "key"}},
    ):
        with pytest.raises(InvalidValue):
            operations.state(**wrong)  # type: ignore[arg-type]
    fill(locks=3)
    for cursor in ("x", "-1", "9" * 30, "²"):
        found = operations.state(limit=2, orders={"locks": "-held"}, cursors={"locks": cursor}).locks
        assert found.error is None and len(found.items) == 2


def test_it_costs_a_bounded_number_of_commands(mongo_url: str) -> None:
    recorder = Recorder()
    with own_store(mongo_url, client_options={"event_listeners": [recorder]}):
        various()
        wait(runtime.adapter().key_prefix, ("lock", "l00004", 2, 3.0))
        most = 0
        for orders in (
            {"locks": "-waiters", "circuits": "next", "tasks": "-rate", "flights": "age", "idempotency": "age"},
            {},
        ):
            for asked in (
                {},
                {"search": "00"},
                {"states": {"locks": "waited", "circuits": "open", "tasks": "stalled", "idempotency": "completed"}},
            ):
                recorder.clear()
                operations.state(limit=3, orders=orders, **asked)
                most = max(most, len(recorder.names))
        assert most <= COMMANDS + 1  # one for the cache alias


def test_beyond_what_is_counted_keys_and_searches_reach_everything(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from goscope_django.mongodb import overview

    monkeypatch.setattr(overview, "MOST_STATES", 5)
    various()
    for name, column in (("circuits", "name"), ("tasks", "task_id")):
        items, first = walked(name)
        assert len(items) == 9 and first.at_least and first.total == 5
        found = getattr(operations.state(search="0008"), name)
        assert [getattr(one, column)[-4:] for one in found.items] == ["0008"]
        items, _ = walked(name, orders={name: f"-{SECTION_ORDERS[name][0]}"})
        assert len(items) == 9 and keys(name, items) == sorted(keys(name, items), reverse=True)
        assert len(walked(name, orders={name: f"-{SECTION_ORDERS[name][2]}"})[0]) == 5


def test_async_finds_the_same(mongo_url: str) -> None:
    by = Operators("async")
    with own_store(mongo_url):
        fill(locks=6, circuits=6, tasks=6, flights=6, records=6)
        CircuitBreaker("x").call(int)
        for name in SECTION_ORDERS:
            asked: dict[str, Any] = {
                "orders": {name: f"-{SECTION_ORDERS[name][-1]}"},
                "states": {name: (*SECTION_STATES[name], "")[0]},
                "search": "000",
            }
            found = [keys(name, walked(name, see, **asked)[0]) for see in (operations.state, by.see)]
            assert found[0] == found[1]
    by.close()
