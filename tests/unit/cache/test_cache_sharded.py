"""The cache before a router that does not route an upsert without its shard key, as those before MongoDB 8."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo.errors import BulkWriteError, OperationFailure, WriteError

from goscope_django.core.flow import Command, Flow, Query, run
from goscope_django.mongodb.cache.flows import CacheFlows
from goscope_django.mongodb.codec import Codec
from goscope_django.mongodb.document.clock import ServerClock

LOST = "Failed to target upsert by query :: could not extract exact shard key"
WRITTEN = {"n": 1, "nModified": 0, "upserted": [{"index": 0, "_id": "k"}]}


class Router:
    """Answers like a router whose collection is sharded by ``key``."""

    def __init__(self, alone: type[OperationFailure] = WriteError) -> None:
        self.alone = alone
        self.clock = ServerClock()
        self.flows = CacheFlows(Codec())
        self.tests: list[Any] = []

    def run(self, flow: Flow[Any]) -> Any:
        return run(flow, self._answer)

    def _answer(self, query: Command[Any]) -> Any:
        assert isinstance(query, Query)
        if query.method == "modify":  # brings along what was there
            self.tests.append(query.args[0])
            if "key" not in query.args[0]:
                raise OperationFailure(LOST, 61, {"code": 61, "errmsg": LOST})
            return None
        if query.method == "update":
            self.tests.append(query.args[0])
            if "key" not in query.args[0]:
                raise self.alone(LOST, 61, {"code": 61, "errmsg": LOST})
            return WRITTEN
        if query.method == "time":
            return None
        assert query.method == "upsert_many"
        tests = [test for test, _ in query.args[0]]
        self.tests.append(tests)
        errors = [{"index": at, "code": 61, "errmsg": LOST} for at, test in enumerate(tests) if "key" not in test]
        if errors:
            raise BulkWriteError({"writeErrors": errors, "writeConcernErrors": []})
        return []


@pytest.fixture(params=[WriteError, OperationFailure])
def router(request: pytest.FixtureRequest) -> Router:
    return Router(request.param)


def test_one_attempt_teaches_it(router: Router) -> None:
    for number in range(2):
        router.run(router.flows.set(router.clock, f"k{number}", {"a": 1}, 1_000))
        assert router.run(router.flows.add(router.clock, f"k{number}", 1, None)) is True
    assert router.tests == [{"_id": "k0"}, {"key": "k0"}, {"key": "k0"}, {"key": "k1"}, {"key": "k1"}]


def test_so_it_is_with_many(router: Router) -> None:
    for _ in range(2):
        assert router.run(router.flows.set_many(router.clock, {"a": 1, "b": 2}, None)) == []
    by_key = [{"key": "a"}, {"key": "b"}]
    assert router.tests == [[{"_id": "a"}, {"_id": "b"}], by_key, by_key]


def test_another_refusal_is_an_error(router: Router) -> None:
    def refuse(query: Command[Any]) -> Any:
        raise WriteError("no", 13)

    for flow in (
        router.flows.set(router.clock, "k", 1, None),
        router.flows.set_many(router.clock, {"k": 1}, None),
    ):
        with pytest.raises(OperationFailure, match="no"):
            run(flow, refuse)
    assert router.clock.by_id
