"""The recipes: their pages show the project in ``examples/`` as it is, and that project's own tests pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml

from tests.support.documents import ROOT, read

EXAMPLES = ROOT / "examples"
PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "recipes").glob("*.md"))
# What every Django project has, and the tests, is not shown.
APART = {"__init__.py", "manage.py", "settings.py", "urls.py", "wsgi.py", "tests.py"}
_BLOCK = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shown(page: str) -> list[tuple[str, str]]:
    """``(file, text)`` of the blocks that name a file of ``examples/`` in their first line."""
    return _BLOCK.findall(read(page))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_the_files_as_they_are(page: str) -> None:
    assert shown(page)
    for name, text in shown(page):
        assert text == (EXAMPLES / name).read_text(encoding="utf-8"), f"copy examples/{name} into {page}"


def test_every_file_is_shown() -> None:
    names = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py") if path.name not in APART}
    names = {name for name in names if "/migrations/" not in name} | {"compose.yaml", "Dockerfile"}
    assert names == {name for page in PAGES for name, _ in shown(page)}


def django(*arguments: str, **environ: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "manage.py", *arguments],
        cwd=EXAMPLES,
        env={**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def number_of_tests() -> int:
    return sum(path.read_text(encoding="utf-8").count("    def test_") for path in EXAMPLES.rglob("tests.py"))


def test_their_tests_pass_in_memory() -> None:
    said = django("test")
    assert f"Ran {number_of_tests()} tests" in said
    assert find_spec("celery") is None or "skipped" not in said


def test_their_tests_pass_on_a_server(mongo_url: str) -> None:
    assert f"Ran {number_of_tests()} tests" in django("test", TEST_URL=mongo_url)


def test_the_project_has_its_migrations_and_no_problems(mongo_url: str) -> None:
    assert "No changes detected" in django("makemigrations", "--check", "--dry-run", GOSCOPE_URL=mongo_url)
    assert "no issues" in django("check", "--fail-level", "WARNING", GOSCOPE_URL=mongo_url)


def test_the_compose_file_holds_together() -> None:
    text = (EXAMPLES / "compose.yaml").read_text(encoding="utf-8")
    file = yaml.safe_load(text)
    services = file["services"]
    assert {"web-1", "web-2", "worker"} <= set(services)
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            healthy = how["condition"] == "service_healthy"
            assert "healthcheck" in services[needed] if healthy else needed == "setup", (name, needed)
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in file["volumes"]
        for used in service.get("environment", {}):
            # The servers' own variables apart, the project's settings read each.
            assert name == "postgres" or f'"{used}"' in (EXAMPLES / "settings.py").read_text(encoding="utf-8"), used
    ports = [port.partition(":")[0] for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == len(set(ports)) == 2
    hosts = [service["hostname"] for service in services.values() if "hostname" in service]
    assert hosts == ["web-1", "web-2", "worker"]
    # No secret stands in the file.
    assert not re.findall(r"(?:SECRET|PASSWORD)\w*: (?!\"?\$\{)", text)
    assert services["web-1"]["command"][:2] == ["gunicorn", "wsgi"] and (EXAMPLES / "wsgi.py").exists()
    assert services["worker"]["command"][2] == "send_messages"
    copied = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8")
    assert "COPY . ." in copied and all(word in copied for word in ("gunicorn", "psycopg", "celery"))


def test_the_project_is_not_in_what_is_released() -> None:
    assert "prune examples" in (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
