"""The page, its JSON, the command and the metrics show the same numbers for the same state."""

from __future__ import annotations

import io
import json
import time
from html.parser import HTMLParser
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.management import call_command
from prometheus_client import CollectorRegistry

from goscope_django import figures, operations
from goscope_django.integrations.prometheus import register
from goscope_django.operations import collect
from tests.support.dashboard import PAGE, STATE, browser_of
from tests.support.operations import fill, own_store

pytestmark = [pytest.mark.django_db]


class Numbers(HTMLParser):
    """Every ``<data>`` of the page, by where it stands."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, int] = {}
        self._section = ""
        self._anchor = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "section":
            self._section = given["aria-labelledby"]
        if tag == "a" and given.get("href", "").startswith("#"):
            self._anchor = given["href"][1:]
        if tag == "data":
            what = given.get("data-state") or given.get("data-status")
            name = f"{self._section}.{what}" if what else f"tile.{self._anchor}"
            self.found[name] = int(given["value"])


def within_one_minute() -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON of page and command. Figures move on by a minute, so both must be read within the same one."""
    deadline = time.monotonic() + 60
    while True:
        data: dict[str, Any] = browser_of(User.objects.get()).get(STATE).json()
        out = io.StringIO()
        call_command("goscope_status", "--json", "--limit", "25", stdout=out)
        command: dict[str, Any] = json.loads(out.getvalue())
        if data["figures"]["minutes"] == command["figures"]["minutes"]:
            return data, command
        assert time.monotonic() < deadline


def test_four_faces_of_one_state(mongo_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine reading may take longer, and a part that is not read has no numbers.
    monkeypatch.setattr(collect, "TIME_LIMIT", 60.0)
    with own_store(mongo_url):
        fill(locks=37, circuits=20, tasks=31, flights=4, records=9)
        for key in ("user:1", "user:2", "user:1"):
            cache.get(key)
            cache.set(key, b"xyz")
        operations.open_circuit("c0000")
        figures.flush()

        page = Numbers(browser_of(User.objects.create_superuser("root")).get(PAGE).content.decode()).found
        data, command = within_one_minute()
        registry = CollectorRegistry()
        register(registry)
        samples = {
            (one.name, tuple(sorted(one.labels.items()))): one.value
            for family in registry.collect()
            for one in family.samples
        }

    def metric(name: str, **labels: str) -> float:
        return samples[f"goscope_{name}", tuple(sorted(labels.items()))]

    # JSON and command are one document, but for what the clock changes.
    assert data.keys() == command.keys()
    assert data["schema_version"] == command["schema_version"] == operations.SCHEMA_VERSION
    for name in data.keys() - {
        "generated_at",
        "took",
        "attention",
        "server",
        "locks",
        "circuits",
        "tasks",
        "flights",
        "idempotency",
    }:
        assert data[name] == command[name], name
    for name in ("locks", "circuits", "tasks", "flights", "idempotency"):
        for key, value in data[name].items():
            if key != "items":
                assert value == command[name][key], (name, key)
        assert [still(one) for one in data[name]["items"]] == [still(one) for one in command[name]["items"]]

    assert steady(data["attention"]) == steady(command["attention"])
    assert (
        data["attention"]["by_kind"] == needs(samples) == {"circuit_open": 7, "circuit_forced": 1, "task_stalled": 16}
    )

    assert page["tile.locks"] == data["locks"]["total"] == metric("locks_held") == 37
    assert page["tile.flights"] == data["flights"]["total"] == metric("flights") == 4
    assert page["tile.circuits"] == data["circuits"]["by_state"]["open"] == 8
    assert page["tile.tasks"] == data["tasks"]["by_status"]["running"]
    assert page["tile.cache"] == data["cache"]["figures"]["hits"] == metric("last_hour", what="cache_hits") == 1
    for state, count in data["circuits"]["by_state"].items():
        assert page[f"circuits.{state}"] == count == metric("circuits", state=state)
    assert data["circuits"]["forced"] == metric("circuits_forced") == 1
    for status, count in data["tasks"]["by_status"].items():
        assert page[f"tasks.{status}"] == count == metric("tasks", status=status)
    assert (data["tasks"]["by_status"]["running"], data["tasks"]["by_status"]["stalled"]) == (15, 16)
    for state in ("in_progress", "completed"):
        count = data["idempotency"][state]
        assert page[f"idempotency.{state}"] == count == metric("idempotency_records", state=state)
    assert page["tile.idempotency"] == data["idempotency"]["in_progress"] == 4
    (alias,) = data["cache"]["aliases"]
    assert alias["entries"] == metric("cache_entries", alias="default") == 2
    for what in ("hits", "misses", "sets", "bytes_written"):
        assert alias["figures"][what] == metric("cache_last_hour", alias="default", what=what) != 0
    for what, count in data["figures"]["totals"].items():
        assert count == metric("last_hour", what=what)


def still(item: dict[str, Any]) -> dict[str, Any]:
    """What of an item does not change by itself."""
    moving = {"expires_in", "held_for", "retry_after", "heartbeat_age", "lease_left", "age", "probes", "open_for"}
    return {name: value for name, value in item.items() if name not in moving}


def steady(attention: dict[str, Any]) -> dict[str, Any]:
    """What needs attention, without the time that has passed."""
    return {**attention, "items": [{**one, "sentence": "", "seconds": 0} for one in attention["items"]]}


def needs(samples: dict[Any, float]) -> dict[str, int]:
    """What needs attention, as the metrics have it."""
    found = {dict(labels)["kind"]: count for (name, labels), count in samples.items() if name == "goscope_attention"}
    assert found.keys() == set(operations.ATTENTION_KINDS)
    return {kind: int(count) for kind, count in found.items() if count}
