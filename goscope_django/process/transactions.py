"""Work that has to wait for the end of a transaction. It learns of the commit, and of a rollback as well.

Rules of this file:

* Django has ``on_commit`` and nothing for a rollback. Our work is therefore an ``on_commit`` hook, in its place among
  the others. While a connection has such hooks, we follow the methods that end its transaction or a savepoint, on
  this connection object only. A hook that has left ``run_on_commit`` without a commit was rolled back.
* Either ``done`` or ``undone`` is called, once. ``done`` after the commit, also when another ``on_commit`` hook fails
  before ours. ``undone`` after the rollback: of the transaction, of a savepoint, by a failing commit, by closing the
  connection. Both run synchronously on the thread of the transaction; their errors are logged, since the transaction is
  over.
* If a connection vanishes with its thread during a transaction, ``undone`` is called on a new thread.
* The transactions in which Django's ``TestCase`` wraps a test do not count. For transactions that a test opens inside,
  ``captureOnCommitCallbacks(execute=True)`` is the commit, as always with ``on_commit``; the end of the test is the
  rollback of the rest.
* A forked child commits nothing of its parent.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("goscope.transactions")

_ENDS: Final = ("commit", "rollback", "savepoint_rollback", "close", "run_and_clear_commit_hooks")
_ATTRIBUTE: Final = "_goscope_watch"


def in_transaction(using: str | None = None) -> bool:
    """Whether this thread is inside ``atomic()``: on the database ``using``, or on any if ``None``. Sends nothing."""
    return bool(_open(using))


def open_on(using: str | None = None) -> frozenset[str]:
    """The databases on which this thread is inside ``atomic()``: of all, or of ``using`` alone. Sends nothing."""
    return frozenset(one.alias for one in _open(using))


def after_commit(done: Callable[[], object], undone: Callable[[], object], using: str | None = None) -> bool:
    """Call ``done`` after the transaction has been committed, ``undone`` if it is rolled back.

    ``using`` names the database whose transaction counts. With ``None`` all transactions of this thread count: ``done``
    is called after the last of them was committed, ``undone`` after the last has ended if any was rolled back.

    Returns ``False``, and calls neither, if there is no transaction. Only ``atomic()`` counts as one, not
    ``set_autocommit(False)``. A coroutine sees none, since Django's connections belong to synchronous code: use
    ``sync_to_async`` to get there. Sends nothing.
    """
    found = _open(using)
    if not found:
        return False
    pending = _Pending(done, undone, len(found))
    for connection in found:
        hook = _Hook(pending)
        connection.on_commit(hook, robust=True)
        _watch(connection).follow(hook)
    return True


def _open(using: str | None) -> Sequence[BaseDatabaseWrapper]:
    found = [connections[using]] if using is not None else connections.all(initialized_only=True)
    return [one for one in found if one.in_atomic_block and not _of_a_test(one)]


def _of_a_test(connection: BaseDatabaseWrapper) -> bool:
    blocks: list[Any] = getattr(connection, "atomic_blocks", [])
    return bool(blocks) and all(getattr(block, "_from_testcase", False) for block in blocks)


class _Pending:
    """One call of ``after_commit``: waits for as many transactions as were open."""

    __slots__ = ("_done", "_lock", "_open", "_pid", "_rolled_back", "_undone")

    def __init__(self, done: Callable[[], object], undone: Callable[[], object], transactions: int) -> None:
        self._done = done
        self._undone = undone
        self._open = transactions
        self._rolled_back = False
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def ended(self, *, committed: bool) -> None:
        with self._lock:
            self._open -= 1
            self._rolled_back = self._rolled_back or not committed
            if self._open or self._pid != os.getpid():
                return
        try:
            (self._undone if self._rolled_back else self._done)()
        except Exception:
            logger.exception("what was to follow a %s failed", "rollback" if self._rolled_back else "commit")


class _Hook:
    """The part of a ``_Pending`` that waits for one transaction. Django calls it after the commit."""

    __slots__ = ("__weakref__", "committed", "ended", "pending")

    def __init__(self, pending: _Pending) -> None:
        self.pending = pending
        self.committed = False
        self.ended = False

    def __call__(self) -> None:
        self.end(committed=True)

    def end(self, *, committed: bool) -> None:
        if not self.ended:
            self.ended = True
            self.pending.ended(committed=committed)

    def __del__(self) -> None:
        # The collector may run in any thread, even one that holds a lock of the driver: hence on a new thread.
        if not self.ended and not sys.is_finalizing():
            self.ended = True
            end, committed = self.pending.ended, self.committed
            with contextlib.suppress(RuntimeError):  # the interpreter ends
                _thread.start_new_thread(lambda: end(committed=committed), ())


class _Watch:
    """Follows one connection while it has hooks of this module."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.hooks: list[_Hook] = []
        self.own: dict[str, Callable[..., Any]] = {}

    def follow(self, hook: _Hook) -> None:
        self.hooks.append(hook)
        if not self.own:
            for name in _ENDS:
                self.own[name] = self._followed(name, getattr(self.connection, name))
                setattr(self.connection, name, self.own[name])

    def _followed(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def commit(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            for hook in self.waiting():
                hook.committed = True
            return result

        def end(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            finally:
                self.settle(after_hooks=name == "run_and_clear_commit_hooks")

        return commit if name == "commit" else end

    def waiting(self) -> list[_Hook]:
        """The hooks that Django still holds."""
        entries: list[Any] = self.connection.run_on_commit or []
        held = {id(entry[1]) for entry in entries}
        return [hook for hook in self.hooks if id(hook) in held]

    def settle(self, *, after_hooks: bool) -> None:
        """End the hooks that left Django's list, except those that Django is about to call.

        A hook may run transactions of its own.
        """
        waiting = self.waiting()
        gone = [
            hook for hook in self.hooks if hook not in waiting and (after_hooks or not hook.committed or hook.ended)
        ]
        self.hooks = [hook for hook in self.hooks if hook not in gone]
        if not self.hooks:
            self.leave()
        for hook in gone:
            hook.end(committed=hook.committed)

    def leave(self) -> None:
        for name, own in self.own.items():
            if self.connection.__dict__.get(name) is own:
                delattr(self.connection, name)
        self.own = {}
        self.connection.__dict__.pop(_ATTRIBUTE, None)


def _watch(connection: BaseDatabaseWrapper) -> _Watch:
    found = connection.__dict__.get(_ATTRIBUTE)
    if not isinstance(found, _Watch):
        found = _Watch(connection)
        setattr(connection, _ATTRIBUTE, found)
    return found
