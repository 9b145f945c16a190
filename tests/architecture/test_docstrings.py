"""Each docstring of the API reference says what CODE_STYLE.md asks for, and nothing public is missing from it."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import pkgutil
import re
import types
from datetime import timedelta
from typing import Final

import pytest
from django.core.management import load_command_class

from goscope_django.management import commands
from goscope_django.operations import collect
from goscope_django.operations import state as read_state
from tests.architecture.public import PACKAGE, PRIVATE, Public, described, faults, public, shown
from tests.support.documents import ROOT, read

INNER: Final = {
    "goscope_django": "it holds the version",
    "goscope_django.admin": "Django's admin looks for it",
    "goscope_django.apps": "INSTALLED_APPS names it",
    "goscope_django.codec": "how Django's values are stored; the cache's options choose it",
    "goscope_django.conf": "reads the settings, which have a page of their own; ``test_prefix`` is on that on testing",
    "goscope_django.figures": "sends the figures; ``flush`` is told on the page on monitoring",
    "goscope_django.integrations": "only tells what to install",
    "goscope_django.models": "permissions alone",
    "goscope_django.runtime": "puts settings and providers together",
    "goscope_django.core": "for this package",
    "goscope_django.http": "for this package",
    "goscope_django.process": "for this package",
    "goscope_django.management": "the commands, which have a page of their own",
    "goscope_django.migrations": "Django's migrations",
}
"""Modules that are not for callers, with the reason."""


def modules() -> set[str]:
    """Every module that can be public: the top ones, and those of ``integrations``, ``testing`` and ``mongodb``."""
    root = ROOT / PACKAGE
    found = {f"{PACKAGE}.{path.stem}" for path in root.glob("*.py")} | {
        f"{PACKAGE}.{path.parent.name}" for path in root.glob("*/__init__.py")
    }
    for folder in ("integrations", "testing"):
        found |= {f"{PACKAGE}.{folder}.{path.stem}" for path in (root / folder).glob("*.py")}
        found |= {f"{PACKAGE}.{folder}.{path.parent.name}" for path in (root / folder).glob("*/__init__.py")}
    return {one.removesuffix(".__init__") for one in found}


def test_each_docstring_says_what_it_must() -> None:
    everything = public()
    assert len(everything) > 500
    assert not {str(one): found for one in everything if (found := list(faults(one)))}


def test_each_module_is_described_or_inner() -> None:
    assert modules() - set(described()) == set(INNER)


def named_in(one: Public) -> set[type]:
    """The classes of this package that the annotations of ``one`` name."""
    if one.kind == "error" or (one.kind == "class" and PRIVATE in (one.thing.__init__.__doc__ or "")):
        return set()
    where = one.thing.fget if one.kind == "property" else getattr(one.thing, "__func__", one.thing)
    if one.kind == "value":
        texts = [str(field.type) for field in dataclasses.fields(one.thing)]
    else:
        named = where.__init__ if one.kind == "class" else where
        texts = [str(found) for found in getattr(named, "__annotations__", {}).values()]
    space = vars(importlib.import_module(where.__module__))
    names = {name for text in texts for name in re.findall(r"\b[A-Z]\w+", text)}
    found = {space[name] for name in names if isinstance(space.get(name), type)}
    return {kind for kind in found if kind.__module__.startswith(PACKAGE)}


NOT_SHOWN: Final = {
    "BreakerOptions": "the arguments of CircuitBreaker, for type checkers",
    "Codec": "how values are stored; callers only hand it on",
    "Lost": "asked like a threading.Event, which HeldLock.lost says",
}
"""Classes that public signatures name, and the reference has no entry for, with the reason."""


def test_what_public_signatures_name_is_described() -> None:
    everything = public()
    known = {one.thing.__name__ for one in everything if isinstance(one.thing, type)}
    assert {kind.__name__ for one in everything for kind in named_in(one)} - known == set(NOT_SHOWN)


def parsers() -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for module in pkgutil.iter_modules(commands.__path__):
        parser = load_command_class(PACKAGE, module.name).create_parser("manage.py", module.name)
        verbs: dict[str, argparse.ArgumentParser] = {}
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                verbs |= action.choices
        found |= {f"{module.name} {verb}": one for verb, one in verbs.items()} if verbs else {module.name: parser}
    return found


def test_every_command_with_its_verbs_and_options_is_in_the_reference() -> None:
    page = read("docs/reference/commands.md").replace("\\|", "|")
    rows = re.findall(r"^\| (`goscope_.*?) \| ", page, re.MULTILINE)
    # Said once for all of them, or Django's own.
    common = {"--json", "--no-input", "--noinput", "-h", "--help", "--version", "-v", "--verbosity", "--settings"}
    common |= {"--pythonpath", "--traceback", "--no-color", "--force-color", "--skip-checks"}
    missing = []
    for name, parser in parsers().items():
        command, _, verb = name.partition(" ")
        mine = [row for row in rows if re.search(rf"{command}\b", row) and (not verb or re.search(rf"\b{verb}\b", row))]
        missing += [name] if not mine else []
        for action in parser._actions:
            if action.help != argparse.SUPPRESS and not common.intersection(action.option_strings):
                missing += [f"{name} {one}" for one in action.option_strings if one not in " ".join(mine)]
    assert not missing


@pytest.mark.parametrize("module", ["goscope_django.locks", "goscope_django.circuits", "goscope_django.idempotency"])
def test_what_is_inner_is_not_shown(module: str) -> None:
    names = {one.name for one in public() if one.owner.startswith(module)}
    assert not names & {"leave", "aleave", "keeps_out", "pause_renewal", "where", "keyed_by", "renewable", "entered"}


def test_the_number_in_the_text_of_state_is_that_of_the_code() -> None:
    assert f"At most {collect.COMMANDS} round trips" in " ".join((read_state.__doc__ or "").split())
    for page in ("operations", "dashboard"):
        assert f"t most {collect.COMMANDS} commands" in read(f"docs/how-to/{page}.md")


def test_the_table_of_actions_counts_as_the_docstrings_do() -> None:
    table = read("docs/how-to/operations.md").partition("\n## Actions\n")[2]
    rows = re.findall(r"^\| (`.*`) \| .* \| (\d).* \|$", table, re.MULTILINE)
    said = {name: int(count) for names, count in rows for name in re.findall(r"`(\w+)", names) if "cache" not in names}
    numbers = ("no", "one", "two", "three")
    texts = {one.name: one.text.lower() for one in public() if one.owner == "goscope_django.operations"}
    assert len(said) == 9
    for name, count in said.items():
        found = re.search(r"\b(one|two|three)(?: atomic)? round trips?\b", texts[name])
        assert found is not None and numbers.index(found[1]) == count, name


# The test can fail: each of these docstrings lacks something.

WELL: Final = "Keep ``key`` for ``timeout`` (seconds). One atomic round trip. Raises ``StoreError``."


def said(text: str, module_text: str = "", name: str = "keep") -> list[str]:
    """What is found of a function ``(key, timeout)`` with this docstring, in a module with that one."""

    def keep(key: str, timeout: float | timedelta) -> None: ...

    keep.__doc__, keep.__name__ = text, name
    module = types.ModuleType("planted", module_text)
    vars(module).update({name: keep, "__all__": [name]})
    (one,) = public({"planted": module}, [])
    return list(faults(one))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "it has no docstring"),
        (WELL.replace("``key``", "it"), "key: it is not named"),
        (WELL.replace(" (seconds)", ""), "timeout: its unit is missing"),
        (WELL.replace("Raises ``StoreError``.", ""), "which errors it raises"),
        (WELL.replace("One atomic round trip", "It is atomic"), "how many round trips it takes"),
        (WELL.replace(" atomic", ""), "whether it is atomic"),
        (WELL.replace("StoreError", "StorageError"), "StorageError is no error that there is"),
        ("Async version of ``lost``. " + WELL, "``lost``, whose async version it is, is not public"),
    ],
)
def test_what_is_missing_is_found(text: str, fault: str) -> None:
    assert said(text) == [fault]


def test_a_text_that_says_it_all_is_let_pass() -> None:
    assert said(WELL) == []
    assert said("Keep ``key`` for ``timeout`` (seconds).", "Each function is one atomic round trip and raises "
                "``StoreError``.") == []  # fmt: skip
    assert said("Keep ``key`` (``timeout`` in seconds). Raises nothing and sends nothing.") == []


def test_what_the_module_says_of_one_does_not_count_for_another() -> None:
    around = "``drop`` is one atomic round trip and raises ``StoreError``."
    text = "Keep ``key`` for ``timeout`` (seconds)."
    assert said(text, around) == ["which errors it raises", "how many round trips it takes"]
    assert said(text, around, "drop") == []


def test_a_name_that_reads_need_not_say_how() -> None:
    assert said(WELL.replace(" atomic", ""), name="get_kept") == []


def test_a_class_with_a_bare_method_is_found() -> None:
    class Planted:
        """Made for this test. Each method raises ``StoreError``."""

        def save(self, key: str) -> None:
            """Save it."""

        async def asave(self, key: str) -> None:
            """Async version of ``save``."""

        @property
        def token(self) -> int:
            return 1

        def inner(self) -> None:
            """For this package.

            :meta private:
            """

    found = {one.name: list(faults(one)) for one in public({}, [Planted])}
    lacking = ["key: it is not named", "how many round trips it takes"]
    assert found == {
        "Planted": [],
        "save": lacking,
        "asave": lacking,
        "token": ["it has no text, and its class does not name it"],
    }


def test_the_pages_of_the_reference_are_read() -> None:
    assert {"goscope_django.locks", "goscope_django.contracts"} <= set(shown())
    assert "goscope_django.signals" in described()
    assert "goscope_django.signals" not in shown()  # its module's own table says it all
    names = {str(one) for one in public()}
    assert {"goscope_django.locks.HeldLock", "goscope_django.locks.HeldLock.release"} <= names
    assert {"goscope_django.circuits.force_open", "goscope_django.mongodb.MongoDBIdempotencyAdapter.abegin"} <= names
