# pathlib and contextlib would take more memory than all the rest:
# ruff: noqa: PTH108, PTH116, PTH118, PTH120, PTH208, SIM105
"""The keeper of a private ``mongod``: a small process, its parent, that ends it when nobody uses it any more.

``process`` runs this file as a script (``python -I -S``), with the order on standard input. Rules of this file:

- It imports only what the standard library has, and little of that: it stays in memory as long as the server does.
- Of its starter it has two locks and nothing else. *Of the folder*: kept until the server accepts connections, so that
  it is started under that lock even if the starter is killed meanwhile. *Of the server*: handed on to ``mongod``.
- A user is a process that holds the lock on its file in ``users/``. The kernel drops that lock when the process dies.
- It ends the server only under the folder's lock: when nobody has used it for ``GRACE`` seconds, unless the mark
  ``keep`` says that it stays, and on SIGTERM. When the server has ended, so does the keeper.
- If the keeper is killed, Linux kills the server with it (``PR_SET_PDEATHSIG``), and its users start both again.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

if sys.platform != "win32":
    import fcntl

GRACE = 5.0  # seconds without a user until the server is ended
_LOOK = 1.0  # seconds between two looks at the users
_PATIENCE = 10.0  # seconds that the server may take to end in order
_SPARE = 5.0  # seconds after the starter's time limit: by then it is dead, or has given up itself
_PR_SET_PDEATHSIG = 1
_CHANGED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD", "SIGPIPE", "SIGXFSZ")  # here, or by Python itself

UP, EXIT, CANNOT_RUN = b"up", b"exit", b"exec"
"""What the script prints: the server accepts connections, or its exit code, or the ``errno`` why it can't be run.

One line. Who can't run the server ends, too, so of what is told only the first line counts.
"""


def main() -> None:
    """Start the server as ordered, in two processes: this one ends when it is known what came of it."""
    with open(0, "rb", closefd=False) as order:
        fields = order.read().split(b"\0")
    folder_lock, server_lock, limit = int(fields[0]), int(fields[1]), float(fields[2])
    folder, socket_path, log, *command = fields[3:]
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        os.close(folder_lock)
        try:
            Keeper(folder, socket_path, log).run(command, server_lock, writer)
        finally:
            os._exit(0)
    os.close(writer)
    os.close(server_lock)
    os.write(1, _what_comes_of_it(reader, socket_path, time.monotonic() + limit + _SPARE))


def _what_comes_of_it(news: int, socket_path: bytes, deadline: float) -> bytes:
    """Wait until the server accepts connections, or ``news`` of its end come. At the deadline all of it is killed."""
    import socket  # here: only this process, which ends at once, has room for it

    while time.monotonic() < deadline:
        if select.select([news], [], [], 0.02)[0]:
            return os.read(news, 100).partition(b"\n")[0]
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1.0)
            try:
                client.connect(socket_path)
            except OSError:
                continue
            return UP
    os.killpg(0, signal.SIGKILL)
    return b""


class Keeper:
    """One server and its end. The working directory is the folder, also when that is moved."""

    def __init__(self, folder: bytes, socket_path: bytes, log: bytes) -> None:
        self.folder = folder
        self.socket_path = socket_path
        self.log = log
        self.server = 0
        self.asked_to_end = False
        self._wake, written = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(written, False)
        # A handler, not "ignore": with that the kernel would not tell how the server has ended.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end_is_asked_for)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.set_wakeup_fd(written)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _end_is_asked_for(self, *_: object) -> None:
        self.asked_to_end = True

    def run(self, command: list[bytes], server_lock: int, news: int) -> None:
        """Start the server, tell how it ended if that happens while somebody listens, and keep it."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        os.close(nothing)
        keeper = os.getpid()
        self.server = os.fork()
        if self.server == 0:
            try:
                self._become_the_server(command, keeper)
            except OSError as error:
                os.write(news, b"%s %d\n" % (CANNOT_RUN, error.errno or 0))
            finally:
                os._exit(127)
        os.close(server_lock)
        code = self.keep()
        try:
            os.write(news, b"%s %d\n" % (EXIT, code))
        except BrokenPipeError:
            pass

    def _become_the_server(self, command: list[bytes], keeper: int) -> None:
        signal.set_wakeup_fd(-1)
        for name in _CHANGED:
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        # What it says before it has opened its log itself, and what its loader says, belongs there too.
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir("/")
        _die_with(keeper)
        os.execve(command[0], command, {**os.environb, b"LC_ALL": b"C"})  # noqa: S606 - our own mongod

    def keep(self) -> int:
        """Return the server's exit code when it has ended, by itself or because nobody used it any more."""
        unused_since: float | None = None
        while True:
            code = self._wait(_LOOK)
            if code is not None:
                return code
            if not self.asked_to_end:
                if is_used() or self.stays():
                    unused_since = None
                    continue
                now = time.monotonic()
                unused_since = now if unused_since is None else unused_since
                if now - unused_since < GRACE:
                    continue
            try:
                lock = try_lock(b"lock", fcntl.LOCK_EX)
            except FileNotFoundError:  # the folder was removed: nobody can find its server any more
                return self._end()
            if lock is None:  # somebody starts, joins or leaves
                continue
            try:
                if self.asked_to_end or not (is_used() or self.stays()):
                    return self._end()
            finally:
                os.close(lock)

    def stays(self) -> bool:
        """Whether this server is to stay without users."""
        kept = _content(b"keep")
        return kept != b"" and kept == _content(b"data/mongod.lock")

    def _end(self) -> int:
        # To all of the group: a script may have started it instead of becoming it. A server that ends in order removes
        # its socket by the path that it was started with. If the folder is elsewhere by now that is its successor's.
        os.killpg(0, signal.SIGTERM if self._is_where_it_was() else signal.SIGKILL)
        code, deadline = None, time.monotonic() + _PATIENCE
        while code is None:
            left = deadline - time.monotonic()
            if left <= 0:
                os.killpg(0, signal.SIGKILL)
            code = self._wait(max(0.0, left))
        if self._is_where_it_was():
            for name in (b"keep", os.path.join(os.path.dirname(self.socket_path), b"goscope.sock"), self.socket_path):
                _remove(name)
        return code

    def _is_where_it_was(self) -> bool:
        """Whether the folder was neither moved nor removed: if so, another server may be in its place."""
        try:
            return os.path.samestat(os.stat(self.folder), os.stat(b"."))
        except OSError:
            return False

    def _wait(self, seconds: float) -> int | None:
        """Wait for a signal, so many seconds at most. Return the server's exit code if it has ended."""
        if select.select([self._wake], [], [], seconds)[0]:
            os.read(self._wake, 1000)
        pid, status = os.waitpid(self.server, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None


def _die_with(parent: int) -> None:
    """From now on this process is killed when ``parent`` dies, where the system can do that."""
    if sys.platform != "linux":
        return
    try:
        import ctypes  # here: only this process, which becomes another program at once, has room for it
    except ImportError:  # a Python without it: the last user that leaves in order ends the server
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it had died before
        os._exit(127)


def is_used() -> bool:
    """Whether a process holds the lock on a file in ``users/``; also if that can't be told."""
    try:
        for name in os.listdir(b"users"):
            try:
                lock = try_lock(b"users/" + name, fcntl.LOCK_SH)
            except OSError:  # it was removed meanwhile, or is none of ours
                continue
            if lock is None:
                return True
            os.close(lock)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def try_lock(path: bytes, kind: int) -> int | None:
    """Lock a file that exists; return its descriptor, or ``None`` if somebody else has it locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _content(path: bytes) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 100).strip()
    finally:
        os.close(descriptor)


def _remove(path: bytes) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


if __name__ == "__main__":
    main()
