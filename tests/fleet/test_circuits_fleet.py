"""One circuit, several processes: probes, kills, lost failures, spreading, wrong clocks. On a real mongod."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import pytest

from goscope_django import circuits
from tests.scripts.circuits_worker import Worker
from tests.support.circuits import age, own_store, shown

pytestmark = [pytest.mark.real, pytest.mark.fleet]


@pytest.fixture
def prefix(mongo_url: str) -> Iterator[str]:
    with own_store(mongo_url) as found:
        yield found


class Fleet:
    """Workers on the test's store, each with a breaker of the same options."""

    def __init__(self, stack: ExitStack, url: str, prefix: str) -> None:
        self.stack, self.url, self.prefix = stack, url, prefix

    def __call__(self, count: int, clock: str | None = None, **options: Any) -> list[Worker]:
        workers = [self.stack.enter_context(Worker(self.url, self.prefix, clock=clock)) for _ in range(count)]
        for worker in workers:
            assert worker.answer() == "ready"
            worker.ask("breaker", options)
        return workers


@pytest.fixture
def fleet(mongo_url: str, prefix: str) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(stack, mongo_url, prefix)


def all_of(workers: list[Worker], name: str, *args: Any) -> list[Any]:
    """Tell all of them at once; their answers."""
    for worker in workers:
        worker.tell(name, *args)
    return [worker.answer() for worker in workers]


class TestProbes:
    OPTIONS: ClassVar[dict[str, Any]] = {
        "failure_threshold": 1,
        "reset_timeout": 3_600,
        "half_open_max_calls": 3,
        "success_threshold": 3,
    }

    @pytest.mark.parametrize("kind", ["threads", "tasks"])
    def test_of_forty_calls_from_four_processes_exactly_as_many_run_as_allowed(self, fleet: Fleet, kind: str) -> None:
        (first,) = fleet(1, **self.OPTIONS)
        assert first.ask("fail", 1) == {"failed": 1}
        assert first.ask("call")[0] == "refused"
        age("supplier", 3_601)

        workers = fleet(4, **self.OPTIONS)
        if kind == "threads":
            all_of(workers, "hold", 10)
            running = all_of(workers, "settled")
        else:
            running = all_of(workers, "hold_tasks", 10)
        assert sum(running) == 3
        assert len(shown("supplier").probes) == 3
        ended = sum((Counter(one) for one in all_of(workers, "release")), Counter[str]())
        assert ended == {"ran": 3, "refused": 37}
        assert shown("supplier").state == "closed"
        heard = Counter(name for worker in workers for name in worker.ask("events"))
        assert heard == {"circuit_half_opened": 1, "circuit_closed": 1}, "each move is told once in the fleet"

    def test_a_killed_probe_frees_its_place_at_its_deadline(self, fleet: Fleet) -> None:
        options: dict[str, Any] = {"failure_threshold": 1, "reset_timeout": 0.2, "probe_timeout": 5.0}
        killed, other = fleet(2, **options)
        assert killed.ask("fail", 1) == {"failed": 1}
        killed.ask("until", "ok")  # closed again, and known to both as such
        assert killed.ask("fail", 1) == {"failed": 1}
        time.sleep(0.25)
        killed.ask("hold", 1)
        assert killed.ask("settled") == 1
        (probe,) = shown("supplier").probes
        killed.kill()

        assert other.ask("until", "refused") is not None
        assert shown("supplier").probes == (probe,), "it still has its place"
        other.ask("until", "ok")
        found = shown("supplier")
        assert found.state == "closed"
        half, closed = found.history[-2:]
        assert (half.to_state, closed.to_state) == ("half-open", "closed")
        assert closed.at is not None
        assert closed.at >= probe.until, "not before the deadline"


class TestFailures:
    @pytest.mark.parametrize("threads", [1, 4])
    def test_none_of_1200_from_six_processes_is_lost(self, fleet: Fleet, threads: int) -> None:
        workers = fleet(6, failure_threshold=5_000, window=3_600)
        assert all_of(workers, "fail", 200, threads) == [{"failed": 200}] * 6
        assert (shown("supplier").state, shown("supplier").failure_count) == ("closed", 1_200)

    def test_the_provider_loses_none_either_and_gives_each_count_once(self, fleet: Fleet) -> None:
        counts = all_of(fleet(6), "record", 200)
        assert sorted(one for each in counts for one in each) == list(range(1, 1_201))

    def test_it_opens_once_however_many_fail_at_once(self, fleet: Fleet) -> None:
        workers = fleet(4, failure_threshold=5)
        all_of(workers, "fail", 40, 8)
        found = shown("supplier")
        assert (found.state, found.generation, len(found.history)) == ("open", 1, 1)
        assert [name for worker in workers for name in worker.ask("events")] == ["circuit_opened"]


class TestSpreading:
    def test_an_opening_reaches_a_busy_process_with_its_next_reading(self, fleet: Fleet) -> None:
        busy, failing = fleet(2, failure_threshold=2)
        assert busy.ask("call") == ["ok", None]
        assert failing.ask("fail", 2) == {"failed": 2}
        assert busy.ask("until", "refused") == {"find": 1}

    def test_a_forked_child_looks_for_itself(self, fleet: Fleet) -> None:
        (parent,) = fleet(1)
        parent.ask("until", "ok")
        circuits.force_open("supplier")
        assert parent.ask("forked")[0] == "refused"

    def test_an_operators_word_reaches_all(self, fleet: Fleet) -> None:
        workers = fleet(3)
        assert [worker.ask("call")[0] for worker in workers] == ["ok"] * 3
        circuits.force_open("supplier", "maintenance")
        assert all_of(workers, "until", "refused") == [{"find": 1}] * 3
        circuits.reset("supplier")
        assert all_of(workers, "until", "ok") == [{"find": 1}] * 3


@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
class TestWrongClocks:
    OPTIONS: ClassVar[dict[str, Any]] = {"failure_threshold": 1, "reset_timeout": 600}

    @pytest.mark.parametrize("clock", ["+1h", "-1h"])
    def test_a_clock_that_is_an_hour_off_changes_nothing(self, fleet: Fleet, clock: str) -> None:
        (right,) = fleet(1, **self.OPTIONS)
        (wrong,) = fleet(1, clock=clock, **self.OPTIONS)
        assert abs(wrong.ask("now") - time.time()) > 3_000, "the clock is not wrong"

        assert wrong.ask("fail", 1) == {"failed": 1}
        for worker in (right, wrong):
            outcome, retry_after = worker.ask("call")
            assert outcome == "refused"
            assert 500 < retry_after <= 600
        age("supplier", 450)
        right, wrong = fleet(1, **self.OPTIONS)[0], fleet(1, clock=clock, **self.OPTIONS)[0]
        assert {worker.ask("call")[0] for worker in (right, wrong)} == {"refused"}
        age("supplier", 151)
        (wrong,) = fleet(1, clock=clock, **self.OPTIONS)
        assert wrong.ask("call")[0] == "ok"
        assert shown("supplier").state == "closed"

    @pytest.mark.parametrize("clock", ["+1h", "-1h"])
    def test_its_probe_has_the_lease_of_anybody_elses(self, fleet: Fleet, clock: str) -> None:
        (wrong,) = fleet(1, clock=clock, probe_timeout=20, **self.OPTIONS)
        assert wrong.ask("fail", 1) == {"failed": 1}
        age("supplier", 601)
        (wrong,) = fleet(1, clock=clock, probe_timeout=20, **self.OPTIONS)
        wrong.ask("enter")
        found = shown("supplier")
        (probe,) = found.probes
        assert found.updated_at
        assert (probe.until - found.updated_at).total_seconds() == 20
        wrong.ask("leave")
        assert shown("supplier").state == "closed"
