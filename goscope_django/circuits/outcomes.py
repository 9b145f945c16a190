"""What the end of a call means for its circuit: success, failure, or nothing.

Rules of this file:

* It judges exceptions and functions. Nothing is counted or sent here.
* What the guarded call raised is never replaced, also not by an ``exclude`` that fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, Final, Literal

from asgiref.sync import iscoroutinefunction

from goscope_django.core.colours import is_async_dispatch
from goscope_django.exceptions import CircuitOpen, InvalidType

logger = logging.getLogger("goscope.circuits")
Outcome = Literal["success", "failure", "ignored"]
Exclude = type[BaseException] | Callable[[BaseException], bool]
_ENDS: Final = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)
_CANCELS: Final = frozenset({"greenlet.GreenletExit", "trio.Cancelled"})
"""Cancellation in other libraries. Their other exceptions beside ``Exception`` (``gevent.Timeout``) are failures."""


class Judge:
    """Judges the exceptions of one breaker."""

    __slots__ = ("_classes", "_name", "_predicates", "_told")

    def __init__(self, name: str, exclude: object) -> None:
        self._name = name
        classes, predicates = [], []
        for one in exclude if isinstance(exclude, (tuple, list)) else (exclude,):
            if isinstance(one, type) and issubclass(one, BaseException):
                classes.append(one)
            elif callable(one) and not isinstance(one, type):
                predicates.append(one)
            else:
                raise InvalidType(f"exclude={exclude!r:.80}: exception classes or functions of an exception are needed")
        # A future's cancellation is an Exception, unlike asyncio's.
        self._classes: tuple[type[BaseException], ...] = (CancelledError, *classes)
        self._predicates = tuple(predicates)
        self._told = False

    def outcome(self, error: BaseException) -> Outcome:
        """``ignored`` for cancellation, interrupts and what is excluded; else ``failure``."""
        if isinstance(error, self._classes) or (not isinstance(error, Exception) and _cancels(error)):
            return "ignored"
        if isinstance(error, CircuitOpen) and error.name == self._name:
            return "ignored"  # a call inside was refused, which is nothing new
        return "ignored" if any(self._excludes(predicate, error) for predicate in self._predicates) else "failure"

    def _excludes(self, predicate: Callable[[BaseException], bool], error: BaseException) -> bool:
        try:
            return bool(predicate(error))
        except Exception as failed:  # noqa: BLE001 - the guarded call's own exception is what its caller needs
            if not self._told:
                self._told = True
                logger.error(
                    "circuit %r: exclude=%r raised %s for %s, which counts as a failure",
                    self._name,
                    getattr(predicate, "__qualname__", type(predicate).__qualname__),
                    type(failed).__qualname__,
                    type(error).__qualname__,
                )
            return False


def _cancels(error: BaseException) -> bool:
    names = (f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}" for kind in type(error).__mro__)
    return isinstance(error, _ENDS) or not _CANCELS.isdisjoint(names)


def asynchronous(fn: Callable[..., Any]) -> bool:
    """Whether calling ``fn`` returns a coroutine, as far as that can be told."""
    return iscoroutinefunction(fn) or is_async_dispatch(fn)
