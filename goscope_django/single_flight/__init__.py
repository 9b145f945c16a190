"""``single_flight``: identical calls that run at the same time, on any machine, run once and share the outcome.

``HEADER`` is the name of the header in which each response says what it was: ``leader``, ``follower`` or ``bypass``.
"""

# ``decorator`` has the decorator, ``policy`` says which flight a call belongs to, ``plan`` what an outcome means.

from __future__ import annotations

from goscope_django.single_flight.decorator import single_flight
from goscope_django.single_flight.plan import HEADER

__all__ = ["HEADER", "single_flight"]
