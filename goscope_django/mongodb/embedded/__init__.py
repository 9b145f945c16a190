"""The private ``mongod`` of ``embedded://``: started on demand, shared by the processes that name the same folder.

Rules of this package:

- Everything that starts or ends the server, or changes who uses it, happens under the folder's lock. So a process that
  joins while the last one leaves gets either the living server or a new one, never a dying one.
- A user is a process that holds the lock on its own file in ``users/``. The kernel drops the lock when the process
  dies: so a killed process is no user, nor is another process that got its id.
- A forked child is no user, and its end changes nothing, until it calls :func:`start` itself.
- The last user that leaves in order ends the server: through :meth:`Mongod.release`, or at the exit of the interpreter,
  which covers Ctrl-C and ``sys.exit``. A process that dies by a signal (SIGKILL; also SIGTERM, unless a handler turns
  it into ``SystemExit``, as those of runserver and gunicorn do) leaves the server running: the next process joins it
  and ends it when it leaves, or :func:`stop` does. The same holds for ``os._exit``, with which children of
  ``multiprocessing`` and of Celery's prefork pool end.
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
