"""The circuits that a process uses: when they are read, and what holds without the store.

Rules of this file:

* What is decided is written once, as generators of commands, for both colours. ``Do`` runs a flow on the store,
  ``Wait`` lets another reader finish. An error of the store arrives at the ``yield``.
* All circuits in use are read together, by the caller that finds them stale; the others go on with what they know,
  unless they know nothing, or nothing that is newer than ``OLD``.
* Without the store each circuit is this process's own (``LocalCircuit``), from what was known last. When the store is
  back its word counts again, and what was counted locally is dropped: it is one process's view of a time when the
  fleet could not speak, and what still fails then trips the shared circuit within its threshold.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Final

from goscope_django import runtime
from goscope_django.breaker_states import (
    NEVER,
    NEW,
    REFRESH,
    LocalCircuit,
    Snapshot,
    View,
    seen,
)
from goscope_django.exceptions import StoreError
from goscope_django.mongodb.adapter import MongoDBAdapter
from goscope_django.mongodb.breakers import LIMIT, BreakerStore, Reading
from goscope_django.mongodb.flow import Command, Flow

OLD: Final = 2.0
"""Seconds after which a snapshot is no longer good enough to go on with while somebody reads a new one."""

IDLE: Final = 60.0
"""Seconds after which a circuit that nobody called is not read any more; its next call reads it anew."""

LONGEST_PAUSE: Final = 30.0

Steps = Generator[Command[Any], Any, Any]


class Do(Command[Any]):
    """Run a flow on the store."""

    __slots__ = ("args", "operation")

    def __init__(self, operation: Callable[..., Flow[Any]], *args: Any) -> None:
        self.operation = operation
        self.args = args


class Wait(Command[None]):
    """Wait until the reading that is on its way has ended."""

    __slots__ = ()


class Reader:
    """All circuits that this process uses on one adapter, and how they are known."""

    def __init__(self, adapter: MongoDBAdapter) -> None:
        self.adapter = adapter
        self.store = BreakerStore(adapter.store, key_prefix=adapter.key_prefix)
        self.flows = self.store.flows
        self.views: dict[str, View] = {}
        self.due = 0.0
        self.degraded = False
        self._pause = REFRESH
        self._recovered = NEVER
        self._began = 0.0
        self._reading = threading.Lock()
        self._reader: int | None = None
        self._guard = threading.Lock()  # of local circuits and of the change between the two modes

    def view(self, name: str) -> View:
        """The view of a circuit, made on first use."""
        found = self.views.get(name)
        return found if found is not None else self.views.setdefault(name, View(name))

    def retire(self) -> None:
        """Let every call look here again before it runs."""
        for view in list(self.views.values()):
            view.snap = NEW
        self.views.clear()

    # ---- running steps ----

    def do(self, command: Command[Any]) -> Any:
        """Carry out a command on this thread."""
        if type(command) is Do:
            return self.store.run(command.operation, *command.args)
        # A coroutine of this very thread can't end its reading while we block it.
        if self._reader != threading.get_ident() and self._reading.acquire(timeout=LIMIT):
            self._reading.release()
        return None

    async def ado(self, command: Command[Any]) -> Any:
        """Carry out a command in the running event loop."""
        if type(command) is Do:
            return await self.store.arun(command.operation, *command.args)
        deadline = time.monotonic() + LIMIT
        while self._reading.locked() and time.monotonic() < deadline:  # noqa: ASYNC110  (a thread may be the reader)
            await asyncio.sleep(0.002)
        return None

    # ---- reading ----

    def refreshed(self, view: View) -> Steps:
        """Make sure that ``view`` is known, and read all circuits if it is time."""
        waited = False
        while True:
            now = time.monotonic()
            if now < self.due and (view.snap is not NEW or self.degraded):
                break
            if self._reading.acquire(blocking=False):
                try:
                    self._reader, self._began = threading.get_ident(), now
                    if now >= self.due or (view.snap is NEW and not self.degraded):
                        yield from self._read(now)
                finally:
                    self._reader = None
                    self._reading.release()
                break
            if waited:  # whoever reads is stuck, or blocked by this very thread
                yield from self._read(now)
                break
            if view.snap is not NEW and (self.degraded or view.snap.asked > self._began - OLD):
                break
            waited = True
            yield Wait()
        if view.snap is NEW:  # the store is away and never told
            self.locally(view)

    def _read(self, now: float) -> Steps:
        used = [view for view in list(self.views.values()) if view.snap is NEW or view.used > now - IDLE]
        try:
            found = yield Do(self.flows.read, [view.name for view in used])
        except StoreError as error:
            self.degrade(error)
            return
        answered = time.monotonic()
        self._recover(answered)
        self.due = answered + REFRESH
        for view in used:
            if view.snap.asked <= now or view.snap.local is not None:
                view.snap = seen(found.get(view.name), now, answered, self.due)
        for view in set(self.views.values()) - set(used):
            if view.used <= now - IDLE:
                self.views.pop(view.name, None)
                view.snap = NEW

    def learn(self, name: str, reading: Reading, asked: float) -> Snapshot:
        """Take note of a document that another command brought along."""
        view = self.view(name)
        new = seen(reading, asked, time.monotonic(), self.due)
        if view.snap is NEW or self.degraded:
            return new
        if new.generation > view.snap.generation or asked >= view.snap.asked:
            view.snap = new
        return new

    # ---- without the store ----

    def degrade(self, error: StoreError) -> None:
        """Go on without the store, and ask for it again after a pause that grows. Says so once."""
        with self._guard:
            now = time.monotonic()
            first, self.degraded = not self.degraded, True
            if first or now >= self.due:  # not once more for each of many calls that failed together
                again = not first or now - self._recovered < IDLE
                self._pause = min(self._pause * 2, LONGEST_PAUSE) if again else REFRESH
                self.due = now + self._pause
        for view in list(self.views.values()):
            if view.snap is not NEW:
                self.locally(view)
        if first:
            runtime.emit("degraded", feature="circuits", error=str(error))

    def _recover(self, now: float) -> None:
        with self._guard:
            if not self.degraded:
                return
            self.degraded, self._recovered = False, now
            for view in list(self.views.values()):
                view.local = None
        runtime.emit("recovered", feature="circuits")

    def locally(self, view: View, act: Callable[[LocalCircuit], Any] | None = None) -> Any:
        """Let ``act`` change this process's own circuit, and show calls how it is."""
        with self._guard:
            if not self.degraded:  # the store came back meanwhile
                return None
            if view.local is None:
                view.local = LocalCircuit(view.name, view.snap)
            result = act(view.local) if act else None
            view.snap = view.local.snapshot(self.due)
            return result
