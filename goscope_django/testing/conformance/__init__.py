"""The contracts as test suites. An adapter proves itself by subclassing them with pytest:

    class TestLocks(LockConformance):
        @pytest.fixture
        def provider(self):
            return MyAdapter().lock

Every test runs in both colours: the synchronous methods, and their ``a`` twins in one event loop. Class attributes
name what an adapter can't do (``survives_removal = False``), with the reason in ``gaps``; such tests are skipped by
name, not left out.
"""

from __future__ import annotations

from goscope_django.testing.conformance.base import Conformance, Drive
from goscope_django.testing.conformance.cache import CacheConformance
from goscope_django.testing.conformance.checkpoints import CheckpointConformance
from goscope_django.testing.conformance.circuits import CircuitConformance
from goscope_django.testing.conformance.idempotency import IdempotencyConformance
from goscope_django.testing.conformance.locks import LockConformance

__all__ = [
    "CacheConformance",
    "CheckpointConformance",
    "CircuitConformance",
    "Conformance",
    "Drive",
    "IdempotencyConformance",
    "LockConformance",
]
