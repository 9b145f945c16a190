"""Logic is written once for sync and async (CODE_STYLE.md): few lines above the store stand twice only for that.

How they are counted. A pair is a function and its asynchronous twin in the same class, function or module: ``get`` and
``aget``, ``_get`` and ``_aget``, ``synchronous`` and ``asynchronous``. Their bodies are compared line by line, without
docstrings, comments and blank lines, once ``async`` and ``await`` are taken out and the twin's ``aname`` is written
``name`` wherever the synchronous body has that name. Each line that both have, in the same order, stands twice. A twin
of one or two lines counts as none: that is what a method over a flow looks like. Not counted: ``mongodb/``, whose flows
have no twins, and ``testing/``.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.architecture.source import ROOT, Module, below, modules, parse

LIMIT = 92
"""Lines that may stand twice in the whole package. To be lowered, never raised."""

FREE = 2
"""A twin of so many lines is a mere face of what decides."""

Function = ast.FunctionDef | ast.AsyncFunctionDef

_NAME = re.compile(r"\b[^\W\d]\w*")
_TWIN = re.compile(r"\b(_{0,2})a([^\W\d]\w*)")


@dataclass(frozen=True)
class Pair:
    """Two functions, and how many lines of theirs stand twice."""

    where: str
    lines: int


def body(function: Function, text: list[str]) -> list[str]:
    """Its lines without docstring, comments, blank lines, indentation, ``async`` and ``await``."""
    statements = function.body
    first = statements[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        statements = statements[1:]
    if not statements:
        return []
    plain = (re.sub(r"\b(async|await) ", "", line) for line in text[statements[0].lineno - 1 : function.end_lineno])
    without = (re.sub(r"(^|\s)#.*", "", line).strip() for line in plain)
    return [line for line in without if line]


def twice(plain: list[str], twin: list[str]) -> int:
    """How many lines of the two bodies are alike, apart from the ``a`` before names."""
    known = {name for line in plain for name in _NAME.findall(line)}

    def unmarked(found: re.Match[str]) -> str:
        name = f"{found[1]}{found[2]}"
        return name if name in known else found[0]

    same = difflib.SequenceMatcher(None, plain, [_TWIN.sub(unmarked, line) for line in twin], autojunk=False)
    return sum(block.size for block in same.get_matching_blocks())


def twin_of(name: str) -> str:
    """``get`` and ``aget``, ``_get`` and ``_aget``, ``__enter__`` and ``__aenter__``."""
    bare = name.lstrip("_")
    return f"{name[: len(name) - len(bare)]}a{bare}"


def functions(owner: ast.AST) -> dict[str, Function]:
    """The functions that belong to ``owner`` itself, also those that stand in an ``if`` or a ``with`` of it."""
    found: dict[str, Function] = {}
    waiting = list(ast.iter_child_nodes(owner))
    for node in waiting:
        if isinstance(node, Function):
            found[node.name] = node
        elif not isinstance(node, ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))
    return found


def pairs(module: Module, source: str) -> Iterator[Pair]:
    """The twins of one file of which lines stand twice."""
    if below(module.inside, "mongodb", "testing"):
        return
    text = source.splitlines()
    for owner in ast.walk(module.tree):
        if not isinstance(owner, ast.Module | ast.ClassDef | Function):
            continue
        own = functions(owner)
        for name, function in own.items():
            twin = own.get(twin_of(name))
            if isinstance(function, ast.FunctionDef) and twin is not None:
                lines = body(twin, text)
                count = twice(body(function, text), lines) if len(lines) > FREE else 0
                if count:
                    yield Pair(f"{module.path}:{function.lineno} {name}", count)


def test_few_lines_stand_twice_only_for_sync_and_async() -> None:
    found = [pair for module in modules() for pair in pairs(module, (ROOT / module.path).read_text(encoding="utf-8"))]
    table = "\n".join(f"{pair.lines:4} {pair.where}" for pair in sorted(found, key=lambda pair: -pair.lines))
    total = sum(pair.lines for pair in found)
    assert total <= LIMIT, f"{total} lines stand twice, of which {LIMIT} may:\n{table}"


def counted(source: str, name: str = "goscope_django.locks.held") -> int:
    return sum(pair.lines for pair in pairs(parse(name, source), source))


WRITTEN_TWICE = '''
class Lock:
    def _release(self):
        """Let it go."""
        with self.guard():
            found = self.backend.release(self.key)  # one command
        # The same in both.
        return found

    async def _arelease(self):
        """Async version of ``_release``."""
        async with self.guard():
            found = await self.backend.arelease(self.key)

        return found
'''
WRITTEN_ONCE = """
def release(self):
    flow = self.release_flow()
    return carry_out(flow)

async def arelease(self):
    flow = self.release_flow()
    return await acarry_out(flow)
"""


def test_what_is_written_twice_is_counted() -> None:
    assert counted(WRITTEN_TWICE) == 3
    assert counted("def wrap():" + WRITTEN_TWICE.replace("\n", "\n    ")) == 3


def test_twins_in_branches_are_pairs_as_well() -> None:
    if_async = "  if f:\n    async def acall():\n      a()\n      b()\n      await c()\n    return acall\n"
    plain = "  def call():\n    a()\n    b()\n    c()\n  return call"
    assert counted(f"def wrap(f):\n{if_async}{plain}") == 3


def test_two_lines_over_a_flow_and_the_store_are_not_counted() -> None:
    assert counted(WRITTEN_ONCE) == 0
    assert counted(WRITTEN_TWICE, "goscope_django.mongodb.driver.store") == 0
