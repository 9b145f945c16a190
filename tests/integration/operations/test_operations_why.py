"""Why a circuit opened, a task failed and a lock was lost is kept: without values, and by no command more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from goscope_django import figures, operations, runtime
from goscope_django.checkpoints import checkpointed, get_task
from goscope_django.circuits import CircuitBreaker, CircuitOpen, get_circuit
from goscope_django.contracts import Event
from goscope_django.process import counters, losses
from tests.support.commands import Recorder
from tests.support.operations import Operators, own_store, query

URLS = {"mongomock": "mongomock://"}


@pytest.fixture(params=["mongod", "mongomock"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = URLS.get(request.param) or request.getfixturevalue("mongo_url")
    return found


@pytest.fixture(params=["sync", "async"])
def by(request: pytest.FixtureRequest) -> Iterator[Operators]:
    found = Operators(request.param)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def from_zero() -> Iterator[None]:
    counters.forget()
    losses.forget()
    yield
    counters.forget()
    losses.forget()


def charge(canary: str, error: Exception) -> None:
    """A call whose argument must not be told."""
    raise error


def fail(breaker: CircuitBreaker, error: Exception) -> None:
    with pytest.raises(type(error)):
        admitted(breaker, charge, "canary", error)


def admitted(breaker: CircuitBreaker, fn: Callable[..., Any], *args: Any) -> Any:
    """Call ``fn`` as soon as the circuit lets it."""
    while True:
        try:
            return breaker.call(fn, *args)
        except CircuitOpen as refused:
            time.sleep(refused.retry_after or 0.05)


def everything() -> str:
    """All that is stored, as text."""
    collections = ("circuit", "tasks", "checkpoints", "stats")
    return "".join(str(list(query(f"go_goscope_{name}", "find", {}))) for name in collections)


def test_a_circuit_keeps_what_opened_it_and_the_last_failure(url: str, by: Operators) -> None:
    with own_store(url):
        breaker = CircuitBreaker("bank", failure_threshold=2, reset_timeout=0.001)
        fail(breaker, ConnectionError("no answer from https://bank.example/pay?key=canary"))
        seen = get_circuit("bank")
        assert seen is not None and seen.opened_by is None
        assert str(seen.last_failure) == "ConnectionError: no answer from https://bank.example/pay?***"
        fail(breaker, TimeoutError("timed out after 5 s"))
        (item,) = by.see().circuits.items
        assert item.opened_by is not None and item.opened_by == item.last_failure
        assert (item.opened_by.type, item.opened_by.text) == ("TimeoutError", "timed out after 5 s")
        (needed,) = by.see().attention.items
        assert "TimeoutError: timed out after 5 s" in needed.sentence
        fail(breaker, OSError("the probe failed"))  # a trial call
        (item,) = by.see().circuits.items
        assert str(item.opened_by) == str(item.last_failure) == "OSError: the probe failed"
        assert "canary" not in everything()


def test_a_failure_that_another_package_recorded_has_no_reason_of_ours(url: str) -> None:
    with own_store(url):
        provider = runtime.adapter().circuit_breaker
        fail(CircuitBreaker("bank", failure_threshold=9), ValueError("ours"))
        query("go_goscope_circuit", "update_many", {}, [{"$set": {"lastFailure.at": None}}])
        provider.record_failure("bank", 5)
        seen = get_circuit("bank")
        assert seen is not None and seen.failure_count == 2
        assert seen.last_failure is None and seen.opened_by is None


def test_a_circuit_that_closes_no_longer_says_what_opened_it(url: str) -> None:
    with own_store(url):
        breaker = CircuitBreaker("bank", failure_threshold=1, reset_timeout=0.001)
        fail(breaker, ValueError("once"))
        admitted(breaker, lambda: None)
        seen = get_circuit("bank")
        assert seen is not None and (seen.state, seen.opened_by) == ("closed", None)
        assert str(seen.last_failure) == "ValueError: once"


@pytest.mark.parametrize("planted", ["text", 7, None, {}, {"at": "x"}, {"type": 1, "text": [], "at": 5}])
def test_whatever_stands_in_its_place_disturbs_nobody(planted: Any, url: str) -> None:
    with own_store(url):
        fail(CircuitBreaker("bank", failure_threshold=1), ValueError("once"))
        changed = {"openedBy": planted, "lastFailure": planted}
        query("go_goscope_circuit", "update_many", {}, {"$set": changed})
        with checkpointed("import"):
            pass
        query("go_goscope_tasks", "update_many", {}, {"$set": {"lastFailure": planted}})
        state = operations.state()
        assert (state.circuits.items[0].opened_by, state.circuits.items[0].last_failure) == (None, None)
        assert state.tasks.items[0].last_failure is None


def test_a_task_keeps_its_last_error_with_where_it_was_raised(url: str, by: Operators) -> None:
    with own_store(url):
        with pytest.raises(ValueError, match="canary"), checkpointed("import"):
            charge("canary", ValueError("no such row: 'canary'"))
        (item,) = by.see().tasks.items
        assert (item.status, item.failure) == ("failed", "ValueError: no such row: ***")
        assert item.last_failure is not None and item.last_failure.error == item.failure
        assert (item.last_failure.attempt, item.last_failure.at is not None) == (1, True)
        assert [one.rpartition(" ")[2] for one in item.last_failure.trace][-1] == "charge"
        assert "canary" not in everything()
        with checkpointed("import"):  # another run: the failure is not its own, and is still known
            seen = get_task("import")
            assert seen is not None and seen.error is None
            assert seen.last_failure is not None and seen.last_failure.attempt == 1


def test_nothing_of_an_exception_is_kept_where_that_is_turned_off(url: str) -> None:
    with own_store(url, RECORD_FAILURES=False):
        fail(CircuitBreaker("bank", failure_threshold=1), ValueError("text"))
        with pytest.raises(ValueError, match="text"), checkpointed("import"):
            raise ValueError("text")
        state = operations.state()
        assert (state.circuits.items[0].opened_by, state.circuits.items[0].last_failure) == (None, None)
        failure = state.tasks.items[0].last_failure
        assert failure is not None and (failure.error, failure.trace) == ("ValueError", ())


def test_a_lost_lease_is_kept_with_who_had_it(url: str, by: Operators) -> None:
    with own_store(url):
        for name in ("older", "newer"):
            runtime.emit("lock_lost", key=name, owner="web-1:4711, main, 0123456789abcdef", token=7)
        runtime.emit("task_lost", task_id="import", attempt=2)
        assert figures.flush()
        found = by.see().losses.items
        assert [(one.kind, one.key, one.token) for one in found] == [
            ("task", "import", None),
            ("lock", "newer", 7),
            ("lock", "older", 7),
        ]
        assert found[1].holder.startswith("web-1:4711") and found[1].age is not None and found[1].age < 60
        sentences = [one.sentence for one in by.see().attention.items]
        assert any("'newer', of web-1:4711, main." in one for one in sentences)


def test_losses_are_bounded_and_cost_nothing_where_there_are_none(mongo_url: str) -> None:
    recorder = Recorder()
    with own_store(mongo_url, CLIENT_OPTIONS={"event_listeners": [recorder]}):
        counters.count("locks_contended")
        figures.flush()
        recorder.clear()
        counters.count("locks_contended")
        assert figures.flush()
        assert recorder.names == ["update"]
        for number in range(50):
            losses.observe(Event("lock_lost", {"key": f"l{number}", "owner": "o", "token": number}))
        counters.count("locks_contended")
        assert figures.flush()
        assert len(operations.state().losses.items) == losses.MOST
        recorder.clear()
        counters.count("locks_contended")
        assert figures.flush()
        assert recorder.names == ["update"]


def test_what_is_recorded_costs_no_command_more(mongo_url: str) -> None:
    recorder = Recorder()
    with own_store(mongo_url, CLIENT_OPTIONS={"event_listeners": [recorder]}):
        breaker = CircuitBreaker("bank", failure_threshold=2)
        breaker.call(lambda: None)
        recorder.clear()
        breaker.call(lambda: None)
        assert recorder.names == []
        fail(breaker, ValueError("once"))
        fail(breaker, ValueError("twice"))
        assert [one for one in recorder.names if one != "find"] == ["findAndModify"] * 2
