"""The page *Celery and beat* is true: its project runs, and of two beats one beats."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.demo.shop import eventually
from tests.support.documents import ROOT, blocks

pytest.importorskip("celery")

PAGE = "docs/how-to/celery.md"
SETTINGS = """
from pathlib import Path
BASE_DIR = Path(__file__).resolve().parent
SECRET_KEY = "only-for-tests-" + "x" * 50
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = ["goscope_django", "shop"]
"""
MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
# What a reader would do next.
SCRIPT = """
import django, sys, time
django.setup()
from celery.contrib.testing.worker import start_worker
from goscope_django import runtime
from goscope_django.checkpoints import get_task
from goscope_django.locks import lock
from shop import tasks
from shop.celery import app

def errors():
    names = {}
    exec(compile(CODE, "celery.md", "exec"), names)
    return names["counted"]

assert app.conf.task_acks_late and app.conf.task_reject_on_worker_lost
with start_worker(app, perform_ping_check=False, pool="threads", concurrency=2, shutdown_timeout=20):
    assert errors() == "tea counted"
    with lock("stock:tea"):
        assert errors() == "somebody else counts (stock:tea)"
    assert [tasks.import_file.delay("a.csv").get(timeout=20) for _ in range(2)] == [1000, 1000]
    assert get_task("import:a.csv").attempt == 1
    sent = [tasks.nightly.delay().get(timeout=20) for _ in range(2)]
    assert sent[0] == sent[1] and sent[0].startswith("invoices of 2"), sent
    assert [one.state for one in runtime.adapter().idempotency.list()] == ["completed"]
    assert tasks.resume.delay().get(timeout=20) is None
"""


def project(folder: Path, mongo_url: str, every: float = 600) -> str:
    """The page's project in ``folder``; returns the code of the page that calls it."""
    shop = folder / "shop"
    commands = shop / "management" / "commands"
    commands.mkdir(parents=True)
    (shop / "__init__.py").write_text("from shop.celery import app\n")
    settings, calls = [SETTINGS], []
    for name, code in blocks(PAGE):
        if name == "settings.py":
            settings.append(code)
        elif name:
            ((commands if name == "beat.py" else shop) / name).write_text(code)
        else:
            calls.append(code)
    settings.append(f"GOSCOPE = {{'URL': {mongo_url!r}, 'KEY_PREFIX': {f'{folder.name}:'!r}}}")
    settings.append(f"CELERY_BEAT_SCHEDULE['resume']['schedule'] = {every}")
    (folder / "settings.py").write_text("\n".join(settings))
    (folder / "manage.py").write_text(MANAGE)
    (call,) = calls
    return call


def environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(folder), str(ROOT)])
    return {**os.environ, "DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def test_its_tasks_do_what_it_says(tmp_path: Path, mongo_url: str) -> None:
    (tmp_path / "script.py").write_text(f"CODE = {project(tmp_path, mongo_url)!r}\n{SCRIPT}")
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def beat(folder: Path, name: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """``manage.py beat``, each with a folder of its own for what it notes, as on machines of their own."""
    log, place = folder / f"{name}.log", folder / name
    place.mkdir()
    with (
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, str(folder / "manage.py"), "beat"],
            cwd=place,
            env=environment(folder),
            stdout=output,
            stderr=output,
            text=True,
        ) as process,
    ):
        try:
            yield process, log
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.fleet
@pytest.mark.slow
def test_of_two_beats_one_beats_and_the_other_takes_over(tmp_path: Path, mongo_url: str) -> None:
    project(tmp_path, mongo_url, every=0.2)

    def beats(log: Path) -> int:
        return log.read_text().count("Sending due task resume")

    with beat(tmp_path, "first") as (first, log), beat(tmp_path, "second") as (second, other):
        eventually(lambda: beats(log) + beats(other) >= 5)
        if not beats(log):
            first, second, log, other = second, first, other, log
        eventually(lambda: beats(log) >= 10)
        assert (beats(other), second.poll()) == (0, None), other.read_text()
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 0, log.read_text()
        sent = beats(log)
        eventually(lambda: beats(other) >= 3)
        assert beats(log) == sent
        second.send_signal(signal.SIGTERM)
        assert second.wait(20) == 0, other.read_text()
