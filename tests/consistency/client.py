"""A client process of the harness: ``Client(spec)`` starts it, and run as a program this file is that process.

It works until its standard input ends, so that it outlives nobody. Its history goes to a file of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[2]
FAKETIME: Final = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
"""The library that gives a process a wrong clock, where it is installed."""


@dataclass(frozen=True)
class Spec:
    """``skew`` is what its wall clock is wrong by ("+3600s"), ``planted`` a fault of ``faults``, ``features`` the steps
    that it takes (all). ``number`` is the client's place among all, which one that replaces it has as well."""

    name: str
    url: str
    folder: str
    seed: int
    number: int = 0
    workers: int = 2
    skew: str = ""
    planted: str = ""
    features: tuple[str, ...] = ()


class Client:
    """The process, as the harness sees it."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        environ.pop("DJANGO_SETTINGS_MODULE", None)
        if spec.skew and FAKETIME and shutil.which("faketime"):
            # Monotonic time stays real: a faked one makes Python's waits hang. Its shared memory would outlive it.
            environ |= {"LD_PRELOAD": str(FAKETIME), "FAKETIME": spec.skew, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
            environ |= {"FAKETIME_DISABLE_SHM": "1"}
        self.log = Path(spec.folder) / f"{spec.name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.consistency.client", json.dumps(asdict(spec))],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environ,
            )

    def signal(self, number: int) -> None:
        """Send it a signal: SIGKILL, SIGSTOP, SIGCONT."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def end(self, last: dict[str, list[str]] | None = None) -> None:
        """Let it end its steps, read what is there under the keys of ``last`` (by kind), and wait for it."""
        assert self.process.stdin is not None
        if self.process.stdin.closed:
            return
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(last or {}).encode())
            self.process.stdin.close()
        try:
            self.process.wait(60)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(10)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.signal(signal.SIGKILL)
        self.process.wait(10)
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()


def configure(url: str) -> None:
    """Django with caches of two kinds: as URLs are, and with linearizable reads."""
    import django
    from django.conf import settings

    backend = {"BACKEND": "goscope_django.cache.MongoDBCache"}
    settings.configure(
        SECRET_KEY="consistency-" + "s" * 50,
        INSTALLED_APPS=["goscope_django"],
        GOSCOPE={"URL": url, "CONNECT_ON_READY": False},
        CACHES={"default": backend, "linear": {**backend, "LOCATION": f"{url}&readConcernLevel=linearizable"}},
        DATABASES={},
        LOGGING_CONFIG=None,
    )
    django.setup()


def main(spec: Spec) -> None:
    if spec.skew:
        time.sleep = lambda seconds, /: (
            select.select([], [], [], float(seconds)) and None
        )  # libfaketime breaks the real
    configure(spec.url)
    from goscope_django.core.flow import acarry_out, carry_out
    from tests.consistency import faults
    from tests.consistency.history import Recorder
    from tests.consistency.workloads import Workloads

    logging.disable(logging.CRITICAL)  # what is left on its error output is a fault
    if spec.planted:
        faults.plant(spec.planted)
    recorder = Recorder(Path(spec.folder) / f"{spec.name}.jsonl", spec.name)
    over = threading.Event()

    def work(mode: str, number: int) -> Any:
        found = Workloads(recorder, random.Random(f"{spec.seed} {spec.name} {mode} {number}"), mode)
        if spec.features:
            found.steps = {name: found.steps[name] for name in spec.features}
        return found.run(lambda: not over.is_set())

    async def tasks() -> None:
        await asyncio.gather(*(acarry_out(work("async", number)) for number in range(spec.workers)))

    jobs: list[Callable[[], Any]] = [lambda: asyncio.run(tasks())]
    jobs += [lambda number=number: carry_out(work("sync", number)) for number in range(spec.workers)]  # type: ignore[misc]
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    last = json.loads(sys.stdin.read() or "{}")
    over.set()
    for thread in threads:
        thread.join()
    if last:
        carry_out(Workloads(recorder, random.Random(spec.seed), "sync").last(last))


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    main(Spec(**{**given, "features": tuple(given["features"])}))
