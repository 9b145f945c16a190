"""The API reference on the site misses nothing that the documents tell users to import, and nothing of the tables."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
from django.dispatch import Signal

from goscope_django import exceptions, signals
from tests.architecture.public import API, described
from tests.support.documents import DOCUMENTS, ROOT, blocks

INNER = {"goscope_django.conf": "its ``test_prefix``, told where the example is, on the page on testing"}
"""What examples look into beside the reference, with the reason."""


def imported(document: str) -> set[tuple[str, str]]:
    """``(module, name)`` of what the examples of ``document`` import of this package."""
    found = set()
    for _, code in blocks(document):
        try:
            tree = ast.parse(code)
        except SyntaxError:  # shown with an ellipsis, and tested elsewhere
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("goscope_django"):
                found |= {(node.module, one.name) for one in node.names}
    return found


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if imported(one)])
def test_what_examples_import_is_described(document: str) -> None:
    known = described()
    missing = []
    for module, name in sorted(imported(document)):
        if module == "goscope_django":
            module = f"goscope_django.{name}"
        if module in INNER or f"{module}.{name}" in known:
            continue
        if module not in known:
            missing.append(module)
        elif (public := getattr(importlib.import_module(module), "__all__", None)) is not None and name != module:
            if not hasattr(importlib.import_module(module), "__path__") or name in public:
                continue
            if module != f"goscope_django.{name}":
                missing.append(f"{module}.{name}")
    assert not missing, f"add them to a page in {API.relative_to(ROOT)}"


def test_each_described_name_has_a_docstring() -> None:
    bare = []
    for module in described():
        loaded = importlib.import_module(module)
        for name in getattr(loaded, "__all__", ()):
            thing = getattr(loaded, name)
            if (inspect.isclass(thing) or inspect.isroutine(thing)) and not inspect.getdoc(thing):
                bare.append(f"{module}.{name}")
    assert not bare


def test_every_signal_stands_in_the_table() -> None:
    named = set(re.findall(r"^``(\w+)``", signals.__doc__ or "", re.MULTILINE))
    assert named == {name for name, thing in vars(signals).items() if isinstance(thing, Signal)}


def test_every_error_says_when_it_is_raised() -> None:
    errors = [
        one for one in vars(exceptions).values() if inspect.isclass(one) and one.__module__ == exceptions.__name__
    ]
    assert len(errors) > 30
    assert not [one.__name__ for one in errors if not one.__doc__]


def test_each_page_is_reached_from_the_index() -> None:
    index = Path(ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert not [page.name for page in API.glob("*.md") if f"reference/api/{page.name}" not in index]
