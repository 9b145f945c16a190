"""Notes what a view reads of its request, so that only callers who are alike in that share a response.

While a trace is open, the request (also REST framework's around it) and its session are of a subclass that notes what
is read. ``META``, ``environ``, an ASGI scope, the cookies and the headers are given out as mappings that do the same.
So does a class-based view, for the attributes that it had before the trace began: ``setup()`` or ``dispatch()`` may
have made them of the request. Rules of this file:

* What is read is noted by name; the values are those on entry (``values``). Whoever looks at all of a mapping has read
  all of it.
* Not noted is what only goes by: what ``logging`` reads (filters, formatters, handlers), error reporters, Django's CSRF
  checks of safe methods, and Django's messages looking for their storage. See ``_is_quiet``.
* The user, messages, the CSRF token and the session count when they are used, not when somebody passes them on.
* What the view writes is written to the request's own mappings at once, so that middleware finds it there.
* When the last trace ends, the request is of its own class again.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from django.http.request import HttpHeaders

from goscope_django.http.values import Source

RECORDER: Final = "_goscope_recorder"
VIEW: Final = "_goscope_view"
"""Where a request keeps the class-based view that serves it."""
SAFE: Final = ("GET", "HEAD", "OPTIONS", "TRACE")
_CSRF_USED: Final = "CSRF_COOKIE_NEEDS_UPDATE"

_FLOW: Final = "goscope_django.core.flow"
_PLUMBING: Final = (
    *("django.http", "django.core.handlers", "django.utils.functional", "django.utils.datastructures"),
    *("django.contrib.sessions", "goscope_django", "rest_framework.request"),
    *("_collections_abc", "collections", "functools", "copy"),
)
_IN_PLUMBING: Final = tuple(f"{name}." for name in _PLUMBING)
"""Modules through which others read: who called them is the reader."""
_REPORTERS: Final = frozenset(
    {
        *("sentry_sdk", "raven", "rollbar", "bugsnag", "honeybadger", "elasticapm", "newrelic", "ddtrace"),
        *("opentelemetry", "scout_apm"),
    }
)
"""Packages that send what they read elsewhere. Only what they read themselves: they also wrap views and templates."""

_QUIET: Final = ("django.contrib.messages.",)
_QUIET_IF_SAFE: Final = (*_QUIET, "django.middleware.csrf.")
_quiet: ContextVar[int] = ContextVar("goscope_recording_quiet", default=0)
"""More than 0 while nothing is noted. Of one thread or task: what others of the same view read meanwhile counts."""

_OF_DJANGO: Final = frozenset(
    {
        *("path", "path_info", "method", "resolver_match", "script_name"),
        *("_read_started", "_upload_handlers", "_encoding", "_post_parse_error"),
        *("_current_scheme_host", "accepted_types", "accepted_types_by_precedence"),
        *(RECORDER, VIEW, "_goscope_user", "_goscope_auser", "idempotency"),
        *("csrf_processing_done", "csrf_cookie_needs_reset", "_dont_enforce_csrf_checks"),
    }
)
"""Attributes that say nothing beyond the flight's key, or that are noted in another way."""
_OF_REST: Final = frozenset(
    {
        *("_request", "parsers", "authenticators", "negotiator", "parser_context", "_data", "_files", "_full_data"),
        *("_content_type", "_stream", "accepted_renderer", "accepted_media_type", "version", "versioning_scheme"),
        "csrf_processing_done",
    }
)
_PARSED: Final = ("_data", "_files", "_full_data")
"""What REST framework has made of a body, maybe before the view."""
_OF_VIEW: Final = frozenset(
    {
        *("request", "args", "kwargs", "head", "headers", "response", "format_kwarg", "action", "action_map"),
        *("basename", "detail", "suffix", "name", "description"),
    }
)
"""Attributes that Django's and REST framework's views set themselves, which say nothing beyond the request."""

_CLIENT: Final = ("REMOTE_ADDR", "REMOTE_HOST", "REMOTE_PORT")
_IN_META: Final[Mapping[str, tuple[str, ...]]] = {
    "client": _CLIENT,
    "server": ("SERVER_NAME", "SERVER_PORT"),
    "query_string": ("QUERY_STRING",),
    "path": ("PATH_INFO",),
    "raw_path": ("PATH_INFO",),
    "root_path": ("SCRIPT_NAME",),
    "method": ("REQUEST_METHOD",),
}
"""Entries of an ASGI scope, and those of ``META`` that say the same."""


@dataclass(frozen=True, slots=True)
class Used:
    """What a view used.

    ``itself``: the session. ``either``: the session or the user. ``user``: the user that the view put into the request.
    ``reads``: the names of what it read, see ``values``. ``source`` has the values.
    """

    itself: bool
    either: bool
    user: Any = None
    reads: frozenset[str] = frozenset()
    source: Source | None = None
    csrf: bool = False
    changed: bool = False
    """Whether the session was changed: by the view, not by middleware before it."""
    messages: bool = False
    """Whether messages were read or added, by the view as well."""


def raw(thing: Any) -> dict[str, Any]:
    """The attributes of an object; nobody notes that they were read."""
    found: dict[str, Any] = object.__getattribute__(thing, "__dict__")
    return found


def recorder_of(inner: Any) -> Recorder | None:
    """The recorder of a request on which a trace is open."""
    return raw(inner).get(RECORDER)


def source_now(request: Any, inner: Any) -> Source:
    """The values that a request has now. Notes nothing."""
    attributes = dict(raw(inner))
    outer = {} if request is inner else _outer(request)
    view = given_to(attributes.get(VIEW))
    recorder = recorder_of(inner)
    if recorder is None:
        return Source(inner, inner.META, inner.COOKIES, attributes.get("scope", {}), attributes, outer, view)
    with recorder.silent():
        cookies = dict(inner.COOKIES)
    return Source(inner, attributes["META"], cookies, attributes.get("scope", {}), attributes, outer, view)


def given_to(view: Any) -> dict[str, Any]:
    """The attributes of a class-based view that are neither Django's own nor the arguments of ``as_view()``."""
    if view is None:
        return {}
    own = {name: value for name, value in raw(view).items() if name not in _OF_VIEW}
    options = _options(view) if own else {}
    return {name: value for name, value in own.items() if not (name in options and options[name] is value)}


def _outer(request: Any) -> dict[str, Any]:
    found = {name: value for name, value in raw(request).items() if name not in _OF_REST}
    if "_auth" in found:
        found["auth"] = found.pop("_auth")
    return found


def _options(view: Any) -> Mapping[str, Any]:
    """The arguments of ``as_view()``: where Django's resolver has its function, else where that runs."""
    request = raw(view)["request"]
    func = getattr(raw(raw(request).get("_request", request)).get("resolver_match"), "func", None)
    found = getattr(func, "view_initkwargs", None) or getattr(func, "initkwargs", None)
    frame: Any = sys._getframe(1)
    while not found and frame is not None:
        if frame.f_code.co_name == "view" and frame.f_locals.get("self") is view:
            found = frame.f_locals.get("initkwargs")
        frame = frame.f_back
    return found if isinstance(found, Mapping) else {}


class Trace:
    """What a view uses from ``watch`` to ``end``. Several may be open on one request."""

    __slots__ = (
        *("_inner", "_kind", "_recorder", "_request", "_session", "_source", "_user", "_view", "_view_kind"),
        *("_before", "_changed", "_messages", "csrf", "itself", "reads", "user_used"),
    )

    def __init__(self, request: Any, inner: Any) -> None:
        recorder = recorder_of(inner)
        self._inner = inner
        self._request = request
        self._recorder = recorder if recorder is not None else Recorder(inner)
        self._source = source_now(request, inner)
        self._source.meta = dict(self._source.meta)  # the view may write to it
        self._source.cookies = dict(self._source.cookies)
        self._user = raw(inner).get("user")
        self._kind: Any = None
        self.reads: set[str] = set()
        self.itself = self.user_used = self.csrf = False
        self._recorder.open(self)
        if request is not inner and RECORDER not in raw(request):
            self._kind = type(request)
            raw(request)[RECORDER] = self._recorder
            request.__class__ = _rest_class(self._kind)
        # Middleware may have changed it before, as one that notes when somebody was last seen does.
        self._session: Any = raw(inner).get("session")
        self._changed = _set_changed(self._session, False)
        self._messages: Any = raw(inner).get("_messages")
        self._before = _flags(self._messages)
        _set_flags(self._messages, dict.fromkeys(self._before, False))
        self._view: Any = raw(inner).get(VIEW)
        self._view_kind: Any = None
        if self._view is not None and self._source.view:
            self._watch_view()

    def _watch_view(self) -> None:
        if RECORDER not in raw(self._view):
            kind: Any = type(self._view)
            # A class that can't be replaced (one with slots): then it has been looked at wholly.
            try:
                self._view.__class__ = _view_class(kind)
            except TypeError:
                self.reads |= {f"v:{name}" for name in self._source.view}
                return
            self._view_kind = kind
            raw(self._view)[RECORDER] = self._recorder

    def note_of_view(self, view: Any, name: str) -> None:
        """An attribute of a class-based view was read."""
        if view is self._view and name in self._source.view:
            self.reads.add(f"v:{name}")

    def end(self) -> Used:
        """What was used since ``watch``."""
        self._recorder.close(self)
        if self._kind is not None:
            self._request.__class__ = self._kind
            raw(self._request).pop(RECORDER, None)
        if self._view_kind is not None:
            self._view.__class__ = self._view_kind
            raw(self._view).pop(RECORDER, None)
        user = raw(self._inner).get("user")
        reads = frozenset(self.reads)
        put = None if user is self._user else user
        session = raw(self._inner).get("session")
        changed = bool(getattr(session, "modified", False))
        if session is self._session:
            _set_changed(session, self._changed or changed)
        messages = raw(self._inner).get("_messages")
        noted = _flags(messages)
        if messages is self._messages:
            _set_flags(messages, {name: self._before[name] or noted[name] for name in noted})
        either = self.itself or self.user_used
        return Used(self.itself, either, put, reads, self._source, self.csrf, changed, any(noted.values()))


def _flags(messages: Any) -> dict[str, bool]:
    """What Django's storage of messages says: whether they were read, and whether one was added."""
    return {
        name: bool(vars(messages)[name]) for name in ("used", "added_new") if name in getattr(messages, "__dict__", ())
    }


def _set_flags(messages: Any, flags: Mapping[str, bool]) -> None:
    for name, value in flags.items():
        setattr(messages, name, value)


def _set_changed(session: Any, changed: bool) -> bool:
    """Say whether a session was changed since it was loaded; what it said before."""
    before = bool(getattr(session, "modified", False))
    if before is not changed and hasattr(session, "modified"):
        session.modified = changed
    return before


class Recorder:
    """What is noted on one request, for all traces that are open on it."""

    __slots__ = ("_mappings", "_session", "inner", "kind", "traces")

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.traces: list[Trace] = []
        self._mappings: dict[str, tuple[Any, Any]] = {}
        self.kind: Any = type(inner)
        self._session: tuple[Any, Any] | None = None

    def open(self, trace: Trace) -> None:
        self.traces.append(trace)
        if len(self.traces) > 1:
            return
        raw(self.inner)[RECORDER] = self
        session = raw(self.inner).get("session")
        with contextlib.suppress(TypeError, AttributeError):
            kind: Any = type(session)
            session.__class__ = _session_class(kind)
            raw(session)[RECORDER] = self
            self._session = session, kind
        self.inner.__class__ = _request_class(self.kind)

    def close(self, trace: Trace) -> None:
        self.traces.remove(trace)
        if self.traces:
            return
        self.inner.__class__ = self.kind
        raw(self.inner).pop(RECORDER, None)
        if self._session is not None:
            session, kind = self._session
            session.__class__ = kind
            raw(session).pop(RECORDER, None)

    @property
    def sees_session(self) -> bool:
        """Whether the session itself tells of its use."""
        return self._session is not None

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Nothing is noted inside, of what this thread or task reads."""
        before = _quiet.get()
        _quiet.set(before + 1)
        try:
            yield
        finally:
            _quiet.set(before)

    # Noting

    def note(self, name: str) -> None:
        """Something was read."""
        if _quiet.get() or self.has(name):
            return
        if not _is_quiet(raw(self.inner).get("method") in SAFE):
            self.add(name)

    def has(self, name: str) -> bool:
        """Whether all traces have noted a name."""
        return all(name in trace.reads for trace in self.traces)

    def add(self, name: str) -> None:
        """Note a name, whoever read it."""
        for trace in self.traces:
            trace.reads.add(name)

    def note_of_view(self, view: Any, name: str) -> None:
        """An attribute of a class-based view was read, for whichever trace it is."""
        if not _quiet.get():
            for trace in self.traces:
                trace.note_of_view(view, name)

    def touched(self) -> None:
        """The session was used."""
        if _quiet.get():
            return
        reader = _reader()
        if reader is None or f"{reader}.".startswith(_QUIET):
            return
        if reader in ("django.contrib.auth", "django.contrib.auth.middleware"):  # get_user(), which is no secret of it
            self.use_user()
            return
        for trace in self.traces:
            trace.itself = True
        self.add("session")

    def note_user(self) -> None:
        """The user was read."""
        if not _quiet.get() and _reader() is not None:
            self.add("user")

    def use_user(self) -> None:
        """The user was used."""
        for trace in self.traces:
            trace.user_used = True
        self.add("user")

    def adopt(self, names: Iterable[str], *, user: bool) -> None:
        """Note what another caller's view has read, whose response is given to this one."""
        if user:
            self.use_user()
        for name in names:
            self.add(name)
        for trace in self.traces:
            trace.itself = trace.itself or "session" in trace.reads

    def use_token(self) -> None:
        """The CSRF token was used."""
        for trace in self.traces:
            trace.csrf = True

    # What the request gives out

    def mapping(self, name: str) -> Any:
        """``META``, ``environ``, ``scope`` or ``COOKIES``: what is there, as a mapping that notes."""
        with self.silent():
            found = self.kind.__getattribute__(self.inner, name)
        if not isinstance(found, dict):
            return found
        known = self._mappings.get(name)
        if known is not None and known[0] is found:
            return known[1]
        if known is not None or isinstance(found, _Mapping):
            return found  # the view has put its own there
        if name in ("META", "environ") and raw(self.inner).get("META") is raw(self.inner).get("environ"):
            made: Any = _Mapping(found, self, "m", "META")
            self._mappings["META"] = self._mappings["environ"] = found, made
        else:
            kind, whole = {"COOKIES": ("c", "cookies"), "scope": ("s", "scope")}.get(name, ("m", "META"))
            made = _Mapping(found, self, kind, whole)
            self._mappings[name] = found, made
        return made

    def headers(self) -> Any:
        """The headers, as a mapping that notes."""
        known = self._mappings.get("headers")
        if known is None:
            known = self._mappings["headers"] = None, _Headers(raw(self.inner)["META"], self)
        return known[1]


class _Mapping(dict[str, Any]):
    """A dict that notes what is read of it. What is written goes to the request's own dict as well."""

    def __init__(self, own: dict[str, Any], recorder: Recorder, kind: str, whole: str) -> None:
        super().__init__(own)
        self._own = own
        self._recorder = recorder
        self._kind = kind
        self._whole = whole

    def _one(self, key: Any) -> None:
        if self._recorder.has(self._whole):
            return
        if self._kind != "s":
            self._recorder.note(f"{self._kind}:{key}")
        elif key == "headers":
            self._recorder.note("headers")
        else:
            for name in _IN_META.get(key, ()):
                self._recorder.note(f"m:{name}")
            if key not in _IN_META and key != "type":
                self._recorder.note(f"s:{key}")

    def _all(self) -> None:
        self._recorder.note(self._whole)
        if self._kind == "m":
            self._recorder.note("body")  # ``wsgi.input`` is among what is handed out

    def __getitem__(self, key: str) -> Any:
        self._one(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._one(key)
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._one(key)
        return super().get(key, default)

    # All of it

    def __iter__(self) -> Iterator[str]:
        self._all()
        return super().__iter__()

    def __reversed__(self) -> Iterator[str]:
        self._all()
        return super().__reversed__()

    def __len__(self) -> int:
        self._all()
        return super().__len__()

    def __bool__(self) -> bool:
        self._all()
        return super().__len__() > 0

    def __eq__(self, other: object) -> bool:
        self._all()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        self._all()
        return super().__ne__(other)

    __hash__ = None

    def __repr__(self) -> str:
        self._all()
        return super().__repr__()

    def keys(self) -> Any:
        self._all()
        return super().keys()

    def values(self) -> Any:
        self._all()
        return super().values()

    def items(self) -> Any:
        self._all()
        return super().items()

    def copy(self) -> dict[str, Any]:
        self._all()
        return dict(super().items())

    def __copy__(self) -> dict[str, Any]:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        import copy

        return copy.deepcopy(self.copy(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (self.copy(),)

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    # Writing

    def __setitem__(self, key: str, value: Any) -> None:
        if key == _CSRF_USED and value:
            self._recorder.use_token()
        super().__setitem__(key, value)
        self._own[key] = value

    def __delitem__(self, key: str) -> None:
        self._one(key)
        super().__delitem__(key)
        self._own.pop(key, None)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str, *default: Any) -> Any:
        self._one(key)
        self._own.pop(key, None)
        return super().pop(key, *default)

    def popitem(self) -> tuple[str, Any]:
        self._all()
        key, value = super().popitem()
        self._own.pop(key, None)
        return key, value

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def clear(self) -> None:
        super().clear()
        self._own.clear()


class _Headers(HttpHeaders):
    """The headers of a request, which note what is read of them."""

    def __init__(self, meta: Mapping[str, Any], recorder: Recorder) -> None:
        super().__init__(dict(meta))
        self._recorder = recorder

    def __getitem__(self, key: str) -> Any:
        self._recorder.note(f"m:{self.to_wsgi_name(key)}")
        return super().__getitem__(key)

    def _all(self) -> None:
        self._recorder.note("headers")

    def __iter__(self) -> Iterator[str]:
        self._all()
        return super().__iter__()

    def __len__(self) -> int:
        self._all()
        return super().__len__()

    def __eq__(self, other: object) -> bool:
        self._all()
        with self._recorder.silent():
            return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        self._all()
        with self._recorder.silent():
            return super().__repr__()

    def copy(self) -> Any:
        self._all()
        return self

    def __getattribute__(self, name: str) -> Any:
        if name == "_store":  # the mapping inside, which copies and pickles take
            frame = sys._getframe(1)
            if not str(frame.f_globals.get("__name__")).startswith("django.utils.datastructures"):
                object.__getattribute__(self, "_all")()
        return object.__getattribute__(self, name)


# Who reads


def _reader() -> str | None:
    """The module that reads, or ``None`` if it is one whose reading never reaches the response."""
    frame, reader = sys._getframe(1), ""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module == "logging" or module.startswith("logging."):
            return None
        if module == _FLOW:
            break  # from here on it is not the view
        if not reader and not (module in _PLUMBING or module.startswith(_IN_PLUMBING)):
            reader = module
            if module.partition(".")[0] in _REPORTERS:
                return None
        frame = frame.f_back  # type: ignore[assignment]
    return reader


def _is_quiet(safe: bool) -> bool:
    """Whether what is read now does not count."""
    reader = _reader()
    return reader is None or f"{reader}.".startswith(_QUIET_IF_SAFE if safe else _QUIET)


# The classes of what is recorded


def _body(recorder: Recorder, inner: Any, name: str) -> Any:
    recorder.note("body")
    with recorder.silent():
        return recorder.kind.__getattribute__(inner, name)


def _query(recorder: Recorder, inner: Any, name: str) -> Any:
    recorder.note("GET")
    with recorder.silent():
        return recorder.kind.__getattribute__(inner, name)


def _content_type(recorder: Recorder, inner: Any, name: str) -> Any:
    recorder.note("m:CONTENT_TYPE")
    return recorder.kind.__getattribute__(inner, name)


def _user(recorder: Recorder, inner: Any, name: str) -> Any:
    looked = raw(inner).get(f"_goscope_{name}")
    # One that nobody has loaded yet says itself when it is used. Django's context processor only passes it on.
    if looked is None or raw(inner).get(name) is not looked.given:
        recorder.note_user()
    return recorder.kind.__getattribute__(inner, name)


def _messages(recorder: Recorder, inner: Any, name: str) -> Any:
    found = recorder.kind.__getattribute__(inner, name)
    if not hasattr(found, "used"):  # Django's storage says itself when it is used
        recorder.note(f"a:{name}")
    return found


def _session(recorder: Recorder, inner: Any, name: str) -> Any:
    found = recorder.kind.__getattribute__(inner, name)
    if not recorder.sees_session:
        recorder.touched()
    return found


def _all_attributes(recorder: Recorder, inner: Any, name: str) -> Any:
    module = str(sys._getframe(2).f_globals.get("__name__"))
    # Django's templates look whether there is an attribute of a name that they did not find.
    if not module.startswith(("functools", "django.utils.functional", "django.template.base", "goscope_django")):
        recorder.note("attributes")
    return raw(inner)


_SPECIAL: Final[Mapping[str, Callable[[Recorder, Any, str], Any]]] = {
    **dict.fromkeys(("META", "environ", "scope", "COOKIES"), lambda recorder, inner, name: recorder.mapping(name)),
    "headers": lambda recorder, inner, name: recorder.headers(),
    "GET": _query,
    **dict.fromkeys(("POST", "FILES", "body", "read", "readline", "readlines"), _body),
    **dict.fromkeys(("_stream", "_body", "_post", "_files"), _body),
    **dict.fromkeys(("content_type", "content_params", "encoding"), _content_type),
    **dict.fromkeys(("user", "auser", "_cached_user", "_acached_user"), _user),
    "session": _session,
    "_messages": _messages,
    "__dict__": _all_attributes,
    "__class__": lambda recorder, inner, name: recorder.kind,
}
"""How names of a request are read that are more than an attribute."""


@lru_cache(maxsize=64)
def _request_class(kind: Any) -> Any:
    of_class = frozenset(dir(kind))
    plainly = kind.__getattribute__

    def __getattribute__(self: Any, name: str) -> Any:  # noqa: N807 - it is this method
        special = _SPECIAL.get(name)
        # A method or a property says itself what it reads, unless somebody has put its outcome on the request before.
        if special is None and (name in _OF_DJANGO or (name in of_class and name not in raw(self))):
            return plainly(self, name)
        recorder = raw(self).get(RECORDER)
        if recorder is None or recorder.inner is not self:  # a copy: who made it has read everything
            return plainly(self, name)
        if special is not None:
            return special(recorder, self, name)
        if not name.startswith("__"):
            recorder.note(f"a:{name}")
        return plainly(self, name)

    return _subclass(kind, __getattribute__=__getattribute__, __reduce_ex__=_reducer(kind))


@lru_cache(maxsize=64)
def _rest_class(kind: Any) -> Any:
    plainly = kind.__getattribute__

    def __getattribute__(self: Any, name: str) -> Any:  # noqa: N807 - it is this method
        own = raw(self)
        recorder = own.get(RECORDER)
        if recorder is not None:
            if name == "__class__":
                return kind
            if name in ("user", "_user"):
                if "_user" in own:
                    recorder.note("user")
                    _note_loading(recorder, own["_user"])
            elif name in ("auth", "_auth"):
                if "_auth" in own:
                    recorder.note("a:auth")
            elif name in _PARSED:
                if name in own and own[name] is not _nothing_parsed():
                    recorder.note("body")
            elif name in own and name not in _OF_REST and name != RECORDER:
                recorder.note(f"a:{name}")
        return plainly(self, name)

    return _subclass(kind, __getattribute__=__getattribute__, __reduce_ex__=_reducer(kind))


def _note_loading(recorder: Recorder, user: Any) -> None:
    """What was read to load Django's user, where REST framework has taken that one over."""
    looked = raw(recorder.inner).get("_goscope_user")
    if looked is not None and looked.reads and raw(user).get("_wrapped", user) is looked.user:
        recorder.adopt(looked.reads, user=False)


def _nothing_parsed() -> Any:
    """What stands in REST framework's request for a body that nobody has parsed yet."""
    return getattr(sys.modules.get("rest_framework.request"), "Empty", None)


@lru_cache(maxsize=256)
def _view_class(kind: Any) -> Any:
    plainly = kind.__getattribute__

    def __getattribute__(self: Any, name: str) -> Any:  # noqa: N807 - it is this method
        if name == "__class__":
            return kind
        own = raw(self)
        if name in own or name == "__dict__":
            recorder = own.get(RECORDER)
            if recorder is not None:
                for one in tuple(own) if name == "__dict__" else (name,):
                    recorder.note_of_view(self, one)
        return plainly(self, name)

    def note(recorder: Recorder, view: Any) -> None:
        for name in tuple(raw(view)):
            recorder.note_of_view(view, name)

    return _subclass(kind, __getattribute__=__getattribute__, __reduce_ex__=_reducer(kind, note))


def _note_attributes(recorder: Recorder, request: Any) -> None:
    recorder.note("attributes")


def _reducer(kind: Any, note: Callable[[Recorder, Any], None] = _note_attributes) -> Callable[[Any, Any], Any]:
    """What copies and pickles: all attributes are read (``note``), and the copy is of the object's own class."""

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807 - it is this method
        recorder = raw(self).get(RECORDER)
        if recorder is not None:
            note(recorder, self)
        make, arguments, state, *more = kind.__reduce_ex__(self, protocol)
        if isinstance(state, dict):
            state = {name: value for name, value in state.items() if name != RECORDER}
        return make, tuple(kind if one is type(self) else one for one in arguments), state, *more

    return __reduce_ex__


_CONTENT: Final = ("load", "aload", "_session_cache")
"""What of a session gives its data without a word to ``accessed``."""


@lru_cache(maxsize=64)
def _session_class(kind: Any) -> Any:
    key = kind.session_key

    def accessed(self: Any) -> Any:
        return raw(self).get("accessed", False)

    def access(self: Any, value: Any) -> None:
        raw(self)["accessed"] = value
        recorder = raw(self).get(RECORDER)
        if value and recorder is not None:
            recorder.touched()

    def session_key(self: Any) -> Any:
        recorder = raw(self).get(RECORDER)
        if recorder is not None and not _asks_itself(self):
            recorder.touched()
        return key.__get__(self)

    def is_empty(self: Any) -> Any:
        recorder = raw(self).get(RECORDER)
        if recorder is not None and not _asks_itself(self):
            recorder.touched()
        return kind.is_empty(self)

    def __getattribute__(self: Any, name: str) -> Any:  # noqa: N807 - it is this method
        if name in _CONTENT:
            recorder = raw(self).get(RECORDER)
            if recorder is not None and not _asks_itself(self):
                recorder.touched()
        return plainly(self, name)

    plainly = kind.__getattribute__
    more = {"is_empty": is_empty} if hasattr(kind, "is_empty") else {}
    told = {"accessed": property(accessed, access), "session_key": property(session_key)}
    return _subclass(kind, **told, **more, __getattribute__=__getattribute__)


def _asks_itself(session: Any) -> bool:
    """Whether the session's own code asks: Django's, or that of a session engine."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals is globals():
        frame = frame.f_back
    return frame is not None and frame.f_locals.get("self") is session


def _subclass(kind: Any, **more: Any) -> Any:
    """A class like ``kind`` whose objects can be turned into ``kind`` and back."""
    names = {"__slots__": (), "__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), names | more)
