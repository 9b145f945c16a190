"""Transactions of MongoDB: how a flow begins and ends one, by ``ask("", "transaction")``, ``"commit"`` and ``"end"``.

A query takes part in a transaction by its ``session=``. Reads are of one snapshot and the commit has majority concern,
so what was committed is never taken back.
"""

from __future__ import annotations

from typing import Any

from pymongo import WriteConcern
from pymongo.read_concern import ReadConcern

from goscope_django.core.flow import Flow, invoke
from goscope_django.exceptions import ConfigurationError

_CONCERNS: dict[str, Any] = {"read_concern": ReadConcern("snapshot"), "write_concern": WriteConcern("majority")}


def begin(database: Any) -> Flow[Any]:
    """A new session with a transaction. Sends nothing, or a ping if no server is known yet.

    Raises ``ConfigurationError`` if the servers that were found can't carry out a transaction.
    """
    client = database.client
    if client.topology_description.topology_type_name == "Unknown":
        yield from invoke(database.command, "ping")
    servers = client.topology_description.server_descriptions().values()
    if servers and all(server.server_type_name == "Standalone" for server in servers):
        raise ConfigurationError("a transaction needs a replica set or a sharded cluster; this server is neither")
    session = client.start_session()
    yield from invoke(session.start_transaction, **_CONCERNS)
    return session


def commit(_: Any, session: Any) -> Flow[None]:
    """Commit the session's transaction."""
    yield from invoke(session.commit_transaction)


def end(_: Any, session: Any) -> Flow[None]:
    """End the session, and with it a transaction that was not committed."""
    yield from invoke(session.end_session)
