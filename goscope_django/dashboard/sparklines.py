"""Draws sixty minutes as a small line. The points of the SVG are made here, so that the page needs no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 120
HEIGHT: Final = 24
_ROOM: Final = 2  # at the edges, since the line has a width


@dataclass(frozen=True, slots=True)
class Sparkline:
    """``points`` of a polyline in a box of ``width`` by ``height``; ``label`` says the same in words."""

    points: str
    area: str
    label: str
    total: int
    width: int = WIDTH
    height: int = HEIGHT


def sparkline(name: str, series: Sequence[int]) -> Sparkline | None:
    """The line of a series. ``None`` for one without any minute, since it could not be read."""
    if not series:
        return None
    top, last = max(1, *series), max(1, len(series) - 1)
    points = " ".join(
        f"{_ROOM + at * (WIDTH - 2 * _ROOM) / last:.1f},{HEIGHT - _ROOM - value * (HEIGHT - 2 * _ROOM) / top:.1f}"
        for at, value in enumerate(series)
    )
    floor = HEIGHT - _ROOM
    area = f"{_ROOM},{floor} {points} {WIDTH - _ROOM},{floor}"
    total = sum(series)
    label = f"{name} in the last hour: {total:,}, at most {max(series):,} in a minute"
    return Sparkline(points=points, area=area, label=label, total=total)
