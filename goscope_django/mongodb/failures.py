"""What a driver's error means: whether a write may have happened, and which of our errors it becomes.

Rule of this file: it classifies; nothing is sent and nothing retried here.
"""

from __future__ import annotations

from typing import Any

from pymongo.errors import (
    AutoReconnect,
    ConnectionFailure,
    DuplicateKeyError,
    ExecutionTimeout,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
)

from goscope_django.exceptions import OutcomeUnknown, StoreError, StoreUnavailable
from goscope_django.mongodb.flow import Query

READS = frozenset(
    {"find_one", "find", "point", "recent", "aggregate", "confirm", "count_documents", "index_information", "command"}
)


def may_have_happened(error: PyMongoError) -> bool:
    """True if a write that failed so may have been applied, or may yet be."""
    if isinstance(error, (ServerSelectionTimeoutError, WaitQueueTimeoutError, DuplicateKeyError)):
        return False
    if isinstance(error, (AutoReconnect, WriteConcernError, ExecutionTimeout)):
        return True
    return bool(error.timeout) or error.has_error_label("RetryableWriteError")


def translated(error: PyMongoError, query: Query[Any] | None) -> StoreError:
    """Our error for one of the driver's, which becomes its cause. Names no host's credentials: drivers don't either."""
    what = f"{query.collection}.{query.method}" if query else "the server"
    if isinstance(error, (ServerSelectionTimeoutError, WaitQueueTimeoutError)):
        return StoreUnavailable(f"{what}: no server was reached: {str(error)[:300]}")
    if may_have_happened(error):
        reads = query is not None and query.method in READS
        kind: type[StoreError] = StoreUnavailable if reads else OutcomeUnknown
        return kind(f"{what}: {type(error).__name__}: {str(error)[:300]}")
    if isinstance(error, ConnectionFailure):
        return StoreUnavailable(f"{what}: {type(error).__name__}: {str(error)[:300]}")
    return StoreError(f"{what}: {type(error).__name__}: {str(error)[:300]}")
