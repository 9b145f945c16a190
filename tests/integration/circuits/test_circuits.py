"""What a circuit breaker promises, over {mongomock, real mongod} x {sync, async}."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from goscope_django import circuits, runtime
from goscope_django.circuits import CircuitBreaker
from goscope_django.contracts import CircuitBreakerState
from tests.support.circuits import (
    KINDS,
    STORES,
    Boom,
    Caller,
    age,
    age_all_but_probes,
    caller,
    document,
    documents,
    heard,
    look_again,
    own_store,
    shown,
)


@pytest.fixture(params=[pytest.param(one, marks=[pytest.mark.real] if one == "real" else []) for one in STORES])
def prefix(request: pytest.FixtureRequest) -> Iterator[str]:
    url = request.getfixturevalue("mongo_url") if request.param == "real" else "mongomock://"
    with own_store(url) as found:
        yield found


@pytest.fixture(params=KINDS)
def by(prefix: str, request: pytest.FixtureRequest) -> Iterator[Caller]:
    with caller(request.param) as found:
        yield found


def fail(by: Caller, breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        assert by.ends(breaker, Boom()) == "Boom"


class TestClosed:
    def test_it_opens_at_the_threshold_and_refuses(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=3, reset_timeout=20)
        fail(by, breaker, 2)
        assert by.ends(breaker) == "ok"
        fail(by, breaker, 2)
        assert shown("supplier").state == "closed"
        fail(by, breaker, 1)
        assert by.ends(breaker) == "refused"
        found = shown("supplier")
        assert (found.state, found.failure_count, found.generation) == ("open", 3, 1)
        with pytest.raises(circuits.CircuitOpen) as caught:
            by.call(breaker, lambda: None)
        assert caught.value.name == "supplier"
        assert 15 < caught.value.retry_after <= 20

    def test_a_success_between_failures_starts_the_count_anew(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=3)
        for _ in range(4):
            fail(by, breaker, 2)
            assert by.ends(breaker) == "ok"
        assert shown("supplier").failure_count == 0
        assert shown("supplier").state == "closed"

    def test_failures_older_than_the_window_do_not_count(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=3, window=60)
        fail(by, breaker, 2)
        age("supplier", 61)
        fail(by, breaker, 1)
        assert shown("supplier").failure_count == 1
        age("supplier", 30)
        fail(by, breaker, 1)
        age("supplier", 29)
        fail(by, breaker, 1)
        assert shown("supplier").state == "open"

    def test_very_many_failures_are_counted_exactly_and_listed_in_brief(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=281, window=600)
        fail(by, breaker, 80)
        age("supplier", 300)
        fail(by, breaker, 120)
        found = document("supplier")
        assert found is not None
        assert found["failureCount"] == sum(one["n"] for one in found["failures"]) == 200
        assert len(found["failures"]) <= 110
        assert len({one["at"] for one in found["failures"] if one["n"] > 1}) <= 10
        age("supplier", 301)  # the first eighty are too old now
        fail(by, breaker, 1)
        assert shown("supplier").failure_count == 121
        fail(by, breaker, 159)
        assert (shown("supplier").state, shown("supplier").failure_count) == ("closed", 280)
        fail(by, breaker, 1)
        assert (shown("supplier").state, shown("supplier").failure_count) == ("open", 281)

    def test_excluded_exceptions_are_neither_success_nor_failure(self, by: Caller) -> None:
        breaker = CircuitBreaker(
            "supplier", failure_threshold=2, exclude=(KeyError, lambda error: "mine" in str(error))
        )
        fail(by, breaker, 1)
        assert by.ends(breaker, KeyError("x")) == "KeyError"
        assert by.ends(breaker, Boom("mine")) == "Boom"
        assert shown("supplier").failure_count == 1
        fail(by, breaker, 1)
        assert by.ends(breaker) == "refused"

    def test_an_exclude_that_fails_hides_neither_the_error_nor_the_failure(
        self, by: Caller, caplog: pytest.LogCaptureFixture
    ) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=2, exclude=lambda error: error.response.status == 404)
        with caplog.at_level(logging.ERROR, "goscope.circuits"):
            fail(by, breaker, 2)
        assert by.ends(breaker) == "refused"
        told = [one.getMessage() for one in caplog.records if "exclude" in one.getMessage()]
        assert len(told) == 1
        assert "AttributeError for Boom, which counts as a failure" in told[0]

    @pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit(), KeyboardInterrupt(), SystemExit()])
    def test_cancellation_is_ignored(self, by: Caller, error: BaseException) -> None:
        if by.name == "async" and not isinstance(error, asyncio.CancelledError):
            pytest.skip("the event loop keeps these for itself")
        breaker = CircuitBreaker("supplier", failure_threshold=1)
        assert by.ends(breaker, error) == type(error).__name__
        assert circuits.get_circuit("supplier") is None

    def test_a_failure_is_an_error_of_the_call_and_is_raised_as_it_is(self, by: Caller) -> None:
        error = Boom("this one")

        def body() -> None:
            raise error

        with pytest.raises(Boom) as caught:
            by.call(CircuitBreaker("supplier"), body)
        assert caught.value is error

    def test_a_circuit_of_another_name_or_prefix_is_not_touched(self, by: Caller) -> None:
        fail(by, CircuitBreaker("a", failure_threshold=1), 1)
        assert by.ends(CircuitBreaker("b", failure_threshold=1)) == "ok"
        with own_store("mongomock://"):
            assert by.ends(CircuitBreaker("a", failure_threshold=1)) == "ok"


class TestOpen:
    def test_after_the_reset_timeout_a_probe_runs_and_its_success_closes(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1, reset_timeout=30)
        fail(by, breaker, 1)
        age("supplier", 29)
        assert by.ends(breaker) == "refused"
        age("supplier", 2)
        assert shown("supplier").state == "open"
        assert shown("supplier").retry_after == 0
        assert by.ends(breaker) == "ok"
        found = shown("supplier")
        assert (found.state, found.failure_count, found.opened_at) == ("closed", 0, None)
        moves = [(one.from_state, one.to_state, one.reason) for one in found.history]
        assert moves == [
            ("closed", "open", "failures"),
            ("open", "half-open", "reset_timeout"),
            ("half-open", "closed", "probe"),
        ]

    def test_a_probe_that_fails_opens_again_for_a_whole_reset_timeout(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1, reset_timeout=30)
        fail(by, breaker, 1)
        age("supplier", 31)
        fail(by, breaker, 1)
        found = shown("supplier")
        assert (found.state, found.generation) == ("open", 3)
        assert found.retry_after is not None
        assert found.retry_after > 25
        assert by.ends(breaker) == "refused"

    def test_fallback_gets_the_arguments_of_a_refused_call_only(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1, fallback=lambda *args, **kwargs: (args, kwargs))
        fail(by, breaker, 1)
        assert by.call(breaker, lambda *_, **__: None, 1, a=2) == ((1,), {"a": 2})

    def test_breakers_of_one_name_go_by_their_own_options(self, by: Caller) -> None:
        fail(by, CircuitBreaker("supplier", failure_threshold=1, reset_timeout=30), 1)
        age("supplier", 10)
        assert by.ends(CircuitBreaker("supplier", reset_timeout=11)) == "refused"
        assert by.ends(CircuitBreaker("supplier", reset_timeout=9)) == "ok"


class TestHalfOpen:
    def opened(self, by: Caller, **options: Any) -> CircuitBreaker:
        breaker = CircuitBreaker("supplier", failure_threshold=1, reset_timeout=30, **options)
        fail(by, breaker, 1)
        age("supplier", 31)
        return breaker

    def test_no_more_probes_run_at_a_time_than_allowed(self, by: Caller) -> None:
        breaker = self.opened(by, half_open_max_calls=2, success_threshold=9)
        with by.running(breaker):
            assert len(shown("supplier").probes) == 1
            with by.running(breaker):
                assert by.ends(breaker) == "refused"
                look_again()
                assert by.ends(breaker) == "refused"
            assert by.ends(breaker) == "ok"
        assert shown("supplier").successes == 3
        assert shown("supplier").probes == ()

    def test_a_probe_keeps_its_place_while_the_circuit_opens_again(self, by: Caller) -> None:
        breaker = self.opened(by, half_open_max_calls=2, success_threshold=9)
        with by.running(breaker):
            assert by.ends(breaker, Boom()) == "Boom"
            age_all_but_probes("supplier", 31)
            with by.running(breaker):
                assert by.ends(breaker) == "refused", "the old one runs, and a new one"
                look_again()
                assert by.ends(breaker) == "refused"
            assert by.ends(breaker) == "ok"
            successes = shown("supplier").successes
        found = shown("supplier")
        assert (found.state, found.successes, found.probes) == ("half-open", successes, ()), "late, so it says nothing"

    @pytest.mark.parametrize("outcome", [None, Boom()])
    def test_nor_does_the_circuit_turn_half_open_while_as_many_run_as_may(
        self, by: Caller, outcome: BaseException | None
    ) -> None:
        breaker = self.opened(by)
        with by.running(breaker, outcome):
            circuits.reset("supplier")
            fail(by, breaker, 1)
            age_all_but_probes("supplier", 31)
            assert by.ends(breaker) == "refused"
            assert shown("supplier").state == "open"
        look_again()
        assert by.ends(breaker) == "ok"
        assert shown("supplier").state == "closed"

    def test_who_makes_a_probe_is_shown(self, by: Caller) -> None:
        with by.running(self.opened(by)):
            (probe,) = shown("supplier").probes
            assert probe.holder and probe.holder.startswith(f"{socket.gethostname()}:{os.getpid()}")

    def test_it_takes_success_threshold_successes_to_close(self, by: Caller) -> None:
        breaker = self.opened(by, success_threshold=3)
        for number in (1, 2):
            assert by.ends(breaker) == "ok"
            assert (shown("supplier").state, shown("supplier").successes) == ("half-open", number)
        assert by.ends(breaker) == "ok"
        assert (shown("supplier").state, shown("supplier").successes) == ("closed", 0)

    def test_one_failure_among_successes_opens_again_and_forgets_them(self, by: Caller) -> None:
        breaker = self.opened(by, success_threshold=3)
        assert by.ends(breaker) == "ok"
        assert by.ends(breaker, Boom()) == "Boom"
        age("supplier", 31)
        assert by.ends(breaker) == "ok"
        assert shown("supplier").successes == 1

    def test_a_probe_that_says_nothing_gives_its_place_back(self, by: Caller) -> None:
        breaker = self.opened(by, exclude=KeyError)
        assert by.ends(breaker, KeyError("x")) == "KeyError"
        assert by.ends(breaker, asyncio.CancelledError()) == "CancelledError"
        assert (shown("supplier").state, shown("supplier").probes) == ("half-open", ())
        assert by.ends(breaker) == "ok"

    def test_a_place_is_free_when_the_lease_of_its_probe_ends(self, by: Caller) -> None:
        breaker = self.opened(by, probe_timeout=10)
        with by.running(breaker, Boom()):
            age("supplier", 9)
            assert by.ends(breaker) == "refused"
            age("supplier", 2)
            assert shown("supplier").probes == ()
            with by.running(breaker):
                pass
            assert shown("supplier").state == "closed"
        assert shown("supplier").state == "closed", "the first probe's word came too late"

    def test_what_a_probe_says_after_its_lease_counts_for_nothing(self, by: Caller) -> None:
        breaker = self.opened(by, probe_timeout=10)
        for error in (Boom(), None):
            with by.running(breaker, error):
                age("supplier", 11)
            found = shown("supplier")
            assert (found.state, found.successes, found.generation) == ("half-open", 0, 2)

    def test_the_default_lease_is_default_lock_timeout(self, by: Caller) -> None:
        breaker = self.opened(by)
        with by.running(breaker):
            found = shown("supplier")
            lease = (found.probes[0].until - (found.updated_at or found.probes[0].until)).total_seconds()
            assert lease == pytest.approx(30, abs=0.1)  # mongomock reads this process's clock for each of them


class TestLate:
    def test_a_failure_of_a_call_admitted_before_the_circuit_closed_is_dropped(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1, reset_timeout=30)
        with by.running(breaker, Boom()):
            fail(by, breaker, 1)
            age("supplier", 31)
            assert by.ends(breaker) == "ok"
        found = shown("supplier")
        assert (found.state, found.failure_count, found.generation) == ("closed", 0, 3)

    def test_a_success_of_a_call_admitted_before_the_circuit_opened_does_not_close_it(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1)
        with by.running(breaker):
            fail(by, breaker, 1)
        assert shown("supplier").state == "open"

    def test_also_where_this_process_has_not_seen_the_move(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=5)
        fail(by, breaker, 1)
        flows = runtime.adapter().circuit_breaker
        with by.running(breaker, Boom()):
            flows.set_state("supplier", CircuitBreakerState("open", 9))
            flows.record_success("supplier")
        assert shown("supplier").failure_count == 0, "dropped by the store"
        fail(by, breaker, 1)  # and its answer taught this process the new generation
        assert shown("supplier").failure_count == 1


class TestOperators:
    def test_forced_open_refuses_whatever_calls_report(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1, reset_timeout=30)
        with by.running(breaker):
            found = by.operate("force_open", "supplier", "supplier's maintenance, $5 {a.b}")
            assert found.state == "open"
            assert found.override.reason == "supplier's maintenance, $5 {a.b}"
        age("supplier", 100)
        assert by.ends(breaker) == "refused"
        assert shown("supplier").override == found.override.__class__(
            "open", "supplier's maintenance, $5 {a.b}", found.override.at - timedelta(seconds=100)
        )
        look_again()
        assert by.ends(breaker) == "refused"

    def test_forced_closed_lets_all_through_and_counts_nothing(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1)
        fail(by, breaker, 1)
        by.operate("force_close", "supplier", "we know better")
        fail(by, breaker, 3)
        look_again()
        fail(by, breaker, 3)
        assert (shown("supplier").state, shown("supplier").failure_count) == ("closed", 0)
        assert shown("supplier").history[-1].note == "we know better"

    @pytest.mark.parametrize("forced", ["force_open", "force_close"])
    def test_reset_ends_the_override_and_starts_clean(self, by: Caller, forced: str) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=2)
        fail(by, breaker, 1)
        by.operate(forced, "supplier")
        found = by.operate("reset", "supplier", "done")
        assert (found.state, found.override, found.failure_count) == ("closed", None, 0)
        fail(by, breaker, 1)
        assert by.ends(breaker) == "ok"
        fail(by, breaker, 2)
        assert by.ends(breaker) == "refused"

    def test_an_outcome_from_before_the_override_is_dropped_after_it(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1)
        with by.running(breaker, Boom()):
            by.operate("force_close", "supplier")
            by.operate("reset", "supplier")
        assert shown("supplier").state == "closed"

    def test_a_call_admitted_by_an_override_reports_nothing(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1)
        by.operate("force_close", "supplier")
        with by.running(breaker, Boom()):
            by.operate("reset", "supplier")
        assert shown("supplier").state == "closed"

    def test_an_action_is_refused_if_the_circuit_has_moved_since_it_was_seen(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1)
        fail(by, breaker, 1)
        for action in ("force_open", "force_close", "reset"):
            assert by.operate(action, "supplier", expected_generation=0) is None
            assert by.operate(action, "supplier", expected_generation=7) is None
        before = shown("supplier")
        assert (before.generation, before.override) == (1, None)
        assert by.operate("force_close", "supplier", expected_generation=1).generation == 2

    def test_a_circuit_without_a_document_has_generation_0(self, by: Caller) -> None:
        assert by.operate("reset", "nothing") is None
        assert by.operate("force_open", "new", expected_generation=3) is None
        assert by.operate("get_circuit", "new") is None
        assert by.operate("force_open", "new", expected_generation=0).generation == 1

    def test_listing_is_by_name_and_within_the_prefix(self, by: Caller) -> None:
        for name in ("b", "a", "b2"):
            by.operate("force_open", name)
        documents().insert_one({"key": "elsewhere:circuit:c", "state": "open"})
        assert [one.name for one in by.operate("list_circuits")] == ["a", "b", "b2"]
        assert [one.name for one in by.operate("list_circuits", "b.?")] == ["b", "b2"]
        documents().delete_one({"key": "elsewhere:circuit:c"})


class TestObserving:
    def test_constructing_reading_and_calling_a_healthy_circuit_write_nothing(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier")
        assert by.ends(breaker) == "ok"
        assert by.operate("get_circuit", "supplier") is None
        assert by.operate("list_circuits") == []
        assert document("supplier") is None

    def test_looking_at_an_elapsed_circuit_leaves_it_open(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1, reset_timeout=30)
        fail(by, breaker, 1)
        age("supplier", 31)
        before = document("supplier")
        CircuitBreaker("supplier", failure_threshold=1)
        by.operate("get_circuit", "supplier")
        by.operate("list_circuits")
        assert document("supplier") == before

    def test_history_is_bounded(self, by: Caller) -> None:
        for number in range(25):
            by.operate("force_open", "supplier", str(number))
        assert [one.note for one in shown("supplier").history] == [str(number) for number in range(5, 25)]


class TestSignals:
    def test_each_move_is_told_once_with_its_reason(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=2, reset_timeout=30, success_threshold=2)
        with heard() as received:
            fail(by, breaker, 2)
            age("supplier", 31)
            fail(by, breaker, 1)
            age("supplier", 31)
            assert by.ends(breaker) == "ok"
            assert by.ends(breaker) == "ok"
            by.operate("force_open", "supplier")
            by.operate("force_open", "supplier")
            by.operate("reset", "supplier")
        assert received == [
            ("circuit_opened", {"name": "supplier", "reason": "failures", "retry_after": 30}),
            ("circuit_half_opened", {"name": "supplier"}),
            ("circuit_opened", {"name": "supplier", "reason": "probe", "retry_after": 30}),
            ("circuit_half_opened", {"name": "supplier"}),
            ("circuit_closed", {"name": "supplier", "reason": "probe"}),
            ("circuit_opened", {"name": "supplier", "reason": "operator", "retry_after": None}),
            ("circuit_closed", {"name": "supplier", "reason": "operator"}),
        ]


class TestDocumentsOfNode:
    """What the TypeScript package writes: the shared fields, dates from its own clock, null for what it does not
    know."""

    def write(self, prefix: str, **fields: Any) -> None:
        now = datetime.now(UTC)
        values = {"failureCount": 0, "lastFailureTime": None, "lastSuccessTime": None, "updatedAt": now, **fields}
        documents().update_one({"key": f"{prefix}circuit:supplier"}, {"$set": values}, upsert=True)
        look_again()

    def ago(self, seconds: float) -> datetime:
        return datetime.now(UTC) - timedelta(seconds=seconds)

    def test_open_counts_from_the_last_failure(self, by: Caller, prefix: str) -> None:
        breaker = CircuitBreaker("supplier", reset_timeout=30)
        self.write(prefix, state="open", failureCount=5, lastFailureTime=self.ago(10))
        with pytest.raises(circuits.CircuitOpen) as caught:
            by.call(breaker, lambda: None)
        assert 15 < caught.value.retry_after < 21
        self.write(prefix, state="open", failureCount=5, lastFailureTime=self.ago(31))
        assert by.ends(breaker) == "ok"
        assert shown("supplier").state == "closed"

    def test_open_without_a_failure_counts_from_the_update(self, by: Caller, prefix: str) -> None:
        breaker = CircuitBreaker("supplier", reset_timeout=30)
        self.write(prefix, state="open", updatedAt=self.ago(20))
        assert by.ends(breaker) == "refused"
        self.write(prefix, state="open", updatedAt=self.ago(31))
        assert by.ends(breaker) == "ok"

    def test_an_opening_in_the_far_future_holds_nobody_up(self, by: Caller, prefix: str) -> None:
        self.write(prefix, state="open", failureCount=5, lastFailureTime=self.ago(-3600))
        assert by.ends(CircuitBreaker("supplier", reset_timeout=30)) == "ok"

    def test_closed_by_node_is_closed(self, by: Caller, prefix: str) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=2)
        fail(by, breaker, 2)
        self.write(prefix, state="closed", lastSuccessTime=self.ago(0))
        assert by.ends(breaker) == "ok"
        fail(by, breaker, 1)
        assert by.ends(breaker) == "ok"

    def test_failures_of_both_add_up(self, by: Caller, prefix: str) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=5, window=60)
        fail(by, breaker, 2)
        self.write(prefix, state="closed", failureCount=4, lastFailureTime=self.ago(1))
        fail(by, breaker, 1)
        assert (shown("supplier").state, shown("supplier").failure_count) == ("open", 5)

    def test_old_failures_of_node_do_not_count(self, by: Caller, prefix: str) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=5, window=60)
        self.write(prefix, state="closed", failureCount=4, lastFailureTime=self.ago(61))
        fail(by, breaker, 1)
        assert (shown("supplier").state, shown("supplier").failure_count) == ("closed", 1)

    def test_our_failures_are_void_once_node_has_closed(self, by: Caller, prefix: str) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=3)
        fail(by, breaker, 2)
        self.write(prefix, state="closed", lastSuccessTime=self.ago(0))
        fail(by, breaker, 1)
        assert shown("supplier").failure_count == 1

    def test_half_open_by_node_admits_as_many_as_ours(self, by: Caller, prefix: str) -> None:
        breaker = CircuitBreaker("supplier", success_threshold=2)
        self.write(prefix, state="half-open")
        with by.running(breaker):
            assert by.ends(breaker) == "refused"
        assert by.ends(breaker) == "ok"
        assert shown("supplier").state == "closed"

    def test_an_unknown_state_reads_as_closed(self, by: Caller, prefix: str) -> None:
        self.write(prefix, state="ajar")
        breaker = CircuitBreaker("supplier", failure_threshold=1)
        assert by.ends(breaker) == "ok"
        fail(by, breaker, 1)
        assert by.ends(breaker) == "refused"


class TestProvider:
    """``adapter.circuit_breaker`` and a breaker on one circuit."""

    def test_its_moves_stand_in_the_history(self, prefix: str) -> None:
        provider = runtime.adapter().circuit_breaker
        assert [provider.record_failure("supplier", 2) for _ in range(3)] == [1, 2, 3]
        assert (shown("supplier").state, shown("supplier").generation) == ("open", 1)
        provider.record_success("supplier")
        provider.record_success("supplier")
        reasons = [(one.to_state, one.reason) for one in shown("supplier").history]
        assert reasons == [("open", "failures"), ("closed", "success")]

    def test_a_set_opening_counts_from_its_last_failure(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", reset_timeout=30)
        moment = datetime.now(UTC) - timedelta(seconds=31)
        runtime.adapter().circuit_breaker.set_state("supplier", CircuitBreakerState("open", 5, moment))
        assert by.ends(breaker) == "ok"

    def test_its_failures_count_with_the_breakers(self, by: Caller) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=3)
        runtime.adapter().circuit_breaker.record_failure("supplier", 10)
        fail(by, breaker, 1)
        runtime.adapter().circuit_breaker.record_failure("supplier", 10)
        fail(by, breaker, 1)
        assert (shown("supplier").state, shown("supplier").failure_count) == ("open", 4)
