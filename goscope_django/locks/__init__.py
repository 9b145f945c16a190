"""Locks across processes and machines: ``with lock("stock:42") as handle: ...``

Rules of this file: it ties together what decides elsewhere: the backend (is it free?), ``waiting`` (whose turn is it?),
``held_lock`` and ``renewal`` (is it still ours?), ``transactions`` (when may a decorator let go?).
"""

from __future__ import annotations

from goscope_django.locks.backends import (
    LockBackend,
    MongoDBLockBackend,
)
from goscope_django.locks.held import (
    HeldLock,
)
from goscope_django.locks.locking import (
    Lock,
    backend,
    lock,
    locked,
)

__all__ = [
    "HeldLock",
    "Lock",
    "LockBackend",
    "MongoDBLockBackend",
    "backend",
    "lock",
    "locked",
]
