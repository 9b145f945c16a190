"""Small files in the folder of a private ``mongod``, by which one process tells the next what happened.

``socket`` says where the server listens, ``keep`` which one is to stay without users, ``stopped`` that it was ended on
purpose, ``died`` that it was not, and ``revived`` by its time when it was last tried to start it again. The file
``lock`` says that the folder is ours. Beside the socket is the *door*, a link to it, which is what clients connect to:
it is there once the server accepts writes. Rule of this file: whoever writes a mark must hold the folder's lock.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from goscope_django.mongodb.embedded import files, process

DOOR_NAME = "goscope.sock"  # no longer than the socket's name, so that its path is short enough, too
NAMES = ("socket", "keep", "stopped", "died", "revived", "server", DOOR_NAME)


class Marks:
    """The marks in the folder ``path``, whose database is in ``data``."""

    def __init__(self, path: Path, data: Path) -> None:
        self.path = path
        self.data = data

    def was_used(self) -> bool:
        """Whether a server was ever started here."""
        return (self.path / "lock").exists()

    def socket_path(self) -> Path:
        """Return where the server that was started last listens."""
        try:
            return Path(files.read(self.path / "socket"))
        except FileNotFoundError:
            return self.path / process.SOCKET_NAME

    def note_socket(self, path: Path) -> None:
        """Write down where the server that is to be launched will listen."""
        file = self.path / "socket"
        with suppress(FileNotFoundError):
            if files.read(file) == str(path):
                return
        written = file.with_name("socket.new")  # so that it is never seen half written, nor lost on a full disk
        files.write(written, str(path))
        written.replace(file)

    def door(self) -> Path:
        """Return the path under which clients find the server."""
        return self.socket_path().with_name(DOOR_NAME)

    def open_door(self) -> None:
        """Let clients connect. Only when the server accepts writes.

        A client with one server in its URL sends a write to it even before it is the primary, and fails: its one retry
        was used for the connection that died with the last server.
        """
        door = self.door()
        if not self.door_is_open():
            made = door.with_name("goscope.new")
            made.unlink(missing_ok=True)
            made.symlink_to(process.SOCKET_NAME)  # relative: the folder may be moved
            made.replace(door)

    def close_door(self) -> None:
        """Let no client connect to the server that is to be launched."""
        self.door().unlink(missing_ok=True)

    def door_is_open(self) -> bool:
        """Whether clients can connect."""
        try:
            return str(self.door().readlink()) == process.SOCKET_NAME
        except OSError:
            return False

    def keep(self, pid: int | None) -> None:
        """Let the server ``pid`` (``None``: none) stay when its last user leaves, until it is ended on purpose."""
        if pid is None:
            (self.path / "keep").unlink(missing_ok=True)
        else:
            files.write(self.path / "keep", str(pid))

    def stays(self, pid: int | None) -> bool:
        """Whether the server ``pid`` is to stay without users."""
        try:
            kept = files.read(self.path / "keep")
        except FileNotFoundError:
            return False
        return kept == str(pid)

    def stay_away(self, wanted: bool) -> None:
        """Note that its users must not start the server again by themselves, or that they may when it has died."""
        with suppress(OSError):  # with a full disk it can still be stopped
            (self.path / "died").unlink(missing_ok=True)
            if wanted:
                files.write(self.path / "stopped")
            else:
                (self.path / "stopped").unlink(missing_ok=True)

    def why_it_stays_away(self) -> str:
        """Return why the server, which does not run, is not to be started again by its users; empty if it died."""
        if not (self.data / "mongod.lock").exists():
            return "its data were removed."
        # mongod empties its file when it ends in order, and may do so when it gives up a start: hence the mark.
        died = (self.path / "died").exists() or process.pid_in_lock_file(self.data) is not None
        if (self.path / "stopped").exists() or not died:
            return "it was stopped on purpose. A new process that uses it starts it, or `goscope_mongod start`."
        return ""

    def note_attempt(self) -> None:
        """Note that the server has died and that an attempt to start it again begins."""
        for name in ("died", "revived"):
            with suppress(OSError):  # if the disk is full, mongod says so better
                files.write(self.path / name)

    def tried_within(self, seconds: float) -> bool:
        """Whether such an attempt was begun so short a time ago, by any of its users."""
        with suppress(FileNotFoundError):
            return abs(time.time() - (self.path / "revived").lstat().st_mtime) < seconds
        return False
