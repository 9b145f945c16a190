"""One circuit, used by a breaker and by the TypeScript package: each sees what the other writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from goscope_django import circuits
from goscope_django.circuits import CircuitBreaker, CircuitOpen
from tests.interop.node import Node, NodeMissing, install
from tests.support.circuits import Boom, document, look_again, own_store, shown

pytestmark = pytest.mark.real


@pytest.fixture(scope="session")
def packages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the npm packages; skips where the registry can't be reached, except in CI."""
    kept = getattr(request.config, "cache", None)
    try:
        return install(kept.mkdir("interop") if kept else tmp_path_factory.mktemp("interop"))
    except NodeMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no Node to talk to: {error}")


@pytest.fixture
def node(packages: Path, mongo_url: str) -> Iterator[Node]:
    with own_store(mongo_url) as prefix, Node(packages, mongo_url, prefix) as process:
        process("connect")
        yield process


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    def body() -> None:
        raise Boom

    for _ in range(times):
        with pytest.raises(Boom):
            breaker.call(body)


def milliseconds_ago(seconds: float) -> int:
    return round((datetime.now(UTC) - timedelta(seconds=seconds)).timestamp() * 1_000)


def test_node_opens_for_a_breaker(node: Node) -> None:
    breaker = CircuitBreaker("supplier", reset_timeout=30)
    assert breaker.call(lambda: 1) == 1
    for _ in range(3):
        node("recordFailure", "supplier", 3)
    look_again()
    with pytest.raises(CircuitOpen) as caught:
        breaker.call(lambda: 1)
    assert 25 < caught.value.retry_after <= 31
    found = shown("supplier")
    assert (found.state, found.failure_count, found.generation) == ("open", 3, 0)


def test_a_breaker_opens_and_closes_for_node(node: Node) -> None:
    breaker = CircuitBreaker("supplier", failure_threshold=2, reset_timeout=30)
    fail(breaker, 2)
    seen = node("getState", "supplier")
    assert (seen["state"], seen["failureCount"]) == ("open", 2)
    assert seen["lastFailureTime"]
    node("setState", "supplier", {**seen, "lastFailureTime": seen["lastFailureTime"] - 31_000})
    stored = document("supplier")
    assert stored
    assert stored["history"], "Node keeps our fields"
    circuits.reset("supplier")
    assert node("getState", "supplier")["state"] == "closed"


def test_a_probe_closes_what_node_opened(node: Node) -> None:
    breaker = CircuitBreaker("supplier", reset_timeout=30)
    state: dict[str, Any] = {"state": "open", "failureCount": 5, "lastFailureTime": milliseconds_ago(31)}
    node("setState", "supplier", state)
    with breaker:
        assert node("getState", "supplier")["state"] == "half-open"
    seen = node("getState", "supplier")
    assert (seen["state"], seen["failureCount"]) == ("closed", 0)


def test_a_success_of_node_closes_for_a_breaker(node: Node) -> None:
    breaker = CircuitBreaker("supplier", failure_threshold=2)
    fail(breaker, 2)
    node("recordSuccess", "supplier")
    look_again()
    fail(breaker)
    assert breaker.call(lambda: 1) == 1, "the failures from before do not count any more"


def test_failures_of_both_add_up(node: Node) -> None:
    breaker = CircuitBreaker("supplier", failure_threshold=4)
    fail(breaker)
    assert node("recordFailure", "supplier", 10) == 2
    fail(breaker)
    assert node("recordFailure", "supplier", 10) == 4
    assert shown("supplier").state == "closed"
    fail(breaker)
    assert (shown("supplier").state, shown("supplier").failure_count) == ("open", 5)


def test_an_override_wins_over_node(node: Node) -> None:
    breaker = CircuitBreaker("supplier")
    circuits.force_open("supplier", "maintenance")
    assert node("getState", "supplier")["state"] == "open"
    node("recordSuccess", "supplier")
    look_again()
    with pytest.raises(CircuitOpen):
        breaker.call(lambda: 1)
