"""Near caches in the processes of real servers: each has its own stream, and sees in time what the others write."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from goscope_django.core.ticks import tick
from tests.fleet.support import Site, gunicorn, uvicorn

pytestmark = [pytest.mark.real, pytest.mark.fleet]
MAX_STALE = 1.0
SERVERS = {
    "gunicorn": lambda url, folder: gunicorn(url, folder, workers=2, threads=8),
    "gunicorn --preload": lambda url, folder: gunicorn(
        url, folder, workers=2, threads=8, preload=True, application="wsgi_near"
    ),
    "uvicorn --workers": lambda url, folder: uvicorn(url, folder, workers=2),
}


def until_both_have_it(site: Site, address: str) -> None:
    """Ask until two processes had it at hand."""
    hits: dict[int, set[int]] = defaultdict(set)
    deadline = time.monotonic() + 60
    while len(hits) < 2 or any(len(seen) < 3 for seen in hits.values()):
        assert time.monotonic() < deadline, f"nothing is at hand: {dict(hits)}"
        for answer in site.concurrently(8, address):
            assert answer.status == 200, site.output()
            hits[answer.json["pid"]].add(answer.json["hits"])


def never_too_old(site: Site, address: str, value: int) -> None:
    """Ask until both processes have given the new value. No request that began later gives the old one."""
    written, seen, deadline = tick(), set[int](), time.monotonic() + 60
    while len(seen) < 2:
        assert time.monotonic() < deadline
        began, before = tick(), set(seen)
        for answer in site.concurrently(8, address):
            found: dict[str, Any] = answer.json
            if found["value"] == value:
                seen.add(found["pid"])
            else:
                assert began - written <= MAX_STALE, "an answer was too old"
                assert found["pid"] not in before, "a process went back in time"


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("address", ["/near/", "/near/async/"])
def test_each_process_has_it_at_hand_and_sees_what_the_others_write(
    server: str, address: str, mongo_url: str, tmp_path: Path
) -> None:
    serving: AbstractContextManager[Site] = SERVERS[server](mongo_url, tmp_path)
    with serving as site:
        site.get("/near/1/")
        until_both_have_it(site, address)
        for value in range(2, 6):
            answer = site.get(f"/near/{value}/").json
            assert answer["value"] == value, "a process sees its own writes at once"
            never_too_old(site, address, value)
        site.kill(site.workers()[-1]) if "uvicorn" not in server else None
        complaints = site.output()
    for word in ("Traceback", "Exception"):
        assert word not in complaints
