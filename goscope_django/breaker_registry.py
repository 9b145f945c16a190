"""Whether a call may run, and where its outcome goes.

Rules of this file: a call is judged by a snapshot and reports under that snapshot's generation; what is late is
dropped, here if it is known and by the store in any case. What is decided is written once, as steps (see
``breaker_reader``).
"""

from __future__ import annotations

import time

from django.core.signals import setting_changed

from goscope_django import conf, counters, runtime
from goscope_django.breaker_outcomes import Outcome
from goscope_django.breaker_reader import Do, Reader, Steps
from goscope_django.breaker_states import NEW, Options, Snapshot, View, milliseconds, remaining
from goscope_django.exceptions import CircuitOpen, StoreError
from goscope_django.forking import at_fork
from goscope_django.mongodb.breakers import Reading
from goscope_django.mongodb.lease import new_claim
from goscope_django.mongodb.reading import rows


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
