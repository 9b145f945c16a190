"""``make demo`` as a newcomer runs it: from the tracked files alone, with an empty home."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from goscope_django.mongodb import embedded
from tests.demo.shop import ROOT, answers, eventually

pytestmark = [pytest.mark.real, pytest.mark.fleet, pytest.mark.slow, pytest.mark.timeout(900)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the tracked files as they are now."""
    if not (ROOT / ".git").exists() or shutil.which("make") is None:
        pytest.skip("needs a git checkout and make")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            target = tmp_path / "clone" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    return tmp_path / "clone"


def test_make_demo_serves_the_shop_and_ctrl_c_ends_everything(clone: Path, tmp_path: Path) -> None:
    kept = ("PATH", "LANG", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "PIP_CACHE_DIR", "SSL_CERT_FILE", "PYENV_ROOT")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    (tmp_path / "home").mkdir()
    environment["HOME"] = str(tmp_path / "home")
    port, log = free_port(), tmp_path / "make.log"
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
    try:

        def opened() -> bool:
            assert process.poll() is None, log.read_text()
            return answers(url)

        eventually(opened, 600)
        assert url in log.read_text()
        assert "Many processes, one shop" in httpx.get(url).text
        assert embedded.status(clone / "demo-data").running
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
        process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        running = embedded.stop(clone / "demo-data", timeout=0)
    assert not running, "mongod outlived its last user"
    assert "Traceback" not in log.read_text()
    assert "with the password " in log.read_text()
