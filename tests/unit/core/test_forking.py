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


UWSGI = """
import os, sys
from types import ModuleType

uwsgi = sys.modules["uwsgi"] = ModuleType("uwsgi")
uwsgi.worker_id = lambda: 0
if {before}:
    uwsgi.post_fork_hook = lambda: print("the project's", flush=True)
if {decorators}:
    decorators = sys.modules["uwsgidecorators"] = ModuleType("uwsgidecorators")
    decorators.postfork_chain = [lambda: print("a decorated one", flush=True)]

    def all_of_them():
        for one in decorators.postfork_chain:
            one()

    all_of_them.__module__ = "uwsgidecorators"
    if not {before}:
        uwsgi.post_fork_hook = all_of_them
from goscope_django.core.forking import at_fork

at_fork(child=lambda: print("child", flush=True))
at_fork(child=lambda: 1 / 0)
at_fork(child=lambda: print("another child", flush=True))
if {decorators}:
    uwsgi.post_fork_hook = all_of_them  # as the real one does where it is imported
fork = __import__("ctypes").CDLL(None).fork if {in_c} else os.fork
if fork() == 0:
    uwsgi.post_fork_hook()
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize("in_c", [True, False], ids=["in C", "by Python"])
@pytest.mark.parametrize("decorators", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_uwsgi_tells_a_process_that_it_forked_once(before: bool, decorators: bool, in_c: bool) -> None:
    script = UWSGI.format(before=before, decorators=decorators, in_c=in_c)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    others = [*(["the project's"] if before else []), *(["a decorated one"] if decorators else [])]
    assert done.stdout.splitlines() == ["child", "another child", *others]
    assert done.stderr.count("ZeroDivisionError") == 1
