"""Draws series as SVG with axes, units, a legend and a table of the numbers. Nothing is needed to see them but HTML.

Rules of this file:

* Pure functions of what is given. Text is escaped, whatever is in it.
* Looks are classes of ``dashboard.css``: there is no ``style`` and no script, so that a strict content security policy
  holds, and light and dark are the style sheet's.
* What there is no number for is a gap: neither nought nor a line across it.
* The result is well-formed XML too, so that a test can read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal

from goscope_django.operations.wording import escaped

WIDTH: Final = 360
HEIGHT: Final = 170
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 24
"""Room beside the plot, for what stands on the axes."""

STEPS: Final = 4
"""Parts of each axis between two ticks, at most."""

MOST_LINES: Final = 4
"""The style sheet knows so many kinds of line."""

_MOST: Final = 1e300
_NOT_FINITE: Final = (math.inf, -math.inf)
Unit = Literal["count", "rate", "seconds", "bytes", "part"]
Value = float | None


@dataclass(frozen=True, slots=True)
class Line:
    """One series: a number, or ``None``, for each moment. ``told`` says in words what it comes to."""

    label: str
    values: Sequence[Value]
    told: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """What to draw. ``id`` is that of the element, ``moments`` are the names of the points in time, the latest last.

    ``each`` says what a point counts (``a minute``).
    """

    id: str
    title: str
    unit: Unit
    moments: Sequence[str]
    lines: Sequence[Line]
    each: str = ""

    @property
    def empty(self) -> bool:
        """Whether nothing happened that could be drawn."""
        return not any(value for line in self.lines for value in _finite(line.values))


def _finite(values: Sequence[Value]) -> list[Value]:
    """``values`` within what can be drawn, with ``None`` for what is no number."""
    return [None if one is None or one in _NOT_FINITE or one != one else _drawable(one) for one in values]  # noqa: PLR0124


def _drawable(value: float) -> float:
    return float(min(max(value, 0.0), _MOST))


def _text(value: str) -> str:
    """``value`` for an element or an attribute, on one line and with nothing invisible in it."""
    return escape(escaped(value), quote=True)


# Numbers as people read them


def _scaled(value: float, steps: Sequence[tuple[float, str]]) -> str:
    size, name = next((step for step in steps if value >= step[0]), steps[-1])
    shown = value / size
    digits = 0 if shown >= 100 or shown == int(shown) else 1 if shown >= 10 else 2
    text = f"{shown:,.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{name}"


_PLAIN: Final = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
_SECONDS: Final = ((86_400, " d"), (3_600, " h"), (60, " min"), (1, " s"), (0.001, " ms"))
_BYTES: Final = ((1e15, " PB"), (1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " KB"), (1, " B"))

_TEXTS: Final[Mapping[Unit, Callable[[float], str]]] = {
    "count": lambda value: _scaled(value, _PLAIN),
    "rate": lambda value: f"{_scaled(value, _PLAIN)}/s",
    "seconds": lambda value: _scaled(value, _SECONDS) if value else "0 s",
    "bytes": lambda value: _scaled(value, _BYTES),
    "part": lambda value: f"{_scaled(value * 100, ((1, ''),))} %",
}


def shown(value: Value, unit: Unit) -> str:
    """A number with its unit; a dash for none."""
    (found,) = _finite([value])
    return "\u2013" if found is None else _TEXTS[unit](found)


def ticks(most: float, unit: Unit) -> list[float]:
    """Round numbers from 0 to ``most`` or a little more."""
    if unit == "part":
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    most = max(most, 1e-9)
    if unit == "count":
        most = max(most, 1.0)
    rough = most / STEPS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))
    if unit == "count":
        step = max(1.0, math.ceil(step))
    number = max(1, math.ceil(most / step - 1e-9))
    return [step * one for one in range(number + 1)]


# Drawing


def figure(chart: Chart) -> str:
    """The chart as a ``<figure>``: caption, drawing, legend, and the numbers behind ``<details>``."""
    name = _text(chart.id)
    unit = f" <small>{_text(chart.each)}</small>" if chart.each else ""
    parts = [f'<figure class="goscope-figure" id="{name}">', f"<figcaption>{_text(chart.title)}{unit}</figcaption>"]
    if chart.empty:
        parts.append('<p class="goscope-none">Nothing was counted.</p>')
    else:
        parts += [svg(chart), _legend(chart), _table(chart)]
    return "".join([*parts, "</figure>"])


def svg(chart: Chart) -> str:
    """The drawing alone."""
    every = [_finite(line.values)[-len(chart.moments) :] for line in chart.lines[:MOST_LINES]]
    levels = ticks(max((one for values in every for one in values if one is not None), default=0.0), chart.unit)
    name = _text(chart.id)
    told = "; ".join(f"{line.label}: {line.told or _range(line, chart.unit)}" for line in chart.lines)
    parts = [
        (
            f'<svg class="goscope-chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-labelledby="{name}-t {name}-d" focusable="false">'
            f'<title id="{name}-t">{_text(f"{chart.title} {chart.each}".strip())}</title>'
            f'<desc id="{name}-d">{_text(told)}</desc>'
        )
    ]
    parts += _levels(levels, chart.unit)
    parts += _moments(chart.moments)
    # The first line is drawn last: where lines lie upon each other, it is the one to be seen.
    for position in reversed(range(len(every))):
        parts += _drawn(every[position], levels[-1], position + 1)
    return "".join([*parts, "</svg>"])


def _x(position: int, number: int) -> float:
    room = WIDTH - LEFT - RIGHT
    return LEFT + (room / 2 if number < 2 else room * position / (number - 1))


def _y(value: float, top: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(1.0, value / top))


def _levels(levels: Sequence[float], unit: Unit) -> Iterator[str]:
    for level in levels:
        y = f"{_y(level, levels[-1]):.1f}"
        yield f'<line class="goscope-grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text class="goscope-tick" x="{LEFT - 5}" y="{y}" dy="4" text-anchor="end">{shown(level, unit)}</text>'


def _moments(moments: Sequence[str]) -> Iterator[str]:
    last = len(moments) - 1
    each = max(1, math.ceil(last / STEPS))
    for position in range(last, -1, -each):
        x = _x(position, len(moments))
        anchor = "end" if position == last and last else "middle"
        yield (
            f'<text class="goscope-tick" x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">'
            f"{_text(moments[position])}</text>"
        )


def _drawn(values: Sequence[Value], top: float, number: int) -> Iterator[str]:
    """A path for each stretch without a gap, a dot for a point that stands alone."""
    for stretch in _stretches(values):
        points = [f"{_x(position, len(values)):.1f} {_y(value, top):.1f}" for position, value in stretch]
        if len(points) > 1:
            yield f'<path class="goscope-drawn goscope-series-{number}" d="M{"L".join(points)}"/>'
        else:
            x, _, y = points[0].partition(" ")
            yield f'<circle class="goscope-dot goscope-series-{number}" cx="{x}" cy="{y}" r="2.5"/>'


def _stretches(values: Sequence[Value]) -> Iterator[list[tuple[int, float]]]:
    found: list[tuple[int, float]] = []
    for position, value in enumerate(values):
        if value is not None:
            found.append((position, value))
        elif found:
            yield found
            found = []
    if found:
        yield found


# In words


def _range(line: Line, unit: Unit) -> str:
    known = [one for one in _finite(line.values) if one is not None]
    return f"at most {shown(max(known), unit)}" if known else "not measured"


def _legend(chart: Chart) -> str:
    items = []
    for number, line in enumerate(chart.lines[:MOST_LINES], 1):
        latest = next((one for one in reversed(_finite(line.values)) if one is not None), None)
        told = _text(line.told or _range(line, chart.unit))
        sample = f'<line class="goscope-drawn goscope-series-{number}" x1="0" x2="24" y1="4" y2="4"/>'
        items.append(
            f'<li><svg class="goscope-sample" viewBox="0 0 24 8" aria-hidden="true" focusable="false">{sample}</svg> '
            f"{_text(line.label)}: {told}, latest {shown(latest, chart.unit)}</li>"
        )
    return f'<ul class="goscope-legend">{"".join(items)}</ul>'


def _table(chart: Chart) -> str:
    """The moments at which there is something, the latest first."""
    every = [_finite(line.values)[-len(chart.moments) :] for line in chart.lines]
    heads = "".join(f'<th scope="col">{_text(line.label)}</th>' for line in chart.lines)
    rows = []
    for position in range(len(chart.moments) - 1, -1, -1):
        values = [one[position] if position < len(one) else None for one in every]
        if any(values):
            cells = "".join(
                f'<td data-label="{_text(line.label)}">{shown(value, chart.unit)}</td>'
                for line, value in zip(chart.lines, values, strict=True)
            )
            rows.append(f'<tr><th scope="row">{_text(chart.moments[position])}</th>{cells}</tr>')
    caption = _text(f"{chart.title} {chart.each}, without the times at which there was nothing")
    return (
        f'<details><summary>Numbers<span class="goscope-hidden"> of {_text(chart.title)}</span></summary>'
        f'<table><caption>{caption}</caption><thead><tr><th scope="col">Time</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></details>"
    )
