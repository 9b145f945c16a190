"""The workflows test what README and the package's metadata name: each Python and Django, and each MongoDB."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import yaml

from scripts import test_matrix
from tests.support.documents import ROOT, read

FOLDER = ROOT / ".github" / "workflows"
VERSION = r"\d+\.\d+"


def workflow(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def commands(job: Any) -> list[str]:
    return [line.strip() for step in job["steps"] if "run" in step for line in step["run"].splitlines()]


def classifiers(kind: str) -> set[str]:
    """The versions that setup.py's classifiers name of ``kind``, such as ``Framework :: Django``."""
    (call,) = [
        node
        for node in ast.walk(ast.parse(read("setup.py")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    ]
    named = ast.literal_eval(next(one.value for one in call.keywords if one.arg == "classifiers"))
    return {found[1] for one in named if (found := re.fullmatch(rf"{kind} :: ({VERSION})", one))}


def supported(row: str) -> list[str]:
    """The cells *tested on* and *expected to work on* of a row of README's table."""
    (found,) = re.findall(rf"^\| {row} \| (.*) \| (.*) \|$", read("README.md"), re.MULTILINE)
    return [re.sub(r"\([^()]*\)", "", cell) for cell in found]


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def spread(text: str, known: set[str]) -> set[str]:
    """The versions in ``text``; of a range such as ``3.11 to 3.13`` all that are known."""
    found = set(re.findall(VERSION, text))
    for first, last in re.findall(rf"({VERSION}) to ({VERSION})", text):
        found |= {one for one in known if number(first) <= number(one) <= number(last)}
    return found


def test_the_matrix_is_the_scripts() -> None:
    job = workflow("tests.yml")["jobs"]["matrix"]
    rows = job["strategy"]["matrix"]["include"]
    assert [f"{row['python']}-{row['django']}" for row in rows] == list(test_matrix.SUPPORTED)
    assert (
        "make test-matrix PYTHON=python${{ matrix.python }} MATRIX=${{ matrix.python }}-${{ matrix.django }}"
        in commands(job)
    )
    assert {row["python"] for row in rows} == classifiers("Programming Language :: Python")
    assert {row["django"] for row in rows} == classifiers("Framework :: Django")


def test_readme_names_the_versions_of_the_classifiers() -> None:
    tested, expected = supported("Python, Django")
    python, django = tested.split(";")
    known = classifiers("Programming Language :: Python")
    assert spread(python, known) | spread(expected, known) == known
    assert set(re.findall(VERSION, django)) == classifiers("Framework :: Django")


def test_every_server_that_readme_names_has_a_job() -> None:
    job = workflow("servers.yml")["jobs"]["mongodb"]
    servers = set(job["strategy"]["matrix"]["mongodb"])
    tested, expected = supported("MongoDB")
    assert set(re.findall(rf"\b{VERSION}(?!\.?\d)", expected)) == servers
    assert {one.rpartition(".")[0] for one in re.findall(rf"{VERSION}\.\d+", tested)} <= servers


def test_the_job_runs_all_tests_on_the_server_of_the_image() -> None:
    job = workflow("servers.yml")["jobs"]["mongodb"]
    said = commands(job)
    steps = [
        "docker create --name source mongo:${{ matrix.mongodb }}",
        'docker cp source:/usr/bin/mongod "$RUNNER_TEMP/mongod"',
        'echo "GOSCOPE_MONGOD=$RUNNER_TEMP/mongod" >> "$GITHUB_ENV"',
        "make test",
        "make test-mongodb",
    ]
    places = [said.index(step) for step in steps]
    assert places == sorted(places)
    assert any(re.search(r"GOSCOPE_MONGOD.*--version.*matrix\.mongodb", one) for one in said)


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_a_workflow_may_only_read_and_its_make_targets_exist(name: str) -> None:
    found = workflow(name)
    assert found["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for job in found["jobs"].values():
        assert job["timeout-minutes"] <= 60
        said = "\n".join(commands(job))
        assert set(re.findall(r"\bmake ([a-z-]+)", said)) <= targets
        assert all((ROOT / path).is_file() for path in re.findall(r"^(\.ci/\S+)", said, re.MULTILINE))
