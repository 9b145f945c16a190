"""Which colour a call has, where the function itself does not tell.

Rule of this file: it looks, and calls nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
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


def unwrapped(fn: Any) -> Any:
    """What the ``partial`` objects around it call in the end."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def is_async_dispatch(fn: Callable[..., Any], args: tuple[Any, ...] = ()) -> bool:
    """Whether it is ``dispatch`` of a class-based view with asynchronous handlers, which only makes the coroutine.

    ``args`` are the call's: the view is the first of them where ``dispatch`` was decorated in its class. Other
    decorators between it and this one are looked through, as far as they are ``functools.wraps``'s.
    """
    method = unwrapped(fn)
    if getattr(method, "__name__", "") != "dispatch":
        return False
    while (instance := getattr(method, "__self__", None)) is None and hasattr(method, "__wrapped__"):
        method = unwrapped(method.__wrapped__)
    return getattr(instance or (args[0] if args else None), "view_is_async", False) is True
