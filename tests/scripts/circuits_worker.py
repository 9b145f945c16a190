"""A process of a fleet that shares a circuit; a test drives it line by line. Run as a script this is that process.

Each line on its standard input is a JSON list: the name of a function below and its arguments. Each answer is one
JSON line.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0


class Worker:
    """The test's end of it. ``tell`` sends an order, ``answer`` waits for what came of it."""

    def __init__(self, url: str, prefix: str, *, clock: str | None = None) -> None:
        command = [sys.executable, "-m", "tests.scripts.circuits_worker", url, prefix]
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": ""}
        if clock is not None:
            command = ["faketime", "-f", clock, *command]
            environment["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"  # or Python's waits hang
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if clock is None else subprocess.DEVNULL,  # the driver's threads can't sleep under faketime
            text=True,
            env=environment,
        )
        assert self.process.stdin
        assert self.process.stdout
        self._in, self._out = self.process.stdin, self.process.stdout

    def tell(self, name: str, *args: Any) -> None:
        self._in.write(json.dumps([name, *args]) + "\n")
        self._in.flush()

    def answer(self) -> Any:
        line = self._out.readline()
        if not line:
            raise RuntimeError(f"the worker ended with {self.process.wait(10)}")
        return json.loads(line)

    def ask(self, name: str, *args: Any) -> Any:
        self.tell(name, *args)
        return self.answer()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        self._in.close()
        self._out.close()


class Member:
    """What the process does."""

    def __init__(self, url: str, prefix: str) -> None:
        from django.conf import settings
        from pymongo import monitoring

        self.sent: Counter[str] = Counter()
        member = self

        class Listener(monitoring.CommandListener):
            def started(self, event: monitoring.CommandStartedEvent) -> None:
                member.sent[event.command_name] += 1

            def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

            def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

        options = {"event_listeners": [Listener()]}
        settings.configure(
            SECRET_KEY="x" * 50,
            USE_TZ=True,
            GOSCOPE={"URL": url, "KEY_PREFIX": prefix, "CLIENT_OPTIONS": options},
        )
        import django

        django.setup()
        from goscope_django import signals
        from goscope_django.mongodb.circuits import flows

        flows.LIMIT = PATIENCE  # type: ignore[misc]  # what is tested here are races, on a machine that may be busy
        self.heard: list[str] = []
        for name in ("circuit_opened", "circuit_half_opened", "circuit_closed"):
            signals.SIGNALS[name].connect(lambda event=name, **_: self.heard.append(event), weak=False)
        self.running = 0
        self.end = threading.Event()
        self.calls: list[Future[str]] = []

    def breaker(self, **options: Any) -> Any:
        from goscope_django.circuits import CircuitBreaker

        self.kept = CircuitBreaker("supplier", **options)
        return repr(self.kept)

    def call(self) -> list[Any]:
        """One healthy call: ``ok``, or ``refused`` and for how long."""
        from goscope_django.circuits import CircuitOpen

        try:
            return [self.kept.call(lambda: "ok"), None]
        except CircuitOpen as error:
            return ["refused", error.retry_after]

    def fail(self, times: int, threads: int = 1) -> dict[str, int]:
        """Failing calls: how often each ending was."""
        from goscope_django.circuits import CircuitOpen

        def one(_: int) -> str:
            try:
                self.kept.call(self._boom)
            except CircuitOpen:
                return "refused"
            except ZeroDivisionError:
                return "failed"
            return "ok"

        with ThreadPoolExecutor(threads) as pool:
            return dict(Counter(pool.map(one, range(times))))

    def record(self, times: int) -> list[int]:
        """Failures recorded with the provider: the counts that it gave."""
        from goscope_django import runtime

        provider = runtime.adapter().circuit_breaker
        return [provider.record_failure("supplier", 10_000) for _ in range(times)]

    def _boom(self) -> None:
        raise ZeroDivisionError

    def hold(self, calls: int) -> None:
        """Begin calls in threads that run until ``release``; no answer until ``settled``."""
        from goscope_django.circuits import CircuitOpen

        self.end.clear()
        self.running = 0
        lock, start = threading.Lock(), threading.Barrier(calls)

        def body() -> str:
            with lock:
                self.running += 1
            self.end.wait(PATIENCE)
            return "ran"

        def one() -> str:
            start.wait(PATIENCE)
            try:
                return str(self.kept.call(body))
            except CircuitOpen:
                return "refused"

        self.pool = ThreadPoolExecutor(calls)
        self.calls = [self.pool.submit(one) for _ in range(calls)]

    def settled(self) -> int:
        """Wait until every held call either runs or was refused; how many run."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.running + sum(call.done() for call in self.calls) == len(self.calls):
                break
            time.sleep(0.005)
        return self.running

    def release(self) -> dict[str, int]:
        """End the held calls: how each ended."""
        self.end.set()
        self.pool.shutdown()
        return dict(Counter(call.result() for call in self.calls))

    def hold_tasks(self, calls: int) -> int:
        """The same with asynchronous calls, in an event loop of its own thread; how many run."""
        from goscope_django.circuits import CircuitOpen

        settled: Future[int] = Future()

        async def main() -> list[str]:
            loop = asyncio.get_running_loop()
            running = 0

            async def body() -> str:
                nonlocal running
                running += 1
                await loop.run_in_executor(None, self.end.wait, PATIENCE)
                return "ran"

            async def one() -> str:
                try:
                    return str(await self.kept.acall(body))
                except CircuitOpen:
                    return "refused"

            tasks = [asyncio.create_task(one()) for _ in range(calls)]
            while running + sum(task.done() for task in tasks) < calls:  # noqa: ASYNC110  (two kinds of progress)
                await asyncio.sleep(0.005)
            settled.set_result(running)
            return await asyncio.gather(*tasks)

        self.end.clear()
        self.pool = ThreadPoolExecutor(1)
        whole = self.pool.submit(asyncio.run, main())
        self.calls = [Future() for _ in range(calls)]

        def spread(done: Future[list[str]]) -> None:
            for call, result in zip(self.calls, done.result(), strict=True):
                call.set_result(result)

        whole.add_done_callback(spread)
        return settled.result(PATIENCE)

    def forked(self) -> list[Any]:
        """The first call of a forked child."""
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(writing, json.dumps(self.call()).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            result: list[Any] = json.loads(answer.read())
        os.waitpid(child, 0)
        return result

    def enter(self) -> None:
        """Begin a call on this very thread: nothing waits, which would not get along with faketime."""
        self.kept.__enter__()

    def leave(self) -> None:
        """End it, as a success."""
        self.kept.__exit__(None, None, None)

    def until(self, wanted: str) -> dict[str, int]:
        """Call until the outcome is ``wanted``; the commands sent meanwhile."""
        before, deadline = Counter(self.sent), time.monotonic() + PATIENCE
        while self.call()[0] != wanted and time.monotonic() < deadline:
            time.sleep(0.002)
        return dict(self.sent - before)

    def events(self) -> list[str]:
        """The signals that this process sent."""
        return self.heard

    def now(self) -> float:
        """The wall clock, as this process sees it."""
        return time.time()


def main() -> None:
    member = Member(*sys.argv[1:3])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        name, *args = json.loads(line)
        options = args.pop() if args and isinstance(args[-1], dict) else {}
        print(json.dumps(getattr(member, name)(*args, **options)), flush=True)


if __name__ == "__main__":
    main()
