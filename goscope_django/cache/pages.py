"""``cached_page``: Django's ``cache_page``, natively async, with stale pages and tags.

Rules of this file:

* Which responses are kept, for how long and under which key is as Django's ``CacheMiddleware`` says; the names of keys
  are made by Django's own functions, which are given what they would read, and told what they would store.
* A page that is missing is computed by each who misses it: which headers it depends on is known only afterwards.
* A page that is stale is computed by one caller in the fleet; all others get the old one at once. An exception, and a
  response of 500, 502, 503 or 504, leaves the old one standing.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, ParamSpec, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest
from django.utils.cache import (
    get_cache_key,
    get_max_age,
    has_vary_header,
    learn_cache_key,
    patch_response_headers,
    patch_vary_headers,
)
from django.utils.http import parse_http_date_safe

from goscope_django import conf
from goscope_django.cache.backend import MongoDBCache
from goscope_django.cache.computing import Wanted, refresh_failed
from goscope_django.cache.decorator import Tags, our_alias, our_cache, tagger
from goscope_django.cache.options import Timeout, milliseconds_of, stale_options
from goscope_django.cache.together import Entry, Outcome
from goscope_django.core import arguments
from goscope_django.core.arguments import Duration
from goscope_django.core.colours import is_async_dispatch
from goscope_django.core.decorating import no_function
from goscope_django.core.flow import Flow, acarry_out, call, carry_out, invoke
from goscope_django.core.ticks import tick
from goscope_django.exceptions import InvalidType
from goscope_django.http import requests
from goscope_django.mongodb.cache.flows import MISSING, NOTHING, Seen

P = ParamSpec("P")
R = TypeVar("R")

EXAMPLE: Final = "@cached_page(60)"
FAILED: Final = (500, 502, 503, 504)
"""What a view says when it could not do its work."""

_UPDATE: Final = "_cache_update_cache"
"""Django's mark on a request: whether its response is to be kept."""


def cached_page(
    timeout: Timeout,
    *,
    cache: str | None = None,
    key_prefix: str | None = None,
    tags: Tags = (),
    stale: Duration | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Keep a view's responses, as Django's ``cache_page`` does: by the same rules, under the same keys.

    ``timeout`` is in seconds or a ``timedelta``; ``None`` goes by the response's ``max-age``, or
    ``CACHE_MIDDLEWARE_SECONDS``. ``cache`` is an alias (``"default"``). With ``stale`` (seconds or a ``timedelta``) a
    page serves for so long after its timeout while one caller in all processes computes a new one, and as long as that
    fails. ``tags`` are templates that name the view's parameters (``"product:{pk}"``), or a function of its arguments;
    ``cache.invalidate_tags`` makes all pages with one of them a miss.

    ``key_prefix`` stands in front of the keys (``CACHE_MIDDLEWARE_KEY_PREFIX`` if ``None``). A hit is two round trips,
    three with tags. Storing a page is atomic for each of its two entries: what of the request it depends on, and the
    response. Raises ``InvalidType`` and ``InvalidValue`` where it is written for
    arguments that can't be used; at a request ``ImproperlyConfigured`` if ``cache`` is no cache of this package, and
    ``StoreError`` if MongoDB fails or can't be reached, unless the cache ignores that.
    """
    no_function(timeout, "cached_page", EXAMPLE)
    milliseconds_of(timeout)
    old, _ = stale_options(stale, background=False)
    alias = "default" if cache is None else cache
    our_alias(alias)
    if key_prefix is not None and not isinstance(key_prefix, str):
        raise InvalidType(f"cached_page(key_prefix={arguments.shown(key_prefix)}): a text is needed")
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    whole = int(seconds) if isinstance(seconds, float) and seconds.is_integer() else seconds

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        arguments.function(view, "cached_page()")
        tags_of = tagger(tags, view, "cached_page(tags")

        def flow(args: Any, kwargs: Any) -> Flow[Any]:
            request = requests.find(args, kwargs)
            if request is None:
                raise InvalidType("cached_page: no request was given; it is for views. For other functions: cached")
            work = functools.partial(view, *args, **kwargs)
            page = _Page(requests.plain(request), alias, key_prefix or "", whole, old, work)
            return (yield from page.response(lambda: tags_of(*args, **kwargs)))

        @functools.wraps(view)
        async def asynchronous(*args: P.args, **kwargs: P.kwargs) -> Any:
            return await acarry_out(flow(args, kwargs))

        @functools.wraps(view)
        def synchronous(*args: P.args, **kwargs: P.kwargs) -> Any:
            if is_async_dispatch(view, args):
                return asynchronous(*args, **kwargs)
            return carry_out(flow(args, kwargs))

        return cast("Callable[P, R]", asynchronous if iscoroutinefunction(view) else synchronous)

    return decorate


class _Headers:
    """Stands where Django's functions expect a cache: gives the list of headers that is known, and notes what is asked
    for and what is to be stored."""

    def __init__(self, known: Any = None) -> None:
        self.name = ""
        self.known = known

    def get(self, name: str) -> Any:
        self.name = name
        return self.known

    def set(self, name: str, headers: Any, timeout: Any) -> None:
        self.name, self.known = name, headers


@dataclass(frozen=True, slots=True)
class _Page:
    """One request for a page. ``timeout`` is in seconds, ``stale`` in milliseconds."""

    request: HttpRequest
    alias: str
    prefix: str
    timeout: Any
    stale: int
    view: Callable[[], Any]

    def response(self, tags: Callable[[], Any]) -> Flow[Any]:
        """The response that is kept, or the view's."""
        if self.request.method not in ("GET", "HEAD"):
            setattr(self.request, _UPDATE, False)
            return (yield from invoke(self.view))
        cache, names = our_cache(self.alias), tuple(tags())
        wanted, seen = yield from self._kept(cache, names)
        if wanted is not None and seen.value is not MISSING:
            response = seen.value
            if seen.left is not None:
                until = tick() + seen.left
                compute = functools.partial(self._again, cache, wanted, seen, until)
                response = yield from cache.computing.refreshed(wanted, seen, compute)
            if response is seen.value:
                _tell_age(response)
                setattr(self.request, _UPDATE, False)
            return response
        return (yield from self._anew(cache, names))

    def _kept(self, cache: MongoDBCache, names: tuple[str, ...]) -> Flow[tuple[Wanted | None, Seen]]:
        asked = _Headers()
        get_cache_key(self.request, self.prefix, "GET", cache=cast("Any", asked))
        headers = yield from call(cache.get, cache.aget, asked.name)
        if headers is None:
            return None, NOTHING
        wanted, seen = None, NOTHING
        for method in ("GET",) if self.request.method == "GET" else ("GET", "HEAD"):
            key = get_cache_key(self.request, self.prefix, method, cache=cast("Any", _Headers(headers)))
            wanted = self._wanted(cache, key, self._default_timeout(), names)
            seen = yield from cache.computing.seen(wanted)
            if seen.value is not MISSING:
                break
        return wanted, seen

    def _default_timeout(self) -> Any:
        return conf.page_seconds() if self.timeout is None else self.timeout

    def _wanted(self, cache: MongoDBCache, key: Any, timeout: Any, names: tuple[str, ...]) -> Wanted:
        wanted = cache.wanted(key, None, timeout, tags=names)
        return replace(wanted, stale=self.stale)

    def _again(
        self, cache: MongoDBCache, wanted: Wanted, seen: Seen, until: float, entry: Entry
    ) -> Flow[tuple[Any, Outcome | None]]:
        """A new page in place of one that is stale; the old one where the view says that it failed."""
        response = yield from self._anew(cache, None, wanted)
        if response.status_code in FAILED:
            refresh_failed(wanted, f"HTTP {response.status_code}")
            if tick() < until:
                return seen.value, None
        return response, None

    def _anew(self, cache: MongoDBCache, names: tuple[str, ...] | None, wanted: Wanted | None = None) -> Flow[Any]:
        """The view's response, which is kept if it may be."""
        setattr(self.request, _UPDATE, True)
        if wanted is None:
            wanted = self._wanted(cache, "page", self._default_timeout(), names or ())
        terms = yield from cache.computing.terms(wanted)
        response = yield from invoke(self.view)
        timeout = self._to_keep(response)
        if not timeout or response.status_code != 200:
            return response
        learnt = _Headers()
        key = learn_cache_key(self.request, response, timeout, self.prefix, cache=cast("Any", learnt))
        # The list of headers lasts as long as the page may serve.
        lasting = None if timeout is None else timedelta(seconds=timeout, milliseconds=self.stale)
        yield from call(cache.set, cache.aset, learnt.name, learnt.known, lasting)
        fresh = cache.wanted(key, None, timeout)
        kept = replace(fresh, stale=self.stale, tags=wanted.tags)
        if hasattr(response, "render") and callable(response.render):

            def keep(rendered: Any) -> None:
                carry_out(cache.computing.keep(kept, rendered, terms))

            response.add_post_render_callback(keep)
        else:
            yield from cache.computing.keep(kept, response, terms)
        return response

    def _to_keep(self, response: Any) -> Any:
        """For how many seconds the response may be kept, 0 for not at all; what follows for its headers is done."""
        control = response.get("Cache-Control", "").lower()
        if (
            not getattr(self.request, _UPDATE, False)
            or response.streaming
            or response.status_code not in (200, 304)
            or (response.cookies and has_vary_header(response, "Cookie"))
            or any(word in control for word in ("private", "no-cache", "no-store"))
            or has_vary_header(response, "*")
        ):
            return 0
        timeout = self.timeout
        if timeout is None:
            timeout = get_max_age(response)
            if timeout == 0:
                return 0
            timeout = conf.page_seconds() if timeout is None else timeout
        patch_response_headers(response, timeout)
        if self.request.headers.get("Authorization") and "public" not in control:
            patch_vary_headers(response, ("Authorization",))
        return max(0, timeout)


def _tell_age(response: Any) -> None:
    expires = parse_http_date_safe(response.get("Expires", ""))
    age = get_max_age(response)
    if age is not None and expires is not None:
        response["Age"] = max(0, age - (expires - int(time.time())))
