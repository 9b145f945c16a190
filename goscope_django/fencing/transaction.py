"""``fenced_transaction``: a MongoDB transaction for the holder of a lock, refused if the lock was lost.

It joins a held lock and its transaction. Rules of this file:

* No renewal is on its way while the transaction runs: it would be a write to the document that the transaction writes.
* However the block ends, the renewals go on afterwards.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final

from goscope_django.core.flow import Flow, Pause, acarry_out, call, carry_out, perform
from goscope_django.exceptions import InvalidType, StaleFence
from goscope_django.locks import HeldLock
from goscope_django.mongodb.locks.fenced_transactions import FencedTransaction
from goscope_django.mongodb.locks.provider import MongoDBLockHandle

_LOOK: Final = 0.002
"""Seconds between two looks at whether a renewal is still on its way."""


class fenced_transaction:  # noqa: N801 - used like a function, as transaction.atomic is
    """``with fenced_transaction(handle) as session:`` a MongoDB transaction that needs the lock to commit.

    ``handle`` is what ``lock()`` yields. Write with ``session=session`` on collections of ``session.client``, or of
    ``client`` if you give one (of the deployment that the locks are in). The lock's own document is written last, in
    the same transaction: either the lock was ours until the commit, or nothing was written.

    Raises ``StaleFence`` if the lock was lost, the driver's error for conflicts of your own writes, ``OutcomeUnknown``
    if nobody can say whether it was committed, ``ConfigurationError`` on a standalone server. The transaction is
    atomic. The lease is renewed once at the beginning and then not until the end: the transaction must fit in it. Three
    round trips beside your own.
    """

    def __init__(self, handle: HeldLock, client: Any = None) -> None:
        inner = handle.inner if isinstance(handle, HeldLock) else None
        if not isinstance(inner, MongoDBLockHandle):
            raise InvalidType(f"handle={handle!r:.80}: the handle of a lock that is kept in MongoDB is needed")
        self._handle = handle
        self._transaction = FencedTransaction(inner, client)
        self._resume: Any = None

    def __enter__(self) -> Any:
        return carry_out(self._begin())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        carry_out(self._end(error))

    async def __aenter__(self) -> Any:
        return await acarry_out(self._begin())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await acarry_out(self._end(error))

    def _begin(self) -> Flow[Any]:
        handle = self._handle
        self._resume = handle.pause_renewal()
        try:
            while handle.sending():
                yield from perform(Pause(_LOOK))
            if not (yield from call(handle.extend, handle.aextend)):
                raise StaleFence(f"lock {handle.key!r}: it was lost before the transaction began")
            return (yield from self._transaction.begin())
        except BaseException:
            self._resume()
            raise

    def _end(self, error: BaseException | None) -> Flow[None]:
        try:
            yield from self._transaction.end(error)
        finally:
            self._resume()
