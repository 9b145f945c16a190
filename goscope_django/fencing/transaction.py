"""Fencing that is enforced: what a lock protects refuses whoever comes too late.

>>> with lock("stock:42") as handle:
...     fenced_update_one(stock, {"_id": 42}, {"$inc": {"left": -1}}, handle)   # a MongoDB document
...     item.save_fenced(handle)                                                # a row: ``class Item(FencedModel)``
...     with fenced_transaction(handle) as session: ...                         # many documents of a replica set

``StaleFence`` tells that the lock was taken over, and that nothing was written.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from goscope_django.exceptions import InvalidType, StaleFence
from goscope_django.mongodb.locks.fenced_transactions import FencedTransaction
from goscope_django.mongodb.locks.provider import MongoDBLockHandle

if TYPE_CHECKING:
    from goscope_django.locks.held import HeldLock


class fenced_transaction:  # noqa: N801 - used like a function, as transaction.atomic is
    """``with fenced_transaction(handle) as session:`` a MongoDB transaction that a takeover of the lock aborts.

    ``handle`` is what ``lock()`` yields. Write with ``session=session`` on collections of ``session.client``, or of
    ``client`` if you give one (of the deployment that the locks are in). The lock's own document is written last, in
    the same transaction: either the lock was ours until the commit, or nothing was written. Raises ``StaleFence`` in
    the second case, the driver's error for conflicts of your own writes, ``ConfigurationError`` on a standalone
    server. The lease is renewed once at the beginning and then not until the end: the transaction must fit in it. Two
    commands beside your own.
    """

    def __init__(self, handle: HeldLock, client: Any = None) -> None:
        inner = getattr(handle, "inner", None)
        if not isinstance(inner, MongoDBLockHandle):
            raise InvalidType(f"handle={handle!r:.80}: the handle of a lock that is kept in MongoDB is needed")
        self._handle = handle
        self._transaction = FencedTransaction(inner, client)
        self._resume: Any = None

    def _refused(self) -> StaleFence:
        return StaleFence(f"lock {self._handle.key!r}: it was lost before the transaction began")

    def __enter__(self) -> Any:
        self._resume = self._handle.pause_renewal()
        while self._handle.sending():
            time.sleep(0.002)
        try:
            if not self._handle.extend():
                raise self._refused()
            return self._transaction.__enter__()
        except BaseException:
            self._resume()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._transaction.__exit__(kind, error, trace)
        finally:
            self._resume()

    async def __aenter__(self) -> Any:
        self._resume = self._handle.pause_renewal()
        while self._handle.sending():  # noqa: ASYNC110 - it may be another thread's
            await asyncio.sleep(0.002)
        try:
            if not await self._handle.aextend():
                raise self._refused()
            return await self._transaction.__aenter__()
        except BaseException:
            self._resume()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._transaction.__aexit__(kind, error, trace)
        finally:
            self._resume()
