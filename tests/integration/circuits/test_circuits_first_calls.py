"""What the first calls of many breakers send: each reads its own circuit, and after that one reads all of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from goscope_django import circuits, runtime
from goscope_django.circuits import CircuitBreaker, CircuitOpen, registry
from goscope_django.circuits.snapshot import Snapshot
from tests.support.commands import Recorder, on_server

pytestmark = pytest.mark.real
MANY = 300


@pytest.fixture
def sent(mongo_url: str) -> Iterator[Recorder]:
    recorder = Recorder()
    with on_server(mongo_url, client_options={"event_listeners": [recorder]}):
        registry.forget()
        runtime.adapter().ensure_indexes()
        runtime.adapter().store.executor().database["go_goscope_circuit"].delete_many({})
        circuits.force_open("number 7", "for the test")
        registry.forget()
        recorder.clear()
        yield recorder
    registry.forget()


def asked(recorder: Recorder) -> list[Any]:
    assert set(recorder.names) <= {"find"}, "and nothing else is sent"
    return [command["filter"]["key"] for command in recorder.commands]


def breakers() -> list[CircuitBreaker]:
    return [CircuitBreaker(f"number {number}") for number in range(MANY)]


def refused(breaker: CircuitBreaker) -> bool:
    try:
        breaker.call(lambda: None)
    except CircuitOpen:
        return True
    return False


def test_the_first_call_reads_its_own_circuit_and_no_other(sent: Recorder) -> None:
    every = breakers()
    assert [one.name for one in every if refused(one)] == ["number 7"]
    assert asked(sent) == [f"circuit:{one.name}" for one in every]


async def test_in_coroutines(sent: Recorder) -> None:
    async def nothing() -> None: ...

    await asyncio.gather(*(one.acall(nothing) for one in breakers()[8:40]))
    assert sorted(asked(sent)) == sorted(f"circuit:number {number}" for number in range(8, 40))


def test_after_that_all_in_use_are_read_together_with_one_command(sent: Recorder) -> None:
    every = breakers()
    for one in every:
        refused(one)
    sent.clear()
    known = registry.current()
    for view in known.views.values():
        view.snap, view.known_until = Snapshot(), 0.0  # what was read is a second old
    assert [one.name for one in every if refused(one)] == ["number 7"]
    (keys,) = asked(sent)
    assert sorted(keys["$in"]) == sorted(f"circuit:{one.name}" for one in every)


def test_many_threads_whose_first_call_it_is_read_it_once(sent: Recorder) -> None:
    breaker, gate = CircuitBreaker("number 1"), threading.Barrier(8)

    def work() -> bool:
        gate.wait()
        return refused(breaker)

    with ThreadPoolExecutor(8) as pool:
        assert not any(one.result() for one in [pool.submit(work) for _ in range(8)])
    assert asked(sent) == ["circuit:number 1"]


def test_another_breaker_of_the_same_name_reads_nothing(sent: Recorder) -> None:
    refused(CircuitBreaker("number 1"))
    refused(CircuitBreaker("number 1"))
    assert asked(sent) == ["circuit:number 1"]
