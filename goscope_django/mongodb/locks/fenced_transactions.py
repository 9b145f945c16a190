"""A transaction that commits only if its lock was not taken over meanwhile.

Its beginning and its end are flows, which ``goscope_django.fencing`` makes a context manager of. Rules of this file:

* The last write before the commit is on the lock's own document, by claim and while the lease lasts. Whoever took the
  lock over has written that document. If that was before the transaction's snapshot, the filter finds nothing
  (``StaleFence``). If it was after it, the server refuses the write (a write conflict) and the transaction is aborted.
  From that write on a takeover waits for us.
* That write comes last, so that a holder that falls asleep in mid-transaction does not keep the next one waiting.
* A renewal is a write to that document, too. The caller lets none happen while the transaction runs.
"""

from __future__ import annotations

from typing import Any, Final, TypeGuard

from pymongo import AsyncMongoClient, MongoClient, ReadPreference, WriteConcern
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from goscope_django.core.flow import Flow, call, invoke
from goscope_django.exceptions import ConfigurationError, OutcomeUnknown, StaleFence
from goscope_django.mongodb.document.failures import NO_TRANSACTIONS, WRITE_CONFLICT, cleaned, means, translated
from goscope_django.mongodb.driver.execute import AsyncExecutor, SyncExecutor
from goscope_django.mongodb.locks.flows import LEASE, LOCKS
from goscope_django.mongodb.locks.provider import MongoDBLockHandle

_COMMITS: Final = 3
_OPTIONS: Final[dict[str, Any]] = {
    "read_concern": ReadConcern("snapshot"),
    "write_concern": WriteConcern("majority"),
    "read_preference": ReadPreference.PRIMARY,
}


class FencedTransaction:
    """The transaction of one block, for the holder of a lock.

    ``client`` is the client that the session belongs to (the lock's own if ``None``). It must lead to the deployment
    that the lock is in, or every commit is refused.
    """

    def __init__(
        self, handle: MongoDBLockHandle, client: MongoClient[Any] | AsyncMongoClient[Any] | None = None
    ) -> None:
        self._handle = handle
        self._client: Any = client
        self._session: Any = None
        self._locks: Any = None
        self._clock: Any = None

    def begin(self) -> Flow[Any]:
        """A session of the driver in a transaction. Sends nothing yet."""
        store = self._handle.provider.store
        executor, kind = yield from call(
            lambda: (store.executor(), MongoClient), lambda: (store.aexecutor(), AsyncMongoClient)
        )
        if not isinstance(executor, (SyncExecutor, AsyncExecutor)):
            raise ConfigurationError("fenced_transaction: mongomock has no transactions; a replica set is needed")
        client: Any = executor.database.client if self._client is None else self._client
        if not isinstance(client, kind):
            raise ConfigurationError(
                f"fenced_transaction: client={type(client).__name__}: a {kind.__name__} is needed here"
            )
        self._clock = executor.clock
        self._locks = client[executor.database.name][LOCKS]
        self._session = client.start_session()
        yield from invoke(self._session.start_transaction, **_OPTIONS)
        return self._session

    def end(self, error: BaseException | None) -> Flow[None]:
        """Commit if the lock is still held; abort if the block raised ``error``. Two commands for a commit."""
        handle, session = self._handle, self._session
        try:
            if error is not None:
                yield from invoke(session.abort_transaction)
                if _has_no_transactions(error):
                    raise self._explained(error, held=True) from error
                return
            try:
                yield from self._commit()
            except PyMongoError as failure:
                if session.in_transaction:
                    yield from invoke(session.abort_transaction)
                held = yield from call(handle.is_valid, handle.ais_valid)
                raise self._explained(failure, held=held) from failure
        finally:
            yield from invoke(session.end_session)

    def _commit(self) -> Flow[None]:
        """Write to the lock's document, then commit."""
        handle = self._handle
        full = handle.provider.flows.prefix + handle.key
        test = LEASE.mine(self._clock, key=full, claim=handle.claim)
        touched = yield from invoke(self._locks.update_one, test, {"$inc": {"fenced": 1}}, session=self._session)
        if not touched.matched_count:
            raise StaleFence(f"lock {full!r}: it was lost before the transaction was committed; nothing was written")
        for attempt in range(_COMMITS):
            try:
                yield from invoke(self._session.commit_transaction)
            except PyMongoError as error:
                # The driver's advice: a commit whose outcome is unknown may be sent again.
                if not error.has_error_label("UnknownTransactionCommitResult"):
                    raise
                if attempt + 1 == _COMMITS:
                    raise OutcomeUnknown(
                        f"lock {full!r}: whether the transaction was committed is unknown: {cleaned(error)}"
                    ) from error
            else:
                return

    def _explained(self, error: PyMongoError, *, held: bool) -> Exception:
        """What a failed commit means. ``error``, which is chained, is cleaned of what it quotes."""
        cleaned(error)
        if _has_no_transactions(error):
            return ConfigurationError(
                "fenced_transaction: a standalone server has no transactions; a replica set is needed"
            )
        if not held:
            return StaleFence(f"lock {self._handle.key!r}: it was taken over before the commit; nothing was written")
        if means(error, WRITE_CONFLICT):
            return error
        return translated(error, None)


def _has_no_transactions(error: BaseException) -> TypeGuard[OperationFailure]:
    return means(error, NO_TRANSACTIONS)
