"""Tasks of ``django.tasks`` (Django 6.0 and later) that resume.

>>> from django.tasks import task
>>> from goscope_django.integrations.tasks import resumable
>>> @task
... @resumable(lambda path: f"import:{path}")
... def import_rows(task, path):
...     for row in task.track(read(path)):
...         import_row(row)

Rules of this file:

* It decorates the function, not Django's task, so it works with every backend.
* ``django.tasks`` can't enqueue a task again under the same id. So ``dispatch`` can start only tasks with an id of
  their own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from django.utils.module_loading import import_string

from goscope_django.checkpoints import TaskInfo, checkpointed
from goscope_django.core import arguments, decorating
from goscope_django.core.decorating import Template
from goscope_django.exceptions import InvalidValue

__all__ = ["dispatch", "resumable"]

NAME: Final = "django.tasks"


def resumable(task_id: str | Callable[..., str] | None = None, **options: Any) -> Callable[[Any], Any]:
    """Make the function of a task resumable. Put it below ``@task``. ``options`` are those of ``checkpointed``.

    ``task_id`` is text that may name the call's arguments (``"import:{path}"``), a function of them (without Django's
    ``context``), or ``None`` for the id of the task's result. That needs ``takes_context=True``, and resumes only if
    the backend runs the same result again. A parameter ``task`` of the function gets the resumable task. The function
    may be a coroutine function. If another runner holds the task, the call fails with ``TaskAlreadyRunning``.
    """

    decorating.no_bare_function(task_id, "resumable", "@resumable()")
    if task_id is not None and not callable(task_id):
        arguments.key(task_id, "task_id")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        shown: Callable[..., Any] = checkpointed("", **options)(function)
        make = decorating.keyed(task_id, shown, "resumable(): task_id")
        path = f"{function.__module__}.{function.__qualname__}"

        def prepared(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
            context = args[0] if args and hasattr(args[0], "task_result") else None
            called = args if context is None else args[1:]
            message: dict[str, Any] = {"path": path, "args": list(called), "kwargs": dict(kwargs)}
            if isinstance(make, Template):
                name = make(*args, **kwargs)
            elif make is not None:
                name = make(*called, **kwargs)
            else:
                if context is None:
                    raise InvalidValue(
                        "task_id=None: only with takes_context=True is there a result whose id can be used"
                    )
                name, message = context.task_result.id, {}
            metadata = {**({NAME: message} if message else {}), **dict(options.get("metadata") or {})}
            return checkpointed(lambda *_, **__: name, **{**options, "metadata": metadata})(function)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(shown)
            async def awrapper(*args: Any, **kwargs: Any) -> Any:
                return await prepared(args, kwargs)(*args, **kwargs)

            return awrapper

        @functools.wraps(shown)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return prepared(args, kwargs)(*args, **kwargs)

        return wrapper

    return decorate


def dispatch(info: TaskInfo) -> Any:
    """Enqueue a stalled task again, with its arguments: for ``resume_stalled(dispatch)``. Returns the ``TaskResult``.

    Raises ``InvalidValue`` for a task that ``django.tasks`` did not start, or not with an id of its own.
    """
    sent = info.metadata.get(NAME)
    if not isinstance(sent, Mapping):
        raise InvalidValue(f"task {info.task_id!r}: no task of django.tasks is known that could be enqueued again")
    return import_string(sent["path"]).enqueue(*sent["args"], **sent["kwargs"])
