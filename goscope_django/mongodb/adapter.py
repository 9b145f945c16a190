"""``MongoDBAdapter``: the five providers on one database.

Rule of this file: it puts the providers together and sees to the indexes; what a provider does stands with its feature.
"""

from __future__ import annotations

from typing import Any

from goscope_django.contracts import Ttl
from goscope_django.core import arguments
from goscope_django.core.flow import Flow, ask
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
from goscope_django.mongodb.driver.databases import store_of
from goscope_django.mongodb.driver.execute import CACHE
from goscope_django.mongodb.driver.inspection import ping
from goscope_django.mongodb.driver.store import Sink, Store
from goscope_django.mongodb.figures import STATS
from goscope_django.mongodb.idempotency.flows import IDEMPOTENCY, claim_key
from goscope_django.mongodb.idempotency.provider import MongoDBIdempotencyProvider
from goscope_django.mongodb.locks.flows import LOCKS
from goscope_django.mongodb.locks.provider import MongoDBLockProvider
from goscope_django.mongodb.single_flight.flows import FLIGHTS


class MongoDBAdapter:
    """Lock, circuit breaker, cache, checkpoint and idempotency providers on one database.

    ``db`` is a ``pymongo`` ``Database`` or ``AsyncDatabase`` (or mongomock's). A synchronous one serves the async
    methods as well: by an asynchronous client of its own for each event loop, or by ``async_db``.
    ``key_prefix`` stands in front of every stored key; ``default_lock_ttl`` is in milliseconds or a ``timedelta``.
    ``codec`` says how values are stored (without pickle if not given), ``sink`` is called with every ``Event``.

    ``lock``, ``circuit_breaker``, ``cache``, ``checkpoint`` and ``idempotency`` are the providers. Making an adapter
    sends nothing; it raises ``InvalidType`` or ``InvalidValue`` for a bad argument. Every method that asks the server
    raises ``StoreError`` if it fails or can't be reached.
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
        """An adapter on a store that is there already.

        :meta private:
        """
        adapter = cls.__new__(cls)
        adapter._compose(store, key_prefix, default_lock_ttl, codec)
        return adapter

    def connect(self) -> None:
        """``ensure_indexes``, and note that it is connected.

        Raises ``StoreUnavailable`` if the server can't be reached, ``IndexConflict`` if an index has other options.
        """
        self.ensure_indexes()
        self._connected = True

    async def aconnect(self) -> None:
        """Async version of ``connect``."""
        await self.aensure_indexes()
        self._connected = True

    def disconnect(self) -> None:
        """Note that it is no longer connected. The database's client belongs to whoever made it and stays open.

        Raises nothing and sends nothing.
        """
        self._connected = False

    async def adisconnect(self) -> None:
        """Async version of ``disconnect``."""
        self._connected = False

    def is_connected(self) -> bool:
        """Whether ``connect`` succeeded and ``disconnect`` was not called since. Raises nothing and sends nothing."""
        return self._connected

    async def ais_connected(self) -> bool:
        """Async version of ``is_connected``."""
        return self._connected

    def ping(self) -> None:
        """Reach the server: one round trip. Raises ``StoreUnavailable``."""
        self.store.run(ping)

    async def aping(self) -> None:
        """Async version of ``ping``."""
        await self.store.arun(ping)

    def ensure_indexes(self, *, repair: bool = False) -> list[IndexState]:
        """Make what indexes are missing; the states as they were found. Idempotent, drops nothing unless ``repair``.

        One round trip for each collection, and one for each index that is missing (two where it is replaced). Not
        atomic as a whole: each index is made for itself. Raises ``IndexConflict`` if an index exists with other
        options, without ``repair``.
        """
        return self.store.run(indexes.ensure, repair=repair)

    async def aensure_indexes(self, *, repair: bool = False) -> list[IndexState]:
        """Async version of ``ensure_indexes``."""
        return await self.store.arun(indexes.ensure, repair=repair)

    def check_indexes(self) -> list[IndexState]:
        """The states of all indexes; changes nothing. One round trip for each collection."""
        return self.store.run(indexes.check)

    async def acheck_indexes(self) -> list[IndexState]:
        """Async version of ``check_indexes``."""
        return await self.store.arun(indexes.check)

    def wipe(self) -> None:
        """Remove every document under this prefix, from all collections. For tests: there is no way back.

        One or two round trips for each collection, not atomic.
        """
        self.store.run(_wipe, self.key_prefix)

    async def awipe(self) -> None:
        """Async version of ``wipe``."""
        await self.store.arun(_wipe, self.key_prefix)


def _wipe(clock: Clock, prefix: str) -> Flow[None]:
    places = {
        LOCKS: [("key", f"{prefix}lock:")],
        CIRCUITS: [("key", f"{prefix}circuit:")],
        CACHE: [("key", f"{prefix}cache:")],
        CHECKPOINTS: [("taskId", prefix)],
        IDEMPOTENCY: [("key", prefix), ("key", claim_key(prefix))],
        FLIGHTS: [("_id", prefix)],
        TASKS: [("_id", prefix), ("_id.fence", prefix)],
        STATS: [("_id", prefix)],
    }
    for collection, ranges in places.items():
        for field, start in ranges:
            yield from ask(collection, "delete_many", {field: prefix_range(start)} if start else {})
