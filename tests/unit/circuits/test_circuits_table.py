"""The circuit's table, held against the two things that move by it: the document's updates and the local circuit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from goscope_django import runtime
from goscope_django.circuits.snapshot import LocalCircuit, Options, Snapshot
from goscope_django.contracts import CIRCUIT_STATES, CircuitState
from goscope_django.mongodb.circuits.flows import CircuitFlows
from goscope_django.mongodb.circuits.table import COMMANDS, MOVES, Happening
from tests.support.circuits import document, documents, own_store, shown

OPTIONS = Options(2, 30.0, 2, 1, 60.0)
HAPPENINGS: tuple[Happening, ...] = ("threshold", "probe_granted", "probes_succeeded", "probe_failed")


def test_the_table_is_what_the_contract_says() -> None:
    assert {(at, what): move.to for (at, what), move in MOVES.items()} == {
        ("closed", "threshold"): "open",
        ("open", "probe_granted"): "half-open",
        ("half-open", "probes_succeeded"): "closed",
        ("half-open", "probe_failed"): "open",
    }


@pytest.fixture
def flows() -> Iterator[CircuitFlows]:
    with own_store("mongomock://") as prefix:
        yield CircuitFlows(prefix)


def prepared(flows: CircuitFlows, state: CircuitState) -> None:
    """A circuit in ``state`` with all that any happening needs: a failure, a running probe, a success, an old
    opening."""
    run = runtime.adapter().store.run
    run(flows.failed, "it", 0, 1, 60_000, 30_000)
    if state != "open":
        run(flows.admit, "it", "b" * 32, 1, 1, 60_000)
        found = document("it")
        if not found or found["state"] != "half-open":  # opened within this very millisecond
            prepared_again = run(flows.admit, "it", "b" * 32, 1, 1, 60_000)
            assert prepared_again.document
    moment = document("it")
    assert moment
    changes: dict[str, Any] = {"state": state, "generation": 5, "successes": 1, "history": []}
    if state == "closed":
        changes |= {"failureCount": 1, "failures": [{"at": moment["updatedAt"], "n": 1}]}
    if state == "open":
        changes |= {"probes": [{"id": "b" * 32, "until": moment["updatedAt"].replace(year=9000)}]}
    documents().update_one({"_id": moment["_id"]}, {"$set": changes})


@pytest.mark.parametrize("happening", HAPPENINGS)
@pytest.mark.parametrize("state", CIRCUIT_STATES)
def test_the_document_moves_by_the_table(flows: CircuitFlows, state: CircuitState, happening: Happening) -> None:
    prepared(flows, state)
    actions: dict[Happening, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "threshold": (flows.failed, ("it", 5, 2, 60_000, 30_000)),
        "probe_granted": (flows.admit, ("it", "d" * 32, 1, 9, 60_000)),
        "probes_succeeded": (flows.probe_succeeded, ("it", 5, "b" * 32, 2)),
        "probe_failed": (flows.probe_failed, ("it", 5, "b" * 32, 30_000)),
    }
    operation, args = actions[happening]
    runtime.adapter().store.run(operation, *args)
    move, found = MOVES.get((state, happening)), shown("it")
    assert found.state == (move.to if move else state)
    assert found.generation == (6 if move else 5)
    assert [(one.from_state, one.to_state, one.reason) for one in found.history] == (
        [(state, move.to, move.reason)] if move else []
    )


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize("state", CIRCUIT_STATES)
def test_operators_move_it_from_anywhere(flows: CircuitFlows, state: CircuitState, command: Any) -> None:
    prepared(flows, state)
    runtime.adapter().store.run(flows.command, "it", command, "why", None)
    found = shown("it")
    assert found.state == COMMANDS[command].to
    assert (found.override is None) == (command == "reset")
    assert (found.history[-1].reason, found.history[-1].note) == ("operator", "why")


@pytest.mark.parametrize("happening", HAPPENINGS)
@pytest.mark.parametrize("state", CIRCUIT_STATES)
def test_the_local_circuit_moves_by_the_table(state: CircuitState, happening: Happening) -> None:
    local = LocalCircuit("it", Snapshot(state, generation=5))
    now = 1_000_000.0
    local.failures, local.successes = [now], 1
    local.probes = {} if happening == "probe_granted" else {"p": now + 60}
    if happening == "threshold":
        local.failed(5, OPTIONS, now)
    elif happening == "probe_granted":
        local.admit("q", OPTIONS, 60.0, now)
    else:
        local.probed("p", 5, "success" if happening == "probes_succeeded" else "failure", OPTIONS, now)
    move = MOVES.get((state, happening))
    assert local.state == (move.to if move else state)
    assert local.generation == (6 if move else 5)


class TestLocalCircuit:
    """What the table does not say: the window, the lease of a probe, generations, and an operator's override
    from before."""

    def test_old_failures_do_not_count(self) -> None:
        local = LocalCircuit("it", Snapshot())
        local.failed(0, OPTIONS, 1_000.0)
        local.failed(0, OPTIONS, 1_061.0)
        assert len(local.failures) == 1
        local.failed(0, OPTIONS, 1_062.0)
        assert local.state == "open"

    def test_it_is_refused_until_the_reset_timeout(self) -> None:
        local = LocalCircuit("it", Snapshot("open", opened=1_000.0))
        assert not local.admit("a", OPTIONS, 10.0, 1_029.0)
        assert local.admit("a", OPTIONS, 10.0, 1_030.0)
        assert not local.admit("b", OPTIONS, 10.0, 1_039.0)
        assert local.admit("b", OPTIONS, 10.0, 1_040.0), "the first one's lease has ended"
        local.probed("a", local.generation, "failure", OPTIONS, 1_041.0)
        assert local.state == "half-open"

    def test_a_probe_that_says_nothing_frees_its_place(self) -> None:
        local = LocalCircuit("it", Snapshot("half-open"))
        assert local.admit("a", OPTIONS, 10.0, 1.0)
        local.probed("a", 0, "ignored", OPTIONS, 2.0)
        assert (local.state, local.successes) == ("half-open", 0)
        assert local.admit("b", OPTIONS, 10.0, 3.0)

    def test_late_outcomes_are_dropped(self) -> None:
        local = LocalCircuit("it", Snapshot(generation=3))
        for _ in range(3):
            local.failed(2, OPTIONS, 1.0)
        assert local.state == "closed"

    @pytest.mark.parametrize("forced", ["open", "closed"])
    def test_an_override_still_holds(self, forced: CircuitState) -> None:
        local = LocalCircuit("it", Snapshot("closed", forced=forced))
        for _ in range(3):
            local.failed(0, OPTIONS, 1.0)
        assert not local.admit("a", OPTIONS, 1.0, 9e9)
        assert local.snapshot(5.0).forced == forced
        assert (local.snapshot(5.0).closed_until == 5.0) == (forced == "closed")
