"""The Grafana dashboard and the alert rules of the documentation name nothing that a real scrape does not have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import RequestFactory

from goscope_django import figures
from goscope_django.circuits import CircuitBreaker
from goscope_django.locks import lock
from goscope_django.process import counters
from tests.support.operations import fill, own_store

prometheus = pytest.importorskip("goscope_django.integrations.prometheus")
parser = pytest.importorskip("prometheus_client.parser")
yaml = pytest.importorskip("yaml")

FOLDER = Path(__file__).parents[3] / "docs/monitoring"
DASHBOARD = FOLDER / "grafana-dashboard.json"
ALERTS = FOLDER / "alerts.yml"
SELECTOR = re.compile(r"\b(goscope_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"')
GROUPED = re.compile(r"\bby \(([^)]*)\) \(.*?\b(goscope_\w+)")
LEGEND = re.compile(r"\{\{(\w+)\}\}")
OF_PROMETHEUS = frozenset({"job", "instance"})
"""Labels that a scrape adds."""

Samples = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def samples(mongo_url: str) -> Samples:
    """Labels of all samples of a real scrape, by name."""
    counters.forget()
    with own_store(mongo_url, FIGURES_PER_NAME=5):
        fill(locks=3, circuits=3, tasks=2, flights=1, records=2)
        with lock("k"):
            pass
        CircuitBreaker("bank").call(lambda: None)
        assert figures.flush()
        text = prometheus.metrics(RequestFactory().get("/metrics")).content.decode()
    counters.forget()
    found: Samples = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def panels() -> list[dict[str, Any]]:
    board = json.loads(DASHBOARD.read_text())
    return [one for one in board["panels"] if one["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> list[str]:
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    board = json.loads(DASHBOARD.read_text())
    found += [str(one["query"]["query"]) for one in board["templating"]["list"] if one["type"] == "query"]
    return found + [rule["expr"] for rule in rules()]


def faults(expression: str, samples: Samples) -> Iterator[str]:
    """What an expression names that is not there."""
    if any(expression.count(a) != expression.count(b) for a, b in ("()", "{}", "[]")):
        yield "its brackets don't match"
    found = list(SELECTOR.finditer(expression))
    if not found:
        yield "it names no metric"
    for selector in found:
        name, given = selector[1], selector[2] or ""
        if name not in samples:
            yield f"there is no {name}"
            continue
        for label, how, value in MATCHER.findall(given):
            values = {one.get(label) for one in samples[name]}
            if label not in OF_PROMETHEUS and (None in values or (how == "=" and value not in values)):
                yield f'{name} has no {label}="{value}"'
    for labels, name in GROUPED.findall(expression):
        for label in re.split(r",\s*", labels):
            if any(label not in one for one in samples.get(name, [])):
                yield f"{name} has no label {label}"
    for counter in re.findall(r"(?:rate|increase)\((goscope_\w+)", expression):
        if not counter.endswith(("_total", "_bucket", "_sum", "_count")):
            yield f"{counter} is no counter"


def test_every_expression_names_what_a_scrape_has(samples: Samples) -> None:
    every = expressions()
    assert len(every) > 60
    assert {one: found for one in every if (found := list(faults(one, samples)))} == {}


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("max(goscope_gone)", "there is no goscope_gone"),
        ('goscope_circuits{state="ajar"}', 'goscope_circuits has no state="ajar"'),
        ('goscope_up{state="open"}', 'goscope_up has no state="open"'),
        ("max by (name) (goscope_circuits)", "goscope_circuits has no label name"),
        ("rate(goscope_locks_held[5m])", "goscope_locks_held is no counter"),
        ("max(goscope_up", "its brackets don't match"),
        ("vector(1)", "it names no metric"),
    ],
)
def test_a_fault_is_found(expression: str, fault: str, samples: Samples) -> None:
    assert list(faults(expression, samples)) == [fault]


def test_the_dashboard_is_complete() -> None:
    every = panels()
    assert len({one["id"] for one in every}) == len(every)
    for one in every:
        assert one["title"] and one["targets"] and one["fieldConfig"]["defaults"]["unit"], one["id"]
        for target in one["targets"]:
            for label in LEGEND.findall(target["legendFormat"]):
                assert re.search(rf"\bby \([^)]*\b{label}\b", target["expr"]), target
    places = [(one["gridPos"]["x"], one["gridPos"]["y"]) for one in every]
    assert len(set(places)) == len(places)
    assert all(one["gridPos"]["x"] + one["gridPos"]["w"] <= 24 for one in every)


def test_every_figure_that_is_drawn_on_our_page_is_on_the_dashboard_too() -> None:
    text = " ".join(expressions())
    for name in ("locks_acquired", "locks_contended", "locks_lost", "circuit_calls", "circuit_failures"):
        assert f"goscope_{name}_total" in text
    for name in ("lock_wait", "lock_held", "flight"):
        assert f"goscope_{name}_seconds_bucket" in text


def test_each_alert_says_what_it_is_about() -> None:
    every = rules()
    assert len({one["alert"] for one in every}) == len(every)
    for one in every:
        assert one["labels"]["severity"] in {"critical", "warning", "info"}
        assert one["annotations"]["summary"] and one["annotations"]["description"]
        assert re.fullmatch(r"[0-9]+[smh]", one.get("for", "0s"))


def test_the_metrics_are_in_the_reference(samples: Samples) -> None:
    """Those of the last hour and of the sums by the figures' names, the others by their own."""
    text = (FOLDER.parent / "how-to/monitoring.md").read_text()
    figures_named = {f"goscope_{name}_total" for name in counters.SERIES if f"`{name}`" in text}
    for name in samples:
        family = re.sub(r"_(bucket|count|sum)$", "", name)
        short = f"..._{name.removeprefix('goscope_named_').partition('_')[2]}"
        assert name in figures_named or f"`{family}`" in text or f"`{short}`" in text, name
