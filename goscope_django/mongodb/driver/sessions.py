"""Transactions of MongoDB: the commands with which a flow begins and ends one. The executors inherit them.

A query takes part in a transaction by its ``session=``. Snapshot reads and a commit with majority concern, so that what
was committed is never taken back.
"""

from __future__ import annotations

from typing import Any

import pymongo
from pymongo import WriteConcern
from pymongo.read_concern import ReadConcern

from goscope_django.exceptions import ConfigurationError

_CONCERNS: dict[str, Any] = {"read_concern": ReadConcern("snapshot"), "write_concern": WriteConcern("majority")}


def _need_transactions(client: Any) -> None:
    """Raise unless the servers that ``client`` has found can carry out a transaction."""
    servers = client.topology_description.server_descriptions().values()
    if servers and all(server.server_type_name == "Standalone" for server in servers):
        raise ConfigurationError("a transaction needs a replica set or a sharded cluster; this server is neither")


def _unknown(client: Any) -> bool:
    return bool(client.topology_description.topology_type_name == "Unknown")


class SyncSessions:
    """Begins and ends transactions on ``pymongo.MongoClient``."""

    limit: float

    def _transaction(self, database: Any) -> Any:
        """A new session with a transaction. Sends nothing, or a ping if no server is known yet."""
        client = database.client
        if _unknown(client):
            database.command("ping")
        _need_transactions(client)
        session = client.start_session()
        session.start_transaction(**_CONCERNS)
        return session

    def _commit(self, _: Any, session: Any) -> None:
        with pymongo.timeout(self.limit):
            session.commit_transaction()

    def _end(self, _: Any, session: Any) -> None:
        """End the session, and with it a transaction that was not committed."""
        with pymongo.timeout(self.limit):
            session.end_session()


class AsyncSessions:
    """Begins and ends transactions on ``pymongo.AsyncMongoClient``."""

    limit: float

    async def _transaction(self, database: Any) -> Any:
        client = database.client
        if _unknown(client):
            await database.command("ping")
        _need_transactions(client)
        session = client.start_session()
        await session.start_transaction(**_CONCERNS)
        return session

    async def _commit(self, _: Any, session: Any) -> None:
        with pymongo.timeout(self.limit):
            await session.commit_transaction()

    async def _end(self, _: Any, session: Any) -> None:
        with pymongo.timeout(self.limit):
            await session.end_session()


class MockSessions:
    """Says that mongomock has none."""

    def _transaction(self, _: Any) -> Any:
        raise ConfigurationError("mongomock has no transactions: use a real server (embedded://) where one is needed")
