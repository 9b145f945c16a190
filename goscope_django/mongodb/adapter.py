"""``MongoDBAdapter``: five providers on one database.

Rule of this file: composition only. Which executor a database needs is told from what it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.synchronous.database import Database

from goscope_django.contracts import Ttl
from goscope_django.core import arguments
from goscope_django.core.flow import Flow, ask
from goscope_django.exceptions import InvalidType
from goscope_django.mongodb.cache.provider import MongoDBCacheProvider
from goscope_django.mongodb.checkpoints.history import CHECKPOINTS, MongoDBCheckpointProvider
from goscope_django.mongodb.checkpoints.tasks import TASKS
from goscope_django.mongodb.circuits.document import CIRCUITS
from goscope_django.mongodb.circuits.states import MongoDBCircuitBreakerStateProvider
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.document import indexes
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import prefix_range
from goscope_django.mongodb.document.indexes import IndexState
from goscope_django.mongodb.driver.execute import CACHE, AsyncExecutor, MockExecutor, SyncExecutor
from goscope_django.mongodb.driver.inspection import ping
from goscope_django.mongodb.driver.loops import LoopClients
from goscope_django.mongodb.driver.store import Sink, Store
from goscope_django.mongodb.figures import STATS
from goscope_django.mongodb.idempotency.flows import IDEMPOTENCY, claim_key
from goscope_django.mongodb.idempotency.provider import MongoDBIdempotencyProvider
from goscope_django.mongodb.locks.flows import LOCKS
from goscope_django.mongodb.locks.provider import MongoDBLockProvider
from goscope_django.mongodb.single_flight.flows import FLIGHTS


def store_of(db: Any, async_db: Any = None, *, sink: Sink | None = None) -> Store:
    """A store on a PyMongo ``Database`` or ``AsyncDatabase`` or a mongomock one; ``async_db`` adds the other colour.

    An asynchronous database belongs to one event loop, so ``async_db`` may also be a function that gives the running
    loop's. Raises ``InvalidType`` for anything else.
    """
    if isinstance(db, AsyncDatabase):
        native = AsyncExecutor(db)
        return Store(None, lambda: native, sink=sink)
    if isinstance(db, Database):
        executor = SyncExecutor(db)
        return Store(lambda: executor, _twin(db, async_db), sink=sink)
    if type(db).__module__.partition(".")[0] == "mongomock":
        mock = MockExecutor(db)
        return Store(lambda: mock, lambda: mock, sink=sink)
    raise InvalidType(f"db={type(db).__name__}: a pymongo Database, AsyncDatabase or mongomock Database is needed")


def _twin(db: Database[Any], async_db: Any) -> Callable[[], AsyncExecutor] | None:
    if async_db is None:
        # A client remembers what it was made of; its twin for the running loop is made of the same.
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


class MongoDBAdapter:
    """Lock, circuit breaker, cache, checkpoint and idempotency providers on one database.

    ``db`` is a ``pymongo`` ``Database`` or ``AsyncDatabase`` (or mongomock's). A synchronous one serves the
    asynchronous methods as well, by a native asynchronous client of its own for each event loop, or by ``async_db``.
    ``key_prefix`` stands in front of every stored key; ``default_lock_ttl`` is in milliseconds or a ``timedelta``.
    """

    def __init__(
        self,
        db: Any,
        *,
        key_prefix: str = "",
        default_lock_ttl: Ttl = 30_000,
        async_db: Any = None,
        codec: Codec | None = None,
        sink: Sink | None = None,
    ) -> None:
        self._compose(store_of(db, async_db, sink=sink), key_prefix, default_lock_ttl, codec)

    def _compose(self, store: Store, key_prefix: str, default_lock_ttl: Ttl, codec: Codec | None) -> None:
        arguments.key(key_prefix, "key_prefix")
        self.store = store
        self.key_prefix = key_prefix
        self.lock = MongoDBLockProvider(store, key_prefix=key_prefix, default_ttl=default_lock_ttl)
        self.circuit_breaker = MongoDBCircuitBreakerStateProvider(store, key_prefix=key_prefix)
        self.cache = MongoDBCacheProvider(store, key_prefix=key_prefix, codec=codec)
        self.checkpoint = MongoDBCheckpointProvider(store, key_prefix=key_prefix, codec=codec)
        self.idempotency = MongoDBIdempotencyProvider(store, key_prefix=key_prefix, codec=codec)
        self._connected = False

    @classmethod
    def on(
        cls, store: Store, *, key_prefix: str = "", default_lock_ttl: Ttl = 30_000, codec: Codec | None = None
    ) -> MongoDBAdapter:
        """An adapter on a store that is there already."""
        adapter = cls.__new__(cls)
        adapter._compose(store, key_prefix, default_lock_ttl, codec)
        return adapter

    def connect(self) -> None:
        """Reach the server and make what indexes are missing.

        Raises ``StoreUnavailable`` if it can't be reached, ``IndexConflict`` if an index exists with other options.
        """
        self.ensure_indexes()
        self._connected = True

    async def aconnect(self) -> None:
        """Asynchronous twin of ``connect``."""
        await self.aensure_indexes()
        self._connected = True

    def disconnect(self) -> None:
        """Forget that it is connected. The database's client belongs to whoever made it and stays open."""
        self._connected = False

    async def adisconnect(self) -> None:
        """Asynchronous twin of ``disconnect``."""
        self._connected = False

    def is_connected(self) -> bool:
        """Whether ``connect`` succeeded and ``disconnect`` was not called since. No round trip."""
        return self._connected

    async def ais_connected(self) -> bool:
        """Asynchronous twin of ``is_connected``."""
        return self._connected

    def ping(self) -> None:
        """Reach the server: one round trip. Raises ``StoreUnavailable``."""
        self.store.run(ping)

    async def aping(self) -> None:
        """Asynchronous twin of ``ping``."""
        await self.store.arun(ping)

    def ensure_indexes(self, *, repair: bool = False) -> list[IndexState]:
        """Make what indexes are missing; the states as they were found. Idempotent, drops nothing unless ``repair``."""
        return self.store.run(indexes.ensure, repair=repair)

    async def aensure_indexes(self, *, repair: bool = False) -> list[IndexState]:
        """Asynchronous twin of ``ensure_indexes``."""
        return await self.store.arun(indexes.ensure, repair=repair)

    def check_indexes(self) -> list[IndexState]:
        """The states of all indexes; changes nothing."""
        return self.store.run(indexes.check)

    async def acheck_indexes(self) -> list[IndexState]:
        """Asynchronous twin of ``check_indexes``."""
        return await self.store.arun(indexes.check)

    def wipe(self) -> None:
        """Remove every document under this prefix, from all collections. For tests: there is no way back."""
        self.store.run(_wipe, self.key_prefix)

    async def awipe(self) -> None:
        """Asynchronous twin of ``wipe``."""
        await self.store.arun(_wipe, self.key_prefix)


def _wipe(clock: Clock, prefix: str) -> Flow[None]:
    places = {
        LOCKS: [("key", f"{prefix}lock:")],
        CIRCUITS: [("key", f"{prefix}circuit:")],
        CACHE: [("key", f"{prefix}cache:")],
        CHECKPOINTS: [("taskId", prefix)],
        IDEMPOTENCY: [("key", prefix), ("key", claim_key(prefix))],
        FLIGHTS: [("_id", prefix)],
        TASKS: [("_id", prefix)],
        STATS: [("_id", prefix)],
    }
    for collection, ranges in places.items():
        for field, start in ranges:
            yield from ask(collection, "delete_many", {field: prefix_range(start)} if start else {})


class MongoDBIdempotencyAdapter(MongoDBIdempotencyProvider):
    """The idempotency provider alone, on a database."""

    def __init__(self, db: Any, key_prefix: str = "", *, async_db: Any = None, codec: Codec | None = None) -> None:
        super().__init__(store_of(db, async_db), key_prefix=arguments.key(key_prefix, "key_prefix"), codec=codec)

    def connect(self) -> None:
        """Make the collection's indexes if they are missing."""
        self.store.run(indexes.ensure, collection=IDEMPOTENCY)

    async def aconnect(self) -> None:
        """Asynchronous twin of ``connect``."""
        await self.store.arun(indexes.ensure, collection=IDEMPOTENCY)
