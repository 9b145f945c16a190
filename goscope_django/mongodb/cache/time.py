"""How the cache comes to know the server's time: by operations that it is about anyway, once a second.

What is known is kept by ``estimate``; how it is judged by is said in ``docs/adr/0002-server-time.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from goscope_django.core.flow import Flow, ask
from goscope_django.core.ticks import tick
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.driver.execute import CACHE

_ENTRY: Final = {"_id": False, "value": True, "expiresAt": True}


def stamped(clock: Clock, full: str) -> Flow[Any]:
    """The live entry, read with the server's time and judged by it."""
    sent = tick()
    found = yield from ask(CACHE, "point", {"key": full}, {**_ENTRY, **clock.stamp()})
    if clock.estimate is not None:
        clock.estimate.learn(found and found.get("now"), sent)
    return None if found is None or clock.lapsed(found) else found


def stating(clock: Clock, field: str, method: str, test: Mapping[str, Any], *change: Any, **options: Any) -> Flow[Any]:
    """A write to one entry, answered with ``field`` and the server's time."""
    sent = tick()
    found = yield from ask(CACHE, method, test, *change, {"_id": False, field: True, **clock.stamp()}, **options)
    if clock.primary is not None:
        clock.primary.learn(found and found.get("now"), sent)
    return found


def surely_reached(clock: Clock) -> Flow[datetime | None]:
    """What the server's clock has surely come to. Once a second that may be a command of its own, so it is for what
    costs more than that; ``None`` where it can't be told in time."""
    estimate = clock.primary
    if estimate is None:
        return None
    reached = estimate.reached()
    if reached is None and estimate.question():
        sent = tick()
        estimate.learn((yield from ask(CACHE, "time")), sent)
        reached = estimate.reached()
    return reached
