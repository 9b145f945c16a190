"""How indexes that were found are told apart, what is made, and what an error says."""

from __future__ import annotations

from typing import Any

import mongomock
import pytest
from pymongo.errors import OperationFailure

from goscope_django.core.flow import Command, Query, run
from goscope_django.exceptions import IndexConflict
from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb.document.clock import LocalClock
from goscope_django.mongodb.document.indexes import INDEXES, IndexSpec, check, ensure

OURS = {"v": 2, "key": [("key", 1)], "unique": True}
EXPIRY = {"v": 2, "key": [("expiresAt", 1.0)], "expireAfterSeconds": 0}
ID = {"v": 2, "key": [("_id", 1)]}


class Server:
    """Answers ``index_information`` and remembers what it was told to do."""

    def __init__(self, *, created: Exception | None = None, **existing: Any) -> None:
        self.existing = {"_id_": ID, **existing}
        self.created = created
        self.done: list[tuple[str, Any, Any]] = []

    def __call__(self, command: Command[Any]) -> Any:
        assert isinstance(command, Query)
        if command.method == "index_information":
            return self.existing
        self.done.append((command.method, command.args[0], command.kwargs))
        if self.created is not None and command.method == "create_index":
            raise self.created
        return None

    def states(self, collection: str = "go_goscope_locks") -> dict[str, str]:
        found = run(check(LocalClock(), collection=collection), self)
        return {one.spec.name: one.state for one in found}

    def ensure(self, *, repair: bool = False) -> None:
        run(ensure(LocalClock(), repair=repair, collection="go_goscope_locks"), self)


def test_what_is_there_is_present_whatever_its_name() -> None:
    assert Server(key_1=OURS, anything=EXPIRY).states() == {"key_1": "present", "expiresAt_1": "present"}
    assert Server().states() == {"key_1": "missing", "expiresAt_1": "missing"}


@pytest.mark.parametrize(
    "option", [{"unique": False}, {"sparse": True}, {"partialFilterExpression": {"a": 1}}], ids=str
)
def test_other_options_are_a_difference(option: dict[str, Any]) -> None:
    assert Server(key_1={**OURS, **option}).states()["key_1"] == "different"


def test_the_same_keys_in_another_order_or_direction_are_another_index() -> None:
    pair = {"v": 2, "key": [("sequence", 1), ("taskId", 1)], "unique": True}
    assert Server(pair=pair).states("go_goscope_checkpoints")["taskId_1_sequence_1"] == "missing"


def test_indexes_beside_ours_are_no_difference() -> None:
    collated = {**OURS, "collation": {"locale": "de"}}
    assert Server(a=collated, key_1=OURS, z=EXPIRY).states() == {"key_1": "present", "expiresAt_1": "present"}
    words = {"v": 2, "key": [("_fts", "text"), ("_ftsx", 1)], "weights": {"key": 1}}
    assert Server(a={"v": 2, "key": [("key", "hashed")]}, b=words, key_1=OURS).states()["key_1"] == "present"
    assert Server(a={"v": 2, "key": [("key", "hashed")]}).states()["key_1"] == "missing"


def test_an_index_of_another_kind_under_our_name_is_a_difference() -> None:
    assert Server(key_1={"v": 2, "key": [("other", 1)]}).states()["key_1"] == "different"


def test_nothing_is_dropped_unasked_and_the_error_says_what_to_do() -> None:
    server = Server(key_1={"v": 2, "key": [("key", 1)], "sparse": True})
    with pytest.raises(IndexConflict) as caught:
        server.ensure()
    text = str(caught.value)
    for part in (
        "key_1",
        "go_goscope_locks",
        "{key: 1}, unique=True",
        "{key: 1}, sparse=True",
        "goscope_indexes ensure",
    ):
        assert part in text
    assert "--repair" in text
    assert server.done == [("create_index", [("expiresAt", 1)], {"expireAfterSeconds": 0})], "the rest was made"


def test_a_repair_drops_by_the_name_that_was_found() -> None:
    server = Server(odd={"v": 2, "key": [("key", 1)]}, expiresAt_1=EXPIRY)
    server.ensure(repair=True)
    assert server.done == [("drop_index", "odd", {}), ("create_index", [("key", 1)], {"unique": True})]


def test_what_is_there_is_not_made_again() -> None:
    server = Server(key_1=OURS, expiresAt_1=EXPIRY)
    server.ensure()
    assert server.done == []


@pytest.mark.parametrize("code", [85, 86])
def test_a_conflict_that_only_the_server_sees_is_one(code: int) -> None:
    with pytest.raises(IndexConflict, match="key_1 of go_goscope_locks"):
        Server(created=OperationFailure("Index with name: x already exists", code)).ensure()


def test_another_failure_stays_what_it_is() -> None:
    with pytest.raises(OperationFailure, match="not authorized"):
        Server(created=OperationFailure("not authorized", 13)).ensure()


def test_our_definitions() -> None:
    described = {f"{one.collection} {one}" for one in INDEXES}
    assert {
        "go_goscope_locks {key: 1}, unique=True",
        "go_goscope_locks {expiresAt: 1}, expireAfterSeconds=0",
        "go_goscope_circuit {key: 1}, unique=True",
        "go_goscope_cache {key: 1}, unique=True",
        "go_goscope_cache {expiresAt: 1}, expireAfterSeconds=0",
        "go_goscope_checkpoints {taskId: 1, sequence: 1}, unique=True",
        "go_goscope_checkpoints {taskId: 1}",
        "go_goscope_idempotency {key: 1}, unique=True",
        "go_goscope_idempotency {expiresAt: 1}, expireAfterSeconds=0",
    } <= described
    assert IndexSpec("c", (("a", 1), ("b", -1))).name == "a_1_b_-1"


def test_ensuring_twice_on_mongomock() -> None:
    adapter = MongoDBAdapter(mongomock.MongoClient()["test"])
    assert {one.state for one in adapter.ensure_indexes()} == {"missing"}
    assert {one.state for one in adapter.ensure_indexes()} == {"present"}
