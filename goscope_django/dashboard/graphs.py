"""Chooses what the graphs show of the state's figures: the last hour by the minute, the last day by the hour.

Rule of this file: it does arithmetic on figures and nothing else. ``charts`` draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils.safestring import mark_safe

from goscope_django.dashboard import charts, text
from goscope_django.dashboard.charts import Chart, Line, Unit, Value
from goscope_django.operations.values import DayFigures, Figures, Timing


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The hour or the day. ``seconds`` is how long each part of it has lasted by now."""

    name: str
    each: str
    moments: tuple[str, ...]
    seconds: tuple[float, ...]
    series: Mapping[str, Sequence[int]]
    totals: Mapping[str, int]
    timings: Mapping[str, Timing]

    def chart(self, name: str, title: str, unit: Unit, lines: Sequence[Line], each: str | None = None) -> Chart:
        shown = self.each if each is None else each
        return Chart(f"graph-{self.name}-{name}", title, unit, self.moments, lines, shown)

    def counted(self, name: str, label: str) -> Line:
        return Line(label, self.series.get(name, ()), f"{text.number(self.totals.get(name, 0))} in all")

    def together(self, label: str, *names: str) -> Line:
        """The sum of several series."""
        values = [sum(column) for column in zip(*(self.series.get(name, ()) for name in names), strict=True)]
        return Line(label, values, f"{text.number(sum(values))} in all")

    def sized(self, name: str, label: str) -> Line:
        return Line(label, self.series.get(name, ()), f"{text.size(self.totals.get(name, 0))} in all")

    def timed(self, name: str) -> list[Line]:
        timing = self.timings.get(name, Timing())
        return [
            Line("median", timing.p50s, f"{charts.shown(timing.p50, 'seconds')} over all"),
            Line("95 % under", timing.p95s, f"{charts.shown(timing.p95, 'seconds')} over all"),
        ]

    def every_chart(self) -> list[Chart]:
        hits, misses = self.series.get("cache_hits", ()), self.series.get("cache_misses", ())
        ratios: list[Value] = [a / (a + b) if a + b else None for a, b in zip(hits, misses, strict=True)]
        reads = self.totals.get("cache_hits", 0) + self.totals.get("cache_misses", 0)
        overall = text.percent(self.totals.get("cache_hits", 0) / reads if reads else None)
        saved = [one / 1_000 for one in self.series.get("flights_saved_ms", ())]
        items = self.series.get("task_items", ())
        rates = [count / seconds for count, seconds in zip(items, self.seconds, strict=True)] if items else []
        return [
            self.chart(
                "locks",
                "Locks",
                "count",
                [
                    self.counted("locks_acquired", "acquired"),
                    self.counted("locks_contended", "had to wait"),
                    self.counted("locks_not_acquired", "gave up"),
                    self.counted("locks_lost", "lost"),
                ],
            ),
            self.chart("lock-wait", "Waiting for a lock", "seconds", self.timed("lock_wait"), ""),
            self.chart("lock-held", "Locks held", "seconds", self.timed("lock_held"), ""),
            self.chart(
                "circuits",
                "Calls through circuits",
                "count",
                [
                    self.counted("circuit_calls", "let through"),
                    self.counted("circuit_failures", "failed"),
                    self.counted("circuit_rejections", "refused"),
                ],
            ),
            self.chart(
                "flights",
                "Flights",
                "count",
                [self.counted("flights_led", "led"), self.counted("flights_joined", "joined")],
            ),
            self.chart("flight-time", "Time that flights took", "seconds", self.timed("flight_time"), ""),
            self.chart(
                "flights-saved",
                "Time that joining saved",
                "seconds",
                [Line("saved", saved, f"{charts.shown(sum(saved), 'seconds')} in all")],
            ),
            self.chart(
                "idempotency",
                "Idempotent requests",
                "count",
                [
                    self.counted("idempotent_run", "ran"),
                    self.counted("idempotent_replayed", "replayed"),
                    self.together("refused", "idempotent_conflicts", "idempotent_mismatches"),
                ],
            ),
            self.chart(
                "tasks",
                "Items done by tasks",
                "rate",
                [Line("items a second", rates, f"{text.number(sum(items))} items in all")],
                "",
            ),
            self.chart(
                "cache-ratio", "Cache reads that hit", "part", [Line("hits", ratios, f"{overall} over all")], ""
            ),
            self.chart(
                "cache-operations",
                "Cache operations",
                "count",
                [
                    self.together("reads", "cache_hits", "cache_misses"),
                    self.counted("cache_sets", "sets"),
                    self.counted("cache_deletes", "deletes"),
                    self.counted("cache_errors", "errors"),
                ],
            ),
            self.chart(
                "cache-bytes",
                "Cache bytes",
                "bytes",
                [self.sized("cache_bytes_read", "read"), self.sized("cache_bytes_written", "written")],
            ),
        ]


def _stretch(name: str, each: str, moments: Sequence[datetime], whole: float, now: datetime, of: Any) -> _Stretch:
    # Counts come up to ten seconds late, so what has just begun has no rate of its own yet.
    passed = [min(whole, max(whole / 2, (now - one).total_seconds())) for one in moments]
    names = tuple(text.minute(one) for one in moments)
    return _Stretch(name, each, names, tuple(passed), of.series, of.totals, of.timings)


def _drawn(stretch: _Stretch) -> list[str]:
    every = stretch.every_chart()
    # What there is something to be seen of comes first.
    return [mark_safe(charts.figure(one)) for one in sorted(every, key=lambda one: one.empty)]  # noqa: S308


def named(figures: Figures) -> list[dict[str, Any]]:
    """The tables of single locks and circuits, the hour that runs first."""

    def took(timing: Timing) -> str:
        if timing.p50 is None:
            return text.NONE
        return f"{charts.shown(timing.p50, 'seconds')} / {charts.shown(timing.p95, 'seconds')}"

    return [
        {
            "id": text.mark("named", hour.hour),
            "since": text.minute(hour.hour),
            "locks": [
                {
                    "id": text.mark("named-lock", hour.hour, one.name),
                    "name": text.visible(one.name),
                    "counts": [text.number(n) for n in (one.acquired, one.contended, one.not_acquired, one.lost)],
                    "wait": took(one.wait),
                    "held": took(one.held),
                }
                for one in hour.locks
            ],
            "circuits": [
                {
                    "id": text.mark("named-circuit", hour.hour, one.name),
                    "name": text.visible(one.name),
                    "counts": [text.number(n) for n in (one.calls, one.failures, one.rejections, one.opened)],
                }
                for one in hour.circuits
            ],
        }
        for hour in reversed(figures.names)
    ]


def graphs(figures: Figures, now: datetime) -> dict[str, Any]:
    """What ``graphs.html`` shows: drawings of ``hour`` and ``day``, and tables of ``names``. Empty if the figures could
    not be read."""
    if figures.error is not None or not figures.minutes:
        return {}
    day: DayFigures = figures.day
    minute, hour = timedelta(minutes=1).total_seconds(), timedelta(hours=1).total_seconds()
    return {
        "hour": _drawn(_stretch("hour", "a minute", figures.minutes, minute, now, figures)),
        "names": named(figures),
        "day": _drawn(_stretch("day", "an hour", day.hours, hour, now, day)),
    }
