"""The four decorators, in one place.

>>> from goscope_django.decorators import circuit_breaker, idempotent, locked, single_flight

Each works on functions, methods, class-based views (through ``method_decorator``), REST framework views and
``async def``.
"""

from __future__ import annotations

from goscope_django.circuits import circuit_breaker
from goscope_django.idempotency import idempotent
from goscope_django.locks import locked
from goscope_django.single_flight import single_flight

__all__ = ["circuit_breaker", "idempotent", "locked", "single_flight"]
