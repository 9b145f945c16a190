"""The JSON Schema files of the reference: they are what the code makes of itself, and real output keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from typing import Any

import jsonschema
import pytest
from django.core.management import call_command

from goscope_django import operations
from scripts import json_schemas
from tests.support.commands import on_server
from tests.support.operations import fill, own_store

SCHEMAS = json_schemas.schemas()


@pytest.fixture(autouse=True)
def store(mongo_url: str) -> Iterator[None]:
    with own_store(mongo_url):
        yield


def keeps(name: str, document: Any) -> None:
    jsonschema.Draft202012Validator(
        SCHEMAS[name], format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    ).validate(document)


def printed(*arguments: str) -> Any:
    out = StringIO()
    call_command(*arguments, "--json", stdout=out, stderr=StringIO())
    return json.loads(out.getvalue())


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_the_files_are_what_the_code_says(name: str) -> None:
    path = json_schemas.FOLDER / f"{name}.json"
    assert path.read_text(encoding="utf-8") == json_schemas.text(SCHEMAS[name]), "run scripts/json_schemas.py"
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])


def test_the_state_of_a_busy_store() -> None:
    fill(locks=3, circuits=6, tasks=8, flights=2, records=4)
    operations.open_circuit("c0000", reason="a drill")
    keeps("state", operations.state().as_json())
    keeps("state", json.loads(json.dumps(printed("goscope_status"))))


def test_the_state_while_the_server_is_away() -> None:
    with on_server("mongodb://127.0.0.1:1/never?serverSelectionTimeoutMS=50"):
        found = operations.state().as_json()
        assert found["reachable"] is False
        keeps("state", found)


def test_lists_and_actions() -> None:
    fill(locks=3, circuits=6, tasks=8, flights=2, records=4)
    for command in ("lock", "circuit", "checkpoint", "idempotency"):
        keeps(f"{command}-list", printed(f"goscope_{command}", "list"))
    keeps("done", printed("goscope_lock", "release", "l00000", "--no-input"))


def test_what_is_missing_or_of_another_type_is_found() -> None:
    document = operations.state().as_json()
    for broken in ({**document, "locks": None}, {**document, "took": "long"}, {**document, "schema_version": 0}):
        with pytest.raises(jsonschema.ValidationError):
            keeps("state", broken)
    del document["url"]
    with pytest.raises(jsonschema.ValidationError):
        keeps("state", document)
