"""Functions that a process calls when it forks.

Rules of this file:

* No other module asks whether the system can fork. Where it can't (Windows) nothing is done.
* uWSGI forks in C. Unless it is started with ``py-call-uwsgi-fork-hooks``, Python does not learn of it. So what the new
  process has to do is given to uWSGI's own hook as well, and is done once, whichever of the two calls first.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, Final

Hook = Callable[[], object]

_children: Final[list[Hook]] = []
_process = os.getpid()


def _nothing() -> None:
    pass


def at_fork(*, child: Hook, before: Hook = _nothing, parent: Hook = _nothing) -> None:
    """From now on call ``before`` each fork, and after it ``parent`` in this process and ``child`` in the new one.

    ``before`` functions are called in the reverse order of their registration, the others in that order. uWSGI's own
    forks call ``child`` alone, unless it is told to call Python's hooks.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=parent)
        _children.append(child)


def in_child() -> None:
    """Call what was registered for a new process, if this is one in which that has not been done."""
    global _process
    if _process != os.getpid():
        _process = os.getpid()
        for one in _children:
            try:
                one()
            except Exception:  # noqa: BLE001  as Python does with its own hooks: one that fails stops no other
                sys.excepthook(*sys.exc_info())


def _tell_uwsgi() -> None:
    """Let uWSGI call ``in_child`` in each process that it forks, beside the hooks that are there or come later."""
    uwsgi: Any = sys.modules.get("uwsgi")  # built into its program, and nowhere else
    if uwsgi is None or not hasattr(uwsgi, "worker_id"):
        return
    there = getattr(uwsgi, "post_fork_hook", None)
    try:
        # It puts its own hook in place when it is first imported, so it must not be imported after us.
        chain: list[Hook] = importlib.import_module("uwsgidecorators").postfork_chain
    except Exception:  # noqa: BLE001  not installed, or there is no master process: then nobody else can import it

        def hook() -> None:
            in_child()
            if there is not None:
                there()

        uwsgi.post_fork_hook = hook
    else:
        if there is not None and getattr(there, "__module__", "") != "uwsgidecorators":
            chain.insert(0, there)
        chain.insert(0, in_child)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=in_child)
    _tell_uwsgi()
