#!/usr/bin/env python3
"""``make release-check``: builds what would be published, and tries it as a user would.

In ``dist/`` are afterwards the wheel, the sdist, their SHA-256 sums and a bill of materials (CycloneDX). Both are
installed in empty environments, on each supported Python that this machine has, and a project is checked with them.
Exit code 1 with the reason if anything is not as it should be.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
QUIET = ("--quiet", "--disable-pip-version-check")

TRIED = """
import django, goscope_django
from django.conf import settings
settings.configure(
    SECRET_KEY="x" * 50,
    INSTALLED_APPS=["goscope_django"],
    GOSCOPE={"URL": "mongodb://127.0.0.1:9/x", "CONNECT_ON_READY": False},
    CACHES={"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}},
)
django.setup()
from django.core.management import call_command
call_command("check")
from goscope_django.decorators import circuit_breaker, idempotent, locked, single_flight
print(goscope_django.__version__)
"""


class Failed(Exception):
    """Something is not as it should be."""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command, which must succeed, without this repository on its path; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DJANGO"))}
    done = subprocess.run(
        [str(one) for one in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(
            f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.stdout


def build() -> list[Path]:
    """Build both distributions from the files that are under version control."""
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, source / name)
        run(sys.executable, "-m", "build", "--outdir", DIST, source, cwd=source)
    found = sorted(DIST.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *found)
    return found


def pythons() -> list[str]:
    """The supported Pythons of this machine."""
    found = []
    for wanted in PYTHONS:
        pyenv = sorted(Path.home().glob(f".pyenv/versions/{wanted}.*/bin/python"))
        place = str(pyenv[-1]) if pyenv else shutil.which(f"python{wanted}")
        if place:
            found.append(place)
        else:
            print(f"Python {wanted}: not on this machine, not tried")
    return found


def install(python: str, distribution: Path, folder: Path) -> Path:
    """Install ``distribution`` in an empty environment and use it; return that environment's Python."""
    run(python, "-m", "venv", folder)
    inside = folder / "bin" / "python"
    run(inside, "-m", "pip", *QUIET, "install", distribution)
    printed = run(inside, "-W", "error", "-c", TRIED, cwd=folder).split()
    if printed[-1] not in distribution.name:
        raise Failed(f"{distribution.name} says that it is {printed[-1]}")
    return inside


def materials(inside: Path, folder: Path) -> Path:
    """Write what the installation of ``inside`` consists of, in CycloneDX's format, by that project's own tool."""
    path = DIST / "goscope-django.cdx.json"
    of_ours = run(inside, "-c", "import goscope_django; print(goscope_django.__version__)").strip()
    root = folder / "pyproject.toml"
    root.write_text(f'[project]\nname = "goscope-django"\nversion = "{of_ours}"\n', encoding="utf-8")
    run(inside, "-m", "pip", *QUIET, "uninstall", "--yes", "setuptools", "pip")
    tool = folder / "tool"
    run(sys.executable, "-m", "venv", tool)
    run(tool / "bin" / "python", "-m", "pip", *QUIET, "install", "cyclonedx-bom>=7,<8")
    run(
        *(tool / "bin" / "cyclonedx-py", "environment", "--pyproject", root, "--mc-type", "library"),
        *("--output-reproducible", "--output-file", path, inside),
    )
    return path


def main() -> int:
    """Check all of it; return the exit code."""
    try:
        found = build()
        wheel = next(path for path in found if path.suffix == ".whl")
        with tempfile.TemporaryDirectory() as folder:
            for python in pythons():
                for path in found:
                    inside = install(python, path, Path(tempfile.mkdtemp(dir=folder)))
                    print(f"{path.name} works on {run(inside, '--version').strip()}")
            inside = install(sys.executable, wheel, Path(tempfile.mkdtemp(dir=folder)))
            bill = materials(inside, Path(tempfile.mkdtemp(dir=folder)))
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in [*found, bill])
    (DIST / "SHA256SUMS").write_text(sums, encoding="utf-8")
    print(sums, end="")
    print(f"twine {version('twine')} is content; the bill of materials is {bill.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
