"""Bringing back the private server of ``embedded://`` when it died under a process that uses it.

Rules of this file:

* The driver's own monitoring tells: a heartbeat fails as soon as the server dies, and twice a second while an operation
  waits for it. So an operation pays nothing for this, and nothing is watched twice.
* It may tell so within an event loop. All that happens there is the start of a thread, one at a time.
* The server comes back under its old URL, so each client of each process finds it again by itself, and not before it
  accepts writes (``embedded.marks``). Which of the processes starts it, and whether it may be started,
  ``embedded.revive`` decides under the folder's lock.
"""

from __future__ import annotations

import logging
import threading
import time

from pymongo.errors import AutoReconnect
from pymongo.monitoring import (
    ServerHeartbeatFailedEvent,
    ServerHeartbeatListener,
    ServerHeartbeatStartedEvent,
    ServerHeartbeatSucceededEvent,
)

from goscope_django.exceptions import GoscopeError, StoreUnavailable
from goscope_django.mongodb import embedded

logger = logging.getLogger("goscope.embedded")


class Revival(ServerHeartbeatListener):
    """This process's use of one private server; listens to the heartbeats of all its clients."""

    def __init__(self, mongod: embedded.Mongod) -> None:
        self.mongod = mongod
        self.trouble: tuple[float, GoscopeError] | None = None
        """Why the last attempt failed, and until when (monotonic) it is not worth while to try the server."""
        self._guard = threading.Lock()
        self._busy = False
        self._said = ""

    def __repr__(self) -> str:
        return f"<Revival of {self.mongod!r}>"

    def complain(self) -> None:
        """Raise ``StoreUnavailable`` with the reason while an attempt to start the server has just failed."""
        trouble = self.trouble
        if trouble is not None and time.monotonic() < trouble[0]:
            raise StoreUnavailable(f"the private server died and can't be started again: {trouble[1]}") from trouble[1]

    def started(self, event: ServerHeartbeatStartedEvent) -> None:
        """Nothing to do."""

    def succeeded(self, event: ServerHeartbeatSucceededEvent) -> None:
        """It is there."""
        self.trouble, self._said = None, ""

    def failed(self, event: ServerHeartbeatFailedEvent) -> None:
        """It is not there, or the driver gave up a heartbeat for reasons of its own."""
        # Exactly this class: a server that hangs is a NetworkTimeout, and a client that is closed cancels its heartbeat
        # with another subclass. A dead one closes, resets and refuses connections.
        if type(event.reply) is not AutoReconnect:
            return
        with self._guard:
            if self._busy or (self.trouble is not None and time.monotonic() < self.trouble[0]):
                return
            self._busy = True
        try:
            threading.Thread(target=self._revive, name="goscope-revival", daemon=True).start()
        except RuntimeError:  # the interpreter ends, or there is no room for a thread: then at the next heartbeat
            self._busy = False

    def _revive(self) -> None:
        try:
            reason = embedded.revive(self.mongod.directory)
            if reason:
                self._say(f"The embedded mongod over {self.mongod.directory} is away and stays so: {reason}")
        except (GoscopeError, OSError) as error:
            kept = error if isinstance(error, GoscopeError) else StoreUnavailable(str(error))
            self.trouble = time.monotonic() + embedded.RETRY_AFTER, kept.with_traceback(None)
            self._say(f"The embedded mongod over {self.mongod.directory} died and can't be started again: {error}")
        finally:
            self._busy = False

    def _say(self, text: str) -> None:
        if text != self._said:  # attempts go on; a log that says so every few seconds helps nobody
            self._said = text
            logger.error("%s", text)
