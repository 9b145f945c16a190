"""The private ``mongod`` of ``embedded://``: started on demand, shared by the processes that name the same folder.

In the folder stand ``data/`` (the database), ``mongod.log``, ``lock``, ``socket`` (a text file: where the socket is) and
``users/``, one file per process that uses the server.

Rules of this module:

- Everything that starts or ends the server, or changes who uses it, happens under the lock on ``lock``. So a process that joins
  while the last one leaves gets either the living server or a new one, never a dying one.
- A user is a process that holds the lock on its own file in ``users/``. The kernel drops it when the process dies, so a killed
  user is no user, and a process id that was given out again can't be mistaken for one.
- A forked child is no user, and its end changes nothing, until it calls :func:`start` itself.
- The last user that leaves in order ends the server: through ``Mongod.release`` or at the exit of the interpreter, which
  covers Ctrl-C. A process that dies by a signal (SIGTERM, unless it is turned into ``SystemExit`` as ``runserver`` and
  gunicorn do, and SIGKILL) leaves the server running for the next one to join, or for :func:`stop`.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from goscope_django.exceptions import ConfigurationError, MongodError
from goscope_django.mongodb import folder_lock, mongod_process

logger = logging.getLogger("goscope_django.embedded")

_ALREADY_INITIALIZED = 23  # error code of replSetInitiate
_LEAVE_TIMEOUT = 10.0  # seconds; how long an exiting process waits for the lock, and then for the server to end in order


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
    """One use of a running server. A context manager that releases.

    ``uri`` is a ``mongodb://`` URL without a database, for ``MongoClient`` and ``AsyncMongoClient``; ``pid`` the server's
    process id when this use began; ``log_path`` its log.
    """

    def __init__(self, folder: _Folder, *, uri: str, pid: int) -> None:
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
        """End this use. The last use of the last process ends the server, which takes about a second.

        Does nothing the second time, and in a forked child. Raises ``MongodError`` if the server can't be ended.
        """
        with self._lock:
            if self._released or self._owner != os.getpid():
                return
            self._released = True
        self._folder.leave(uses=1, timeout=_LEAVE_TIMEOUT)

    def __enter__(self) -> Mongod:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def start(
    directory: Path | str, *, timeout: float = 30.0, extra_args: Sequence[str] = (), standalone: bool = False
) -> Mongod:
    """Start the server over ``directory``, or join the one that runs there; return once it accepts writes.

    ``timeout`` is in seconds and covers everything. The folder is made, with mode 0700, if it is missing; its data survive the
    server. ``extra_args`` are further arguments for ``mongod``, ignored when one runs already. ``standalone`` leaves
    the replica set out. Safe in any number of threads and processes at once. Raises ``ConfigurationError`` for
    a path that can't be used, and ``MongodError`` if there is no ``mongod``, or it does not start, with the reason from its log.
    """
    deadline = time.monotonic() + timeout
    folder = _Folder(directory)
    folder.make()
    with folder.locked(timeout):
        folder.forget_the_dead()
        pid, launched = folder.find_or_launch(deadline, extra_args=extra_args, standalone=standalone)
        try:
            uri = folder.wait_until_writable(pid, deadline, standalone=standalone)
            folder.join()
        except BaseException:
            if launched and not folder.users():
                mongod_process.end(pid, folder.data, timeout=5.0)
            raise
        return Mongod(folder, uri=uri, pid=pid)


def stop(directory: Path | str, *, timeout: float = 30.0) -> bool:
    """End the server over ``directory``, whoever uses it; ``False`` if none ran.

    It has ``timeout`` seconds to end in order, then it is killed (its data survive that too). Raises ``MongodError`` if that
    is not possible, and ``ConfigurationError`` for a path that can't be used.
    """
    folder = _Folder(directory)
    if not folder.path.is_dir():
        return False
    with folder.locked(timeout):
        folder.forget_the_dead()
        return folder.end(timeout)


def status(directory: Path | str) -> Status:
    """Tell what runs over ``directory``. Changes nothing, and asks the server for its version (at most 2 seconds).

    Raises ``ConfigurationError`` for a path that can't be used. A folder that does not exist is one where nothing runs.
    """
    folder = _Folder(directory)
    pid = mongod_process.running_pid(folder.data)
    uri = version = None
    if pid is not None:
        uri = _uri(folder.socket_path())
        with suppress(PyMongoError), _client(uri, 2.0) as client:
            version = str(client.admin.command("buildInfo")["version"])
    return Status(folder.path, pid is not None, pid, uri, version, folder.users(), folder.log)


# ------------------------------------------------------------------------------------------------------- the folder


@dataclass(slots=True)
class _Membership:
    """This process's use of one folder: its file in ``users/``, locked, and how many ``Mongod`` objects count on it."""

    file: Path
    descriptor: int
    pid: int
    uses: int = 0


_memberships: dict[Path, _Membership] = {}  # changed only under the folder's lock


class _Folder:
    """The paths in one folder and what is done with them. Methods that change anything need :meth:`locked`."""

    def __init__(self, directory: Path | str) -> None:
        text = os.fspath(directory)
        if not text or "\0" in text:
            raise ConfigurationError(f"{text!r} can't be the folder of an embedded mongod: it must be a path.")
        self.path = Path(os.path.realpath(text))
        if self.path.parent == self.path:
            raise ConfigurationError(f"{text!r} can't be the folder of an embedded mongod: name a folder of its own.")
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise ConfigurationError(f"{str(self.path)!r} can't be the folder of an embedded mongod: it is not a folder.")
        if (self.path / "WiredTiger").exists():
            raise ConfigurationError(f"{str(self.path)!r} holds the data of another mongod: name a folder of its own.")
        self.data = self.path / "data"
        self.log = self.path / "mongod.log"

    def make(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("data", "users"):
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"{str(self.path)!r} can't be the folder of an embedded mongod: {error.strerror} ({error.filename!r})."
            ) from error

    @contextmanager
    def locked(self, timeout: float) -> Iterator[None]:
        try:
            descriptor = folder_lock.acquire(self.path / "lock", timeout=timeout)
        except OSError as error:
            raise ConfigurationError(
                f"{str(self.path)!r} can't be the folder of an embedded mongod: {error.strerror} ({error.filename!r})."
            ) from error
        if descriptor is None:
            raise MongodError(f"{str(self.path)!r} stayed locked by another process for {timeout:g} seconds.")
        try:
            yield
        finally:
            folder_lock.release(descriptor)

    # ---- who uses it

    def _user_files(self) -> Iterator[Path]:
        with suppress(FileNotFoundError, PermissionError):
            yield from (self.path / "users").iterdir()

    def users(self) -> tuple[int, ...]:
        """The process ids of the living users, this process included if it is one."""
        alive = (file.name.partition(".")[0] for file in self._user_files() if folder_lock.is_held(file))
        return tuple(sorted(int(pid) for pid in alive if pid.isdigit()))

    def forget_the_dead(self) -> None:
        for file in self._user_files():
            if not folder_lock.is_held(file):
                file.unlink(missing_ok=True)

    def join(self) -> None:
        membership = _memberships.get(self.path)
        if membership is None or not membership.file.exists():  # somebody removed the folder under us
            file = self.path / "users" / f"{os.getpid()}.{secrets.token_hex(4)}"
            descriptor = folder_lock.acquire(file, timeout=5.0)
            if descriptor is None:
                raise MongodError(f"{str(file)!r} stayed locked by another process.")
            pid = mongod_process.pid_in_lock_file(self.data) or 0
            membership = _memberships[self.path] = _Membership(file, descriptor, pid)
        membership.pid = mongod_process.pid_in_lock_file(self.data) or 0
        membership.uses += 1

    def leave(self, *, uses: int | None, timeout: float) -> None:
        """Take back so many uses of this process (``None``: all); without any left, it is no user any more."""
        membership = _memberships.get(self.path)
        if membership is None:
            return
        if not self.path.is_dir():  # removed with a server running in it: nobody else can find that server any more
            self._drop(membership)
            mongod_process.end(membership.pid, self.data, timeout=0)
            return
        with self.locked(timeout):
            membership.uses = 0 if uses is None else membership.uses - uses
            if membership.uses > 0:
                return
            self._drop(membership)
            self.forget_the_dead()
            if not self.users():
                self.end(timeout)

    def _drop(self, membership: _Membership) -> None:
        _memberships.pop(self.path, None)
        membership.file.unlink(missing_ok=True)
        folder_lock.release(membership.descriptor)

    # ---- the server

    def socket_path(self) -> Path:
        """Where the server that was started last listens."""
        try:
            return Path((self.path / "socket").read_text(encoding="utf-8"))
        except OSError:
            return self.path / mongod_process.SOCKET_NAME

    def find_or_launch(self, deadline: float, *, extra_args: Sequence[str], standalone: bool) -> tuple[int, bool]:
        """Return the server's process id, and whether it was launched here."""
        lock_file = self.data / "mongod.lock"
        while folder_lock.is_held(lock_file):  # its starter may have been killed half-way: give it time to become usable
            if mongod_process.accepts_connections(self.socket_path()):
                pid = mongod_process.pid_in_lock_file(self.data)
                if pid is not None:
                    return pid, False
            if time.monotonic() >= deadline:
                raise MongodError(f"The mongod over {str(self.path)!r} does not answer. {self._log_lines()}")
            time.sleep(0.02)
        binary = mongod_process.find_mongod()
        socket_path = mongod_process.choose_socket(self.path)
        (self.path / "socket").write_text(str(socket_path), encoding="utf-8")
        mongod_process.launch(
            binary,
            data=self.data,
            log=self.log,
            socket_path=socket_path,
            standalone=standalone,
            extra_args=extra_args,
            timeout=max(1.0, deadline - time.monotonic()),
        )
        pid = mongod_process.running_pid(self.data)
        if pid is None:
            raise MongodError(f"mongod ended right after its start. {self._log_lines()}")
        return pid, True

    def wait_until_writable(self, pid: int, deadline: float, *, standalone: bool) -> str:
        """Initiate the replica set if that was not done, wait until writes are accepted, return the URL."""
        uri = _uri(self.socket_path())
        problem: object = None
        while time.monotonic() < deadline:
            try:
                with _client(uri, max(0.5, deadline - time.monotonic())) as client:
                    while time.monotonic() < deadline:
                        hello = client.admin.command("hello")
                        if standalone != ("setName" not in hello and "isreplicaset" not in hello):
                            raise MongodError(
                                f"The mongod over {str(self.path)!r} (process {pid}) runs "
                                f"{'as a replica set' if standalone else 'as a standalone server'}: stop it first."
                            )
                        if hello.get("isWritablePrimary"):
                            return uri
                        if "setName" not in hello:
                            _configure(client, str(self.socket_path()))
                        time.sleep(0.01)
            except PyMongoError as error:
                problem = error
                if not folder_lock.is_held(self.data / "mongod.lock"):
                    raise MongodError(f"mongod ended right after its start. {self._log_lines()}") from error
                time.sleep(0.05)
        raise MongodError(f"The mongod over {str(self.path)!r} accepts no writes ({problem}). {self._log_lines()}")

    def end(self, timeout: float) -> bool:
        pid = mongod_process.running_pid(self.data)
        if pid is None:
            if folder_lock.is_held(self.data / "mongod.lock"):
                raise MongodError(
                    f"A mongod over {str(self.path)!r} runs where this process can't see it (another container?)."
                )
            return False
        mongod_process.end(pid, self.data, timeout=timeout)
        socket_path = self.socket_path()
        socket_path.unlink(missing_ok=True)
        if socket_path.parent != self.path:
            with suppress(OSError):
                socket_path.parent.rmdir()
        return True

    def _log_lines(self) -> str:
        return mongod_process.why_it_failed(self.log, max(0, self.log.stat().st_size - 4000) if self.log.exists() else 0, "")


def _uri(socket_path: Path) -> str:
    # directConnection: the only member is this one, and PyMongo writes names of members it discovers in lower case.
    return f"mongodb://{quote(str(socket_path), safe='')}/?directConnection=true"


def _client(uri: str, timeout: float) -> MongoClient[dict[str, object]]:
    return MongoClient(uri, serverSelectionTimeoutMS=round(timeout * 1000), appname="goscope-embedded")


def _configure(client: MongoClient[dict[str, object]], host: str) -> None:
    """Make the server the one member of its replica set; also when the folder was moved and it knows itself by another name."""
    members = [{"_id": 0, "host": host}]
    try:
        client.admin.command("replSetInitiate", {"_id": mongod_process.REPLICA_SET, "members": members})
    except OperationFailure as error:
        if error.code != _ALREADY_INITIALIZED:
            raise
        config = client.admin.command("replSetGetConfig")["config"]
        if [member["host"] for member in config["members"]] != [host]:
            config.update(members=members, version=config["version"] + 1)
            client.admin.command("replSetReconfig", config, force=True)


# ------------------------------------------------------------------------------------------------------- exit and fork


def _leave_all() -> None:
    for path in list(_memberships):
        try:
            _Folder(path).leave(uses=None, timeout=_LEAVE_TIMEOUT)
        except Exception as error:  # an exit must go on
            logger.warning("Could not leave the embedded mongod over %s: %s", path, error)


atexit.register(_leave_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_memberships.clear)
