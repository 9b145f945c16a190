"""``cached``: a function whose results are kept in a cache, sync and async.

Rules of this file:

* A call's key is made of its arguments: by a template, by a function, or, where no ``key`` is given, of the function's
  name and all arguments. Then each argument must be one that can be compared as text.
* Everything else is that of ``get_or_set``. Nothing here reads or stores.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final, ParamSpec, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured

from goscope_django.cache.backend import MongoDBCache
from goscope_django.cache.options import Timeout, milliseconds_of, stale_options
from goscope_django.core import arguments
from goscope_django.core.arguments import Duration
from goscope_django.core.decorating import keyed, no_function, own_name
from goscope_django.exceptions import InvalidType, InvalidValue
from goscope_django.http.requests import identity
from goscope_django.http.values import Incomparable, text_of

P = ParamSpec("P")
R = TypeVar("R")
Key = str | Callable[..., str] | None
Tags = Iterable[str] | Callable[..., Iterable[str]]

EXAMPLE: Final = "@cached(60) or @cached(60, key='product:{product_id}')"


def cached(
    timeout: Timeout,
    *,
    key: Key = None,
    stale: Duration | None = None,
    background: bool = False,
    tags: Tags = (),
    cache: str = "default",
    version: int | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Keep the results of a function, or of ``async def``, as ``get_or_set`` keeps a value.

    ``timeout`` is in seconds, a ``timedelta``, or ``None`` for never. ``key`` is the key in the cache ``cache`` (an
    alias): a template that names parameters (``"product:{product_id}"``), or a function of the call's arguments; so
    ``delete`` with that key removes the result. Without it the key is made of the function's name and all arguments,
    which must be texts, numbers, dates, model instances, tuples of these and the like. ``tags`` are templates as well,
    or a function of the arguments. ``stale`` (seconds or a ``timedelta``), ``background`` and ``version`` are those of
    ``get_or_set``, and so are round trips and what is atomic.

    Raises ``InvalidType`` and ``InvalidValue`` where it is written for arguments that can't be used, for a function
    that has no name of its own and no ``key``, and for a template that names no parameter; at a call ``InvalidType``
    for an argument that can't be part of a key, and ``ImproperlyConfigured`` if ``cache`` is no cache of this package.
    """
    no_function(timeout, "cached", EXAMPLE)
    milliseconds_of(timeout)
    stale_options(stale, background)
    our_alias(cache)
    if key is not None and not isinstance(key, str) and not callable(key):
        raise InvalidType(f"cached(key={arguments.shown(key)}): a text or a function of the call's arguments is needed")

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        arguments.named_function(function, "cached()")
        name_of = keyed(key, function, "cached(key") if key is not None else _by_arguments(function)
        tags_of = tagger(tags, function, "cached(tags")

        def asked(*args: P.args, **kwargs: P.kwargs) -> tuple[MongoDBCache, tuple[Any, ...], dict[str, Any]]:
            compute = functools.partial(function, *args, **kwargs)
            more = {"stale": stale, "background": background, "tags": tags_of(*args, **kwargs)}
            return our_cache(cache), (name_of(*args, **kwargs), compute, timeout, version), more

        @functools.wraps(function)
        def synchronous(*args: P.args, **kwargs: P.kwargs) -> Any:
            subject, given, more = asked(*args, **kwargs)
            return subject.get_or_set(*given, **more)

        @functools.wraps(function)
        async def asynchronous(*args: P.args, **kwargs: P.kwargs) -> Any:
            subject, given, more = asked(*args, **kwargs)
            return await subject.aget_or_set(*given, **more)

        return cast("Callable[P, R]", asynchronous if iscoroutinefunction(function) else synchronous)

    return decorate


def our_alias(cache: object) -> None:
    """Raise ``InvalidType`` unless ``cache`` may be an alias."""
    if not isinstance(cache, str):
        raise InvalidType(f"cache={arguments.shown(cache)}: the alias of a cache (str) is needed")


def our_cache(alias: str) -> MongoDBCache:
    """The cache of this alias. Raises ``ImproperlyConfigured`` if it is none of this package."""
    found = caches[alias]
    if not isinstance(found, MongoDBCache):
        raise ImproperlyConfigured(
            f"CACHES[{alias!r}]: the backend goscope_django.cache.MongoDBCache is needed, not {type(found).__name__}"
        )
    return found


def tagger(tags: Tags, function: Callable[..., Any], what: str) -> Callable[..., Iterable[str]]:
    """The function that gives a call's tags: from templates, or by the user's function."""
    if callable(tags):
        return tags  # what it gives is checked when it is used
    if isinstance(tags, (str, bytes)) or not isinstance(tags, Iterable):
        raise InvalidType(f"{what}={arguments.shown(tags)}): a tuple of texts is needed, such as ('product:{{pk}}',)")
    templates = []
    for one in tags:
        if not isinstance(one, str) or not one:
            raise InvalidType(f"{what}): {arguments.shown(one)} is no tag; a text is needed, such as 'product:{{pk}}'")
        templates.append(keyed(one, function, what))
    return lambda *args, **kwargs: [template(*args, **kwargs) for template in templates]


def _by_arguments(function: Callable[..., Any]) -> Callable[..., str]:
    """The function that makes a key of the name of ``function`` and a call's arguments."""
    try:
        own_name(function, None, "cached")
    except InvalidValue:
        raise InvalidValue(
            f"cached: other functions may have the name {function.__qualname__!r} as well (it is a lambda, or made "
            f"anew at each call of the function around it), and all of them would share their results. Give this one a "
            f"key of its own: key='...'"
        ) from None
    name = f"cached:{function.__module__}.{function.__qualname__}"
    signature = inspect.signature(function)

    def key(*args: Any, **kwargs: Any) -> str:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if not bound.arguments:
            return name
        parts = []
        for parameter, value in bound.arguments.items():
            more = signature.parameters[parameter].kind is inspect.Parameter.VAR_KEYWORD
            try:
                parts.append(text_of(tuple(sorted(value.items())) if more else value))
            except Incomparable:
                raise InvalidType(
                    f"cached: the argument {parameter!r} of {function.__qualname__}() is of a type that can't be part "
                    f"of a key; give key='...' or a function of the arguments"
                ) from None
        return f"{name}:{identity(*parts)}"

    return key
