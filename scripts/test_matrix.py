#!/usr/bin/env python3
"""The quick tests on every supported Python and Django: ``make test-matrix``, or ``scripts/test_matrix.py -- -k lock``.

Each combination has its own virtual environment in ``.matrix``, which is kept, and made anew when ``setup.py`` has
changed. A Python that this machine does not have is reported and not counted as a failure. What follows ``--`` goes to
pytest. Exit code 1 if any combination failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".matrix"
EXTRAS = "test,embedded,demo,health,prometheus"
# Django 6.0 and later need Python 3.12.
SUPPORTED = (
    "3.11-5.2",
    "3.12-5.2",
    "3.12-6.0",
    "3.12-6.1",
    "3.13-5.2",
    "3.13-6.0",
    "3.13-6.1",
    "3.14-5.2",
    "3.14-6.0",
    "3.14-6.1",
)
# Not several processes, browsers and wheels: they are slow and depend little on the version.
QUICK = (
    *("--ignore=tests/fleet", "--ignore=tests/dashboard", "--ignore=tests/packaging"),
    *("-m", "not fleet and not slow"),
)


@dataclass(frozen=True)
class Combination:
    """One Python with one Django."""

    python: str
    django: str

    @property
    def environment(self) -> Path:
        return FOLDER / f"{self.python}-{self.django}"

    @property
    def interpreter(self) -> str:
        return str(self.environment / "bin" / "python")

    @property
    def log(self) -> Path:
        return FOLDER / f"{self.python}-{self.django}.log"


@dataclass(frozen=True)
class Result:
    """What came of a combination; ``ok`` also if it could not be tried."""

    ok: bool
    text: str


def candidates(version: str) -> Iterator[Path]:
    """Where a Python may be. pyenv first: its shims answer to ``python3.12`` even if that version is switched off."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    found = shutil.which(f"python{version}")
    if found:
        yield Path(found)


def find_python(version: str) -> Path | None:
    """The first candidate that runs, and is of that version."""
    question = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in candidates(version):
        try:
            done = subprocess.run([candidate, "-c", question], capture_output=True, text=True, check=False)
        except OSError:
            continue
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None


def run(command: list[str], log: Path, *, fresh: bool) -> bool:
    """Run ``command`` with its output in ``log``; whether it succeeded."""
    with log.open("w" if fresh else "a", encoding="utf-8") as output:
        return subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, check=False).returncode == 0


def prepare(one: Combination, python: Path) -> bool:
    """Make the environment, unless it is there and newer than ``setup.py``; whether it can be used."""
    mark = one.environment / ".installed"
    if mark.exists() and mark.stat().st_mtime >= (ROOT / "setup.py").stat().st_mtime:
        return True
    pip = [one.interpreter, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "install", "--editable", f".[{EXTRAS}]", f"Django~={one.django}.0"]
    if not run([str(python), "-m", "venv", "--clear", str(one.environment)], one.log, fresh=True):
        return False
    if not run(install, one.log, fresh=False):
        return False
    mark.touch()
    return True


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip("= ") if lines else ""


def test(one: Combination, workers: str, arguments: list[str]) -> Result:
    """The quick tests of one combination."""
    python = find_python(one.python)
    if python is None:
        return Result(ok=True, text=f"not run: no Python {one.python} here")
    print(f"Python {one.python}, Django {one.django} ...", flush=True)
    if not prepare(one, python):
        return Result(ok=False, text=f"FAILED to install, see {one.log.relative_to(ROOT)}")
    pytest = [one.interpreter, "-m", "pytest", "-q", "-n", workers, "--dist", "loadfile"]
    if run([*pytest, *QUICK, *arguments], one.log, fresh=True):
        return Result(ok=True, text=f"ok {last_line(one.log)}")
    return Result(ok=False, text=f"FAILED, see {one.log.relative_to(ROOT)}: {last_line(one.log)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="The quick tests on every supported Python and Django.")
    parser.add_argument("--only", nargs="+", metavar="PYTHON-DJANGO", default=SUPPORTED, help="such as 3.12-6.0")
    parser.add_argument("--workers", default="auto", help="processes for pytest (default: one for each core)")
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="for pytest")
    options = parser.parse_args()
    unknown = [name for name in options.only if name not in SUPPORTED]
    if unknown:
        parser.error(f"{', '.join(unknown)}: not among {', '.join(SUPPORTED)}")
    FOLDER.mkdir(exist_ok=True)
    combinations = [Combination(*name.split("-")) for name in options.only]
    results = [test(one, options.workers, options.arguments) for one in combinations]
    print(f"\n{'Python':8}{'Django':8}Result")
    for one, result in zip(combinations, results, strict=True):
        print(f"{one.python:8}{one.django:8}{result.text}")
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
