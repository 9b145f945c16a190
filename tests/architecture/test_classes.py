"""A class is whole (CODE_STYLE.md): none has its only subclass in another file of the package.

Counted are direct subclasses, by the text of the package. A class with one heir elsewhere is half a class: the two are
folded together, or the one becomes an object that the other has.
"""

from __future__ import annotations

import pytest

from tests.architecture.source import modules, parse, subclasses

REASONS: dict[str, str] = {
    "goscope_django.exceptions.ConfigurationError": "BadSettings is Django's ImproperlyConfigured, too; no Django here",
}
"""Classes with one heir elsewhere, and why that is right."""


def file_of(name: str) -> str:
    return name.rpartition(".")[0]


def halves(package: dict[str, list[str]]) -> dict[str, str]:
    """Each class whose only direct subclass stands in another file, with that subclass."""
    return {base: heirs[0] for base, heirs in package.items() if len(heirs) == 1 and file_of(base) != file_of(heirs[0])}


def test_no_class_has_its_only_subclass_in_another_file() -> None:
    found = halves(subclasses(modules()))
    unexplained = [f"{base} <- {heir}" for base, heir in found.items() if base not in REASONS]
    assert not unexplained, "\n".join(unexplained)


def test_the_table_of_exceptions_holds_nothing_else() -> None:
    """What has been folded leaves the table."""
    assert sorted(REASONS.keys() - halves(subclasses(modules())).keys()) == []


BASE = ("goscope_django.cache.base", "class Base: ...")


@pytest.mark.parametrize(
    "heir",
    [
        "from goscope_django.cache.base import Base\nclass Heir(Base): ...",
        "from goscope_django.cache.base import Base as Other\nclass Heir(Other[int]): ...",
        "from goscope_django.cache import base\nclass Heir(base.Base): ...",
        "from . import base\nclass Heir(base.Base): ...",
        "from .base import Base\ndef make():\n    class Heir(Base): ...",
        "import goscope_django.cache.base\nclass Heir(goscope_django.cache.base.Base): ...",
        "from goscope_django.cache import Base\nclass Heir(Base): ...",
    ],
)
def test_half_a_class_is_found(heir: str) -> None:
    face = parse("goscope_django.cache", "from .base import Base", "goscope_django/cache/__init__.py")
    package = [face, parse(*BASE), parse("goscope_django.cache.backend", heir)]
    assert halves(subclasses(package)) == {"goscope_django.cache.base.Base": "goscope_django.cache.backend.Heir"}


def test_two_heirs_or_one_in_the_same_file_are_let_pass() -> None:
    heir = "from goscope_django.cache.base import Base\nclass Heir(Base): ..."
    two = [parse(*BASE), parse("goscope_django.cache.backend", heir), parse("goscope_django.cache.options", heir)]
    assert halves(subclasses(two)) == {}
    assert halves(subclasses([parse("goscope_django.conf", "class Base: ...\nclass Heir(Base): ...")])) == {}
    assert halves(subclasses([parse("goscope_django.conf", "class Heir(ValueError): ...")])) == {}
