"""Is the server there, and how quick is it?

Rule of this file: it tells a server that is down (nobody listens, no name, no primary) from one that is slow (it took
the connection or the command and does not answer in time). Nothing is retried.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Literal

from pymongo.errors import ExecutionTimeout, NetworkTimeout, PyMongoError, ServerSelectionTimeoutError

from goscope_django.mongodb.expressions import Clock
from goscope_django.mongodb.flow import Flow, ask

Health = Literal["ok", "slow", "down"]
_SLOW_WORDS: Final = ("timed out", "NetworkTimeout")


@dataclass(frozen=True, slots=True)
class Probe:
    """``latency`` is in seconds, ``None`` where there was no answer; ``reason`` is a sentence for what is not
    ``ok``."""

    health: Health
    latency: float | None
    reason: str = ""


def ping(clock: Clock) -> Flow[float]:
    """One command to the primary; how many seconds it took."""
    began = time.monotonic()
    yield from ask("", "command", "ping")
    return time.monotonic() - began


def judged(error: BaseException, seconds: float) -> Probe:
    """What an error of ``ping`` within ``seconds`` means."""
    cause = error.__cause__ if isinstance(error.__cause__, PyMongoError) else error
    if isinstance(cause, (NetworkTimeout, ExecutionTimeout)) or (
        # Whoever waited for a server that took the connection and said nothing finds that in the error's text alone.
        isinstance(cause, ServerSelectionTimeoutError)
        and any(word in str(cause) for word in _SLOW_WORDS)
        and "Name or service" not in str(cause)
    ):
        return Probe("slow", None, f"the server is there but did not answer within {seconds:g} seconds")
    return Probe("down", None, str(error))
