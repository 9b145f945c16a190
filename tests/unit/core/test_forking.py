"""What is called around a fork, and where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from goscope_django.core.forking import at_fork

SCRIPT = """
import os
from goscope_django.core.forking import at_fork

def say(word):
    return lambda: os.write(1, word + b"\\n")  # in one piece, whoever else writes

at_fork(before=say(b"before"), parent=say(b"parent"), child=say(b"child"))
at_fork(child=say(b"another child"))
if os.fork() == 0:
    os._exit(0)
os.wait()
"""


def test_each_hook_is_called_on_its_side_of_the_fork() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    said = done.stdout.splitlines()
    assert said[0] == "before" and sorted(said[1:]) == ["another child", "child", "parent"]
    assert said.index("child") < said.index("another child")


def test_where_there_is_no_fork_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "register_at_fork")
    at_fork(child=lambda: pytest.fail("there is no child"))
