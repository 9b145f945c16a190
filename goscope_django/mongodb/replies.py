"""Reads that are sent past the driver's cursor: the command, and what its reply holds. No input and output here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any


def row(reply: Mapping[str, Any]) -> Any:
    """The one document of a reply to ``find``, or ``None``."""
    rows = reply["cursor"]["firstBatch"]
    return rows[0] if rows else None


def recent_command(collection: Any, test: Mapping[str, Any]) -> dict[str, Any]:
    """A read of one document that no failover takes back."""
    command = {"find": collection.name, "filter": test, "limit": 1, "singleBatch": True}
    return {**command, "readConcern": {"level": "majority"}}


def recent(reply: Mapping[str, Any]) -> tuple[Any, datetime | None]:
    """The document, and the server's time of its last operation; ``None`` on a standalone server.

    A write moves that time on, and on an idle replica set the server itself does every ten seconds.
    """
    stamp = reply.get("operationTime")
    return row(reply), None if stamp is None else stamp.as_datetime()
