"""Who holds something, as text for operators: ``web-1:4711, Thread-3, POST /orders/<int:pk>/``.

It names this process, the thread or task, and what that runs. Rules of this file:

* Of a request the method and the *route* are told, never the path or the query: these hold tokens and names of people.
  A view without a route is told as ``POST``. No argument of a command or a task is told.
* What runs is known where our middleware or one of our decorators saw the request, in Celery, in ``django.tasks`` where
  its signals are sent, and in a process that ``manage.py`` began.
* The text is made when it is needed, of what is known already: nothing is loaded, imported or sent.
* It is bounded, and has no control characters in it.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import secrets
import socket
import sys
import threading
import weakref
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from pathlib import Path
from typing import Any, Final

from goscope_django import conf

HOST: Final = 64
NAME: Final = 48
WORK: Final = 160
"""Characters of a host's name, of a thread's or task's, and of what it runs, at most."""

_request: ContextVar[weakref.ref[Any] | None] = ContextVar("goscope_request", default=None)
"""Weak, since a task that outlives the request has a copy of its context."""
_tasks: ContextVar[tuple[str, ...]] = ContextVar("goscope_running_tasks", default=())
"""The tasks of ``django.tasks`` that run here, the innermost last."""
_COMMAND: Final = re.compile(r"[A-Za-z_][\w-]{0,79}")
_BARE: Final = frozenset({"manage.py", "django-admin", "django-admin.py"})
_process: tuple[int, str] = (0, "")


def process() -> str:
    """``host:pid`` of this process."""
    global _process
    pid = os.getpid()
    if _process[0] != pid:
        _process = (pid, f"{_clean(socket.gethostname(), HOST)}:{pid}")
    return _process[1]


def describe() -> str:
    """Who runs here. With ``DESCRIBE_HOLDERS`` false it is ``host:pid`` alone."""
    if not conf.current().describe_holders:
        return process()
    return ", ".join(filter(None, (process(), _clean(_runner(), NAME), _clean(work(), WORK))))


def unique(text: str) -> str:
    """``text`` with random text behind it, so that no two acquisitions have the same."""
    return f"{text}, {secrets.token_hex(8)}"


def whoami() -> Hashable:
    """The running task, or else this thread; where there are greenlets, which of them. For ``in myself()``."""
    return _identity(_task_object())


def myself() -> tuple[Hashable, ...]:
    """What ``whoami()`` gave to this very thread or task; also to the thread before it began to run the task's loop."""
    task = _task_object()
    return (_identity(task),) if task is None else (_identity(task), _identity(None))


def _identity(task: object) -> Hashable:
    # Weak, so that what remembers it keeps no task alive. A thread's number alone would not tell its greenlets apart.
    greenlets: Any = sys.modules.get("greenlet")
    greenlet = None if greenlets is None else weakref.ref(greenlets.getcurrent())
    return (os.getpid(), threading.get_ident() if task is None else weakref.ref(task), greenlet)


def _task_object() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


def _runner() -> str:
    task = _task_object()
    return threading.current_thread().name if task is None else task.get_name()


# What is running


@contextmanager
def serving(request: Any) -> Iterator[None]:
    """In this block ``request`` (Django's) is what runs."""
    token = begin(request)
    try:
        yield
    finally:
        end(token)


def begin(request: Any) -> Token[Any]:
    """From here on ``request`` runs, until ``end`` is called with what is returned."""
    return _request.set(weakref.ref(request))


def end(token: Token[Any]) -> None:
    """The request is over."""
    with suppress(ValueError):  # ended in another context than it began in, which ends with the request
        _request.reset(token)


def task_began(*, task_result: Any, **_: object) -> None:
    """Receives the signal ``task_started`` of ``django.tasks``, which is sent where the task runs."""
    _tasks.set((*_tasks.get(), f"task {task_result.task.module_path} {task_result.id}"))


def task_ended(**_: object) -> None:
    """Receives the signal ``task_finished``."""
    _tasks.set(_tasks.get()[:-1])


def work() -> str:
    """What runs here, as far as it is known; else ``""``."""
    reference = _request.get()
    request = None if reference is None else reference()
    if request is not None:
        return _of_request(request)
    return _celery() or "".join(_tasks.get()[-1:]) or _command()


def _of_request(request: Any) -> str:
    method = str(getattr(request, "method", None) or "")
    match = getattr(request, "resolver_match", None)
    route = getattr(match, "route", None)
    return method if route is None else f"{method} /{str(route).lstrip('/')}"


def _celery() -> str:
    state: Any = sys.modules.get("celery._state")
    task = None if state is None else state.get_current_task()
    if task is None:
        return ""
    return f"celery {task.name} {getattr(task.request, 'id', None) or ''}".rstrip()


def _command() -> str:
    """The management command that this process was started with."""
    return _command_of(sys.argv[0], sys.argv[1]) if len(sys.argv) > 1 else ""


@functools.lru_cache(maxsize=4)
def _command_of(program: str, name: str) -> str:
    path = Path(program)
    bare = path.name in _BARE or path.parts[-2:] == ("django", "__main__.py")
    return f"manage.py {name}" if bare and _COMMAND.fullmatch(name) else ""


def _clean(text: str, most: int) -> str:
    """``text`` in one line of printable characters, without the commas that part the pieces, and not too long."""
    if not text.isprintable() or "," in text:
        text = "".join(one if one.isprintable() and one != "," else "?" for one in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."
