"""Starting the private server of ``embedded://`` again when it died while a process used it.

Rules of this file:

* The driver's own monitoring notices: a heartbeat fails as soon as the server dies, and twice a second while an
  operation waits for it. So this costs an operation nothing, and nothing is watched twice.
* The driver may call us in an event loop. There we only start a thread, one at a time.
* The server keeps its URL, so every client of every process finds it again, once it accepts writes
  (``embedded.marks``). ``embedded.revive`` decides under the folder's lock which process starts it, if any.
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
        """Until when (monotonic) no operation tries the server, and the error of the last attempt to start it."""
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
        """The server answers."""
        self.trouble, self._said = None, ""

    def failed(self, event: ServerHeartbeatFailedEvent) -> None:
        """The server died, or the driver cancelled a heartbeat for another reason."""
        # Exactly this class: a server that hangs gives a NetworkTimeout, and a closed client cancels its heartbeat with
        # another subclass. A dead server closes, resets and refuses connections.
        if type(event.reply) is not AutoReconnect:
            return
        with self._guard:
            if self._busy or (self.trouble is not None and time.monotonic() < self.trouble[0]):
                return
            self._busy = True
        try:
            threading.Thread(target=self._revive, name="goscope-revival", daemon=True).start()
        except RuntimeError:  # the interpreter ends, or no thread can be started now: the next heartbeat tries again
            self._busy = False

    def _revive(self) -> None:
        try:
            reason = embedded.revive(self.mongod.directory)
            if reason:
                self._say(
                    f"The embedded mongod over {self.mongod.directory} stopped and is not started again: {reason}"
                )
        except (GoscopeError, OSError) as error:
            kept = error if isinstance(error, GoscopeError) else StoreUnavailable(str(error))
            self.trouble = time.monotonic() + embedded.RETRY_AFTER, kept.with_traceback(None)
            self._say(f"The embedded mongod over {self.mongod.directory} died and can't be started again: {error}")
        finally:
            self._busy = False

    def _say(self, text: str) -> None:
        if text != self._said:  # attempts go on; one line in the log is enough
            self._said = text
            logger.error("%s", text)
