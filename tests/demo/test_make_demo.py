"""``make demo`` as a newcomer runs it: from the tracked files alone, with an empty home."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from goscope_django.mongodb import embedded
from tests.demo.shop import ROOT, answers, eventually
from tests.support.mongod import children_of, parent_of, process_exists

pytestmark = [pytest.mark.real, pytest.mark.fleet, pytest.mark.slow, pytest.mark.timeout(900)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files as they are now."""
    if not (ROOT / ".git").exists() or shutil.which("make") is None:
        pytest.skip("needs a git checkout and make")
    place = tmp_path_factory.mktemp("demo")
    (place / "home").mkdir()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            target = place / "clone" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    return place / "clone"


@contextmanager
def demo(clone: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """``make demo`` when its start page is there, and that page's address. Nothing of it is left afterwards."""
    kept = ("PATH", "LANG", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "PIP_CACHE_DIR", "SSL_CERT_FILE", "PYENV_ROOT")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment["HOME"] = str(clone.parent / "home")
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "demo", f"PORT={port}"],
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def opened() -> bool:
        assert process.poll() is None, log.read_text()
        return answers(url)

    try:
        eventually(opened, 600)
        yield process, url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        embedded.stop(clone / "demo-data", timeout=0)


def test_make_demo_serves_the_shop_and_ctrl_c_ends_everything(clone: Path, tmp_path: Path) -> None:
    log = tmp_path / "make.log"
    with demo(clone, log) as (process, url):
        assert url in log.read_text()
        assert "Many processes, one shop" in httpx.get(url).text
        assert embedded.status(clone / "demo-data").running
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
        process.wait(60)
        assert not embedded.status(clone / "demo-data").running, "mongod outlived its last user"
    assert "Traceback" not in log.read_text()
    assert "with the password " in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("victim", ["make", "python", "both"])
def test_no_mongod_is_left_however_the_demo_is_killed(
    clone: Path, tmp_path: Path, number: signal.Signals, victim: str
) -> None:
    folder = clone / "demo-data"
    with demo(clone, tmp_path / "make.log") as (process, _):
        mongod = embedded.status(folder).pid
        assert mongod is not None
        keeper = parent_of(mongod)
        (python,) = children_of(process.pid)
        if victim in ("make", "both"):
            process.send_signal(number)
        if victim in ("python", "both"):
            with suppress(ProcessLookupError):
                os.kill(python, number)
        eventually(lambda: not embedded.status(folder).running, 60)
        process.wait(60)
        eventually(lambda: not any(map(process_exists, (mongod, keeper, python))))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("victim", ["mongod", "keeper"])
def test_the_demo_ends_all_of_it_also_when_its_server_was_killed(
    clone: Path, tmp_path: Path, number: signal.Signals, victim: str
) -> None:
    folder = clone / "demo-data"
    with demo(clone, tmp_path / "make.log") as (process, url):
        first = embedded.status(folder).pid
        assert first is not None
        os.kill(first if victim == "mongod" else parent_of(first), number)
        if number == signal.SIGKILL:  # it died: the demo starts it again, and goes on
            eventually(lambda: embedded.status(folder).pid not in (None, first))
            eventually(lambda: answers(url))
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        eventually(lambda: not embedded.status(folder).running, 60)
