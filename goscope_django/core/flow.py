"""Flows: an operation is written once, as a generator, and run in either colour.

Rules of this file and of every flow:

* A flow is a generator that *yields commands* and receives their results; what it returns is the operation's result.
  There are three kinds of command: ``Query`` (one call to the server), ``Pause`` (wait) and ``Emit`` (tell that
  something happened). Nothing else ever leaves a flow.
* A runner decides nothing. ``run`` executes commands on the calling thread, ``arun`` awaits them. An error of a command
  is thrown into the flow at the ``yield``, cancellation included, so that making good is written once as well.
* A flow never runs a user's code and never keeps state between two runs.

The idea is psycopg 3's: generators for whatever decides, two thin runners below.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from goscope_django.contracts import Event

R = TypeVar("R")
T = TypeVar("T")


class Command(Generic[R]):
    """Something to be done outside the flow; ``R`` is what comes back."""

    __slots__ = ()


class Query(Command[R]):
    """One call to the server: ``method`` of an executor, on ``collection``, with these arguments.

    A query on a collection of the coordinating kind has a time limit and majority concerns; see ``execute``.
    """

    __slots__ = ("args", "collection", "kwargs", "method")

    def __init__(self, collection: str, method: str, *args: Any, **kwargs: Any) -> None:
        self.collection = collection
        self.method = method
        self.args = args
        self.kwargs = kwargs

    def __repr__(self) -> str:
        return f"Query({self.collection}.{self.method})"


class Pause(Command[None]):
    """Wait for ``seconds``."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Emit(Command[None]):
    """Tell whoever listens that ``event`` happened. Listeners' errors never reach the flow."""

    __slots__ = ("event",)

    def __init__(self, name: str, /, **details: Any) -> None:
        self.event = Event(name, details)


Flow = Generator[Command[Any], Any, T]


def perform(command: Command[R]) -> Flow[R]:
    """``yield`` with a type: ``result = yield from perform(command)``."""
    result: R = yield command
    return result


def ask(collection: str, method: str, *args: Any, **kwargs: Any) -> Flow[Any]:
    """``yield`` a query that is made on the spot: ``found = yield from ask(LOCKS, "find_one", {...})``."""
    return (yield Query(collection, method, *args, **kwargs))


def run(flow: Flow[T], execute: Callable[[Command[Any]], Any]) -> T:
    """Run ``flow`` on this thread. Costs about a microsecond beside what the commands cost."""
    try:
        command = next(flow)
        while True:
            try:
                result = execute(command)
            except BaseException as error:  # noqa: BLE001  the flow decides, cancellation included
                command = flow.throw(error)
            else:
                command = flow.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value
    finally:
        flow.close()


async def arun(flow: Flow[T], execute: Callable[[Command[Any]], Awaitable[Any]]) -> T:
    """Run ``flow`` in the current task. Cancellation is thrown into the flow and goes on from there."""
    task = asyncio.current_task()
    try:
        command = next(flow)
        while True:
            asked = task.cancelling() if task else 0
            try:
                result = await execute(command)
                if task and task.cancelling() > asked:
                    # asyncio.wait_for before Python 3.12, which drivers use, may swallow a cancellation.
                    raise asyncio.CancelledError
            except BaseException as error:  # noqa: BLE001  the flow decides, cancellation included
                command = flow.throw(error)
            else:
                command = flow.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value
    finally:
        flow.close()
