"""Work that has to wait for the end of a transaction. It learns of the commit, and of a rollback as well.

Rules of this file:

* ``done``, ``undone`` or ``unknown`` is called, one of them, once. ``done`` after the commit, also when another
  ``on_commit`` hook fails before ours. ``undone`` after the rollback: of the transaction, of a savepoint, by a failing
  commit, by closing the connection. ``unknown`` after a commit of which nobody can say whether it was stored. All run
  synchronously on the thread of the transaction; their errors are logged, since the transaction is over.
* Only a transaction that is open now counts: of SQL ``atomic()``, of ``django_mongodb_backend`` the driver's session.
* A hook that is called while it is being registered was called for want of a transaction, and is no commit.
* If a connection vanishes with its thread during a transaction, ``undone`` is called on a new thread.
* The transactions in which Django's ``TestCase`` wraps a test do not count. For transactions that a test opens inside,
  ``captureOnCommitCallbacks(execute=True)`` is the commit, as always with ``on_commit``; the end of the test is the
  rollback of the rest.
* A forked child commits nothing of its parent.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from goscope_django.process import backend, following

logger = logging.getLogger("goscope.transactions")


def in_transaction(using: str | None = None) -> bool:
    """Whether this thread is in a transaction: on the database ``using``, or on any if ``None``. Sends nothing."""
    return bool(_open(using))


def open_on(using: str | None = None) -> frozenset[str]:
    """The databases on which this thread is in a transaction: of all, or of ``using`` alone. Sends nothing."""
    return frozenset(one.alias for one in _open(using))


def after_commit(
    done: Callable[[], object],
    undone: Callable[[], object],
    using: str | None = None,
    *,
    unknown: Callable[[], object] | None = None,
) -> bool:
    """Call ``done`` after the transaction has been committed, ``undone`` if it is rolled back.

    ``unknown`` is called if nobody can say which of the two it was: a commit on ``django_mongodb_backend`` that was
    sent and not answered. Without it, ``undone`` is.

    ``using`` names the database whose transaction counts. With ``None`` all transactions of this thread count: after
    the last of them has ended, ``unknown`` is called if that is what one of them is, else ``undone`` if one was rolled
    back, else ``done``.

    Returns ``False``, and calls none, if there is no transaction. On SQL only ``atomic()`` counts as one, not
    ``set_autocommit(False)``; on ``django_mongodb_backend`` only its own ``atomic()``, since Django's does nothing
    there. A coroutine sees none, since Django's connections belong to synchronous code: use ``sync_to_async`` to get
    there. Sends nothing.
    """
    pending = _Pending(done, undone, undone if unknown is None else unknown)
    for connection in _open(using):
        pending.wait_for(connection)
    return pending.settled()


def _open(using: str | None) -> Sequence[BaseDatabaseWrapper]:
    found = [connections[using]] if using is not None else connections.all(initialized_only=True)
    return [one for one in found if _is_open(one)]


def _is_open(connection: BaseDatabaseWrapper) -> bool:
    if backend.is_mongodb(connection):
        return backend.open_session(connection) is not None
    return connection.in_atomic_block and not _of_a_test(connection)


def _of_a_test(connection: BaseDatabaseWrapper) -> bool:
    blocks: list[Any] = getattr(connection, "atomic_blocks", [])
    return bool(blocks) and all(getattr(block, "_from_testcase", False) for block in blocks)


class _Pending:
    """One call of ``after_commit``: waits for as many transactions as were open."""

    __slots__ = ("_done", "_lock", "_open", "_outcomes", "_pid", "_undone", "_unknown")

    def __init__(self, done: Callable[[], object], undone: Callable[[], object], unknown: Callable[[], object]) -> None:
        self._done = done
        self._undone = undone
        self._unknown = unknown
        self._open = 1  # for ``settled``: nothing is called before all are waited for
        self._outcomes: set[bool | None] = set()
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def wait_for(self, connection: BaseDatabaseWrapper) -> None:
        """Wait for the transaction of ``connection``, too, if it lets anybody wait."""
        with self._lock:
            self._open += 1
        if not following.follow(connection, self._ended):
            with self._lock:
                self._open -= 1

    def settled(self) -> bool:
        """All are waited for. ``False`` if that is none."""
        with self._lock:
            self._open -= 1
            waits, over = bool(self._open or self._outcomes), not self._open and bool(self._outcomes)
        if over:
            self._tell()
        return waits

    def _ended(self, committed: bool | None) -> None:
        with self._lock:
            self._open -= 1
            self._outcomes.add(committed)
            if self._open or self._pid != os.getpid():
                return
        self._tell()

    def _tell(self) -> None:
        if None in self._outcomes:
            what, follow = "commit whose outcome is unknown", self._unknown
        elif False in self._outcomes:
            what, follow = "rollback", self._undone
        else:
            what, follow = "commit", self._done
        try:
            follow()
        except Exception:
            logger.exception("what was to follow a %s failed", what)
