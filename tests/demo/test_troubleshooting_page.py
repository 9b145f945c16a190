"""The page *Troubleshooting* is true: its examples run, and it names what the package says."""

from __future__ import annotations

import inspect
import re

import pytest

from goscope_django import exceptions
from goscope_django.exceptions import InvalidValue
from goscope_django.http import responses
from goscope_django.locks import lock
from goscope_django.management.commands import goscope_checkpoint, goscope_circuit, goscope_indexes, goscope_lock
from goscope_django.mongodb import MongoDBAdapter
from tests.support.documents import blocks, read

PAGE = "docs/how-to/troubleshooting.md"


def test_who_holds_my_lock(goscope: MongoDBAdapter, capsys: pytest.CaptureFixture[str]) -> None:
    code = next(code for _, code in blocks(PAGE) if "backend" in code)
    with lock("stock:tea"), lock("other", owner="somebody"):
        exec(compile(code, PAGE, "exec"), {"__name__": "page"})
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("stock:tea ") and ":" in line.split()[1]


def test_functions_of_a_factory_are_kept_apart_by_name(goscope: MongoDBAdapter) -> None:
    code = next(code for _, code in blocks(PAGE) if "charger" in code)
    namespace: dict[str, object] = {"__name__": "page"}
    exec(compile(code, PAGE, "exec"), namespace)
    charger = namespace["charger"]
    assert callable(charger)
    one, other = charger("visa"), charger("giro")
    assert [one(1), other(1), one(1)] == ["1 charged by visa", "1 charged by giro", "1 charged by visa"]
    exec(compile(code.replace(', name=f"charge-{provider}"', ""), PAGE, "exec"), namespace)
    unnamed = namespace["charger"]
    assert callable(unnamed)
    with pytest.raises(InvalidValue, match=r"other functions may have the name .*<locals>.* as well"):
        unnamed("visa")


def test_it_names_every_check() -> None:
    table = read(PAGE).partition("\n## Checks\n")[2]
    assert set(re.findall(r"goscope\.[EW]\d+", table)) == set(
        re.findall(r"goscope\.[EW]\d+", read("goscope_django/checks.py"))
    )


def test_it_names_every_reason_for_which_a_flight_is_not_shared() -> None:
    functions = inspect.getsource(responses.why_private) + inspect.getsource(responses.why_bound)
    reasons = set(re.findall(r'return "([\w-]+)"', functions))
    reasons |= set(re.findall(r'_unshared\("([\w-]+)"', read("goscope_django/single_flight/plan.py")))
    section = read(PAGE).partition("| the log says |")[2].partition("\n### ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)}
    assert reasons == named


def test_what_it_names_is_there() -> None:
    """Error classes, and the commands with their verbs."""
    page = read(PAGE)
    headed = set(re.findall(r"`([A-Z]\w+)`", "".join(re.findall(r"^#.*$", page, re.MULTILINE))))
    assert all(hasattr(exceptions, name) for name in headed)
    assert headed >= set(
        re.findall(r"\w+", "LockNotAcquired LockReentered LockLost OutcomeUnknown PoolExhausted TaskAlreadyRunning")
    )
    verbs = {
        "goscope_lock": goscope_lock,
        "goscope_circuit": goscope_circuit,
        "goscope_checkpoint": goscope_checkpoint,
        "goscope_indexes": goscope_indexes,
    }
    for command, verb in re.findall(r"(goscope_[a-z]+) ([a-z]+)", page):
        if command in verbs:
            assert f'"{verb}"' in inspect.getsource(verbs[command]), f"{command} {verb}"
