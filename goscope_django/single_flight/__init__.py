"""``single_flight``: identical calls that run at the same time, anywhere in the fleet, run once and share the outcome.

Rules of this file:

* It is deduplication, not mutual exclusion. Whenever something is in the way (time, the server, an unshareable result)
  the function runs, for this caller alone; nobody gets an answer that may not be theirs.
* What a function returned or raised is never replaced by a failure to share it.
* The two colours differ in ``await`` alone; ``single_flight_plan`` decides.
"""

from __future__ import annotations

from goscope_django.single_flight.decorator import (
    single_flight,
)
from goscope_django.single_flight.plan import (
    HEADER,
)

__all__ = [
    "HEADER",
    "single_flight",
]
