"""Tokens of locks that change hands quickly: the server takes the time of a command when it begins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson.timestamp import Timestamp
from pymongo.errors import AutoReconnect

from goscope_django.core.flow import Command, Query, run
from goscope_django.exceptions import OutcomeUnknown
from goscope_django.mongodb.document.clock import TOKEN_STEPS, ServerClock, outrun
from goscope_django.mongodb.locks.flows import LockFlows

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
        ((SECOND - 5, 7), (SECOND - 5, 9), True),  # the clock was set back while the command was on its way
        ((SECOND + 60, 7), (SECOND + 60, 9), False),  # it was set back a while ago
        ((SECOND, 7), None, False),  # a standalone server
    ],
)
def test_whether_another_holder_may_have_come_and_gone(
    token: tuple[int, int], answered: tuple[int, int] | None, expected: bool
) -> None:
    time = None if answered is None else Timestamp(*answered)
    assert outrun(token[0] * TOKEN_STEPS + token[1], BEGAN, time) is expected


class Server:
    """Lets the lock be taken by a command that is answered ``steps`` writes after it began."""

    def __init__(self, steps: int, failures: int = 0, lost: int = 0) -> None:
        self.steps = steps
        self.failures = failures
        self.lost = lost
        self.sent: list[Query[Any]] = []

    def __call__(self, query: Command[Any]) -> Any:
        assert isinstance(query, Query)
        self.sent.append(query)
        document: dict[str, Any] = {"_id": "lock:a", "key": "lock:a", "token": SECOND * TOKEN_STEPS, "createdAt": BEGAN}
        if query.method == "find_one_and_update":
            if self.failures:
                self.failures -= 1
                raise AutoReconnect("cut")
            return {**document, "claim": query.args[0]["claim"], "token": document["token"] + 9}
        if query.method == "upserted" and self.lost:
            self.lost -= 1
            raise AutoReconnect("the answer is lost")
        found = {**document, "claim": "mine"}
        return found if query.method == "confirm" else (found, Timestamp(SECOND, self.steps))

    @property
    def methods(self) -> list[str]:
        return [query.method for query in self.sent]


def acquired(server: Server) -> dict[str, Any] | None:
    return run(LockFlows("").acquire(ServerClock(), "a", "me", "mine", 1_000), server)


def test_a_lock_is_numbered_anew_where_another_may_have_come_and_gone_whoever_this_process_met() -> None:
    server = Server(steps=9)
    found = acquired(server)
    assert found and found["token"] == SECOND * TOKEN_STEPS + 9
    assert server.methods == ["upserted", "find_one_and_update"]
    assert server.sent[-1].args[0]["claim"] == "mine", "only while it is ours"


@pytest.mark.parametrize("steps", [1, 2])
def test_a_lock_that_nobody_can_have_had_meanwhile_is_one_command(steps: int) -> None:
    server = Server(steps)
    assert acquired(server) and server.methods == ["upserted"]


def test_a_lock_whose_answer_was_lost_is_numbered_anew() -> None:
    server = Server(steps=1, lost=1)
    found = acquired(server)
    assert found and found["token"] == SECOND * TOKEN_STEPS + 9
    assert server.methods == ["upserted", "confirm", "find_one_and_update"]


def test_a_lock_that_cannot_be_numbered_is_given_back() -> None:
    once = Server(steps=9, failures=1)
    assert acquired(once) and once.methods == ["upserted", "find_one_and_update", "find_one_and_update"]
    server = Server(steps=9, failures=2)
    with pytest.raises(OutcomeUnknown, match="given back"):
        acquired(server)
    assert server.methods[-1] == "delete_one" and server.sent[-1].args[0]["claim"] == "mine"
