"""The store that the settings name, as an operator uses it: asked within a time limit, and never changed by a look.

Rules of this file:

* Nothing here makes an index. Whoever asks which indexes are missing must not find them made by the question.
* Whatever asks the server is a flow, so that each question is written once for sync and async.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, Final, ParamSpec, TypeVar

from goscope_django import conf, runtime
from goscope_django.core.flow import Flow, call, carry_out
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
    """A store, and the prefix of this project's keys in it."""

    connection: Connection
    store: Store
    prefix: str

    @property
    def shown(self) -> str:
        """The URL, with passwords masked."""
        return self.connection.target.shown

    @property
    def mock(self) -> bool:
        """Whether it is mongomock, which has no server to ask."""
        return self.connection.target.scheme == "mongomock"

    def run(self, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``act`` on this thread."""
        return carry_out(self.act(operation, *args, **kwargs))

    def act(self, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs) -> Flow[T]:
        """The store's ``operation`` within ``ACTION_LIMIT``, once the server has answered within ``TIME_LIMIT``."""
        yield from self.reach()
        return (yield from self.ask(ACTION_LIMIT, operation, *args, **kwargs))

    def reach(self, seconds: float = TIME_LIMIT) -> Flow[None]:
        """Raise ``StoreUnavailable`` unless the server answers within ``seconds``. One command."""
        if not self.mock:
            yield from self.ask(seconds, ping)

    def ask(
        self, seconds: float, operation: Callable[Concatenate[Clock, P], Flow[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Flow[T]:
        """The store's ``operation`` within ``seconds``."""
        with within(seconds):
            found: T = yield from call(self.store.run, self.store.arun, operation, *args, **kwargs)
            return found


def place(url: str | None = None, what: str = "URL") -> Place:
    """The place of ``GOSCOPE["URL"]``, or of a cache's own ``url``; ``what`` names the setting in errors.

    Opens nothing yet. Raises ``ImproperlyConfigured`` (``BadSettings``) for settings that can't be used.
    """
    found = runtime.connection(url, what=what)
    store = Store(found.sync, found.asynchronous, sink=runtime.publish)
    return Place(found, store, conf.current().key_prefix)
