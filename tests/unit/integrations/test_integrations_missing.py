"""Bridges to packages that are not installed."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "package", "install"),
    [
        ("prometheus", "prometheus_client", r"goscope-django\[prometheus\]"),
        ("health", "health_check", r"goscope-django\[health\]"),
        ("celery", "celery", "celery"),
    ],
)
def test_what_is_missing_is_named(module: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"goscope_django.integrations.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    for one in [one for one in sys.modules if one.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, one)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=f"which is not installed; pip install .{install}.") as caught:
        importlib.import_module(name)
    assert (caught.value.name or "").partition(".")[0] == package
