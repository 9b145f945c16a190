"""The number of commands: a counter for the driver, settings that use it, and processes that count their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import django
from django.conf import settings
from django.test import override_settings
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

_OWN = frozenset({"hello", "isMaster", "ismaster", "endSessions", "killCursors"})
Work = Callable[[Connection, "Counter"], None]


class Counter(CommandListener):
    """Counts commands as they are sent, those that a driver sends of its own accord left out."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, str]] = []
        """``time.monotonic()``, and the command's name and collection, in order."""

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name not in _OWN:
            self.sent.append((time.monotonic(), f"{event.command_name} {event.command.get(event.command_name)}"))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass


def _goscope(url: str, counter: Counter) -> dict[str, Any]:
    return {"URL": url, "CLIENT_OPTIONS": {"event_listeners": [counter]}}


@contextlib.contextmanager
def counted(url: str) -> Iterator[Counter]:
    """Let this process count what it sends to ``url``. Not while it is timed: a listener costs time as well."""
    from goscope_django import runtime

    counter = Counter()
    with override_settings(GOSCOPE=_goscope(url, counter)):
        runtime.adapter().ping()
        yield counter
        runtime.connection().close()


def number_of(counter: Counter, operation: Callable[[], object]) -> int:
    """How many commands ``operation`` sends."""
    before = len(counter.sent)
    operation()
    return len(counter.sent) - before


def _begin(work: Work, connection: Connection, url: str) -> None:
    counter = Counter()
    settings.configure(
        SECRET_KEY="benchmarks", GOSCOPE=_goscope(url, counter), INSTALLED_APPS=["goscope_django"], USE_TZ=True
    )
    django.setup()
    from goscope_django import runtime

    runtime.adapter().ping()
    connection.send("ready")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        work(connection, counter)


@contextlib.contextmanager
def processes(number: int, url: str, work: Work) -> Iterator[list[Connection]]:
    """Processes of their own that do ``work(connection, counter)`` until their connection is closed."""
    context = multiprocessing.get_context("spawn")  # a forked child would have this process's threads' locks
    started = []
    try:
        for _ in range(number):
            here, there = context.Pipe()
            one = context.Process(target=_begin, args=(work, there, url), daemon=True)
            one.start()
            there.close()
            started.append((one, here))
        for _, here in started:
            here.recv()
        yield [here for _, here in started]
    finally:
        for _, here in started:
            here.close()
        for one, _ in started:
            one.join(5)
            if one.is_alive():
                one.terminate()
