"""A process that uses an embedded ``mongod`` as its test tells it to; run as a script this is that process."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pymongo import MongoClient

from goscope_django.mongodb import embedded
from goscope_django.mongodb.driver import client as clients

ROOT = Path(__file__).resolve().parents[2]
PATIENT = 120_000  # milliseconds that an operation waits for the server; a loaded machine may take long to start it


def insert_and_count(uri: str) -> int:
    """Write one document; return how many there are."""
    with MongoClient[dict[str, Any]](uri) as client:
        client.test.things.insert_one({})
        return client.test.things.count_documents({})


class Worker:
    """The test's end of it. Every answer is one line; an error in the process is raised here with its text."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.scripts.embedded_worker", str(directory)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill(signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def ask(self, command: str) -> None:
        """Send a command without waiting for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """Return the next answer, without its ``ok``."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().rstrip("\n")
        if line.startswith("ok "):
            return line[3:]
        assert self.process.stderr is not None
        raise AssertionError(f"the worker answered {line!r} {'' if line else self.process.stderr.read()}")

    def answers_within(self, seconds: float) -> bool:
        """Tell whether an answer comes in this time."""
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], seconds)[0])

    def do(self, command: str) -> str:
        """Send a command and return its answer."""
        self.ask(command)
        return self.answer()

    def leave(self) -> str:
        """Let the process end in order; return what it wrote to standard error."""
        self.ask("quit")
        return self.end()

    def end(self) -> str:
        """Wait for the process that was asked to quit; return what it wrote to standard error."""
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors
        return errors

    def kill(self, number: int) -> None:
        """Send the process a signal and wait for its end."""
        self.process.send_signal(number)
        self.process.wait(60)


class Commands:
    """What the process can do; every method is a command."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.uses: list[embedded.Mongod] = []

    def start(self) -> int:
        self.uses.append(embedded.start(self.directory))
        return self.uses[-1].pid

    def release(self) -> str:
        self.uses.pop().release()
        return "released"

    def insert(self) -> int:
        return insert_and_count(self.uses[-1].uri)

    def write(self, count: str) -> int:
        """Write as any user of the URL does, from so many threads at once; return how many did."""
        store = clients.connection(f"embedded://{self.directory}", {"serverSelectionTimeoutMS": PATIENT})

        def insert(_: int) -> int:
            store.sync().database["things"].insert_one({})
            return 1

        with ThreadPoolExecutor(int(count)) as pool:
            return sum(pool.map(insert, range(int(count))))

    def threads(self) -> str:
        """Tell which threads there are."""
        return " ".join(sorted(thread.name for thread in threading.enumerate()))

    def rounds(self, count: str) -> str:
        """Start, write and leave so many times; a server that dies under a fresh user fails the write."""
        for _ in range(int(count)):
            self.start()
            self.insert()
            self.release()
            time.sleep(random.uniform(0, 0.05))
        return "done"

    def fork(self) -> int:
        """Fork a child that lives until it is killed."""
        pid = os.fork()
        if pid == 0:
            while True:
                time.sleep(60)
        return pid

    def fork_and_exit(self) -> int:
        """Fork a child that releases what it inherited and ends in order; return its exit code."""
        pid = os.fork()
        if pid == 0:
            for use in self.uses:
                use.release()
            sys.exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def fork_and_start(self) -> int:
        """Fork a child that becomes a user of its own, releases what it inherited, and lives until it is killed."""
        inherited = list(self.uses)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            self.start()
            for use in inherited:
                use.release()
            os.write(writer, b"started")
            while True:
                time.sleep(60)
        assert os.read(reader, 7) == b"started"
        return pid


def main() -> None:
    commands = Commands(sys.argv[1])
    for line in sys.stdin:
        name, *arguments = line.split()
        if name == "quit":
            return
        print("ok", getattr(commands, name)(*arguments), flush=True)


if __name__ == "__main__":
    main()
