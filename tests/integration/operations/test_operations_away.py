"""Since when the server is away: what a member that still answers knows, and what this process has seen."""

from __future__ import annotations

import io
import os
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from goscope_django import operations, runtime
from goscope_django.exceptions import GoscopeError
from goscope_django.management.output import WIDTH
from goscope_django.operations import collect
from goscope_django.operations.meanwhile import since_when
from tests.conftest import with_database
from tests.support.commands import on_server
from tests.support.mongod import replica_set
from tests.support.operations import own_store

AWAY = "mongodb://127.0.0.1:1/never"
BRIEF = {"serverSelectionTimeoutMS": 100}


def test_a_process_that_looks_again_and_again_knows_since_when() -> None:
    with on_server(AWAY, client_options=BRIEF):
        before = datetime.now(UTC)
        first = operations.state()
        assert first.away_seen_by == "process" and first.away_since is not None
        assert before - timedelta(seconds=1) < first.away_since <= first.generated_at
        assert "only just asked" in since_when(first, "03:00:00 UTC")
        assert operations.state().away_since == first.away_since
        earlier = first.away_since - timedelta(minutes=90)
        connection = runtime.connection()
        collect._away[connection] = (earlier, datetime.now(UTC))
        later = operations.state()
        assert later.away_since == earlier
        told = since_when(later, "01:30:00 UTC")
        assert told.startswith("This process has not reached it since 01:30:00 UTC (1 h 30 m ago).")
        # It looked long ago, so the server may have been there in between.
        collect._away[connection] = (earlier, datetime.now(UTC) - collect.LOOKED)
        assert operations.state().away_since > before  # type: ignore[operator]


def test_a_call_that_found_no_server_tells_it_too() -> None:
    with on_server(AWAY, client_options=BRIEF):
        with pytest.raises(GoscopeError):
            runtime.adapter().lock.acquire("k", 1_000)
        (reach,) = runtime.connection().reaches()
        assert reach.away
        reach._since -= 600.0
        state = operations.state()
        assert state.away_since is not None
        assert 599 < (state.generated_at - state.away_since).total_seconds() < 660


def test_a_server_that_answers_is_not_away(mongo_url: str) -> None:
    with own_store(mongo_url):
        collect._away[runtime.connection()] = (datetime.now(UTC), datetime.now(UTC))
        state = operations.state()
        assert (state.away_since, state.away_seen_by, since_when(state, "")) == (None, None, "")
        assert runtime.connection() not in collect._away
        assert [one.last_write() for one in runtime.connection().reaches()] == [None]


@pytest.mark.real
@pytest.mark.slow
def test_a_member_without_a_primary_knows_when_the_last_one_wrote() -> None:
    with replica_set(members=3) as server, on_server(with_database(server.uri, "away"), client_options=BRIEF):
        assert runtime.adapter().lock.acquire("k", 60_000)
        primary = server.primary_port()
        lost = [primary, next(port for port in server.pids if port != primary)]
        for port in lost:
            os.kill(server.pids[port], signal.SIGKILL)
        killed, deadline = datetime.now(UTC), time.monotonic() + 60
        while (state := operations.state()).away_seen_by != "member":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert state.away_since is not None and abs((killed - state.away_since).total_seconds()) < 30
        assert state.hint is not None and "rs.status()" in state.hint
        assert "no primary since about 02:51:00 UTC" in since_when(state, "02:51:00 UTC")


def test_the_command_says_so_within_80_columns() -> None:
    out = io.StringIO()
    with on_server(AWAY, client_options=BRIEF):
        collect._away[runtime.connection()] = (datetime.now(UTC) - timedelta(minutes=5), datetime.now(UTC))
        with pytest.raises(CommandError) as ended:
            call_command("goscope_status", stdout=out, stderr=io.StringIO())
    assert ended.value.returncode == 2
    lines = out.getvalue().splitlines()
    assert any("This process has not reached it since" in one for one in lines)
    assert max(map(len, lines)) <= WIDTH
