"""What a breaker sends, when, and how it goes on while MongoDB can't be reached. On a real mongod."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from django.test import override_settings
from pymongo import monitoring

from goscope_django import circuits, runtime
from goscope_django.circuits import CircuitBreaker, CircuitOpen, registry
from goscope_django.exceptions import StoreUnavailable
from tests.support.circuits import KINDS, Boom, Caller, age, caller, heard, look_again, own_store, shown, stale
from tests.support.mongod import replica_set

pytestmark = pytest.mark.real
WRITES = {"findAndModify", "update", "insert", "delete"}


class Listener(monitoring.CommandListener):
    def __init__(self) -> None:
        self.commands: list[tuple[str, Any]] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name in WRITES | {"find"}:
            self.commands.append((event.command_name, event.command))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

    def taken(self) -> list[str]:
        names = [name for name, _ in self.commands]
        self.commands.clear()
        return names


@pytest.fixture
def sent(mongo_url: str) -> Iterator[Listener]:
    listener = Listener()
    goscope: dict[str, Any] = {"CLIENT_OPTIONS": {"event_listeners": [listener]}}
    with own_store(mongo_url) as prefix:
        goscope |= {"TEST": {"URL": mongo_url, "KEY_PREFIX": prefix}}
        with override_settings(GOSCOPE=goscope):
            runtime.adapter().ping()
            listener.commands.clear()
            yield listener
            runtime.connection().close()


@pytest.fixture(params=KINDS)
def by(sent: Listener, request: pytest.FixtureRequest) -> Iterator[Caller]:
    with caller(request.param) as found:
        yield found


def body() -> str:
    return "ok"


async def native() -> str:
    return "ok"


async def bad() -> None:
    raise Boom


class TestCommands:
    def test_constructing_sends_nothing(self, sent: Listener) -> None:
        CircuitBreaker("supplier")
        circuits.circuit_breaker("supplier")(body)
        assert sent.taken() == []

    def test_the_first_call_reads_and_the_next_send_nothing(self, by: Caller, sent: Listener) -> None:
        breaker = CircuitBreaker("supplier")
        by.call(breaker, body)
        assert sent.taken() == ["find"]
        registry.current().due += 60
        look = registry.current().views["supplier"].snap
        look.closed_until += 60
        for _ in range(50):
            by.call(breaker, body)
        assert sent.taken() == []

    def test_at_most_ten_commands_for_a_thousand_calls_in_threads(self, sent: Listener) -> None:
        breakers = [CircuitBreaker(f"supplier-{number}") for number in range(4)]
        began = time.monotonic()
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda number: breakers[number % 4].call(body), range(1_000)))
        seconds = time.monotonic() - began
        assert Counter(sent.taken()).total() <= 10 * max(1, seconds)

    def test_at_most_ten_commands_for_a_thousand_calls_in_tasks(self, sent: Listener) -> None:
        breakers = [CircuitBreaker(f"supplier-{number}") for number in range(4)]

        async def all_of_them() -> float:
            began = time.monotonic()
            await asyncio.gather(*(breakers[number % 4].acall(native) for number in range(1_000)))
            return time.monotonic() - began

        seconds = asyncio.run(all_of_them())
        assert Counter(sent.taken()).total() <= 10 * max(1, seconds)

    def test_a_reading_is_one_command_for_all_circuits_in_use(self, by: Caller, sent: Listener) -> None:
        breakers = [CircuitBreaker(f"supplier-{number}") for number in range(5)]
        for breaker in breakers:
            by.call(breaker, body)
        assert len(sent.taken()) == 5, "each one's first call reads it"
        stale()
        for breaker in breakers:
            by.call(breaker, body)
        assert len(sent.commands) == 1
        name, command = sent.commands[0]
        assert name == "find"
        assert len(command["filter"]["key"]["$in"]) == 5

    def test_a_refused_call_sends_nothing(self, by: Caller, sent: Listener) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1)
        by.ends(breaker, Boom())
        sent.taken()
        began = time.monotonic()
        assert {by.ends(breaker) for _ in range(100)} == {"refused"}
        assert len(sent.taken()) <= 1 + (time.monotonic() - began)

    def test_a_failure_is_one_command_and_so_is_the_first_success_after_it(self, by: Caller, sent: Listener) -> None:
        breaker = CircuitBreaker("supplier")
        by.call(breaker, body)
        sent.taken()
        by.ends(breaker, Boom())
        assert sent.taken() == ["findAndModify"]
        for _ in range(5):
            by.call(breaker, body)
        assert sent.taken() == ["findAndModify"]

    def test_a_success_is_not_written_where_another_one_was(self, by: Caller, sent: Listener) -> None:
        breaker = CircuitBreaker("supplier")
        by.ends(breaker, Boom())
        runtime.adapter().circuit_breaker.record_success("supplier")
        before = shown("supplier").updated_at
        by.call(breaker, body)
        assert shown("supplier").updated_at == before

    def test_a_probe_is_two_commands_and_those_it_keeps_out_send_none(self, by: Caller, sent: Listener) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1, reset_timeout=30, success_threshold=2)
        by.ends(breaker, Boom())
        age("supplier", 31)
        by.ends(CircuitBreaker("other"))
        sent.taken()
        look_again()
        with by.running(breaker):
            assert sent.taken() == ["find", "findAndModify"]
            assert {by.ends(breaker) for _ in range(50)} == {"refused"}
            assert set(sent.taken()) <= {"find"}
        assert sent.taken() == ["findAndModify"]


class TestManyAtOnce:
    def test_no_more_probes_than_allowed_in_forty_threads(self, mongo_url: str) -> None:
        with own_store(mongo_url):
            breaker = CircuitBreaker(
                "supplier", failure_threshold=1, reset_timeout=30, half_open_max_calls=3, success_threshold=100
            )
            with pytest.raises(Boom):
                breaker.call(self.boom)
            age("supplier", 31)
            ended, running, start = threading.Event(), [], threading.Barrier(40)

            def probe() -> None:
                running.append(1)
                ended.wait(20)

            def one(_: int) -> str:
                start.wait(20)
                try:
                    breaker.call(probe)
                except CircuitOpen:
                    return "refused"
                return "ran"

            with ThreadPoolExecutor(40) as pool:
                calls = [pool.submit(one, number) for number in range(40)]
                deadline = time.monotonic() + 20
                while sum(call.done() for call in calls) < 37 and time.monotonic() < deadline:
                    time.sleep(0.01)
                assert len(running) == 3
                ended.set()
                assert Counter(call.result() for call in calls) == {"refused": 37, "ran": 3}

    def test_no_more_probes_than_allowed_in_forty_tasks(self, mongo_url: str) -> None:
        with own_store(mongo_url):
            breaker = CircuitBreaker(
                "supplier", failure_threshold=1, reset_timeout=30, half_open_max_calls=3, success_threshold=100
            )
            running = 0

            async def probe() -> None:
                nonlocal running
                running += 1
                await ended.wait()

            async def main() -> list[Any]:
                calls = [asyncio.create_task(breaker.acall(probe)) for _ in range(40)]
                refused = asyncio.as_completed(calls)
                async with asyncio.timeout(20):
                    for _ in range(37):
                        with pytest.raises(CircuitOpen):
                            await next(refused)
                ended.set()
                return await asyncio.gather(*calls, return_exceptions=True)

            with asyncio.Runner() as runner:
                with pytest.raises(Boom):
                    runner.run(breaker.acall(bad))
                age("supplier", 31)
                ended = asyncio.Event()
                results = runner.run(main())
            assert running == 3
            assert sum(isinstance(one, CircuitOpen) for one in results) == 37

    def test_a_probe_that_is_cancelled_while_it_runs_or_asks_leaves_no_place_taken(self, mongo_url: str) -> None:
        with own_store(mongo_url):
            breaker = CircuitBreaker("supplier", failure_threshold=1, reset_timeout=30, success_threshold=100)

            async def long() -> None:
                await asyncio.sleep(60)

            async def main() -> None:
                with pytest.raises(Boom):
                    await breaker.acall(bad)
                age("supplier", 31)
                for steps in (1, 2, 3, 5, 10, 30):
                    look_again()
                    task = asyncio.create_task(breaker.acall(long))
                    for _ in range(steps):
                        await asyncio.sleep(0.0005)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    assert shown("supplier").probes == ()

            asyncio.run(main())

    def test_a_synchronous_call_inside_a_loop_that_reads_does_not_block_it(self, mongo_url: str) -> None:
        with own_store(mongo_url):
            breaker = CircuitBreaker("supplier")

            async def main() -> float:
                reading = asyncio.create_task(breaker.acall(native))
                await asyncio.sleep(0)  # it has begun to read, and can't go on while this thread is busy
                began = time.monotonic()
                assert breaker.call(body) == "ok"
                seconds = time.monotonic() - began
                assert await reading == "ok"
                return seconds

            assert asyncio.run(main()) < 1.5, "it waited for a reader that it blocks itself"

    def boom(self) -> None:
        raise Boom


def told_about(name: str) -> Any:
    """What is stored of it. The sync client may see the server up to a second later than the async one."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return circuits.get_circuit(name)
        except StoreUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.slow
class TestWithoutTheServer:
    """The server is killed and comes back: local state meanwhile, told once, and the shared state counts afterwards."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_goes_on_locally_and_returns(self, kind: str) -> None:
        options = {"failure_threshold": 2, "reset_timeout": 1.5}
        with replica_set(members=1) as server, caller(kind) as by:
            url = f"{server.uri.partition('?')[0]}circuits?replicaSet={quote(server.name)}"
            with own_store(url), heard("degraded", "recovered", "circuit_opened") as events:
                breaker, other = CircuitBreaker("supplier", **options), CircuitBreaker("other", **options)  # type: ignore[arg-type]
                assert by.ends(breaker) == "ok"
                assert by.ends(breaker, Boom()) == "Boom"
                circuits.force_open("forced", "before the crash")
                assert by.ends(CircuitBreaker("forced")) == "refused"
                port = server.kill_primary()
                events.clear()

                stale()
                assert by.ends(breaker) == "ok", "a healthy call is not harmed"
                assert [name for name, _ in events] == ["degraded"]
                assert events[0][1]["feature"] == "circuits"
                assert "go_goscope_circuit" in events[0][1]["error"]
                assert by.ends(CircuitBreaker("forced")) == "refused", "the operator's last word still holds"

                assert [by.ends(breaker, Boom()) for _ in range(2)] == ["Boom", "Boom"]
                assert by.ends(breaker) == "refused", "it trips locally"
                assert by.ends(other) == "ok"
                time.sleep(1.6)
                with by.running(breaker):
                    assert by.ends(breaker) == "refused", "one local probe at a time"
                assert by.ends(breaker) == "ok"
                assert [by.ends(other, Boom()) for _ in range(3)] == ["Boom", "Boom", "refused"]
                assert [name for name, _ in events] == ["degraded"], "said once"
                with pytest.raises(StoreUnavailable):
                    circuits.reset("supplier")

                server.resume(port)
                server.primary_port()
                deadline = time.monotonic() + 30
                while registry.current().degraded and time.monotonic() < deadline:
                    by.ends(breaker)
                    time.sleep(0.1)
                assert [name for name, _ in events] == ["degraded", "recovered"]
                assert by.ends(other) == "ok", "what was counted locally is dropped"
                assert told_about("other") is None
                assert [by.ends(other, Boom()) for _ in range(2)] == ["Boom", "Boom"]
                assert by.ends(other) == "refused"
                assert events[2:] == [("circuit_opened", {"name": "other", "reason": "failures", "retry_after": 1.5})]

    def test_a_server_that_never_was_there_lets_calls_through(self) -> None:
        url = "mongodb://127.0.0.1:1/never"
        with own_store(url), heard("degraded") as events:
            breaker = CircuitBreaker("supplier", failure_threshold=2)
            began = time.monotonic()
            assert breaker.call(body) == "ok"
            assert time.monotonic() - began < 5
            for _ in range(2):
                with pytest.raises(Boom):
                    breaker.call(TestManyAtOnce().boom)
            with pytest.raises(CircuitOpen):
                breaker.call(body)
        assert len(events) == 1
