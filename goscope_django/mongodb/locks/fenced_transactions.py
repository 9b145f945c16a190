"""A transaction that commits only if its lock was not taken over meanwhile.

Rules of this file:

* The last write before the commit is on the lock's own document, by claim and while the lease lasts. Whoever took the
  lock over has written that document: if before the transaction's snapshot, the filter finds nothing (``StaleFence``);
  if after it, the server refuses the write (a write conflict) and the transaction is aborted. From that write on a
  takeover waits for us.
* That write comes last, so that a holder that falls asleep in mid-transaction does not keep the next one waiting.
* A renewal is a write to that document as well. The caller lets none happen while the transaction runs.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final

from pymongo import AsyncMongoClient, MongoClient, ReadPreference, WriteConcern
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from goscope_django.core.flow import Command, Flow, Query, arun, ask, run
from goscope_django.exceptions import ConfigurationError, OutcomeUnknown, StaleFence
from goscope_django.mongodb.document.failures import translated
from goscope_django.mongodb.document.lease import Lease
from goscope_django.mongodb.driver.execute import AsyncExecutor, SyncExecutor
from goscope_django.mongodb.locks.flows import LEASE, LOCKS
from goscope_django.mongodb.locks.provider import MongoDBLockHandle

_NO_TRANSACTIONS: Final = 20
_CONFLICT: Final = 112
_COMMITS: Final = 3
_OPTIONS: Final[dict[str, Any]] = {
    "read_concern": ReadConcern("snapshot"),
    "write_concern": WriteConcern("majority"),
    "read_preference": ReadPreference.PRIMARY,
}


def _finish(clock: Any, lease: Lease, key: str, claim: str, session: Any) -> Flow[None]:
    """Touch the lock, then commit."""
    test = lease.mine(clock, key=key, claim=claim)
    touched = yield from ask(LOCKS, "update_one", test, {"$inc": {"fenced": 1}}, session=session)
    if not touched.matched_count:
        raise StaleFence(f"lock {key!r}: it was lost before the transaction was committed; nothing was written")
    for attempt in range(_COMMITS):
        try:
            yield from ask("session", "commit_transaction")
        except PyMongoError as error:
            # The driver's advice: a commit whose outcome is unknown may be sent again.
            if not error.has_error_label("UnknownTransactionCommitResult"):
                raise
            if attempt + 1 == _COMMITS:
                raise OutcomeUnknown(
                    f"lock {key!r}: whether the transaction was committed is unknown: {error}"
                ) from error
        else:
            return


class FencedTransaction:
    """A context manager of both kinds that yields a driver's session in a transaction. Made for one block.

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

    def _begin(self, executor: Any, kind: type) -> Any:
        if not isinstance(executor, (SyncExecutor, AsyncExecutor)):
            raise ConfigurationError("fenced_transaction: mongomock has no transactions; a replica set is needed")
        client: Any = executor.database.client if self._client is None else self._client
        self._clock = executor.clock
        self._locks = client[executor.database.name][LOCKS]
        if not isinstance(client, kind):
            raise ConfigurationError(
                f"fenced_transaction: client={type(client).__name__}: a {kind.__name__} is needed here"
            )
        return client

    def _command(self, command: Command[Any]) -> Any:
        assert isinstance(command, Query)
        place = self._session if command.collection == "session" else self._locks
        return getattr(place, command.method)(*command.args, **command.kwargs)

    def _flow(self) -> Flow[None]:
        handle = self._handle
        key = handle.provider.flows.prefix + handle.key
        return _finish(self._clock, LEASE, key, handle.claim, self._session)

    def _explained(self, error: PyMongoError, *, held: bool) -> Exception:
        """What a failed commit means."""
        if isinstance(error, OperationFailure) and error.code == _NO_TRANSACTIONS:
            return ConfigurationError(
                "fenced_transaction: a standalone server has no transactions; a replica set is needed"
            )
        if not held:
            return StaleFence(f"lock {self._handle.key!r}: it was taken over before the commit; nothing was written")
        if isinstance(error, OperationFailure) and error.code == _CONFLICT:
            return error
        return translated(error, None)

    def __enter__(self) -> Any:
        client = self._begin(self._handle.provider.store.executor(), MongoClient)
        self._session = client.start_session()
        self._session.start_transaction(**_OPTIONS)
        return self._session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session = self._session
        try:
            if error is not None:
                session.abort_transaction()
                self._rethrow(error)
                return
            try:
                run(self._flow(), self._command)
            except PyMongoError as failure:
                if session.in_transaction:
                    session.abort_transaction()
                raise self._explained(failure, held=self._handle.is_valid()) from failure
        finally:
            session.end_session()

    def _rethrow(self, error: BaseException) -> None:
        if isinstance(error, OperationFailure) and error.code == _NO_TRANSACTIONS:
            raise self._explained(error, held=True) from error

    async def __aenter__(self) -> Any:
        client = self._begin(self._handle.provider.store.aexecutor(), AsyncMongoClient)
        self._session = client.start_session()
        await self._session.start_transaction(**_OPTIONS)
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session = self._session
        try:
            if error is not None:
                await session.abort_transaction()
                self._rethrow(error)
                return
            try:
                await arun(self._flow(), self._command)
            except PyMongoError as failure:
                if session.in_transaction:
                    await session.abort_transaction()
                raise self._explained(failure, held=await self._handle.ais_valid()) from failure
        finally:
            await session.end_session()
