"""Locks while the server hangs or is away, and what is sent to it: L4 to L7, L9, L12. Real servers of their own."""

# ruff: noqa: PT012 - what is tested is what leaving a block raises

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from goscope_django import locks, runtime
from goscope_django.exceptions import LockLost, StoreError
from goscope_django.locks import lock
from goscope_django.mongodb.embedded import Mongod
from tests.support.commands import Recorder, on_server
from tests.support.freezing import freeze
from tests.support.locks import settings_for
from tests.support.mongod import temporary_mongod


@pytest.fixture(scope="module")
def server() -> Iterator[Mongod]:
    """One that may be made to hang."""
    with temporary_mongod() as started:
        yield started


@pytest.fixture
def url(server: Mongod) -> str:
    return server.uri.replace("/?", "/outage?")


@contextmanager
def hanging(server: Mongod) -> Iterator[None]:
    freeze(server.pid)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.real
def test_l9_a_server_that_hangs_for_less_than_the_lease_costs_nothing(server: Mongod, url: str) -> None:
    with settings_for(url), lock("stock", 6) as handle:
        while not handle._renewal.sending:
            pass
        with hanging(server):
            assert not handle.lost.wait(1.5)
        first = handle._renewal.deadline
        while handle._renewal.deadline <= first:
            assert not handle.lost.wait(0.01)
        assert handle.is_valid()


@pytest.mark.real
def test_l7_a_server_that_hangs_past_the_lease_is_a_loss(server: Mongod, url: str) -> None:
    told = threading.Event()
    with settings_for(url):
        with pytest.raises(LockLost), lock("stock", 1.2) as handle:
            handle.on_lost(lambda _: told.set())
            with hanging(server):
                assert handle.lost.wait()
                assert told.wait(60)  # while it still hangs
        # What was on its way when it woke up may have prolonged the lease once more.
        with lock("stock", blocking_timeout=30):
            pass


@pytest.mark.real
async def test_l7_in_a_coroutine(server: Mongod, url: str) -> None:
    with settings_for(url):
        with pytest.raises(LockLost):
            async with lock("stock", 1.2) as handle:
                with hanging(server):
                    assert await handle.wait_lost()
        async with lock("stock"):
            pass


@pytest.mark.real
def test_l6_a_release_is_bounded_and_never_hides_the_error_of_the_block(server: Mongod, url: str) -> None:
    with settings_for(url):
        with hanging(server):
            os.kill(server.pid, signal.SIGCONT)
            with pytest.raises(KeyError), lock("stock", 2) as handle:
                freeze(server.pid)
                raise KeyError
        assert not handle.released
        with lock("stock"):  # it ended with its lease
            pass


@pytest.mark.real
def test_l6_a_release_that_failed_is_an_error_of_a_block_that_did_not(server: Mongod, url: str) -> None:
    with settings_for(url), hanging(server):
        os.kill(server.pid, signal.SIGCONT)
        with pytest.raises((StoreError, LockLost)), lock("stock", 3):
            freeze(server.pid)


@pytest.mark.real
def test_l12_waiting_is_bounded_when_the_server_hangs(server: Mongod, url: str) -> None:
    with settings_for(url):
        lock("warm").acquire().release()
        with hanging(server), pytest.raises(StoreError):
            lock("stock", blocking_timeout=0.5).acquire()
        # The attempt that was given up was carried out after all. Nobody waits for the end of its lease, half a minute.
        with lock("stock", blocking_timeout=15):
            pass


def test_l12_and_when_there_is_none() -> None:
    options = {"serverSelectionTimeoutMS": 300}
    with settings_for("mongodb://127.0.0.1:1/none", CLIENT_OPTIONS=options), pytest.raises(StoreError):
        lock("stock", blocking_timeout=2).acquire()


@pytest.mark.real
def test_l4_l5_the_primary_and_the_majority_whatever_the_url_says(server: Mongod, url: str) -> None:
    recorder = Recorder()
    careless = f"{url}&readPreference=secondary&w=1&readConcernLevel=available"
    with on_server(careless, client_options={"event_listeners": [recorder]}):
        runtime.adapter().connect()
        recorder.clear()
        with lock("stock") as handle:
            assert handle.extend()
            assert handle.is_valid()
            assert handle._renewal.renewable.renew([handle._renewal.renewable], 5)
            locks.backend().list()
    writes = [command for name, command in zip(recorder.names, recorder.commands, strict=True) if name != "find"]
    assert len(writes) >= 4
    for command in writes:
        assert command["writeConcern"]["w"] == "majority"
        assert command["maxTimeMS"] > 0  # a majority that is not there is not waited for without end
    for command in recorder.commands:
        assert command.get("$readPreference", {}).get("mode", "primary") in ("primary", "primaryPreferred")


@pytest.mark.real
def test_a_server_that_is_killed_and_back_within_the_lease(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its data outlive it, and so does the lock."""
    from goscope_django.mongodb import embedded

    folder = tmp_path_factory.mktemp("locks") / "db"
    first = embedded.start(folder)
    try:
        with settings_for(first.uri.replace("/?", "/outage?")), lock("stock", 25) as handle:
            os.kill(first.pid, signal.SIGKILL)
            second = embedded.start(folder)
            assert second.pid != first.pid
            handle._renewal.due = 0.0
            deadline = handle._renewal.deadline
            handle._renewal.renewer.hurry(handle._renewal)  # type: ignore[union-attr]
            thread: Any = handle._renewal.renewer
            thread.wake.set()
            while handle._renewal.deadline <= deadline:
                assert not handle.lost.wait(0.02)
            assert handle.is_valid()
    finally:
        with suppress(Exception):
            embedded.stop(folder, timeout=0)
