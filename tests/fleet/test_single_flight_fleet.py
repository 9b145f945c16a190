"""Single flight over real server processes, some of which are killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.fleet.support import Answer, Site, gunicorn, uvicorn
from tests.support.mongod import replica_set

pytestmark = pytest.mark.fleet


@pytest.fixture(scope="module")
def site(mongo_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with gunicorn(mongo_url, tmp_path_factory.mktemp("site")) as running:
        yield running


def roles(answers: list[Answer]) -> Counter[str]:
    return Counter(answer.headers.get("x-single-flight", f"{answer.status} {answer.error}") for answer in answers)


def test_sixty_requests_over_four_processes_run_the_view_once(site: Site) -> None:
    answers = site.concurrently(60, "/slow/?case=sixty")
    assert [answer.status for answer in answers] == [200] * 60
    assert roles(answers) == {"leader": 1, "follower": 59}
    assert len({answer.body for answer in answers}) == 1
    assert len(site.notes("slow")) == 1


def test_a_leader_that_is_killed_is_replaced_once_and_all_others_are_answered(site: Site) -> None:
    before = len(site.notes("slow"))
    collect = site.in_background(30, "/slow/?seconds=3&case=killed")
    first = site.wait_for("slow", before + 1)[-1]
    site.kill(first["pid"])
    answers = collect()
    died = [answer for answer in answers if answer.status == 0]
    others = [answer for answer in answers if answer.status != 0]
    assert [answer.status for answer in others] == [200] * len(others)
    assert others, "the requests of the other processes"
    assert len(died) >= 1
    assert len(site.notes("slow")) == before + 2
    assert len(site.notes("taken over")) == 1
    assert roles(others) == {"leader": 1, "follower": len(others) - 1}


def test_a_failing_view_runs_once_and_all_fail_alike(site: Site) -> None:
    answers = site.concurrently(30, "/fails/")
    assert [answer.status for answer in answers] == [404] * 30
    assert len(site.notes("fails")) == 1


def test_users_who_are_known_inside_the_view_only_are_never_mixed(site: Site) -> None:
    names = ["ann", "bob", "cleo"] * 8
    answers = site.concurrently([partial(site.get, "/whoami/", Authorization=f"Bearer {name}") for name in names])
    assert [answer.json["name"] for answer in answers] == names
    assert len(site.notes("whoami")) == 3


@pytest.mark.parametrize("path", ["cookie", "stream", "no-store"])
def test_what_is_for_one_client_alone_is_not_shared(site: Site, path: str) -> None:
    answers = site.concurrently(8, f"/{path}/?seconds=0.3")
    assert [answer.status for answer in answers] == [200] * 8
    assert roles(answers) == {"bypass": 8}
    assert len(site.notes(path)) == 8


def test_tasks_of_two_event_loops_run_the_view_once(mongo_url: str, tmp_path: Path) -> None:
    with uvicorn(mongo_url, tmp_path, workers=2) as site:
        answers = site.concurrently(40, "/slow-async/")
        assert [answer.status for answer in answers] == [200] * 40
        assert roles(answers) == {"leader": 1, "follower": 39}
        assert len(site.notes("slow async")) == 1


def test_views_answer_without_the_server_if_that_is_ignored(tmp_path: Path) -> None:
    with (
        replica_set(members=1) as server,
        gunicorn(f"{server.uri.replace('/?', '/fleet?')}", tmp_path, ON_ERROR="ignore") as site,
    ):
        assert site.get("/slow/?seconds=0").headers["x-single-flight"] == "leader"
        collect = site.in_background(12, "/slow/?seconds=2")
        site.wait_for("slow", 2)
        server.kill_primary()
        assert [answer.status for answer in collect()] == [200] * 12
        after = site.concurrently(12, "/slow/?seconds=0")
        assert [answer.status for answer in after] == [200] * 12
        assert roles(after) == {"bypass": 12}
