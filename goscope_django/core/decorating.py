"""What all decorators check when a function is decorated, and how a call's arguments become its key.

Rules of this file:

* A mistake is told where it is written, when the function is decorated: a decorator without its parentheses, a function
  where text is needed, a template that names no parameter, a function whose name is not its own.
* In a template (``"order:{order_id}"``) the fields are kept apart: two calls have the same key only if each field has
  the same text. Of every field but the last, ``%`` and the character that ends the field are percent-encoded. Between
  two fields that touch stands a ``|``. So a simple value is stored as it is, and a field that is the only one always.
"""

from __future__ import annotations

import functools
import inspect
import string
import sys
from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any, Final

from goscope_django.core.arguments import shown
from goscope_django.exceptions import InvalidType, InvalidValue

FOREIGN: Final = "django.utils.decorators"
"""Whose functions are decorated only to be looked at: ``method_decorator`` does so."""

_formatter: Final = string.Formatter()


def no_function(value: object, decorator: str, example: str) -> None:
    """Raise ``InvalidType`` if ``value``, the first argument of a decorator, is a function.

    Then its parentheses are missing. ``decorator`` is its name, ``example`` how it is written.
    """
    if callable(value):
        raise InvalidType(
            f"{decorator}: {shown(value)} is a function. {decorator} is written with parentheses: {example}"
        )


def no_bare_function(value: object, decorator: str, example: str) -> None:
    """Like ``no_function``, where the first argument may be a function: of a call's arguments, say.

    A function that is decorated right now differs from any other: the caller's own code makes it, and nothing there has
    it yet. To be called directly by the decorator, which its user calls.
    """
    if not callable(value) or getattr(value, "__name__", "") == "<lambda>":
        return
    frame = sys._getframe(2)
    if isinstance(value, type):
        made_here = value.__module__ == frame.f_globals.get("__name__") and value.__qualname__ in _names(frame.f_code)
    else:
        made_here = getattr(inspect.unwrap(value), "__code__", None) in frame.f_code.co_consts
    if made_here and not any(
        one is value for place in (frame.f_locals, frame.f_globals) for one in list(place.values())
    ):
        no_function(value, decorator, example)


def _names(code: CodeType) -> set[str]:
    """The qualified names of what is defined in this code."""
    return {one.co_qualname for one in code.co_consts if isinstance(one, CodeType)}


def own_name(function: Callable[..., Any], name: str | None, decorator: str, *, lambdas: bool = False) -> None:
    """Raise ``InvalidValue`` if ``function`` shares its name with others, and no other ``name`` was given.

    All functions that a factory makes have one name, and so have all lambdas of a module unless ``lambdas`` are told
    apart otherwise.
    """
    if name is not None or getattr(function, "__module__", "") == FOREIGN:
        return
    if hasattr(function, "view_class") or hasattr(function, "cls"):
        return  # what as_view() gave: the class names it
    path = getattr(function, "__qualname__", "")
    if "<locals>" in path or (path.endswith("<lambda>") and not lambdas):
        raise InvalidValue(
            f"{decorator}: other functions may have the name {path!r} as well (it is a lambda, or made anew at each "
            f"call of the function around it), and all of them would share their keys. Decorate a function of a module "
            f"or class, or give this one a name of its own: name='...'"
        )


def keyed(key: Any, function: Callable[..., Any], what: str, *, hidden: str | None = None) -> Any:
    """The function that makes a call's key of its arguments: a ``Template`` for text, else ``key`` as it is.

    ``what`` is the decorator and its argument, for errors. The parameter ``hidden`` is not the caller's to give.
    """
    return Template(key, function, what, hidden=hidden) if isinstance(key, str) else key


class Template:
    """A text with fields in braces, filled with the arguments of one function's calls.

    A field begins with a parameter's name; attributes, indexes, conversions and format specs are those of
    ``str.format``. Defaults count. What a function takes as ``**options`` can be named as well, and is then looked for
    at each call. ``constant`` is the text if there are no fields. Raises ``InvalidValue`` for a text that is no
    template, and for a field that names no parameter.
    """

    __slots__ = ("_parts", "_signature", "_what", "constant")

    def __init__(self, text: str, function: Callable[..., Any], what: str, *, hidden: str | None = None) -> None:
        self._what = f"{what}={shown(text)}"
        try:
            self._parts = _parts(text)
        except ValueError as error:
            raise InvalidValue(f"{self._what}: {error}; a brace that is meant as such is doubled") from None
        fields = [field for _, field, _, _ in self._parts if field is not None]
        self.constant = None if fields else "".join(literal for literal, _, _, _ in self._parts)
        self._signature: inspect.Signature | None = None
        if fields:
            self._signature = _signature(function, hidden, self._what)
            self._check(text, function)

    def _check(self, text: str, function: Callable[..., Any]) -> None:
        assert self._signature is not None
        parameters = self._signature.parameters
        more = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        for name in _named(text):
            if name not in parameters and not (more and name.isidentifier()):
                called = getattr(function, "__qualname__", shown(function))
                raise InvalidValue(
                    f"{self._what}: the field {{{name}}} names no parameter of {called}(). "
                    f"Its parameters are: {', '.join(parameters) or 'none'}"
                )

    def __call__(self, /, *args: Any, **kwargs: Any) -> str:
        """The key of a call with these arguments. Raises ``TypeError`` for a call that the function would refuse."""
        if self._signature is None:
            assert self.constant is not None
            return self.constant
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values: dict[str, Any] = {}
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                values.update(bound.arguments[name])
        values.update(bound.arguments)
        return "".join(self._filled(values))

    def _filled(self, values: Mapping[str, Any]) -> Iterator[str]:
        for place, (literal, field, conversion, spec) in enumerate(self._parts):
            yield literal
            if field is None:
                continue
            text = self._text(field, conversion, spec, values)
            following = self._parts[place + 1 :]
            if not any(one[1] is not None for one in following):
                yield text
            elif following[0][0]:
                yield _apart(text, following[0][0][0])
            else:
                yield f"{_apart(text, '|')}|"

    def _text(self, field: str, conversion: str | None, spec: str, values: Mapping[str, Any]) -> str:
        try:
            found, _ = _formatter.get_field(field, (), values)
            found = _formatter.convert_field(found, conversion)
            return str(_formatter.format_field(found, _formatter.vformat(spec, (), values)))
        except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
            # The values are not named: they may be secret.
            raise InvalidValue(
                f"{self._what}: the field {{{field}}} can't be filled with what the call gives ({type(error).__name__})"
            ) from None


def _parts(text: str) -> list[tuple[str, str | None, str | None, str]]:
    """``(literal, field, conversion, spec)`` in order; the last one has no field."""
    found: list[tuple[str, str | None, str | None, str]] = []
    before = ""
    for literal, field, spec, conversion in _formatter.parse(text):
        before += literal
        if field is not None:
            found.append((before, field, conversion, spec or ""))
            before = ""
    return [*found, (before, None, None, "")]


def _named(text: str) -> Iterator[str]:
    """The first names of all fields, also of those inside a format spec."""
    for _, field, spec, _ in _formatter.parse(text):
        if field is not None:
            yield field.replace("[", ".").partition(".")[0]
            yield from _named(spec or "")


def _signature(function: Callable[..., Any], hidden: str | None, what: str) -> inspect.Signature:
    try:
        # What method_decorator binds to a view's instance looks like the method itself, but is called without ``self``.
        found = inspect.signature(function, follow_wrapped=not isinstance(function, functools.partial))
    except (TypeError, ValueError):
        raise InvalidType(
            f"{what}: the parameters of {shown(function)} can't be read; give a function as key"
        ) from None
    if hidden is not None:
        found = found.replace(parameters=[one for one in found.parameters.values() if one.name != hidden])
    return found


def _apart(text: str, end: str) -> str:
    """``text`` without the character ``end``, and so that no other text gives the same."""
    mark = "~" if end == "%" else "%"
    if end not in text and mark not in text:
        return text
    if end in "%0123456789ABCDEF":  # the usual codes would hold it
        return text.replace(mark, f"{mark}y").replace(end, f"{mark}z")
    return text.replace("%", "%25").replace(end, "".join(f"%{byte:02X}" for byte in end.encode("utf-8", "replace")))
