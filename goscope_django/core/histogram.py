"""Histograms of durations: a fixed number of buckets, in which a duration is counted without being kept.

Rule of this file: the bounds never change, since stored counts and Prometheus' queries go by them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

BOUNDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0),
)
"""Upper ends of the buckets, in seconds, each part of its bucket. One more bucket has what is longer."""

BUCKETS: Final = len(BOUNDS) + 1
WIDTH: Final = BUCKETS + 1
"""The numbers of a histogram: the count of each bucket, and the sum of all durations in microseconds."""


def note(row: list[int], start: int, seconds: float) -> None:
    """Count a duration in the histogram that begins at ``start`` of ``row``."""
    row[start + bisect_left(BOUNDS, seconds)] += 1
    row[start + BUCKETS] += max(0, int(seconds * 1e6))


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The duration in seconds that ``share`` (0 to 1) of all do not exceed; ``None`` if none was counted.

    Inside a bucket durations are taken as evenly spread, as Prometheus does. Of those that are longer than the last
    bound only this bound is known.
    """
    total = sum(counts[:BUCKETS])
    if total <= 0:
        return None
    left = share * total
    for position, upper in enumerate(BOUNDS):
        count = counts[position]
        if count and left <= count:
            lower = BOUNDS[position - 1] if position else 0.0
            return lower + (upper - lower) * max(0.0, left) / count
        left -= count
    return BOUNDS[-1]
