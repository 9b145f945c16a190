"""A clock that only goes forward."""

from __future__ import annotations

import time
from typing import Final

_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def tick() -> float:
    """Seconds on a clock that only goes forward, the machine's sleep included where the system can tell."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
