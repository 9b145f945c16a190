"""``get_or_set`` where many miss one value together: how its failures, its end and the waiting itself are shared."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest
from django.core.cache import cache as default_cache
from pymongo import MongoClient

from goscope_django import locks, runtime
from goscope_django.cache import MongoDBCache, computing
from goscope_django.cache.together import together
from goscope_django.exceptions import InvalidType, InvalidValue, OutcomeUnknown, PoolExhausted, StoreUnavailable
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import Recorder, on_server

cache: Any = default_cache
ROOT = Path(__file__).resolve().parents[3]
CALLERS = 8


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(autouse=True)
def server(mongo_url: str, recorder: Recorder) -> Iterator[None]:
    with on_server(mongo_url, client_options={"event_listeners": [recorder]}):
        if runtime.connection().pending:
            runtime.connection().prepare(5)
        cache.clear()
        for one in locks.backend().list():
            locks.backend().force_release(one.key)
        yield


class Work:
    """A callable that begins once all callers wait for it, and then does what it is told to."""

    def __init__(self, end: Callable[[], Any], callers: int = CALLERS) -> None:
        self.calls = 0
        self._end = end
        self._callers = callers

    def _all_wait(self) -> bool:
        with together._lock:
            return sum(entry.waiters for entry in together._entries.values()) >= self._callers - 1

    def __call__(self) -> Any:
        self.calls += 1
        while self.calls == 1 and not self._all_wait():
            threading.Event().wait(0.005)
        return self._end()

    async def later(self) -> Any:
        self.calls += 1
        while self.calls == 1 and not self._all_wait():  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.005)
        return self._end()


def callers(kind: str, work: Work, timeout: Any = 60, one: Any = None) -> list[Any]:
    """What ``CALLERS`` threads or tasks get who miss the value together: results, or the exceptions themselves."""
    one = one or cache
    if kind == "sync":

        def ask(_: int) -> Any:
            try:
                return one.get_or_set("key", work, timeout)
            except Exception as error:
                return error

        with ThreadPoolExecutor(CALLERS) as pool:
            return list(pool.map(ask, range(CALLERS)))

    async def gather() -> list[Any]:
        asked = (one.aget_or_set("key", work.later, timeout) for _ in range(CALLERS))
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(gather())


both = pytest.mark.parametrize("kind", ["sync", "async"])


def failing() -> Any:
    raise LookupError("upstream is down")


@both
def test_a_failure_reaches_all_who_waited_at_once_and_is_the_very_same(kind: str) -> None:
    work = Work(failing)
    found = callers(kind, work)
    assert isinstance(found[0], LookupError) and all(one is found[0] for one in found)
    assert work.calls == 1
    assert locks.backend().list() == [] and together._entries == {}


@both
@pytest.mark.parametrize("timeout", [0, -1])
def test_a_value_that_is_not_to_be_stored_is_computed_once_for_all_who_waited(kind: str, timeout: int) -> None:
    work = Work(lambda: {"n": [1]})
    found = callers(kind, work, timeout)
    assert found == [{"n": [1]}] * CALLERS and work.calls == 1
    assert cache.get("key") is None


@both
@pytest.mark.parametrize(
    ("value", "error", "params"),
    [(lambda: None, InvalidType, {"OPTIONS": {"SERIALIZER": "bson"}}), ("x" * 17_000_000, InvalidValue, {})],
)
def test_a_value_that_cant_be_stored_is_one_error_for_all_who_waited(
    kind: str, value: Any, error: type[Exception], params: dict[str, Any]
) -> None:
    work = Work(lambda: value)
    found = callers(kind, work, one=MongoDBCache("", params))
    assert isinstance(found[0], error) and all(one is found[0] for one in found)
    assert work.calls == 1


@both
def test_each_who_waited_gets_a_copy_of_its_own(kind: str) -> None:
    work = Work(lambda: {"list": [1], "when": {3, 4}})
    found = callers(kind, work)
    assert work.calls == 1 and all(one == {"list": [1], "when": {3, 4}} for one in found)
    assert len({id(one) for one in found}) == CALLERS and len({id(one["list"]) for one in found}) == CALLERS


@both
def test_who_waits_in_this_process_sends_nothing(kind: str, recorder: Recorder) -> None:
    """One read for each who misses; the others are those of the one who computes."""
    recorder.clear()
    callers(kind, Work(lambda: 1))
    names = [name for name in recorder.names if name != "createIndexes"]
    assert len(names) == CALLERS + 4
    recorder.clear()
    assert cache.get_or_set("key", failing) == 1
    assert recorder.names == ["find"]


@both
def test_what_interrupts_one_makes_another_compute(kind: str) -> None:
    if kind == "async":

        async def cancelled() -> None:
            begun = asyncio.Event()
            calls = []

            async def slow() -> int:
                calls.append(1)
                if len(calls) == 1:
                    begun.set()
                    await asyncio.Event().wait()
                return 7

            first = asyncio.create_task(cache.aget_or_set("key", slow))
            await begun.wait()
            others = [asyncio.create_task(cache.aget_or_set("key", slow)) for _ in range(3)]
            await asyncio.sleep(0.05)
            first.cancel()
            assert await asyncio.gather(*others) == [7, 7, 7]
            with pytest.raises(asyncio.CancelledError):
                await first
            assert len(calls) == 2

        asyncio.run(cancelled())
        return
    calls: list[int] = []
    begun = threading.Event()

    def interrupted() -> int:
        calls.append(1)
        if len(calls) == 1:
            begun.set()
            while not any(entry.waiters >= 2 for entry in list(together._entries.values())):
                threading.Event().wait(0.005)
            raise KeyboardInterrupt
        return 7

    def first() -> Any:
        with pytest.raises(KeyboardInterrupt):
            cache.get_or_set("key", interrupted)

    with ThreadPoolExecutor(3) as pool:
        leader = pool.submit(first)
        begun.wait()
        assert list(pool.map(lambda _: cache.get_or_set("key", interrupted), range(2))) == [7, 7]
        leader.result()
    assert len(calls) == 2


def test_a_task_that_stops_waiting_leaves_the_others_alone() -> None:
    async def scene() -> None:
        release = asyncio.Event()

        async def slow() -> str:
            await release.wait()
            return "made"

        leader = asyncio.create_task(cache.aget_or_set("key", slow))
        await asyncio.sleep(0.05)
        waiters = [asyncio.create_task(cache.aget_or_set("key", slow)) for _ in range(3)]
        await asyncio.sleep(0.05)
        waiters[0].cancel()
        await asyncio.sleep(0)
        release.set()
        assert await asyncio.gather(leader, *waiters[1:]) == ["made"] * 3
        assert waiters[0].cancelled()

    asyncio.run(scene())


def test_a_sync_call_in_the_loop_that_computes_does_not_wait_for_itself() -> None:
    async def outer() -> int:
        return int(cache.get_or_set("inner", lambda: 1)) + await aside()

    async def aside() -> int:
        return int(await asyncio.get_running_loop().run_in_executor(None, lambda: 1))

    async def scene() -> int:
        async def compute() -> Any:
            return await asyncio.create_task(blocked())

        async def blocked() -> Any:
            return cache.get_or_set("key", lambda: 5)  # of the very key, on the very thread

        return int(await cache.aget_or_set("key", compute)) + await outer()

    assert asyncio.run(scene()) == 7


# What keeps it from waiting makes it compute


@both
@pytest.mark.parametrize("error", [StoreUnavailable("away"), OutcomeUnknown("broke"), PoolExhausted("maxPoolSize")])
@pytest.mark.parametrize("method", ["acquire", "get"])
def test_a_lease_that_cant_be_asked_for_is_done_without(
    kind: str, error: Exception, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = locks.backend().acquire("get_or_set:cache::1:key", 30)
    assert held is not None

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    async def afails(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(locks.backend(), method, fails)
    monkeypatch.setattr(locks.backend(), f"a{method}", afails)
    drive = Drive(kind)
    try:
        assert drive(cache, "get_or_set", "key", lambda: 5) == 5
        assert cache.get("key") == 5
    finally:
        drive.close()


@both
def test_nobody_waits_for_longer_than_twice_the_lease(kind: str, mongo_url: str) -> None:
    with on_server(mongo_url, DEFAULT_LOCK_TIMEOUT=0.3):
        held = locks.backend().acquire("get_or_set:cache::1:key", 30)
        assert held is not None
        drive = Drive(kind)
        try:
            assert drive(cache, "get_or_set", "key", lambda: 5) == 5
        finally:
            drive.close()


@both
def test_without_a_connection_of_its_own_pool_it_computes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*args: Any) -> Any:
        raise PoolExhausted("maxPoolSize")

    async def aexhausted(*args: Any) -> Any:
        raise PoolExhausted("maxPoolSize")

    one = MongoDBCache("", {})
    one._keys.stored("key", None)
    monkeypatch.setattr(one._backing.store, "run", exhausted)
    monkeypatch.setattr(one._backing.store, "arun", aexhausted)
    drive = Drive(kind)
    try:
        assert drive(one, "get_or_set", "key", lambda: 5) == 5
        with pytest.raises(PoolExhausted):
            drive(one, "get", "key")
    finally:
        drive.close()


# Other processes

WORKER = """
import sys, time, django
from django.conf import settings
url, what = sys.argv[1:3]
settings.configure(SECRET_KEY="x" * 50, GOSCOPE={"URL": url, "DEFAULT_LOCK_TIMEOUT": float(sys.argv[3])},
    CACHES={"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}}, INSTALLED_APPS=["goscope_django"])
django.setup()
from concurrent.futures import ThreadPoolExecutor
from django.core.cache import cache
cache.get("warm")
print("ready", flush=True)
sys.stdin.readline()
def compute():
    cache.add("runs", 0); cache.incr("runs")
    if what == "slow":
        print("computing", flush=True)
        time.sleep(60)
    if what == "fail":
        time.sleep(0.3)
        raise LookupError("down")
    return "made"
def ask(_):
    try:
        return cache.get_or_set("shared", compute)
    except LookupError as error:
        return id(error)
with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(ask, range(4)))
print(len(set(found)), found[0] if isinstance(found[0], str) else "failed", flush=True)
"""


class Workers:
    """Processes with four threads each that ask for one value."""

    def __init__(self, url: str, *what: str, lease: float = 30) -> None:
        self.running = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, url, one, str(lease)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for one in what
        ]
        for one in self.running:
            assert self.line(one) == "ready"

    @staticmethod
    def line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def go(self, *which: int) -> None:
        for number in which:
            stdin = self.running[number].stdin
            assert stdin is not None
            stdin.write("go\n")
            stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.running:
            one.kill()
            one.wait()
            for pipe in (one.stdin, one.stdout):
                assert pipe is not None
                pipe.close()


@pytest.fixture
def runs(mongo_url: str) -> Callable[[], int]:
    def read() -> int:
        with MongoClient[dict[str, Any]](mongo_url) as client:
            found = client.get_default_database().go_goscope_cache.find_one({"key": "cache::1:runs"})
        return 0 if found is None else int(found["value"])

    return read


def test_after_a_failure_every_other_process_computes_once_and_at_once(mongo_url: str, runs: Callable[[], int]) -> None:
    with Workers(mongo_url, *["fail"] * 4) as workers:
        workers.go(0, 1, 2, 3)
        assert [workers.line(one) for one in workers.running] == ["1 failed"] * 4
    assert runs() == 4, "each process once, for all of its threads"


def test_a_value_is_computed_by_one_process_for_all(mongo_url: str, runs: Callable[[], int]) -> None:
    with Workers(mongo_url, *["make"] * 4) as workers:
        workers.go(0, 1, 2, 3)
        assert [workers.line(one) for one in workers.running] == ["1 made"] * 4
    assert runs() == 1


def test_one_process_takes_the_place_of_one_that_died(mongo_url: str, runs: Callable[[], int]) -> None:
    with Workers(mongo_url, "slow", "make", "make", "make", lease=2) as workers:
        workers.go(0)
        assert workers.line(workers.running[0]) == "computing"
        workers.running[0].kill()
        workers.go(1, 2, 3)
        assert [workers.line(one) for one in workers.running[1:]] == ["1 made"] * 3
    assert runs() == 2


def test_who_waits_for_another_process_asks_now_and_then(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not more often than a lock's waiter does, and once it is free one read more."""
    held = locks.backend().acquire("get_or_set:cache::1:key", 30)
    assert held is not None
    pauses: list[float] = []

    def interval() -> float:
        pauses.append(computing.POLL)
        if len(pauses) == 3:
            cache.set("key", "theirs")
            locks.backend().release(held)
        return 0.01

    monkeypatch.setattr(computing, "_interval", interval)
    assert cache.get_or_set("key", failing) == "theirs"
    assert len(pauses) == 3
