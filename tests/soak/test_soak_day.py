"""A few minutes of the soak's day: see ``day``. ``make soak`` lives through all of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from goscope_django.core.flow import Flow
from goscope_django.process import renewal
from tests.soak import day
from tests.support.commands import on_server

pytestmark = pytest.mark.real
MINUTES = 6


@pytest.fixture
def store(mongo_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(day, "WARM", 3)
    monkeypatch.setattr(day, "REST", 0.0)
    monkeypatch.setattr(renewal, "_IDLE", 0.2)  # seconds after which a thread with nothing to renew ends
    with on_server(mongo_url):
        yield


def test_a_day_leaves_nothing_behind(store: None) -> None:
    faults, counts = day.live_through(MINUTES)
    assert not faults
    assert counts["locks"] == counts["tasks"] == counts["flights"] == counts["claims"] == MINUTES + 3


def test_what_is_left_behind_is_found(store: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(day, "PATIENCE", 1.0)
    over, kept = threading.Event(), list[Any]()

    def careless(self: day.Day, number: int) -> Flow[None]:
        yield from ()
        if number >= day.WARM:
            self.database.go_goscope_locks.insert_one({"key": str(number)})
            threading.Thread(target=over.wait).start()
            kept.extend([socket.socket(), [[] for _ in range(100)]])

    monkeypatch.setattr(day.Day, "cycle", careless)
    try:
        faults, _ = day.live_through(MINUTES)
    finally:
        over.set()
        for one in kept[::2]:
            one.close()
    assert [one.partition(":")[0] for one in faults] == ["documents", "threads", "sockets", "objects"]
