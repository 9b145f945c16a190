"""``checkpointed`` as a decorator: each call is an attempt at a task.

Rules of this file:

* The colour is the function's own. A call makes its own ``checkpointed``, so calls may run side by side.
* A parameter named ``task`` gets the task, wherever it stands; callers neither see nor give it.
* A task that is completed is not run: the call returns the stored result.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, overload

from asgiref.sync import iscoroutinefunction, markcoroutinefunction

from goscope_django.core import arguments

if TYPE_CHECKING:
    from goscope_django.checkpoints.task import Task

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
NAME = "task"


class Decorates:
    """The decorating half of ``checkpointed``."""

    _task_id: Any
    _entered: Any

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Self:
        mine = copy.copy(self)
        mine._entered = None
        if callable(self._task_id):
            mine._task_id = self._task_id(*args, **kwargs)
        return mine

    @overload
    def __call__(self, function: Callable[Concatenate[Task, P], T]) -> Callable[P, T]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[S, Task, P], T]) -> Callable[Concatenate[S, P], T]: ...
    @overload
    def __call__(self, function: Callable[P, T]) -> Callable[P, T]: ...
    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        arguments.function(function, "checkpointed()")
        hand_over, signature = _handing(function)
        wrapper: Callable[..., Any]
        if iscoroutinefunction(function):

            @functools.wraps(function)
            async def awrapper(*args: Any, **kwargs: Any) -> Any:
                async with self._called(args, kwargs) as task:  # type: ignore[attr-defined]
                    if not task.completed:
                        args, kwargs = hand_over(task, args, kwargs)
                        task.complete(await function(*args, **kwargs))
                    return task.result

            wrapper = markcoroutinefunction(awrapper)
        else:

            @functools.wraps(function)
            def plain(*args: Any, **kwargs: Any) -> Any:
                with self._called(args, kwargs) as task:  # type: ignore[attr-defined]
                    if not task.completed:
                        args, kwargs = hand_over(task, args, kwargs)
                        task.complete(function(*args, **kwargs))
                    return task.result

            wrapper = plain
        if signature is not None:
            vars(wrapper)["__signature__"] = signature
        return wrapper


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _handing(
    function: Callable[..., Any],
) -> tuple[Callable[[Task, tuple[Any, ...], dict[str, Any]], Arguments], inspect.Signature | None]:
    """What puts the task among a call's arguments, and the signature that is left for callers."""
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
