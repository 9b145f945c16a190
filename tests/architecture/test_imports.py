"""Who may import whom (CODE_STYLE.md), held against the source as it stands; files still to come are covered."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.architecture.source import PACKAGE, ROOT, Module, below, classes, imports, modules, parse, texts

Offences = Iterator[str]

FEATURES = ("locks", "circuits", "single_flight", "idempotency", "checkpoints", "cache", "fencing")
SHELLS = (
    "dashboard",
    "management",
    "integrations",
    "checks",
    "debug",
    "testing",
    "apps",
    "admin",
    "models",
    "migrations",
)
RINGS: tuple[tuple[str, ...], ...] = (
    ("contracts", "exceptions", "core"),
    ("mongodb",),
    ("conf", "codec", "signals", "runtime"),
    ("http", "process", "figures"),
    (*FEATURES, "decorators", "middleware", "rest", "sessions"),
    ("operations",),
    SHELLS,
)
STORE_RINGS: tuple[tuple[str, ...], ...] = (
    ("mongodb.document", "mongodb.codec", "mongodb.embedded"),
    ("mongodb.driver",),
    tuple(f"mongodb.{feature}" for feature in FEATURES),
    ("mongodb.figures", "mongodb.finding", "mongodb.overview", "mongodb.trouble", "mongodb.losses", "mongodb.adapter"),
)
SIBLINGS = {"cache": ("locks",), "fencing": ("locks",)}
"""Which other features a feature may import, and their store rooms."""
OUTSIDE_DJANGO = ("contracts", "exceptions", "core", "mongodb")
SERVER_EXPRESSIONS = ("$$NOW", "$$CLUSTER_TIME", "$literal")


def place(inside: str, rings: tuple[tuple[str, ...], ...]) -> int | None:
    """The number of the ring of a module, 0 the innermost; ``None`` if it is in none of them."""
    for number, members in enumerate(rings):
        if below(inside, *members):
            return number
    return None


def own_imports(module: Module) -> Iterator[tuple[int, str]]:
    """What it imports of the package, without the package's name."""
    for line, name in imports(module):
        inside = name.removeprefix(f"{PACKAGE}.")
        if inside != name:
            yield line, inside


def stands_in_no_room(module: Module) -> Offences:
    if module.inside and place(module.inside, RINGS) is None:
        yield f"{module.path} stands in none of the rooms"
    if below(module.inside, "mongodb") and module.inside != "mongodb" and place(module.inside, STORE_RINGS) is None:
        yield f"{module.path} stands in none of the rooms of mongodb/"


def points_outward(module: Module) -> Offences:
    for rings in (RINGS, STORE_RINGS):
        mine = place(module.inside, rings)
        if mine is None:
            continue
        for line, inside in own_imports(module):
            other = place(inside, rings)
            if other is not None and other > mine:
                yield f"{module.path}:{line} imports {inside}, of an outer ring"


def core_beyond_the_standard_library(module: Module) -> Offences:
    if not below(module.inside, "core"):
        return
    for line, name in imports(module):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, PACKAGE}:
            yield f"{module.path}:{line} imports {name}"


def feature_of(inside: str) -> str | None:
    """The feature to which a module belongs, above the store or below."""
    first = inside.removeprefix("mongodb.").partition(".")[0]
    return first if first in FEATURES else None


def reaches_for_a_sibling(module: Module) -> Offences:
    mine = feature_of(module.inside)
    if mine is None:
        return
    for line, inside in own_imports(module):
        other = feature_of(inside)
        if other not in (None, mine, *SIBLINGS.get(mine, ())):
            yield f"{module.path}:{line} imports {inside}, of another feature"


def borrows_a_private_name(module: Module) -> Offences:
    for line, inside in own_imports(module):
        name = inside.rpartition(".")[2]
        if name.startswith("_") and not name.startswith("__"):
            yield f"{module.path}:{line} imports {inside}, which is another module's own"


def face_does_something(module: Module) -> Offences:
    """A feature's ``__init__`` has names and a docstring, and no submodule bears the name of an exported function."""
    if module.inside not in FEATURES:
        return
    names = {name.rpartition(".")[2] for _, name in own_imports(module)}
    submodules = {one.stem for one in (ROOT / module.path).parent.glob("*.py")}
    for name in sorted(names & submodules - {"models"}):
        yield f"{module.path} shows {name}, and has a module of that name"
    for node in module.tree.body:
        lazy = isinstance(node, ast.FunctionDef) and node.name == "__getattr__"
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.For, ast.While)) and not lazy:
            yield f"{module.path}:{node.lineno} does something; it is a face"


def driver_outside_mongodb(module: Module) -> Offences:
    if below(module.inside, "mongodb", "testing"):
        return
    for line, name in imports(module):
        if below(name, "pymongo", "bson", "gridfs", "mongomock"):
            yield f"{module.path}:{line} imports {name}"


def django_inside(module: Module) -> Offences:
    if not below(module.inside, *OUTSIDE_DJANGO):
        return
    for line, name in imports(module):
        if below(name, "django", "rest_framework", "asgiref"):
            yield f"{module.path}:{line} imports {name}"


def faces_reach_for_the_store(module: Module) -> Offences:
    if not below(module.inside, "management", "dashboard"):
        return
    for line, name in imports(module):
        if below(name, f"{PACKAGE}.mongodb"):
            yield f"{module.path}:{line} imports {name}; ask operations"


def uses_testing(module: Module) -> Offences:
    if below(module.inside, "testing"):
        return
    for line, name in imports(module):
        if below(name, f"{PACKAGE}.testing", "pytest", "hypothesis", "tests", "testproject"):
            yield f"{module.path}:{line} imports {name}"


def settings_read_elsewhere(module: Module) -> Offences:
    """``conf`` is the only reader of settings: elsewhere they would be read too early, or unchecked."""
    if below(module.inside, "conf", "testing"):
        return
    for line, name in imports(module):
        if below(name, "django.conf") and not below(name, "django.conf.urls"):
            yield f"{module.path}:{line} imports {name}; ask conf"


def server_expressions_elsewhere(module: Module) -> Offences:
    if below(module.inside, "mongodb.document"):
        return
    for line, text in texts(module):
        for word in SERVER_EXPRESSIONS:
            if word in text:
                yield f"{module.path}:{line} spells {word}; mongodb/document/ has it"


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Kinds, names and defaults. Not annotations: what takes a function takes a coroutine function in its twin."""
    spec = function.args
    every = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
    bare = {id(one): ast.arg(one.arg) for one in every if one is not None}
    return ast.dump(
        ast.arguments(
            posonlyargs=[bare[id(one)] for one in spec.posonlyargs],
            args=[bare[id(one)] for one in spec.args],
            vararg=bare.get(id(spec.vararg)),
            kwonlyargs=[bare[id(one)] for one in spec.kwonlyargs],
            kw_defaults=spec.kw_defaults,
            kwarg=bare.get(id(spec.kwarg)),
            defaults=spec.defaults,
        )
    )


def twins_differ(module: Module) -> Offences:
    """A function or method and its asynchronous twin take the same arguments."""
    owners: list[tuple[str, ast.Module | ast.ClassDef]] = [("", module.tree)]
    owners += [(f"{owner.name}.", owner) for owner in classes(module)]
    for where, owner in owners:
        plain = {node.name: node for node in owner.body if isinstance(node, ast.FunctionDef)}
        for node in owner.body:
            if isinstance(node, ast.AsyncFunctionDef) and node.name.startswith("a"):
                twin = plain.get(node.name[1:])
                if twin and parameters(twin) != parameters(node):
                    yield f"{module.path}:{node.lineno} {where}{node.name} takes other arguments than {twin.name}"


def threads_behind_coroutines(module: Module) -> Offences:
    """Asynchronous twins run on the asynchronous client: no thread hop, except where Django's own code needs one."""
    if not below(module.inside, "mongodb"):
        return
    for line, name in imports(module):
        if name in {"asyncio.to_thread", "asgiref.sync.sync_to_async", "asgiref.sync.async_to_sync"}:
            yield f"{module.path}:{line} imports {name}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr in {"to_thread", "run_in_executor"}:
            yield f"{module.path}:{node.lineno} uses {node.attr}"


def forks_seen_elsewhere(module: Module) -> Offences:
    """Where a system can't fork, the call is missing: ``core/forking`` knows."""
    if module.inside == "core.forking":
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr == "register_at_fork":
            yield f"{module.path}:{node.lineno} uses {node.attr}; ask forking"


RULES: tuple[Callable[[Module], Offences], ...] = (
    stands_in_no_room,
    points_outward,
    core_beyond_the_standard_library,
    reaches_for_a_sibling,
    borrows_a_private_name,
    face_does_something,
    driver_outside_mongodb,
    django_inside,
    faces_reach_for_the_store,
    uses_testing,
    settings_read_elsewhere,
    server_expressions_elsewhere,
    twins_differ,
    threads_behind_coroutines,
    forks_seen_elsewhere,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Callable[[Module], Offences]) -> None:
    offences = [offence for module in modules() for offence in rule(module)]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (points_outward, "goscope_django.mongodb.locks.provider", "from goscope_django.runtime import get_adapter"),
        (points_outward, "goscope_django.mongodb.locks.provider", "def f():\n    from goscope_django import runtime"),
        (points_outward, "goscope_django.contracts", "from .mongodb import lease"),
        (points_outward, "goscope_django.mongodb.driver.client", "from ..locks import lock"),
        (points_outward, "goscope_django.runtime", "import goscope_django.operations"),
        (points_outward, "goscope_django.operations", "from goscope_django.dashboard.views import page"),
        (driver_outside_mongodb, "goscope_django.cache", "from bson import ObjectId"),
        (driver_outside_mongodb, "goscope_django.dashboard.views", "def f():\n    import pymongo.errors"),
        (django_inside, "goscope_django.mongodb.driver.client", "from django.conf import settings"),
        (
            faces_reach_for_the_store,
            "goscope_django.management.commands.x",
            "from goscope_django.mongodb.document import lease",
        ),
        (uses_testing, "goscope_django.apps", "from goscope_django import testing"),
        (settings_read_elsewhere, "goscope_django.locks", "from django.conf import settings"),
        (server_expressions_elsewhere, "goscope_django.mongodb.locks.provider", 'x = {"$lt": ["$expiresAt", "$$NOW"]}'),
        (server_expressions_elsewhere, "goscope_django.mongodb.locks.provider", 'x = {"$literal": 1}'),
        (
            twins_differ,
            "goscope_django.cache",
            "class A:\n def get(self, key, version=None): ...\n async def aget(self, key): ...",
        ),
        (twins_differ, "goscope_django.circuits", "def reset(name, reason=''): ...\nasync def areset(name): ..."),
        (threads_behind_coroutines, "goscope_django.mongodb.cache.provider", "import asyncio\nx = asyncio.to_thread"),
        (forks_seen_elsewhere, "goscope_django.cache.headroom", "import os\nos.register_at_fork(before=print)"),
    ],
)
def test_the_rule_finds_an_offence(rule: Callable[[Module], Offences], name: str, text: str) -> None:
    assert list(rule(parse(name, text)))


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (points_outward, "goscope_django.dashboard.views", "from goscope_django import operations"),
        (points_outward, "goscope_django.cache.backend", "from goscope_django import locks"),
        (reaches_for_a_sibling, "goscope_django.cache.backend", "from goscope_django import locks"),
        (
            reaches_for_a_sibling,
            "goscope_django.fencing.models",
            "from goscope_django.locks import held",
        ),
        (stands_in_no_room, "goscope_django.mongodb.cache.flows", "x = 1"),
        (core_beyond_the_standard_library, "goscope_django.core.flow", "import asyncio"),
        (driver_outside_mongodb, "goscope_django.mongodb.driver.client", "import pymongo"),
        (django_inside, "goscope_django.conf", "from django.conf import settings"),
        (settings_read_elsewhere, "goscope_django.conf", "from django.conf import settings"),
        (server_expressions_elsewhere, "goscope_django.mongodb.locks.provider", '"""Judged by $$NOW."""'),
    ],
)
def test_the_rule_lets_the_rest_pass(rule: Callable[[Module], Offences], name: str, text: str) -> None:
    assert not list(rule(parse(name, text)))
