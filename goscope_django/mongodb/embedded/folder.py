"""The folder of a private ``mongod``: who uses it, and the server over it. The rules stand in ``embedded``.

In it stand ``data/`` (the database), ``mongod.log``, ``lock``, ``server`` (locked by the server from its launch to its
end), ``users/`` with one file per process that uses the server, and the marks of ``marks``.

Rule of this file: the server has no passwords, so its folder keeps other users out. It and the folders in it belong to
this user, nobody else may write to them, and none of our names in it is a link.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from goscope_django.exceptions import ConfigurationError, MongodError
from goscope_django.mongodb.embedded import file_lock, process, users, wire
from goscope_django.mongodb.embedded.marks import DOOR_NAME, NAMES, Marks

_ALREADY_INITIALIZED = 23  # error code of replSetInitiate
_COMMAND_TIMEOUT = 10.0  # seconds for a command that writes the configuration; a slow disk takes one of them
_MADE_BY_MONGOD = ("mongod.lock", "WiredTiger", "storage.bson")
_DYING = 2.0  # seconds that a killed mongod may take until the kernel has cleared up after it
_STARTING = 30.0  # seconds that a mongod may take until it has written down its process id
_OURS = (*NAMES, "socket.new", "lock", "mongod.log", "data", "data/mongod.lock", "users")


class Folder:
    """The paths in one folder and what is done with them. Whoever changes anything must hold :meth:`locked`.

    Raises ``ConfigurationError`` for a path that can't be used.
    """

    def __init__(self, directory: Path | str) -> None:
        if sys.platform == "win32":
            raise ConfigurationError(f"{os.fspath(directory)!r}: {process.NOT_ON_WINDOWS}.")
        text = os.fspath(directory)
        self._lock: int | None = None
        if not text or "\0" in text:
            raise ConfigurationError(f"{text!r} can't be the folder of an embedded mongod: it is not a path.")
        self.path = Path(os.path.realpath(text))
        self.data = self.path / "data"
        self.marks = Marks(self.path, self.data)
        self.log = self.path / "mongod.log"
        with self.translated_errors():
            if self.path.parent == self.path:
                raise self._unusable("name a folder of its own")
            if os.path.lexists(self.path) and not self.path.is_dir():
                raise self._unusable("it is not a folder")
            if (self.path / "WiredTiger").exists():
                raise self._unusable("it holds the data of another mongod, name a folder of its own")

    def refuse_what_others_may_change(self) -> None:
        """Whoever may write to the folder is let in, or leads us to other files. The folder need not exist yet.

        The folders above it are not looked at: who may write to one of them can take the whole folder away. What he
        puts in its place belongs to him, and is refused.
        """
        for name in ("", *_OURS):
            path = self.path / name
            try:
                found = path.lstat()
            except FileNotFoundError:
                continue
            shown = f"{name!r} in it" if name else "it"
            if stat.S_ISLNK(found.st_mode) and name != DOOR_NAME:
                raise self._unusable(f"{shown} is a link; remove that, or name another folder")
            if found.st_uid != os.geteuid():
                whose = f"user {found.st_uid}, not to this one ({os.geteuid()})"
                raise self._unusable(f"{shown} belongs to {whose}; name a folder of your own")
            if stat.S_ISDIR(found.st_mode) and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                every = found.st_mode & stat.S_IWOTH
                who, mode = ("all users of this machine", "o-w") if every else ("its group", "g-w")
                raise self._unusable(f"{who} may write to {shown}; name one of your own, or chmod {mode}")

    def _unusable(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"{str(self.path)!r} can't be the folder of an embedded mongod: {reason}.")

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Turn an ``OSError`` into a ``ConfigurationError`` that names the folder."""
        try:
            yield
        except OSError as error:
            raise self._unusable(f"{error.strerror or error} ({error.filename!r})") from error

    def make(self) -> None:
        """Make the folder if it is missing. Refuse one with other things under our names.

        Other files beside ours do no harm.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.refuse_what_others_may_change()
        # Listed first, judged then: others may be making all this at this moment, the file that counts before the rest.
        inside = {name: list((self.path / name).glob("*")) for name in ("data", "users")}
        others = [self.path / name for name in NAMES if (self.path / name).exists()]
        others += [file for file in inside["users"] if not users.is_user_file(file)]
        if self.marks.was_used():
            others.clear()
        if not any((self.data / name).exists() for name in _MADE_BY_MONGOD):
            others += inside["data"]
        names = sorted(str(file.relative_to(self.path)) for file in others if not file.name.startswith("."))
        if names:
            raise self._unusable(f"it holds files of something else ({', '.join(names[:5])}), name a folder of its own")
        for path in (self.data, self.path / "users"):
            path.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def locked(self, timeout: float) -> Iterator[None]:
        """Hold the folder's lock; ``timeout`` in seconds. Raises ``MongodError`` when it can't be had in time."""
        descriptor = file_lock.acquire(self.path / "lock", timeout=timeout)
        if descriptor is None:
            raise MongodError(f"{str(self.path)!r} stayed locked by another process for {timeout:g} seconds.")
        self._lock = descriptor
        try:
            yield
        finally:
            self._lock = None
            file_lock.release(descriptor)

    # ------------------------------------------------------------------------------------------------ who uses it

    def users(self) -> tuple[int, ...]:
        """Return the process ids of the living users, this process included if it is one."""
        return users.living(self.path)

    def forget_the_dead(self) -> None:
        """Remove the files of users that are gone."""
        users.forget_the_dead(self.path)

    def is_used_here(self) -> bool:
        """Whether this process is a user."""
        return self.path in users.memberships

    def join(self, pid: int, *, uses: int = 1) -> None:
        """Count so many more uses by this process, of the server ``pid``."""
        membership = users.memberships.get(self.path)
        if membership is not None and membership.file.exists():
            membership.pid = pid
            membership.uses += uses
            return
        users.enter(self.path, pid, uses)
        if membership is not None:  # the folder was removed with a server in it, and made anew
            users.memberships[self.path].uses += membership.uses
            membership.end()
            process.end(membership.pid, self.data, timeout=0, unless=pid)

    def leave(self, *, uses: int | None, timeout: float) -> None:
        """Take back so many uses of this process (``None``: all). Without any, it is no user; the last ends the server.

        Takes the lock itself. ``timeout`` is in seconds, for the lock, and again for the server to end in order.
        """
        membership = users.memberships.get(self.path)
        if membership is None:
            return
        if not self.path.is_dir():  # removed with a server in it: nobody else can find that server any more
            users.memberships.pop(self.path).end()
            process.end(membership.pid, self.data, timeout=0)
            return
        with self.locked(timeout):
            membership = users.memberships.get(self.path)
            if membership is None:  # another thread was quicker
                return
            membership.uses = 0 if uses is None else membership.uses - uses
            if membership.uses > 0:
                return
            users.memberships.pop(self.path).end()
            self.forget_the_dead()
            if not self.users() and not self.marks.stays(process.running_pid(self.data)):
                self.end(timeout)

    # ------------------------------------------------------------------------------------------------- the server

    def uri(self) -> str:
        """Return the server's URL, without a database."""
        # directConnection: it is the only member, and PyMongo writes names that it learns from members in lower case.
        return f"mongodb://{quote(str(self.marks.door()), safe='')}/?directConnection=true"

    def command(self, document: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        """Run a command on the server; ``timeout`` in seconds. Raises ``OSError`` if there is no answer."""
        return wire.command(self.marks.socket_path(), document, timeout=timeout)

    def living_pid(self) -> int | None:
        """Return the process id of the server if one runs, also one that hangs; 0 if it has not told its id yet."""
        deadline = time.monotonic() + _DYING
        while self._is_running():
            # Of one that was killed just now the kernel has taken the memory, and may not have closed all files yet.
            if process.running_pid(self.data) is not None or time.monotonic() >= deadline:
                return process.pid_in_lock_file(self.data) or 0
            time.sleep(0.02)
        return None

    def find_or_launch(self, deadline: float, *, extra_args: Sequence[str], standalone: bool) -> tuple[int, bool]:
        """Return the process id of a server that accepts connections, and whether it was launched here."""
        while self._is_running():  # its starter may have been killed half-way, or it may be ending: give it time
            pid = process.pid_in_lock_file(self.data)
            if pid is not None and process.accepts_connections(self.marks.socket_path()):
                return pid, False
            if time.monotonic() >= deadline:
                raise MongodError(
                    f"The mongod over {str(self.path)!r} does not answer on {str(self.marks.socket_path())!r}; "
                    f"`goscope_mongod stop` ends it. {self.log_lines()}"
                )
            time.sleep(0.02)
        binary = process.find_mongod()
        self.marks.keep(None)
        socket_path = process.choose_socket(self.path, self.marks.socket_path())
        self.marks.close_door()
        self.marks.note_socket(socket_path)
        self.marks.close_door()  # if it has another place now
        held = file_lock.acquire(self.path / "server", timeout=1.0)
        assert self._lock is not None, "whoever launches a server holds its folder's lock"
        if held is None:
            raise MongodError(f"{str(self.path / 'server')!r} stayed locked by another process.")
        try:
            process.launch(
                binary,
                data=self.data,
                log=self.log,
                socket_path=socket_path,
                standalone=standalone,
                extra_args=extra_args,
                timeout=max(1.0, deadline - time.monotonic()),
                folder_lock=self._lock,
                server_lock=held,
            )
        except BaseException:
            file_lock.hand_over(held)
            self._end_the_abandoned()
            raise
        file_lock.hand_over(held)
        pid = process.running_pid(self.data)
        if pid is None:
            raise MongodError(f"mongod ended right after its start. {self.log_lines()}")
        return pid, True

    def _end_the_abandoned(self) -> None:
        """End the server whose launch was given up. It listens, and holds its lock, before it has told its id."""
        deadline = time.monotonic() + _STARTING
        while file_lock.is_held(self.path / "server") and time.monotonic() < deadline:
            pid = process.running_pid(self.data)
            if pid is not None:
                process.end(pid, self.data, timeout=0)
            time.sleep(0.02)

    def _is_running(self) -> bool:
        # Its starter may be dead, and it not yet so far that it has locked its data: a second mongod would take the
        # first one's socket away before it found the data in use. So the lock that it was launched with counts; its own
        # is that of one which something else launched. Only looked at under the folder's lock, and last: a look is a
        # lock for a moment, in which a mongod that starts would believe that another one is there.
        return file_lock.is_held(self.path / "server") or file_lock.is_held(self.data / "mongod.lock")

    def wait_until_writable(self, pid: int, deadline: float, *, standalone: bool) -> bool:
        """Initiate the replica set if need be, wait until it accepts writes, and open its door; ``False`` if it ended.

        Raises ``MongodError`` at the deadline, and if it runs as a standalone server against the wish, or the reverse.
        """
        problem: object = "no primary was elected"
        while time.monotonic() < deadline:
            try:
                hello = self.command({"hello": 1}, timeout=max(0.1, deadline - time.monotonic()))
                if standalone != ("setName" not in hello and "isreplicaset" not in hello):
                    kind = "as a replica set" if standalone else "as a standalone server"
                    raise MongodError(f"The mongod over {str(self.path)!r} (pid {pid}) runs {kind}: stop it first.")
                if hello.get("isWritablePrimary"):
                    self.marks.open_door()
                    return True
                if "setName" not in hello:
                    problem = self._configure() or problem
            except OSError as error:
                problem = error
                if not self._is_running():
                    return False
            time.sleep(0.01)
        raise MongodError(f"The mongod over {str(self.path)!r} accepts no writes ({problem}). {self.log_lines()}")

    def open_if_writable(self) -> None:
        """Open the door if the server accepts writes: whoever launched it may have been killed before it came to that.

        Takes no longer than a second where the server hangs, and nothing where the door is open.
        """
        with suppress(OSError):
            if not self.marks.door_is_open() and self.command({"hello": 1}, timeout=1.0).get("isWritablePrimary"):
                self.marks.open_door()

    def _configure(self) -> str:
        """Make the server the one member of its set, also when it was moved and knows itself by another name.

        Returns what the server objects to, or an empty text; it is asked again until it is the primary.
        """
        members = [{"_id": 0, "host": str(self.marks.socket_path())}]
        config: dict[str, Any] = {"_id": process.REPLICA_SET, "members": members}
        reply = self.command({"replSetInitiate": config}, timeout=_COMMAND_TIMEOUT)
        if reply.get("code") == _ALREADY_INITIALIZED:
            reply = self.command({"replSetGetConfig": 1}, timeout=_COMMAND_TIMEOUT)
            config = reply.get("config", {})
            if config and [member["host"] for member in config["members"]] != [members[0]["host"]]:
                config.update(members=members, version=config["version"] + 1)
                reply = self.command({"replSetReconfig": config, "force": True}, timeout=_COMMAND_TIMEOUT)
        return "" if reply["ok"] else str(reply.get("errmsg"))

    def end(self, timeout: float) -> bool:
        """End the server, by force after so many seconds; ``False`` if none runs. Raises ``MongodError``."""
        pid = process.running_pid(self.data)
        if pid is None:
            if self.living_pid() is not None:
                raise MongodError(
                    f"A mongod over {str(self.path)!r} is just starting, or runs where this process can't see it (in "
                    "another container?)."
                )
            return False
        process.end(pid, self.data, timeout=timeout)
        self.marks.keep(None)
        self.marks.close_door()
        socket_path = self.marks.socket_path()
        socket_path.unlink(missing_ok=True)
        if socket_path.parent != self.path:
            with suppress(OSError):
                socket_path.parent.rmdir()
        return True

    def log_lines(self) -> str:
        """Return a sentence with the last serious lines of the log."""
        size = self.log.lstat().st_size if self.log.exists() else 0
        return process.why_it_failed(self.log, max(0, size - 4000))
