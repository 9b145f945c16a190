"""Follows one transaction of a connection until it has ended, and says how. Django has ``on_commit`` and no more.

Rules of this file:

* Our work is an ``on_commit`` hook, in its place among the others. While a connection has such hooks, the methods that
  end its transaction or a savepoint are followed, on this connection object only.
* On SQL a hook that has left ``run_on_commit`` without a commit was rolled back. Django leaves it there if a savepoint
  made by hand is rolled back; what followed that savepoint is told by the number in the savepoint's name.
* On ``django_mongodb_backend`` it was not: there ``run_on_commit`` is also emptied by a block of Django's ``atomic()``
  that fails, which undoes nothing. What counts is how the driver's session ended.
* The backend keeps a session whose commit has failed, and our hooks with it. Both are taken off the connection, so that
  the next block has a transaction of its own, and no hook of the last one.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

from django.db.backends.base.base import BaseDatabaseWrapper

from goscope_django.mongodb.driver.commits import surely_undone
from goscope_django.process import backend

Ended = Callable[[bool | None], None]
"""Is told how a transaction ended: committed, rolled back, or ``None`` if nobody can say."""

_ATTRIBUTE: Final = "_goscope_watch"


def follow(connection: BaseDatabaseWrapper, ended: Ended) -> bool:
    """Call ``ended`` when the open transaction of ``connection`` has ended. ``False`` if nobody can wait for that."""
    if backend.is_mongodb(connection):
        _watch(connection, _SessionWatch).follow(ended)
        return True
    if connection.closed_in_transaction:  # the database has rolled it back, and Django's block has not ended yet
        ended(False)
        return True
    hook = _Hook(ended, savepoints=connection.savepoint_state)
    connection.on_commit(hook, robust=True)
    if not hook.registered():
        return False
    _watch(connection, _Watch).follow(hook)
    return True


class _Hook:
    """What waits for one transaction. Django calls it after the commit."""

    __slots__ = ("__weakref__", "_at_once", "_ended", "_registered", "committed", "over", "savepoints", "session")

    def __init__(self, ended: Ended, session: Any = None, savepoints: int = 0) -> None:
        self._ended = ended
        self.session = session
        self.savepoints = savepoints
        """How many savepoints the connection had made before."""
        self.committed: bool | None = False
        self.over = False
        self._registered = session is not None
        self._at_once = False

    def registered(self) -> bool:
        """From here on a call is the commit. ``False`` if it was called already, for want of a transaction."""
        self._registered = True
        self.over = self.over or self._at_once
        return not self._at_once

    def __call__(self) -> None:
        if self._registered:
            self.end(True)
        else:
            self._at_once = True

    def end(self, committed: bool | None) -> None:
        if not self.over:
            self.over = True
            self._ended(committed)

    def __del__(self) -> None:
        # The collector may run in any thread, even one that holds a lock of the driver: hence on a new thread.
        if not self.over and not sys.is_finalizing():
            self.over = True
            ended, committed = self._ended, self.committed
            with contextlib.suppress(RuntimeError):  # the interpreter ends
                _thread.start_new_thread(lambda: ended(committed), ())


class _Shadows:
    """Methods of one connection object that are followed for a while."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection
        self._own: dict[str, Callable[..., Any]] = {}

    def put(self, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Follow the method ``name`` by what ``make`` makes of it."""
        self._own[name] = make(getattr(self._connection, name))
        setattr(self._connection, name, self._own[name])

    def __bool__(self) -> bool:
        return bool(self._own)

    def remove(self) -> None:
        """Follow none of them any more."""
        for name, own in self._own.items():
            if self._connection.__dict__.get(name) is own:
                delattr(self._connection, name)
        self._own = {}
        self._connection.__dict__.pop(_ATTRIBUTE, None)


class _Watch:
    """Follows a connection to SQL while it has hooks of this module."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.hooks: list[_Hook] = []
        self.shadows = _Shadows(connection)

    def follow(self, hook: _Hook) -> None:
        self.hooks.append(hook)
        if not self.shadows:
            self.shadows.put("commit", self._commit)
            for name in ("rollback", "close"):
                self.shadows.put(name, self._end)
            self.shadows.put("savepoint_rollback", self._undo_savepoint)
            self.shadows.put("clean_savepoints", self._count_anew)
            self.shadows.put("run_and_clear_commit_hooks", self._after_hooks)

    def _commit(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def commit(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            for hook in self.waiting():
                hook.committed = True
            return result

        return commit

    def _end(self, original: Callable[..., Any], *, after_hooks: bool = False) -> Callable[..., Any]:
        def end(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            finally:
                self.settle(after_hooks=after_hooks)

        return end

    def _undo_savepoint(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def savepoint_rollback(sid: str, *args: Any, **kwargs: Any) -> Any:
            result = original(sid, *args, **kwargs)
            number = sid.rpartition("_x")[2]
            if number.isdecimal():
                undone = {id(hook) for hook in self.hooks if hook.savepoints >= int(number)}
                self.connection.run_on_commit = [
                    one for one in self.connection.run_on_commit if id(one[1]) not in undone
                ]
            return result

        return self._end(savepoint_rollback)

    def _count_anew(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def clean_savepoints(*args: Any, **kwargs: Any) -> Any:
            for hook in self.hooks:
                hook.savepoints = -1  # the numbers of later savepoints say nothing about it
            return original(*args, **kwargs)

        return clean_savepoints

    def _after_hooks(self, original: Callable[..., Any]) -> Callable[..., Any]:
        return self._end(original, after_hooks=True)

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
        gone = [hook for hook in self.hooks if hook not in waiting and (after_hooks or not hook.committed or hook.over)]
        self.hooks = [hook for hook in self.hooks if hook not in gone]
        if not self.hooks:
            self.shadows.remove()
        for hook in gone:
            hook.end(hook.committed)


class _SessionWatch:
    """Follows a connection of ``django_mongodb_backend`` while it has hooks of this module."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.hooks: list[_Hook] = []
        self.shadows = _Shadows(connection)

    def follow(self, ended: Ended) -> None:
        hook = _Hook(ended, self.connection.session)
        # Not by its on_commit, which asks the flag instead of the session, and may run the hook at once.
        self.connection.run_on_commit.append(([], hook, True))
        self.hooks.append(hook)
        if not self.shadows:
            self.shadows.put("commit_mongo", self._commit)
            self.shadows.put("rollback_mongo", self._undo)
            self.shadows.put("close_pool", self._undo)
            self.shadows.put("run_and_clear_commit_hooks", self._run_hooks)

    def _commit(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def commit_mongo(*args: Any, **kwargs: Any) -> Any:
            session = self.connection.session
            try:
                result = original(*args, **kwargs)
            except BaseException as error:
                self.end(session, self._outcome(session, error))
                raise
            self.end(session, True)
            return result

        return commit_mongo

    def _run_hooks(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def run_and_clear_commit_hooks(*args: Any, **kwargs: Any) -> Any:
            # The backend takes the session off the connection once it is committed, and runs the hooks then.
            for hook in self.hooks:
                hook.committed = hook.session is not self.connection.session
            return original(*args, **kwargs)

        return run_and_clear_commit_hooks

    def _undo(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def undo(*args: Any, **kwargs: Any) -> Any:
            session = self.connection.session
            was_open = backend.open_session(self.connection) is not None
            try:
                return original(*args, **kwargs)
            finally:
                # One that was ended behind the backend's back may have been committed.
                self.end(session, False if was_open else None)

        return undo

    def _outcome(self, session: Any, error: BaseException) -> bool | None:
        """How the transaction ended, since its ``commit_mongo`` raised ``error``."""
        if session is None or self.connection.session is not session:
            return True  # a hook has failed, after the commit
        return False if session.in_transaction or surely_undone(error) else None

    def end(self, session: Any, committed: bool | None) -> None:
        """The transaction of ``session`` has ended, and those that others have left open behind the backend's back."""
        over = [hook for hook in self.hooks if hook.session is session or not hook.committed]
        self.hooks = [hook for hook in self.hooks if hook not in over]
        if not self.hooks:
            self.shadows.remove()
        ours = {id(hook) for hook in over}
        self.connection.run_on_commit = [one for one in self.connection.run_on_commit or [] if id(one[1]) not in ours]
        if session is not None and self.connection.session is session:
            backend.bury(self.connection, session)
        for hook in over:
            hook.end(committed if hook.session is session else None)


W = TypeVar("W", _Watch, _SessionWatch)


def _watch(connection: BaseDatabaseWrapper, kind: type[W]) -> W:
    found = connection.__dict__.get(_ATTRIBUTE)
    if not isinstance(found, kind):
        found = kind(connection)
        setattr(connection, _ATTRIBUTE, found)
    return found
