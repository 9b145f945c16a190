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
* The call is kept with the task, signed: see ``checkpoints.messages``. ``dispatch`` follows only what we have signed,
  imports nothing for it, and enqueues nothing but a ``Task`` of Django's.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from goscope_django.checkpoints import TaskInfo, checkpointed, messages
from goscope_django.core import arguments, decorating
from goscope_django.core.decorating import Template
from goscope_django.exceptions import InvalidValue

__all__ = ["dispatch", "resumable"]

logger = logging.getLogger("goscope.checkpoints")
NAME: Final = "django.tasks"
MAX_ARGUMENTS: Final = 32 * 1024
"""Characters of a call's arguments, as JSON, that are kept for ``dispatch``, at most."""


def resumable(task_id: str | Callable[..., str] | None = None, **options: Any) -> Callable[[Any], Any]:
    """Make the function of a task resumable. Put it below ``@task``. ``options`` are those of ``checkpointed``.

    ``task_id`` is text that may name the call's arguments (``"import:{path}"``), a function of them (without Django's
    ``context``), or ``None`` for the id of the task's result. That needs ``takes_context=True``, and resumes only if
    the backend runs the same result again. A parameter ``task`` of the function gets the resumable task. The function
    may be a coroutine function. If another runner holds the task, the call fails with ``TaskAlreadyRunning``.

    Decorating sends nothing; it raises ``InvalidType`` or ``InvalidValue`` for an argument that can't be used. A run
    raises, costs and is atomic as ``checkpointed`` is.
    """

    decorating.no_bare_function(task_id, "resumable", "@resumable()")
    if task_id is not None and not callable(task_id):
        arguments.key(task_id, "task_id")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        shown: Callable[..., Any] = checkpointed("", **options)(function)
        make = decorating.keyed(task_id, shown, "resumable(): task_id")

        def prepared(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
            context = args[0] if args and hasattr(args[0], "task_result") else None
            called = args if context is None else args[1:]
            if isinstance(make, Template):
                name = make(*args, **kwargs)
            elif make is not None:
                name = make(*called, **kwargs)
            else:
                if context is None:
                    raise InvalidValue(
                        "task_id=None: only with takes_context=True is there a result whose id can be used"
                    )
                name = context.task_result.id
            message = {} if make is None else _message(function, name, called, kwargs)
            metadata = {**message, **dict(options.get("metadata") or {})}
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
    """Enqueue a stalled task (``info``) again, with its arguments: for ``resume_stalled(dispatch)``.

    Returns the ``TaskResult``. Sends what the backend of ``django.tasks`` sends; this package sends nothing. Raises
    ``DispatchRefused`` (an ``InvalidValue``) for a task that ``django.tasks`` did not start, or not with an id of its
    own, or whose arguments were not kept (more than 32 KiB, or not JSON); for a message that we have not signed for
    this very task; and where the module of the function is not loaded, or the name is not that of a ``Task``.
    """
    sent = messages.opened(NAME, info)
    task = _loaded(sent["module"], sent["name"])
    if task is None:
        raise messages.unknown(info, "its task of django.tasks is not loaded in this process: import its module first")
    args, kwargs = json.loads(sent["arguments"])
    return task.enqueue(*args, **kwargs)


def _message(
    function: Callable[..., Any], task_id: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """What is kept of the call, for ``dispatch``."""
    try:
        arguments = json.dumps([list(args), dict(kwargs)])
    except (TypeError, ValueError, RecursionError):
        arguments = None
    if arguments is None or len(arguments) > MAX_ARGUMENTS:
        logger.info("task %s: its arguments are too large or not JSON, so dispatch() can't enqueue it again", task_id)
        return {}
    message = {"module": function.__module__, "name": function.__qualname__, "arguments": arguments}
    return messages.signed(NAME, task_id, message)


def _loaded(module: str, name: str) -> Any:
    """The ``Task`` of that name, if its module is loaded. Imports nothing and calls nothing of the module's."""
    try:
        from django.tasks import Task
    except ImportError:  # Django before 6.0
        return None
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, Task) else None
