"""Work that nobody waits for: on a thread of this process for sync callers, in a task of the event loop for async ones.

Rules of this file:

* There are at most ``MOST`` threads. Each ends when nothing is left to do; more work waits for one of them.
* The threads are daemons and the tasks belong to their loop: neither keeps a process or a loop from ending. What they
  hold is a lease, which then ends by itself.
* A forked child has none of its parent's work.
* Work runs in a copy of the caller's context, and with the caller's language and time zone. Its connections to the
  project's databases are its own, and closed at its end.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from django.db import connections
from django.utils import timezone, translation

from goscope_django.core.flow import Flow, acarry_out, carry_out
from goscope_django.core.forking import at_fork

logger = logging.getLogger("goscope.cache")

MOST: Final = 8
"""Threads at the same time."""

Work = Callable[[], Flow[Any]]


class Background:
    """All work of this kind in one process."""

    def __init__(self) -> None:
        self._lock: threading.Lock
        self._waiting: deque[tuple[contextvars.Context, Callable[[], None]]]
        self._threads: int
        self._tasks: set[asyncio.Task[Any]]
        self.clear()

    def clear(self) -> None:
        """Begin without work, as a forked child does."""
        self._lock, self._waiting, self._threads, self._tasks = threading.Lock(), deque(), 0, set()

    def start(self, work: Work) -> None:
        """Carry out ``work()`` on a thread. Raises ``RuntimeError`` where the process can't start one any more."""
        language, zone = translation.get_language(), timezone.get_current_timezone()

        def there() -> None:
            # Django keeps both in a place of the thread, which a context does not bring along.
            with translation.override(language), timezone.override(zone):
                self._one(work)

        with self._lock:
            self._waiting.append((contextvars.copy_context(), there))
            if self._threads >= MOST:
                return
            self._threads += 1
        try:
            threading.Thread(target=self._work, name="goscope-refresh", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    self._waiting.clear()
                    raise

    def astart(self, work: Work) -> None:
        """Async version of ``start``: in a task of the running loop, which ends with the loop."""
        task = asyncio.get_running_loop().create_task(self._task(work), name="goscope-refresh")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                context, there = self._waiting.popleft()
            context.run(there)

    @staticmethod
    def _one(work: Work) -> None:
        try:
            carry_out(work())
        except Exception:
            logger.exception("a value could not be computed in the background")
        finally:
            connections.close_all()

    @staticmethod
    async def _task(work: Work) -> None:
        try:
            await acarry_out(work())
        except Exception:
            logger.exception("a value could not be computed in the background")


background: Final = Background()
at_fork(child=background.clear)
