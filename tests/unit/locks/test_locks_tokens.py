"""Tokens of locks that change hands quickly: the server takes the time of a command when it begins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson.timestamp import Timestamp

from goscope_django.core.flow import Command, Query, run
from goscope_django.mongodb.document.clock import TOKEN_STEPS, ServerClock, outrun
from goscope_django.mongodb.locks.flows import MOST_NOTED, WANTED, LockFlows

SECOND = 1_800_000_000
BEGAN = datetime.fromtimestamp(SECOND, UTC) + timedelta(milliseconds=250)


@pytest.mark.parametrize(
    ("token", "answered", "expected"),
    [
        ((SECOND, 7), (SECOND, 8), False),  # its own insertion
        ((SECOND, 7), (SECOND, 9), False),  # its own change of a document, or one foreign write
        ((SECOND, 7), (SECOND, 10), True),  # somebody's insertion and removal, and its own insertion
        ((SECOND, 7), (SECOND + 1, 1), True),  # who knows
        ((SECOND - 5, 7), (SECOND, 1), False),  # the first write for five seconds
        ((SECOND - 5, 7), (SECOND, 2), False),
        ((SECOND - 5, 7), (SECOND, 3), True),
        ((SECOND, 7), None, False),  # a standalone server
    ],
)
def test_whether_another_holder_may_have_come_and_gone(
    token: tuple[int, int], answered: tuple[int, int] | None, expected: bool
) -> None:
    time = None if answered is None else Timestamp(*answered)
    assert outrun(token[0] * TOKEN_STEPS + token[1], BEGAN, time) is expected


class Server:
    """Holds the lock for another, then lets it be taken by a command that took long."""

    def __init__(self) -> None:
        self.held = True
        self.sent: list[Query[Any]] = []

    def __call__(self, query: Command[Any]) -> Any:
        assert isinstance(query, Query)
        self.sent.append(query)
        document: dict[str, Any] = {"_id": "lock:a", "key": "lock:a", "token": SECOND * TOKEN_STEPS, "createdAt": BEGAN}
        if query.method == "find_one_and_update":
            return {**document, "claim": query.args[0]["claim"], "token": document["token"] + 9}
        return {**document, "claim": "other" if self.held else "mine"}, Timestamp(SECOND, 9)


def test_a_lock_that_others_want_is_numbered_anew() -> None:
    server, clock, flows = Server(), ServerClock(), LockFlows("")
    assert run(flows.acquire(clock, "a", "me", "mine", 1_000), server) is None
    server.held = False
    found = run(flows.acquire(clock, "a", "me", "mine", 1_000), server)
    assert found and found["token"] == SECOND * TOKEN_STEPS + 9
    assert [query.method for query in server.sent] == ["upserted", "upserted", "find_one_and_update"]
    assert server.sent[-1].args[0]["claim"] == "mine", "only while it is ours"


def test_a_lock_that_nobody_else_wants_is_one_command() -> None:
    server, flows = Server(), LockFlows("")
    server.held = False
    assert run(flows.acquire(ServerClock(), "a", "me", "mine", 1_000), server)
    assert len(server.sent) == 1


def test_what_is_noted_is_bounded_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("goscope_django.mongodb.locks.flows.time.monotonic", lambda: now[0])
    flows = LockFlows("")
    for number in range(MOST_NOTED):
        flows._note(str(number))
    assert flows._wanted("5")
    flows._note("one more")
    assert len(flows._refused) == MOST_NOTED and not flows._wanted("0"), "the oldest goes"
    now[0] = WANTED
    assert not flows._wanted("5")
    flows._note("new")
    assert list(flows._refused) == ["new"] and flows._wanted("new")
