"""A task that is cancelled while the end of its work is being written: the end is written all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from goscope_django import circuits, runtime
from goscope_django.checkpoints import aget_task, checkpointed
from goscope_django.circuits import CircuitBreaker
from goscope_django.core.colours import finished
from goscope_django.locks import lock
from goscope_django.mongodb.driver.store import Store
from goscope_django.single_flight import single_flight
from tests.support.circuits import Boom, age, own_store


@pytest.fixture(autouse=True)
def prefix() -> Iterator[str]:
    with own_store("mongomock://") as found:
        yield found


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command takes a while to go out, as one to a busy server does."""
    at_once = Store.arun

    async def arun(self: Store, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0.02)
        return await at_once(self, *args, **kwargs)

    monkeypatch.setattr(Store, "arun", arun)


async def cancelled_at_the_end(work: Callable[[Callable[[], None]], Awaitable[Any]], times: int) -> None:
    """Run ``work(done)`` and cancel it once it has called ``done`` and waits for the store."""
    over = asyncio.Event()
    task: asyncio.Future[Any] = asyncio.ensure_future(work(over.set))
    await over.wait()
    for _ in range(times):
        await asyncio.sleep(0.001)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.usefixtures("slow")
class TestEnds:
    async def test_a_failure_counts(self, times: int) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=2)

        async def work(done: Callable[[], None]) -> None:
            async with breaker:
                done()
                raise ValueError

        await cancelled_at_the_end(work, times)
        found = await circuits.aget_circuit("supplier")
        assert found is not None
        assert found.failure_count == 1

    async def test_a_probe_that_succeeded_closes_the_circuit(self, times: int) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1, reset_timeout=20)

        async def fails() -> None:
            raise Boom

        with pytest.raises(Boom):
            await breaker.acall(fails)
        age("supplier", 30)

        async def work(done: Callable[[], None]) -> None:
            async def supplier() -> None:
                done()

            await breaker.acall(supplier)

        await cancelled_at_the_end(work, times)
        found = await circuits.aget_circuit("supplier")
        assert found is not None
        assert (found.state, found.probes) == ("closed", ())

    async def test_a_flight_lands(self, times: int, prefix: str) -> None:
        runs = []

        async def work(done: Callable[[], None]) -> int:
            return await report(done)

        @single_flight(key="report", timeout=60, linger=20, name="a_flight_lands.report")
        async def report(done: Callable[[], None]) -> int:
            runs.append(1)
            done()
            return 7

        await cancelled_at_the_end(work, times)
        flights = runtime.connection().sync().database["go_goscope_flights"]
        found = flights.find_one({"_id": {"$gte": prefix, "$lt": f"{prefix}~"}})
        assert (found["state"], found["claim"], found["value"]) == ("landed", None, 7)

    async def test_a_task_is_completed(self, times: int) -> None:
        async def work(done: Callable[[], None]) -> None:
            async with checkpointed("import") as task:
                async for _ in task.atrack(range(3), every=100):
                    pass
                task.complete("all")
                done()

        await cancelled_at_the_end(work, times)
        found = await aget_task("import")
        assert found is not None
        assert (found.status, found.done) == ("completed", 3)

    async def test_a_lock_is_given_back(self, times: int) -> None:
        async def work(done: Callable[[], None]) -> None:
            async with lock("stock") as handle:
                handles.append(handle)
                done()

        handles: list[Any] = []
        await cancelled_at_the_end(work, times)
        assert runtime.adapter().lock.get("stock") is None
        assert handles[0].released


async def test_an_error_that_nobody_waits_for_is_not_reported_as_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise ValueError

    task = asyncio.ensure_future(finished(fails()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caplog.records == []
