"""What this process knows of its circuits: whether a call may run, and where its outcome goes.

A process has one ``Registry``, which keeps a snapshot of each. The first call through a circuit reads this one alone;
after that all circuits in use are read together, at most once a second.

Rules of this file:

* A call is judged by a snapshot and reports under that snapshot's generation. An outcome that comes after the circuit
  has moved is dropped: here if this process knows of the move, by the store in any case.
* While the store can't be reached each circuit goes on in this process alone (``LocalCircuit``). When it is back, what
  was counted locally is dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
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
    Turn,
    View,
    milliseconds,
    remaining,
    seen,
)
from goscope_django.core import arguments
from goscope_django.core.flow import Flow, call
from goscope_django.core.forking import at_fork
from goscope_django.core.reasons import Reason, reason
from goscope_django.exceptions import CircuitOpen, InvalidValue, StoreError
from goscope_django.mongodb.adapter import MongoDBAdapter
from goscope_django.mongodb.circuits.flows import CircuitFlows, CircuitStore, Reading
from goscope_django.mongodb.document.lease import new_claim
from goscope_django.mongodb.document.reading import rows
from goscope_django.process import counters, holder

OLD: Final = 2.0
"""Seconds after which a call no longer goes on with what is known while another call reads, but waits for it."""

IDLE: Final = 60.0
"""Seconds after which a circuit that nobody called is no longer read. Its next call reads it anew."""

LONGEST_PAUSE: Final = 30.0
"""Seconds between two attempts to reach the store at most."""


def circuit_name(name: object) -> str:
    """``name`` if a circuit can have it. Raises ``InvalidType`` or ``InvalidValue``."""
    text = arguments.key(name, "name")
    if not text:
        raise InvalidValue("name='': a circuit needs a name, or all breakers would share one state")
    return text


def _why(cause: BaseException | None) -> Reason | None:
    """What the circuit keeps of a failure."""
    return reason(cause) if cause is not None and conf.current().record_failures else None


class Registry:
    """All circuits that this process uses on one adapter."""

    def __init__(self, adapter: MongoDBAdapter) -> None:
        self.adapter = adapter
        self.store = CircuitStore(adapter.store)
        self.flows = CircuitFlows(adapter.key_prefix)
        self.views: dict[str, View] = {}
        self.due = 0.0
        """When all circuits are to be read again (monotonic)."""
        self.degraded = False
        """Whether the store can't be reached."""
        self._dropped = time.monotonic()
        self._pause = REFRESH
        self._recovered = NEVER
        self._tallying = threading.Lock()
        self._turn = Turn()  # of the call that reads all
        self._guard = threading.Lock()  # of local circuits and of the change between the two modes

    def view(self, name: str) -> View:
        """The view of a circuit, made on first use."""
        found = self.views.get(name)
        return found if found is not None else self.views.setdefault(name, View(name))

    def retire(self) -> None:
        """Let every call look here again before it runs."""
        self.tally()
        for view in list(self.views.values()):
            view.snap = NEW
        self.views.clear()

    # ---- before a call ----

    def entering(self, name: str, options: Options) -> Flow[Snapshot]:
        """Whether a call may run now: the snapshot that it runs under. Raises ``CircuitOpen``."""
        refused = 0
        while True:
            view = self.view(name)  # each time: it may have been dropped for a new one meanwhile
            view.used = time.monotonic()
            yield from self.refreshed(view)
            snap, now = view.snap, time.monotonic()
            if snap is NEW:
                continue
            left = remaining(snap, options, now)
            if left is None:
                counters.circuits.add(name, counters.CALLS)
                return snap
            if left > 0 or refused > 1:
                counters.circuits.add(name, counters.REJECTIONS)
                raise CircuitOpen(
                    f"circuit {name!r} is {'forced open' if snap.forced else snap.state}: "
                    f"try again in {max(left, 0.05):.1f} seconds",
                    name=name,
                    retry_after=max(left, 0.05),
                )
            granted = yield from self._probing(view, options)
            if granted is not None:
                counters.circuits.add(name, counters.CALLS)
                return granted
            refused += 1

    def tally(self) -> None:
        """Count the calls that needed no look here, and note which circuits are in use by them."""
        # Not waited for: it is for figures, and in a forked child nobody may give it back.
        if not self._tallying.acquire(blocking=False):
            return
        try:
            now = time.monotonic()
            for view in list(self.views.values()):
                calls = view.calls
                if calls != view.counted:
                    counters.circuits.row(view.name)[counters.CALLS] += calls - view.counted
                    view.counted, view.used = calls, now
        finally:
            self._tallying.release()

    def _probing(self, view: View, options: Options) -> Flow[Snapshot | None]:
        """Ask for a probe. ``None`` if it was not granted; the view then says why."""
        claim, asked = new_claim(), time.monotonic()
        lease = conf.current().default_lock_timeout if options.probe_timeout is None else options.probe_timeout
        if self.degraded:
            granted = self._locally(view, lambda own: own.admit(claim, options, lease, asked))
            return view.snap.admitted(claim) if granted else None
        reset, most = milliseconds(options.reset_timeout), options.half_open_max_calls
        try:
            reading: Reading = yield from self._ask(
                self.flows.admit, view.name, claim, reset, most, milliseconds(lease), holder.describe()
            )
        except StoreError as error:
            self._degrade(error)
            return None
        new = self.learn(view.name, reading, asked)
        probes = rows((reading.document or {}).get("probes"))
        return new.admitted(claim) if any(one.get("id") == claim for one in probes) else None

    # ---- after a call ----

    def leaving(
        self, name: str, entered: Snapshot, outcome: Outcome, options: Options, cause: BaseException | None = None
    ) -> Flow[None]:
        """Report how a call ended that ran under ``entered``: if it failed, by ``cause``."""
        view = self.view(name)
        if outcome == "failure":
            counters.circuits.add(name, counters.FAILURES)
        if entered.forced or (outcome == "ignored" and entered.probe is None):
            return
        if self.degraded or entered.local is not None:
            if entered.local is None or entered.local is view.local:
                self._report_locally(view, entered, outcome, options)
            return
        generation, asked = entered.generation, time.monotonic()
        report = self._report(view, entered, outcome, options, cause)
        if report is None:
            return
        try:
            reading = yield from report
        except StoreError as error:
            self._degrade(error)
            self._report_locally(view, entered, outcome, options)
            return
        if reading.document is not None or generation == 0:
            self.learn(name, reading, asked)

    def _report(
        self, view: View, entered: Snapshot, outcome: Outcome, options: Options, cause: BaseException | None
    ) -> Flow[Reading] | None:
        """What tells the store of the outcome; ``None`` if there is nothing to tell."""
        generation, reset = entered.generation, milliseconds(options.reset_timeout)
        if entered.probe is not None:
            if outcome == "ignored":
                return self._ask(self.flows.give_back, view.name, entered.probe)
            if outcome == "failure":
                return self._ask(self.flows.probe_failed, view.name, generation, entered.probe, reset, _why(cause))
            enough = options.success_threshold
            return self._ask(self.flows.probe_succeeded, view.name, generation, entered.probe, enough)
        known = view.snap
        if known is not NEW and (known.generation != generation or known.forced):
            return None  # too late: the circuit has moved since
        if outcome == "failure":
            threshold, window = options.failure_threshold, milliseconds(options.window)
            return self._ask(self.flows.failed, view.name, generation, threshold, window, reset, _why(cause))
        if not known.failures:
            return None
        view.snap = known.without_failures()  # at once, so that one success of many concurrent ones is written
        return self._ask(self.flows.succeeded, view.name, generation)

    def _report_locally(self, view: View, entered: Snapshot, outcome: Outcome, options: Options) -> None:
        now, generation, probe = time.monotonic(), entered.generation, entered.probe
        if probe is not None:
            self._locally(view, lambda own: own.probed(probe, generation, outcome, options, now))
        elif outcome == "failure":
            self._locally(view, lambda own: own.failed(generation, options, now))
        elif outcome == "success":
            self._locally(view, lambda own: own.succeeded(generation))

    # ---- reading ----

    def refreshed(self, view: View) -> Flow[None]:
        """Make sure that ``view`` is known, and read all circuits if it is time."""
        waited = False
        while True:
            now = time.monotonic()
            first = view.snap is NEW and not self.degraded
            if now < max(self.due, view.known_until) and not first:
                break
            turn = view.turn if first else self._turn
            if turn.take(now):
                try:
                    if not first:
                        yield from self._read(now)
                    elif view.snap is NEW:
                        yield from self._read_first(view, now)
                finally:
                    turn.end()
                break
            if waited:  # the call that reads is stuck, or is blocked by this very thread
                yield from self._read_first(view, now) if first else self._read(now)
                break
            if view.snap is not NEW and (self.degraded or view.snap.asked > turn.began - OLD):
                break
            waited = True
            yield from call(turn.wait, turn.await_)
        if view.snap is NEW:  # the store can't be reached, and was never read
            self._locally(view)

    def _read_first(self, view: View, now: float) -> Flow[None]:
        """Read one circuit alone. It is known for a second, then all are read together."""
        try:
            found = yield from self._ask(self.flows.read, [view.name])
        except StoreError as error:
            self._degrade(error)
            return
        answered = time.monotonic()
        if view.snap is NEW and not self.degraded:
            view.known_until = answered + REFRESH
            view.snap = seen(found.get(view.name), now, answered, view.known_until)
        if now - self._dropped > IDLE:  # where all calls are first ones, nothing else does it
            self._drop_idle(now, [view])

    def _read(self, now: float) -> Flow[None]:
        self.tally()
        used = [view for view in list(self.views.values()) if view.snap is NEW or view.used > now - IDLE]
        try:
            found = yield from self._ask(self.flows.read, [view.name for view in used])
        except StoreError as error:
            self._degrade(error)
            return
        answered = time.monotonic()
        self._recover(answered)
        self.due = answered + REFRESH
        for view in used:
            if view.snap.asked <= now or view.snap.local is not None:
                view.snap = seen(found.get(view.name), now, answered, self.due)
        self._drop_idle(now, used)

    def _drop_idle(self, now: float, kept: list[View]) -> None:
        """Read circuits no more that nobody called for long, but ``kept``."""
        self._dropped = now
        self.tally()
        for view in set(self.views.values()) - set(kept):
            if view.used <= now - IDLE:
                self.views.pop(view.name, None)
                view.snap = NEW

    def learn(self, name: str, reading: Reading, asked: float) -> Snapshot:
        """Take note of a document that another command returned. ``asked`` is when that began (monotonic)."""
        view = self.view(name)
        new = seen(reading, asked, time.monotonic(), self.due)
        if view.snap is NEW or self.degraded:
            return new
        if new.generation > view.snap.generation or asked >= view.snap.asked:
            view.snap = new
        return new

    def _ask(self, operation: Callable[..., Flow[Any]], *args: Any) -> Flow[Any]:
        """Run a flow of the store, within ``LIMIT`` seconds."""
        return call(self.store.run, self.store.arun, operation, *args)

    # ---- while the store can't be reached ----

    def _degrade(self, error: StoreError) -> None:
        """Go on without the store, and try it again after a pause that grows. The event is sent once."""
        with self._guard:
            now = time.monotonic()
            first, self.degraded = not self.degraded, True
            if first or now >= self.due:  # not once more for each of many calls that failed together
                again = not first or now - self._recovered < IDLE
                self._pause = min(self._pause * 2, LONGEST_PAUSE) if again else REFRESH
                self.due = now + self._pause
        for view in list(self.views.values()):
            if view.snap is not NEW:
                self._locally(view)
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

    def _locally(self, view: View, act: Callable[[LocalCircuit], bool | None] | None = None) -> bool | None:
        """Let ``act`` change the circuit of this process alone, and show calls the result."""
        with self._guard:
            if not self.degraded:  # the store came back meanwhile
                return None
            if view.local is None:
                view.local = LocalCircuit(view.name, view.snap)
            result = act(view.local) if act else None
            view.snap = view.local.snapshot(self.due)
            return result


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


def _tally() -> None:
    if _registry is not None:
        _registry.tally()


counters.tally_by(_tally)
setting_changed.connect(forget, dispatch_uid="goscope_django.circuits")
at_fork(child=forget)
