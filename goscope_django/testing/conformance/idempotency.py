"""The contract of ``IdempotencyProvider``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from goscope_django.testing.conformance.base import BAD_TTLS, SHORT, Conformance, Drive


class IdempotencyConformance(Conformance):
    """A claim while the work runs, then its result."""

    def test_the_first_call_starts(self, provider: Any, drive: Drive) -> None:
        claim = drive(provider, "begin", "pay", 60_000)
        assert claim.outcome == "started"
        assert type(claim.token) is int

    def test_a_second_call_waits(self, provider: Any, drive: Drive) -> None:
        drive(provider, "begin", "pay", 60_000, None, 10_000)
        claim = drive(provider, "begin", "pay", 60_000)
        assert claim.outcome == "in_progress"
        assert 0 < claim.retry_after <= 10

    def test_a_result_is_given_back(self, provider: Any, drive: Drive) -> None:
        claim = drive(provider, "begin", "pay", 60_000)
        assert drive(provider, "complete", "pay", claim.token, {"status": (201, "created")}) is True
        repeat = drive(provider, "begin", "pay", 60_000)
        assert (repeat.outcome, repeat.value) == ("completed", {"status": (201, "created")})
        record = drive(provider, "get", "pay")
        assert record.value == {"status": (201, "created")}
        assert record.expires_at > datetime.now(UTC)

    @pytest.mark.parametrize("value", [None, False, 0, "", [], "$x", {"$gt": 1}], ids=repr)
    def test_empty_results_are_results(self, provider: Any, drive: Drive, value: object) -> None:
        claim = drive(provider, "begin", "pay", 60_000)
        drive(provider, "complete", "pay", claim.token, value)
        repeat = drive(provider, "begin", "pay", 60_000)
        assert repeat.outcome == "completed"
        assert repeat.value == value

    def test_a_claim_is_no_result(self, provider: Any, drive: Drive) -> None:
        drive(provider, "begin", "pay", 60_000)
        assert drive(provider, "get", "pay") is None

    def test_another_payload_is_a_mismatch(self, provider: Any, drive: Drive) -> None:
        claim = drive(provider, "begin", "pay", 60_000, "fingerprint")
        assert drive(provider, "begin", "pay", 60_000, "another").outcome == "mismatch"
        assert drive(provider, "begin", "pay", 60_000, "fingerprint").outcome == "in_progress"
        drive(provider, "complete", "pay", claim.token, 1)
        assert drive(provider, "begin", "pay", 60_000, "another").outcome == "mismatch"
        assert drive(provider, "begin", "pay", 60_000, "fingerprint").outcome == "completed"

    def test_an_abandoned_key_is_free(self, provider: Any, drive: Drive) -> None:
        claim = drive(provider, "begin", "pay", 60_000, "fingerprint")
        assert drive(provider, "abandon", "pay", claim.token) is True
        assert drive(provider, "begin", "pay", 60_000, "another").outcome == "started"

    def test_only_the_live_claim_completes(self, provider: Any, drive: Drive) -> None:
        claim = drive(provider, "begin", "pay", 60_000)
        assert drive(provider, "complete", "pay", claim.token + 1, "wrong") is False
        assert drive(provider, "abandon", "pay", claim.token + 1) is False
        assert drive(provider, "extend", "pay", claim.token + 1, 1_000) is False
        assert drive(provider, "complete", "other", claim.token, "wrong") is False
        assert drive(provider, "complete", "pay", claim.token, "right") is True
        assert drive(provider, "complete", "pay", claim.token, "again") is False
        assert drive(provider, "abandon", "pay", claim.token) is False
        assert drive(provider, "extend", "pay", claim.token, 1_000) is False
        assert drive(provider, "get", "pay").value == "right"

    def test_a_dead_claim_is_taken_over(self, provider: Any, drive: Drive) -> None:
        dead = drive(provider, "begin", "pay", 60_000, "fingerprint", SHORT)
        self.outlive()
        heir = drive(provider, "begin", "pay", 60_000, "another")
        assert heir.outcome == "started"
        assert heir.token > dead.token
        assert drive(provider, "complete", "pay", dead.token, "late") is False
        assert drive(provider, "abandon", "pay", dead.token) is False
        assert drive(provider, "complete", "pay", heir.token, "heir") is True
        assert drive(provider, "get", "pay").value == "heir"

    def test_an_ended_claim_completes_nothing(self, provider: Any, drive: Drive) -> None:
        claim = drive(provider, "begin", "pay", 60_000, None, SHORT)
        self.outlive()
        assert drive(provider, "extend", "pay", claim.token, 60_000) is False
        assert drive(provider, "complete", "pay", claim.token, "late") is False
        assert drive(provider, "get", "pay") is None

    def test_a_lease_is_extended(self, provider: Any, drive: Drive) -> None:
        claim = drive(provider, "begin", "pay", 60_000, None, 200)
        assert drive(provider, "extend", "pay", claim.token, 60_000) is True
        self.outlive(200)
        assert drive(provider, "begin", "pay", 60_000).outcome == "in_progress"
        assert drive(provider, "complete", "pay", claim.token, 1) is True

    def test_a_result_expires(self, provider: Any, drive: Drive) -> None:
        claim = drive(provider, "begin", "pay", 60_000, "fingerprint")
        drive(provider, "complete", "pay", claim.token, 1, SHORT)
        self.outlive()
        assert drive(provider, "get", "pay") is None
        assert drive(provider, "begin", "pay", 60_000, "another").outcome == "started"

    def test_the_ttl_of_begin_holds_where_complete_names_none(self, provider: Any, drive: Drive) -> None:
        claim = drive(provider, "begin", "pay", timedelta(hours=2))
        drive(provider, "complete", "pay", claim.token, 1)
        left = drive(provider, "get", "pay").expires_at - datetime.now(UTC)
        assert timedelta(hours=1) < left < timedelta(hours=3)

    def test_exactly_one_of_many_starts(self, provider: Any, drive: Drive) -> None:
        claims = drive.together(12, lambda n: (provider, "begin", ("pay", 60_000, "fingerprint")))
        assert sorted(claim.outcome for claim in claims) == ["in_progress"] * 11 + ["started"]

    def test_exactly_one_of_many_takes_over(self, provider: Any, drive: Drive) -> None:
        drive(provider, "begin", "pay", 60_000, None, SHORT)
        self.outlive()
        claims = drive.together(12, lambda n: (provider, "begin", ("pay", 60_000)))
        assert sorted(claim.outcome for claim in claims) == ["in_progress"] * 11 + ["started"]

    def test_set_get_delete(self, provider: Any, drive: Drive) -> None:
        assert drive(provider, "get", "pay") is None
        drive(provider, "set", "pay", "first")
        assert drive(provider, "get", "pay").expires_at is None
        drive(provider, "set", "pay", "second", 60_000)
        assert drive(provider, "get", "pay").value == "second"
        assert drive(provider, "begin", "pay", 60_000).value == "second"
        assert [drive(provider, "delete", "pay"), drive(provider, "delete", "pay")] == [True, False]
        assert drive(provider, "begin", "pay", 60_000).outcome == "started"

    def test_set_over_a_claim(self, provider: Any, drive: Drive) -> None:
        claim = drive(provider, "begin", "pay", 60_000)
        drive(provider, "set", "pay", "by hand", 60_000)
        assert drive(provider, "complete", "pay", claim.token, "late") is False
        assert drive(provider, "get", "pay").value == "by hand"

    @pytest.mark.parametrize("text", ["$x", "a.b", "", "k" * 10_000, "nul\0nul", "claim:pay"])
    def test_any_text_is_a_key(self, provider: Any, drive: Drive, text: str) -> None:
        claim = drive(provider, "begin", text, 60_000, text)
        assert drive(provider, "begin", text, 60_000, text).outcome == "in_progress"
        assert drive(provider, "complete", text, claim.token, text) is True
        assert drive(provider, "get", text).value == text

    @pytest.mark.parametrize("ttl", BAD_TTLS, ids=repr)
    def test_bad_ttls(self, provider: Any, drive: Drive, ttl: object) -> None:
        for method, args in (
            ("begin", ("pay", ttl)),
            ("begin", ("pay", 60_000, None, ttl)),
            ("complete", ("pay", 1, "x", ttl)),
            ("extend", ("pay", 1, ttl)),
            ("set", ("pay", 1, ttl)),
        ):
            with pytest.raises((ValueError, TypeError), match="ttl"):
                drive(provider, method, *args)

    @pytest.mark.parametrize("key", [None, 1, b"x", {"$gt": ""}, "\ud800"], ids=repr)
    def test_bad_keys(self, provider: Any, drive: Drive, key: object) -> None:
        for method, args in (("begin", (key, 1_000)), ("get", (key,)), ("set", (key, 1)), ("delete", (key,))):
            with pytest.raises((ValueError, TypeError), match="key"):
                drive(provider, method, *args)

    @pytest.mark.parametrize("token", [None, "1", True, {"$gt": 0}, 1.0], ids=repr)
    def test_bad_tokens(self, provider: Any, drive: Drive, token: object) -> None:
        drive(provider, "begin", "pay", 60_000)
        for method, args in (
            ("complete", ("pay", token, 1)),
            ("abandon", ("pay", token)),
            ("extend", ("pay", token, 1)),
        ):
            with pytest.raises((ValueError, TypeError), match="token"):
                drive(provider, method, *args)
