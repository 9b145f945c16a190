"""Three nodes, whose primary is killed or steps down while processes work: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache

from goscope_django import runtime
from goscope_django.mongodb import MongoDBAdapter
from tests.support.commands import Recorder, on_server
from tests.support.mongod import ReplicaSet, replica_set

ROOT = Path(__file__).resolve().parents[3]
WORKERS, SECONDS = 3, 7.0
pytestmark = [pytest.mark.slow, pytest.mark.fleet]


@pytest.fixture(scope="module")
def nodes() -> Iterator[ReplicaSet]:
    with replica_set(members=3) as running:
        yield running


@pytest.fixture
def url(nodes: ReplicaSet, request: pytest.FixtureRequest) -> str:
    name = f"failover_{abs(hash(request.node.nodeid)) % 10**8}"
    return nodes.uri.replace("/?", f"/{name}?") + "&w=majority&retryWrites=true"


def test_the_cache_reads_where_the_url_says_and_coordination_from_the_primary(url: str, nodes: ReplicaSet) -> None:
    recorder = Recorder()
    asked = f"{url.replace('w=majority', 'w=1')}&readPreference=secondary"
    with on_server(asked, client_options={"event_listeners": [recorder]}):
        cache.set("k", 1)
        runtime.adapter().lock.get("k")
        recorder.clear()
        primary = nodes.primary_port()
        for read in (lambda: cache.get("k"), lambda: cache.get_many(["k"]), lambda: cache.has_key("k")):
            recorder.clear()
            read()
            (event,) = recorder.events
            assert event.command["$readPreference"] == {"mode": "secondary"}
            assert event.connection_id[1] != primary
        recorder.clear()
        cache.set("k", 2)
        assert recorder.events[0].command["writeConcern"] == {"w": 1}
        adapter = runtime.adapter()
        for read in (
            lambda: adapter.lock.get("k"),
            adapter.lock.list,
            lambda: adapter.circuit_breaker.get_state("k"),
            lambda: adapter.idempotency.get("k"),
            lambda: adapter.checkpoint.load_latest("k"),
        ):
            recorder.clear()
            read()
            (event,) = recorder.events
            assert "$readPreference" not in event.command or event.command["$readPreference"] == {"mode": "primary"}
            assert event.connection_id[1] == primary
            assert 0 < event.command["maxTimeMS"] <= 10_000


@pytest.mark.parametrize("how", ["killed", "stepped down"])
def test_a_lost_primary_loses_nothing_that_was_acknowledged(how: str, url: str, nodes: ReplicaSet) -> None:
    with nodes.client() as client:
        database = client.get_database(url.rpartition("/")[2].partition("?")[0])
        adapter = MongoDBAdapter(database)
        adapter.connect()
        adapter.cache.set("counter", 0)
        command = [sys.executable, "-m", "tests.scripts.failover_worker", url]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        workers = [
            subprocess.Popen(
                [*command, str(number), str(SECONDS)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environ
            )
            for number in range(WORKERS)
        ]
        for worker in workers:
            assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
        time.sleep(1.5)  # they are at work
        if how == "killed":
            port = nodes.kill_primary()
        else:
            port = 0
            nodes.step_down()
        answers = [json.loads(worker.communicate(timeout=90)[0].splitlines()[-1]) for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * WORKERS
        if port:
            nodes.resume(port)
        held = sorted(itertools.chain(*(answer["held"] for answer in answers)))
        assert len(held) > 50
        for (_, given_back, token), (taken, _, next_token) in itertools.pairwise(held):
            assert given_back <= taken, "two were inside at once"
            assert token < next_token, "tokens did not grow"
        assert held[-1][0] - held[0][0] > SECONDS / 2, "they went on afterwards"
        sums = list(itertools.chain(*(answer["sums"] for answer in answers)))
        assert len(set(sums)) == len(sums), "a sum was given out twice"
        unknown = sum(answer["unknown sums"] for answer in answers)
        counter = adapter.cache.get("counter")
        assert len(sums) <= counter <= len(sums) + unknown, "an acknowledged sum was lost, or one was made twice"
        kept = set(itertools.chain(*(answer["kept"] for answer in answers)))
        assert kept <= {one.key for one in adapter.lock.list("kept-.*")}, "an acknowledged lock was lost"


def test_one_process_goes_on_over_a_step_down_in_both_colours(url: str, nodes: ReplicaSet) -> None:
    async def there() -> Any:
        await cache.aset("k", 1)
        before = await runtime.adapter().lock.aacquire("lock", 600_000)
        cache.set("k2", 1)
        await asyncio.to_thread(nodes.step_down)
        assert before is not None and await before.ais_valid()
        assert await cache.aincr("k") == 2
        assert cache.get("k2") == 1
        assert await before.arelease()
        after = await runtime.adapter().lock.aacquire("lock", 600_000)
        assert after is not None and after.token > before.token
        return await cache.aget("k")

    with on_server(url):
        assert asyncio.run(there()) == 2
