"""The store: runs flows on one database, in both colours.

Rule of this file: it chooses the executor of this process or event loop, passes events on and translates what the
driver raises. It decides nothing about an operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from pymongo.errors import PyMongoError

from goscope_django.contracts import Event
from goscope_django.core.flow import Command, Emit, Flow, Query, arun, run
from goscope_django.exceptions import ConfigurationError
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.failures import translated
from goscope_django.mongodb.driver.execute import AsyncExecutor, MockExecutor, SyncExecutor

P = ParamSpec("P")
T = TypeVar("T")
Sink = Callable[[Event], None]


class Store:
    """Runs flows on one database, in both colours.

    ``sync`` and ``asynchronous`` give the executor of this process and of the running event loop; either may be
    missing. ``sink`` receives what flows emit.
    """

    def __init__(
        self,
        sync: Callable[[], SyncExecutor | MockExecutor] | None,
        asynchronous: Callable[[], AsyncExecutor | MockExecutor] | None,
        *,
        sink: Sink | None = None,
    ) -> None:
        self._sync = sync
        self._async = asynchronous
        self._sink = sink

    def executor(self) -> SyncExecutor | MockExecutor:
        """The executor of this process."""
        if self._sync is None:
            raise ConfigurationError(
                "this adapter was made of an asynchronous database: use the twins whose name begins with 'a'"
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

    def run(self, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the flow ``operation(clock, ...)`` on this thread, with the clock that decides.

        Raises ``StoreUnavailable``, ``OutcomeUnknown`` or ``StoreError``, the driver's error chained.
        """
        executor = self.executor()
        last: Query[Any] | None = None

        def execute(command: Command[Any]) -> Any:
            nonlocal last
            if type(command) is Query:
                last = command
            elif type(command) is Emit:
                return self._tell(command.event)
            return executor(command)

        try:
            return run(operation(executor.clock, *args, **kwargs), execute)
        except PyMongoError as error:
            raise translated(error, last) from error

    async def arun(self, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Like ``run``, in the running event loop, natively."""
        executor = self.aexecutor()
        perform = executor.asynchronously if isinstance(executor, MockExecutor) else executor
        last: Query[Any] | None = None

        async def execute(command: Command[Any]) -> Any:
            nonlocal last
            if type(command) is Query:
                last = command
            elif type(command) is Emit:
                return self._tell(command.event)
            return await perform(command)

        try:
            return await arun(operation(executor.clock, *args, **kwargs), execute)
        except PyMongoError as error:
            raise translated(error, last) from error
