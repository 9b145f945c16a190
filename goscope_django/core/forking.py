"""Functions that a process calls when it forks.

Rule of this file: no other module asks whether the system can fork. Where it can't (Windows) nothing is done.
"""

from __future__ import annotations

import os
from collections.abc import Callable

Hook = Callable[[], object]


def _nothing() -> None:
    pass


def at_fork(*, child: Hook, before: Hook = _nothing, parent: Hook = _nothing) -> None:
    """From now on call ``before`` each fork, and after it ``parent`` in this process and ``child`` in the new one.

    ``before`` functions are called in the reverse order of their registration, the others in that order.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=parent, after_in_child=child)
