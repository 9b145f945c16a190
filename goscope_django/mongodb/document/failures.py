"""What a driver's error means: whether a write may have happened, and which of our errors it becomes.

Rule of this file: nothing is sent or retried here.
"""

from __future__ import annotations

import re
from typing import Any, Final

from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
)

from goscope_django.core.flow import Query
from goscope_django.exceptions import OutcomeUnknown, StoreError, StoreUnavailable

READS = frozenset(
    {
        *("find_one", "find", "point", "many", "recent", "time", "aggregate", "confirm", "count_documents"),
        *("index_information", "command"),
    }
)


_SHARD_KEY_NOT_FOUND: Final = 61
_TOO_LARGE: Final = frozenset({10334, 13548, 16493, 17260, 17419, 17420, 5_054_700})


def may_have_happened(error: PyMongoError) -> bool:
    """True if a write that failed with ``error`` may have been applied, or may still be."""
    if isinstance(error, (ServerSelectionTimeoutError, WaitQueueTimeoutError, DuplicateKeyError)):
        return False
    if isinstance(error, (AutoReconnect, WriteConcernError, ExecutionTimeout)):
        return True
    if isinstance(error, BulkWriteError) and error.details.get("writeConcernErrors"):
        return True
    return bool(error.timeout) or error.has_error_label("RetryableWriteError")


def of_the_driver(error: Exception) -> bool:
    """True if the driver raised it: then something may have been sent."""
    return isinstance(error, PyMongoError)


def too_large(error: Exception) -> bool:
    """True if a document was refused for its size, by the driver or by the server, alone or within a batch."""
    if isinstance(error, BulkWriteError):
        return any(one["code"] in _TOO_LARGE for one in error.details["writeErrors"])
    return isinstance(error, DocumentTooLarge) or (isinstance(error, OperationFailure) and error.code in _TOO_LARGE)


def no_shard_key(error: OperationFailure) -> bool:
    """True if a router did not know where to send an upsert, alone or within a batch. Such an upsert wrote nothing."""
    codes = {error.code}
    if isinstance(error, BulkWriteError):
        codes.update(one["code"] for one in error.details["writeErrors"])
    return _SHARD_KEY_NOT_FOUND in codes


def _said(error: PyMongoError) -> str:
    """The server's or the driver's message, without the command that it may quote, which holds values."""
    details: Any = getattr(error, "details", None)
    if isinstance(details, dict):
        for one in (*details.get("writeErrors", ()), *details.get("writeConcernErrors", ()), details):
            if isinstance(one, dict) and isinstance(one.get("errmsg"), str):
                return str(one["errmsg"])[:300]
    # If no server is found, PyMongo says all that it knows. A reader needs only the host and the reason.
    text = str(error).partition(", full error")[0].partition(", Timeout: ")[0]
    return re.sub(r" \(configured timeouts: [^)]*\)", "", text)[:300]


def translated(error: PyMongoError, query: Query[Any] | None) -> StoreError:
    """Our error for one of the driver's, which the caller chains. It holds no credentials and no stored value."""
    what = f"{query.collection}.{query.method}" if query and query.collection else "the server"
    if isinstance(error, (ServerSelectionTimeoutError, WaitQueueTimeoutError)):
        return StoreUnavailable(f"{what}: no server was reached: {_said(error)}")
    text = f"{what}: {type(error).__name__}: {_said(error)}"
    if may_have_happened(error):
        reads = query is not None and query.method in READS
        return StoreUnavailable(text) if reads else OutcomeUnknown(text)
    if isinstance(error, ConnectionFailure):
        return StoreUnavailable(text)
    return StoreError(text)
