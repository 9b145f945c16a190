"""The states of a circuit and the moves between them, as a table, and what an observer sees of a circuit.

Rule of this file: pure values, no time, no store. The updates in ``flows`` and the local circuit, which a process uses
while MongoDB can't be reached, both look here for where a happening leads. Neither names a target state of its own.
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
"""How many moves a circuit's document keeps."""

DEFAULT_RESET: Final = 30.0
"""Seconds after which an open circuit is shown as ready for a probe, if its document does not say."""


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
"""Every move that calls cause. Whatever is not in this table leaves the circuit as it is."""

COMMANDS: Final[Mapping[Command, Move]] = {
    "force_open": Move("open", "operator"),
    "force_close": Move("closed", "operator"),
    "reset": Move("closed", "operator"),
}
"""What an operator's commands do, from any state. The first two set an override, the last removes it."""


@dataclass(frozen=True, slots=True)
class CircuitProbe:
    """A trial call on a half-open circuit. Its lease ends at ``until``, and then its place is free again.

    ``holder`` says who makes it, if that is known.
    """

    id: str
    until: datetime
    holder: str | None = None


@dataclass(frozen=True, slots=True)
class CircuitOverride:
    """An operator's override, which holds until it is reset. ``state`` is ``open`` or ``closed``."""

    state: CircuitState
    reason: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class CircuitTransition:
    """A past move. ``reason`` is ``failures``, ``reset_timeout``, ``probe`` or ``operator``; ``success`` or ``set`` if
    ``adapter.circuit_breaker`` recorded it. ``note`` is what the operator wrote."""

    at: datetime | None
    from_state: str
    to_state: str
    reason: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class CircuitFailure:
    """Why a call failed: the exception's type, and what it says, shortened and without what looks like a secret."""

    type: str
    text: str
    at: datetime

    def __str__(self) -> str:
        return f"{self.type}: {self.text}" if self.text else self.type


@dataclass(frozen=True, slots=True)
class CircuitInfo:
    """A circuit as an observer sees it at one instant of the server's clock.

    ``retry_after`` is in seconds: how long an open circuit still refuses calls, 0 if its next call is a probe, ``None``
    if the circuit is closed, half-open or forced. ``generation`` grows with every move; an operator's function that is
    given it as ``expected_generation`` does nothing if the circuit has moved since. ``probes`` are those whose lease
    lasts. ``opened_by`` is the failure that opened it, ``last_failure`` the last one; they are ``None`` where another
    package recorded that failure, or ``RECORD_FAILURES`` is off.
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
    opened_by: CircuitFailure | None = None
    last_failure: CircuitFailure | None = None
