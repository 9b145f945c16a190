"""What must not outrun a commit: told of the commit, and of the rollback as well.

Rules of this file:

* Django has ``on_commit`` and nothing for a rollback. A deferred piece of work is therefore a hook in ``on_commit``, in
  its place among the others; while there are hooks of ours on a connection, the methods with which its transaction or a
  savepoint ends are followed, on this very connection object only. What has left ``run_on_commit`` without a commit was
  rolled back.
* ``done`` is called once after the commit, also when another ``on_commit`` hook fails before ours has its turn; else
  ``undone`` is, after the rollback (of the transaction, of a savepoint, by a failing commit, by closing the
  connection). Both run on the thread of the transaction, synchronously; an error of theirs is logged, for the
  transaction is over.
* Should a connection vanish with its thread in mid-transaction, ``undone`` is called on a thread of its own.
* The transactions in which Django's ``TestCase`` wraps a test do not count. Those that a test opens inside are
  committed, as ever with ``on_commit``, by ``captureOnCommitCallbacks(execute=True)``, and rolled back at the latest
  with the test.
* A forked child commits nothing of its parent's.
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

    ``using`` names the database whose transaction counts. With ``None`` all that this thread has open do: ``done`` is
    called after the last of them was committed, ``undone`` after the last has ended if any was rolled back.

    Returns ``False``, and calls neither, if there is no transaction: the caller goes on itself. A transaction without
    ``atomic()`` (``set_autocommit(False)``) is none in this sense. A coroutine sees none: Django's connections belong
    to synchronous code, and ``sync_to_async`` leads to where they are.
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
    """The share of one transaction in a ``_Pending``. Being called means: committed."""

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
        # The collector may run at any point of any thread, maybe one that holds a lock of the driver: hence not here.
        if not self.ended and not sys.is_finalizing():
            self.ended = True
            end, committed = self.pending.ended, self.committed
            with contextlib.suppress(RuntimeError):  # the interpreter ends
                _thread.start_new_thread(lambda: end(committed=committed), ())


class _Watch:
    """Follows one connection for as long as there are hooks of ours on it."""

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
        """End what left Django's list, but for what Django will call next: a hook may run transactions of its own."""
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
