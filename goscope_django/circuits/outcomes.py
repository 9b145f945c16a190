"""What the end of a call means for its circuit: success, failure, or nothing.

Rule of this file: it judges exceptions and functions. Nothing is counted or sent here.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, Literal

from asgiref.sync import iscoroutinefunction

from goscope_django.core.colours import is_async_dispatch
from goscope_django.exceptions import CircuitOpen, InvalidType

Outcome = Literal["success", "failure", "ignored"]
Exclude = type[BaseException] | Callable[[BaseException], bool]


class Judge:
    """Judges the exceptions of one breaker."""

    __slots__ = ("_classes", "_name", "_predicates")

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

    def outcome(self, error: BaseException) -> Outcome:
        """``ignored`` for cancellation, interrupts and what is excluded; else ``failure``."""
        if not isinstance(error, Exception) or isinstance(error, self._classes):
            return "ignored"
        if isinstance(error, CircuitOpen) and error.name == self._name:
            return "ignored"  # a call inside was refused, which is nothing new
        return "ignored" if any(predicate(error) for predicate in self._predicates) else "failure"


def asynchronous(fn: Callable[..., Any]) -> bool:
    """Whether calling ``fn`` returns a coroutine, as far as that can be told."""
    return iscoroutinefunction(fn) or is_async_dispatch(fn)
