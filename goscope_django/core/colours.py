"""Whether a call is sync or async where the function does not say so, and how to await to the end.

Rule of this file: it calls no function of the user's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from typing import Any


async def finished(awaitable: Any) -> Any:
    """``await awaitable``, to its end even if this task is cancelled meanwhile; then ``CancelledError`` is raised."""
    task = asyncio.ensure_future(awaitable)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):  # raised below
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, or asyncio would log it: the cancellation is what is raised
        raise


def unwrapped(fn: Any) -> Any:
    """The function inside any number of ``partial`` objects."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def is_async_dispatch(fn: Callable[..., Any], args: tuple[Any, ...] = ()) -> bool:
    """Whether ``fn`` is ``dispatch`` of a class-based view with async handlers: it is sync and returns a coroutine.

    ``args`` are the call's arguments: the view is the first where ``dispatch`` was decorated in its class. A function
    that another decorator wrapped with ``functools.wraps`` is found as well.
    """
    method = unwrapped(fn)
    if getattr(method, "__name__", "") != "dispatch":
        return False
    while (instance := getattr(method, "__self__", None)) is None and hasattr(method, "__wrapped__"):
        method = unwrapped(method.__wrapped__)
    return getattr(instance or (args[0] if args else None), "view_is_async", False) is True
