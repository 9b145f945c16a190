"""``checkpointed`` as a decorator: each call of the function is an attempt at a task.

Rules of this file:

* An async function stays one, a sync one too. Each call has a ``checkpointed`` of its own, so calls may overlap.
* A parameter named ``task`` gets the task, wherever it stands. Callers don't see it and don't give it.
* A completed task is not run: the call returns the stored result.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction

from goscope_django.core import arguments

if TYPE_CHECKING:
    from goscope_django.checkpoints.entry import checkpointed
    from goscope_django.checkpoints.task import Task

NAME: Final = "task"
"""The parameter that gets the task."""
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def decorated(
    function: Callable[..., Any], block: Callable[[tuple[Any, ...], dict[str, Any]], checkpointed]
) -> Callable[..., Any]:
    """``function`` inside ``block(args, kwargs)``, which is made for each call."""
    arguments.function(function, "checkpointed()")
    hand_over, signature = _handing(function)
    wrapper: Callable[..., Any]
    if iscoroutinefunction(function):

        @functools.wraps(function)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            async with block(args, kwargs) as task:
                if not task.completed:
                    args, kwargs = hand_over(task, args, kwargs)
                    task.complete(await function(*args, **kwargs))
                return task.result

        wrapper = markcoroutinefunction(asynchronous)
    else:

        @functools.wraps(function)
        def synchronous(*args: Any, **kwargs: Any) -> Any:
            with block(args, kwargs) as task:
                if not task.completed:
                    args, kwargs = hand_over(task, args, kwargs)
                    task.complete(function(*args, **kwargs))
                return task.result

        wrapper = synchronous
    if signature is not None:
        vars(wrapper)["__signature__"] = signature
    return wrapper


def _handing(
    function: Callable[..., Any],
) -> tuple[Callable[[Task, tuple[Any, ...], dict[str, Any]], Arguments], inspect.Signature | None]:
    """A function that puts the task among a call's arguments, and the signature without it (``None``: no change)."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    place = next((index for index, one in enumerate(parameters) if one.name == NAME), None)
    if place is None:
        return lambda task, args, kwargs: (args, kwargs), None
    positional = parameters[place].kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

    def hand_over(task: Task, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        if positional and len(args) >= place:
            return (*args[:place], task, *args[place:]), kwargs
        return args, {**kwargs, NAME: task}

    return hand_over, signature.replace(parameters=[one for one in parameters if one.name != NAME])
