"""The server can't be reached: before the work, after it, and while its lease should be renewed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path

from goscope_django import runtime, signals
from goscope_django.exceptions import StoreUnavailable
from goscope_django.idempotency import idempotent
from goscope_django.mongodb.driver import client as clients
from goscope_django.mongodb.driver.execute import AsyncExecutor, SyncExecutor
from goscope_django.process import outage
from tests.support.mongod import ReplicaSet, replica_set

NOWHERE = "mongodb://user:secret@127.0.0.1:1/t?appname=away"
runs: list[str] = []


@idempotent()
def strict(request: HttpRequest) -> HttpResponse:
    runs.append("strict")
    return HttpResponse("done")


@idempotent()
async def astrict(request: HttpRequest) -> HttpResponse:
    runs.append("strict")
    return HttpResponse("done")


@idempotent(on_error="ignore")
def lenient(request: HttpRequest) -> HttpResponse:
    runs.append("lenient")
    return HttpResponse("done")


@idempotent(on_error="ignore")
async def alenient(request: HttpRequest) -> HttpResponse:
    runs.append("lenient")
    return HttpResponse("done")


hook: list[Any] = []


@idempotent(lease=0.6)
def interrupted(request: HttpRequest) -> HttpResponse:
    runs.append("interrupted")
    hook[0](request)
    return HttpResponse("done")


@idempotent()
def shaken(request: HttpRequest) -> HttpResponse:
    runs.append("shaken")
    return HttpResponse("done", status=hook[0](request))


@idempotent()
async def ashaken(request: HttpRequest) -> HttpResponse:
    runs.append("shaken")
    return HttpResponse("done", status=hook[0](request))


urlpatterns = [
    path("sync/shaken/", shaken),
    path("async/shaken/", ashaken),
    path("sync/strict/", strict),
    path("async/strict/", astrict),
    path("sync/lenient/", lenient),
    path("async/lenient/", alenient),
    path("sync/interrupted/", interrupted),
]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    runs.clear()
    hook.clear()
    outage._outages.pop("idempotency", None)
    yield
    outage._outages.pop("idempotency", None)


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def send(mode: str, name: str, key: str | None = "k") -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    place = f"/{mode}/{name}/"
    if mode == "sync":
        return Client(raise_request_exception=False).post(place, "{}", "application/json", headers=headers)
    client = AsyncClient(raise_request_exception=False)
    return asyncio.run(client.post(place, "{}", "application/json", headers=headers))


class TestAway:
    @pytest.fixture(autouse=True)
    def _away(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        for executor in (SyncExecutor, AsyncExecutor):  # nobody wants to wait ten seconds for nothing
            monkeypatch.setitem(executor.__init__.__kwdefaults__ or {}, "limit", 0.3)
        with override_settings(GOSCOPE={"TEST": {"URL": NOWHERE}, "ON_ERROR": "ignore"}, ROOT_URLCONF=__name__):
            yield

    def test_the_request_is_refused_and_may_be_sent_again(self, mode: str) -> None:
        """``ON_ERROR`` of the settings does not count: doing without is to be said where it is decorated."""
        response = send(mode, "strict")
        assert response.status_code == 503
        assert response["Retry-After"] == "5"
        assert response["Content-Type"] == "application/problem+json"
        assert json.loads(response.content)["type"] == "urn:goscope:problem:idempotency-unavailable"
        assert b"secret" not in response.content
        assert b"127.0.0.1" not in response.content
        assert runs == []

    def test_without_a_key_nobody_asks_the_server(self, mode: str) -> None:
        assert send(mode, "strict", key=None).status_code == 200

    def test_ignored_it_runs_and_says_so_once(self, mode: str) -> None:
        told: list[str] = []

        def hear(sender: Any, feature: str, **_: Any) -> None:
            told.append(feature)

        signals.degraded.connect(hear)
        try:
            assert [send(mode, "lenient").status_code for _ in range(3)] == [200] * 3
        finally:
            signals.degraded.disconnect(hear)
        assert runs == ["lenient"] * 3
        assert told == ["idempotency"]

    def test_a_function_raises_or_runs(self) -> None:
        with pytest.raises(StoreUnavailable):
            idempotent(key="k", name="a_function_raises_or")(lambda: 1)()
        assert idempotent(key="k", on_error="ignore", name="a_function_raises_or")(lambda: 1)() == 1


@pytest.mark.real
@pytest.mark.slow
def test_a_server_that_dies_while_the_work_runs() -> None:
    """The response goes to its caller, marked as not recorded; back again the claim ends, and a repeat runs."""
    with replica_set(members=1) as servers:
        url = servers.uri.replace("/?", "/t?") + "&serverSelectionTimeoutMS=300&connectTimeoutMS=300"
        with override_settings(GOSCOPE={"TEST": {"URL": url}}, ROOT_URLCONF=__name__):
            runtime.adapter().ensure_indexes()
            port: list[int] = []
            executor = runtime.adapter().store.executor()
            assert isinstance(executor, SyncExecutor)
            executor.limit = 1.0

            def kill(request: Any) -> None:
                port.append(servers.kill_primary())
                deadline = time.monotonic() + 10
                while not request.idempotency.lost:
                    assert time.monotonic() < deadline, "a lease that can't be renewed is lost at its end"
                    time.sleep(0.02)

            hook.append(kill)
            response = send("sync", "interrupted")
            assert (response.status_code, response["Idempotent-Stored"]) == (200, "false")
            servers.resume(port[0])
            servers.primary_port()
            hook[0] = lambda request: None
            deadline = time.monotonic() + 20
            while (again := send("sync", "interrupted")).status_code != 200:
                assert again.status_code in (409, 503)
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert "Idempotent-Replayed" not in again
            assert send("sync", "interrupted")["Idempotent-Replayed"] == "true"
            assert len(runs) == 2
            clients.connection(url).close()


@pytest.mark.real
@pytest.mark.slow
def test_what_an_outage_kept_from_being_recorded_is_recorded_when_it_ends(mode: str) -> None:
    """The lease lasts 30 seconds: work that is done does not run again, and work that failed may run at once."""
    lost: list[str] = []

    def hear(sender: Any, key: str, **_: Any) -> None:
        lost.append(key)

    def sent(key: str, *, until: int) -> Any:
        deadline = time.monotonic() + 20
        while (found := send(mode, "shaken", key)).status_code != until:
            assert found.status_code in (409, 503), found.content
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found

    with replica_set(members=1) as servers:
        url = servers.uri.replace("/?", "/t?") + "&serverSelectionTimeoutMS=300&connectTimeoutMS=300"
        with override_settings(GOSCOPE={"TEST": {"URL": url}}, ROOT_URLCONF=__name__):
            runtime.adapter().ensure_indexes()
            signals.idempotent_lost.connect(hear)
            try:
                statuses: dict[str, int] = {}

                def kill(request: Any) -> int:
                    if servers.pids:
                        servers.kill_primary()
                    return statuses[request.headers["Idempotency-Key"]]

                for key, status in (("good", 200), ("bad", 500)):
                    statuses[key] = status
                    hook[:] = [kill]
                    first = _through_an_outage(mode, key, servers)
                    assert first.status_code == status
                    hook[:] = [lambda request: 200]
                    again = sent(key, until=200)
                    if key == "good":
                        assert first["Idempotent-Stored"] == "false" and again["Idempotent-Replayed"] == "true"
                    else:
                        assert "Idempotent-Replayed" not in again
                assert len(runs) == 3 and lost == []
            finally:
                signals.idempotent_lost.disconnect(hear)
                clients.connection(url).close()


def _through_an_outage(mode: str, key: str, servers: ReplicaSet) -> Any:
    """One request during which the server is killed; it is there again afterwards."""
    (port,) = servers.ports
    if mode == "sync":
        found = send(mode, "shaken", key)
        servers.resume(port)
        servers.primary_port()
        return found

    async def through() -> Any:
        client = AsyncClient(raise_request_exception=False)
        headers = {"Idempotency-Key": key}
        found = await client.post("/async/shaken/", "{}", "application/json", headers=headers)
        servers.resume(port)
        await asyncio.to_thread(servers.primary_port)
        others = [one for one in asyncio.all_tasks() if one.get_name() == "goscope-release"]
        if others:  # else it is done already
            await asyncio.wait(others, timeout=20)
        return found

    return asyncio.run(through())


@pytest.mark.real
def test_a_lease_is_kept_alive_for_as_long_as_the_work_takes(mongo_url: str) -> None:
    with override_settings(GOSCOPE={"TEST": {"URL": mongo_url}}, ROOT_URLCONF=__name__):
        runtime.adapter().wipe()

        def long(request: Any) -> None:
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                assert send("sync", "interrupted").status_code == 409
                time.sleep(0.1)
            assert not request.idempotency.lost

        hook.append(long)
        assert "Idempotent-Stored" not in send("sync", "interrupted")
        assert send("sync", "interrupted")["Idempotent-Replayed"] == "true"
        assert len(runs) == 1
