"""Exceptions as plain data. What a view raised is raised again for the callers that waited for it.

Rules of this file:

* A class is looked up in modules that are named here. No name from the database is ever imported or called.
* We keep the class, plain arguments and plain attributes. Never a traceback, never a pickle.
* An exception of a class that is not in these modules comes back as a ``RemoteError`` that is also an instance of its
  nearest base that is: a 404 stays a 404, and ``except ValueError`` still works.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Final

from django import http
from django.core import exceptions as django_exceptions
from django.core.exceptions import ValidationError
from django.db import utils as database_errors
from django.utils.functional import Promise

from goscope_django import exceptions as own_exceptions
from goscope_django.exceptions import RemoteError

LONGEST: Final = 10_000
"""Characters of a message that are kept."""

_REST: Final = "rest_framework.exceptions"
_ATOMS: Final = (int, float, bool, bytes, type(None))


class _NotPlain(Exception):
    """A value that is no plain data."""


def _text(value: str) -> str:
    """A text that can be stored: not too long, and without lone surrogates."""
    return value[:LONGEST].encode("utf-8", "backslashreplace").decode()


def _plain(value: Any) -> Any:
    if isinstance(value, (str, Promise)):
        return _text(str(value))
    if type(value) in _ATOMS:
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise _NotPlain
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(name, str) and "\0" not in name for name in value):
        return {_text(name): _plain(item) for name, item in value.items()}
    raise _NotPlain


def _plain_attributes(error: Exception) -> Iterator[tuple[str, Any]]:
    for name, value in vars(error).items():
        if name in ("__notes__", "detail", "error_list", "error_dict"):
            continue
        try:
            yield name, _plain(value)
        except _NotPlain:
            continue


def _modules() -> Iterator[ModuleType]:
    yield from (builtins, django_exceptions, http, database_errors, own_exceptions)
    rest = sys.modules.get(_REST)
    if rest is not None:
        yield rest


def _listed(name: str) -> type[Exception] | None:
    """The listed class of this dotted name."""
    module_name, _, class_name = name.rpartition(".")
    if module_name == _REST and _REST not in sys.modules:
        try:
            import rest_framework.exceptions  # noqa: F401 - a fixed name; the leader had imported it
        except ImportError:
            return None
    for module in _modules():
        found = vars(module).get(class_name)
        if isinstance(found, type) and issubclass(found, Exception) and _name(found) == name:
            return found
    return None


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def pack(error: Exception) -> dict[str, Any]:
    """``error`` as plain data. Never raises: what can't be read of a user's class is left out."""
    try:
        return _pack(error)
    except Exception:  # noqa: BLE001 - a user's properties and conversions may raise anything
        return {
            "type": _name(type(error)),
            "base": _name(Exception),
            "message": _message(error),
            "args": [],
            "state": {},
        }


def _pack(error: Exception) -> dict[str, Any]:
    kind = type(error)
    base = next(one for one in kind.__mro__ if _listed(_name(one)) is one)
    message = _message(error)
    try:
        args = _plain(error.args)
    except _NotPlain:
        args = [message]
    packed = {
        "type": _name(kind),
        "base": _name(base),
        "message": message,
        "args": args,
        "state": dict(_plain_attributes(error)),
    }
    if isinstance(error, ValidationError):
        packed["validation"] = _pack_validation(error)
    if hasattr(error, "get_full_details"):
        packed["detail"] = _pack_detail(error.detail)  # type: ignore[attr-defined]
        packed["state"]["status_code"] = int(error.status_code)  # type: ignore[attr-defined]
    return packed


def _message(error: Exception) -> str:
    try:
        return _text(str(error))
    except Exception:  # noqa: BLE001 - a user's class may raise anything
        return type(error).__qualname__


def unpack(packed: Mapping[str, Any]) -> Exception:
    """The exception of what ``pack`` gave: of the same class if that is listed, else a ``RemoteError``."""
    base = _listed(str(packed["base"])) or Exception
    same = packed["type"] == packed["base"]
    args, state = tuple(packed["args"]), dict(packed["state"])
    try:
        if same and base.__module__ == "builtins":
            return base(*args)
        error = _blank(base if same else _remote(base), args if same else (packed["message"],))
        error.__dict__.update(state)
        if "validation" in packed:
            error.__dict__.update(vars(_unpack_validation(packed["validation"])))
        if "detail" in packed:
            error.detail = _unpack_detail(packed["detail"])  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - a builtin that refuses its own arguments, two classes that don't go together
        error, same = RemoteError(str(packed["message"]), error_type=str(packed["type"])), False
    if not same:
        error.__dict__["error_type"] = str(packed["type"])
    return error


def _blank(kind: type[Exception], args: tuple[Any, ...]) -> Exception:
    """An instance without ``__init__`` (as in unpickling), which may take other arguments."""
    error = kind.__new__(kind, *args)
    error.args = args
    return error


_remotes: dict[type[Exception], type[Exception]] = {Exception: RemoteError}


def _remote(base: type[Exception]) -> type[Exception]:
    found = _remotes.get(base)
    if found is None:
        body = {"__module__": __name__, "__reduce__": lambda self: (_again, (base, self.args, vars(self)))}
        found = _remotes[base] = type(f"Remote{base.__name__}", (RemoteError, base), body)
    return found


def _again(base: type[Exception], args: tuple[Any, ...], state: dict[str, Any]) -> Exception:
    """Unpickle a ``RemoteError`` that is a ``base`` as well."""
    error = _blank(_remote(base), args)
    error.__dict__.update(state)
    return error


def __getattr__(name: str) -> type[Exception]:
    """The ``RemoteError`` that is also a listed class, by its name, as task queues look for it."""
    for module in _modules() if name.startswith("Remote") else ():
        base = vars(module).get(name.removeprefix("Remote"))
        if isinstance(base, type) and issubclass(base, Exception):
            return _remote(base)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _pack_validation(error: ValidationError) -> Any:
    if hasattr(error, "error_dict"):
        return {str(name): [_pack_one(one) for one in errors] for name, errors in error.error_dict.items()}
    return [_pack_one(one) for one in error.error_list]


def _pack_one(error: ValidationError) -> list[Any]:
    try:
        return [_plain(error.message), _plain(error.code), _plain(error.params)]
    except _NotPlain:
        return [str(error.messages[0]).replace("%", "%%"), _plain(error.code), None]


def _unpack_validation(data: Any) -> ValidationError:
    build: Callable[[Any], list[ValidationError]] = lambda errors: [ValidationError(*one) for one in errors]  # noqa: E731
    if isinstance(data, dict):
        return ValidationError({name: build(errors) for name, errors in data.items()})
    errors = build(data)
    return errors[0] if len(errors) == 1 else ValidationError(errors)


def _pack_detail(detail: Any) -> Any:
    """REST framework's details: texts with a code, in lists and dicts."""
    if isinstance(detail, dict):
        return {"d": {str(name): _pack_detail(item) for name, item in detail.items()}}
    if isinstance(detail, (list, tuple)):
        return {"l": [_pack_detail(item) for item in detail]}
    return {"t": _text(str(detail)), "c": str(getattr(detail, "code", "") or "")}


def _unpack_detail(data: Any) -> Any:
    from rest_framework.exceptions import ErrorDetail

    if "d" in data:
        return {name: _unpack_detail(item) for name, item in data["d"].items()}
    if "l" in data:
        return [_unpack_detail(item) for item in data["l"]]
    return ErrorDetail(data["t"], data["c"] or None)
