"""What is not for callers is left out: the arguments of classes that only this package makes.

autodoc leaves out whatever has ``:meta private:`` in its docstring. It shows how each class is made, though: not where
``__init__`` has that field, nor of a Protocol, which nobody makes, nor of a class whose base is not installed. Who
reads the site looks at no files, so the "Rules of this file" are "Rules" there.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

PRIVATE = ":meta private:"


def hide(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, str] | None:
    """No signature for a class whose ``__init__`` is private, or that is a Protocol."""
    if what != "class":
        return None
    inner = PRIVATE in (getattr(thing.__init__, "__doc__", None) or "")
    unknown = "*args" in (signature or "") and "**kwargs" in (signature or "")  # of a package that is not installed
    return ("", "") if inner or unknown or getattr(thing, "_is_protocol", False) else None


def rules(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """What a module's rules are called."""
    if what == "module":
        lines[:] = [re.sub(r"^Rules? of this (file|package)\b", "Rules", line) for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-signature", hide)
    app.connect("autodoc-process-docstring", rules)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
