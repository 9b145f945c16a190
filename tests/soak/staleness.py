"""Processes with near caches read while others write, streams break and hang, and processes are stopped: no answer is
older than is promised.

Run it as ``python -m tests.soak.staleness --reads 1000000 --seed 1`` (``make soak``). Rules:

* Each key has one writer, and its values are versions that grow. A writer notes when a majority had a version, a reader
  when it last asked and got it, by a clock that all processes of the machine share and that goes on while one is
  stopped. An answer is too old if the version after it had been with a majority for more than ``MAX_STALE``.
* Half of the writes go through the cache, half are those of Node: by key, with an ObjectId.
* A writer reads what it wrote at once. It must be there, in every thread.
* It is done three times: through a proxy that cuts and delays the stream while processes are stopped; on three members,
  whose primary is killed; on two members and an arbiter, with a secondary that hangs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from pymongo import MongoClient

from goscope_django.core.ticks import tick

ROOT: Final = Path(__file__).resolve().parents[2]
KEYS: Final = 40
THREADS: Final = 2
BURST: Final = 50
MAX_STALE: Final = 1.0
UNKNOWN: Final = float("inf")

Seen = dict[str, dict[int, float]]


# A process


class Worker:
    """Reads with two threads and writes with one. ``number`` of ``processes`` writes every so manieth key."""

    def __init__(self, number: int, processes: int, around: str, seed: int) -> None:
        from django.core.cache import cache
        from pymongo import MongoClient

        self.cache: Any = cache
        self.entries = MongoClient[Any](around).get_default_database()["go_goscope_cache"]
        self.random = random.Random(f"{seed} {number}")
        self.mine = [f"key{one}" for one in range(number, KEYS, processes)]
        self.versions = dict.fromkeys(self.mine, 0)
        self.committed: Seen = {key: {} for key in self.mine}
        self.faults: list[str] = []
        self.read = 0
        self.ended = threading.Event()

    def write(self) -> None:
        from pymongo.errors import PyMongoError

        from goscope_django.exceptions import GoscopeError

        key = self.random.choice(self.mine)
        self.versions[key] += 1
        version, through = self.versions[key], self.random.random() < 0.5
        self.committed[key][version] = UNKNOWN
        try:
            if through:
                self.cache.set(key, version, None)
            else:
                if self.random.random() < 0.2:
                    self.entries.delete_one({"key": f"cache::1:{key}"})
                self.entries.update_one({"key": f"cache::1:{key}"}, {"$set": {"value": version}}, upsert=True)
            self.committed[key][version] = tick()
            if through and (found := self.cache.get(key)) != version:
                self.faults.append(f"{key}: wrote {version} and then read {found}")
        except (PyMongoError, GoscopeError):
            return

    def reader(self, reads: int, seconds: float, seed: int) -> None:
        from goscope_django.exceptions import GoscopeError

        numbers, seen = random.Random(seed), self.seen[seed]
        until = time.monotonic() + seconds
        names = [f"key{one}" for one in range(KEYS)]
        done = 0
        while done < reads or time.monotonic() < until:
            for _ in range(BURST):
                key = names[min(KEYS - 1, int(numbers.paretovariate(0.8)) - 1)]
                asked = tick()
                with suppress(GoscopeError):
                    found = self.cache.get(key)
                    if found is not None:
                        seen.setdefault(key, {})[found] = asked
                done += 1
            time.sleep(max(0.001, (until - time.monotonic()) * BURST / max(BURST, reads - done) * 0.5))
        self.read += done

    def run(self, reads: int, seconds: float) -> dict[str, Any]:
        self.seen: list[Seen] = [{} for _ in range(THREADS)]
        readers = [
            threading.Thread(target=self.reader, args=(reads // THREADS, seconds, one)) for one in range(THREADS)
        ]
        for one in readers:
            one.start()
        while any(one.is_alive() for one in readers):
            self.write()
            time.sleep(0.02)
        seen: Seen = {}
        for part in self.seen:
            for key, times in part.items():
                known = seen.setdefault(key, {})
                for version, asked in times.items():
                    known[version] = max(asked, known.get(version, 0.0))
        from tests.support.near import near_of

        near = near_of(self.cache)
        figures = {"hits": near.figures.hits, "read": self.read, "breaks": near.stream.breaks}
        return {"seen": seen, "committed": self.committed, "faults": self.faults, "figures": figures}


def work(
    url: str, around: str, number: int, processes: int, reads: int, seconds: float, seed: int, broken: str
) -> None:
    """A process's program: it prints what it saw."""
    import django
    from django.conf import settings

    settings.configure(
        SECRET_KEY="soak",
        GOSCOPE={"URL": url, "ON_ERROR": "raise"},
        INSTALLED_APPS=["goscope_django"],
        CACHES={
            "default": {
                "BACKEND": "goscope_django.cache.MongoDBCache",
                "OPTIONS": {"NEAR": {"MAX_STALE": MAX_STALE}},
            }
        },
    )
    django.setup()
    if broken == "silence":
        from goscope_django.mongodb.cache.stream import ChangeStream

        def proved(self: Any, generation: int, instant: float) -> None:
            self.proof = float("inf")

        ChangeStream.proved = proved  # type: ignore[method-assign]
    print(json.dumps(Worker(number, processes, around, seed).run(reads, seconds)), flush=True)
    os._exit(0)


# All of them


def too_old(answers: list[dict[str, Any]], max_stale: float = MAX_STALE) -> list[str]:
    """What was read too late."""
    committed = {key: times for answer in answers for key, times in answer["committed"].items()}
    faults = [fault for answer in answers for fault in answer["faults"]]
    for answer in answers:
        for key, times in answer["seen"].items():
            ends = sorted((int(version), at) for version, at in committed[key].items() if at != UNKNOWN)
            for version, asked in times.items():
                # The first one after it that surely was with a majority.
                first = next((at for later, at in ends if later > int(version)), UNKNOWN)
                if asked - first > max_stale:
                    faults.append(f"{key}: version {version} was read {asked - first:.2f} s after it was replaced")
    return faults


def hunt(
    url: str,
    around: str,
    *,
    reads: int,
    seconds: float,
    seed: int = 1,
    processes: int = 4,
    broken: str = "",
    trouble: Any = None,
) -> tuple[list[str], dict[str, int]]:
    """Let so many processes make so many reads together; what was too old, and sums of figures.

    ``trouble(pids)`` is called again and again meanwhile, with the processes' ids.
    """
    # Without it a writer of each kind may make a document of its own: it can't be made while a member is away.
    with MongoClient[dict[str, Any]](around) as client:
        client.get_default_database()["go_goscope_cache"].create_index("key", unique=True, name="key_1")
    arguments = [str(one) for one in (processes, reads // processes, seconds, seed, broken)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.soak.staleness", "--work", url, around, str(number), *arguments],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        for number in range(processes)
    ]
    stopping = threading.Event()

    def bother() -> None:
        while trouble is not None and not stopping.wait(0.3):
            trouble([one.pid for one in workers if one.poll() is None])

    bothering = threading.Thread(target=bother)
    bothering.start()
    try:
        answers = [json.loads(one.communicate(timeout=seconds * 20 + 120)[0]) for one in workers]
    finally:
        stopping.set()
        bothering.join()
        for one in workers:
            if one.poll() is None:
                one.kill()
                one.wait(10)
    names = answers[0]["figures"]
    return too_old(answers), {name: sum(answer["figures"][name] for answer in answers) for name in names}


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does not run meanwhile."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class Troubles:
    """Cuts and delays the streams that go through ``proxy``, and stops processes, in turn."""

    def __init__(self, proxy: Any, seconds: float = 1.3) -> None:
        self.proxy = proxy
        self.seconds = seconds
        self.turn = 0
        self.gate = threading.Event()
        proxy.rewrite(self._held)
        self.gate.set()

    def _held(self, name: str, answer: dict[str, Any]) -> dict[str, Any]:
        if name == "getMore":
            self.gate.wait(20)
        return answer

    def __call__(self, pids: list[int]) -> None:
        self.turn += 1
        if self.turn % 3 == 1:
            self.gate.clear()
            time.sleep(self.seconds)
            self.gate.set()
        elif self.turn % 3 == 2:
            self.proxy.lose_answers("getMore", 2)
            time.sleep(0.3)
        elif pids:
            with stopped(pids[self.turn % len(pids)]):
                time.sleep(self.seconds)


def main() -> int:
    """The hunt of ``make soak``: through a proxy; with a primary that is killed; and with an arbiter."""
    from tests.support.mongod import replica_set
    from tests.support.proxy import Proxy

    parser = argparse.ArgumentParser()
    parser.add_argument("--reads", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    failed = 0

    def told(what: str, found: tuple[list[str], dict[str, int]]) -> None:
        nonlocal failed
        faults, figures = found
        failed += len(faults)
        print(
            f"near cache, {what}: {figures['read']} reads, {figures['hits']} hits, {figures['breaks']} breaks, "
            f"{len(faults)} faults",
            *faults[:20],
            sep="\n  ",
            flush=True,
        )

    size: dict[str, Any] = {"reads": given.reads // 3, "seconds": given.seconds, "seed": given.seed}
    with replica_set(1) as server, Proxy(server.ports[0]) as proxy:
        url = f"mongodb://127.0.0.1:{proxy.port}/soak?directConnection=true"
        around = f"mongodb://127.0.0.1:{server.ports[0]}/soak?directConnection=true"
        told("cut, delayed, stopped", hunt(url, around, trouble=Troubles(proxy), **size))
    with replica_set(3) as server:
        url = server.uri.replace("/?", "/soak?")

        def kill(pids: list[int]) -> None:
            time.sleep(3)
            port = server.kill_primary()
            time.sleep(3)
            server.resume(port)

        told("primary killed", hunt(f"{url}&w=majority", f"{url}&w=majority", trouble=kill, **size))
    with replica_set(3, arbiter=True) as server:
        url = server.uri.replace("/?", "/soak?")

        def starve(pids: list[int]) -> None:
            port = server.stop_secondary()
            time.sleep(4)
            server.resume(port)
            time.sleep(2)

        # Writes that no majority has yet are no versions: those are counted from when it has them.
        told("arbiter", hunt(f"{url}&w=majority", f"{url}&w=majority", trouble=starve, **size))
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        url_, around_, number_, processes_, reads_, seconds_, seed_, broken_ = sys.argv[2:]
        work(url_, around_, int(number_), int(processes_), int(reads_), float(seconds_), int(seed_), broken_)
    sys.exit(main())
