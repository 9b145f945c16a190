"""How the cache learns the server's time: once a second an operation that it does anyway also asks for it.

Rule of this file: it only asks. ``document.estimate`` keeps what is known; ``docs/adr/0002-server-time.md`` says how
expiry is judged by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from goscope_django.core.flow import Flow, ask
from goscope_django.core.ticks import tick
from goscope_django.mongodb.cache import own
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.driver.execute import CACHE

STAMPED: Final = {**own.FIELDS, "value": True}
"""What of an entry is read, besides the server's time."""


def stamped(clock: Clock, full: str) -> Flow[Any]:
    """The live entry, read together with the server's time. One command."""
    sent = tick()
    found = yield from ask(CACHE, "point", {"key": full}, {**STAMPED, **clock.stamp()})
    if clock.estimate is not None:
        clock.estimate.learn(found and found.get("now"), sent)
    return None if found is None or clock.lapsed(found) else found


def stating(
    clock: Clock, fields: Mapping[str, bool], method: str, test: Mapping[str, Any], *change: Any, **options: Any
) -> Flow[Any]:
    """Write to one entry; its ``fields`` and the server's time are what comes back. One command."""
    sent = tick()
    found = yield from ask(CACHE, method, test, *change, {"_id": False, **fields, **clock.stamp()}, **options)
    if clock.primary is not None:
        clock.primary.learn(found and found.get("now"), sent)
    return found


def surely_reached(clock: Clock) -> Flow[datetime | None]:
    """An instant that the server's clock has certainly reached; ``None`` if that is not known.

    It may take a command of its own, once a second, so it is for operations that cost more than that.
    """
    estimate = clock.primary
    if estimate is None:
        return None
    reached = estimate.reached()
    if reached is None and estimate.question():
        sent = tick()
        estimate.learn((yield from ask(CACHE, "time")), sent)
        reached = estimate.reached()
    return reached
