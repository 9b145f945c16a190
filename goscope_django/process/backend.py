"""The connection of ``django_mongodb_backend``, where MongoDB is the project's own database.

That package may be absent, so nothing is imported of it before a connection of it is at hand. Rules of this file:

* In a transaction means that the driver's session is in one. The backend's flag says less: after a commit that failed
  the session stays, without a transaction, and the next block would write outside of any.
* ``django.db.transaction.atomic()`` does nothing on such a connection, and is no transaction.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from goscope_django.mongodb.driver import commits

T = TypeVar("T")
_PAUSE: Final = 0.02
"""Seconds before the second attempt, at most."""


def is_mongodb(connection: Any) -> bool:
    """Whether ``connection`` is one of ``django_mongodb_backend``. Opens nothing."""
    return bool(connection.vendor == "mongodb")


def open_session(connection: Any) -> Any:
    """The driver's session of the transaction that is open on ``connection``; ``None`` if there is none."""
    session = getattr(connection, "session", None)
    return session if session is not None and session.in_transaction else None


def bury(connection: Any, session: Any) -> None:
    """End a session whose transaction is over, and take it off ``connection``: the next block gets a new one."""
    # Where the server can't be reached the session is of no use either.
    with contextlib.suppress(Exception):
        session.end_session()
    if connection.session is session:
        connection.session = None


def in_transaction_of(connection: Any, work: Callable[[], T], attempts: int = 1) -> T:
    """What ``work`` returns, done in a transaction of the backend: in the one that is open, else in one of its own.

    Its own is tried so many times as long as another transaction is in the way. Errors are raised as they are.
    """
    if open_session(connection) is not None:
        return work()
    _forget_dead(connection)
    if connection.in_atomic_block_mongo:
        # The transaction of the block has ended before the block. From here on it has one again.
        connection.start_transaction_mongo()
        return work()
    stored: list[bool] = []
    for attempt in range(1, attempts + 1):
        try:
            return _committed(connection, work, lambda: stored.append(True))
        except Exception as error:
            # After the commit it is somebody's hook that has failed: what is stored must not be done again.
            if stored or attempt == attempts or not commits.is_transient(error):
                raise
        time.sleep(_PAUSE * attempt * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def _committed(connection: Any, work: Callable[[], T], stored: Callable[[], object]) -> T:
    """What ``work`` returns, once it is committed; ``stored`` is called after the commit, before all hooks."""
    try:
        with block(connection):
            result = work()
            connection.run_on_commit.insert(0, ([], stored, False))
    except BaseException:
        # After a commit that failed the backend keeps what belonged to it: the session, and hooks of anybody.
        _forget_dead(connection)
        connection.rollback_mongo()
        raise
    return result


@contextlib.contextmanager
def block(connection: Any) -> Iterator[None]:
    """The backend's ``atomic()``, which works inside a block of Django's ``atomic()`` too.

    There the backend's own fails after its commit: hooks may not run inside of Django's block, which does nothing here.
    """
    from django_mongodb_backend.transaction import atomic

    outer = connection.in_atomic_block
    try:
        with atomic(connection.alias):
            try:
                yield
            finally:
                connection.in_atomic_block = False
    finally:
        connection.in_atomic_block = outer


def _forget_dead(connection: Any) -> None:
    if connection.session is not None:
        bury(connection, connection.session)
