"""The contract of ``CircuitBreakerStateProvider``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from goscope_django.contracts import CircuitBreakerState
from goscope_django.testing.conformance.base import Conformance, Drive


class CircuitConformance(Conformance):
    """Shared states whose recordings are atomic."""

    def test_an_unknown_circuit_has_no_state(self, provider: Any, drive: Drive) -> None:
        assert drive(provider, "get_state", "api") is None
        assert drive(provider, "list") == {}

    def test_failures_count_and_open(self, provider: Any, drive: Drive) -> None:
        assert [drive(provider, "record_failure", "api", 3) for _ in range(2)] == [1, 2]
        assert drive(provider, "get_state", "api").state == "closed"
        assert drive(provider, "record_failure", "api", 3) == 3
        state = drive(provider, "get_state", "api")
        assert (state.state, state.failure_count) == ("open", 3)
        assert abs(state.last_failure_time - datetime.now(UTC)) < timedelta(minutes=1)
        assert state.last_success_time is None

    def test_failures_go_on_counting_when_open(self, provider: Any, drive: Drive) -> None:
        assert [drive(provider, "record_failure", "api", 1) for _ in range(3)] == [1, 2, 3]

    def test_a_success_closes_and_forgets(self, provider: Any, drive: Drive) -> None:
        for _ in range(3):
            drive(provider, "record_failure", "api", 3)
        drive(provider, "record_success", "api")
        state = drive(provider, "get_state", "api")
        assert (state.state, state.failure_count) == ("closed", 0)
        assert state.last_success_time is not None
        assert drive(provider, "record_failure", "api", 3) == 1

    def test_a_state_is_set_as_given(self, provider: Any, drive: Drive) -> None:
        moment = datetime(2024, 2, 29, 12, 30, 15, 123_000, tzinfo=UTC)
        for state in (
            CircuitBreakerState("half-open", 7, moment, moment + timedelta(hours=1)),
            CircuitBreakerState("open", 0, None, moment),
            CircuitBreakerState(),
        ):
            drive(provider, "set_state", "api", state)
            assert drive(provider, "get_state", "api") == state

    def test_reading_changes_nothing(self, provider: Any, drive: Drive) -> None:
        drive(provider, "record_failure", "api", 3)
        before = drive(provider, "get_state", "api")
        assert drive(provider, "list") == {"api": before}
        assert drive(provider, "get_state", "api") == before

    def test_list_and_pattern(self, provider: Any, drive: Drive) -> None:
        for key in ("b", "a", "ab"):
            drive(provider, "record_failure", key, 3)
        assert list(drive(provider, "list")) == ["a", "ab", "b"]
        assert list(drive(provider, "list", "a")) == ["a"]
        assert list(drive(provider, "list", "a.*")) == ["a", "ab"]

    def test_delete(self, provider: Any, drive: Drive) -> None:
        drive(provider, "record_failure", "api", 1)
        assert [drive(provider, "delete", "api"), drive(provider, "delete", "api")] == [True, False]
        assert drive(provider, "get_state", "api") is None

    def test_no_failure_is_lost(self, provider: Any, drive: Drive) -> None:
        counts = drive.together(24, lambda n: (provider, "record_failure", ("api", 1_000)))
        assert sorted(counts) == list(range(1, 25))

    @pytest.mark.parametrize("text", ["$x", "a.b", "", "nul\0nul", "k" * 10_000])
    def test_any_text_is_a_key(self, provider: Any, drive: Drive, text: str) -> None:
        assert drive(provider, "record_failure", text, 2) == 1
        assert list(drive(provider, "list")) == [text]
        assert drive(provider, "delete", text) is True

    @pytest.mark.parametrize("limit", [0, -1, True, 1.0, float("nan"), "3", None, 2**70], ids=repr)
    def test_bad_limits(self, provider: Any, drive: Drive, limit: object) -> None:
        with pytest.raises((ValueError, TypeError), match="max_failures"):
            drive(provider, "record_failure", "api", limit)
        assert drive(provider, "get_state", "api") is None

    def test_a_count_that_the_store_cannot_hold(self, provider: Any, drive: Drive) -> None:
        with pytest.raises(ValueError, match="failure_count"):
            drive(provider, "set_state", "api", CircuitBreakerState("open", 2**63))

    @pytest.mark.parametrize("state", [None, "open", {"state": "open"}], ids=repr)
    def test_bad_states(self, provider: Any, drive: Drive, state: object) -> None:
        with pytest.raises((ValueError, TypeError), match="state"):
            drive(provider, "set_state", "api", state)

    @pytest.mark.parametrize(
        "fields",
        [{"state": "ajar"}, {"failure_count": -1}, {"failure_count": True}, {"last_failure_time": 1}],
        ids=repr,
    )
    def test_a_state_that_is_none(self, fields: dict[str, Any]) -> None:
        with pytest.raises((ValueError, TypeError), match=next(iter(fields))):
            CircuitBreakerState(**fields)
