"""Flows: an operation is written once, as a generator, and runs sync and async.

Rules of this file and of every flow:

* A flow is a generator that *yields commands* and receives their results; what it returns is the operation's result.
  There are four kinds of command: ``Query`` (one call to the server), ``Pause`` (wait), ``Emit`` (tell that something
  happened) and ``Call`` (call this function, which may be sync or async). Nothing else ever leaves a flow. Flows below
  the store yield the first three, flows above it ``Call`` and ``Pause``: a flow of the store is a ``Call`` to them.
* A runner decides nothing. ``run`` executes commands on the calling thread, ``arun`` awaits them. An error of a command
  is thrown into the flow at the ``yield``, cancellation included, so that making good is written once as well.
* A flow never runs a user's code itself, it asks for it by ``Call``; and it keeps no state between two runs.

The idea is psycopg 3's: generators for whatever decides, two thin runners below.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from goscope_django.contracts import Event
from goscope_django.core.colours import finished

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


class Call(Command[R]):
    """Call something of the feature's or of the user's that may be sync or async.

    On a thread ``plain(...)`` is called; in a task ``twin(...)``, and what it gives is awaited if it can be. ``last``:
    a cancelled task finishes the call all the same, for what must not be left half-way.
    """

    __slots__ = ("args", "kwargs", "last", "plain", "twin")

    def __init__(self, plain: Callable[..., Any], twin: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.plain = plain
        self.twin = twin
        self.args = args
        self.kwargs = kwargs
        self.last = False

    def __repr__(self) -> str:
        return f"Call({getattr(self.plain, '__qualname__', self.plain)})"


Flow = Generator[Command[Any], Any, T]


def perform(command: Command[R]) -> Flow[R]:
    """``yield`` with a type: ``result = yield from perform(command)``."""
    result: R = yield command
    return result


def ask(collection: str, method: str, *args: Any, **kwargs: Any) -> Flow[Any]:
    """``yield`` a query that is made on the spot: ``found = yield from ask(LOCKS, "find_one", {...})``."""
    return (yield Query(collection, method, *args, **kwargs))


def call(plain: Callable[..., Any], twin: Callable[..., Any], *args: Any, **kwargs: Any) -> Flow[Any]:
    """``yield`` a call that is made on the spot: ``yield from call(backend.release, backend.arelease, handle)``."""
    return (yield Call(plain, twin, *args, **kwargs))


def last_call(plain: Callable[..., Any], twin: Callable[..., Any], *args: Any, **kwargs: Any) -> Flow[Any]:
    """``call`` for what ends something: a cancelled task finishes it first."""
    command: Call[Any] = Call(plain, twin, *args, **kwargs)
    command.last = True
    return (yield command)


def invoke(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Flow[Any]:
    """``call`` for one function that serves both: the user's, which is awaited in a task if it has to be."""
    return (yield Call(function, function, *args, **kwargs))


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
                # asyncio.wait_for before Python 3.12, which drivers use, may swallow a cancellation. A function of the
                # user's may, too, and then its result counts.
                if task and type(command) is not Call and task.cancelling() > asked:
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


def execute(command: Command[Any]) -> Any:
    """Carry out a command that needs no server, on this thread."""
    if type(command) is Call:
        return command.plain(*command.args, **command.kwargs)
    if type(command) is Pause:
        return time.sleep(command.seconds)
    raise TypeError(f"{command!r} is not a command that this executor knows")


async def aexecute(command: Command[Any]) -> Any:
    """Carry out a command that needs no server, in the current task."""
    if type(command) is Call:
        found = command.twin(*command.args, **command.kwargs)
        if not inspect.isawaitable(found):
            return found
        return await (finished(found) if command.last else found)
    if type(command) is Pause:
        return await asyncio.sleep(command.seconds)
    raise TypeError(f"{command!r} is not a command that this executor knows")


def carry_out(flow: Flow[T]) -> T:
    """Run a flow of calls and pauses on this thread: whatever decides above the store."""
    return run(flow, execute)


async def acarry_out(flow: Flow[T]) -> T:
    """Async version of ``carry_out``."""
    return await arun(flow, aexecute)
