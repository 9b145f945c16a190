"""Where an operator works: the store that the settings name, looked at without changing it.

Rule of this file: nothing here makes an index. An operator who asks what is missing must not find it mended by the
question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, Final, ParamSpec, TypeVar

from goscope_django import conf, runtime
from goscope_django.core.flow import Flow
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.driver.client import Connection
from goscope_django.mongodb.driver.inspection import ping
from goscope_django.mongodb.driver.limits import within
from goscope_django.mongodb.driver.store import Store

P = ParamSpec("P")
T = TypeVar("T")

TIME_LIMIT: Final = 2.5
"""Seconds that reading the state may take in all."""

ACTION_LIMIT: Final = 10.0
"""Seconds that an action may take."""


@dataclass(frozen=True, slots=True)
class Place:
    """A store and the prefix of this project in it. ``shown`` is its URL with the secrets masked."""

    connection: Connection
    store: Store
    prefix: str

    @property
    def shown(self) -> str:
        """The URL, masked."""
        return self.connection.target.shown

    @property
    def mock(self) -> bool:
        """Whether it is mongomock, which has no server to ask."""
        return self.connection.target.scheme == "mongomock"

    def reach(self, seconds: float = TIME_LIMIT) -> None:
        """Raise ``StoreUnavailable`` unless the server answers within ``seconds``. One command."""
        if not self.mock:
            with within(seconds):
                self.store.run(ping)

    async def areach(self, seconds: float = TIME_LIMIT) -> None:
        """Asynchronous twin of ``reach``."""
        if not self.mock:
            with within(seconds):
                await self.store.arun(ping)

    def run(self, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an action's flow within ``ACTION_LIMIT``, once the server has answered within ``TIME_LIMIT``."""
        self.reach()
        with within(ACTION_LIMIT):
            return self.store.run(operation, *args, **kwargs)

    async def arun(self, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Asynchronous twin of ``run``."""
        await self.areach()
        with within(ACTION_LIMIT):
            return await self.store.arun(operation, *args, **kwargs)


def place(url: str | None = None, what: str = "URL") -> Place:
    """The place of ``GOSCOPE["URL"]``, or of a cache's own ``url``. Opens nothing yet.

    Raises ``ImproperlyConfigured`` (``BadSettings``) for settings that can't be used.
    """
    found = runtime.connection(url, what=what)
    store = Store(found.sync, found.asynchronous, sink=runtime.publish)
    return Place(found, store, conf.current().key_prefix)
