"""Last words of a task that is cancelled.

Rule of this file: only for what is bounded by itself (a command has its time limit) and must not be left half-way: the
end of a lock, of a claim, of a flight, of a probe, of a task.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any


async def finished(awaitable: Any) -> Any:
    """``await awaitable``, to its end even if this task is cancelled meanwhile; then the cancellation goes on."""
    task = asyncio.ensure_future(awaitable)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):  # said before
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at: the cancellation is what is told
        raise
