"""The breaker's states and moves, as a table, and what an observer sees of a circuit.

Rule of this file: pure values, no time, no store. The updates in ``breakers`` and the local circuit of a process that
has lost its store take from here where a happening leads; neither names a target state of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from goscope_django.contracts import CircuitState

Happening = Literal["threshold", "probe_granted", "probes_succeeded", "probe_failed"]
Command = Literal["force_open", "force_close", "reset"]

HISTORY_LENGTH: Final = 20
"""How many moves a circuit's document remembers."""

DEFAULT_RESET: Final = 30.0
"""Seconds after which an open circuit is shown as ready, where its document does not say."""


@dataclass(frozen=True, slots=True)
class Move:
    """Where a happening leads, and the reason that history and signals give for it."""

    to: CircuitState
    reason: str


MOVES: Final[Mapping[tuple[CircuitState, Happening], Move]] = {
    ("closed", "threshold"): Move("open", "failures"),
    ("open", "probe_granted"): Move("half-open", "reset_timeout"),
    ("half-open", "probes_succeeded"): Move("closed", "probe"),
    ("half-open", "probe_failed"): Move("open", "probe"),
}
"""Every move that calls bring about. Whatever is not here leaves the circuit as it is."""

COMMANDS: Final[Mapping[Command, Move]] = {
    "force_open": Move("open", "operator"),
    "force_close": Move("closed", "operator"),
    "reset": Move("closed", "operator"),
}
"""What an operator does, from any state. The first two leave an override behind, the last removes it."""


@dataclass(frozen=True, slots=True)
class CircuitProbe:
    """A trial call on a half-open circuit: its place is free again at ``until`` at the latest."""

    id: str
    until: datetime


@dataclass(frozen=True, slots=True)
class CircuitOverride:
    """An operator's word, which wins over everything until it is reset. ``state`` is ``open`` or ``closed``."""

    state: CircuitState
    reason: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class CircuitTransition:
    """One move of the past. ``reason`` is ``failures``, ``reset_timeout``, ``probe``, ``operator``, or ``success`` and
    ``set`` where the provider recorded it; ``note`` is what the operator wrote."""

    at: datetime | None
    from_state: str
    to_state: str
    reason: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class CircuitInfo:
    """A circuit as an observer sees it at one instant of the server.

    ``retry_after`` is in seconds, 0 for an open circuit that waits for its next call to try again, and ``None`` where
    there is nothing to wait for: closed, half-open or forced. ``generation`` grows with every move; hand it to an
    operator's function as ``expected_generation`` and it is refused if the circuit has moved since. ``probes`` are
    those whose lease lasts.
    """

    name: str
    state: CircuitState
    failure_count: int = 0
    generation: int = 0
    retry_after: float | None = None
    opened_at: datetime | None = None
    last_failure_time: datetime | None = None
    last_success_time: datetime | None = None
    updated_at: datetime | None = None
    successes: int = 0
    probes: tuple[CircuitProbe, ...] = ()
    override: CircuitOverride | None = None
    history: tuple[CircuitTransition, ...] = ()
