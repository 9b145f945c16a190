"""Each checker, proved by the product: a short scenario breaks no promise, and does with a fault planted in it.

The scenarios are told step by step, so they need neither luck nor time. The lost replies are a proxy's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches

from goscope_django import runtime
from goscope_django.core.flow import Flow, Pause, carry_out, invoke
from goscope_django.exceptions import CircuitOpen, TaskLost
from goscope_django.mongodb.checkpoints.history import CheckpointFlows
from goscope_django.mongodb.checkpoints.tasks import TaskFlows
from goscope_django.mongodb.checkpoints.values import Run, Snapshot
from goscope_django.mongodb.codec import Codec
from tests.consistency import faults, workloads
from tests.consistency.checkers import CHECKERS, Violation, check
from tests.consistency.history import Recorder, read
from tests.consistency.workloads import Workloads
from tests.support.commands import on_server
from tests.support.mongod import ReplicaSet, replica_set
from tests.support.proxy import Proxy

pytestmark = pytest.mark.real

BRIEF = 60
"""Milliseconds of a lease that a scenario lets end."""


@pytest.fixture(scope="module")
def server() -> Iterator[ReplicaSet]:
    with replica_set(members=1) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server: ReplicaSet) -> Iterator[Proxy]:
    with Proxy(server.ports[0]) as proxy:
        yield proxy


class Scene:
    """What a scenario needs: the proxy, and a recorder for each of two clients."""

    def __init__(self, folder: Path, proxy: Proxy) -> None:
        self.folder = folder
        self.proxy = proxy
        self.adapter = runtime.adapter()
        self.cache: Any = caches["default"]
        self.clients = [Recorder(folder / f"c{number}.jsonl", f"c{number}") for number in (1, 2)]

    def __call__(self, client: int, name: str, key: str, flow: Flow[Any], *more: Any, **args: Any) -> Any:
        """Let a client do one thing; how it ended."""
        faults.acting = client
        return carry_out(self.clients[client - 1].call(name, key, flow, *more, **args))

    def take(self, client: int, ttl: float = 60_000, key: str = "lock:0") -> Any:
        flow = invoke(self.adapter.lock.acquire, key, ttl)
        return self(client, "lock.take", key, flow, lambda one: one and {"token": one.token}, ttl=ttl)

    def give(self, client: int, taken: Any, key: str = "lock:0") -> Any:
        return self(client, "lock.give", key, invoke(taken.value.release), hold=taken.number)

    def step(self, client: int, name: str, seed: int = 0) -> None:
        """One step of the workload of that name."""
        carry_out(Workloads(self.clients[client - 1], random.Random(seed), "sync").steps[name]())

    def violations(self) -> list[Violation]:
        return check(read(sorted(self.folder.glob("*.jsonl"))))


Scenario = Callable[[Scene], None]


def wait(milliseconds: float = BRIEF) -> None:
    """Let a brief lease end. The server's clock decides whether it has, so more than needed never hurts."""
    time.sleep(milliseconds / 1_000 + 0.06)


# The scenarios


def a_client_whose_clock_is_an_hour_ahead(scene: Scene) -> None:
    scene.take(1)
    faults.skew = timedelta(hours=1)
    try:
        scene.take(2)
    finally:
        faults.skew = timedelta(0)


def a_release_that_comes_late(scene: Scene) -> None:
    first = scene.take(1, BRIEF)
    wait()
    scene.take(2)
    scene.give(1, first)
    scene.take(1)


def one_after_another_in_two_processes(scene: Scene) -> None:
    for client in (1, 2, 1):
        scene.give(client, scene.take(client))
        scene.adapter.lock.force_release("lock:0")


def two_probes(scene: Scene) -> None:
    store, flows, circuits = scene.adapter.store, _circuits(), scene.adapter.circuit_breaker
    store.run(flows.failed, "probe:1", 0, 1, 60_000, 0)
    assert circuits.get_state("probe:1").state == "open"  # type: ignore[union-attr]
    for client in (1, 2):
        claim = f"claim{client}"
        flow = invoke(store.run, flows.admit, "probe:1", claim, 0, 1, 60_000)

        def shown(found: Any, claim: str = claim) -> Any:
            rows = found.document["probes"] if found.document else []
            return {"probe": claim} if any(one["id"] == claim for one in rows) else None

        scene(client, "probe.take", "probe:1", flow, shown, {CircuitOpen: None}, ttl=60_000, most=1)


def _circuits() -> Any:
    from goscope_django.mongodb.circuits.flows import CircuitFlows

    return CircuitFlows("")


def one_result_asked_for_again(scene: Scene) -> None:
    store = scene.adapter.idempotency

    def begin(client: int) -> Any:
        flow = invoke(store.begin, "key:0", 60_000)
        return scene(client, "claim.take", "key:0", flow, workloads._claimed, ttl=60_000)

    taken = begin(1)
    complete = invoke(store.complete, "key:0", taken.value.token, "value")
    scene(1, "claim.give", "key:0", complete, hold=taken.number, value="value")
    for client in (1, 2, 2):
        begin(client)


def a_worker_that_completes_late(scene: Scene) -> None:
    store, claims = scene.adapter.idempotency, []
    for client, lease in ((1, BRIEF), (2, 60_000)):
        flow = invoke(store.begin, "key:0", 60_000, None, lease)
        claims.append(scene(client, "claim.take", "key:0", flow, workloads._claimed, ttl=lease))
        wait()
    flow = invoke(store.complete, "key:0", claims[0].value.token, "late")
    scene(1, "claim.give", "key:0", flow, hold=claims[0].number, value="late")
    scene(2, "claim.renew", "key:0", invoke(store.extend, "key:0", claims[1].value.token, 60_000),
          hold=claims[1].number, ttl=60_000)  # fmt: skip


def a_runner_that_saves_late(scene: Scene) -> None:
    flows = TaskFlows(CheckpointFlows("", Codec(pickle=False)))
    store, runs = scene.adapter.store, list[tuple[Run, Any]]()
    for client, lease in ((1, 200), (1, 2_000), (2, 60_000)):
        if len(runs) == client:
            continue  # the first lease was long enough for a start
        run = Run("task:0", f"claim{client}", "me", lease, None, None, None, None, False, {})

        def shown(started: Any) -> Any:
            return {"token": started.token, "n": 0, "value": None, **(started.data or {})}

        start = invoke(store.run, flows.start, run)
        taken = scene(client, "task.take", "task:0", start, shown, {TaskLost: None}, ttl=lease)
        if taken.value is not None:
            runs.append((run, taken))
            wait(lease if client == 1 else 0)
    for client, (run, taken) in enumerate(runs, 1):
        state = {"n": 1, "value": f"value {client}"}
        snapshot = Snapshot(1, state, [], 10.0, None, None, None, None, datetime.now(UTC))
        flow = invoke(lambda run=run, taken=taken, snapshot=snapshot: store.run(
            flows.save, run, taken.value.token, snapshot, cancelled=False))  # fmt: skip
        args = {"hold": taken.number, "ttl": run.lease, **state}
        scene(client, "task.renew", "task:0", flow, lambda _: True, {TaskLost: False}, **args)


def a_counter_whose_reply_is_lost(scene: Scene) -> None:
    scene.cache.set("cache:0", 0, None)
    for _ in range(4):
        scene(1, "count.add", "cache:0", invoke(scene.cache.incr, "cache:0"))
    for command in ("findAndModify", "update"):
        scene.proxy.lose_answers(command, 1)
    scene(2, "count.add", "cache:0", invoke(scene.cache.incr, "cache:0"))
    scene.proxy.heal()
    scene(1, "count.read", "cache:0", invoke(scene.cache.get, "cache:0"))


def both_replies_are_lost(scene: Scene) -> None:
    scene.cache.set("cache:0", 0, None)
    for _ in range(4):
        scene(1, "count.add", "cache:0", invoke(scene.cache.incr, "cache:0"))
    scene.proxy.lose_answers("findAndModify", 2)
    scene(2, "count.add", "cache:0", invoke(scene.cache.incr, "cache:0"))
    scene.proxy.heal()
    scene(1, "count.read", "cache:0", invoke(scene.cache.get, "cache:0"))


def two_who_write_and_read(scene: Scene) -> None:
    for value in ("one", "two"):
        for client in (1, 2):
            written = f"{value} {client}"
            scene(client, "reg.write", "reg:0", invoke(scene.cache.set, "reg:0", written, None), value=written)
            for reader in (1, 2):
                scene(reader, "reg.read", "reg:0", invoke(scene.cache.get, "reg:0"))


def one_flight_after_another(scene: Scene) -> None:
    for client in (1, 2, 1, 2):
        scene.step(client, "flights")


def one_key_again_and_again(scene: Scene) -> None:
    for client in (1, 2, 1, 2):
        scene.step(client, "once")


def an_open_circuit_whose_reply_is_lost(scene: Scene) -> None:
    scene.adapter.circuit_breaker.record_failure("c", 5)
    scene.proxy.lose_answers("findAndModify", 1)
    flow = invoke(scene.adapter.store.run, _circuits().failed, "c", 0, 3, 60_000, 1_000)
    scene(1, "circuit.failed", "c", flow, lambda found: found.document["failureCount"])


def a_short_outage(scene: Scene) -> None:
    scene.cache.set("cache:0", 0, None)

    def add() -> Any:
        return scene(1, "count.add", "cache:0", invoke(scene.cache.incr, "cache:0"), mode="sync")

    add()
    for command in ("findAndModify", "update", "hello"):
        scene.proxy.refuse(command)
    add()
    scene.proxy.heal()
    Recorder(scene.folder / "nemesis.jsonl", "nemesis").note("nemesis.healed")
    for _ in range(5):
        if add().ok:
            break
        carry_out(_paused())


def _paused() -> Flow[None]:
    yield Pause(0.2)


SCENARIOS: list[tuple[str, Scenario, str]] = [
    ("client_clock", a_client_whose_clock_is_an_hour_ahead, "exclusion"),
    ("probe_without_lease", two_probes, "exclusion"),
    ("local_tokens", one_after_another_in_two_processes, "tokens"),
    ("release_without_predicate", a_release_that_comes_late, "kept"),
    ("completion_without_token", a_worker_that_completes_late, "kept"),
    ("unnumbered_retry", a_counter_whose_reply_is_lost, "counters"),
    ("certain_failures", both_replies_are_lost, "counters"),
    ("copies_at_hand", two_who_write_and_read, "registers"),
    ("replayed_once", one_result_asked_for_again, "claims"),
    ("save_without_lease", a_runner_that_saves_late, "saves"),
    ("old_results", one_flight_after_another, "flights"),
    ("replayed_once", one_key_again_and_again, "replays"),
    ("projection_taken_for_granted", an_open_circuit_whose_reply_is_lost, "errors"),
    ("broken_for_good", a_short_outage, "recovery"),
]
"""The planted fault, what shows it, and the checker that finds it."""


def test_each_checker_is_proved() -> None:
    assert {checker for _, _, checker in SCENARIOS} == set(CHECKERS)
    # These need more than one node: see ``test_parts_and_clocks``.
    assert {fault for fault, _, _ in SCENARIOS} == set(faults.FAULTS) - {"unconfirmed_writes", "wall_clock_tokens"}


@contextmanager
def scene_at(proxy: Proxy, server: ReplicaSet, folder: Path) -> Iterator[Scene]:
    proxy.heal()
    folder.mkdir(exist_ok=True)
    with server.client() as client:
        client.drop_database("planted")
    url = f"mongodb://127.0.0.1:{proxy.port}/planted?directConnection=true&serverSelectionTimeoutMS=800"
    with on_server(url):
        yield Scene(folder, proxy)
    proxy.heal()


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that do not change meanwhile, and bodies that take no time."""
    monkeypatch.setattr(workloads, "bucket", lambda seconds: 0)
    monkeypatch.setattr(Workloads, "_work", lambda self, longest: Pause(0.001))


@pytest.mark.parametrize(("fault", "scenario", "checker"), SCENARIOS)
def test_a_planted_fault_is_found_and_nothing_where_there_is_none(
    fault: str,
    scenario: Scenario,
    checker: str,
    still: None,
    proxy: Proxy,
    server: ReplicaSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with scene_at(proxy, server, tmp_path / "sound") as scene:
        scenario(scene)
        assert not scene.violations(), "\n".join(map(str, scene.violations()))
    faults.plant(fault, monkeypatch.setattr)
    with scene_at(proxy, server, tmp_path / "planted") as scene:
        scenario(scene)
        assert checker in {one.checker for one in scene.violations()}
