"""A store of the tests' own for operators, real or mongomock, and things to put into it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from goscope_django import operations, runtime
from goscope_django.core.flow import Flow, ask
from goscope_django.mongodb.document.clock import Clock
from goscope_django.operations import State
from goscope_django.process import counters, losses
from tests.support.commands import on_server
from tests.support.freezing import freeze

_numbers = itertools.count()


@contextmanager
def own_store(url: str, **goscope: Any) -> Iterator[None]:
    """The project's settings lead to ``url``, under a prefix that nobody else uses, with all indexes.

    What other tests of this process counted and lost is not sent there.
    """
    counters.forget()
    losses.forget()
    goscope.setdefault("KEY_PREFIX", f"ops{next(_numbers)}:")
    with on_server(url, **goscope):
        runtime.connection().prepare(10)
        yield


class Operators:
    """Calls ``operations``, ``mode`` sync or async."""

    def __init__(self, mode: str) -> None:
        self._runner = asyncio.Runner() if mode == "async" else None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._runner is None:
                return getattr(operations, name)(*args, **kwargs)

            async def native() -> Any:
                return await getattr(operations, f"a{name}")(*args, **kwargs)

            return self._runner.run(native())

        return call

    def see(self, **options: Any) -> State:
        """The state."""
        found: State = self.state(**options)
        return found

    def close(self) -> None:
        """End the event loop."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None
            # PyMongo 4.20 forgets the socket of a monitor that is cancelled while it connects to a server that is down.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process hangs: it takes connections, since the kernel does, and says nothing."""
    try:
        freeze(pid)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def query(collection: str, method: str, *args: Any, **kwargs: Any) -> Any:
    """Do something to the store behind everybody's back."""

    def flow(clock: Clock) -> Flow[Any]:
        return (yield from ask(collection, method, *args, **kwargs))

    return runtime.adapter().store.run(flow)


def soon(seconds: float) -> datetime:
    """An instant so many seconds from now, as BSON keeps it."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.replace(microsecond=moment.microsecond // 1_000 * 1_000)


def fill(locks: int = 0, circuits: int = 0, tasks: int = 0, flights: int = 0, records: int = 0) -> None:
    """Put many things there at once, as their features write them."""
    prefix, now, later = runtime.adapter().key_prefix, soon(0), soon(3_600)
    everything: dict[str, list[dict[str, Any]]] = {
        "go_goscope_locks": [
            {
                "_id": f"{prefix}lock:l{n:05}",
                "key": f"{prefix}lock:l{n:05}",
                "owner": f"worker-{n % 7}",
                "claim": f"c{n}",
                "token": n + 1,
                "createdAt": now,
                "expiresAt": later,
            }
            for n in range(locks)
        ],
        "go_goscope_circuit": [
            {
                "_id": f"{prefix}circuit:c{n:04}",
                "key": f"{prefix}circuit:c{n:04}",
                "state": ("closed", "open", "half-open")[n % 3],
                "failureCount": n % 3,
                "generation": n,
                "openedAt": now,
                "resetTimeout": 60_000,
                "updatedAt": now,
                "history": [{"at": now, "from": "closed", "to": "open", "reason": "failures", "id": "x"}] * 20,
            }
            for n in range(circuits)
        ],
        "go_goscope_tasks": [
            {
                "_id": f"{prefix}t{n:04}",
                "status": "running",
                "claim": f"c{n}",
                "owner": f"worker-{n % 7}",
                "token": n + 1,
                "attempt": 1,
                "tries": 1,
                "maxAttempts": 10,
                "sequence": n,
                "progress": n % 100,
                "data": "secret-state",
                "leaseUntil": later if n % 2 else soon(-5),
                "heartbeatAt": now,
                "cancelRequested": False,
                "expiresAt": None,
            }
            for n in range(tasks)
        ],
        "go_goscope_flights": [
            {
                "_id": f"{prefix}flight:f{n:04}",
                "claim": f"c{n}",
                "leader": "worker",
                "token": n + 1,
                "state": "flying",
                "startedAt": now,
                "expiresAt": later,
                "value": "secret-response",
            }
            for n in range(flights)
        ],
        "go_goscope_idempotency": [
            {
                "_id": f"{prefix}i{n:04}",
                "key": f"claim:{prefix}i{n:04}" if n % 2 else f"{prefix}i{n:04}",
                "claim": f"c{n}" if n % 2 else None,
                "token": n + 1,
                "value": "secret-answer",
                "expiresAt": later,
                "updatedAt": now,
            }
            for n in range(records)
        ],
    }
    for collection, documents in everything.items():
        if documents:
            query(collection, "insert_many", documents)
