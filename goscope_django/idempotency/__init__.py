"""Idempotency: what was asked twice is done once, and answered twice alike.

After the IETF draft "The Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header-07) and Stripe's
API: the first request with a key claims it and runs; its response is kept, and every repeat gets that.

Rule of this file: the decorator and nothing else. ``idempotency_policy`` decides, ``idempotency_attempt`` keeps a claim
and ends it, ``idempotency_payload`` reads requests, ``idempotency_answers`` makes answers.
"""

from __future__ import annotations

from goscope_django.idempotency.attempt import (
    Attempt,
)
from goscope_django.idempotency.decorator import (
    current,
    idempotent,
)

__all__ = [
    "Attempt",
    "current",
    "idempotent",
]
