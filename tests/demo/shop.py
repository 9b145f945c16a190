"""The demo as its visitors see it: real server processes, one SQLite file, one ``mongod``, and requests over HTTP."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
GUNICORN = (
    "gunicorn",
    "testproject.wsgi",
    "--bind=127.0.0.1:0",
    "--workers=2",
    "--threads=8",
    "--worker-class=gthread",
)
UVICORN = ("uvicorn", "testproject.asgi:application", "--host=127.0.0.1", "--port=0", "--lifespan=off")


def eventually(look: Callable[[], T], seconds: float = 60.0) -> T:
    """Return what ``look`` gives as soon as it is true; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds:g} seconds"
        time.sleep(0.1)
    return found


class Shop:
    """One database and one store, and the processes that work on them."""

    def __init__(self, folder: Path, mongo_url: str) -> None:
        self.folder = folder
        self.mongo_url = mongo_url
        self.database = folder / "shop.sqlite3"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in ("DEBUG", "DJANGO_SETTINGS_MODULE")},
            "GOSCOPE_URL": mongo_url,
            "DATABASE_URL": f"sqlite:///{self.database}",
            "SECRET_KEY": "only-for-tests-" + "x" * 50,
            "DEMO_PASSWORD": "correct horse",
            "PYTHONUNBUFFERED": "1",
        }

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``manage.py`` to its end."""
        command = [sys.executable, "-W", "error", "manage.py", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``manage.py``; the caller ends it."""
        command = [sys.executable, "-W", "error", "manage.py", *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def fill(self) -> None:
        """Make the tables and the demo's data."""
        for command in ("migrate", "--verbosity=0"), ("demo_data",):
            done = self.manage(*command)
            assert done.returncode == 0, done.stdout + done.stderr

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What is in the SQL database."""
        with closing(sqlite3.connect(self.database, timeout=20)) as connection, connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def serve(self, *command: str) -> Iterator[str]:
        """The address of a server that runs meanwhile, on a port that it chose."""
        log = self.folder / f"{command[0]}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:

            def address() -> str:
                assert process.poll() is None, log.read_text()
                found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
                return found[0] if found else ""

            url = eventually(address)
            eventually(lambda: answers(url))
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def answers(url: str) -> bool:
    """Whether a server is there."""
    try:
        return httpx.get(url, timeout=30).is_success
    except httpx.TransportError:
        return False


class Visitor:
    """Somebody with a browser: cookies, forms, and as many requests at once as one likes."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=60, limits=httpx.Limits(max_connections=20))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Open a page."""
        return self.client.get(path, **options)

    def post(self, path: str, **fields: str) -> httpx.Response:
        """Send a form and follow where it leads."""
        return self.client.post(path, data={**fields, **self.secret()}, follow_redirects=True)

    def secret(self) -> dict[str, str]:
        """The form's field against forgery."""
        if "csrftoken" not in self.client.cookies:
            self.get("/")
        return {"csrfmiddlewaretoken": self.client.cookies["csrftoken"]}

    def at_once(self, number: int, send: Callable[[], T]) -> list[T]:
        """The results of so many concurrent calls."""
        with ThreadPoolExecutor(number) as pool:
            return [one.result() for one in [pool.submit(send) for _ in range(number)]]
