"""What an error says about a transaction of MongoDB: whether it was surely undone, and whether there can be any.

Rules of this file:

* The driver's labels come first, codes second. What neither of them settles is unknown.
* Whoever runs the transaction may have wrapped the driver's error: the chain of causes is searched for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pymongo.errors import InvalidOperation, OperationFailure, PyMongoError, WriteConcernError

_ILLEGAL_OPERATION: Final = 20
_NO_SUCH_TRANSACTION: Final = 251
_NOT_SUPPORTED_IN_TRANSACTION: Final = 263
_UNKNOWN: Final = "UnknownTransactionCommitResult"
_TRANSIENT: Final = "TransientTransactionError"


def surely_undone(error: BaseException) -> bool:
    """Whether a commit that raised ``error`` has certainly stored nothing. ``False``: it may have been stored."""
    failure = next(_of_the_driver(error), None)
    if failure is None or failure.has_error_label(_UNKNOWN):
        return False
    if failure.has_error_label(_TRANSIENT):
        return True
    if isinstance(failure, WriteConcernError):  # committed, and not acknowledged as was asked for
        return False
    if isinstance(failure, OperationFailure):
        # Without the label, the answer to a commit that was sent twice: the first may have been stored and rolled back.
        return failure.code != _NO_SUCH_TRANSACTION
    return isinstance(failure, InvalidOperation)  # the driver refused to send it


def is_transient(error: BaseException) -> bool:
    """Whether the whole transaction may be tried again, by the driver's label."""
    return any(failure.has_error_label(_TRANSIENT) for failure in _of_the_driver(error))


def has_no_transactions(error: BaseException) -> bool:
    """Whether ``error`` is how a standalone server refuses the first command of a transaction."""
    return any(
        isinstance(failure, OperationFailure)
        and failure.code in (_ILLEGAL_OPERATION, _NOT_SUPPORTED_IN_TRANSACTION)
        and "ransaction" in str(failure)
        for failure in _of_the_driver(error)
    )


def _of_the_driver(error: BaseException | None) -> Iterator[PyMongoError]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, PyMongoError):
            yield error
        error = error.__cause__
