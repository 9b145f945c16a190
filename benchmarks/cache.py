"""The cache against raw PyMongo, Django's own backends and, where a redis-server is installed, Redis."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.core.cache import caches
from django.core.management import call_command
from pymongo import MongoClient

from benchmarks.harness import Contender, Goal, Operation, Report
from benchmarks.raw import RawCache, RawLooseCache, RawPlainCache

SMALL = "x" * 100
DICT = {
    f"field-{number}": {"name": f"name {number}", "price": number * 1.5, "tags": ["a", "b"]} for number in range(110)
}
OURS = "goscope_django"
RAW = "raw pymongo"


@contextmanager
def redis() -> Iterator[int | None]:
    """A redis-server on a free port, or ``None`` where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        print("redis-server is not installed: RedisCache and django-redis are left out")
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            for _ in range(100):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.1):
                    break
            yield port
        finally:
            server.terminate()
            server.wait()


def settings_for(url: str, redis_port: int | None) -> dict[str, Any]:
    """``CACHES`` with every contender."""
    found: dict[str, Any] = {
        "default": {"BACKEND": "goscope_django.cache.MongoDBCache", "LOCATION": f"{url}&w=1"},
        "majority": {"BACKEND": "goscope_django.cache.MongoDBCache", "LOCATION": f"{url}&w=majority"},
        "locmem": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "database": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache_table"},
    }
    if redis_port is not None:
        location = f"redis://127.0.0.1:{redis_port}/0"
        if importlib.util.find_spec("redis"):
            found["redis"] = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": location}
        if importlib.util.find_spec("django_redis"):
            found["django-redis"] = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": location}
    return found


PEERS = {
    "locmem": "LocMemCache",
    "database": "DatabaseCache (SQLite)",
    "redis": "RedisCache",
    "django-redis": "django-redis",
}


def run(report: Report, url: str, client: MongoClient[dict[str, Any]], database: str) -> None:
    """All rows of the cache."""
    call_command("createcachetable", verbosity=0)
    raw, durable = RawCache(client, database), RawCache(client, database, w="majority")
    ours, ours_durable = caches["default"], caches["majority"]
    peers = {name: caches[alias] for alias, name in PEERS.items() if alias in caches.settings}
    every: dict[str, Any] = {RAW: raw, OURS: ours, **peers}
    names = [f"many:{number}" for number in range(100)]
    values = dict.fromkeys(names, SMALL)
    for cache in every.values():
        cache.set("small", SMALL)
        cache.set("dict", DICT)
        cache.set("count", 1)
        cache.set_many(values)

    def contenders(work: Callable[[Any, int], Operation], among: dict[str, Any] = every) -> list[Contender]:
        return [
            Contender(name, lambda thread, cache=cache: work(cache, thread))  # type: ignore[misc]
            for name, cache in among.items()
        ]

    numbers = itertools.count()

    def adding(cache: Any, thread: int) -> Operation:
        return lambda: cache.add(f"add:{next(numbers)}", SMALL, 60)

    def changing(cache: Any, thread: int) -> Operation:
        turns = itertools.cycle(({**DICT, "turn": "a"}, {"turn": "b", **DICT}))  # all of it moves
        return lambda: cache.set("dict", next(turns), 300)

    def deleting(cache: Any, thread: int) -> Operation:
        made = [f"delete:{next(numbers)}" for _ in range(2_000)]  # more than a round comes to
        cache.set_many(dict.fromkeys(made, SMALL))
        left = iter(made)

        def delete() -> None:
            cache.delete(next(left, "nothing"))

        return delete

    plain, loose = RawPlainCache(client, database, collection="raw_plain"), RawLooseCache(client, database)
    plain.set("dict", DICT)
    others: dict[str, dict[str, Any]] = {
        "get hit 10 KB dict": {"raw, dict as BSON": plain},
        "set 10 KB dict": {"raw, dict as BSON": plain},
        "set 10 KB dict, changed": {"raw, dict as BSON": plain},
        "delete (hit)": {"raw, dead ones too": loose},
    }
    threaded = {name: cache for name, cache in every.items() if name != "DatabaseCache (SQLite)"}
    for threads in (1, 8):
        report.section(f"Cache, {threads} thread{'s' if threads > 1 else ''}, w:1")
        among = every if threads == 1 else threaded
        kinds: list[tuple[str, Callable[[Any, int], Operation], Goal | None]] = [
            ("get hit 100 B", lambda cache, _: lambda: cache.get("small"), Goal(OURS, 0.9, 1.0)),
            ("get hit 10 KB dict", lambda cache, _: lambda: cache.get("dict"), Goal(OURS, 0.9, 1.0)),
            ("get miss", lambda cache, _: lambda: cache.get("missing"), Goal(OURS, 0.9, 1.0)),
        ]
        if threads == 1:
            kinds += [
                ("set 100 B", lambda cache, _: lambda: cache.set("small", SMALL, 300), Goal(OURS, 0.95, 1.1)),
                ("set 10 KB dict", lambda cache, _: lambda: cache.set("dict", DICT, 300), Goal(OURS, 0.95, 1.1)),
                ("set 10 KB dict, changed", changing, Goal(OURS, 0.95, 1.1)),
                ("get_many(100)", lambda cache, _: lambda: cache.get_many(names), Goal(OURS, 0.95, 1.15)),
                ("set_many(100)", lambda cache, _: lambda: cache.set_many(values, 300), Goal(OURS, 1.2, 1.5)),
                ("incr", lambda cache, _: lambda: cache.incr("count"), Goal(OURS, 0.9, 1.0)),
                ("add", adding, Goal(OURS, 0.9, 1.0)),
                ("delete (hit)", deleting, Goal(OURS, 0.9, 1.0)),
            ]
        for title, work, goal in kinds:
            report.compare(title, contenders(work, {**among, **others.get(title, {})}), goal, threads=threads)
    report.section("Cache, 1 thread, w:majority (both)")
    report.compare(
        "set 100 B",
        contenders(lambda cache, _: lambda: cache.set("small", SMALL, 300), {RAW: durable, OURS: ours_durable}),
        Goal(OURS, 0.95, 1.0),
    )
