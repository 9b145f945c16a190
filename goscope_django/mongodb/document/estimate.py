"""The server's time without asking for it each time.

Rules of this file: it never uses this machine's date. The server states its time in an answer, and a clock that nobody
sets, and that goes on while the machine sleeps, says how long ago that was. A statement is used for a second; then the
next answer brings a new one, without a command of its own. Where an instant lies within ``MARGIN`` of the estimate,
the server is asked instead.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from goscope_django.core.ticks import tick

HOLDS: Final = 1.0
"""Seconds for which a statement of the server is used."""

MARGIN: Final = 0.05
"""Seconds around the estimate in which the server decides. A statement that took longer is not used."""

PATIENCE: Final = 100
_PAUSE: Final = 0.01
"""After ``PATIENCE`` answers in a row without a time (a miss has none) only one in ``_PAUSE`` seconds is asked."""

RELIEF: Final = 10.0
"""Seconds until the next question for the time, after one without a usable answer: a slow link stays slow."""

_DRIFT: Final = 0.002
"""Seconds by which two clocks may drift apart while a statement is used."""

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001  compared with what the driver gives, which has no zone either


class Estimate:
    """One server's time as far as it is known. Threads share it safely: one tuple is written at once."""

    __slots__ = ("_ask_at", "_in_vain", "_known", "_question_at")

    def __init__(self) -> None:
        self._known: tuple[float, float, float] | None = None  # the server's time less ours; holds until; unsure by
        self._ask_at = 0.0
        self._in_vain = 0
        self._question_at = 0.0

    def due(self) -> bool:
        """Whether the next answer should include the server's time."""
        return tick() >= self._ask_at

    def question(self) -> bool:
        """Whether to send a command that only asks for the time. If true, the caller sends it: the next one may be
        ``RELIEF`` seconds later."""
        now = tick()
        if now < self._question_at:
            return False
        self._question_at = now + RELIEF
        return True

    def learn(self, now: Any, sent: float) -> None:
        """The server stated ``now`` (without a zone) in answer to what was sent at ``sent``; ``None`` if it did not."""
        received = tick()
        if isinstance(now, datetime) and received - sent < MARGIN:
            unsure = (received - sent) / 2
            self._known = ((now - _EPOCH).total_seconds() - sent - unsure, received + HOLDS, unsure + _DRIFT)
            self._ask_at, self._in_vain, self._question_at = received + HOLDS, 0, 0.0
        else:
            self._in_vain += 1
            if self._in_vain > PATIENCE:
                self._ask_at = received + _PAUSE

    def reached(self) -> datetime | None:
        """The latest instant (without a zone) that the server's clock has surely come to, a few milliseconds ago as a
        rule; ``None`` where too little is known."""
        known, now = self._known, tick()
        if known is None or now >= known[1]:
            return None
        return _EPOCH + timedelta(seconds=known[0] + now - known[2])

    def passed(self, moment: Any) -> bool | None:
        """Whether ``moment`` (a date without a zone, or ``None``, which never comes) has passed; ``None`` where that is
        unsure, as it is of anything else."""
        if not isinstance(moment, datetime):
            return False if moment is None else None
        known, now = self._known, tick()
        if known is None or now >= known[1]:
            return None
        ahead = (moment - _EPOCH).total_seconds() - known[0] - now
        return None if -MARGIN < ahead < MARGIN else ahead < 0
