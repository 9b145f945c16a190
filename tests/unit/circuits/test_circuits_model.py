"""Three processes on one circuit against a simple model, with time in the test's hand (Hypothesis, mongomock)."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from goscope_django import circuits, runtime
from goscope_django.circuits import registry as registry_module
from goscope_django.circuits import snapshot
from goscope_django.circuits.outcomes import Outcome
from goscope_django.circuits.registry import Registry
from goscope_django.circuits.snapshot import NEW, Options, Snapshot
from goscope_django.core.flow import carry_out
from goscope_django.exceptions import CircuitOpen
from goscope_django.mongodb.document.clock import LocalClock
from tests.support.circuits import own_store
from tests.support.long import examples

START = datetime(2026, 1, 1)  # noqa: DTZ001  (mongomock compares naive ones)
RESET, WINDOW, LEASE = 10_000, 60_000, 5_000
# Steps whose sums meet neither RESET nor LEASE: floats and milliseconds would differ at the boundary itself.
STEPS = (3_300, 7_100, 11_700, 31_300)
PROCESSES = st.integers(0, 2)
OUTCOMES = st.sampled_from(["success", "failure", "failure", "ignored"])


class Time:
    """Milliseconds since the start, as the server's clock and as every process's monotonic one."""

    def __init__(self) -> None:
        self.now = 0

    def moment(self, milliseconds: int = 0) -> datetime:
        return START + timedelta(milliseconds=self.now + milliseconds)

    def monotonic(self) -> float:
        return 5_000 + self.now / 1_000


@dataclass
class Model:
    """The whole state machine, as one would write it for a single process that never dies."""

    threshold: int
    successes_needed: int
    most: int
    state: str = "closed"
    generation: int = 0
    failures: list[int] = field(default_factory=list)
    count: int = 0
    opened: int = 0
    probes: dict[str, int] = field(default_factory=dict)
    successes: int = 0
    override: str | None = None

    def move(self, state: str, now: int) -> None:
        self.state = state
        self.generation += 1
        self.failures, self.successes = [], 0
        if state == "open":
            self.opened = now
        if state == "closed":
            self.count = 0

    def admits(self, now: int) -> str:
        """``run``, ``probe`` or ``refuse``."""
        if self.override:
            return "run" if self.override == "closed" else "refuse"
        if self.state == "closed":
            return "run"
        if self.state == "open" and now - self.opened < RESET:
            return "refuse"
        self.probes = {one: until for one, until in self.probes.items() if until > now}
        if len(self.probes) >= self.most:  # of whatever generation: each of them runs
            return "refuse"
        if self.state == "open":
            self.move("half-open", now)
        return "probe"

    def ended(self, generation: int, outcome: Outcome, now: int, *, known: bool) -> None:
        """A call through the closed circuit ended; ``known``: its process knew of failures."""
        if self.state != "closed" or self.override or generation != self.generation:
            return
        if outcome == "failure":
            self.failures = [*(one for one in self.failures if one > now - WINDOW), now]
            self.count = len(self.failures)
            if self.count >= self.threshold:
                self.move("open", now)
        elif outcome == "success" and known:
            self.failures, self.count = [], 0

    def probed(self, claim: str, generation: int, outcome: Outcome, now: int) -> None:
        live = self.probes.pop(claim, 0) > now
        if self.state != "half-open" or self.override or generation != self.generation:
            return
        if outcome == "ignored" or not live:
            return
        if outcome == "failure":
            count = self.count + 1
            self.move("open", now)
            self.count = count
            return
        self.successes += 1
        if self.successes >= self.successes_needed:
            self.move("closed", now)


@dataclass
class Call:
    """A call that runs in a process, and what the model let it run as."""

    registry: Registry
    snap: Snapshot
    forced: bool
    generation: int


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.time = Time()
        self.stack = ExitStack()
        patch = mock.patch.object
        self.stack.enter_context(patch(LocalClock, "_moment", lambda _, milliseconds=0: self.time.moment(milliseconds)))
        utc = timezone.utc  # noqa: UP017
        self.stack.enter_context(patch(LocalClock, "read_stamp", lambda *_: self.time.moment().replace(tzinfo=utc)))
        for module in (registry_module, snapshot):
            self.stack.enter_context(patch(module, "time", mock.Mock(monotonic=self.time.monotonic)))
        self.stack.enter_context(own_store("mongomock://"))

    def teardown(self) -> None:
        self.stack.close()

    @initialize(threshold=st.integers(1, 3), needed=st.integers(1, 3), most=st.integers(1, 2))
    def begin(self, threshold: int, needed: int, most: int) -> None:
        self.model = Model(threshold, needed, most)
        self.options = Options(threshold, RESET / 1_000, needed, most, WINDOW / 1_000, LEASE / 1_000)
        self.processes = [Registry(runtime.adapter()) for _ in range(3)]
        self.running: list[Call] = []
        self.quiet = 0

    def refresh(self, registry: Registry) -> None:
        registry.view("it").snap = NEW
        registry.due = 0.0

    @rule(step=st.sampled_from(STEPS))
    def time_passes(self, step: int) -> None:
        self.time.now += step

    def enter(self, registry: Registry) -> Call | None:
        self.refresh(registry)
        expected = self.model.admits(self.time.now)
        snap: Snapshot | None = None
        with suppress(CircuitOpen):
            snap = carry_out(registry.entering("it", self.options))
        assert expected == ("refuse" if snap is None else "run" if snap.probe is None else "probe")
        if snap is None:
            return None
        if snap.probe is not None:
            self.model.probes[snap.probe] = self.time.now + LEASE
        return Call(registry, snap, self.model.override is not None, self.model.generation)

    @rule(processes=st.lists(PROCESSES, min_size=1, max_size=3))
    def long_calls_come(self, processes: list[int]) -> None:
        for process in processes:
            call = self.enter(self.processes[process])
            if call is not None:
                self.running.append(call)

    @rule(calls=st.lists(st.tuples(PROCESSES, OUTCOMES), min_size=1, max_size=4))
    def short_calls_come(self, calls: list[tuple[int, Outcome]]) -> None:
        for process, outcome in calls:
            call = self.enter(self.processes[process])
            if call is not None:
                self.leave(call, outcome, fresh=False)

    @rule(process=PROCESSES, step=st.sampled_from(STEPS))
    def an_outage_begins(self, process: int, step: int) -> None:
        self.short_calls_come([(process, "failure")] * self.model.threshold)
        self.time_passes(step)

    @rule(process=PROCESSES)
    def it_recovers(self, process: int) -> None:
        self.time_passes(STEPS[-1])
        self.short_calls_come([(process, "success")] * self.model.successes_needed)

    @rule(ends=st.lists(st.tuples(st.integers(0, 9), st.none() | OUTCOMES, st.booleans()), min_size=1, max_size=3))
    def long_calls_end(self, ends: list[tuple[int, Outcome | None, bool]]) -> None:
        for which, outcome, fresh in ends:
            if self.running:
                call = self.running.pop(which % len(self.running))
                if outcome is not None:  # else its process was killed: nobody ever hears of it again
                    self.leave(call, outcome, fresh=fresh)

    def leave(self, call: Call, outcome: Outcome, *, fresh: bool) -> None:
        registry, snap = call.registry, call.snap
        if fresh:
            self.refresh(registry)
            carry_out(registry.refreshed(registry.view("it")))
        known = registry.view("it").snap.failures > 0
        carry_out(registry.leaving("it", snap, outcome, self.options))
        if call.forced:
            return
        if snap.probe is not None:
            self.model.probed(snap.probe, call.generation, outcome, self.time.now)
        else:
            self.model.ended(call.generation, outcome, self.time.now, known=known)

    @rule(action=st.sampled_from(["force_open", "force_close", "reset", "reset"]), seen=st.sampled_from([None, 0, -1]))
    def an_operator_acts(self, action: str, seen: int | None) -> None:
        if self.quiet:  # or circuits would be forced most of the time
            self.quiet -= 1
            return
        self.quiet = 3
        expected = None if seen is None else self.model.generation + seen
        exists = circuits.get_circuit("it") is not None
        if expected is not None and expected < 0:
            return
        found = getattr(circuits, action)("it", "why", expected_generation=expected)
        if seen == -1 or (action == "reset" and not exists):
            assert found is None
            return
        assert found is not None
        self.model.move("open" if action == "force_open" else "closed", self.time.now)
        self.model.override = {"force_open": "open", "force_close": "closed", "reset": None}[action]

    @invariant()
    def the_document_is_as_the_model_says(self) -> None:
        found = circuits.get_circuit("it")
        model = getattr(self, "model", None)
        if found is None or model is None:
            assert model is None or (model.state, model.generation) == ("closed", 0)
            return
        assert found.state == (model.override or model.state)
        assert (found.generation, found.failure_count) == (model.generation, model.count)
        live = {one for one, until in model.probes.items() if until > self.time.now}
        if model.state == "half-open" and not model.override:
            assert {one.id for one in found.probes} == live
            assert len(live) <= model.most
            assert found.successes == model.successes
        assert len(found.history) <= 20


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=examples(100), stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
