"""The private ``mongod`` of ``embedded://``: started on demand, shared by the processes that name the same folder.

Rules of this package:

- Everything that starts or ends the server, or changes who uses it, happens under the folder's lock. So a process that
  joins while the last one leaves gets either the living server or a new one, never a dying one.
- A user is a process that holds the lock on its own file in ``users/``. The kernel drops the lock when the process
  dies: so a killed process is no user, nor is another process that got its id.
- A forked child is no user, and its end changes nothing, until it calls :func:`start` itself.
- The last user that leaves in order ends the server: through :meth:`Mongod.release`, or at the exit of the interpreter,
  which covers Ctrl-C and ``sys.exit``. If the last user ends otherwise (by a signal, as SIGTERM and SIGKILL, or by
  ``os._exit``), the server's *keeper* ends it some seconds later. The keeper is a small process, the server's parent.
- If the keeper is killed, the server goes with it (on Linux), and its users start both again. On macOS the server runs
  on, and the last user that leaves in order ends it.
- The folder belongs to the user who runs all this, nobody else may write to it, and no link in it is followed.
- Functions here start and end a process. None of them is a round trip to MongoDB, but :func:`status`, which asks for
  the version: so nothing is said of round trips below.
- If a server *died* while it had users (``kill -9``, the OOM killer, a crash), any of them may start it again with
  :func:`revive`. One that was ended on purpose is not started before somebody calls :func:`start` or :func:`launch`.
"""

from __future__ import annotations

from goscope_django.mongodb.embedded.launching import (
    RETRY_AFTER,
    Mongod,
    Status,
    launch,
    revive,
    start,
    status,
    stop,
)

__all__ = [
    "RETRY_AFTER",
    "Mongod",
    "Status",
    "launch",
    "revive",
    "start",
    "status",
    "stop",
]
