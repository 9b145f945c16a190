"""Django signals for what happens, sent after the write.

Receivers get ``sender`` (always ``Goscope``) and the arguments listed here. If a receiver raises, that is logged and
the others are still called.

=============================  ================================================================================
``lock_acquired``              ``key``, ``owner``, ``token``
``lock_released``              ``key``, ``owner``, ``token``
``lock_lost``                  ``key``, ``owner``, ``token``: the lease ended although it was being renewed
``circuit_opened``             ``name``, ``reason`` (``failures``, ``probe`` or ``operator``), ``retry_after`` (seconds;
                               ``None`` where an operator did it)
``circuit_half_opened``        ``name``
``circuit_closed``             ``name``, ``reason`` (``probe`` or ``operator``)
``flight_taken_over``          ``key``: the leader of a flight died, and this process is the leader now
``idempotent_replayed``        ``key`` of the record
``idempotent_lost``            ``key``, ``token``: the work was done, but its claim ended before the result was
                               recorded
``task_started``               ``task_id``, ``attempt``
``task_resumed``               ``task_id``, ``attempt``, ``sequence`` of the checkpoint it goes on from
``checkpoint_saved``           ``task_id``, ``sequence``, ``progress``
``checkpoint_unreadable``      ``task_id``, ``reason`` (``forged``, ``damaged`` or ``format``), ``message``: a listing
                               or ``load_latest`` has left it out
``task_refused``               ``task_id``, ``reason``: what the database says was to be dispatched is not ours
``task_completed``             ``task_id``, ``attempt``
``task_failed``                ``task_id``, ``attempt``, ``error`` (the exception; ``None`` where the block's
                               transaction was rolled back)
``task_lost``                  ``task_id``, ``attempt``: another runner took it over
``cache_entry_forged``         ``key``, ``reason`` (``forged``, ``damaged`` or ``format``), ``message``
``cache_refresh_failed``       ``key``, ``error`` (the name of the exception's class): a stale value could not be
                               computed anew; it serves until its ``stale`` ends
``degraded``                   ``feature``, ``error`` (a text): it works without MongoDB for now (sent once)
``recovered``                  ``feature``: MongoDB can be reached again (sent once)
=============================  ================================================================================
"""

from __future__ import annotations

import logging
from typing import Any, Final

from django.dispatch import Signal

from goscope_django.contracts import Event

lock_acquired = Signal()
lock_released = Signal()
lock_lost = Signal()
circuit_opened = Signal()
circuit_half_opened = Signal()
circuit_closed = Signal()
flight_taken_over = Signal()
idempotent_replayed = Signal()
idempotent_lost = Signal()
task_started = Signal()
task_resumed = Signal()
checkpoint_saved = Signal()
checkpoint_unreadable = Signal()
task_refused = Signal()
task_completed = Signal()
task_failed = Signal()
task_lost = Signal()
cache_entry_forged = Signal()
cache_refresh_failed = Signal()
degraded = Signal()
recovered = Signal()

SIGNALS: Final[dict[str, Signal]] = {
    name: value for name, value in dict(globals()).items() if isinstance(value, Signal)
}
"""Each signal by the name of its event."""

_FEATURES: Final = {
    "lock": "locks",
    "circuit": "circuits",
    "flight": "single_flight",
    "idempotent": "idempotency",
    "task": "checkpoints",
    "checkpoint": "checkpoints",
    "cache": "cache",
}
_LEVELS: Final = {
    "lock_lost": logging.WARNING,
    "circuit_opened": logging.WARNING,
    "circuit_closed": logging.INFO,
    "circuit_half_opened": logging.INFO,
    "flight_taken_over": logging.WARNING,
    "idempotent_lost": logging.WARNING,
    "checkpoint_unreadable": logging.WARNING,
    "task_refused": logging.WARNING,
    "task_lost": logging.WARNING,
    "task_failed": logging.WARNING,
    "cache_entry_forged": logging.WARNING,
    "cache_refresh_failed": logging.WARNING,
    "degraded": logging.WARNING,
    "recovered": logging.INFO,
}


class Goscope:
    """The sender of all signals."""


def publish(event: Event) -> None:
    """Log ``event`` to ``goscope.<feature>`` (details, never a stored value) and send its signal by ``send_robust``."""
    feature = event.details.get("feature") or _FEATURES.get(event.name.partition("_")[0], "events")
    logger = logging.getLogger(f"goscope.{feature}")
    level = _LEVELS.get(event.name, logging.DEBUG)
    if logger.isEnabledFor(level):
        shown = ", ".join(f"{name}={value!r:.200}" for name, value in event.details.items())
        logger.log(level, "%s: %s", event.name, shown)
    signal = SIGNALS.get(event.name)
    if signal is None or not signal.receivers:
        return
    details: dict[str, Any] = dict(event.details)
    for receiver, outcome in signal.send_robust(sender=Goscope, **details):
        if isinstance(outcome, Exception):
            logger.error("a receiver of %s failed: %r", event.name, receiver, exc_info=outcome)
