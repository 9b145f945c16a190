"""Every step of every client, once for each command that it sends, which is lost in one of several ways.

No luck is needed: the ``n``-th message after a moment, or the answer to it, never arrives. What clients are told of it
goes through the checkers, as in a run. ``python -m tests.consistency.sweep`` (in ``make soak``) tries all ways and
more paths.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import django
from django.conf import settings
from django.core.cache import caches
from django.test.utils import setup_test_environment

from goscope_django.core.flow import Pause, acarry_out, carry_out
from goscope_django.exceptions import StoreUnavailable
from tests.consistency import workloads
from tests.consistency.checkers import Violation, check
from tests.consistency.history import Recorder, read
from tests.consistency.workloads import COUNTERS, Workloads
from tests.support.commands import on_server
from tests.support.mongod import ReplicaSet, replica_set
from tests.support.proxy import Proxy, _name

DATABASE: Final = "sweep"
FEATURES: Final = ("locks", "sections", "counts", "registers", "claims", "once", "flights", "probes", "tasks")
WAYS: Final = ("answer", "command", "two answers", "two commands", "answer, then nothing", "command, then nothing")
MOST: Final = 12
"""Commands of a step, at most."""


class Loser(Proxy):
    """Loses the ``number``-th message that is no ``hello``, or the answer to it, in one of ``WAYS``."""

    def __init__(self, port: int) -> None:
        self.way = ""
        self.number = self.count = 0
        super().__init__(port)

    def arm(self, way: str, number: int) -> None:
        self.heal()
        self.way, self.number, self.count = way, number, 0

    def heal(self) -> None:
        super().heal()
        self.way, self.count = "", 0

    @property
    def hit(self) -> bool:
        """Whether so many messages came."""
        return self.count >= self.number

    def _due(self, rules: dict[str, int | None], message: bytes) -> bool:
        if not self.way or _name(message) in ("hello", "endSessions") or b"go_goscope_stats" in message:
            return False  # figures are sent by a thread of their own, at some moment
        with self._lock:
            before = rules is self._refused  # asked first, before the message is handed on
            self.count += before
            last = self.number + self.way.startswith("two")
            due = self.number <= self.count <= last and before == ("command" in self.way)
            if due and "nothing" in self.way:
                if before:
                    self._cut = True
                else:
                    self._cutting.add(_name(message))
            return due


class Sweep:
    """The steps on one server behind a ``Loser``."""

    def __init__(self, loser: Loser, direct: Any, folder: Path) -> None:
        self.loser = loser
        self.direct = direct
        self.folder = folder
        self.tried = 0

    def once(self, feature: str, mode: str, way: str, number: int, seed: int) -> list[Violation] | None:
        """One step of a first client under the loss, then steps of two others; ``None`` if so many were not sent."""
        for name in self.direct.list_collection_names():
            self.direct[name].delete_many({})
        for key in COUNTERS:
            while key.startswith("cache"):
                try:
                    caches["default"].set(key, 0, None)
                    break
                except StoreUnavailable:  # the driver has not yet seen that the last loss is over
                    time.sleep(0.05)
        self.tried += 1
        paths = [self.folder / f"{self.tried}-c{client}.jsonl" for client in (1, 2, 3)]
        first, *others = [Workloads(Recorder(path, path.stem), random.Random(f"{seed}"), mode) for path in paths]
        self._step(others[0], feature, mode)
        if feature == "probes":
            time.sleep(0.15)  # until the circuit that is open by now allows a probe
        self.loser.arm(way, number)
        self._step(first, feature, mode)
        hit = self.loser.hit
        self.loser.heal()
        for one in others:
            self._step(one, feature, mode)
        last = Workloads(Recorder(paths[0], "last"), random.Random(0), "sync")
        keys: dict[str, set[str]] = {"count": set(COUNTERS)}
        for operation in read(paths):
            if operation.kind in ("claim", "reg"):
                keys.setdefault(operation.kind, set()).add(operation.key)
        carry_out(last.last({kind: sorted(found) for kind, found in keys.items()}))
        return check(read(paths)) if hit else None

    def _step(self, client: Workloads, feature: str, mode: str) -> None:
        if mode == "sync":
            carry_out(client.steps[feature]())
        else:
            asyncio.run(acarry_out(client.steps[feature]()))

    def all(self, feature: str, mode: str, ways: tuple[str, ...], seeds: range) -> Iterator[str]:
        """What is wrong, in words."""
        for way in ways:
            for seed in seeds:
                for number in range(1, MOST):
                    found = self.once(feature, mode, way, number, seed)
                    if found is None:
                        break
                    for one in found:
                        yield f"{feature}, {mode}, {way} {number}, seed {seed}: {one}"


@contextmanager
def swept(server: ReplicaSet, folder: Path) -> Iterator[Sweep]:
    """A ``Sweep`` on this server."""
    with Loser(server.ports[0]) as loser, server.client() as direct:
        url = f"mongodb://127.0.0.1:{loser.port}/{DATABASE}?directConnection=true&serverSelectionTimeoutMS=500"
        with on_server(url, caches={"default": {}, "linear": {}}):
            yield Sweep(loser, direct[DATABASE], folder)


def main() -> int:
    settings.configure(
        SECRET_KEY="sweep-" + "s" * 50,
        INSTALLED_APPS=["goscope_django"],
        GOSCOPE={"CONNECT_ON_READY": False},
        DATABASES={},
        LOGGING_CONFIG=None,
    )
    django.setup()
    workloads.bucket = lambda seconds: 0
    Workloads._work = lambda self, longest: Pause(0.001)  # type: ignore[method-assign]
    broken = 0
    setup_test_environment()
    with tempfile.TemporaryDirectory() as folder, replica_set(1) as server, swept(server, Path(folder)) as sweep:
        for feature in sys.argv[1:] or FEATURES:
            for mode in ("sync", "async"):
                for text in sweep.all(feature, mode, WAYS, range(3)):
                    broken += 1
                    print(text, flush=True)
            print(f"{feature}: {sweep.tried} losses so far, {broken} broken", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
