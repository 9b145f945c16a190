"""A clock that only goes forward. It is for durations, not for dates."""

from __future__ import annotations

import time
from typing import Final

_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def tick() -> float:
    """Seconds on a clock that only goes forward. Time while the machine sleeps counts, where the system can say."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
