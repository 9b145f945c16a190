"""A process that takes locks and does as it is told on its standard input: ``Worker(url, "hold", "key", 5)``.

Run as a program it answers each line with one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """The process, as seen by a test."""

    def __init__(self, url: str, task: str, *args: Any, wrong_clock: str | None = None) -> None:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        environ.pop("DJANGO_SETTINGS_MODULE", None)
        faked = ["faketime", "-f", wrong_clock] if wrong_clock else []
        program = [sys.executable, "-W", "error::ResourceWarning", "-m", "tests.scripts.lock_worker"]
        self.process = subprocess.Popen(
            [*faked, *program, url, task, json.dumps(args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environ,
        )

        self.pid = self.process.pid

    def begin(self) -> int:
        """Wait until it holds the lock; the token."""
        answer = self.read()
        self.pid = answer["pid"]  # which is not that of faketime, that it was started by
        token: int = answer["token"]
        return token

    def read(self) -> Any:
        """The next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read()[-3000:])
        return json.loads(line)

    def send(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def ask(self, word: str) -> Any:
        """The answer to ``word``."""
        self.send(word)
        return self.read()

    def end(self) -> str:
        """Close its input and wait; what it said on the error output."""
        _, errors = self.process.communicate()
        return errors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None and not stream.closed:
                stream.close()


def say(value: Any) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


kept: list[Any] = []


def hold(key: str, lease: float) -> None:
    """Hold a lock and answer questions about it; it is not given back."""
    from goscope_django import runtime
    from goscope_django.exceptions import LockNotAcquired, StaleFence
    from goscope_django.fencing import fenced_update_one
    from goscope_django.locks import lock

    try:
        handle = lock(key, lease, blocking=False).acquire()
    except LockNotAcquired:
        say({"token": None, "pid": os.getpid()})
        return
    kept.append(handle)
    told: list[int] = []
    handle.on_lost(lambda held: told.append(held.token))
    stock = runtime.adapter().store.executor().database["stock"]

    def write() -> str:
        try:
            fenced_update_one(stock, {"_id": key}, {"$inc": {"writes": 1}}, handle, upsert=True)
        except StaleFence:
            return "stale"
        return "written"

    def told_once() -> list[int]:
        while not told:
            time.sleep(0.01)
        return told

    def fork() -> Any:
        reading, writing = os.pipe()
        if not os.fork():
            try:
                with_lock = "free"
                try:
                    lock(key, lease, blocking=False).acquire()
                except LockNotAcquired:
                    with_lock = "refused"
                lost, released = handle.lost.is_set(), handle.release()
                os.write(writing, json.dumps([lost, released, handle.extend(), with_lock]).encode())
            finally:
                os._exit(0)
        os.wait()
        answer = json.loads(os.read(reading, 1_000))
        os.close(reading)
        os.close(writing)
        return {"child": answer, "parent": [handle.lost.is_set(), handle.is_valid()]}

    answers: dict[str, Callable[[], Any]] = {
        "lost": handle.lost.is_set,
        "told": told_once,
        "write": write,
        "valid": handle.is_valid,
        "release": handle.release,
        "fork": fork,
    }
    say({"token": handle.token, "pid": os.getpid()})
    for word in sys.stdin:
        say(answers[word.strip()]())


def contend(key: str, processes: int, rounds: int, threads: int) -> None:
    """So many processes take the lock so often each. Each notes on the server who is inside, and its tokens."""
    import threading

    from goscope_django import runtime
    from goscope_django.locks import lock

    children = []
    for _ in range(processes):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid:
            os.close(writing)
            children.append((pid, reading))
            continue
        try:
            os.close(reading)
            database = runtime.adapter().store.executor().database
            entries: list[Any] = []

            def work(place: Any = database["inside"], found: list[Any] = entries) -> None:
                for _ in range(rounds):
                    with lock(key, 30) as handle:
                        before = place.find_one_and_update({"_id": key}, {"$inc": {"now": 1, "all": 1}}, upsert=True)
                        found.append([handle.token, (before or {}).get("all", 0), (before or {}).get("now", 0)])
                        place.update_one({"_id": key}, {"$inc": {"now": -1}})

            workers = [threading.Thread(target=work) for _ in range(threads)]
            for one in workers:
                one.start()
            for one in workers:
                one.join()
            with os.fdopen(writing, "w") as pipe:
                json.dump(entries, pipe)
        finally:
            os._exit(0)
    entries = []
    for pid, reading in children:
        with os.fdopen(reading) as pipe:
            entries += json.load(pipe)
        os.waitpid(pid, 0)
    say(entries)


def main() -> None:
    """``url task [args]``."""
    import django
    from django.conf import settings

    settings.configure(
        INSTALLED_APPS=["goscope_django"],
        SECRET_KEY="only-for-tests",
        GOSCOPE={"URL": sys.argv[1], "CONNECT_ON_READY": False},
    )
    django.setup()
    tasks: dict[str, Callable[..., None]] = {"hold": hold, "contend": contend}
    tasks[sys.argv[2]](*json.loads(sys.argv[3]))


if __name__ == "__main__":
    main()
