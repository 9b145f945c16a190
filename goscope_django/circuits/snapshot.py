"""What a process knows of a circuit: a snapshot of the shared document, or a local circuit without the store.

Rules of this file:

* A snapshot never changes, it is replaced: a call reads it once, without a lock, and reports under its generation.
* Instants are of the monotonic clock. They are derived from the server's time in the very answer that brought the
  document, so no process's wall clock takes part.
* The local circuit moves by the same table as the shared one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from goscope_django.circuits.outcomes import Outcome
from goscope_django.contracts import CircuitState
from goscope_django.mongodb.circuits.document import opened_at, override_of, probes_of, state_of, whole
from goscope_django.mongodb.circuits.flows import LIMIT, Reading
from goscope_django.mongodb.circuits.table import MOVES, Happening

logger = logging.getLogger("goscope.circuits")
REFRESH: Final = 1.0
"""Seconds between two readings of all circuits in use."""

NEVER: Final = float("-inf")


@dataclass(frozen=True, slots=True)
class Options:
    """A breaker's options, durations in seconds. ``probe_timeout`` is ``DEFAULT_LOCK_TIMEOUT`` if ``None``."""

    failure_threshold: int
    reset_timeout: float
    success_threshold: int
    half_open_max_calls: int
    window: float
    probe_timeout: float | None = None


class Snapshot:
    """A circuit as this process last saw it.

    ``asked``, ``opened``, ``probes`` (when their leases end) and ``closed_until`` are monotonic instants. Until
    ``closed_until`` a call may run without another look. ``probe`` is the claim of the call that was admitted as a
    probe, ``local`` the local circuit that admitted it.
    """

    __slots__ = (
        "asked",
        "closed_until",
        "failures",
        "forced",
        "generation",
        "local",
        "opened",
        "probe",
        "probes",
        "state",
    )

    def __init__(
        self,
        state: CircuitState = "closed",
        *,
        generation: int = 0,
        failures: int = 0,
        opened: float = NEVER,
        probes: tuple[float, ...] = (),
        forced: CircuitState | None = None,
        asked: float = NEVER,
        closed_until: float = NEVER,
        local: LocalCircuit | None = None,
        probe: str | None = None,
    ) -> None:
        self.state = state
        self.generation = generation
        self.failures = failures
        self.opened = opened
        self.probes = probes
        self.forced = forced
        self.asked = asked
        self.closed_until = closed_until
        self.local = local
        self.probe = probe

    def admitted(self, probe: str) -> Snapshot:
        """The same, for the call whose claim is ``probe``."""
        return Snapshot(self.state, generation=self.generation, local=self.local, probe=probe)

    def without_failures(self) -> Snapshot:
        """The same without failures."""
        return Snapshot(self.state, generation=self.generation, asked=self.asked, closed_until=self.closed_until)


NEW: Final = Snapshot()
"""What is known of a circuit that was not yet read."""


def seen(reading: Reading | None, asked: float, answered: float, fresh_until: float) -> Snapshot:
    """The snapshot of a document that was asked for at ``asked`` and came at ``answered``; closed if there is none."""
    document = reading.document if reading else None
    if document is None or reading is None or reading.now is None:
        return Snapshot(asked=asked, closed_until=fresh_until)
    override, state = override_of(document), state_of(document)
    forced = override.state if override else None
    opening = opened_at(document)
    return Snapshot(
        state,
        generation=whole(document.get("generation")),
        failures=whole(document.get("failureCount")) if state == "closed" and not forced else 0,
        opened=_monotonic(opening, reading.now, answered) if opening else NEVER,
        probes=tuple(_monotonic(one.until, reading.now, answered) for one in probes_of(document, reading.now)),
        forced=forced,
        asked=asked,
        closed_until=fresh_until if (forced or state) == "closed" else NEVER,
    )


def _monotonic(moment: datetime, now: datetime, at: float) -> float:
    return at + (moment - now).total_seconds()


def milliseconds(seconds: float) -> int:
    """Whole milliseconds, for the store."""
    return max(1, round(seconds * 1_000))


def remaining(snap: Snapshot, options: Options, now: float) -> float | None:
    """``None`` if a call may run, 0 if it may ask for a probe, else the seconds until it is worth asking."""
    if (snap.forced or snap.state) == "closed":
        return None
    if snap.forced:
        return options.reset_timeout
    if snap.state == "open":
        left = snap.opened + options.reset_timeout - now
        if 0 < left <= 2 * options.reset_timeout:
            return left
    running = [until for until in snap.probes if until > now]
    if len(running) < options.half_open_max_calls:
        return 0.0
    return min(REFRESH, min(running) - now)


class Turn:
    """One call reads, and others may wait for it. ``began`` is when (monotonic)."""

    __slots__ = ("_reader", "_reading", "began")

    def __init__(self) -> None:
        self._reading = threading.Lock()
        self._reader: int | None = None
        self.began = 0.0

    def take(self, now: float) -> bool:
        """Whether this call is the one that reads. It calls ``end`` afterwards."""
        if not self._reading.acquire(blocking=False):
            return False
        self._reader, self.began = threading.get_ident(), now
        return True

    def end(self) -> None:
        """The reading is over."""
        self._reader = None
        self._reading.release()

    def wait(self) -> None:
        """Wait until the reading that is under way has ended, for ``LIMIT`` seconds at most."""
        # A coroutine of this very thread can't end its reading while we block it.
        if self._reader != threading.get_ident() and self._reading.acquire(timeout=LIMIT):
            self._reading.release()

    async def await_(self) -> None:
        """Async version of ``wait``. It looks every 2 ms, since the call that reads may run in a thread."""
        deadline = time.monotonic() + LIMIT
        while self._reading.locked() and time.monotonic() < deadline:  # noqa: ASYNC110  (a thread sets no event)
            await asyncio.sleep(0.002)


class View:
    """A circuit in use in this process.

    ``used`` is when a call was last seen to go through (monotonic), ``turn`` whose it is to read this circuit alone,
    ``known_until`` until when such a reading is enough. ``calls`` grows with each call that needed no further look;
    ``counted`` are those of them that the registry has seen.
    """

    __slots__ = ("calls", "counted", "known_until", "local", "name", "snap", "turn", "used")

    def __init__(self, name: str) -> None:
        self.name = name
        self.snap = NEW
        self.used = time.monotonic()
        self.turn = Turn()
        self.known_until = NEVER
        self.local: LocalCircuit | None = None
        self.calls = self.counted = 0


class LocalCircuit:
    """A circuit of this process alone, for as long as the store can't be reached. The caller holds a lock."""

    def __init__(self, name: str, start: Snapshot) -> None:
        self.name = name
        self.state: CircuitState = start.state
        self.forced = start.forced
        self.opened = start.opened
        self.generation = start.generation
        self.failures = [time.monotonic()] * start.failures
        self.probes: dict[str, float] = {}
        self.successes = 0

    def _move(self, happening: Happening, now: float) -> None:
        to = MOVES[self.state, happening].to
        logger.warning("circuit %r goes from %s to %s in this process only: no store", self.name, self.state, to)
        self.state = to
        self.generation += 1
        self.successes = 0
        self.failures.clear()
        if to == "open":
            self.opened = now

    def failed(self, generation: int, options: Options, now: float) -> None:
        """A call that was admitted to the closed circuit under ``generation`` failed."""
        if self.state != "closed" or generation != self.generation or self.forced:
            return
        self.failures = [one for one in self.failures if one > now - options.window]
        self.failures.append(now)
        if len(self.failures) >= options.failure_threshold:
            self._move("threshold", now)

    def succeeded(self, generation: int) -> None:
        """A call that was admitted to the closed circuit under ``generation`` succeeded."""
        if self.state == "closed" and generation == self.generation:
            self.failures.clear()

    def admit(self, claim: str, options: Options, lease: float, now: float) -> bool:
        """Grant ``claim`` a probe of ``lease`` seconds if ``reset_timeout`` is over, or a place for one is free."""
        if self.forced:
            return False
        self.probes = {one: until for one, until in self.probes.items() if until > now}
        if len(self.probes) >= options.half_open_max_calls:  # also those from before it opened again
            return False
        if self.state == "open" and now - self.opened >= options.reset_timeout:
            self._move("probe_granted", now)
        if self.state != "half-open":
            return False
        self.probes[claim] = now + lease
        return True

    def probed(self, claim: str, generation: int, outcome: Outcome, options: Options, now: float) -> None:
        """The probe ``claim`` of ``generation`` ended."""
        live = self.probes.pop(claim, NEVER) > now
        if self.state != "half-open" or generation != self.generation:
            return
        if outcome == "ignored" or not live:
            return
        if outcome == "failure":
            self._move("probe_failed", now)
            return
        self.successes += 1
        if self.successes >= options.success_threshold:
            self._move("probes_succeeded", now)

    def snapshot(self, fresh_until: float) -> Snapshot:
        """The circuit as calls see it until ``fresh_until``."""
        return Snapshot(
            self.state,
            generation=self.generation,
            failures=len(self.failures),
            opened=self.opened,
            probes=tuple(self.probes.values()),
            forced=self.forced,
            asked=time.monotonic(),
            closed_until=fresh_until if (self.forced or self.state) == "closed" else NEVER,
            local=self,
        )
