"""Locks across processes and machines: ``with lock("stock:42") as handle: ...``

``lock`` and ``locked`` are for use, ``HeldLock`` is the handle, ``LockBackend`` what ``GOSCOPE["LOCK_BACKEND"]`` needs.
``LockNotAcquired``, ``LockReentered`` and ``LockLost`` are what they raise.
"""

from __future__ import annotations

from goscope_django.exceptions import LockError, LockLost, LockNotAcquired, LockReentered
from goscope_django.locks.backends import LockBackend, MongoDBLockBackend
from goscope_django.locks.held import HeldLock
from goscope_django.locks.locking import Lock, backend, lock, locked

__all__ = [
    "HeldLock",
    "Lock",
    "LockBackend",
    "LockError",
    "LockLost",
    "LockNotAcquired",
    "LockReentered",
    "MongoDBLockBackend",
    "backend",
    "lock",
    "locked",
]
