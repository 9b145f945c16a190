"""The server hangs, or is killed: the page says so, shows how old its data are, and recovers by itself."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from goscope_django import runtime
from tests.conftest import with_database
from tests.support.browser import Operator
from tests.support.commands import on_server
from tests.support.mongod import ReplicaSet, replica_set

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(200)]


@pytest.fixture
def server() -> Iterator[ReplicaSet]:
    with replica_set(members=1) as running:
        yield running


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_an_outage_is_told_and_ends_by_itself(operator: Operator, server: ReplicaSet, number: signal.Signals) -> None:
    with on_server(with_database(server.uri, "outage")):
        runtime.connection().prepare(10)
        assert runtime.adapter().lock.acquire("orders", ttl=600_000)
        operator.open()
        operator.row("locks", "orders")
        port = server.kill_primary(number)
        try:
            operator.until(lambda: operator.find("#goscope-warning").is_displayed())
            said = operator.text("#goscope-warning")
            good = operator.find("#goscope-state").get_attribute("data-as-of")
            assert said.startswith(f"Refreshing fails. What is shown is as of {good}. MongoDB can't be reached: "), said
            assert "It is tried again every" in said
            # The last good data stay, and are marked.
            assert operator.row("locks", "orders").is_displayed()
            assert operator.every("#goscope.goscope-stale")
            waits = said
            operator.until(lambda: operator.text("#goscope-warning") != waits, 40)  # it is asked less and less often
            # A page that is opened now comes all the same, and says what is wrong and what to do.
            began = time.monotonic()
            operator.open()
            assert time.monotonic() - began < 20
            assert "MongoDB can't be reached" in operator.text(".goscope-problems")
            assert "Is the server running" in operator.text(".goscope-problems")
            assert not operator.every("#section-locks")
        finally:
            server.resume(port)
        operator.until(lambda: operator.row("locks", "orders"), 60)
        assert not operator.find("#goscope-warning").is_displayed()
        assert not operator.every(".goscope-stale, .goscope-problems")
        assert operator.console() == []


def test_a_site_that_does_not_answer_is_told(operator: Operator) -> None:
    with on_server("mongomock://"):
        operator.open()
        operator.refreshed()
        operator.devtools("Network.enable")
        operator.devtools(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        try:
            operator.until(lambda: "The site can't be reached." in operator.text("#goscope-warning"))
            assert "What is shown is as of " in operator.text("#goscope-warning")
        finally:
            operator.devtools(
                "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
            )
        operator.until(lambda: not operator.find("#goscope-warning").is_displayed())
        operator.refreshed()


def test_an_error_of_the_site_is_told(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    from goscope_django.dashboard import site

    with on_server("mongomock://"):
        operator.open()

        def broken(query: object) -> None:
            raise RuntimeError("a bug of ours")

        with monkeypatch.context() as patched:
            patched.setattr(site, "_state", broken)
            operator.until(lambda: "answered with the error 500" in operator.text("#goscope-warning"))
        operator.until(lambda: not operator.find("#goscope-warning").is_displayed())
