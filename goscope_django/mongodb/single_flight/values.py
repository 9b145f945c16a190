"""The values that the flows of flights take and return.

Rule of this file: frozen values. The only decision is whether one moment was surely before another.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any


@dataclass(frozen=True, slots=True)
class Terms:
    """``lease`` and ``linger`` in milliseconds, who leads, and the most that one command may take (seconds)."""

    lease: int
    linger: int
    leader: str
    limit: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a leader published: ``kind`` and ``value`` are the caller's, ``took`` is in seconds."""

    kind: str
    value: Any
    took: float
    published_at: datetime


@dataclass(frozen=True, slots=True)
class Entered:
    """What came of entering a flight: to lead it, its result, or neither until the deadline.

    ``sent`` is the monotonic time before the command by which the flight was joined or the lease granted, ``now`` the
    server's time in that command, ``proven`` the time before the last command that found the flight still in the air.
    """

    claim: str | None
    token: int
    sent: float
    now: datetime
    proven: float
    result: Result | None = None

    def surely_before(self, moment: float, result: Result) -> bool:
        """Whether ``moment`` (monotonic, in this process) was before ``result`` was published, by the server's time.
        Our own clock only bridges the time since the server told its own; in doubt the answer is no."""
        if moment <= self.proven:
            return True
        latest = self.now + timedelta(seconds=moment - self.sent, milliseconds=1)
        return latest <= result.published_at


@dataclass(frozen=True, slots=True)
class FlightInfo:
    """A flight in the air, as an observer sees it."""

    key: str
    leader: str
    token: int
    started_at: datetime | None
    expires_at: datetime | None
