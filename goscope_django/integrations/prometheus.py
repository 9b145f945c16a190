"""Metrics for Prometheus (the extra ``prometheus``): the same numbers as the dashboard and ``goscope_status``.

>>> path("metrics", goscope_django.integrations.prometheus.metrics)

or, where the project has a registry and an endpoint already, ``register()`` once at start-up.

Rules of this file:

* Everything is read from MongoDB at each scrape. So all processes answer alike, and it is enough to scrape one.
* Counters and histograms are of the whole fleet since counting began, by what MongoDB has. Figures of the last hour are
  gauges, since they rise and fall.
* Keys, names and owners are no labels, since their number is not bounded: but the names of the few locks and circuits
  that ``FIGURES_PER_NAME`` allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from itertools import accumulate
from typing import Final

from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from goscope_django import operations
from goscope_django.integrations import needed
from goscope_django.operations import SECTIONS, State
from goscope_django.operations.values import Timing

with needed("prometheus-client", "goscope-django[prometheus]"):
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector

__all__ = ["GoscopeCollector", "metrics", "register"]

UNITS: Final[Mapping[str, tuple[str, int]]] = {
    "flights_saved_ms": ("flights_saved_seconds", 1_000),
    "cache_bytes_read": ("cache_read_bytes", 1),
    "cache_bytes_written": ("cache_written_bytes", 1),
}
"""Figures with a unit: their names as metrics, and by what they are divided."""

TIMES: Final[Mapping[str, tuple[str, str]]] = {
    "lock_wait": ("lock_wait_seconds", "How long callers waited for a lock; those that had it at once are not in it."),
    "lock_held": ("lock_held_seconds", "How long locks were held."),
    "flight_time": ("flight_seconds", "How long the function of a flight ran."),
}
"""Timings: their names as metrics, and what they are."""


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"goscope_{name}", text, value=value)


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"goscope_{name}", text, labels=[label])
    for of, value in values.items():
        family.add_metric([of], value)
    return family


def families(state: State) -> Iterator[Metric]:
    """The metrics of ``state``. A section that could not be read has none, and ``goscope_section_up`` says so.

    Raises nothing and sends nothing.
    """
    yield _gauge("up", "1 if the MongoDB server was reached.", float(state.reachable))
    yield _gauge("state_seconds", "How long it took to read all of this.", state.took)
    parts = ("server", *SECTIONS, "cache", "figures")
    up = {name: float(getattr(state, name).error is None) for name in parts}
    yield _labelled("section_up", "1 if this part could be read.", "section", up)
    attention: dict[str, float] = {
        kind: float(state.attention.by_kind.get(kind, 0)) for kind in operations.ATTENTION_KINDS
    }
    yield _labelled("attention", "What needs an operator, by kind, up to a hundred of each.", "kind", attention)
    yield from _server(state)
    if not state.locks.error:
        yield _gauge("locks_held", "Locks that are held now.", state.locks.total)
    if not state.circuits.error:
        yield _labelled("circuits", "Circuits by state.", "state", state.circuits.by_state)
        yield _gauge("circuits_forced", "Circuits that an operator forces open or closed.", state.circuits.forced)
    if not state.tasks.error:
        yield _labelled("tasks", "Tasks by status.", "status", state.tasks.by_status)
    if not state.flights.error:
        yield _gauge("flights", "Flights that run now.", state.flights.total)
    if not state.idempotency.error:
        records = {"in_progress": state.idempotency.in_progress, "completed": state.idempotency.completed}
        yield _labelled("idempotency_records", "Idempotency records by state.", "state", records)
    yield from _caches(state)
    if not state.figures.error:
        text = "How often something happened in the last hour, in the whole fleet."
        yield _labelled("last_hour", text, "what", state.figures.totals)
        yield from _sums(state)
        yield from _names(state)


def _sums(state: State) -> Iterator[Metric]:
    sums, bounds = state.figures.sums, state.figures.bounds
    for name, value in sums.totals.items():
        named, scale = UNITS.get(name, (name, 1))
        text = f"{name.replace('_', ' ').capitalize()}, in the whole fleet since counting began."
        yield CounterMetricFamily(f"goscope_{named}", text, value=value / scale)
    for name, timing in sums.timings.items():
        family = HistogramMetricFamily(f"goscope_{TIMES[name][0]}", TIMES[name][1])
        family.add_metric([], _buckets(bounds, timing), timing.seconds)
        yield family


def _names(state: State) -> Iterator[Metric]:
    """The counters of the hour that runs. They begin anew with each hour, which ``rate()`` takes for a restart."""
    hours = [one for one in state.figures.names if one.hour <= state.generated_at < one.hour + timedelta(hours=1)]
    for hour in hours:
        for kind, items, counters in (
            ("lock", hour.locks, ("acquired", "contended", "not_acquired", "lost")),
            ("circuit", hour.circuits, ("calls", "failures", "rejections", "opened")),
        ):
            for counter in counters:
                text = f"{counter.replace('_', ' ').capitalize()}, by {kind}, since the full hour."
                family = CounterMetricFamily(f"goscope_named_{kind}_{counter}", text, labels=[kind])
                for one in items:
                    family.add_metric([one.name], getattr(one, counter))
                yield family
        for name in ("wait", "held"):
            text = f"{TIMES[f'lock_{name}'][1][:-1]}, by lock, since the full hour."
            histogram = HistogramMetricFamily(f"goscope_named_lock_{name}_seconds", text, labels=["lock"])
            for lock in hour.locks:
                timing: Timing = getattr(lock, name)
                histogram.add_metric([lock.name], _buckets(state.figures.bounds, timing), timing.seconds)
            yield histogram


def _buckets(bounds: Iterable[float], timing: Timing) -> list[tuple[str, float]]:
    """Each bound, and how many did not exceed it."""
    names = [*(repr(float(bound)) for bound in bounds), "+Inf"]
    return list(zip(names, accumulate(timing.buckets), strict=True))


def _server(state: State) -> Iterator[Metric]:
    server = state.server
    if server.error:
        return
    wrong = sum(one.state != "present" for one in server.indexes)
    yield _gauge("index_problems", "Indexes that are missing or differ.", wrong)
    if server.latency is not None:
        yield _gauge("server_latency_seconds", "How long one command takes.", server.latency)
    if server.clock_offset is not None:
        yield _gauge(
            "server_clock_offset_seconds",
            "By how many seconds this machine's clock is ahead of the server's.",
            server.clock_offset,
        )


def _caches(state: State) -> Iterator[Metric]:
    aliases = state.cache.aliases
    entries = {one.alias: float(one.entries) for one in aliases if one.entries is not None}
    yield _labelled("cache_entries", "Entries that are counted, up to 10,000 of an alias.", "alias", entries)
    if state.figures.error:
        return
    family = GaugeMetricFamily(
        "goscope_cache_last_hour", "Operations of the last hour, in the whole fleet.", labels=["alias", "what"]
    )
    for one in aliases:
        for name, value in operations.plain(one.figures).items():
            if name != "hit_ratio":
                family.add_metric([one.alias, name], value)
    yield family


class GoscopeCollector(Collector):
    """Reads the state at each scrape: at most 2.5 seconds, and as many round trips as ``operations.state``."""

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now. Changes nothing.

        Raises ``ImproperlyConfigured`` for settings that can't be used, and nothing where MongoDB can't be reached:
        ``goscope_up`` is 0 then. Round trips are those of ``operations.state``.
        """
        return families(operations.state(limit=1))

    def describe(self) -> Iterable[Metric]:
        """Nothing, since registering must not read anything. Raises nothing and sends nothing."""
        return ()


def register(registry: CollectorRegistry = REGISTRY) -> GoscopeCollector:
    """Let ``registry`` (prometheus-client's own by default) collect our metrics as well.

    For once at start-up: what is registered twice is shown twice. Raises nothing and sends nothing.
    """
    collector = GoscopeCollector()
    registry.register(collector)
    return collector


@require_safe
@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """A view with our metrics alone. It asks for no login: protect it as you protect your other endpoints.

    ``request`` is a GET or a HEAD. Errors and round trips are those of ``GoscopeCollector.collect``.
    """
    registry = CollectorRegistry()
    register(registry)
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
