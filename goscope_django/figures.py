"""Sends the figures: what happened in this process, every ten seconds, in one update. ``process.counters`` counts.

Rules of this file:

* The thread that sends starts with the first count and ends after an interval without any. It uses the sync client if
  that is open, otherwise the async client of the event loop that counted.
* What is left is sent when an event loop or the process ends. A forked child starts from zero.
* Leases that were lost are sent along, by one more update. Those are rare.
* A failure to send disturbs nobody. After ``FORGET`` seconds of failures the counts are dropped, since they would be
  added to the wrong minute.
* Under test nothing is sent in the background, so that a test can count its own commands. ``flush`` sends there too.
  What was counted under test is never sent after it, since the store is another one then.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading
import time
import warnings
import weakref
from datetime import UTC, datetime, timedelta
from typing import Final

from goscope_django import conf, runtime
from goscope_django.core.flow import Flow, acarry_out, call, carry_out
from goscope_django.core.forking import at_fork
from goscope_django.exceptions import GoscopeError, OutcomeUnknown
from goscope_django.mongodb import figures as stats
from goscope_django.mongodb import losses as kept_losses
from goscope_django.mongodb.driver import loops
from goscope_django.mongodb.driver.execute import AsyncExecutor
from goscope_django.mongodb.driver.limits import within
from goscope_django.mongodb.driver.store import Store
from goscope_django.process import counters, losses
from goscope_django.process.counters import SERIES, Alias, Counted, alias, announce, bell, count

__all__ = ["SERIES", "Alias", "aflush", "alias", "announce", "count", "flush"]

logger = logging.getLogger("goscope.figures")

INTERVAL: Final = 10.0
LIMIT: Final = 3.0
"""Seconds that sending may take."""

EXIT_LIMIT: Final = 1.0
FORGET: Final = 120.0


class _Flusher:
    """Sends, on a thread of its own that runs only while it is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._slots = stats.Slots()
        self._place: object = None
        self._offset: timedelta | None = None  # from the monotonic clock to the server's time
        self._failing: float | None = None
        self._under_test = False
        """Some of what is counted and not sent may be of a test environment."""
        self.last = time.monotonic()

    def wake(self) -> None:
        """Start the thread unless it runs. Never raises."""
        with self._lock:
            if bell.awake:
                return
            if conf.testing():
                self._under_test = True
                return
            if self._under_test:
                self._under_test = False
                counters.forget()
                losses.forget()
            bell.awake = True
            with contextlib.suppress(RuntimeError):
                self._loop = weakref.ref(asyncio.get_running_loop())
            with contextlib.suppress(RuntimeError):  # the interpreter ends, and so does counting
                threading.Thread(target=self._work, name="goscope-figures", daemon=True).start()

    def _work(self) -> None:
        while not self._stop.wait(INTERVAL):
            if conf.testing():
                with self._lock:
                    bell.awake, self._under_test = False, True
                return
            if Counted():
                self._send()
                continue
            with self._lock:
                bell.awake = False
                # A count that came before ``awake`` was seen to be False has started no thread: it is sent here.
                if not Counted():
                    return
                bell.awake = True

    # Sending

    def _send(self) -> None:
        """Send through the client that is open."""
        try:
            connection = runtime.connection()
            loop = self._loop() if self._loop is not None else None
            if loop is not None and loop.is_running() and not connection.opened:
                asyncio.run_coroutine_threadsafe(self.deliver_here(), loop).result(LIMIT * 2)
                return
        except Exception as error:  # noqa: BLE001 - a thread's edge: it goes on with the next batch
            self._failed(error)
            return
        self.deliver()

    def deliver(self, limit: float = LIMIT) -> bool:
        """Send on this thread; whether all is sent. Waits up to ``limit`` for another thread that sends."""
        return carry_out(self._delivery(None, limit))

    async def deliver_here(self, store: Store | None = None, limit: float = LIMIT) -> bool:
        """Async version of ``deliver``, through ``store`` if it is given. Leaves it to another thread that sends."""
        return await acarry_out(self._delivery(store, limit))

    def _delivery(self, store: Store | None, limit: float) -> Flow[bool]:
        """Send what was counted; whether all of it is sent. Never raises."""
        # Two at once would send the same counts twice. A thread waits for the other, since what is left at the end of
        # a process must not be left out.
        if not (yield from call(lambda: self._sending.acquire(timeout=limit), lambda: self._sending.acquire(False))):
            return False
        counted = Counted()
        try:
            if not counted:
                return True
            own, prefix = self._where()
            store = store or own
            with within(limit):
                told = yield from call(
                    store.run, store.arun, stats.add, prefix, counted.batch(), self._slots, self._moment()
                )
            self._sent(counted, told)
            if lost := losses.taken():
                with within(limit):
                    yield from call(store.run, store.arun, kept_losses.add, prefix, lost)
        except OutcomeUnknown:
            counted.settle()
        except Exception as error:  # noqa: BLE001 - figures disturb nobody
            self._failed(error)
            return False
        finally:
            self._sending.release()
        return True

    def _where(self) -> tuple[Store, str]:
        adapter = runtime.adapter()
        if self._place is not adapter:  # other settings number the names anew
            self._place, self._slots = adapter, stats.Slots()
        return adapter.store, adapter.key_prefix

    def _moment(self) -> datetime:
        monotonic = timedelta(seconds=time.monotonic())
        if self._offset is None:
            return datetime.now(UTC)
        return _EPOCH + monotonic + self._offset

    def _sent(self, counted: Counted, told: datetime | None) -> None:
        counted.settle()
        if told is not None:
            self._offset = told - _EPOCH - timedelta(seconds=time.monotonic())
        self._failing, self.last = None, time.monotonic()

    def _failed(self, error: BaseException) -> None:
        now = time.monotonic()
        self._failing = self._failing or now
        level = logging.DEBUG if isinstance(error, (GoscopeError, TimeoutError)) else logging.WARNING
        logger.log(level, "figures could not be sent: %s: %s", type(error).__name__, error)
        if now - self._failing > FORGET:
            counters.forget()
            self._failing = None

    def stop(self) -> None:
        """End the thread, and send what is left within ``EXIT_LIMIT`` if a client is open."""
        self._stop.set()
        if not bell.awake or conf.testing():
            return
        with contextlib.suppress(Exception):
            if runtime.connection().opened:
                self.deliver(limit=EXIT_LIMIT)

    async def farewell(self, place: str, executor: AsyncExecutor) -> None:
        """An event loop ends, and its client too: send what is left through that client.

        A loop of the main thread is probably the process's last. Other loops may last for one request only; for those
        the thread sends, unless it has not for an interval.
        """
        if not bell.awake or conf.testing():
            return
        with contextlib.suppress(Exception):
            connection = runtime.connection()
            short = threading.current_thread() is not threading.main_thread()
            if (
                connection.opened
                or connection.target.place != place
                or (short and time.monotonic() - self.last < INTERVAL)
            ):
                return
            with warnings.catch_warnings():
                # asyncio warns of async generators that start while a loop ends. PyMongo's end within this call.
                warnings.simplefilter("ignore", ResourceWarning)
                await self.deliver_here(Store(None, lambda: executor), EXIT_LIMIT)


_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_flusher = _Flusher()


def flush() -> bool:
    """Send what was counted now; whether all of it is sent. One round trip.

    For tests, and for a process that ends without ``atexit``.
    """
    return _flusher.deliver()


async def aflush() -> bool:
    """Async version of ``flush``, which leaves it to another thread that sends at this moment."""
    return await _flusher.deliver_here()


def _forget_parent() -> None:
    global _flusher
    _flusher = _Flusher()
    bell.ring = _flusher.wake
    counters.begin_anew()
    losses.forget()


async def _farewell(place: str, executor: AsyncExecutor) -> None:
    await _flusher.farewell(place, executor)


def _stop() -> None:
    _flusher.stop()


bell.ring = _flusher.wake
runtime.observe(counters.observe)
runtime.observe(losses.observe)
loops.on_loop_end(_farewell)
at_fork(child=_forget_parent)
atexit.register(_stop)
