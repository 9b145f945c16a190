"""A day of locks, flights, tasks and claims, in short: afterwards no thread, socket, document or memory is left of it.

``python -m tests.soak.day --minutes 1440`` (``make soak``). Rules:

* A minute of the day is one *cycle*: each feature is used once, sync and async, with leases of a thousandth of what
  they would be. So a lock that is held for a minute and a half, and renewed on the way, takes 90 milliseconds.
* What has expired is removed by what the server's TTL monitor does each minute, and by nothing else: an index of that
  kind has to be there.
* What is counted is compared with what it was after the first cycles, when everything had been loaded and connected.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from goscope_django.core.flow import Flow, Pause, acarry_out, call, carry_out
from tests.soak.planted import configure

MINUTE: Final = 0.001 * 60
"""Seconds that a minute takes."""
WARM: Final = 12
"""Cycles before the first count."""
LONG: Final = MINUTE * 500
"""Seconds of a lease that is given back anyway."""
OBJECTS: Final = 300
"""Objects that may have come to stay, however long the day: what caches and interned names hold."""
PATIENCE: Final = 60.0
"""Seconds that threads, sockets and documents have to go away at the end of a day."""
IDLE: Final = 2
"""Seconds after which the pool closes a connection that nobody uses: how many there are then says how many are kept."""
REST: Final = 15.0
"""Seconds until it surely has, before the first count."""


@dataclass(frozen=True)
class Left:
    """What a process and its database hold at some moment."""

    threads: tuple[str, ...]
    sockets: int
    documents: dict[str, int]
    objects: int

    @classmethod
    def now(cls, database: Any) -> Left:
        gc.collect()
        names = sorted(one.name for one in threading.enumerate())
        documents = {
            name: database[name].count_documents({})
            for name in sorted(database.list_collection_names())
            if name.startswith("go_goscope_") and name != "go_goscope_stats"
        }
        return cls(tuple(names), _sockets(), {one: count for one, count in documents.items() if count}, _objects())


def _sockets() -> int:
    found = 0
    for one in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, some of which are gone in the next moment
        try:
            found += os.readlink(f"/proc/self/fd/{one}").startswith("socket:")  # noqa: PTH115
        except OSError:
            continue
    return found


def _objects() -> int:
    return len(gc.get_objects())


class Day:
    """The cycles of a day, on the settings' store."""

    def __init__(self) -> None:
        from goscope_django import runtime
        from goscope_django.idempotency import idempotent
        from goscope_django.single_flight import single_flight

        self.database = runtime.connection().sync().database
        self.counts = Counter[str]()

        async def aplain(number: int) -> int:
            await asyncio.sleep(MINUTE / 4)
            return number

        def plain(number: int) -> int:
            time.sleep(MINUTE / 4)
            return number

        flight: dict[str, Any] = {"timeout": 5 * MINUTE, "key": "{number}", "name": "day", "linger": MINUTE}
        # Long enough for a busy machine: a claim that ends before its answer is there is a conflict.
        once: dict[str, Any] = {"timeout": 1, "lease": LONG, "key": "{number}", "name": "day"}
        self.fly, self.afly = single_flight(**flight)(plain), single_flight(**flight)(aplain)
        self.once, self.aonce = idempotent(**once)(plain), idempotent(**once)(aplain)

    def cycle(self, number: int) -> Flow[None]:
        """Each feature once. Every tenth task fails, every seventh lock is left to its lease."""
        yield from self._locks(number)
        yield from self._tasks(number)
        for plain, twin, name in ((self.fly, self.afly, "flights"), (self.once, self.aonce, "claims")):
            assert (yield from call(plain, twin, number)) == number
            self.counts[name] += 1

    def _locks(self, number: int) -> Flow[None]:
        from goscope_django.locks import LockLost, lock

        block = lock(f"minute:{number % 50}", MINUTE * 1.5, blocking_timeout=10)
        yield from call(block.__enter__, block.__aenter__)
        yield Pause(MINUTE * 1.7 if number % 3 == 0 else MINUTE / 10)
        try:
            yield from call(block.__exit__, block.__aexit__, None, None, None)
        except LockLost:  # a busy machine may be late with a renewal
            self.counts["LockLost"] += 1
        if number % 7 == 0:
            left = lock(f"left:{number}", MINUTE, auto_extend=False)
            yield from call(left.acquire, left.aacquire)
        self.counts["locks"] += 1

    def _tasks(self, number: int) -> Flow[None]:
        from goscope_django.checkpoints import TaskLost, adelete_task, checkpointed, delete_task

        name = f"task:{number}"
        block = checkpointed(name, lease=LONG, keep=2, retention=1, on_sigterm=False)
        task = yield from call(block.__enter__, block.__aenter__)
        ended: tuple[Any, ...] = (None, None, None)
        try:
            for part in range(3):
                yield from call(task.save, task.asave, {"part": part, "text": "x" * 1_000})
            if number % 10 == 0:
                ended = (KeyError, KeyError(number), None)
            yield from call(block.__exit__, block.__aexit__, *ended)
        except TaskLost:
            self.counts["TaskLost"] += 1
        if ended[0] is not None or number % 2:
            yield from call(delete_task, adelete_task, name)
        self.counts["tasks"] += 1


def live(day: Day, first: int, last: int) -> None:
    """Cycles from ``first`` to ``last``, in turn on a thread of their own, on this one, and in an event loop."""

    async def there(number: int) -> None:
        await acarry_out(day.cycle(number))

    with asyncio.Runner() as runner:
        for number in range(first, last):
            if number % 3 == 0:
                runner.run(there(number))
            elif number % 3 == 1:
                carry_out(day.cycle(number))
            else:
                thread = threading.Thread(target=lambda number=number: carry_out(day.cycle(number)))
                thread.start()
                thread.join()
            if number % 60 == 59:
                print(f"{number + 1} minutes of the day are over", file=sys.stderr, flush=True)


def expire(database: Any) -> None:
    """What the server's TTL monitor does."""
    for name in database.list_collection_names():
        for index in database[name].index_information().values():
            if "expireAfterSeconds" in index:
                ((field, _),) = index["key"]
                test = {field: {"$type": "date"}, "$expr": {"$lte": [f"${field}", "$$NOW"]}}
                database[name].delete_many(test)


def settled(day: Day, wanted: Callable[[Left], bool]) -> Left:
    """What is left when everything that ends by itself has had the time to, and the daily cleaning has been done."""
    from goscope_django.checkpoints import cleanup_tasks

    deadline = time.monotonic() + PATIENCE
    while True:
        expire(day.database)
        cleanup_tasks()
        found = Left.now(day.database)
        if wanted(found) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def live_through(minutes: int) -> tuple[list[str], Counter[str]]:
    """What is left of a day of so many minutes that should not be, and what was done."""
    from goscope_django import runtime

    runtime.adapter().ensure_indexes()
    day = Day()
    return _lived(day, minutes), day.counts


def _lived(day: Day, minutes: int) -> list[str]:
    live(day, 0, WARM)
    resting = time.monotonic() + REST
    before = settled(day, lambda left: not left.documents and time.monotonic() > resting)
    live(day, WARM, WARM + minutes)
    after = settled(
        day,
        lambda left: not left.documents and len(left.threads) <= len(before.threads) and left.sockets <= before.sockets,
    )
    faults = [f"documents: {after.documents}"] if after.documents else []
    if len(after.threads) > len(before.threads):
        faults.append(f"threads: {after.threads}, before {before.threads}")
    if after.sockets > before.sockets:
        faults.append(f"sockets: {after.sockets}, before {before.sockets}")
    if after.objects - before.objects > OBJECTS:
        faults.append(f"objects: {after.objects}, before {before.objects}")
    day.counts["objects more"] = after.objects - before.objects
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=24 * 60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        configure(f"embedded://{Path(folder) / 'mongod'}", CLIENT_OPTIONS={"maxIdleTimeMS": IDLE * 1_000})
        faults, counts = live_through(options.minutes)
    done = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    print(f"{options.minutes} minutes of a day ({done}): {len(faults)} faults\n" + "\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
