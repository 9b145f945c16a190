"""Flows: an operation is written once, as a generator, and runs both sync and async.

Rules of this file and of every flow:

* A flow is a generator that *yields commands* and receives their results; what it returns is the operation's result.
  There are four kinds of command: ``Query`` (one call to the server), ``Pause`` (wait), ``Emit`` (report an event) and
  ``Call`` (call this function, sync or async). Nothing else ever leaves a flow.
* Flows below the store yield the first three. Flows above it yield ``Call`` and ``Pause``, and run a flow of the store
  by a ``Call`` of ``store.run``. What takes an executor several calls of the driver is a flow of ``Call`` as well.
* A runner decides nothing. ``run`` executes commands on the calling thread, ``arun`` awaits them. An error of a command
  is thrown into the flow at the ``yield``, cancellation included. So what follows an error is written once as well.
* A flow never calls a user's function itself, it yields a ``Call``. It keeps no state between two runs.

The idea is psycopg 3's: generators decide, and two thin runners carry out.
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
    """Report that ``event`` happened. Listeners' errors never reach the flow."""

    __slots__ = ("event",)

    def __init__(self, name: str, /, **details: Any) -> None:
        self.event = Event(name, details)


class Call(Command[R]):
    """Call a function of the feature's, the driver's or the user's, which may be sync or async.

    On a thread ``plain(...)`` is called; in a task ``twin(...)``, whose result is awaited if it is awaitable. With
    ``last`` a cancelled task finishes the call before ``CancelledError`` is raised: for what must not stop half-way.
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
    """``call`` for what ends something: a cancelled task finishes it before ``CancelledError`` is raised."""
    command: Call[Any] = Call(plain, twin, *args, **kwargs)
    command.last = True
    return (yield command)


def invoke(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Flow[Any]:
    """``call`` for one function that serves both; in a task its result is awaited if it is awaitable."""
    return (yield Call(function, function, *args, **kwargs))


def run(flow: Flow[T], execute: Callable[[Command[Any]], Any]) -> T:
    """Run ``flow`` on this thread. It adds about a microsecond to what the commands cost."""
    thrown: StopIteration | None = None
    try:
        command = next(flow)
        while True:
            try:
                result = execute(command)
            except BaseException as error:  # noqa: BLE001  the flow decides, cancellation included
                thrown = error if isinstance(error, StopIteration) else thrown
                command = flow.throw(error)
            else:
                command = flow.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value
    except RuntimeError as error:
        if thrown is not None and error.__cause__ is thrown:
            raise thrown from None  # a generator makes another error of it, but it is what the function raised
        raise
    finally:
        flow.close()


async def arun(flow: Flow[T], execute: Callable[[Command[Any]], Awaitable[Any]]) -> T:
    """Async version of ``run``, in the current task. A cancellation is thrown into the flow, like any error."""
    task = asyncio.current_task()
    try:
        command = next(flow)
        while True:
            asked = task.cancelling() if task else 0
            try:
                result = await execute(command)
                if task and task.cancelling() > asked and type(command) is not Call:
                    # asyncio.wait_for before Python 3.12, which drivers use, may swallow a cancellation. A function
                    # that is called may do so as it likes: it is the user's, or has looked itself.
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
    """Async version of ``execute``, in the current task."""
    if type(command) is Call:
        found = command.twin(*command.args, **command.kwargs)
        if not inspect.isawaitable(found):
            return found
        return await (finished(found) if command.last else found)
    if type(command) is Pause:
        return await asyncio.sleep(command.seconds)
    raise TypeError(f"{command!r} is not a command that this executor knows")


def carry_out(flow: Flow[T]) -> T:
    """Run a flow of calls and pauses on this thread: the flows above the store."""
    return run(flow, execute)


async def acarry_out(flow: Flow[T]) -> T:
    """Async version of ``carry_out``."""
    return await arun(flow, aexecute)
