"""Start the fleet's site under gunicorn or uvicorn, speak to it, and end it or one of its workers.

::

    with gunicorn(mongo_url, tmp_path, workers=4) as site:
        answers = site.concurrently(60, "/slow/")
        site.kill(answers[0].json["pid"])
        runs = site.notes("slow")
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHOP = "tests.fleet.site.shop_settings"
STARTING = 60.0
"""Seconds that all processes together may take to be up."""


@dataclass(frozen=True)
class Answer:
    """What came back for a request. ``status`` 0 means: the connection broke, ``error`` says how."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: str = ""
    seconds: float = 0.0

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Site:
    """A running site. Its processes are children of the server's, which is ours to end."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        patience: float = 60,
    ) -> Answer:
        """Send one request on a connection of its own; after ``patience`` seconds it is broken off."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience)
        began = time.monotonic()
        try:
            connection.request(method, path, body, {"Connection": "close", **(headers or {})})
            response = connection.getresponse()
            body = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, body, seconds=time.monotonic() - began)
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, error=repr(error), seconds=time.monotonic() - began)
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        """GET with headers, ``_`` for ``-`` in their names."""
        return self.request("GET", path, {name.replace("_", "-"): value for name, value in headers.items()})

    def concurrently(self, calls: int | Sequence[Callable[[], Answer]], path: str = "") -> list[Answer]:
        """So many GETs of ``path``, or the calls given, all at once; their answers in order."""
        each = [lambda: self.get(path)] * calls if isinstance(calls, int) else list(calls)
        answers: list[Answer | None] = [None] * len(each)
        together = threading.Barrier(len(each))

        def run(place: int) -> None:
            together.wait(30)
            answers[place] = each[place]()

        threads = [threading.Thread(target=run, args=(place,)) for place in range(len(each))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        return [answer or Answer(0, error="no answer in 90 seconds") for answer in answers]

    def in_background(self, calls: int, path: str) -> Callable[[], list[Answer]]:
        """Begin so many GETs of ``path``; what is returned waits for their answers."""
        answers: list[list[Answer]] = []
        thread = threading.Thread(target=lambda: answers.append(self.concurrently(calls, path)))
        thread.start()

        def collect() -> list[Answer]:
            thread.join(120)
            return answers[0]

        return collect

    def notes(self, what: str) -> list[dict[str, Any]]:
        """What the site's processes noted under ``what``, in order."""
        with suppress(FileNotFoundError):
            lines = (self.folder / "notes.jsonl").read_text().splitlines()
            return [one for one in map(json.loads, lines) if one["what"] == what]
        return []

    def wait_for(self, what: str, count: int = 1, seconds: float = 30.0) -> list[dict[str, Any]]:
        """The notes under ``what`` once there are ``count``; fails after ``seconds``."""
        deadline = time.monotonic() + seconds
        while len(found := self.notes(what)) < count:
            assert time.monotonic() < deadline, f"{len(found)} notes {what!r} after {seconds} seconds, {count} expected"
            time.sleep(0.02)
        return found

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send one of the site's own processes a signal."""
        assert pid == self.process.pid or pid in self.workers(), f"{pid} is no process of this site"
        os.kill(pid, number)

    def workers(self) -> list[int]:
        """The ids of the server's child processes."""
        with suppress(OSError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
            return [int(pid) for pid in children.split()]
        return []

    def output(self) -> str:
        """What the server has printed."""
        return (self.folder / "server.log").read_text(errors="replace")

    def _until_up(self, processes: int) -> None:
        deadline, seen = time.monotonic() + STARTING, set[int]()
        while len(seen) < processes:
            assert self.process.poll() is None, f"the server ended:\n{self.output()}"
            assert time.monotonic() < deadline, f"only {len(seen)} processes answer:\n{self.output()}"
            answer = self.get("/pid/")
            if answer.status == 200:
                seen.add(answer.json["pid"])
            else:
                time.sleep(0.05)

    def stop(self) -> None:
        """End all its processes, paused ones too."""
        pids = [*self.workers(), self.process.pid]
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        for pid in pids:
            if pid != self.process.pid or self.process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


@contextmanager
def gunicorn(
    mongo_url: str,
    folder: Path,
    *,
    workers: int = 4,
    threads: int = 64,
    preload: bool = False,
    application: str = "wsgi",
    **settings: Any,
) -> Iterator[Site]:
    """The site under gunicorn. ``settings`` are keys of ``GOSCOPE``, ``ATOMIC_REQUESTS`` and ``SETTINGS`` (a module).

    Connections are not spread evenly: with fewer threads some requests would begin only when others have ended.
    """
    command = [
        "gunicorn",
        f"tests.fleet.site.{application}:application",
        "--workers",
        str(workers),
        "--threads",
        str(threads),
    ]
    command += ["--worker-class", "gthread", "--graceful-timeout", "2", "--no-control-socket"]
    with _running([*command, *(["--preload"] if preload else [])], "--bind", mongo_url, folder, workers, settings) as s:
        yield s


@contextmanager
def uvicorn(mongo_url: str, folder: Path, *, workers: int = 1, **settings: Any) -> Iterator[Site]:
    """The site under uvicorn: asynchronous views run on its event loops."""
    command = ["uvicorn", "tests.fleet.site.asgi:application", "--log-level", "warning", "--lifespan", "off"]
    with _running([*command, "--workers", str(workers)], "--port", mongo_url, folder, workers, settings) as site:
        yield site


@contextmanager
def _running(
    command: list[str], bind: str, mongo_url: str, folder: Path, processes: int, settings: dict[str, Any]
) -> Iterator[Site]:
    port = _free_port()
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": settings.pop("SETTINGS", "tests.fleet.site.settings"),
        "SITE_FOLDER": str(folder),
        "SITE_MONGO": mongo_url,
        "SITE_ATOMIC_REQUESTS": "1" if settings.pop("ATOMIC_REQUESTS", False) else "0",
        "SITE_GOSCOPE": json.dumps(settings),
        "PYTHONWARNINGS": "default",
    }
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, bind, f"127.0.0.1:{port}" if bind == "--bind" else str(port)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C ends the tests, which then stop it
        )
    site = Site(process, port, folder)
    try:
        site._until_up(processes)
        yield site
    finally:
        site.stop()


@contextmanager
def runserver(mongo_url: str, folder: Path, **settings: Any) -> Iterator[Site]:
    """The site in one process of Django's own server, which serves static files too."""
    command = ["django", "runserver", "--noreload", "--insecure"]
    with _running(command, "--skip-checks", mongo_url, folder, 1, settings) as site:
        yield site


def prepare_shop(folder: Path, mongo_url: str, buyers: int = 0) -> None:
    """Make the shop's tables and indexes, so many ``buyer0``, ``buyer1``... and the superuser ``root``, all with the
    password ``secret``."""
    script = (
        "import django; django.setup()\n"
        "from django.core.management import call_command\n"
        "call_command('migrate', verbosity=0)\n"
        "from django.contrib.auth.models import User\n"
        f"for number in range({buyers}): User.objects.create_user(f'buyer{{number}}', password='secret')\n"
        "User.objects.create_superuser('root', password='secret')\n"
        "from goscope_django import runtime\n"
        "runtime.adapter().ensure_indexes()\n"
    )
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": SHOP,
        "SITE_FOLDER": str(folder),
        "SITE_MONGO": mongo_url,
    }
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True, timeout=100)


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])
