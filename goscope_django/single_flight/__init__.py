"""``single_flight``: identical calls that run at the same time, on any machine, run once and share the outcome.

The decorator is in ``decorator``; which flight a call belongs to is in ``policy``, what an outcome means in ``plan``.
"""

from __future__ import annotations

from goscope_django.single_flight.decorator import single_flight
from goscope_django.single_flight.plan import HEADER

__all__ = ["HEADER", "single_flight"]
