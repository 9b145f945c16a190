"""``single_flight`` on a real server: leases that are renewed, what is sent, and what becomes of damaged results."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from pymongo import MongoClient

from goscope_django import runtime
from goscope_django.core.flow import carry_out
from goscope_django.mongodb.single_flight.flows import FLIGHTS
from goscope_django.mongodb.single_flight.values import Entered, Terms
from goscope_django.single_flight import group as single_flight_group
from goscope_django.single_flight import policy as single_flight_policy
from goscope_django.single_flight import single_flight
from goscope_django.single_flight.group import pause
from goscope_django.single_flight.plan import flights
from tests.support.commands import Recorder, on_server
from tests.support.flights import Gate, await_until, roles, wait_until, waiting

rf = RequestFactory()
_numbers = itertools.count()
OTHER = Terms(60_000, 60_000, "another process", 10.0)


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(autouse=True)
def settings(mongo_url: str, recorder: Recorder) -> Iterator[None]:
    with on_server(mongo_url, client_options={"event_listeners": [recorder]}, KEY_PREFIX=f"{next(_numbers)}:"):
        if runtime.connection().pending:
            runtime.connection().prepare(5)
        runtime.adapter().ping()
        recorder.clear()
        yield
        assert not single_flight_group.group._entries, "somebody was left behind"


@pytest.fixture
def documents(mongo_url: str) -> Iterator[Any]:
    """The collection, past the package."""
    client: MongoClient[dict[str, Any]] = MongoClient(mongo_url, tz_aware=True)
    with client:
        found = client.get_default_database()[FLIGHTS]
        found.delete_many({})
        yield found


def elsewhere(fn: Any) -> tuple[str, Entered]:
    """Another process leads the flight of ``fn``, whose ``key`` is ``k``."""
    key = f"{inspect.getclosurevars(fn).nonlocals['policy'].name}:k"
    entered = flights().enter(key, OTHER, None, lambda *_: 0.01, 0.0)
    assert entered.claim is not None
    return key, entered


# Leases


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_lease_is_renewed_while_the_function_runs(documents: Any, mode: str) -> None:
    gate = Gate()

    @single_flight(timeout=0.3, key="k", name="the_lease_is_renewed.value")
    def value() -> str:
        gate.hold()
        return "done"

    @single_flight(timeout=0.3, key="k", name="the_lease_is_renewed.avalue")
    async def avalue() -> str:
        await gate.ahold()
        return "done"

    results: list[str] = []
    call: Callable[[], str] = value if mode == "sync" else lambda: asyncio.run(avalue())
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    wait_until(lambda: gate.inside == 1)
    first = documents.find_one({"claim": {"$ne": None}})
    wait_until(lambda: documents.find_one()["expiresAt"] > first["expiresAt"] + timedelta(seconds=0.6))
    now = documents.find_one()
    assert (now["claim"], now["startedAt"]) == (first["claim"], first["startedAt"])
    gate.open.set()
    thread.join(20)
    assert results == ["done"]


def test_a_leader_that_was_replaced_gives_its_result_to_its_own_caller_alone(documents: Any) -> None:
    gate = Gate()

    @single_flight(key="k", timeout=60, name="a_leader_that_was.value")
    def value() -> str:
        gate.hold()
        return "late"

    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(value()))
    thread.start()
    wait_until(lambda: gate.inside == 1)
    documents.update_one({}, {"$set": {"expiresAt": datetime(2020, 1, 1, tzinfo=UTC)}})
    key, heir = elsewhere(value)
    gate.open.set()
    thread.join(20)
    assert results == ["late"]
    assert documents.find_one()["claim"] == heir.claim
    assert flights().publish(key, heir, "value", "right", 0.0, OTHER) == "published"


def test_a_dead_leader_of_another_process_is_replaced_by_a_waiter(documents: Any) -> None:
    gate = Gate()
    gate.open.set()

    @single_flight(key="k", blocking_timeout=60, name="a_dead_leader_of.value")
    def value() -> str:
        gate.hold()
        return "heir"

    elsewhere(value)
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(value())) for _ in range(5)]
    for thread in threads:
        thread.start()
    wait_until(lambda: waiting() == 4)
    documents.update_one({}, {"$set": {"expiresAt": datetime(2020, 1, 1, tzinfo=UTC)}})
    for thread in threads:
        thread.join(20)
    assert results == ["heir"] * 5
    assert gate.entered == 1


# Results of other processes


def test_a_result_of_another_process_serves_all_who_were_waiting(recorder: Recorder) -> None:
    @single_flight(key="k", blocking_timeout=60, name="a_result_of_another.value")
    def value() -> str:
        return "own"

    key, leader = elsewhere(value)
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(value())) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_until(lambda: waiting() == 5)
    recorder.clear()
    wait_until(lambda: recorder.names.count("find") == 2)  # the flight was in the air when all waited
    flights().publish(key, leader, "value", "theirs", 0.1, OTHER)
    for thread in threads:
        thread.join(20)
    assert results == ["theirs"] * 6


async def test_tasks_are_served_by_another_process(recorder: Recorder) -> None:
    @single_flight(key="k", blocking_timeout=60, name="tasks_are_served_by.value")
    async def value() -> str:
        return "own"

    key, leader = elsewhere(value)
    tasks = [asyncio.ensure_future(value()) for _ in range(6)]
    await await_until(lambda: waiting() == 5)
    recorder.clear()
    await await_until(lambda: recorder.names.count("find") == 2)
    await flights().apublish(key, leader, "value", "theirs", 0.1, OTHER)
    assert await asyncio.gather(*tasks) == ["theirs"] * 6


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("value", {"__goscope__": 1, "t": "pickle", "v": 0, "p": b"forged", "s": b"x" * 32}),
        ("value", {"__goscope__": 99, "t": "x", "v": 0}),
        ("error", {"type": "x"}),
        ("error", None),
        ("odd", "x"),
        ("response", {"vary": []}),
        ("response", {"vary": [1]}),
        ("response", [1]),
        ("error", {"type": 5, "base": [], "args": 5, "state": [1], "message": {}}),
        ("value", {"__goscope__": 1, "t": "set", "v": [[[]]]}),
    ],
    ids=str,
)
def test_a_forged_or_damaged_result_is_not_used(recorder: Recorder, kind: str, value: Any) -> None:
    @single_flight(key="k", blocking_timeout=60, name="a_forged_or_damaged.own")
    def own() -> str:
        return "own"

    key, leader = elsewhere(own)
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(own()))
    thread.start()
    wait_until(lambda: "find" in recorder.names)
    flights().publish(key, leader, kind, value, 0.1, OTHER)
    thread.join(20)
    assert results == ["own"]


# What is sent


def test_to_lead_costs_two_commands(recorder: Recorder) -> None:
    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("x")

    view(rf.get("/a"))
    assert recorder.names == ["findAndModify", "update"]


async def test_to_lead_costs_a_task_two_commands(recorder: Recorder) -> None:
    @single_flight()
    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("x")

    await view(rf.get("/a"))
    assert recorder.names == ["findAndModify", "update"]


def test_waiters_of_the_leading_process_send_nothing(recorder: Recorder) -> None:
    gate = Gate()

    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        gate.hold()
        return HttpResponse("x")

    assert roles(gate.together([lambda: view(rf.get("/a"))] * 20)) == ["follower"] * 19 + ["leader"]
    assert recorder.names == ["findAndModify", "update"]


def test_other_methods_send_nothing(recorder: Recorder) -> None:
    @single_flight()
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("x")

    view(rf.post("/a"))
    assert recorder.names == []


def test_a_process_that_waits_has_one_contender_whatever_its_threads(recorder: Recorder) -> None:
    @single_flight(key="k", blocking_timeout=60, name="a_process_that_waits.value")
    def value() -> str:
        return "own"

    key, leader = elsewhere(value)
    recorder.clear()
    threads = [threading.Thread(target=value) for _ in range(20)]
    for thread in threads:
        thread.start()
    wait_until(lambda: waiting() == 19)
    wait_until(lambda: recorder.names.count("find") >= 5)
    assert recorder.names.count("findAndModify") == 1
    flights().publish(key, leader, "value", "theirs", 0.1, OTHER)
    for thread in threads:
        thread.join(20)


def test_a_look_that_finds_nothing_new_brings_no_result_along(recorder: Recorder) -> None:
    @single_flight(key="k", blocking_timeout=0.2, name="a_look_that_finds.value")
    def value() -> str:
        return "own"

    key, first = elsewhere(value)
    flights().publish(key, first, "value", "x" * 1_000_000, 0.1, OTHER)
    flights().enter(key, OTHER, None, lambda *_: 0.01, 0.0)
    recorder.clear()
    assert value() == "own"
    take = recorder.commands[0]
    assert "value" not in take["fields"]
    assert recorder.names.count("find") >= 1


def looks(seconds: float, callers: int, expected: float | None, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a process looks for a result that takes so many seconds, its first command at 0 included."""
    monkeypatch.setattr("random.uniform", lambda a, b: 1.0)
    times = [0.0]
    while times[-1] < seconds:
        times.append(times[-1] + pause(times[-1], times[-1], len(times), callers, expected))
    return times


@pytest.mark.parametrize("expected", [None, 1.0, 0.1, 30.0])
@pytest.mark.parametrize("callers", [1, 3, 20])
@pytest.mark.parametrize("seconds", [0.5, 1.0, 5.0])
def test_a_caller_has_at_most_one_command_for_each_100_ms_that_it_waits(
    seconds: float, callers: int, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = len(looks(seconds, callers, expected, monkeypatch))
    assert sent <= seconds * 10 * callers + 3


def test_a_result_that_comes_when_it_is_expected_is_found_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds in (0.97, 1.0, 1.03):
        found = looks(seconds, 1, 1.0, monkeypatch)
        assert found[-1] - found[-2] <= 0.021
        assert len(found) <= 12


def test_nobody_looks_less_often_than_a_result_is_kept() -> None:
    @single_flight(key="k", linger=0.15, name="nobody_looks_less_often.value")
    def value() -> str:
        return "x"

    policy = single_flight_policy.Policy(5, 10, "k", None, 0.15, None, name="value").on(value)
    plan = carry_out(policy.plan(value, (), {}))
    assert plan is not None
    pace = plan.pace(single_flight_group.Entry((0, "k")))
    assert all(pace(waited, waited, 5) <= 0.05 for waited in (0.0, 0.5, 5.0, 50.0))


# Processes


FORK = """
import os, sys, threading
import django
django.setup()
from goscope_django.single_flight import group as g
from goscope_django.single_flight import single_flight
inside, go = threading.Event(), threading.Event()

@single_flight(key="k", blocking_timeout=0.2)
def value():
    inside.set()
    go.wait(20)
    return "x"

thread = threading.Thread(target=value)
thread.start()
inside.wait(20)
pid = os.fork()
if pid == 0:
    os._exit(len(g.group._entries))
go.set()
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_forked_child_has_none_of_its_parent_s_flights() -> None:
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    script = "import django.core.mail as m; m.outbox = []\n" + FORK
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
