"""The leases that this process lost, until ``figures`` sends them: which, and by whom.

Rule of this file: it is told of a loss by its event, remembers the last ``MOST``, and sends nothing.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from goscope_django.contracts import Event
from goscope_django.mongodb.losses import Loss
from goscope_django.process import holder

MOST: Final = 20
_KINDS: Final = {
    "lock_lost": ("lock", "key"),
    "task_lost": ("task", "task_id"),
    "idempotent_lost": ("idempotency", "key"),
}
_lost: deque[tuple[str, str, str, int | None, float]] = deque(maxlen=MOST)


def observe(event: Event) -> None:
    """Remember an event, if it is a loss."""
    if event.name in _KINDS:
        kind, key = _KINDS[event.name]
        details = event.details
        owner = str(details.get("owner") or holder.process())
        _lost.append((kind, str(details.get(key)), owner, details.get("token"), time.monotonic()))


def taken() -> list[Loss]:
    """What was lost since this was last called."""
    now = time.monotonic()
    found: list[Loss] = []
    while True:
        try:
            kind, key, owner, token, moment = _lost.popleft()
        except IndexError:
            return found
        found.append(Loss(kind, key, owner, token, now - moment))


def forget() -> None:
    """Drop what was not sent: it was another store's, or is the parent's to send."""
    _lost.clear()
