"""The store: it runs flows on one database, sync and async.

Rules of this file: it chooses the executor of this process or event loop, passes events on and translates what the
driver raises. It decides nothing about an operation. An error says "nothing was changed" only if that is true of the
whole operation: not only its last command counts, but every one before it that changed something, or may have.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from pymongo.errors import PyMongoError

from goscope_django.contracts import Event
from goscope_django.core.flow import Command, Emit, Flow, Query, acarry_out, arun, carry_out, run
from goscope_django.exceptions import ConfigurationError, CredentialsRefused, StoreError
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.failures import may_have_happened, translated, writes
from goscope_django.mongodb.driver.execute import AsyncExecutor, MockExecutor, SyncExecutor


class _Sent:
    """The queries of one operation: the last one, and all that succeeded or may have happened."""

    __slots__ = ("_database", "_reach", "_since", "done", "last")

    def __init__(self, executor: SyncExecutor | AsyncExecutor | MockExecutor) -> None:
        self.last: Query[Any] | None = None
        self.done: list[Query[Any]] = []
        self._database: str = executor.database.name
        self._reach = executor.reach
        self._since = 0.0

    def send(self, query: Query[Any]) -> None:
        self.last = query
        self.done.append(query)
        self._since = time.monotonic()

    def failed(self, error: PyMongoError) -> None:
        if not may_have_happened(error):
            self.done.pop()

    def waits(self, query: Query[Any]) -> Flow[None] | None:
        """What is to be run before ``query`` is sent: only where no server was reached lately, and before the first."""
        if self._reach is None or not self._reach.away or self.last is not None:
            return None
        self.last = query
        return self._reach.ask(query)

    def ended(self) -> None:
        """The operation succeeded."""
        if self._reach is not None and self._reach.away and self.last is not None:
            self._reach.worked()

    def translated(self, error: PyMongoError) -> StoreError:
        found = translated(error, self.last, database=self._database, doubt=any(map(writes, self.done)))
        # To the driver a server that refuses the password is out of use, and the text says why: it is asked anew.
        if self._reach is not None and self.last is not None and not isinstance(found, CredentialsRefused):
            self._reach.failed(self.last, error, time.monotonic() - self._since)
        return found


P = ParamSpec("P")
T = TypeVar("T")
Sink = Callable[[Event], None]


class Store:
    """Runs flows on one database, sync and async.

    ``sync`` and ``asynchronous`` give the executor of this process and of the running event loop; either may be
    missing. ``sink`` receives what flows emit. ``opening`` is what to do once, after the first operation that
    succeeds: a flow of ``Call`` and ``Pause`` made of this store, whose errors reach whoever ran that operation.
    """

    def __init__(
        self,
        sync: Callable[[], SyncExecutor | MockExecutor] | None,
        asynchronous: Callable[[], AsyncExecutor | MockExecutor] | None,
        *,
        sink: Sink | None = None,
        opening: Callable[[Store], Flow[None]] | None = None,
    ) -> None:
        self._sync = sync
        self._async = asynchronous
        self._sink = sink
        self._opening = opening

    def executor(self) -> SyncExecutor | MockExecutor:
        """The executor of this process."""
        if self._sync is None:
            raise ConfigurationError(
                "this adapter was made of an asynchronous database: use the methods whose names begin with 'a'"
            )
        return self._sync()

    def aexecutor(self) -> AsyncExecutor | MockExecutor:
        """The executor of the running event loop."""
        if self._async is None:
            raise ConfigurationError("this adapter has no asynchronous database: give it one as async_db=")
        return self._async()

    def _tell(self, event: Event) -> None:
        if self._sink is not None:
            with contextlib.suppress(Exception):
                self._sink(event)

    def _opened(self) -> Flow[None]:
        opening, self._opening = self._opening, None
        if opening is not None:  # else another thread was quicker
            yield from opening(self)

    def run(self, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the flow ``operation(clock, ...)`` on this thread, with the clock that decides.

        Raises ``StoreUnavailable``, ``OutcomeUnknown`` or another ``StoreError``, the driver's error chained.
        """
        executor = self.executor()
        sent = _Sent(executor)

        def execute(command: Command[Any]) -> Any:
            if type(command) is Query:
                if (look := sent.waits(command)) is not None:
                    run(look, executor)
                sent.send(command)
                try:
                    return executor(command)
                except PyMongoError as error:
                    sent.failed(error)
                    raise
            if type(command) is Emit:
                return self._tell(command.event)
            return executor(command)

        try:
            found = run(operation(executor.clock, *args, **kwargs), execute)
        except PyMongoError as error:
            raise sent.translated(error) from error
        sent.ended()
        if self._opening is not None:
            carry_out(self._opened())
        return found

    async def arun(self, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Async version of ``run``, in the running event loop and on no thread."""
        executor = self.aexecutor()
        perform = executor.asynchronously if isinstance(executor, MockExecutor) else executor
        sent = _Sent(executor)

        async def execute(command: Command[Any]) -> Any:
            if type(command) is Query:
                if (look := sent.waits(command)) is not None:
                    await arun(look, perform)
                sent.send(command)
                try:
                    return await perform(command)
                except PyMongoError as error:
                    sent.failed(error)
                    raise
            if type(command) is Emit:
                return self._tell(command.event)
            return await perform(command)

        try:
            found = await arun(operation(executor.clock, *args, **kwargs), execute)
        except PyMongoError as error:
            raise sent.translated(error) from error
        sent.ended()
        if self._opening is not None:
            await acarry_out(self._opened())
        return found
