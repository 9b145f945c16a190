"""What importing does: no Django below ``mongodb``, and no settings, sockets, threads or processes anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.architecture.source import ROOT, below, modules

# Loaded by Django, when it has its settings; the rest is imported by users, often from their settings module.
FACES = (
    "admin",
    "checks",
    "dashboard",
    "fencing.models",
    "management",
    "models",
    "templatetags",
    "testing",
    "urls",
    "views",
)

BLOCK_DJANGO = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"django", "asgiref", "rest_framework"}:
            raise ModuleNotFoundError(f"{name} is blocked here", name=name)

sys.meta_path.insert(0, Absent())
"""

WATCH = """
import sys, threading
import django  # its own imports are not ours to judge
import asyncio, socket, ssl

def refuse(event, args):
    if event in {"socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.fork", "os.system"}:
        raise RuntimeError(f"{event} while importing")

sys.addaudithook(refuse)
"""

# Everything is imported once as it is here, so that what others need of Unix is there. Then Unix is taken away.
ON_WINDOWS = """
import asyncio, importlib.abc, os, signal, socket, sys, time

ABSENT = {"fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty", "pty"}

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ABSENT:
            raise ModuleNotFoundError(f"{name} is not on Windows", name=name)

def take_unix_away():
    for name in list(sys.modules):
        if name in ABSENT or name.partition(".")[0] == "goscope_django":
            del sys.modules[name]
    sys.meta_path.insert(0, Absent())
    for module, prefixes in (
        (os, ("fork", "register_at_fork", "getuid", "geteuid", "getpgid", "killpg", "setsid", "getsid", "pidfd_open",
              "sched_", "wait3", "wait4", "environb", "uname", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC")),
        (signal, ("SIGKILL", "SIGHUP", "SIGCHLD", "SIGUSR", "SIGALRM", "SIGPIPE", "SIGXFSZ", "SIGSTOP", "SIGCONT",
                  "pthread_", "pidfd_", "sigtimedwait")),
        (socket, ("AF_UNIX",)),
        (time, ("CLOCK_", "clock_gettime")),
    ):
        for name in dir(module):
            if name.startswith(prefixes):
                delattr(module, name)
    sys.platform = "win32"
"""

VERDICT = """
assert threading.active_count() == 1, threading.enumerate()
from django.conf import settings
assert not settings.configured, "settings were read"
"""


def python(script: str) -> None:
    """Run ``script`` in a fresh interpreter that knows of no settings; a warning is an error."""
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def importing(names: list[str]) -> str:
    return f"import importlib\nfor name in {json.dumps(names)}:\n    importlib.import_module(name)\n"


def without_django() -> list[str]:
    inner = ("contracts", "exceptions", "core", "mongodb")
    return [module.name for module in modules() if module.inside.partition(".")[0] in inner]


def public() -> list[str]:
    return [module.name for module in modules() if not below(module.inside, *FACES)]


def test_the_store_imports_without_django() -> None:
    names = without_django()
    assert "goscope_django.mongodb" in names
    python(BLOCK_DJANGO + importing(names))


def test_the_block_on_django_works() -> None:
    with pytest.raises(AssertionError, match="is blocked here"):
        python(BLOCK_DJANGO + "import django.conf")


def test_importing_opens_nothing_and_reads_no_settings() -> None:
    python(WATCH + importing(public()) + VERDICT)


@pytest.mark.parametrize(
    "offence",
    [
        "socket.create_connection(('127.0.0.1', 1))",
        "from django.conf import settings; settings.configure()",
        "threading.Thread(target=threading.Event().wait, daemon=True).start()",
    ],
)
def test_the_watch_notices(offence: str) -> None:
    with pytest.raises(AssertionError):
        python(f"{WATCH}{offence}\n{VERDICT}")


def test_it_can_be_imported_on_windows() -> None:
    python(f"{ON_WINDOWS}{importing(public())}take_unix_away()\n{importing(public())}")


@pytest.mark.parametrize("offence", ["import fcntl", "import os; os.fork", "import socket; socket.AF_UNIX"])
def test_windows_is_noticed(offence: str) -> None:
    with pytest.raises(AssertionError):
        python(f"{ON_WINDOWS}take_unix_away()\n{offence}")
