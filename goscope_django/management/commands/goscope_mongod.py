"""``goscope_mongod`` starts, stops and shows the private server of an ``embedded://`` URL."""

from __future__ import annotations

import signal
import threading
from typing import Any

from django.core.management.base import CommandParser

from goscope_django import operations
from goscope_django.management.output import FAILED, OperatorCommand
from goscope_django.operations import MongodStatus
from goscope_django.operations.wording import escaped

_LOOK = 4
"""How many half seconds pass between two looks whether it still runs."""


class Command(OperatorCommand):
    """``start``, ``stop`` and ``status``."""

    help = (
        "Starts, stops and shows the private mongod of GOSCOPE['URL'] = 'embedded://...'. Processes with such a URL "
        "start it by themselves. This is for a server that runs before and after them."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        add = self.verbs(parser)
        start = add("start", "Start it unless it runs, and leave it running in the background.")
        start.add_argument(
            "--foreground",
            action="store_true",
            help="Stay and use it until Ctrl-C or SIGTERM. Then it is ended, unless somebody else uses it. Exits 1 if "
            "it is stopped, or dies and nobody starts it again.",
        )
        add("stop", "End it, whoever uses it. Its data are kept.")
        add("status", "Show what runs. Exits 1 if it does not run.")

    def act(self, **options: Any) -> None:
        verb = options["verb"]
        if verb == "stop":
            self._stop()
        elif verb == "status":
            status = operations.mongod_status()
            self._show(status)
            if not status.running:
                raise self.failed("It does not run. `manage.py goscope_mongod start` starts it.", FAILED)
        elif options["foreground"]:
            self._stay()
        else:
            self._show(operations.mongod_start())

    def _show(self, status: MongodStatus) -> None:
        if self.as_json:
            self.document({"mongod": status})
            return
        word = f"runs (pid {status.pid}), version {status.version}" if status.running else "does not run"
        self.line(f"mongod in {escaped(status.directory)} {word}")
        if status.running:
            self.line(f"  URL    {status.uri}")
            self.line(f"  users  {', '.join(map(str, status.users)) or 'none'}")
        self.line(f"  log    {escaped(status.log)}")

    def _stop(self) -> None:
        stopped = operations.mongod_stop()
        if self.as_json:
            self.document({"stopped": stopped})
        self.line("Stopped." if stopped else "It did not run.", self.style.SUCCESS)

    def _stay(self) -> None:
        over = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: over.set())
        try:
            with operations.mongod_running() as status:
                self._show(status)
                self.stdout.flush()
                self.note("Ctrl-C ends.")
                # In slices: a signal's handler runs between two of them, however the platform waits.
                missed = slices = 0
                while not over.wait(0.5):
                    slices += 1
                    if slices % _LOOK == 0:
                        missed = 0 if operations.mongod_status().running else missed + 1
                    if missed == 2:  # if it died its other users start it again within a second
                        raise self.failed("It does not run any more: it was stopped, or it died.", FAILED)
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGTERM, before)
