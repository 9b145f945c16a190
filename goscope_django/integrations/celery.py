"""Celery tasks that resume.

>>> from celery import shared_task
>>> from goscope_django.integrations.celery import resumable
>>> @shared_task(acks_late=True, reject_on_worker_lost=True)
... @resumable(lambda path: f"import:{path}")
... def import_rows(task, path):
...     for row in task.track(read(path)):
...         import_row(row)

Rules of this file:

* A message may be delivered twice (``acks_late``, a visibility timeout that is too short, a worker that only seems
  dead). The second one finds the task held. It is sent again later; then it goes on, or returns the stored result.
* The message is kept with the task, signed: see ``checkpoints.messages``. ``dispatch`` sends only what we have signed,
  and only to a task that is registered.
* Celery's own retries keep the id of their request, so they resume as well.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NoReturn

from goscope_django.checkpoints import TaskInfo, checkpointed, messages
from goscope_django.core import arguments as checked
from goscope_django.core import decorating
from goscope_django.core.decorating import Template
from goscope_django.exceptions import InvalidType, InvalidValue, TaskAlreadyRunning
from goscope_django.integrations import needed

with needed("Celery", "celery"):
    from celery import current_app, current_task
    from celery.exceptions import Ignore
    from kombu.utils import json as kombu_json

__all__ = ["dispatch", "resumable"]

json: Any = kombu_json  # Celery's own: it knows dates, UUIDs and decimals
logger = logging.getLogger("goscope.checkpoints")
NAME: Final = "celery"
LONGEST_WAIT: Final = 60.0
"""Seconds until a message whose task is held is tried again, at most."""
MAX_ARGUMENTS: Final = 32 * 1024
"""Characters of a message's arguments, as JSON, that are kept for ``dispatch``, at most."""


def resumable(
    task_id: str | Callable[..., str] | None = None,
    *,
    on_running: Literal["retry", "ignore", "raise"] = "retry",
    **options: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the function of a Celery task resumable. Put it below ``@app.task``.

    ``task_id`` is text that may name the call's arguments (``"import:{path}"``), a function of them, or ``None``: the
    id of the Celery request, which stays the same when a message is delivered again or retried. ``options`` are those
    of ``checkpointed``. A parameter ``task`` of the function gets the resumable task; with ``bind=True`` the first one
    is Celery's.

    ``on_running`` says what happens to a message whose task another runner holds. ``"retry"``: it is sent again for
    when the lease may have ended, as often as needed, without using up the task's retries. ``"ignore"``: it is dropped.
    ``"raise"``, and always where Celery runs eagerly: it fails with ``TaskAlreadyRunning``.

    Decorating sends nothing; it raises ``InvalidType`` or ``InvalidValue`` for an argument that can't be used, and for
    a coroutine function. A run raises, costs and is atomic as ``checkpointed`` is.
    """
    decorating.no_bare_function(task_id, "resumable", "@resumable()")
    if task_id is not None and not callable(task_id):
        checked.key(task_id, "task_id")
    if on_running not in ("retry", "ignore", "raise"):
        raise InvalidValue(f"on_running={on_running!r}: 'retry', 'ignore' or 'raise' is allowed")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):
            raise InvalidType(f"{function!r}: Celery calls no coroutine functions")

        # Decorated once at import for the signature without ``task``, and so that bad options are refused there.
        shown: Callable[..., Any] = checkpointed("", **options)(function)
        make = decorating.keyed(task_id, shown, "resumable(): task_id")

        @functools.wraps(shown)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            running: Any = current_task
            request = running.request if running else None
            if isinstance(make, Template):
                name = make(*args, **kwargs)
            elif callable(make):
                bound = running and args and args[0] is running._get_current_object()
                name = make(*args[bool(bound) :], **kwargs)
            else:
                if request is None or request.id is None:
                    raise InvalidValue("task_id=None: outside a worker there is no request whose id could be used")
                name = request.id
            metadata = {**_message(request, name), **dict(options.get("metadata") or {})}
            run: Callable[..., Any] = checkpointed(lambda *_, **__: name, **{**options, "metadata": metadata})(function)
            try:
                return run(*args, **kwargs)
            except TaskAlreadyRunning as error:
                if on_running == "raise" or request is None or request.called_directly or request.is_eager:
                    raise
                _later(request, error, on_running)

        return wrapper

    return decorate


def _later(request: Any, error: TaskAlreadyRunning, on_running: str) -> NoReturn:
    if on_running == "retry":
        wait = math.ceil(min(LONGEST_WAIT, max(1.0, error.retry_after)))
        # Not Celery's retry(): waiting for another runner is no failure of this task.
        current_task.signature_from_request(request, countdown=wait, retries=request.retries).apply_async()
    raise Ignore from error


def _message(request: Any, task_id: str) -> dict[str, Any]:
    """What is kept of the message that started the task, for ``dispatch``."""
    if request is None or request.id is None or request.called_directly:
        return {}
    try:
        arguments = json.dumps([list(request.args or ()), dict(request.kwargs or {})])
    except (TypeError, ValueError):
        arguments = None
    if arguments is None or len(arguments) > MAX_ARGUMENTS:
        logger.info("task %s: its arguments are too large or not JSON, so dispatch() can't send it again", request.id)
        return {}
    route: Mapping[str, Any] = request.delivery_info or {}
    named = route.get("exchange") in ("", None, route.get("routing_key"))
    queue = route.get("routing_key") if named else None
    message = {"id": request.id, "task": request.task, "arguments": arguments, "queue": queue}
    return messages.signed(NAME, task_id, message)


def dispatch(info: TaskInfo, **options: Any) -> Any:
    """Send the message of a stalled task (``info``) again, with its id: for ``resume_stalled(dispatch)``.

    Returns the ``AsyncResult``. One message to Celery's broker; sends nothing to MongoDB. ``options`` are those of
    Celery's ``apply_async``. Raises ``DispatchRefused`` (an ``InvalidValue``) for a task that no Celery worker started,
    or whose arguments were not kept (more than 32 KiB, or not JSON); for a message that we have not signed for this
    very task; and for a Celery task that is not registered in this process, after the modules that Celery's settings
    name were imported.
    """
    sent = messages.opened(NAME, info)
    if sent["task"] not in current_app.tasks:
        current_app.loader.import_default_modules()  # as a worker does when it starts; no name of the message's
        if sent["task"] not in current_app.tasks:
            raise messages.unknown(info, "its Celery task is not registered in this process")
    args, kwargs = json.loads(sent["arguments"])
    if sent["queue"]:
        options.setdefault("queue", sent["queue"])
    return current_app.send_task(sent["task"], args=args, kwargs=kwargs, task_id=sent["id"], **options)
