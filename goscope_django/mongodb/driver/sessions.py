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


def require(database: Any) -> Flow[None]:
    """Raise ``ConfigurationError`` if the servers that were found can't carry out a transaction.

    Sends nothing, or a ping if no server is known yet.
    """
    client = database.client

    def kinds() -> set[str]:
        return {one.server_type_name for one in client.topology_description.server_descriptions().values()}

    if kinds() <= {"Unknown"}:
        yield from invoke(database.command, "ping")
    if kinds() == {"Standalone"}:
        raise ConfigurationError(
            "a transaction needs a replica set or a sharded cluster, and this is a standalone server; a replica set of "
            "one member is enough"
        )


def begin(database: Any) -> Flow[Any]:
    """A new session with a transaction. Sends nothing, or a ping if no server is known yet.

    Raises ``ConfigurationError`` if the servers that were found can't carry out a transaction.
    """
    yield from require(database)
    session = database.client.start_session()
    yield from invoke(session.start_transaction, **_CONCERNS)
    return session


def commit(_: Any, session: Any) -> Flow[None]:
    """Commit the session's transaction."""
    yield from invoke(session.commit_transaction)


def end(_: Any, session: Any) -> Flow[None]:
    """End the session, and with it a transaction that was not committed."""
    yield from invoke(session.end_session)
