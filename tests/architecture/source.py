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
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, f"{imported_from(module, node)}.{alias.name}"


def imported_from(module: Module, node: ast.ImportFrom) -> str:
    """The full name of what ``from ... import`` names, also where it is relative."""
    parts = module.name.split(".")
    package = parts if module.path.endswith("__init__.py") else parts[:-1]
    above = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*above, *filter(None, [node.module])])


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


def origins(module: Module) -> dict[str, str]:
    """For each name that stands at the top of ``module``: the full name of what it is, one import further on."""
    found = {owner.name: f"{module.name}.{owner.name}" for owner in module.tree.body if isinstance(owner, ast.ClassDef)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                found[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{imported_from(module, node)}.{alias.name}"
    return found


def dotted(node: ast.expr) -> str:
    """``a.b.C`` for such an expression, with ``C[T]`` as ``C``; empty for any other."""
    if isinstance(node, ast.Subscript):
        return dotted(node.value)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return node.id if isinstance(node, ast.Name) else ""


def subclasses(package: list[Module]) -> dict[str, list[str]]:
    """The direct subclasses of each class of the package, by full names.

    Names are followed through imports, so that a class that a package's ``__init__`` shows is the one of its own file.
    """
    named = {module.name: origins(module) for module in package}
    own = {
        f"{module.name}.{one.name}" for module in package for one in module.tree.body if isinstance(one, ast.ClassDef)
    }

    def resolved(full: str) -> str:
        for _ in range(20):
            owner, _, name = full.rpartition(".")
            further = named.get(owner, {}).get(name, full)
            if full in own or further == full:
                break
            full = further
        return full

    found: dict[str, list[str]] = {}
    for module in package:
        for one in classes(module):
            for base in map(dotted, one.bases):
                first, _, rest = base.partition(".")
                start = named[module.name].get(first, first)
                full = resolved(f"{start}.{rest}" if rest else start)
                if full in own:
                    found.setdefault(full, []).append(f"{module.name}.{one.name}")
    return found
