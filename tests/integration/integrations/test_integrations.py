"""Bridges to other packages, with the real ones; and the same numbers everywhere."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import cache
from django.core.management import call_command
from django.test import RequestFactory, override_settings

from goscope_django import figures, operations
from goscope_django.circuits import CircuitBreaker
from goscope_django.locks import lock
from goscope_django.operations import State
from goscope_django.process import counters
from tests.support.manage import script
from tests.support.mongod import temporary_mongod
from tests.support.operations import fill, own_store, query, stopped

health = pytest.importorskip("goscope_django.integrations.health")
prometheus = pytest.importorskip("goscope_django.integrations.prometheus")
parser = pytest.importorskip("prometheus_client.parser")

HOSTILE = 'a"} 1\n# HELP x\\'
AWAY = {"TEST": {"URL": "mongodb://me:secret@127.0.0.1:1/x"}}


# django-health-check


def checked(**options: Any) -> Any:
    """The result as the package itself makes it."""
    return asyncio.run(health.MongoDB(**options).get_result()).error


def test_a_server_that_answers_is_healthy(mongo_url: str) -> None:
    with own_store(mongo_url):
        assert checked(slow=30.0) is None
        assert checked(slow=30.0, indexes=True) is None


def test_a_server_that_is_down_is_unavailable() -> None:
    with override_settings(GOSCOPE=AWAY):
        error = checked()
    assert type(error).__name__ == "ServiceUnavailable"
    assert "127.0.0.1:1" in str(error) and "secret" not in str(error)


@pytest.mark.timeout(60)
def test_a_server_that_is_slow_is_a_warning() -> None:
    with temporary_mongod() as server, own_store(server.uri.replace("/?", "/x?")):
        assert checked(slow=30.0) is None
        error = checked(slow=0.0)
        assert type(error).__name__ == "ServiceWarning" and "is slow" in str(error)
        with stopped(server.pid):
            for _ in range(2):  # through a pooled connection, and through a new one
                error = checked()
                assert type(error).__name__ == "ServiceWarning" and "did not answer within 2 seconds" in str(error)


def test_an_index_that_is_missing_is_a_warning_if_asked_for(mongo_url: str) -> None:
    with own_store(mongo_url):
        query("go_goscope_locks", "drop_index", "key_1")
        assert checked(slow=30.0) is None
        error = checked(slow=30.0, indexes=True)
        assert type(error).__name__ == "ServiceWarning" and "go_goscope_locks.key_1" in str(error)


def test_settings_that_can_not_be_used_are_unavailable() -> None:
    with override_settings(GOSCOPE={"TEST": {"URL": "bogus://x"}}):
        error = checked()
    assert type(error).__name__ == "ServiceUnavailable" and "scheme" in str(error)


def test_the_view_of_the_package_shows_it(mongo_url: str) -> None:
    from health_check.views import HealthCheckView

    view = HealthCheckView.as_view(checks=["goscope_django.integrations.health.MongoDB"])
    request = RequestFactory().get("/health", headers={"accept": "application/json"})
    with own_store(mongo_url):
        response = asyncio.run(view(request))
        assert response.status_code == 200 and "MongoDB" in response.content.decode()
    with override_settings(GOSCOPE=AWAY):
        response = asyncio.run(view(request))
        assert response.status_code == 500 and "secret" not in response.content.decode()


# Prometheus


def metrics(text: str) -> dict[tuple[str, ...], float]:
    """Samples by name and the values of their labels."""
    found = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            found[(sample.name, *sample.labels.values())] = sample.value
    return found


def scraped() -> dict[tuple[str, ...], float]:
    response = prometheus.metrics(RequestFactory().get("/metrics"))
    assert response.status_code == 200 and response["Content-Type"].startswith("text/plain")
    return metrics(response.content.decode())


def test_without_a_server_the_metrics_say_so() -> None:
    with override_settings(GOSCOPE=AWAY):
        found = scraped()
    assert found["goscope_up",] == 0
    assert found["goscope_section_up", "locks"] == 0
    assert ("goscope_locks_held",) not in found


def test_a_registry_of_the_project_collects_ours_and_reads_nothing_before() -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=True)
    with override_settings(GOSCOPE=AWAY):
        prometheus.register(registry)
    with own_store("mongomock://"):
        found = metrics(generate_latest(registry).decode())
    assert found["goscope_up",] == 1


def test_only_reading_is_allowed_and_nothing_is_kept() -> None:
    assert prometheus.metrics(RequestFactory().post("/metrics")).status_code == 405
    with own_store("mongomock://"):
        response = prometheus.metrics(RequestFactory().get("/metrics"))
    assert "no-store" in response["Cache-Control"]


def test_neither_package_is_needed(mongo_url: str) -> None:
    text = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"health_check", "prometheus_client"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import goscope_django.integrations
from goscope_django import operations
assert operations.state().reachable
for name in ("health", "prometheus"):
    try:
        __import__(f"goscope_django.integrations.{name}")
    except ModuleNotFoundError:
        continue
    raise AssertionError(name)
"""
    ended = script(mongo_url, text)
    assert (ended.code, ended.err) == (0, "")


# The same everywhere


@pytest.fixture(params=["mongod", "mongomock"])
def busy(request: pytest.FixtureRequest) -> Iterator[None]:
    """A store with some of everything."""
    counters.forget()
    url = "mongomock://" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    with own_store(url, FIGURES_PER_NAME=2):
        fill(locks=23, circuits=9, tasks=8, flights=5, records=7)
        operations.open_circuit("c0000")
        cache.set_many({f"user:{n}": n for n in range(6)})
        cache.get_many(["user:1", "user:2", "cart:1"])
        figures.count("flights_led", 3)
        figures.count("flights_saved_ms", 1_500)
        for key in ("held", "held", HOSTILE, "rare", "seldom"):
            with lock(key):
                pass
        CircuitBreaker("bank").call(lambda: None)
        assert figures.flush()
        yield
    counters.forget()


def of_timing(named: str, timing: dict[str, Any], bounds: list[float], *labels: str) -> dict[tuple[str, ...], float]:
    """The samples of a histogram."""
    ends = [*(str(float(bound)) for bound in bounds), "+Inf"]
    found: dict[tuple[str, ...], float] = {(f"{named}_count", *labels): timing["count"]}
    found[f"{named}_sum", *labels] = timing["seconds"]
    for end, count in zip(ends, itertools.accumulate(timing["buckets"]), strict=True):
        found[f"{named}_bucket", end, *labels] = count
    return found


def of_figures(state: dict[str, Any]) -> dict[tuple[str, ...], float]:
    """What the sums have, and of what was counted by name the hour that runs."""
    figures = state["figures"]
    found: dict[tuple[str, ...], float] = {}
    for name, value in figures["sums"]["totals"].items():
        named, scale = prometheus.UNITS.get(name, (name, 1))
        found[f"goscope_{named}_total",] = value / scale
    for name, timing in figures["sums"]["timings"].items():
        found.update(of_timing(f"goscope_{prometheus.TIMES[name][0]}", timing, figures["bounds"]))
    for hour in figures["names"]:
        running = hour["hour"][:13] == state["generated_at"][:13]
        for kind in ("lock", "circuit") if running else ():
            for one in hour[f"{kind}s"]:
                for what, value in one.items():
                    if isinstance(value, int):
                        found[f"goscope_named_{kind}_{what}_total", one["name"]] = value
                    elif isinstance(value, dict):
                        named = f"goscope_named_lock_{what}_seconds"
                        found.update(of_timing(named, value, figures["bounds"], one["name"]))
    return found


def numbers(state: dict[str, Any]) -> dict[tuple[str, ...], float]:
    """What a state as JSON has, under the names of the metrics."""
    found: dict[tuple[str, ...], float] = {
        ("goscope_up",): state["reachable"],
        ("goscope_locks_held",): state["locks"]["total"],
        ("goscope_circuits_forced",): state["circuits"]["forced"],
        ("goscope_flights",): state["flights"]["total"],
        ("goscope_idempotency_records", "in_progress"): state["idempotency"]["in_progress"],
        ("goscope_idempotency_records", "completed"): state["idempotency"]["completed"],
        ("goscope_index_problems",): sum(one["state"] != "present" for one in state["server"]["indexes"]),
    }
    for kind in operations.ATTENTION_KINDS:
        found["goscope_attention", kind] = state["attention"]["by_kind"].get(kind, 0)
    for name, value in state["circuits"]["by_state"].items():
        found["goscope_circuits", name] = value
    for name, value in state["tasks"]["by_status"].items():
        found["goscope_tasks", name] = value
    for name, value in state["figures"]["totals"].items():
        found["goscope_last_hour", name] = value
    found.update(of_figures(state))
    for alias in state["cache"]["aliases"]:
        found["goscope_cache_entries", alias["alias"]] = alias["entries"]
        for name, value in alias["figures"].items():
            if name != "hit_ratio":
                found["goscope_cache_last_hour", alias["alias"], name] = value
    return found


def test_state_command_and_metrics_show_the_same_numbers(busy: None) -> None:
    state: State = operations.state()
    out = io.StringIO()
    call_command("goscope_status", "--json", stdout=out)
    from_state, from_command = numbers(state.as_json()), numbers(json.loads(out.getvalue()))
    from_metrics = scraped()
    assert from_state == from_command
    assert {name: from_metrics.get(name) for name in from_state} == from_state
    # And they are not all zero.
    assert from_state["goscope_locks_held",] == 23
    assert from_state["goscope_circuits", "open"] == 4
    assert from_state["goscope_tasks", "stalled"] == 4
    assert from_state["goscope_flights",] == 5
    assert from_state["goscope_last_hour", "flights_led"] == from_state["goscope_flights_led_total",] == 3
    assert from_state["goscope_flights_saved_seconds_total",] == 1.5
    assert from_state["goscope_lock_held_seconds_bucket", "+Inf"] == from_state["goscope_lock_held_seconds_count",] == 5
    named = {name[1]: n for name, n in from_state.items() if name[0] == "goscope_named_lock_acquired_total"}
    if named:  # else an hour has just begun
        assert named == {"held": 2, HOSTILE: 1, "(other)": 2}
        assert from_state["goscope_named_circuit_calls_total", "bank"] == 1
    assert from_state["goscope_cache_last_hour", "default", "hits"] == 2
    assert from_state["goscope_cache_last_hour", "default", "misses"] == 1
    # Nothing is in the metrics that the state does not have, but what is measured anew each time.
    anew = {"goscope_state_seconds", "goscope_server_latency_seconds", "goscope_server_clock_offset_seconds"}
    assert {name for name in from_metrics if name[0] not in anew | {"goscope_section_up"}} == set(from_state)


def test_text_of_the_command_shows_the_same_numbers(busy: None) -> None:
    out = io.StringIO()
    call_command("goscope_status", stdout=out)
    shown = out.getvalue()
    for words in (
        "23 held",
        "2 closed, 4 open, 3 half-open (1 forced)",
        "4 running, 4 stalled",
        "5 running",
        "3 in progress, 4 completed",
        "66.7% hits",
    ):
        assert words in shown, shown
