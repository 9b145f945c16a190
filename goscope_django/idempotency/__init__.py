"""``idempotent``: a request or call that comes twice is carried out once, and both get the same answer.

``current`` and ``request.idempotency`` give the ``Attempt`` to the work while it runs. The errors below are what a
function raises; a view answers them itself.
"""

# ``decorator`` has the decorator, ``policy`` decides, ``attempt`` keeps a claim and ends it, ``payload`` reads
# requests, ``answers`` makes responses and results.

from __future__ import annotations

from goscope_django.exceptions import ClaimLost, IdempotencyConflict, IdempotencyError, IdempotencyMismatch
from goscope_django.idempotency.attempt import Attempt
from goscope_django.idempotency.decorator import current, idempotent
from goscope_django.idempotency.typed import IdempotentRequest

__all__ = [
    "Attempt",
    "ClaimLost",
    "IdempotencyConflict",
    "IdempotencyError",
    "IdempotencyMismatch",
    "IdempotentRequest",
    "current",
    "idempotent",
]
