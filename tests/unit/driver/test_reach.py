"""Whether a server can be reached: one caller waits for it in vain, the others are told at once, and all go on with it.

The client stands in for one of the driver's; what the driver itself does then is in ``integration/driver``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pymongo import ReadPreference
from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError

from goscope_django.core.flow import Query, execute, run
from goscope_django.mongodb.document.failures import NoPlace, NoServer
from goscope_django.mongodb.driver import reach
from goscope_django.mongodb.driver.limits import within
from goscope_django.mongodb.driver.reach import LOOK, PAUSE, Reach

PATIENCE = 5.0
WRITE, READ = Query[Any]("go_goscope_locks", "update_one"), Query[Any]("go_goscope_cache", "point")
GONE = ServerSelectionTimeoutError("127.0.0.1:9: [Errno 111] Connection refused, Timeout: 5.0s, Topology: <...>")


class Client:
    """A client that knows some kinds of servers, and how often somebody waited for one."""

    def __init__(self) -> None:
        self.servers: set[str] = set()
        self.comes: set[str] = set()
        """What the driver finds as soon as somebody waits for it."""
        self.looks = 0

    @property
    def topology_description(self) -> Any:
        return SimpleNamespace(has_readable_server=self._has)

    def _has(self, preference: Any) -> bool:
        return bool(self.servers & ({"primary"} if preference == ReadPreference.PRIMARY else {"primary", "secondary"}))

    @property
    def is_primary(self) -> bool:
        self.looks += 1
        self.servers |= self.comes
        if "primary" not in self.servers:
            raise ServerSelectionTimeoutError("still none")
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1_000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(reach, "time", clock)
    return clock


@pytest.fixture
def client() -> Client:
    return Client()


def away(client: Client) -> Reach:
    """As it is after a call that has waited in vain."""
    found = fresh(client)
    found.failed(WRITE, GONE, PATIENCE)
    assert found.away
    return found


def fresh(client: Client) -> Reach:
    return Reach(client, PATIENCE, lambda query: ReadPreference.NEAREST if query is READ else ReadPreference.PRIMARY)


def ask(reached: Reach, query: Query[Any] = WRITE) -> None:
    run(reached.ask(query), execute)


def test_nobody_waits_in_the_pause_and_the_error_says_why_and_since_when(
    client: Client, clock: SimpleNamespace
) -> None:
    reached = away(client)
    clock.now += PAUSE - 0.01
    for _ in range(50):
        with pytest.raises(NoServer, match=r"^127.0.0.1:9: \[Errno 111\] Connection refused \(for 1\.0 s; ") as caught:
            ask(reached)
        assert "Topology" not in str(caught.value)
    assert client.looks == 0


def test_after_the_pause_callers_wait_together_and_then_there_is_a_pause_again(
    client: Client, clock: SimpleNamespace
) -> None:
    reached, looks = away(client), []
    for _ in range(80):
        clock.now += 0.1
        with pytest.raises(NoServer):
            ask(reached)
        looks.append(client.looks)
    turns = [later > before for before, later in zip([0, *looks], looks, strict=False)]
    assert sum(turns) == pytest.approx(80 * LOOK / (LOOK + PAUSE), abs=3)
    assert max(len(run) for run in "".join("#" if one else "." for one in turns).split("#")) == round(PAUSE * 10)


def test_a_server_that_the_driver_sees_ends_it_without_a_wait(client: Client) -> None:
    reached = away(client)
    client.servers = {"primary"}
    ask(reached)
    assert client.looks == 0
    reached.worked()
    assert not reached.away


def test_a_server_that_comes_while_somebody_waits_serves_that_very_caller(
    client: Client, clock: SimpleNamespace
) -> None:
    reached = away(client)
    clock.now += PAUSE
    client.comes = {"primary"}
    ask(reached)
    assert client.looks == 1


def test_a_secondary_serves_reads_that_the_url_lets_it_answer_and_writes_go_on_failing(client: Client) -> None:
    reached = away(client)
    client.servers = {"secondary"}
    ask(reached, READ)
    with pytest.raises(NoServer):
        ask(reached)
    reached.worked()
    assert reached.away, "a read on a secondary says nothing of the primary"


def test_renewals_are_never_refused(client: Client) -> None:
    reached = away(client)
    with within(5, urgent=True):
        ask(reached)
    assert client.looks == 0


@pytest.mark.parametrize(
    ("error", "took", "servers"),
    [
        (GONE, PATIENCE / 2, set()),  # its caller gave it less time
        (AutoReconnect("connection closed"), 0.01, set()),
        (AutoReconnect("timed out"), 60.0, {"primary"}),  # a slow server is one
        (NoPlace("full"), PATIENCE, {"primary"}),
        (NoServer("none"), PATIENCE, set()),  # that is said for this very reason
    ],
)
def test_what_does_not_show_that_there_is_no_server_keeps_nobody_from_waiting(
    client: Client, error: Any, took: float, servers: set[str]
) -> None:
    client.servers = servers
    reached = fresh(client)
    reached.failed(WRITE, error, took)
    assert not reached.away


def test_a_broken_connection_and_then_no_server_is_an_outage(client: Client) -> None:
    """The driver raises the error of the first attempt, if the second finds no server."""
    reached = fresh(client)
    reached.failed(WRITE, AutoReconnect("connection closed"), PATIENCE)
    assert reached.away


def test_after_a_connection_that_broke_late_the_next_caller_looks_and_goes_on(
    client: Client, clock: SimpleNamespace
) -> None:
    """An answer that never came does not say that there is no server: one that is lost fails no other call."""
    reached = fresh(client)
    reached.failed(WRITE, AutoReconnect("connection closed"), PATIENCE)
    client.comes = {"primary"}
    ask(reached)
    assert client.looks == 1
