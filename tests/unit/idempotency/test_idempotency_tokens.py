"""Tokens of claims that change hands quickly: the server takes the time of a command when it begins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson.timestamp import Timestamp
from pymongo.errors import AutoReconnect

from goscope_django.contracts import IdempotencyClaim
from goscope_django.core.flow import Command, Query, run
from goscope_django.exceptions import OutcomeUnknown
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.document.clock import TOKEN_STEPS, ServerClock
from goscope_django.mongodb.idempotency.flows import IdempotencyFlows

SECOND = 1_800_000_000
BEGAN = datetime.fromtimestamp(SECOND, UTC) + timedelta(milliseconds=250)


class Server:
    """Lets a claim be made by a command that is answered ``steps`` writes after it began."""

    def __init__(
        self, steps: int, *, lost: int = 0, unnumbered: int = 0, ended: bool = False, stands: int = SECOND * TOKEN_STEPS
    ) -> None:
        self.stands = stands
        self.steps = steps
        self.lost = lost
        self.unnumbered = unnumbered
        self.ended = ended
        self.sent: list[Query[Any]] = []

    def __call__(self, query: Command[Any]) -> Any:
        assert isinstance(query, Query)
        self.sent.append(query)
        if query.method == "find_one_and_update":
            if self.unnumbered:
                self.unnumbered -= 1
                raise AutoReconnect("cut")
            return None if self.ended else {"token": SECOND * TOKEN_STEPS + 9}
        if query.method == "delete_one":
            return None
        if query.method == "confirm":
            return {"token": self.stands}
        assert query.method == "upserted"
        if self.lost:
            self.lost -= 1
            raise AutoReconnect("the answer is lost")
        granted = query.args[1][0]["$set"]["claim"]["$cond"][1]["$literal"]
        document = {"key": "claim:k", "claim": granted, "token": SECOND * TOKEN_STEPS, "updatedAt": BEGAN, "now": BEGAN}
        return document, Timestamp(SECOND, self.steps)

    @property
    def methods(self) -> list[str]:
        return [query.method for query in self.sent]


def begun(server: Server) -> IdempotencyClaim:
    flows = IdempotencyFlows("", Codec(pickle=False))
    return run(flows.begin(ServerClock(), "k", 60_000, None, 1_000), server)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_claim_that_nobody_can_have_had_meanwhile_is_one_command(steps: int) -> None:
    server = Server(steps)
    assert begun(server).outcome == "started" and server.methods == ["upserted"]


@pytest.mark.parametrize(("steps", "lost"), [(3, 0), (1, 1)])
def test_a_claim_is_numbered_anew_where_another_may_have_come_and_gone(steps: int, lost: int) -> None:
    server = Server(steps, lost=lost)
    claim = begun(server)
    assert claim.outcome == "started" and claim.token == SECOND * TOKEN_STEPS + 9
    assert server.methods == ["upserted"] * (1 + lost) + ["find_one_and_update"]
    assert server.sent[-1].args[0]["claim"] == claim.claim, "only while it is ours"


def test_a_claim_that_ended_before_it_was_numbered_is_not_started() -> None:
    assert begun(Server(9, ended=True)).outcome == "in_progress"


def test_a_claim_that_cannot_be_numbered_is_given_up() -> None:
    server = Server(9, unnumbered=2)
    with pytest.raises(OutcomeUnknown, match="given up"):
        begun(server)
    assert server.methods[-1] == "delete_one" and server.sent[-1].args[0]["claim"]


def test_a_claim_that_was_numbered_though_no_answer_came_is_started() -> None:
    server = Server(9, unnumbered=2, stands=SECOND * TOKEN_STEPS + 12)
    assert begun(server).token == SECOND * TOKEN_STEPS + 12
    assert server.methods[-1] == "confirm"
