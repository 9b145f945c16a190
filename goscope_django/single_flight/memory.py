"""What views read lately, by name, so that callers who differ in it fly apart from the start; and what was not shared.

Rule of this file: it is a hint of one process, never a promise. A name that is missing costs its callers one wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Final

from goscope_django.core.forking import at_fork
from goscope_django.process import counters

logger = logging.getLogger("goscope.single_flight")

MOST_NAMES: Final = 32
"""Names that are remembered of one view."""
MOST_VIEWS: Final = 1_000
KEPT: Final = 600.0
"""Seconds for which a name is remembered after it was last seen."""


class Memory:
    """The names that each view's leaders have read, and the reasons that were logged."""

    def __init__(self) -> None:
        self._guard: threading.Lock
        self._names: dict[str, dict[str, float]]
        self._told: set[tuple[str, str]]
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._guard, self._names, self._told = threading.Lock(), {}, set()

    def names(self, view: str) -> tuple[str, ...]:
        """The names by which callers of ``view`` are told apart, sorted."""
        known = self._names.get(view)
        if known is None:
            return ()
        now = time.monotonic()
        return tuple(sorted(name for name, until in list(known.items()) if until > now))

    def learn(self, view: str, names: Iterable[str]) -> None:
        """Remember that a leader of ``view`` has read ``names``."""
        new, now = list(names), time.monotonic()
        if not new:
            return
        with self._guard:
            if view not in self._names and len(self._names) >= MOST_VIEWS:
                self._names.pop(next(iter(self._names)))
            known = {name: until for name, until in self._names.get(view, {}).items() if until > now}
            for name in new:
                if name in known or len(known) < MOST_NAMES:
                    known[name] = now + KEPT
            self._names[view] = known

    def unshared(self, view: str, why: str) -> None:
        """A flight of ``view`` was not shared: count it, and log the reason once."""
        counters.count("flights_unshared")
        with self._guard:
            if (view, why) in self._told or len(self._told) >= MOST_VIEWS:
                return
            self._told.add((view, why))
        logger.info("what %s gives is not shared: %s", view, why)


memory = Memory()
at_fork(child=memory.clear)
