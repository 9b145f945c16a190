"""What the replies hold to commands that are sent past the driver's models. No input and output here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from pymongo.errors import BulkWriteError, DuplicateKeyError, WriteConcernError, WriteError, WTimeoutError

DUPLICATE_KEY: Final = 11000
RETRYABLE_WRITE: Final = "RetryableWriteError"
_DUPLICATES: Final = frozenset({11000, 11001, 12582})
_TIMED_OUT: Final = 64


def row(reply: Mapping[str, Any]) -> Any:
    """The one document of a reply to ``find``, or ``None``."""
    rows = reply["cursor"]["firstBatch"]
    return rows[0] if rows else None


def recent(reply: Mapping[str, Any]) -> tuple[Any, datetime | None]:
    """The document, and the server's time of its last operation; ``None`` on a standalone server.

    A write moves that time on, and on an idle replica set the server itself does every ten seconds.
    """
    stamp = reply.get("operationTime")
    return row(reply), None if stamp is None else stamp.as_datetime()


def written(reply: Mapping[str, Any], *, many: bool = False) -> Mapping[str, Any]:
    """The reply to a write, if it was carried out and confirmed; otherwise the error that the driver would raise.

    With ``many`` that is a ``BulkWriteError``, which tells of each statement.
    """
    errors, concern = reply.get("writeErrors"), reply.get("writeConcernError")
    if not errors and not concern:
        return reply
    if many:
        raise BulkWriteError({"writeErrors": errors or [], "writeConcernErrors": [concern] if concern else []})
    labels = {"errorLabels": reply["errorLabels"]} if "errorLabels" in reply else {}
    if errors:
        first: dict[str, Any] = {**errors[0], **labels}
        kind = DuplicateKeyError if first.get("code") in _DUPLICATES else WriteError
        raise kind(first.get("errmsg", "a write failed"), first.get("code"), first)
    details: dict[str, Any] = {**(concern or {}), **labels}
    timed_out = details.get("code") == _TIMED_OUT or details.get("errInfo", {}).get("wtimeout")
    raise (WTimeoutError if timed_out else WriteConcernError)(
        details.get("errmsg", "a write was not confirmed"), details.get("code"), details
    )
