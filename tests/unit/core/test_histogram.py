"""Buckets of durations, and what can be told of them afterwards."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goscope_django.core.histogram import BOUNDS, BUCKETS, WIDTH, note, quantile

seconds = st.floats(0, 10_000, allow_nan=False)


def counted(*durations: float) -> list[int]:
    row = [0] * WIDTH
    for one in durations:
        note(row, 0, one)
    return row


def test_a_bound_is_part_of_its_bucket() -> None:
    for position, bound in enumerate(BOUNDS):
        assert counted(bound)[position] == 1
        assert counted(math.nextafter(bound, math.inf))[position + 1] == 1


def test_bounds_rise() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert len(BOUNDS) + 1 == BUCKETS


@given(st.lists(seconds, max_size=50))
def test_every_duration_is_in_one_bucket_and_in_the_sum(durations: list[float]) -> None:
    row = counted(*durations)
    assert sum(row[:BUCKETS]) == len(durations)
    assert row[BUCKETS] == pytest.approx(sum(durations) * 1e6, abs=len(durations) + 1)


@given(st.lists(seconds, min_size=1, max_size=60), st.floats(0, 1))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(durations: list[float], share: float) -> None:
    found = quantile(counted(*durations), share)
    assert found is not None
    true = sorted(durations)[max(0, math.ceil(share * len(durations)) - 1)]
    upper = next((bound for bound in BOUNDS if true <= bound), BOUNDS[-1])
    lower = max((bound for bound in BOUNDS if bound < upper), default=0.0)
    # Where all of a bucket lie below the share, its end and the next one's beginning are the same number.
    assert lower <= found <= upper or found == pytest.approx(upper)


@given(st.lists(seconds, min_size=1, max_size=60))
def test_quantiles_rise_with_their_share(durations: list[float]) -> None:
    found = [quantile(counted(*durations), share / 20) for share in range(21)]
    assert found == sorted(found, key=lambda one: one or 0.0)


def test_nothing_counted_has_no_quantile() -> None:
    assert quantile([0] * WIDTH, 0.5) is None
    assert quantile((), 0.5) is None


def test_what_is_longer_than_all_bounds_is_the_last_bound() -> None:
    assert quantile(counted(1e6, 1e7), 0.5) == BOUNDS[-1]


def test_a_negative_duration_of_a_clock_that_went_back_is_none() -> None:
    row = counted(-5.0)
    assert row[0] == 1
    assert row[BUCKETS] == 0
