"""Every promise of the page of guarantees names a test that attacks it, and each of these exists."""

from __future__ import annotations

import ast
import re
from functools import cache

from tests.support.documents import ROOT, read

PAGE = "docs/explanation/guarantees.md"
_TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")


def promises(text: str) -> list[str]:
    """The rows of the tables, without their heads."""
    lines = text.splitlines()
    heads = {number - 1 for number, line in enumerate(lines) if re.fullmatch(r"[|\-]+", line)}
    return [
        line
        for number, line in enumerate(lines)
        if line.startswith("|") and number not in heads and number - 1 not in heads
    ]


@cache
def defined_in(file: str) -> frozenset[str]:
    path = ROOT / file
    if not path.exists():
        return frozenset()
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    functions = (node.name for node in tree if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return frozenset(name for name in functions if name.startswith("test_"))


def faults(text: str) -> list[str]:
    """Promises without a test, and tests that are not there."""
    found = [row[:60] for row in promises(text) if not _TEST.search(row.rpartition(" | ")[2])]
    return found + [f"{file}::{name}" for file, name in _TEST.findall(text) if name not in defined_in(file)]


def test_each_promise_names_a_test_that_exists() -> None:
    text = read(PAGE)
    assert len(promises(text)) > 25
    assert faults(text) == []


def test_a_promise_without_a_test_and_a_test_that_is_not_there_are_found() -> None:
    head = "| guaranteed | not guaranteed | attacked by |\n|---|---|---|\n"
    here = "tests/architecture/test_guarantees.py::test_each_promise_names_a_test_that_exists"
    assert faults(f"{head}| a | b | `{here}` |\n") == []
    assert faults(f"{head}| a | b | |\n| a | b | c |\n") == ["| a | b | |", "| a | b | c |"]
    assert faults(f"{head}| a | `{here}` | |\n") == [f"| a | `{here}` | |"[:60]]
    assert faults(f"{head}| a | b | `{here}_not` `tests/gone.py::test_x` |\n") == [
        f"{here}_not",
        "tests/gone.py::test_x",
    ]
