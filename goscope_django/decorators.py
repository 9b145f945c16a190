"""The decorators, in one place.

>>> from goscope_django.decorators import cached, cached_page, circuit_breaker, idempotent, locked, single_flight

Each works on functions, methods, class-based views (through ``method_decorator``), REST framework views and
``async def``. ``cached_page`` is for views.
"""

from __future__ import annotations

from goscope_django.cache.decorator import cached
from goscope_django.cache.pages import cached_page
from goscope_django.circuits import circuit_breaker
from goscope_django.idempotency import idempotent
from goscope_django.locks import locked
from goscope_django.single_flight import single_flight

__all__ = ["cached", "cached_page", "circuit_breaker", "idempotent", "locked", "single_flight"]
