"""The source of the package as syntax trees: who imports what, and what text stands in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "goscope_django"


@dataclass(frozen=True)
class Module:
    """One file of the package, read and not imported."""

    name: str
    path: str
    tree: ast.Module
    lines: int

    @property
    def inside(self) -> str:
        """Its name inside the package; empty for the package itself."""
        return self.name.removeprefix(PACKAGE).removeprefix(".")


def parse(name: str, text: str, path: str = "<text>") -> Module:
    return Module(name, path, ast.parse(text, path), len(text.splitlines()))


def modules(root: Path = ROOT) -> list[Module]:
    """All modules of the package, whatever exists today."""
    found = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        relative = path.relative_to(root)
        parts = list(relative.with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found.append(parse(".".join(parts), path.read_text(encoding="utf-8"), str(relative)))
    return found


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that ``module`` imports, at its top, in functions and for type checkers only.

    ``from a import b`` gives ``a.b``: whether ``b`` is a module can't be seen, and a rule on ``a`` covers it.
    """
    package = module.name.split(".") if module.path.endswith("__init__.py") else module.name.split(".")[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                base = package[: len(package) - node.level + 1] + base
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])


def below(name: str, *roots: str) -> bool:
    """Whether ``name`` is one of ``roots`` or lies in one."""
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def texts(module: Module) -> Iterator[tuple[int, str]]:
    """Line and value of every text literal that is not a docstring (or a text that stands alone, like one)."""
    alone = {id(node.value) for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.lineno, node.value


def classes(module: Module) -> Iterator[ast.ClassDef]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            yield node
