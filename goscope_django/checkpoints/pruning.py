"""Prunes the history of a running task a moment after its saves, so that a save stays two commands.

Rules of this file:

* An error here fails nothing: what is not pruned now is pruned later, or at the end.
* Nothing is pruned once the task is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

DELAY: Final = 1.0
"""Seconds between the save after which it is due and the pruning."""

logger = logging.getLogger("goscope.checkpoints")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except Exception:  # the interpreter ends, or the store is not ours
        logger.debug("a history could not be pruned", exc_info=True)


class Pruning:
    """Calls ``prune`` on a thread of its own, once for all calls of ``soon`` within ``DELAY`` seconds."""

    def __init__(self, prune: Callable[[], object]) -> None:
        self._prune = prune
        self._timer: threading.Timer | None = None
        self._over = False

    def soon(self) -> None:
        """Prune in a moment."""
        if self._timer is None and not self._over:
            self._timer = threading.Timer(DELAY, self._run)
            self._timer.daemon = True
            self._timer.name = "goscope-pruning"
            try:
                self._timer.start()
            except RuntimeError:  # the interpreter ends
                self._timer = None

    def _run(self) -> None:
        self._timer = None
        if not self._over:
            with _told():
                self._prune()

    def stop(self) -> None:
        """Prune no more. A pruning that has begun ends by itself."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()


class AsyncPruning:
    """``Pruning`` on the running event loop."""

    def __init__(self, prune: Callable[[], Awaitable[object]]) -> None:
        self._prune = prune
        self._task: asyncio.Task[Any] | None = None
        self._waits = True
        self._over = False

    def soon(self) -> None:
        """Prune in a moment."""
        if self._task is None and not self._over:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="goscope-pruning")

    async def _run(self) -> None:
        try:
            self._waits = True
            await asyncio.sleep(DELAY)
            self._waits = False
            with _told():
                await self._prune()
        finally:
            self._task = None

    async def stop(self) -> None:
        """Prune no more. Returns when no pruning waits or runs any more."""
        self._over = True
        task = self._task
        if task is not None:
            if self._waits:
                task.cancel()
            await asyncio.wait([task])
