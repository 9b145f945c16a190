"""Starting, joining, reviving and stopping the private ``mongod`` over a folder. The rules stand in ``embedded``."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from goscope_django.exceptions import GoscopeError, MongodError
from goscope_django.mongodb.embedded import process
from goscope_django.mongodb.embedded.folder import Folder
from goscope_django.mongodb.embedded.users import memberships

logger = logging.getLogger("goscope.embedded")

RETRY_AFTER = 3.0
"""Seconds between two attempts to start a server that died, whichever of its users makes them."""

_LEAVE_TIMEOUT = 10.0  # seconds that a leaving process waits for the lock, and then for the server to end in order


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of the server over a folder. ``uri``, ``pid`` and ``version`` are ``None`` while none runs.

    ``version`` is also ``None`` if the server does not answer. ``users`` are the ids of the processes that use it.
    """

    directory: Path
    running: bool
    pid: int | None
    uri: str | None
    version: str | None
    users: tuple[int, ...]
    log_path: Path


class Mongod:
    """One use of a running server. A context manager that releases; :func:`start` makes it.

    ``uri`` is a ``mongodb://`` URL without a database, for ``MongoClient`` and ``AsyncMongoClient``; it stays the same
    when the server over that folder is started again. ``pid`` is the server's process id when this use began.
    """

    def __init__(self, folder: Folder, *, uri: str, pid: int) -> None:
        """``start`` makes it.

        :meta private:
        """
        self.directory = folder.path
        self.log_path = folder.log
        self.uri = uri
        self.pid = pid
        self._folder = folder
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._released = False

    def __repr__(self) -> str:
        return f"<Mongod pid={self.pid} directory={str(self.directory)!r}>"

    def release(self) -> None:
        """End this use. The last use of the last process ends the server, which takes one to three seconds.

        Does nothing the second time, and in a forked child. Raises ``MongodError`` if the server can't be ended.
        """
        if self._owner != os.getpid():
            return
        with self._lock:
            if self._released:
                return
            self._released = True
        with self._folder.translated_errors():
            self._folder.leave(uses=1, timeout=_LEAVE_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def start(
    directory: Path | str, *, timeout: float = 30.0, extra_args: Sequence[str] = (), standalone: bool = False
) -> Mongod:
    """Start the server over ``directory``, or join the one that runs there; return once it accepts writes.

    ``timeout`` is in seconds and covers everything. The folder is made, with mode 0700, if it is missing; its data
    survive the server. ``extra_args`` are further arguments for ``mongod``, ignored when one runs already.
    ``standalone`` leaves the replica set out. Safe in any number of threads and processes at once. Raises
    ``ConfigurationError`` for a path that can't be used, and ``MongodError`` if there is no ``mongod``, or it does not
    start, with the reason from its log.
    """
    deadline = time.monotonic() + timeout
    folder = Folder(directory)
    with folder.translated_errors():
        folder.make()
        with folder.locked(timeout):
            folder.forget_the_dead()
            pid = _running(folder, deadline, extra_args, standalone=standalone, then=folder.join)
            return Mongod(folder, uri=folder.uri(), pid=pid)


def launch(directory: Path | str, *, timeout: float = 30.0) -> int:
    """Like :func:`start`, without being a user: the server runs on when this process ends. Its process id.

    It stays, whoever comes and leaves afterwards, until :func:`stop`. ``directory`` and ``timeout`` (seconds) are those
    of :func:`start`. Raises ``ConfigurationError`` and ``MongodError`` where that does.
    """
    folder = Folder(directory)
    with folder.translated_errors():
        folder.make()
        with folder.locked(timeout):
            folder.forget_the_dead()
            return _running(folder, time.monotonic() + timeout, (), standalone=False, then=folder.marks.keep)


def _running(
    folder: Folder, deadline: float, extra_args: Sequence[str], *, standalone: bool, then: Callable[[int], None]
) -> int:
    """The process id of the server, launched if need be; it accepts writes, and ``then(pid)`` was called."""
    while True:
        pid, launched = folder.find_or_launch(deadline, extra_args=extra_args, standalone=standalone)
        try:
            if folder.wait_until_writable(pid, deadline, standalone=standalone):
                folder.marks.stay_away(False)
                # While it started, its file may still have named one that was killed.
                pid = process.pid_in_lock_file(folder.data) or pid
                then(pid)
                return pid
            if launched:
                raise MongodError(f"mongod ended right after its start. {folder.log_lines()}")
        except BaseException:
            if launched and not folder.users():
                process.end(pid, folder.data, timeout=5.0)
            raise


def revive(directory: Path | str, *, timeout: float = 30.0) -> str:
    """Start the server over ``directory`` again if it died while this process was its user, or find it started again.

    Returns an empty text, or why it stays away: it was stopped on purpose, or its data are gone. ``timeout`` is in
    seconds. At most one launch in ``RETRY_AFTER`` seconds over all its users: a call in between does nothing. A server
    that was to stay (:func:`launch`) does so again. Safe in any number of threads and processes at once. Raises
    ``MongodError`` if it does not start, and ``ConfigurationError`` for a folder that can't be used any more.
    """
    deadline = time.monotonic() + timeout
    folder = Folder(directory)
    with folder.translated_errors():
        if not folder.path.is_dir():
            return "its folder was removed."
        folder.refuse_what_others_may_change()
        with folder.locked(timeout):
            if not folder.is_used_here():
                return ""
            living = folder.living_pid()
            if living is not None:
                if living:
                    folder.join(living, uses=0)
                    folder.open_if_writable()
                return ""
            reason = folder.marks.why_it_stays_away()
            if reason or folder.marks.tried_within(RETRY_AFTER):
                return reason
            stays = folder.marks.stays(process.pid_in_lock_file(folder.data))

            def join(launched: int) -> None:
                folder.join(launched, uses=0)
                if stays:
                    folder.marks.keep(launched)

            folder.marks.note_attempt()
            pid = _running(folder, deadline, (), standalone=False, then=join)
    logger.warning("The embedded mongod over %s had died and was started again (process %d).", folder.path, pid)
    return ""


def stop(directory: Path | str, *, timeout: float = 30.0) -> bool:
    """End the server over ``directory``, whoever uses it; ``False`` if none ran.

    It has ``timeout`` seconds to end in order, then it is killed (its data survive that too). Raises ``MongodError`` if
    that is not possible, and ``ConfigurationError`` for a path that can't be used.
    """
    folder = Folder(directory)
    with folder.translated_errors():
        if not folder.marks.was_used():
            return False
        with folder.locked(max(timeout, _LEAVE_TIMEOUT)):
            folder.forget_the_dead()
            folder.marks.stay_away(True)
            return folder.end(timeout)


def status(directory: Path | str) -> Status:
    """Tell what runs over ``directory``. Changes nothing, and asks the server for its version (at most 2 seconds).

    Raises ``ConfigurationError`` for a path that can't be used. A folder that does not exist is one where nothing runs.
    """
    folder = Folder(directory)
    with folder.translated_errors():
        pid = process.running_pid(folder.data)
        uri = version = None
        if pid is not None:
            uri = folder.uri()
            with suppress(OSError):
                version = folder.command({"buildInfo": 1}, timeout=2.0).get("version")
        return Status(folder.path, pid is not None, pid, uri, version, folder.users(), folder.log)


def _leave_all() -> None:
    for path in list(memberships):
        try:
            Folder(path).leave(uses=None, timeout=_LEAVE_TIMEOUT)
        except (GoscopeError, OSError) as error:  # the exit must go on, and its other folders too
            logger.warning("Could not leave the embedded mongod over %s: %s", path, error)


atexit.register(_leave_all)
