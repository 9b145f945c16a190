"""An outage costs a process one wait for the server, not one for each call, and nobody has to restart anything."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from django.core.cache import cache as default_cache

from goscope_django import locks, runtime
from goscope_django.exceptions import StoreUnavailable
from goscope_django.mongodb.document.failures import NoServer
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import on_server
from tests.support.mongod import replica_set

pytestmark = pytest.mark.real
cache: Any = default_cache
AWAY = "mongodb://user:hunter2@127.0.0.1:9/goscope"  # the port "discard", on which nobody listens
BRIEF = {"serverSelectionTimeoutMS": 300}


def refused(drive: Drive, subject: Any, method: str, *args: Any) -> BaseException | None:
    """What the driver's error was that the call failed with."""
    with pytest.raises(StoreUnavailable, match="no server was reached: ") as caught:
        drive(subject, method, *args)
    assert "hunter2" not in f"{caught.value}{caught.value.__cause__!r}"
    assert "127.0.0.1:9" in str(caught.value)
    return caught.value.__cause__


def test_the_first_call_waits_and_the_others_of_all_features_do_not(drive: Drive) -> None:
    with on_server(AWAY, client_options=BRIEF):
        adapter = runtime.adapter()
        assert not isinstance(refused(drive, cache, "get", "k"), NoServer)
        for subject, method, args in (
            (cache, "set", ("k", 1)),
            (cache, "get_many", (["k"],)),
            (adapter.lock, "acquire", ("k",)),
            (adapter.idempotency, "begin", ("k", 1_000)),
            (adapter.circuit_breaker, "get_state", ("k",)),
            (adapter.checkpoint, "load_latest", ("k",)),
        ):
            assert isinstance(refused(drive, subject, method, *args), NoServer), method


def test_tasks_and_threads_that_come_later_are_all_told_at_once() -> None:
    async def scene() -> list[Any]:
        refused = await asyncio.gather(cache.aget("k"), return_exceptions=True)
        more = await asyncio.gather(*(cache.aget(f"k{n}") for n in range(200)), return_exceptions=True)
        return [*refused, *more]

    with on_server(AWAY, client_options=BRIEF):
        first, *others = asyncio.run(scene())
    assert isinstance(first, StoreUnavailable) and not isinstance(first.__cause__, NoServer)
    assert {type(one.__cause__) for one in others} == {NoServer}


@pytest.mark.slow
def test_a_process_that_has_said_so_works_again_within_seconds_of_the_servers_return() -> None:
    """Each of its clients finds the server again: the threads' and the event loop's."""
    with (
        replica_set(members=1) as server,
        on_server(f"mongodb://127.0.0.1:{server.ports[0]}/reach", client_options=BRIEF),
    ):
        drives = [Drive("sync"), Drive("async")]
        held = [drive(locks.backend(), "acquire", drive.kind, 60) for drive in drives]
        port = server.kill_primary()
        for drive in drives:
            while not isinstance(_failure(drive), NoServer):
                pass
        server.resume(port)
        server.primary_port()
        deadline = time.monotonic() + 10
        for drive, mine in zip(drives, held, strict=True):
            while _failure(drive) is not None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert drive(locks.backend(), "release", mine)
            drive.close()


def _failure(drive: Drive) -> BaseException | None:
    try:
        drive(cache, "get", "k")
    except StoreUnavailable as error:
        return error.__cause__
    return None
