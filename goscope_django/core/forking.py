"""What a process does when it forks.

Rule of this file: nobody else asks whether the system can fork at all. Where it can't (Windows) nothing is done.
"""

from __future__ import annotations

import os
from collections.abc import Callable

Hook = Callable[[], object]


def _nothing() -> None:
    pass


def at_fork(*, child: Hook, before: Hook = _nothing, parent: Hook = _nothing) -> None:
    """From now on call ``before`` each fork, and after it ``parent`` in this process and ``child`` in the new one.

    Those of ``before`` are called in the opposite order of their registration, the others in the same.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=parent, after_in_child=child)
