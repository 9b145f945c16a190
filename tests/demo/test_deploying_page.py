"""The page *Deploying* is true: its commands serve a project, and its Compose file holds together."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.demo.shop import eventually
from tests.support.documents import ROOT, blocks, read

PAGE = "docs/how-to/deploying.md"
SETTINGS = """
from pathlib import Path
BASE_DIR = Path(__file__).resolve().parent
SECRET_KEY = "only-for-tests-" + "x" * 50
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
ROOT_URLCONF = "urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = ["goscope_django"]
CACHES = {"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}}
"""
URLS = """
import os, threading, time
from django.core.cache import cache
from django.http import JsonResponse
from django.urls import path
from goscope_django.decorators import idempotent, single_flight
from goscope_django.locks import lock

def count(request):
    cache.add("count", 0)
    with lock("stock", timeout=1, blocking_timeout=30) as handle:
        time.sleep(0.02)
        return JsonResponse({"count": cache.incr("count"), "pid": os.getpid(), "token": handle.token})

def long(request):
    with lock("long", timeout=1) as handle:
        time.sleep(2.5)
        handle.ensure_held()
    return JsonResponse({"held": True})

@single_flight()
def report(request):
    time.sleep(1)
    return JsonResponse({"by": os.getpid(), "at": time.time()})

@idempotent(required=True)
def pay(request):
    time.sleep(0.3)
    return JsonResponse({"paid": 10}, status=201)

urlpatterns = [path("count", count), path("long", long), path("report", report), path("pay", pay)]
"""
SERVED = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
from django.core.{kind} import get_{kind}_application
application = get_{kind}_application()
"""
# A project that uses the store while it is loaded: with a fork after that, no worker may use what was opened here.
EARLY = """
from django.core.cache import cache
cache.set("loaded-by", os.getpid())
"""


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", read(PAGE), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in fenced("console") for line in block.splitlines()]


def project(folder: Path, *, early: bool = True) -> None:
    settings = [SETTINGS]
    for name, code in blocks(PAGE):
        assert name, f"a block that names no file is not run:\n{code}"
        if name == "settings.py":
            settings.append(code)
        else:
            (folder / name).write_text(code)
    (folder / "settings.py").write_text("\n".join(settings))
    (folder / "urls.py").write_text(URLS)
    for kind in "wsgi", "asgi":
        (folder / f"{kind}.py").write_text(SERVED.format(kind=kind) + (EARLY if early else ""))


@contextmanager
def served(folder: Path, mongo_url: str, command: list[str], port: int) -> Iterator[httpx.Client]:
    """What ``command`` serves; at the end it must go in order on SIGTERM, and must not have complained."""
    log = folder / "log"
    environ = {**os.environ, "GOSCOPE_URL": mongo_url, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    environ.pop("DJANGO_SETTINGS_MODULE", None)
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=folder, env=environ, stdout=output, stderr=output) as one,
    ):
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:

                def answers() -> bool:
                    assert one.poll() is None, log.read_text()
                    try:
                        return client.get("/count").status_code == 200
                    except httpx.TransportError:
                        return False

                eventually(answers)
                yield client
            one.send_signal(signal.SIGTERM)
            assert one.wait(30) == 0, log.read_text()
        finally:
            if one.poll() is None:
                one.kill()
    assert not re.search(r"Traceback|Error|Exception", log.read_text()), log.read_text()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def works(client: httpx.Client) -> None:
    """Every feature on this page's list, asked for by many at once."""
    seen: list[dict[str, Any]] = []
    with ThreadPoolExecutor(8) as pool:

        def both() -> bool:
            # A kept connection would go to the same worker for ever.
            found = list(pool.map(lambda _: client.get("/count", headers={"Connection": "close"}), range(8)))
            assert {one.status_code for one in found} == {200}
            seen.extend(one.json() for one in found)
            return len({one["pid"] for one in seen}) == 2

        eventually(both)
        assert len({one["count"] for one in seen}) == len(seen) == len({one["token"] for one in seen})
        reports = list(pool.map(lambda _: client.get("/report"), range(6)))
        assert sorted(one.headers["X-Single-Flight"] for one in reports) == [*["follower"] * 5, "leader"]
        assert len({one.text for one in reports}) == 1
        headers = {"Idempotency-Key": "k"}
        paid = list(pool.map(lambda _: client.post("/pay", headers=headers), range(4)))
        assert sorted(one.status_code for one in paid) == [201, 409, 409, 409]
        assert client.post("/pay", headers=headers).headers["Idempotent-Replayed"] == "true"
        assert client.get("/long").json() == {"held": True}


@pytest.mark.fleet
@pytest.mark.slow
@pytest.mark.parametrize("number", range(5), ids=lambda number: commands()[number])
def test_the_command_serves(number: int, tmp_path: Path, mongo_url: str) -> None:
    line = commands()[number]
    program, *options = shlex.split(line)
    if "gevent" in line and find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    project(tmp_path, early=not ("gevent" in line and "--preload" in line))  # the page says what would be printed
    port = free_port()
    options = [f"127.0.0.1:{port}" if one == "0.0.0.0:8000" else one for one in options]
    options = ["127.0.0.1" if one == "0.0.0.0" else str(port) if one == "8000" else one for one in options]
    with served(tmp_path, mongo_url, [sys.executable, "-m", program, *options], port) as client:
        works(client)


UWSGI: dict[str, dict[str, str | None]] = {
    "as it stands there": {},
    "without Python's hooks": {"py-call-uwsgi-fork-hooks": None},
    "each worker loads the project": {"py-call-uwsgi-fork-hooks": None, "lazy-apps": "true"},
    "gevent": {
        **dict.fromkeys(("threads", "enable-threads", "py-call-uwsgi-fork-hooks")),
        "gevent": "50",
        "gevent-early-monkey-patch": "true",
    },
}


@pytest.mark.fleet
@pytest.mark.slow
@pytest.mark.parametrize("changed", UWSGI.values(), ids=UWSGI)
def test_uwsgi_serves(changed: dict[str, str | None], tmp_path: Path, mongo_url: str) -> None:
    program = Path(sys.executable).with_name("uwsgi")
    if not program.exists() or ("gevent" in changed and find_spec("gevent") is None):
        pytest.skip("uWSGI or gevent is not installed")
    project(tmp_path)
    port = free_port()
    options = configparser.ConfigParser()
    options.read_string(fenced("ini")[0])
    section = options["uwsgi"]
    assert section["http-socket"] == "0.0.0.0:8000"
    section["http-socket"] = f"127.0.0.1:{port}"
    for name, value in changed.items():
        if value is None:
            del section[name]
        else:
            section[name] = value
    with (tmp_path / "uwsgi.ini").open("w") as file:
        options.write(file)
    with served(tmp_path, mongo_url, [str(program), "--ini", "uwsgi.ini"], port) as client:
        works(client)


def test_the_compose_file_holds_together() -> None:
    (text,) = fenced("yaml")
    found = yaml.safe_load(text)
    services = found["services"]
    assert set(services) == {"mongo", "broker", "setup", "web", "worker", "beat"}
    assert set(found["volumes"]) == {one.partition(":")[0] for one in services["mongo"]["volumes"]}
    for name, one in services.items():
        assert ("image" in one) != ("build" in one), name
        for other, how in one.get("depends_on", {}).items():
            condition = how["condition"]
            assert (condition == "service_healthy") == ("healthcheck" in services[other]), (name, other)
    ours = [one for one in services.values() if "build" in one]
    environment = ours[0]["environment"]
    assert all(one["environment"] == environment for one in ours)
    asked = set(re.findall(r'environ\.get\("(\w+)"', read(PAGE) + read("docs/how-to/celery.md"))) - {"RESULT_BACKEND"}
    assert asked | {"DJANGO_SETTINGS_MODULE"} == set(environment)
    # The replica set's name and its member are those that the URL names.
    url = httpx.URL(environment["GOSCOPE_URL"])
    assert services["mongo"]["command"][1:3] == ["--replSet", url.params["replicaSet"]]
    script = services["mongo"]["healthcheck"]["test"][-1]
    assert f"_id: '{url.params['replicaSet']}'" in script and f"host: '{url.host}:{url.port}'" in script
    assert httpx.URL(environment["BROKER_URL"]).host in services
    # Commands are lists, so that the program itself gets the signal; two web processes; the worker has time to end.
    assert all(isinstance(services[name]["command"], list) for name in ("web", "worker", "beat"))
    assert shlex.join(services["web"]["command"]) in commands()
    assert {"worker", "web"} == {name for name, one in services.items() if "stop_grace_period" in one}


def test_the_images_commands_are_there() -> None:
    (text,) = fenced("dockerfile")
    assert [line.partition(" ")[0] for line in text.splitlines()] == [
        *("FROM", "WORKDIR", "ENV", "COPY", "RUN", "COPY", "USER")
    ]
