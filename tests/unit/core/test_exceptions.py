"""The tree in the docstring of ``exceptions`` is the tree that there is."""

from __future__ import annotations

import ast
import re

from goscope_django import exceptions
from tests.architecture.source import classes, modules


def told() -> dict[str, str]:
    """Each error in the docstring, with the one above it that it hangs from."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in (exceptions.__doc__ or "").splitlines():
        branch = re.match(r"    ([│ ]*)(?:[├└]── )?([A-Z]\w+)", line)
        if branch and (above or branch[2] == "GoscopeError"):
            depth = len(branch[1]) // 4 + ("── " in line)
            above[depth:] = [branch[2]]
            found[branch[2]] = above[depth - 1] if depth else ""
    return found


def defined() -> dict[str, str]:
    """Each error class of the package, with the class of ours that it derives from; read, not imported."""
    bases = {
        one.name: [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in one.bases]
        for module in modules()
        for one in classes(module)
    }
    found = {"GoscopeError": ""}
    while more := {
        name: next(base for base in names if base in found)
        for name, names in bases.items()
        if name not in found and not found.keys().isdisjoint(names)
    }:
        found.update(more)
    return found


def test_the_docstring_names_every_error_there_is() -> None:
    assert told() == defined()
