"""Runs a project's commands as an operator does: in a shell, with the exit code that the shell sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Its output, which is exactly one JSON document."""
        found: dict[str, Any] = json.loads(self.out)
        return found


def environment(url: str, **more: Any) -> dict[str, str]:
    """The environment of a process of the project on ``url``. ``goscope`` and ``cache`` are more settings."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COLUMNS", "DJANGO"))},
        "PYTHONPATH": str(ROOT),
        "DJANGO_SETTINGS_MODULE": "tests.scripts.operator_settings",
        "OPERATED_URL": url,
        **{f"OPERATED_{name.upper()}": json.dumps(value) for name, value in more.items()},
    }


def start(url: str, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    """Start a command, with pipes."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "django", *arguments],
        cwd=ROOT,
        env=environment(url, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def manage(url: str, *arguments: str, stdin: str | None = None, **more: Any) -> Ended:
    """Run a command to its end, without a terminal."""
    process = subprocess.run(
        [sys.executable, "-W", "error", "-m", "django", *arguments],
        cwd=ROOT,
        env=environment(url, **more),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(process.returncode, process.stdout, process.stderr)


def script(url: str, text: str, **more: Any) -> Ended:
    """Run Python in a process of the project, after ``django.setup()``."""
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import django\ndjango.setup()\n{text}"],
        cwd=ROOT,
        env=environment(url, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(process.returncode, process.stdout, process.stderr)


def start_script(url: str, text: str, **more: Any) -> subprocess.Popen[str]:
    """Start Python in a process of the project, with pipes."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", f"import django\ndjango.setup()\n{text}"],
        cwd=ROOT,
        env=environment(url, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
