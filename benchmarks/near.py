"""The near cache: hits against raw PyMongo, LocMemCache and Redis; its costs elsewhere; how soon a write is seen. Many
callers of a stale value, and a tag of many entries."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.core.cache import caches
from pymongo import MongoClient

from benchmarks.cache import DICT, OURS, PEERS, RAW, SMALL
from benchmarks.harness import Contender, Goal, Operation, Report, percentile
from benchmarks.raw import RawCache

NEAR = "near cache"
KEYS = 100_000
PROGRAM = "-m", "benchmarks.near"
CALLERS = 60
PROCESSES = 4
TAGGED = 100_000


def settings_for(place: str) -> dict[str, Any]:
    """Entries of ``CACHES``: one with a near cache, and one on the same place without, and with room for all."""
    entry = {"BACKEND": "goscope_django.cache.MongoDBCache", "LOCATION": place, "KEY_PREFIX": "near"}
    roomy = {"MAX_ENTRIES": 2 * KEYS, "MAX_BYTES": 2**29}
    return {
        "near": {**entry, "OPTIONS": {"NEAR": True}},
        "roomy": {**entry, "OPTIONS": {"NEAR": roomy}},
        "far": entry,
    }


def _kept(cache: Any, *keys: str) -> None:
    """Read until what is read comes from the near cache."""
    near = _near(cache)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        before = near.figures.hits
        found = cache.get_many(keys)
        if len(found) == len(keys) and near.figures.hits - before == len(keys):
            return
        time.sleep(0.01)
    raise RuntimeError("nothing is kept")


def _near(cache: Any) -> Any:
    cache.get("anything")
    return cache._backing.near


def run(report: Report, client: MongoClient[dict[str, Any]], database: str, place: str, redis_port: int | None) -> None:
    """All rows of the near cache."""
    near, far, raw = caches["near"], caches["far"], RawCache(client, database)
    peers = {name: caches[alias] for alias, name in PEERS.items() if alias in caches.settings and alias != "database"}
    every: dict[str, Any] = {RAW: raw, NEAR: near, **peers}
    for cache in every.values():
        cache.set("small", SMALL)
        cache.set("dict", DICT)
    _kept(near, "small", "dict")

    def contenders(work: Any, among: dict[str, Any]) -> list[Contender]:
        return [
            Contender(name, lambda _, cache=cache: work(cache))  # type: ignore[misc]
            for name, cache in among.items()
        ]

    def getting(key: str) -> Any:
        return lambda cache: lambda: cache.get(key)

    report.section("Near cache, 1 thread")
    report.compare("get hit 100 B", contenders(getting("small"), every), Goal(NEAR, 30, 60))
    report.compare(
        "get hit 100 B",
        contenders(getting("small"), {"LocMemCache": peers["LocMemCache"], NEAR: near}),
        Goal(NEAR, 1.2, 3),
    )
    if "django-redis" in peers:
        among = {"django-redis": peers["django-redis"], NEAR: near}
        report.compare("get hit 100 B", contenders(getting("small"), among), Goal(NEAR, 12, 25))
    report.compare(
        "get hit 10 KB dict",
        contenders(getting("dict"), {"LocMemCache": peers["LocMemCache"], NEAR: near}),
        Goal(NEAR, 1.0, 1.3),
    )

    def setting(cache: Any) -> Operation:
        turns = itertools.count()
        return lambda: cache.set("set", f"{next(turns)} {SMALL}", 300)

    report.compare("set 100 B", contenders(setting, {OURS: far, NEAR: near}), Goal(NEAR, 0.95, 1.0))
    report.compare("get that is no hit", contenders(getting("missing"), {OURS: far, NEAR: near}))
    report.figures("Near cache, a write elsewhere and the idle stream")
    _seen(report, client[database]["go_goscope_cache"], near)
    _idle(report, client, near)
    _zipf(report, place, redis_port)
    report.figures("Stale values and tags")
    _callers(report, client[database], place)
    _tags(report, client[database]["go_goscope_cache"], far)


def _seen(report: Report, entries: Any, near: Any) -> None:
    """How long after the write was answered another process's value is read here."""
    stored, times = near._keys.stored("small", None), []
    for number in range(200):
        _kept(near, "small")
        entries.update_one({"key": stored}, {"$set": {"value": number}})
        written = time.perf_counter()
        while near.get("small") != number:
            time.sleep(0.0002)
        times.append(time.perf_counter() - written)
    report.figure("a write elsewhere is seen, median", NEAR, statistics.median(times) * 1e3, "ms", most=20, reach=5)
    report.figure("a write elsewhere is seen, p99", NEAR, percentile(times, 0.99) / 1e3, "ms", most=150, reach=50)


def _idle(report: Report, client: MongoClient[dict[str, Any]], near: Any) -> None:
    """What the open stream costs while nothing happens, by the server's own counters and by its thread's CPU time."""
    _kept(near, "small")
    thread = next(one for one in threading.enumerate() if one.name == "goscope-near")
    seconds = 10.0
    began, before = _cpu(thread), client.admin.command("serverStatus")["opcounters"]["getmore"]
    time.sleep(seconds)
    asked = client.admin.command("serverStatus")["opcounters"]["getmore"] - before
    report.figure("idle stream, commands a second", NEAR, asked / seconds, "commands/s", most=5, reach=3)
    spent = _cpu(thread) - began
    report.figure("idle stream, CPU of a core", NEAR, spent / seconds * 100, "%", most=0.3, reach=0.1)


def _cpu(thread: threading.Thread) -> float:
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0))


def _zipf(report: Report, place: str, redis_port: int | None) -> None:
    """Four processes with eight threads each: reads over a Zipf distribution, and writes over the same one, so that
    what is read most is changed most. All of them have read what they want once before."""
    fleets = [("near", NEAR), ("roomy", f"{NEAR}, all kept")]
    if redis_port is not None and "django-redis" in caches.settings:
        fleets.append(("django-redis", "django-redis"))
        _fill(caches["django-redis"])
    _fill(caches["far"])
    for share, least, reach in ((5, 2, 5), (0.5, None, None)):
        title, rates = f"reads a second, Zipf, {share:g} % writes, 4 processes", {}
        for alias, name in fleets:
            rates[name] = _fleet(alias, place, redis_port, round(100 / share))
            report.figure(title, name, rates[name], "reads/s")
        for _, name in fleets[:2]:
            if theirs := rates.get("django-redis"):
                report.figure("... against django-redis", name, rates[name] / theirs, "times", least=least, reach=reach)


def _fill(cache: Any) -> None:
    for start in range(0, KEYS, 1_000):
        cache.set_many({f"zipf:{one}": SMALL for one in range(start, start + 1_000)}, 3600)


def _fleet(alias: str, place: str, redis_port: int | None, every: int) -> float:
    """``every`` so manieth operation is a write."""
    workers = [_process("zipf", place, redis_port or 0, alias, number, every) for number in range(PROCESSES)]
    for one in workers:
        assert one.stdout is not None
        one.stdout.readline()  # it is ready
    begin = f"{time.time() + 0.3}\n"
    for one in workers:
        assert one.stdin is not None
        one.stdin.write(begin)
        one.stdin.flush()
    return sum(float(one.communicate(timeout=300)[0]) for one in workers)


def _process(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, *PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _set_up(place: str, redis_port: int) -> None:
    import django
    from django.conf import settings

    found = settings_for(place)
    if redis_port:
        location = f"redis://127.0.0.1:{redis_port}/0"
        found["django-redis"] = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": location}
    settings.configure(SECRET_KEY="benchmarks", GOSCOPE={"URL": place}, CACHES=found, INSTALLED_APPS=["goscope_django"])
    django.setup()


def _callers(report: Report, database: Any, place: str, rounds: int = 9) -> None:
    """Sixty callers in four processes of one value: while it is fresh, and past its timeout."""
    far: Any = caches["far"]
    workers = [_process("callers", place, 0) for _ in range(PROCESSES)]
    ratios, most = [], 0
    try:
        for one in workers:
            assert one.stdout is not None
            one.stdout.readline()  # it is ready
        for number in range(rounds):
            fresh, stale = f"fresh-{number}-{time.time()}", f"stale-{number}-{time.time()}"
            far.get_or_set(fresh, lambda: "old", 600, stale=600)
            far.get_or_set(stale, lambda: "old", 0.2, stale=600)
            hits, others = _called(workers, fresh), _called(workers, stale)
            ratios.append(percentile(others, 0.99) / percentile(hits, 0.99))
            most = max(most, database.computed.count_documents({"key": stale}))
    finally:
        for one in workers:
            one.communicate(timeout=60)
    report.figure(f"{CALLERS} callers of a stale value, most computations", OURS, most, "", most=1, reach=1)
    median = statistics.median(ratios)
    report.figure("... p99 of the others against that of hits", OURS, median, "times", most=3, reach=1.5)


def _called(workers: list[subprocess.Popen[str]], key: str) -> list[float]:
    """What the calls took, in seconds, that did not compute the value."""
    begin = time.time() + 0.3
    for one in workers:
        assert one.stdin is not None
        print(key, begin, file=one.stdin, flush=True)
    return [took for one in workers if one.stdout is not None for took in json.loads(one.stdout.readline())]


def _call(place: str, seconds: float = 0.6, computing: float = 0.3) -> None:
    """A process with its share of callers, each of which asks a hundred times a second."""
    _set_up(place, 0)
    computed = MongoClient[dict[str, Any]](place).get_default_database()["computed"]
    pool = ThreadPoolExecutor(CALLERS // PROCESSES)

    def caller(key: str, begin: float) -> list[float]:
        mine: Any = caches["far"]
        mine.get("anything")
        took, computes = [], False

        def compute() -> str:
            nonlocal computes
            computes = True
            computed.insert_one({"key": key})
            time.sleep(computing)
            return "new"

        time.sleep(max(0.0, begin - time.time()))
        while time.time() < begin + seconds:
            started = time.perf_counter()
            mine.get_or_set(key, compute, 600, stale=600)
            if not computes:
                took.append(time.perf_counter() - started)
            computes = False
            time.sleep(0.01)
        return took

    print("ready", flush=True)
    for line in sys.stdin:
        key, begin = line.split()
        calls = [pool.submit(caller, key, float(begin)) for _ in range(CALLERS // PROCESSES)]
        print(json.dumps([took for call in calls for took in call.result()]), flush=True)


def _tags(report: Report, entries: Any, far: Any) -> None:
    """A tag of very many entries."""
    far.set("tagged-", SMALL, 3600, tags=("many",))
    made = entries.find_one({"key": far._keys.stored("tagged-", None)})
    for start in range(0, TAGGED, 5_000):
        names = [f"{made['key']}{number}" for number in range(start, start + 5_000)]
        entries.insert_many([{**made, "_id": name, "key": name} for name in names])
    times = []
    for _ in range(50):
        started = time.perf_counter()
        far.invalidate_tags("many")
        times.append(time.perf_counter() - started)
    assert far.get(f"tagged-{TAGGED - 1}") is None
    median = statistics.median(times) * 1e3
    report.figure(f"invalidate_tags over {TAGGED:,} entries, median", OURS, median, "ms", most=50, reach=5)
    far.delete_pattern("tagged-*")


def _work(alias: str, place: str, redis_port: int, number: int, every: int, seconds: float = 5.0) -> float:
    _set_up(place, redis_port)
    cache: Any = caches[alias]
    numbers = random.Random(number)
    weights = list(itertools.accumulate(1 / (one + 1) for one in range(KEYS)))
    wanted = numbers.choices(range(KEYS), cum_weights=weights, k=200_000)
    names = sorted({f"zipf:{one}" for one in wanted})
    for start in range(0, len(names), 1_000):
        cache.get_many(names[start : start + 1_000])
    for one in wanted[-20_000:]:  # the most wanted ones once more, so that they stay
        cache.get(f"zipf:{one}")
    print("ready", flush=True)
    time.sleep(max(0.0, float(sys.stdin.readline()) - time.time()))
    reads, end = [0] * 8, time.perf_counter() + seconds

    def read(thread: int) -> None:
        mine: Any = caches[alias]
        for turn, one in enumerate(itertools.cycle(wanted[thread::8])):
            if turn % every == 0:
                mine.set(f"zipf:{one}", SMALL, 600)
                if time.perf_counter() > end:
                    return
            elif mine.get(f"zipf:{one}") is None:
                mine.set(f"zipf:{one}", SMALL, 600)
            reads[thread] += 1

    threads = [threading.Thread(target=read, args=(one,)) for one in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return sum(reads) / seconds


if __name__ == "__main__":
    what, place_, port_, *rest = sys.argv[1:]
    if what == "callers":
        _call(place_)
    else:
        print(_work(rest[0], place_, int(port_), int(rest[1]), int(rest[2])))
