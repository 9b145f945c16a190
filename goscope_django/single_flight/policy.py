"""What ``single_flight`` was told, and the name of the flight that a call belongs to.

Rules of this file:

* A view's flight is named by the function, and by everything that may make the response another caller's or another
  representation. A plain function's flight is named by the function and its ``key``.
* A wrong argument raises when the function is decorated, a call that can't be named when it is made.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from goscope_django import conf
from goscope_django.core import arguments, decorating
from goscope_django.core.arguments import Duration
from goscope_django.core.colours import unwrapped
from goscope_django.core.flow import Flow, invoke
from goscope_django.exceptions import InvalidType, InvalidValue
from goscope_django.http import requests
from goscope_django.http.requests import Caller
from goscope_django.http.values import Incomparable, spoken
from goscope_django.mongodb.single_flight.values import Terms
from goscope_django.process import holder
from goscope_django.process.outage import outage
from goscope_django.single_flight.memory import memory
from goscope_django.single_flight.plan import Plan, flights

SAFE_METHODS: Final = ("GET", "HEAD")
PATIENCE: Final = {"ignore": 2.0, "raise": 10.0}
"""Seconds that one command may take before MongoDB counts as out of reach."""

LONGEST_NAME: Final = 300
LONGEST_TEXT: Final = 1_000


class Policy:
    """What the decorator was told, checked. Raises ``InvalidType`` or ``InvalidValue``, naming the argument."""

    def __init__(
        self,
        timeout: Duration,
        blocking_timeout: Duration,
        key: str | Callable[..., Any] | None,
        user: Any,
        linger: Duration,
        on_error: str | None,
        ignore_reads: Iterable[str] = (),
        name: str | None = None,
    ) -> None:
        decorating.no_function(timeout, "single_flight", "@single_flight()")
        if key is not None and not callable(key):
            arguments.key(key)
        if on_error is not None:
            conf.on_error(on_error, "on_error")
        self.lease = arguments.duration_milliseconds(timeout, "timeout")
        self.blocking = arguments.duration_seconds(blocking_timeout, "blocking_timeout")
        self.key = key
        self.user = user
        self.linger = arguments.duration_milliseconds(linger, "linger")
        self.on_error = on_error
        self.ignored = _ignored(ignore_reads)
        self.name = None if name is None else arguments.key(name, "name")

    def on(self, fn: Callable[..., Any]) -> Policy:
        """This policy for ``fn``. Raises ``InvalidValue`` for a key that names none of its parameters."""
        one = copy.copy(self)
        one.key = decorating.keyed(self.key, fn, "single_flight(): key")
        if self.key is not None:
            decorating.own_name(fn, self.name, "single_flight()", lambdas=True)
        return one

    def plan(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow[Plan | None]:
        """The plan for a call, ``None`` if it is not to be shared."""
        request = requests.find(args, kwargs)
        if request is None and self.key is None:
            raise InvalidType(
                f"single_flight() on {name_of(fn, args, None)}: the call has no request, so it needs a key "
                f"(key='text', or a function of the call's arguments)"
            )
        text = (yield from invoke(self.key, *args, **kwargs)) if callable(self.key) else None
        if not self._shares(request, text):
            return None
        if request is not None:
            requests.serve_by(request, _instance(fn, args, request))
        caller = None if request is None else (yield from requests.caller(request, self.user))
        name = self.name or name_of(fn, args, request)
        ignore = (self.on_error or conf.current().on_error) == "ignore"
        limit = PATIENCE["ignore" if ignore else "raise"]
        try:
            more = "" if request is None or self.key is not None else requests.arguments_of(request, args, kwargs)
        except Incomparable:
            memory.unshared(name, "an argument can't be compared")
            return None
        key = f"{name}:{_which(request, caller, text, more)}"
        plan = Plan(
            fn=fn,
            args=args,
            kwargs=kwargs,
            request=request,
            caller=caller,
            name=name,
            base=key,
            key=key,
            keyed=self.key is not None,
            ignored=self.ignored,
            provider=flights(),
            terms=Terms(self.lease, self.linger, _who(request), limit),
            deadline=time.monotonic() + self.blocking,
            outage=outage("single_flight"),
            ignore=ignore,
        )
        return (yield from plan.apart())

    def _shares(self, request: Any, text: Any) -> bool:
        if self.key is None:
            return requests.plain(request).method in SAFE_METHODS
        if text is not None:
            arguments.key(text)
        return text is not None


def _ignored(names: Any) -> frozenset[str]:
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise InvalidType(f"ignore_reads={names!r:.80}: a tuple of names of headers, cookies or attributes is needed")
    listed = list(names)
    for name in listed:
        if not isinstance(name, str):
            raise InvalidType(f"ignore_reads: {name!r:.80} is no name of a header, a cookie or an attribute (str)")
        if not name.strip():
            raise InvalidValue("ignore_reads: an empty name leaves nothing out")
    return spoken(listed)


def _which(request: Any, caller: Caller | None, text: str | None, more: str) -> str | None:
    """Which of the function's flights: of a request or a ``key``, or of both."""
    if caller is None:
        return text if text is None or len(text) <= LONGEST_TEXT else requests.digest(text)
    if text is None:
        return requests.key(request, caller.scope, more)
    method, host = requests.plain(request).method, requests.host(request)
    return requests.identity("key", text, method, host, caller.scope, requests.representation(request))


def _instance(fn: Callable[..., Any], args: tuple[Any, ...], request: Any) -> Any:
    """What a method is called on, ``None`` for a function."""
    instance = getattr(unwrapped(fn), "__self__", None)
    if instance is None and request is not None and args and args[0] is not request:
        return args[0]  # a method that was decorated in its class
    return instance


def name_of(fn: Callable[..., Any], args: tuple[Any, ...], request: Any) -> str:
    """A name for the function: two functions never share a flight."""
    instance = _instance(fn, args, request)
    kind = instance if isinstance(instance, type) or instance is None else type(instance)
    module, name = getattr(fn, "__module__", ""), getattr(fn, "__qualname__", type(fn).__qualname__)
    if kind is not None:
        module, name = kind.__module__, f"{kind.__qualname__}.{getattr(fn, '__name__', name)}"
    view = getattr(fn, "view_class", None) or getattr(fn, "cls", None)
    code = getattr(fn, "__code__", None)
    if kind is None and isinstance(view, type):
        module, name = view.__module__, _view_name(fn, view)
    elif code is not None and code.co_name == "<lambda>":
        plain = [one for one in code.co_consts if isinstance(one, (str, int, float, bytes))]
        name = f"{name}:{requests.identity(code.co_firstlineno, code.co_code.hex(), code.co_names, plain)}"
    # A spawned child calls the module that was run by another name.
    full = f"{module.replace('__mp_main__', '__main__')}.{name}"
    return full if len(full) <= LONGEST_NAME else f"{full[:LONGEST_NAME]}:{requests.digest(full)}"


def _view_name(fn: Any, view: type) -> str:
    """Of what ``as_view()`` gave: all such functions have the same name, that of the function inside it."""
    options = getattr(fn, "view_initkwargs", None) or getattr(fn, "initkwargs", None) or {}
    said = [
        (name, repr(value) if isinstance(value, (str, int, float)) else type(value)) for name, value in options.items()
    ]
    more = requests.identity(sorted(said, key=str), sorted((getattr(fn, "actions", None) or {}).items()))
    return f"{view.__qualname__}.{view.__name__}:{more}"


def _who(request: Any) -> str:
    """Who asks for the flight, as its holder is told. ``request`` runs here, with our middleware or without."""
    if request is None:
        return holder.describe()
    with holder.serving(requests.plain(request)):
        return holder.describe()
