"""Idempotent requests over real server processes, some of which are killed or paused."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.support import Answer, Site, gunicorn, uvicorn

pytestmark = pytest.mark.fleet


@pytest.fixture(scope="module")
def site(mongo_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with gunicorn(mongo_url, tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture(scope="module")
def asynchronous(mongo_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with uvicorn(mongo_url, tmp_path_factory.mktemp("site"), workers=2) as running:
        yield running


def post(site: Site, order: str, path: str = "/pay/", key: str | None = None, **asked: Any) -> Answer:
    headers = {"Content-Type": "application/json", "Idempotency-Key": key or order}
    return site.request("POST", path, headers, json.dumps({"order": order, **asked}).encode())


def runs(site: Site, order: str, what: str = "pay") -> list[dict[str, Any]]:
    return [one for one in site.notes(what) if one["order"] == order]


def once(site: Site, path: str, order: str) -> None:
    """Thirty at once: one runs, the others are told to come again, and then all get the same."""
    at_once = site.concurrently([lambda: post(site, order, path)] * 30)
    # Who is late on a busy machine gets the answer already.
    answers = [answer for answer in at_once if "idempotent-replayed" not in answer.headers]
    assert Counter(answer.status for answer in answers) == {201: 1, 409: len(answers) - 1}
    assert len(answers) >= 10
    assert len(runs(site, order)) == 1
    for answer in answers:
        if answer.status == 409:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["content-type"] == "application/problem+json"
    (first,) = [answer for answer in answers if answer.status == 201]
    assert "idempotent-replayed" not in first.headers
    assert "set-cookie" in first.headers
    repeats = site.concurrently([lambda: post(site, order, path)] * 30)
    assert {answer.body for answer in repeats} == {first.body}
    for answer in repeats:
        assert answer.status == 201
        assert answer.headers["idempotent-replayed"] == "true"
        assert answer.headers["x-receipt"] == first.headers["x-receipt"]
        assert "set-cookie" not in answer.headers
    assert len(runs(site, order)) == 1


def test_of_thirty_at_once_one_runs(site: Site) -> None:
    once(site, "/pay/", "thirty")


def test_on_event_loops_as_well(asynchronous: Site) -> None:
    once(asynchronous, "/pay-async/", "thirty-async")


def test_those_that_wait_get_the_one_result(site: Site) -> None:
    answers = site.concurrently([lambda: post(site, "patient", "/pay-patiently/")] * 30)
    assert [answer.status for answer in answers] == [201] * 30
    assert len({answer.body for answer in answers}) == 1
    assert Counter(answer.headers.get("idempotent-replayed") for answer in answers) == {"true": 29, None: 1}
    assert len(runs(site, "patient")) == 1


def test_mistakes_of_the_client(site: Site) -> None:
    first = post(site, "mistakes", seconds=0)
    assert first.status == 201
    other = post(site, "another", key="mistakes", seconds=0)
    assert other.status == 422
    assert post(site, "mistakes", key="k" * 256).status == 400
    body = json.dumps({"order": "mistakes"}).encode()
    missing = site.request("POST", "/pay/", {"Content-Type": "application/json"}, body)
    assert missing.status == 400
    for answer, kind in ((other, "idempotency-key-reused"), (missing, "idempotency-key-missing")):
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["type"].endswith(kind)
    assert post(site, "mistakes", seconds=0).body == first.body
    assert len(runs(site, "mistakes")) == 1


def test_another_payload_is_told_so_while_the_first_runs(site: Site) -> None:
    thread = threading.Thread(target=post, args=(site, "running"), kwargs={"seconds": 2})
    thread.start()
    site.wait_for("pay", len(site.notes("pay")) + 1)
    assert post(site, "other", key="running").status == 422
    assert post(site, "running", seconds=2).status == 409
    thread.join(20)


def in_background(call: Callable[[], Answer]) -> Callable[[], Answer]:
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()

    def collect() -> Answer:
        thread.join(60)
        return answers[0]

    return collect


def started(site: Site, order: str) -> int:
    """The process in which the order's work has begun."""
    deadline = time.monotonic() + 20
    while not (found := runs(site, order)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(found[0]["pid"])


def retried(site: Site, order: str, path: str = "/pay/", **asked: Any) -> Answer:
    """A client that does what it is told: waits for as long as ``Retry-After`` says."""
    deadline = time.monotonic() + 30
    while True:
        answer = post(site, order, path, **asked)
        if answer.status == 201:
            return answer
        assert answer.status in (0, 409), answer
        assert time.monotonic() < deadline
        time.sleep(float(answer.headers.get("retry-after", "0.2")))


def killed(site: Site, order: str, path: str = "/pay/") -> None:
    """The work is done again by one retry after the claim has ended, and never a third time."""
    collect = in_background(lambda: post(site, order, path, seconds=3))
    site.kill(started(site, order))
    assert collect().status == 0
    assert post(site, order, path, seconds=3).status == 409, "the claim holds for the rest of its lease"
    answer = retried(site, order, path, seconds=3)
    assert len(runs(site, order)) == 2
    assert len(runs(site, order, "paid")) == 1
    assert post(site, order, path, seconds=3).body == answer.body
    assert len(runs(site, order)) == 2


def test_a_retry_succeeds_when_the_claim_of_a_killed_worker_ends(site: Site) -> None:
    killed(site, "killed")


def test_after_an_event_loop_was_killed_too(asynchronous: Site) -> None:
    killed(asynchronous, "killed-async", "/pay-async/")


def test_a_worker_that_wakes_up_after_its_claim_was_taken_over_overwrites_nothing(site: Site) -> None:
    collect = in_background(lambda: post(site, "paused", seconds=2))
    pid = started(site, "paused")
    site.kill(pid, signal.SIGSTOP)
    try:
        second = retried(site, "paused", seconds=2)
    finally:
        site.kill(pid, signal.SIGCONT)
    first = collect()
    assert (first.status, first.headers["idempotent-stored"]) == (201, "false")
    assert first.json["token"] < second.json["token"], "a store that refuses older tokens would have refused it"
    assert first.body != second.body
    for answer in site.concurrently([lambda: post(site, "paused", seconds=2)] * 8):
        assert (answer.status, answer.body) == (201, second.body)
    assert [one["token"] for one in site.notes("lost")] == [first.json["token"]]


def test_work_longer_than_the_lease_keeps_its_claim(site: Site, tmp_path: Path) -> None:
    answer = post(site, "long", seconds=4)
    assert answer.status == 201
    assert "idempotent-stored" not in answer.headers
    assert post(site, "long", seconds=4).body == answer.body
