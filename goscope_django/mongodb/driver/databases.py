"""A store on a database that somebody else made and closes.

Rule of this file: which executor a database needs is told from its class, and nothing is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.synchronous.database import Database

from goscope_django.exceptions import InvalidType
from goscope_django.mongodb.driver.execute import AsyncExecutor, MockExecutor, SyncExecutor
from goscope_django.mongodb.driver.loops import LoopClients
from goscope_django.mongodb.driver.store import Sink, Store


def store_of(db: Any, async_db: Any = None, *, sink: Sink | None = None) -> Store:
    """A store on a PyMongo ``Database`` or ``AsyncDatabase`` or a mongomock one.

    ``async_db`` is what the async methods of a synchronous ``db`` use, if not a client made of the same arguments.
    An asynchronous database belongs to one event loop, so ``async_db`` may also be a function that gives the running
    loop's. Raises ``InvalidType`` for anything else.
    """
    if isinstance(db, AsyncDatabase):
        native = AsyncExecutor(db)
        return Store(None, lambda: native, sink=sink)
    if isinstance(db, Database):
        executor = SyncExecutor(db)
        return Store(lambda: executor, _async_executor(db, async_db), sink=sink)
    if type(db).__module__.partition(".")[0] == "mongomock":
        mock = MockExecutor(db)
        return Store(lambda: mock, lambda: mock, sink=sink)
    raise InvalidType(f"db={type(db).__name__}: a pymongo Database, AsyncDatabase or mongomock Database is needed")


def _async_executor(db: Database[Any], async_db: Any) -> Callable[[], AsyncExecutor] | None:
    if async_db is None:
        # A client remembers its arguments; the asynchronous one for the running loop gets the same.
        made_of: Mapping[str, Any] | None = getattr(db.client, "_init_kwargs", None)
        if made_of is None:
            return None
        given = {name: value for name, value in made_of.items() if value is not None and name != "connect"}
        return LoopClients(lambda: AsyncMongoClient(**given), db.name).current
    if isinstance(async_db, AsyncDatabase):
        executor = AsyncExecutor(async_db)
        return lambda: executor
    if callable(async_db):
        executors: dict[asyncio.AbstractEventLoop, AsyncExecutor] = {}

        def current() -> AsyncExecutor:
            # One for each loop: a client gives another object for its database at each use.
            database, loop = async_db(), asyncio.get_running_loop()
            found = executors.get(loop)
            if found is None or found.database.client is not database.client or found.database.name != database.name:
                for ended in [one for one in list(executors) if one.is_closed()]:
                    executors.pop(ended, None)
                found = executors[loop] = AsyncExecutor(database)
            return found

        return current
    raise InvalidType(f"async_db={type(async_db).__name__}: an AsyncDatabase or a function that gives one is needed")
