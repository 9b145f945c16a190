"""A clock that only goes forward. It is for durations, not for dates.

``time.monotonic`` stops while the machine sleeps, on Linux and on macOS. What others count meanwhile goes on: a lease
on the server, for instance. On Linux ``CLOCK_BOOTTIME`` goes on too, on macOS the clock that is called
``CLOCK_MONOTONIC`` there. On Windows there is only ``time.monotonic``.
"""

from __future__ import annotations

import sys
import time
from typing import Final

_NAME: Final = "CLOCK_MONOTONIC" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
_CLOCK: Final[int | None] = getattr(time, _NAME, None)


def tick() -> float:
    """Seconds on a clock that only goes forward. Time while the machine sleeps counts, where the system can say."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
