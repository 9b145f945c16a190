"""Advisory locks on files, which the kernel drops when their holder dies.

Rules of this file:

- A lock belongs to an *open file description* (``flock``), so two threads of a process exclude each other as two
  processes do.
- A forked child shares its parent's descriptions. It closes its copies at once and never unlocks them. So the child
  does not keep a lock of a killed parent, and its end does not free a lock of a living one.
- A lock is handed over to a program that was started with the descriptor (:func:`hand_over`): it then holds it for as
  long as it lives, whatever becomes of its starter.
- Only the holder of a folder's main lock removes files that serve as locks.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from goscope_django.core.forking import at_fork
from goscope_django.exceptions import MongodError
from goscope_django.mongodb.embedded import files

if sys.platform != "win32":
    import fcntl

_POLL = 0.01  # seconds between two tries; flock has no time limit of its own

_guard = threading.RLock()  # held over open + remember, and over fork, so that a child knows of every descriptor
_descriptors: set[int] = set()


def _before_fork() -> None:
    _guard.acquire()


def _after_in_parent() -> None:
    _guard.release()


def _after_in_child() -> None:
    global _guard
    _guard = threading.RLock()
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


at_fork(before=_before_fork, parent=_after_in_parent, child=_after_in_child)


def acquire(path: Path, *, timeout: float) -> int | None:
    """Lock the file ``path``, made if it is missing, for this caller alone; return its descriptor for :func:`release`.

    ``timeout`` is in seconds; ``None`` is returned when it has passed. Raises ``MongodError`` where files can't be
    locked, and ``OSError`` when the file can't be opened.
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
        _close(descriptor)  # the folder was removed and made again meanwhile: others no longer see what is locked


def release(descriptor: int) -> None:
    """Unlock and close what :func:`acquire` returned. Does nothing in a forked child."""
    with _guard:
        if sys.platform != "win32" and descriptor in _descriptors:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        _close(descriptor)


def hand_over(descriptor: int) -> None:
    """Close what :func:`acquire` returned and unlock nothing: programs that were started with it go on holding it."""
    _close(descriptor)


def is_held(path: Path) -> bool:
    """Tell whether somebody, perhaps this very process, holds a lock on the file ``path``. A missing file is not held.

    Raises as :func:`acquire` does.
    """
    try:
        descriptor = _open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who look at the same moment don't take each other for the holder.
        return not _try_lock(descriptor, path, shared=True)
    finally:
        release(descriptor)


def _open(path: Path, flags: int) -> int:
    with _guard:
        descriptor = os.open(path, flags | files.NO_LINK, 0o600)
        _descriptors.add(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    with _guard:
        if descriptor in _descriptors:  # not so in a child that was forked while it was open
            _descriptors.discard(descriptor)
            os.close(descriptor)


def _try_lock(descriptor: int, path: Path, *, shared: bool = False) -> bool:
    if sys.platform == "win32":
        raise MongodError("Windows has no flock.")  # ``folder`` has refused before
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            return False
        raise MongodError(
            f"Can't lock {str(path)!r} ({error.strerror}): its file system seems to have no flock. "
            "Name a folder on a local file system."
        ) from error
    return True


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
