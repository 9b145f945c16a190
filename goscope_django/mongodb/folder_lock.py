"""Advisory locks on files, which the kernel drops when their holder dies.

Rules of this module:

- A lock belongs to an *open file description* (``flock``), so two threads of a process exclude each other like two processes.
- A forked child shares its parent's descriptions. It closes its copies at once and never unlocks them: neither does the child
  hold what a killed parent held, nor does its end free what a living parent holds.
- Files of locks are only removed by whoever holds the folder's main lock.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from goscope_django.exceptions import MongodError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_POLL = 0.01  # seconds between two tries; flock has no time limit of its own

_guard = threading.RLock()  # held over open + remember, and over fork, so that a child knows of every descriptor
_descriptors: set[int] = set()


def _forget_in_child() -> None:
    global _guard
    _guard = threading.RLock()
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    # The lambdas look the guard up when they run: the child replaces it.
    os.register_at_fork(
        before=lambda: _guard.acquire(), after_in_parent=lambda: _guard.release(), after_in_child=_forget_in_child
    )


def _open(path: Path, flags: int) -> int:
    with _guard:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        _descriptors.add(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    with _guard:
        if descriptor in _descriptors:  # not so in a child that was forked while it was open
            _descriptors.discard(descriptor)
            os.close(descriptor)


def _try_lock(descriptor: int, path: Path, *, shared: bool = False) -> bool:
    if fcntl is None:
        raise MongodError("The embedded mongod needs flock, which this platform lacks: use a mongodb:// URL instead.")
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
            return False
        raise MongodError(
            f"Can't lock {str(path)!r} ({error.strerror}): its file system has no flock. "
            "Name a folder on a local file system."
        ) from error
    return True


def acquire(path: Path, *, timeout: float) -> int | None:
    """Lock the file ``path``, made if it is missing, for this caller alone; return its descriptor for :func:`release`.

    ``timeout`` is in seconds; ``None`` is returned when it has passed. Raises ``MongodError`` where files can't be locked, and
    ``OSError`` when the file can't be opened.
    """
    deadline = time.monotonic() + timeout
    while True:
        descriptor = _open(path, os.O_RDWR | os.O_CREAT)
        try:
            while not _try_lock(descriptor, path):
                if time.monotonic() >= deadline:
                    _close(descriptor)
                    return None
                time.sleep(_POLL)
            if _is_same_file(descriptor, path):
                return descriptor
        except BaseException:
            _close(descriptor)
            raise
        _close(descriptor)  # the folder was removed and made again meanwhile: what is locked is no longer what others see


def release(descriptor: int) -> None:
    """Unlock and close what :func:`acquire` returned. Does nothing in a forked child."""
    with _guard:
        if fcntl is not None and descriptor in _descriptors:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        _close(descriptor)


@contextmanager
def held(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold the lock on ``path`` over a block; ``timeout`` in seconds. Raises ``MongodError`` if it can't be had in time."""
    descriptor = acquire(path, timeout=timeout)
    if descriptor is None:
        raise MongodError(f"{str(path)!r} stayed locked by another process for {timeout:g} seconds.")
    try:
        yield
    finally:
        release(descriptor)


def is_held(path: Path) -> bool:
    """Tell whether somebody, perhaps this very process, holds a lock on the file ``path``. A missing file is not held."""
    try:
        descriptor = _open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who look at the same moment don't take each other for the holder.
        return not _try_lock(descriptor, path, shared=True)
    finally:
        release(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
