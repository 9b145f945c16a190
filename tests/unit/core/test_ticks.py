"""Which clock counts durations, on each system."""

from __future__ import annotations

import runpy
import sys
import time
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
    with monkeypatch.context() as patch:
        for name in ("CLOCK_MONOTONIC", "CLOCK_BOOTTIME"):
            patch.delattr(time, name, raising=False)
        for name, number in clocks.items():
            patch.setattr(time, name, number, raising=False)
        patch.setattr(sys, "platform", platform)
        patch.setattr(time, "clock_gettime", lambda clock: ("gettime", clock), raising=False)
        patch.setattr(time, "monotonic", lambda: ("monotonic", None))
        loaded: dict[str, Any] = runpy.run_path(ticks.__file__ or "")
        found = loaded["tick"]()
    assert found == (("monotonic", None) if asked is None else ("gettime", asked))
