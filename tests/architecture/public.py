"""What is public, and what its docstrings say. The reference's pages name the modules, and the modules their names.

Rules of this file: the rules for docstrings are those in CODE_STYLE.md, under *Words*. A name whose docstring holds
``:meta private:`` is inner: Sphinx leaves it out, and so does this.
"""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Final, Literal

import django.contrib.sessions.backends.base as of_sessions
import django.core.exceptions as of_django
import pymongo.errors as of_driver

from goscope_django import exceptions
from tests.support.documents import ROOT

API: Final = ROOT / "docs" / "reference" / "api"
PACKAGE: Final = "goscope_django"
PRIVATE: Final = ":meta private:"

Kind = Literal["function", "method", "property", "class", "value", "error"]

READS: Final = frozenset(
    prefix + verb
    for verb in (
        *("get", "list", "is", "has", "keys", "iter", "ttl", "pttl", "load", "exists", "count", "check"),
        *("ping", "probe", "state", "details", "locked", "owned", "stalled"),
    )
    for prefix in ("", "a")
)
"""The first words of names that only read. What such a name does is no change, so it need not say how it is made."""
WRITES: Final = frozenset({"get_or_set", "aget_or_set"})
"""Names that begin like one that reads, and change something."""

DURATION: Final = re.compile(r"\b(Duration|Timeout|Ttl|timedelta)\b")
LASTS: Final = re.compile(r"(^|_)(timeout|ttl|lease|interval|linger|window|retention|sleep|stale|slow|after)$")
"""Names of parameters that are durations where the type is a plain number, too."""
UNIT: Final = re.compile(r"second|0 to 100\b|0 to 1\b", re.IGNORECASE)
TRIPS: Final = re.compile(
    r"round trip|\bcommands?\b|[Ss]ends? nothing|[Nn]othing is sent|[Aa]sks? no server|[Oo]pens? (nothing|no\b)"
)
SENDS_NOTHING: Final = re.compile(
    r"[Ss]ends? nothing|[Nn]othing is sent|[Aa]sks? no server|[Oo]pens? (nothing|no\b)|[Nn]o round trip"
)
HOW: Final = re.compile(r"\b[Aa]tomic|[Cc]hanges nothing|[Ww]rites nothing|\bonly reads?\b")
RAISES: Final = re.compile(r"\b[Rr]ais(e|es|ed)\b")
GENERAL: Final = re.compile(r"\b(each|every|all|methods|functions|none|nothing|they|these)\b", re.IGNORECASE)
LIKE: Final = re.compile(r"(?:[Aa]sync version of|\b[Ll]ike|\bas (?:in|for)|\bthose of|\bas) ``([\w.]+)")
FIRST: Final = re.compile(r"``([\w.]+)")


def described() -> dict[str, str]:
    """The modules that the reference describes, with the page of each."""
    return _named("automodule")


def shown() -> dict[str, str]:
    """Those of the modules whose names the reference shows, too: not only what the module says of itself."""
    return _named("automodule", r"\n   :members:$")


def described_classes() -> dict[str, str]:
    """The classes that it describes without the rest of their modules, by dotted name."""
    return _named("autoclass")


def _named(directive: str, end: str = "$") -> dict[str, str]:
    return {
        name: str(page.relative_to(ROOT))
        for page in sorted(API.glob("*.md"))
        for name in re.findall(rf"^\.\. {directive}:: (\S+){end}", page.read_text(encoding="utf-8"), re.MULTILINE)
    }


@dataclasses.dataclass
class Public:
    """One public name: ``around`` are the texts of its class and module, ``owner`` the dotted name of either."""

    owner: str
    name: str
    kind: Kind
    thing: Any
    around: str
    siblings: Callable[[str], Public | None] = lambda _: None

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"

    @cached_property
    def own(self) -> str:
        return _flowing(_doc(self.thing))

    @cached_property
    def text(self) -> str:
        """Its own text, and the texts to which it refers: of what it is the async version of, or like."""
        found, texts, waiting = {str(self)}, [self.own], [self]
        while waiting:
            one = waiting.pop()
            names = {*LIKE.findall(one.own), *FIRST.findall(one.own[:60] if one.own.startswith("``") else "")}
            for name in names:
                other = one.siblings(name)
                if other is not None and str(other) not in found:
                    found.add(str(other))
                    texts.append(other.own)
                    waiting.append(other)
        return "\n\n".join(texts)

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        made = self.thing.__init__ if self.kind == "class" else self.thing
        made = getattr(made, "__func__", made)
        taken = list(inspect.signature(made).parameters.values())
        if self.kind != "function" and not isinstance(self.thing, staticmethod):
            taken = taken[1:]
        loose = {"args", "kwargs", "_"}  # what is handed on as it is
        return {one.name: one for one in taken if one.name not in loose and not one.name.startswith("_")}

    def says(self, pattern: re.Pattern[str], *, of: re.Pattern[str] | None = None) -> bool:
        """Whether its text says so, or a sentence of its class or module that is about it or about all."""
        if pattern.search(self.text):
            return True
        about = re.compile(rf"``{re.escape(self.name)}\b")
        return any(
            pattern.search(one) and (GENERAL.search(one) or about.search(one)) for one in _sentences(self.around)
        )


def _doc(thing: Any) -> str:
    return str(getattr(thing, "__doc__", None) or "")


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.:;])\s+|\n\n", text)


def _flowing(text: str) -> str:
    """The text, each paragraph of it in one line."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n[ \t]*\n", inspect.cleandoc(text)))


def _is_inner(thing: Any) -> bool:
    return PRIVATE in _doc(thing)


def _is_value(thing: Any) -> bool:
    return dataclasses.is_dataclass(thing)


def members_of(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class, also those that it has from other classes of this package."""
    seen: set[str] = set()
    for one in kind.__mro__:
        if not one.__module__.startswith((PACKAGE, "tests")):
            continue
        for name, member in vars(one).items():
            if name.startswith(("_", "test_")) or name in seen:  # suites of tests are not called
                continue
            seen.add(name)
            plain = getattr(member, "__func__", member)
            if inspect.isfunction(plain) or isinstance(member, property):
                yield name, member


def public(modules: dict[str, Any] | None = None, classes: list[type] | None = None) -> list[Public]:
    """Everything public, in the reference's order; of ``modules`` (by name) and ``classes`` alone if they are given."""
    if modules is None:
        modules = dict(_modules())
        classes = [_loaded(name) for name in described_classes()]
    found: list[Public] = []
    for name, module in modules.items():
        for public_name in getattr(module, "__all__", None) or [
            key
            for key, thing in vars(module).items()
            if not key.startswith("_") and getattr(thing, "__module__", None) == name
        ]:
            found += _of(name, public_name, getattr(module, public_name), _flowing(_doc(module)))
    for kind in classes or []:
        found += _of(kind.__module__, kind.__name__, kind, "")

    by_name: dict[str, list[Public]] = {}
    for one in found:
        by_name.setdefault(one.name, []).append(one)
        by_name.setdefault(f"{one.owner.rpartition('.')[2]}.{one.name}", []).append(one)

    def siblings(of: Public) -> Callable[[str], Public | None]:
        def look(name: str) -> Public | None:
            near = [one for one in by_name.get(name, []) if one.owner == of.owner]
            return next(iter(near or by_name.get(name, [])), None)

        return look

    for one in found:
        one.siblings = siblings(one)
    unique = {(id(getattr(one.thing, "__func__", one.thing)), one.owner): one for one in found}
    return list(unique.values())


def _modules() -> Iterator[tuple[str, Any]]:
    for name in shown():
        try:
            yield name, importlib.import_module(name)
        except ModuleNotFoundError:  # the package that an integration is for
            if not name.startswith(f"{PACKAGE}.integrations."):
                raise


def _of(owner: str, name: str, thing: Any, around: str) -> Iterator[Public]:
    if _is_inner(thing):
        return
    if inspect.isclass(thing):
        if issubclass(thing, BaseException):
            yield Public(owner, name, "error", thing, _inherited(thing))
            return
        yield Public(owner, name, "value" if _is_value(thing) else "class", thing, around)
        whole = f"{owner}.{name}"
        for member, what in members_of(thing):
            if not _is_inner(what):
                kind: Kind = "property" if isinstance(what, property) else "method"
                yield Public(whole, member, kind, what, f"{_inherited(thing)}\n\n{around}")
    elif inspect.isroutine(thing):
        yield Public(owner, name, "function", thing, around)


def _inherited(kind: type) -> str:
    return "\n\n".join(_flowing(_doc(one)) for one in kind.__mro__ if one.__module__.startswith((PACKAGE, "tests")))


def _loaded(name: str) -> type:
    module, _, kind = name.rpartition(".")
    loaded: type = getattr(importlib.import_module(module), kind)
    return loaded


def faults(one: Public) -> Iterator[str]:
    """What the docstring of ``one`` does not say, and should."""
    if one.kind == "property":
        if not one.own and not re.search(rf"``{re.escape(one.name)}\b", one.around):
            yield "it has no text, and its class does not name it"
    elif not one.own:
        yield "it has no docstring"
    else:
        yield from _unknown_twins(one)
        yield from _unknown_errors(one)
        if one.kind in ("value", "error"):
            yield from _without_unit(one)
        elif one.kind != "class" or _is_made_by_callers(one.thing):
            yield from _unsaid_parameters(one)
            yield from _unsaid_effects(one)


def _is_made_by_callers(kind: Any) -> bool:
    """Whether who uses the class makes it, with arguments that are its own."""
    return "__init__" in vars(kind) and not getattr(kind, "_is_protocol", False) and not _is_inner(kind.__init__)


def _unsaid_parameters(one: Public) -> Iterator[str]:
    where = f"{one.text}\n\n{one.around}"
    for name, parameter in one.parameters.items():
        kind = str(parameter.annotation).strip("'")
        lasts = DURATION.search(kind) or (LASTS.search(name) and kind not in ("bool", "str | None"))
        if not re.search(rf"``[^`]*\b{re.escape(name)}\b[^`]*``", where):
            yield f"{name}: it is not named"
        elif lasts and not _unit(name, where):
            yield f"{name}: its unit is missing"


def _unsaid_effects(one: Public) -> Iterator[str]:
    if not one.says(RAISES):
        yield "which errors it raises"
    if not one.says(TRIPS):
        yield "how many round trips it takes"
    elif not (one.says(SENDS_NOTHING) or _only_reads(one) or one.says(HOW)):
        yield "whether it is atomic"


def _only_reads(one: Public) -> bool:
    """Whether its name says so: what changes nothing need not say how it does that."""
    return one.kind != "class" and one.name not in WRITES and one.name.split("_")[0] in READS


def _unit(name: str, text: str) -> bool:
    named = re.compile(rf"``[^`]*\b{re.escape(name)}\b[^`]*``")
    return any(named.search(part) and UNIT.search(part) for part in text.split("\n\n"))


def _without_unit(one: Public) -> Iterator[str]:
    """The numbers of a value or an error that are no whole ones: each has a unit."""
    if one.kind == "value":
        fields = {field.name: str(field.type) for field in dataclasses.fields(one.thing)}
    else:
        fields = {name: str(what.annotation) for name, what in one.parameters.items()} if _has_init(one.thing) else {}
    for name, kind in fields.items():
        if re.search(r"\bfloat\b", kind) and not _unit(name, f"{one.own}\n\n{_inherited(one.thing)}"):
            yield f"{name}: it, or its unit, is not named"


def _has_init(kind: type) -> bool:
    return any("__init__" in vars(one) for one in kind.__mro__ if one.__module__.startswith(PACKAGE))


def _unknown_twins(one: Public) -> Iterator[str]:
    for name in re.findall(r"Async version of ``([\w.]+)``", one.own):
        other = one.siblings(name)
        if other is None or other.own.startswith("Async version"):
            yield f"``{name}``, whose async version it is, is not public"


def _unknown_errors(one: Public) -> Iterator[str]:
    for sentence in _sentences(one.own):
        for name in re.findall(r"``([A-Z]\w+)``", sentence) if RAISES.search(sentence) else ():
            if not _is_error(name, one.thing):
                yield f"{name} is no error that there is"


def _is_error(name: str, thing: Any) -> bool:
    home = inspect.getmodule(getattr(thing, "__func__", thing))
    for place in (exceptions, builtins, of_django, of_sessions, of_driver, home):
        found = getattr(place, name, None)
        if inspect.isclass(found) and issubclass(found, BaseException):
            return True
    return name in {"True", "False", "None"} or name.isupper() or inspect.isclass(getattr(exceptions, name, None))
