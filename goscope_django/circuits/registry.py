"""Whether a call may run, and where its outcome goes.

Rules of this file: a call is judged by a snapshot and reports under that snapshot's generation; what is late is
dropped, here if it is known and by the store in any case. What is decided is written once, as steps (see
``breaker_reader``).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Final

from django.core.signals import setting_changed

from goscope_django import conf, runtime
from goscope_django.circuits.outcomes import Outcome
from goscope_django.circuits.snapshot import (
    NEVER,
    NEW,
    REFRESH,
    LocalCircuit,
    Options,
    Snapshot,
    View,
    milliseconds,
    remaining,
    seen,
)
from goscope_django.core.flow import Command, Flow
from goscope_django.core.forking import at_fork
from goscope_django.exceptions import CircuitOpen, StoreError
from goscope_django.mongodb.adapter import MongoDBAdapter
from goscope_django.mongodb.circuits.flows import LIMIT, BreakerStore, Reading
from goscope_django.mongodb.document.lease import new_claim
from goscope_django.mongodb.document.reading import rows
from goscope_django.process import counters

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


class Registry(Reader):
    """All circuits that this process uses on one adapter."""

    def entering(self, name: str, options: Options, lease: float | None) -> Steps:
        """Whether a call may run now: the snapshot that it runs under. Raises ``CircuitOpen``."""
        refused = 0
        while True:
            view = self.view(name)  # each time: it may have been dropped in favour of a new one meanwhile
            view.used = time.monotonic()
            yield from self.refreshed(view)
            snap, now = view.snap, time.monotonic()
            if snap is NEW:
                continue
            left = remaining(snap, options, now)
            if left is None:
                return snap
            if left > 0 or refused > 1:
                counters.count("circuit_rejections")
                raise CircuitOpen(
                    f"circuit {name!r} is {'forced open' if snap.forced else snap.state}: "
                    f"try again in {max(left, 0.05):.1f} seconds",
                    name=name,
                    retry_after=max(left, 0.05),
                )
            granted = yield from self._probing(view, options, lease)
            if granted is not None:
                return granted
            refused += 1

    def _probing(self, view: View, options: Options, lease: float | None) -> Steps:
        """Ask for a probe; ``None`` if it was not granted, which the view then explains."""
        claim, seconds = new_claim(), conf.current().default_lock_timeout if lease is None else lease
        asked = time.monotonic()
        if self.degraded:
            granted = self.locally(view, lambda own: own.admit(claim, options, seconds, asked))
            return view.snap.admitted(claim) if granted else None
        reset, lasting = milliseconds(options.reset_timeout), milliseconds(seconds)
        try:
            reading: Reading = yield Do(self.flows.admit, view.name, claim, reset, options.half_open_max_calls, lasting)
        except StoreError as error:
            self.degrade(error)
            return None
        new = self.learn(view.name, reading, asked)
        probes = rows((reading.document or {}).get("probes"))
        return new.admitted(claim) if any(one.get("id") == claim for one in probes) else None

    # ---- outcomes ----

    def leaving(self, name: str, entered: Snapshot, outcome: Outcome, options: Options) -> Steps:
        """Take note of how a call ended that ran under ``entered``."""
        view = self.view(name)
        if entered.forced or (outcome == "ignored" and entered.probe is None):
            return
        if self.degraded or entered.local is not None:
            if entered.local is None or entered.local is view.local:
                self._own(view, entered, outcome, options)
            return
        generation, asked = entered.generation, time.monotonic()
        step = self._report(view, entered, outcome, options)
        if step is None:
            return
        try:
            reading = yield step
        except StoreError as error:
            self.degrade(error)
            self._own(view, entered, outcome, options)
            return
        if reading is not None and (reading.document is not None or generation == 0):
            self.learn(name, reading, asked)

    def _report(self, view: View, entered: Snapshot, outcome: Outcome, options: Options) -> Do | None:
        generation, reset = entered.generation, milliseconds(options.reset_timeout)
        if entered.probe is not None:
            if outcome == "ignored":
                return Do(self.flows.give_back, view.name, entered.probe)
            if outcome == "failure":
                return Do(self.flows.probe_failed, view.name, generation, entered.probe, reset)
            enough = options.success_threshold
            return Do(self.flows.probe_succeeded, view.name, generation, entered.probe, enough)
        known = view.snap
        if known is not NEW and (known.generation != generation or known.forced):
            return None  # late: the circuit has moved since
        if outcome == "failure":
            threshold, window = options.failure_threshold, milliseconds(options.window)
            return Do(self.flows.failed, view.name, generation, threshold, window, reset, new_claim())
        if not known.failures:
            return None
        view.snap = known.without_failures()  # at once, so that one success of many concurrent ones is written
        return Do(self.flows.succeeded, view.name, generation)

    def _own(self, view: View, entered: Snapshot, outcome: Outcome, options: Options) -> None:
        now, generation, probe = time.monotonic(), entered.generation, entered.probe
        good = {"success": True, "failure": False, "ignored": None}[outcome]
        if probe is not None:
            self.locally(view, lambda own: own.probed(probe, generation, good, options, now))
        elif good is False:
            self.locally(view, lambda own: own.failed(generation, options, now))
        elif good:
            self.locally(view, lambda own: own.succeeded(generation))


_registry: Registry | None = None


def current() -> Registry:
    """This process's registry for the settings as they are now."""
    global _registry
    adapter, found = runtime.adapter(), _registry
    if found is None or found.adapter is not adapter:
        if found is not None:
            found.retire()
        found = _registry = Registry(adapter)
    return found


def forget(**_: object) -> None:
    """Let every breaker look again: the settings changed, or this is a forked child."""
    global _registry
    found, _registry = _registry, None
    if found is not None:
        found.retire()


setting_changed.connect(forget, dispatch_uid="goscope_django.circuits")
at_fork(child=forget)
