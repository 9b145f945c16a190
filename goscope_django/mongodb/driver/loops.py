"""Asynchronous clients: one for each event loop, closed when that loop ends.

Rules of this file:

* PyMongo's asynchronous client refuses a second event loop, so each loop has its own, made on first use.
* An event loop closes its asynchronous generators before it ends (``asyncio.run`` and every server do that). So each
  client has a generator that waits, and closes the client in its own loop when the loop closes the generator.
* A client is kept here until then, even if its user forgets it earlier. Nothing is kept of a loop that has ended.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import pymongo
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from goscope_django.mongodb.driver.execute import AsyncExecutor

CLOSING_TIME: Final = 1.0
"""Seconds that closing may take if the server can't be reached."""

_farewells: list[Callable[[str, AsyncExecutor], Awaitable[None]]] = []
_alive: set[LoopClient] = set()


def on_loop_end(farewell: Callable[[str, AsyncExecutor], Awaitable[None]]) -> None:
    """Run ``farewell(place, executor)`` in each loop that ends, before its client is closed. It must not raise."""
    _farewells.append(farewell)


class LoopClient:
    """One event loop's client."""

    def __init__(self, client: AsyncMongoClient[Any], database: str, place: str = "") -> None:
        self.loop = asyncio.get_running_loop()
        self.client = client
        self.executor = AsyncExecutor(client[database])
        self._place = place
        self._keeper = self._keep()
        _alive.add(self)
        # The first step registers the generator with the running loop; it suspends at its yield without awaiting.
        with suppress(StopIteration):
            self._keeper.asend(None).send(None)

    async def _keep(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            for farewell in _farewells if self._place else ():
                await farewell(self._place, self.executor)
            with suppress(PyMongoError), pymongo.timeout(CLOSING_TIME):
                await self.client.close()
            _alive.discard(self)

    @property
    def ended(self) -> bool:
        """Whether it was closed, or its loop is."""
        return self not in _alive or self.loop.is_closed()

    async def aclose(self) -> None:
        """Close the client, in its loop."""
        await self._keeper.aclose()

    def let_go(self) -> None:
        """Nobody uses it any more: close it soon if its loop runs, else when the loop ends."""
        if self.loop.is_running():
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(lambda: self.loop.create_task(self.aclose()))


class LoopClients:
    """The clients of one place. ``make`` gives a new client for the running loop."""

    def __init__(self, make: Callable[[], AsyncMongoClient[Any]], database: str, place: str = "") -> None:
        self._make = make
        self._database = database
        self._place = place
        self._found: dict[int, LoopClient] = {}
        weakref.finalize(self, _let_go, self._found).atexit = False

    def current(self) -> AsyncExecutor:
        """The executor of the running event loop."""
        loop = asyncio.get_running_loop()
        found = self._found.get(id(loop))
        if found is None or found.loop is not loop or found.ended:
            for key in [key for key, one in list(self._found.items()) if one.ended]:
                _alive.discard(self._found.pop(key))
            found = self._found[id(loop)] = LoopClient(self._make(), self._database, self._place)
        return found.executor

    def executors(self) -> list[AsyncExecutor]:
        """Those of all event loops that have one."""
        return [one.executor for one in list(self._found.values()) if not one.ended]

    async def aclose(self) -> None:
        """Close the running event loop's client."""
        found = self._found.pop(id(asyncio.get_running_loop()), None)
        if found is not None:
            await found.aclose()


def _let_go(found: dict[int, LoopClient]) -> None:
    for one in list(found.values()):
        one.let_go()


def abandon() -> set[LoopClient]:
    """In a forked child: forget the parent's clients. The caller keeps what is returned, so nothing finalizes them."""
    global _alive
    left, _alive = _alive, set()
    return left
