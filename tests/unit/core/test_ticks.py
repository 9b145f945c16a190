"""Which clock counts durations, on each system."""

from __future__ import annotations

import runpy
import sys
from types import ModuleType
from typing import Any

import pytest

from goscope_django.core import ticks


@pytest.mark.parametrize(
    ("platform", "clocks", "asked"),
    [
        ("linux", {"CLOCK_MONOTONIC": 1, "CLOCK_BOOTTIME": 7}, 7),
        ("darwin", {"CLOCK_MONOTONIC": 6}, 6),
        ("freebsd", {"CLOCK_MONOTONIC": 4}, None),
        ("win32", {}, None),
    ],
)
def test_the_clock_goes_on_while_the_machine_sleeps_where_the_system_has_one(
    monkeypatch: pytest.MonkeyPatch, platform: str, clocks: dict[str, int], asked: int | None
) -> None:
    """``time.monotonic`` stands still meanwhile, on Linux and on macOS."""
    # A module of the test's own: threads that still run in this process need the real one.
    fake = ModuleType("time")
    vars(fake).update(clocks, clock_gettime=lambda clock: ("gettime", clock), monotonic=lambda: ("monotonic", None))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", platform)
        patch.setitem(sys.modules, "time", fake)
        loaded: dict[str, Any] = runpy.run_path(ticks.__file__ or "")
        found = loaded["tick"]()
    assert found == (("monotonic", None) if asked is None else ("gettime", asked))
