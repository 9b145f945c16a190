"""Calls that overlap: all have begun (they run the function, or wait for it) before any of them may end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from goscope_django.mongodb import overview
from goscope_django.mongodb.finding import Wanted
from goscope_django.mongodb.single_flight.provider import MongoDBFlightProvider
from goscope_django.mongodb.single_flight.values import FlightInfo
from goscope_django.single_flight import group as single_flight_group
from goscope_django.single_flight.plan import flights

PATIENCE = 30.0


def in_the_air(
    provider: MongoDBFlightProvider | None = None, limit: int = 1_000, run: Callable[..., Any] | None = None
) -> list[FlightInfo]:
    """The flights that somebody leads, by key; ``run`` runs a flow of the store where it is not ``store.run``."""
    provider = provider or flights()
    run = run or provider.store.run
    return list(run(overview.flights, provider.stored("").removesuffix("flight:"), Wanted(limit)).items)


def waiting() -> int:
    """How many callers of this process wait for another one."""
    entries = list(single_flight_group.group._entries.values())
    return sum(len(entry.waiters) for entry in entries)


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for a condition; fails after ``PATIENCE`` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.002)


async def await_until(true: Callable[[], bool]) -> None:
    """``wait_until`` in a task."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.002)


class Gate:
    """What a shared function passes: it counts who comes, and holds them until it is opened."""

    def __init__(self) -> None:
        self.inside = 0
        self.entered = 0
        self.open = threading.Event()
        self._lock = threading.Lock()

    def _count(self, step: int) -> None:
        with self._lock:
            self.inside += step
            self.entered += max(step, 0)

    def hold(self) -> None:
        self._count(1)
        assert self.open.wait(PATIENCE), "nobody opened the gate"
        self._count(-1)

    async def ahold(self) -> None:
        self._count(1)
        await await_until(self.open.is_set)
        self._count(-1)

    def together(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run ``calls`` in threads, open the gate once all are under way; what each returned or raised, in order."""
        results: list[Any] = [None] * len(calls)

        def run(place: int) -> None:
            try:
                results[place] = calls[place]()
            except Exception as error:
                results[place] = error

        threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(calls))]
        self.open.clear()
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda n=number: self.inside + waiting() + _ended(threads[:n]) >= n)  # type: ignore[misc]
        self.open.set()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a caller never came back"
        return results

    async def atogether(self, calls: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
        """``together`` for coroutine functions, in tasks."""
        self.open.clear()
        tasks: list[asyncio.Task[Any]] = []
        for call in calls:
            tasks.append(asyncio.ensure_future(_awaited(call)))
            await await_until(lambda: self.inside + waiting() + sum(task.done() for task in tasks) >= len(tasks))
        self.open.set()
        return list(await asyncio.gather(*tasks, return_exceptions=True))


def _ended(threads: Sequence[threading.Thread]) -> int:
    return sum(not one.is_alive() for one in threads)


async def _awaited(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


def roles(responses: Sequence[Any]) -> list[str]:
    """What each response says of its part, sorted."""
    return sorted(str(response.headers["X-Single-Flight"]) for response in responses)
