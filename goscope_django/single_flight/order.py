"""Finds decorators that stand on the wrong side of ``single_flight`` on the views of a project.

What is outside of ours runs when a response has been published already, or before reads are recorded: ``Vary`` and
``Cache-Control`` that it sets are not known to the flight, and what it let a caller through for is not part of it.
Rule of this file: it looks at functions and closures, imports nothing and calls nothing of the project's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from django.urls import URLPattern, URLResolver, get_resolver

OURS: Final = "goscope_django.single_flight.decorator"
KINDS: Final = {
    "django.views.decorators.vary": "Vary",
    "django.views.decorators.cache": "Cache-Control",
    "django.contrib.auth.decorators": "permission",
    "django.contrib.admin.views.decorators": "permission",
    "guardian.decorators": "permission",
    "rest_framework.decorators": "",
}
"""What the decorators of a module are about."""
_METHODS: Final = ("dispatch", "get", "head", "post", "put", "patch", "delete", "list", "retrieve", "create", "update")


@dataclass(frozen=True, slots=True)
class Misplaced:
    """One decorator outside of ``single_flight``: the route, the view, its name and what it is about."""

    route: str
    view: str
    decorator: str
    kind: str


def misplaced(resolver: URLResolver | None = None, prefix: str = "") -> Iterator[Misplaced]:
    """Each decorator about ``Vary``, ``Cache-Control`` or permissions that stands outside of ``single_flight``."""
    for pattern in (resolver or get_resolver()).url_patterns:
        route = f"{prefix}{pattern.pattern}"
        if isinstance(pattern, URLResolver):
            yield from misplaced(pattern, route)
        elif isinstance(pattern, URLPattern):
            view = getattr(pattern.callback, "__qualname__", type(pattern.callback).__qualname__)
            seen: set[tuple[str, str]] = set()
            for layers in _ways(pattern.callback):
                for module, name in _outside(layers):
                    kind = KINDS.get(module, "")
                    if kind and (module, name) not in seen:
                        seen.add((module, name))
                        yield Misplaced(route, view, name, kind)


def _outside(layers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The layers before the innermost of ours; none if ours is not among them."""
    ours = [place for place, (module, _) in enumerate(layers) if module == OURS]
    return [one for one in layers[: ours[-1]] if one[0] != OURS] if ours else []


def _ways(callback: Any) -> Iterator[list[tuple[str, str]]]:
    """The layers of decorators, the outermost first, on each way through a view to what it runs."""
    outer = list(_layers(callback))
    view = _unwrapped(callback)
    kind = getattr(view, "view_class", None) or getattr(view, "cls", None)
    if not isinstance(kind, type):
        yield outer
        return
    dispatch = [*outer, *_layers(getattr(kind, "dispatch", None))]
    yield dispatch
    for name in (*_METHODS[1:], *(getattr(view, "actions", None) or {}).values()):
        method = getattr(kind, name, None)
        inner = _cell(method, "func")  # of rest_framework.decorators.api_view
        yield [*dispatch, *_layers(method if inner is None else inner)]


def _layers(function: Any) -> Iterator[tuple[str, str]]:
    while function is not None:
        module, name = _of(function)
        if module == "django.utils.decorators" and name == "_multi_decorate":
            # Of method_decorator: the first to be applied, so the innermost, comes first.
            for decorator in reversed(list(_cell(function, "decorators") or ())):
                yield _of(decorator)
        else:
            yield module, name
        if (module, name) == ("django.views.generic.base", "View"):
            return  # the view that as_view() made has the attributes of dispatch, but does not wrap it
        function = getattr(function, "__wrapped__", None)


def _of(function: Any) -> tuple[str, str]:
    """The module that made a wrapper, and the decorator's name there. ``functools.wraps`` copies neither."""
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None:
        return type(function).__module__, type(function).__qualname__
    name = code.co_qualname.partition(".")[0]
    return str(function.__globals__.get("__name__", "")), name


def _cell(function: Any, name: str) -> Any:
    code = getattr(function, "__code__", None)
    if code is None or name not in code.co_freevars:
        return None
    try:
        return function.__closure__[code.co_freevars.index(name)].cell_contents
    except ValueError:  # not filled yet
        return None


def _unwrapped(function: Any) -> Any:
    while not (hasattr(function, "view_class") or hasattr(function, "cls")) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
