"""Who may import whom (CODE_STYLE.md), held against the source as it stands; files still to come are covered."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

import pytest

from tests.architecture.source import PACKAGE, Module, below, classes, imports, modules, parse, texts

Offences = Iterator[str]

# ``signals`` only declares, runtime sends them; values, renewal, outage and transactions are what public modules share.
RINGS: tuple[tuple[str, ...], ...] = (
    ("contracts", "exceptions", "arguments", "forking"),
    ("mongodb",),
    (
        "conf",
        "runtime",
        "signals",
        "values",
        "renewal",
        "renewables",
        "renewal_lease",
        "outage",
        "counters",
        "figures",
        "transactions",
        "cancellation",
        "requests",
        "credentials",
        "responses",
    ),
    (),  # whatever is named in no other ring: the public modules and operations
    ("apps", "checks", "management", "dashboard", "templatetags", "admin", "urls", "views", "testing"),
)
PUBLIC = 3
OUTSIDE_DJANGO = ("contracts", "exceptions", "arguments", "forking", "mongodb")
SERVER_EXPRESSIONS = ("$$NOW", "$$CLUSTER_TIME", "$literal")
LONGEST = 330
LONGER: dict[str, str] = {}  # path: why it may be longer


def ring(inside: str) -> int:
    """The number of the ring of a module, 0 the innermost."""
    for number, members in enumerate(RINGS):
        if below(inside, *members):
            return number
    return PUBLIC


def points_outward(module: Module) -> Offences:
    if not module.inside:  # the package itself may show what it likes, lazily; see test_loading
        return
    for line, name in imports(module):
        inside = name.removeprefix(f"{PACKAGE}.")
        if inside != name and ring(inside) > ring(module.inside):
            yield f"{module.path}:{line} imports {name}, of an outer ring"


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
    if module.inside == "mongodb.expressions":
        return
    for line, text in texts(module):
        for word in SERVER_EXPRESSIONS:
            if word in text:
                yield f"{module.path}:{line} spells {word}; mongodb/expressions.py has it"


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
    """Where a system can't fork, the call is missing: ``forking`` knows."""
    if module.inside == "forking":
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr == "register_at_fork":
            yield f"{module.path}:{node.lineno} uses {node.attr}; ask forking"


def too_long(module: Module) -> Offences:
    if module.lines > LONGEST and module.path not in LONGER:
        yield f"{module.path} has {module.lines} lines, {LONGEST} are allowed: what are the two things in it?"


RULES: tuple[Callable[[Module], Offences], ...] = (
    points_outward,
    driver_outside_mongodb,
    django_inside,
    faces_reach_for_the_store,
    uses_testing,
    settings_read_elsewhere,
    server_expressions_elsewhere,
    twins_differ,
    threads_behind_coroutines,
    forks_seen_elsewhere,
    too_long,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Callable[[Module], Offences]) -> None:
    offences = [offence for module in modules() for offence in rule(module)]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (points_outward, "goscope_django.mongodb.locks", "from goscope_django.runtime import get_adapter"),
        (points_outward, "goscope_django.mongodb.locks", "def f():\n    from goscope_django import runtime"),
        (points_outward, "goscope_django.contracts", "from .mongodb import lease"),
        (points_outward, "goscope_django.mongodb.client", "from ..locks import lock"),
        (points_outward, "goscope_django.runtime", "import goscope_django.operations"),
        (points_outward, "goscope_django.operations", "from goscope_django.dashboard.views import page"),
        (driver_outside_mongodb, "goscope_django.cache", "from bson import ObjectId"),
        (driver_outside_mongodb, "goscope_django.dashboard.views", "def f():\n    import pymongo.errors"),
        (django_inside, "goscope_django.mongodb.client", "from django.conf import settings"),
        (faces_reach_for_the_store, "goscope_django.management.commands.x", "from goscope_django.mongodb import lease"),
        (uses_testing, "goscope_django.apps", "from goscope_django import testing"),
        (settings_read_elsewhere, "goscope_django.locks", "from django.conf import settings"),
        (server_expressions_elsewhere, "goscope_django.mongodb.locks", 'x = {"$lt": ["$expiresAt", "$$NOW"]}'),
        (server_expressions_elsewhere, "goscope_django.mongodb.locks", 'x = {"$literal": 1}'),
        (
            twins_differ,
            "goscope_django.cache",
            "class A:\n def get(self, key, version=None): ...\n async def aget(self, key): ...",
        ),
        (twins_differ, "goscope_django.circuits", "def reset(name, reason=''): ...\nasync def areset(name): ..."),
        (threads_behind_coroutines, "goscope_django.mongodb.cache", "import asyncio\nx = asyncio.to_thread"),
        (forks_seen_elsewhere, "goscope_django.cache", "import os\nos.register_at_fork(before=print)"),
        (too_long, "goscope_django.cache", "x = 1\n" * (LONGEST + 1)),
    ],
)
def test_the_rule_finds_an_offence(rule: Callable[[Module], Offences], name: str, text: str) -> None:
    assert list(rule(parse(name, text)))


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (points_outward, "goscope_django.dashboard.views", "from goscope_django import operations"),
        (points_outward, "goscope_django.locks", "from goscope_django.decorators import locked"),
        (driver_outside_mongodb, "goscope_django.mongodb.client", "import pymongo"),
        (django_inside, "goscope_django.conf", "from django.conf import settings"),
        (settings_read_elsewhere, "goscope_django.conf", "from django.conf import settings"),
        (server_expressions_elsewhere, "goscope_django.mongodb.locks", '"""Judged by $$NOW."""'),
    ],
)
def test_the_rule_lets_the_rest_pass(rule: Callable[[Module], Offences], name: str, text: str) -> None:
    assert not list(rule(parse(name, text)))
