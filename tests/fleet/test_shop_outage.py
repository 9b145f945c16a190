"""A shop under load, and ``mongod`` is killed: nobody is signed out, nothing is charged twice or lost, all recovers."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.support import SHOP, Answer, Site, gunicorn, prepare_shop
from tests.support.mongod import ReplicaSet, replica_set

pytestmark = [pytest.mark.real, pytest.mark.fleet, pytest.mark.slow, pytest.mark.timeout(400)]

OUTAGE = 20.0
RECOVERY = 5.0
"""Seconds after the server's return within which everything works again."""
BUYERS = 6
PATIENCE = 4.0
"""Seconds that a customer waits for the answer to an order. To record one that was paid during the outage takes
longer."""
REFUSED_WITHIN = 2.5
"""Seconds within which most of those who get 503 have it. Only a process's first callers wait for the server, for 5."""
DASHBOARD = "/admin/goscope/dashboard/"
# What each page answers while MongoDB can't be reached, as ``docs/how-to/when-mongodb-is-down.md`` says.
DURING: dict[str, int] = {
    "/me/": 503,
    "/page/": 503,
    "/lenient-page/": 200,
    "/visits/": 200,
    "/stock/": 503,
    "/report/": 503,
    "/lenient-report/": 200,
    "/prices/": 200,
    "/pay/": 503,
    "/task/?id=during": 503,
    DASHBOARD: 503,
    "/pid/": 200,
}
PEOPLE = ("/lenient-page/", "/visits/", "/lenient-report/", "/prices/", "/report/", "/page/", "/stock/", "/pid/")
"""Pages that are asked for without a session, so that each shows what its own feature does."""


class Browser:
    """Somebody who keeps cookies as a browser does, and deletes those that are set to be deleted."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.name = site, name
        self.cookie: str | None = None
        self.deleted = 0

    def ask(self, method: str, path: str, body: bytes | None = None, patience: float = 60, **headers: str) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookie is not None:
            sent["Cookie"] = f"sessionid={self.cookie}"
        answer = self.site.request(method, path, sent, body, patience)
        given = answer.headers.get("set-cookie", "")
        if given.startswith("sessionid="):
            value = given.partition("=")[2].partition(";")[0].strip('"')
            self.deleted += not value
            self.cookie = value or None
        return answer

    def enter(self) -> None:
        answer = self.ask(
            "POST", "/enter/", f"name={self.name}".encode(), Content_Type="application/x-www-form-urlencoded"
        )
        assert (answer.status, answer.body.decode()) == (200, self.name), answer
        assert self.cookie


class Load:
    """What the shop's customers do until they are told to stop, and what they got."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.stop = threading.Event()
        self.answers: list[tuple[float, float, str, Answer]] = []
        self.paid: dict[str, Answer] = {}
        self.threads: list[threading.Thread] = []

    def go_on(self, work: Callable[[], None]) -> None:
        def run() -> None:
            while not self.stop.is_set():
                work()

        thread = threading.Thread(target=run)
        thread.start()
        self.threads.append(thread)

    def note(self, what: str, ask: Callable[[], Answer]) -> Answer:
        began = time.monotonic()
        answer = ask()
        self.answers.append((began, time.monotonic(), what, answer))
        return answer

    def buy(self, browser: Browser, number: list[int]) -> None:
        """One order after the other."""
        number[0] += 1
        self.order(browser, f"{browser.name}-{number[0]}")
        self.stop.wait(0.1)

    def order(self, browser: Browser, order: str, seconds: float = 0.05) -> None:
        """Sent again with its key until it is known to be paid; the customer waits ``PATIENCE`` for each answer."""
        deadline = time.monotonic() + 90
        while True:
            answer = self.note("pay", lambda: _order(browser, order, seconds))
            if answer.status == 201:
                self.paid[order] = answer
                return
            assert answer.status in (0, 409, 503), answer
            assert time.monotonic() < deadline, f"{order} is not paid: {answer}"
            time.sleep(0.3)

    def look(self, path: str, ask: Callable[[], Answer]) -> None:
        self.note(path, ask)
        self.stop.wait(0.1)

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(100)
            assert not thread.is_alive()


def _wait_for(what: str, ask: Callable[[], Answer], status: int, deadline: float) -> float:
    """When it answered so for the first time; fails at ``deadline``."""
    while True:
        answer = ask()
        if answer.status == status:
            return time.monotonic()
        assert time.monotonic() < deadline, f"{what}: {answer}"
        time.sleep(0.1)


def test_an_outage_costs_nobody_a_session_or_a_second_charge(tmp_path: Path) -> None:
    with replica_set(members=1) as servers:
        url = servers.uri.replace("/?", "/shop?")
        prepare_shop(tmp_path, url, BUYERS)
        with gunicorn(url, tmp_path, workers=4, SETTINGS=SHOP) as site:
            _shop(site, servers)


def _shop(site: Site, servers: ReplicaSet) -> None:
    buyers = [Browser(site, f"buyer{number}") for number in range(BUYERS)]
    root = Browser(site, "root")
    for one in (*buyers, root):
        one.enter()
    cookies = [one.cookie for one in (*buyers, root)]
    assert root.ask("GET", DASHBOARD).status == 200

    load = Load(site)
    looker = Browser(site, buyers[0].name)
    looker.cookie = buyers[0].cookie
    for buyer in buyers:
        load.go_on(partial(load.buy, buyer, [0]))
    for path in ("/lenient-page/", "/stock/", "/page/"):
        load.go_on(partial(load.look, path, partial(site.get, path)))
    load.go_on(partial(load.look, "/me/", partial(looker.ask, "GET", "/me/")))
    try:
        site.wait_for("charge", 20)
        # The bank has one order when the server is killed, and answers when it is gone.
        slow = threading.Thread(target=load.order, args=(buyers[-1], "slow", 2.0))
        slow.start()
        load.threads.append(slow)
        while not any(one["order"] == "slow" for one in site.notes("asked the bank")):
            assert slow.is_alive()
            time.sleep(0.02)
        port = servers.kill_primary()
        killed = time.monotonic()
        seen: dict[str, Counter[int]] = {path: Counter() for path in DURING}
        asked = [partial(_ask, root, path) for path in DURING]
        while time.monotonic() - killed < OUTAGE:
            for path, answer in zip(DURING, site.concurrently(asked), strict=True):
                seen[path][answer.status] += 1
                if path == DASHBOARD:
                    assert b"be reached" in answer.body and b"127.0.0.1" not in answer.body, answer
                elif answer.status == 503:
                    assert "retry-after" in answer.headers
        restarted = time.monotonic()
        servers.resume(port)
        servers.primary_port()
        back = time.monotonic()
        for path in DURING:
            _wait_for(path, partial(_ask, root, path), 201 if path == "/pay/" else 200, back + RECOVERY)
        _wait_for("a new order", lambda: _order(buyers[0], "after"), 201, back + RECOVERY)
    finally:
        load.end()

    for path, found in seen.items():
        assert set(found) == {DURING[path]}, (path, found)
    # Nobody is signed out.
    everybody = (*buyers, root)
    assert [one.cookie for one in everybody] == cookies
    assert sum(one.deleted for one in (*everybody, looker)) == 0
    assert [one.ask("GET", "/me/").body.decode() for one in everybody] == [one.name for one in everybody]
    # Each order was charged once.
    charges = Counter(one["order"] for one in site.notes("charge"))
    assert set(charges) == set(load.paid) | {"after", "root"}
    assert set(charges.values()) == {1}, charges.most_common(5)
    # What was done while the server was gone was recorded when it came back; its customer had hung up before.
    assert load.paid["slow"].headers["idempotent-replayed"] == "true"
    # One at a time was in the warehouse, and after the outage everybody got in again.
    _one_at_a_time(site)
    refused = sorted(
        answer.seconds for _, ended, _, answer in load.answers if answer.status == 503 and killed < ended < restarted
    )
    assert statistics.median(refused) < REFUSED_WITHIN, refused
    late = [answer for began, _, what, answer in load.answers if what != "pay" and began > back + RECOVERY]
    assert {answer.status for answer in late} <= {200, 409}, Counter(answer.status for answer in late)


def _ask(root: Browser, path: str) -> Answer:
    if path == "/pay/":
        return _order(root, "root", patience=60)
    return root.site.get(path) if path in PEOPLE else root.ask("GET", path)


def _order(browser: Browser, order: str, seconds: float = 0.05, patience: float = PATIENCE) -> Answer:
    body = json.dumps({"order": order, "seconds": seconds}).encode()
    headers = {"Content_Type": "application/json", "Idempotency_Key": f"key-{order}"}
    return browser.ask("POST", "/pay/", body, patience, **headers)


def _one_at_a_time(site: Site) -> None:
    moves: list[dict[str, Any]] = sorted((*site.notes("in"), *site.notes("out")), key=lambda one: one["time"])
    inside: int | None = None
    last = 0
    for move in moves:
        if move["what"] == "in":
            assert inside is None, "two hold the lock"
            assert move["token"] > last, "a token that does not grow"
            inside = last = move["token"]
        else:
            assert inside == move["token"]
            inside = None
