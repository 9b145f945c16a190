"""The contracts as test suites for pytest, one for each contract. A new adapter subclasses them::

    class TestLocks(LockConformance):
        @pytest.fixture
        def provider(self):
            return MyAdapter().lock

Every test runs twice: with the sync methods, and with their async versions in one event loop. An adapter that can't do
something names the test and the reason in ``gaps``, and that test is skipped.
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
