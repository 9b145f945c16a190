"""One run: three nodes, clients, faults, and what the checkers say of the history.

``run(seed, seconds)`` is a report. Run as a program (``python -m tests.consistency``) it makes one run after another
until the time is over, and prints what a broken promise needs to be understood: seed, schedule, the operations.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from pymongo import MongoClient

from goscope_django.mongodb import MongoDBAdapter
from tests.consistency.checkers import RECOVERY, Violation, check
from tests.consistency.client import Client, Spec
from tests.consistency.history import Operation, Recorder, read
from tests.consistency.nemesis import KINDS, Fault, Nemesis, Way, schedule
from tests.consistency.nodes import Nodes, nodes
from tests.consistency.workloads import COUNTERS
from tests.support.mongod import ReplicaSet

OPTIONS: Final = {"w": "majority", "serverSelectionTimeoutMS": 3_000, "socketTimeoutMS": 4_000}
SKEWS: Final = ("", "+3600s", "-3600s", "")
"""Clients' clocks, by their number; an even one is on one side of a cut network, an odd one on the other."""
STRETCH: Final = 30.0
"""Seconds of one run; a longer time is several, each with a seed and a database of its own."""


@dataclass
class Report:
    """What a run gave."""

    seed: int
    faults: list[Fault]
    history: list[Operation]
    violations: list[Violation]
    logs: str = ""

    def __str__(self) -> str:
        done = Counter(one.outcome for one in self.history)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(done.items()))
        head = f"seed {self.seed}: {len(self.history)} operations ({counts}), {len(self.faults)} faults"
        if not self.violations:
            return f"{head}, nothing broken"
        schedule_ = "\n".join(f"  {fault}" for fault in self.faults)
        broken = "\n".join(map(str, self.violations[:10]))
        return f"{head}, {len(self.violations)} BROKEN\n{schedule_}\n{broken}\n{self.logs}"


@contextmanager
def ways_to(running: ReplicaSet) -> Iterator[dict[int, Way]]:
    """A proxy in front of each node, by the node's port."""
    ways = {port: Way(port) for port in running.ports}
    names = {f"127.0.0.1:{running.hosts[port]}": f"127.0.0.1:{way.port}" for port, way in ways.items()}
    for way in ways.values():
        way.names = names
    try:
        yield ways
    finally:
        for way in ways.values():
            way.close()


def url_of(ports: Iterable[int], database: str, **more: Any) -> str:
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"mongodb://{hosts}/{database}?{urlencode({'replicaSet': ReplicaSet.name, **OPTIONS, **more})}"


def prepare(running: ReplicaSet, database: str) -> None:
    """Make the indexes, and the counters that clients add to."""
    from goscope_django.cache.keys import plain_key

    with MongoClient[dict[str, Any]](url_of(running.hosts.values(), database)) as client:
        adapter = MongoDBAdapter(client[database])
        adapter.connect()
        for key in COUNTERS:
            if key.startswith("cache"):
                adapter.cache.set(f":1:{plain_key(key, '', 1)}", 0)


def run(
    running: Nodes,
    seed: int,
    seconds: float,
    folder: Path,
    *,
    clients: int = 4,
    planted: str = "",
    kinds: Sequence[str] = (),
    **spec: Any,
) -> Report:
    """Let ``clients`` work for so many seconds while the faults of ``seed`` happen, and check what they report."""
    database = f"consistency_{seed % 10**8}_{random.SystemRandom().randrange(10**6)}"
    prepare(running, database)
    faults = schedule(seed, seconds, kinds)
    numbers = itertools.count()
    with ways_to(running) as left, ways_to(running) as right:
        sides = left, right

        def started(number: int) -> Client:
            """A client: its number decides its side and its clock."""
            url = url_of([way.port for way in sides[number % 2].values()], database)
            name, skew = f"c{next(numbers) + 1}", SKEWS[number % len(SKEWS)]
            return Client(Spec(name, url, str(folder), seed, skew=skew, planted=planted, number=number, **spec))

        working = [started(number) for number in range(clients)]
        try:
            recorder = Recorder(folder / "nemesis.jsonl", "nemesis")
            _until(folder, 0.0, len(working))
            began = time.monotonic()
            nemesis = Nemesis(running, sides, working, recorder, database, lambda one: started(one.spec.number))
            nemesis.run(faults)
            while time.monotonic() < began + seconds:
                time.sleep(0.1)
            _until_recovered(folder)
            for one in working[1:]:
                one.end()
            working[0].end(_keys(_history(folder)))
        finally:
            for one in working:
                one.end()
    history = _history(folder)
    violations = check(history)
    violations += [
        Violation("errors", f"client {one.spec.name} ended with {one.process.returncode}", ())
        for one in working
        if one.process.returncode
    ]
    with MongoClient[dict[str, Any]](url_of(running.hosts.values(), database)) as client:
        client.drop_database(database)
    return Report(seed, faults, history, violations, _logs(folder) if violations else "")


def _history(folder: Path) -> list[Operation]:
    return read(sorted(folder.glob("*.jsonl")))


def _keys(history: list[Operation]) -> dict[str, list[str]]:
    found = defaultdict[str, set[str]](set)
    for one in history:
        if one.kind in ("claim", "reg", "task"):
            found[one.kind].add(one.key)
    return {"count": list(COUNTERS), **{kind: sorted(keys) for kind, keys in found.items()}}


def _until(folder: Path, since: float, clients: int) -> None:
    """Wait until so many clients have begun to work."""
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        if len({one.client for one in _history(folder) if one.ok and one.began > since}) >= clients:
            return
        time.sleep(0.1)
    raise RuntimeError(f"the clients did not begin to work:\n{_logs(folder)}")


def _until_recovered(folder: Path) -> None:
    """Wait until each feature has worked again, sync and async, or the time for that is over."""
    deadline = time.monotonic() + RECOVERY + 1
    while time.monotonic() < deadline:
        time.sleep(0.3)
        history = _history(folder)
        healed = next(one for one in history if one.name == "nemesis.healed")
        seen = [one for one in history if one.client.startswith("c")]
        kinds = {(one.kind, one.args.get("mode")) for one in seen}
        if kinds == {(one.kind, one.args.get("mode")) for one in seen if one.ok and one.began > healed.ended}:
            return


def _logs(folder: Path) -> str:
    return "\n".join(
        f"{path.name}: {text[-1_500:]}" for path in sorted(folder.glob("*.log")) if (text := path.read_text())
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--planted", default="", help="a fault of tests.consistency.faults, in every client")
    parser.add_argument("--features", default="", help="names of Workloads' steps, with commas")
    parser.add_argument("--kinds", default="", help=f"of faults, with commas; all: {', '.join(KINDS)}")
    options = parser.parse_args()
    features = tuple(options.features.split(",")) if options.features else ()
    broken, deadline = 0, time.monotonic() + options.seconds
    for seed in itertools.count(options.seed):
        left = deadline - time.monotonic()
        if left < 5 and seed > options.seed:
            break
        # New nodes for each: what one run has done to them does not bear on the next.
        with tempfile.TemporaryDirectory(prefix="goscope-run-") as folder, nodes(3) as running:
            length = min(STRETCH, max(5.0, left))
            report = run(
                running,
                seed,
                length,
                Path(folder),
                clients=options.clients,
                planted=options.planted,
                kinds=tuple(options.kinds.split(",")) if options.kinds else (),
                features=features,
            )
        print(f"{report}\n  (SEED={seed} SECONDS={length:g})", flush=True)
        broken += bool(report.violations)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
