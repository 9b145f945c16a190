"""The tree in the docstring of ``exceptions`` is the tree that there is."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import pickle
import re
from typing import Any

import pytest

from goscope_django import conf, exceptions
from goscope_django.exceptions import GoscopeError, LockNotAcquired, RemoteError, Undecodable
from goscope_django.single_flight import errors
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


def tree(kind: type[GoscopeError] = GoscopeError) -> list[type[GoscopeError]]:
    """Every class of the package's tree, those that tests define left out."""
    below = [one for heir in kind.__subclasses__() for one in tree(heir)]
    return [kind, *below] if kind.__module__.startswith("goscope_django.") else below


def sample(kind: type[GoscopeError]) -> GoscopeError:
    """An error with a value of its own for everything that its class takes."""
    if not inspect.isfunction(kind.__init__):
        return kind("lock 'x': held")
    values: dict[str, Any] = {"message": "lock 'x': held", "retry_after": 1.5}
    return kind(**{name: values.get(name, f"the {name}") for name in list(inspect.signature(kind).parameters)})


def same(one: BaseException, other: BaseException) -> None:
    assert type(one) is type(other)
    assert (str(one), one.args, vars(one)) == (str(other), other.args, vars(other))


def test_the_tree_is_complete() -> None:
    assert {kind.__name__ for kind in tree()} >= defined().keys()
    assert conf.BadSettings in tree()


@pytest.mark.parametrize("kind", sorted(set(tree()), key=str), ids=str)
def test_every_class_survives_what_task_queues_do(kind: type[GoscopeError]) -> None:
    error = sample(kind)
    error.add_note("raised by the leader")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        same(again, error)
    plain = sample(kind)
    same(kind(*plain.args), plain)
    same(kind(*json.loads(json.dumps(plain.args))), plain)
    assert "lock 'x': held" in str(plain) and str(plain).count("(") == 0, "the text is the message alone"
    assert str(kind("only a message")) == "only a message"
    assert str(kind()) == "" or kind is Undecodable  # whose reason is "damaged" then


def test_keywords_work_as_they_did() -> None:
    error = LockNotAcquired("held", key="stock")
    assert (error.key, str(error), repr(error)) == ("stock", "held", "LockNotAcquired('held', 'stock')")


def test_the_callers_side_of_celery_catches_our_class() -> None:
    backend = pytest.importorskip("celery.backends.base")
    celery = pytest.importorskip("celery")
    app = celery.Celery(set_as_current=False, broker="memory://", backend="cache+memory://")
    results = backend.BaseBackend(app=app, serializer="json")
    for kind in tree():
        stored = json.loads(json.dumps(results.prepare_exception(sample(kind), "json")))
        same(results.exception_to_python(stored), sample(kind))
    stored = json.loads(json.dumps(results.prepare_exception(LockNotAcquired("held", key="stock"), "json")))
    with pytest.raises(LockNotAcquired) as caught:
        raise results.exception_to_python(stored)
    assert caught.value.key == "stock"


def test_what_a_flight_could_not_rebuild_survives_as_well() -> None:
    class Own(ValueError):
        pass

    error = errors.unpack(errors.pack(Own("lost")))
    assert isinstance(error, ValueError) and isinstance(error, RemoteError)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        same(again, error)
    found = getattr(errors, type(error).__name__)
    assert found is type(error) and str(found(*error.args)) == str(error)
    with pytest.raises(AttributeError):
        errors.RemoteNothing  # noqa: B018
