"""Locks before a router that does not route an upsert without its shard key, as those before MongoDB 8."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo.errors import OperationFailure

from goscope_django.core.flow import Command, Query, run
from goscope_django.mongodb.document.clock import ServerClock
from goscope_django.mongodb.document.failures import NO_CLUSTER_TIME, NO_SHARD_KEY
from goscope_django.mongodb.locks.flows import LockFlows

LOST = "Query for sharded findAndModify must contain the shard key"


class Router:
    """Answers like a router whose collection is sharded by ``key``, or refuses by ``code`` what goes by ``_id``."""

    def __init__(self, code: int = 61) -> None:
        self.code = code
        self.tests: list[dict[str, Any]] = []

    def __call__(self, query: Command[Any]) -> Any:
        assert isinstance(query, Query)
        test = query.args[0]
        self.tests.append({name: value for name, value in test.items() if name != "$expr"})
        if "key" not in test:
            raise OperationFailure(LOST, self.code, {"code": self.code, "errmsg": LOST})
        found = {"_id": test["key"], "key": test["key"], "claim": "c", "token": 1, "createdAt": datetime.now(UTC)}
        return (found, None) if query.method == "upserted" else found


@pytest.mark.parametrize("code", sorted(NO_SHARD_KEY))
def test_one_attempt_teaches_it(code: int) -> None:
    clock, flows, router = ServerClock(), LockFlows(""), Router(code)
    for _ in range(2):
        assert run(flows.acquire(clock, "a", "me", "c", 1_000), router)
    assert router.tests == [{"_id": "lock:a"}, {"key": "lock:a"}, {"key": "lock:a"}]
    router.tests.clear()
    run(flows.held(clock, "a", "c", "lock:a"), router)
    assert router.tests == [{"key": "lock:a", "claim": "c"}], "what is known by _id is asked for by key as well"


@pytest.mark.parametrize("code", sorted(NO_CLUSTER_TIME))
def test_a_server_without_cluster_time_is_no_router(code: int) -> None:
    clock, flows, router = ServerClock(), LockFlows(""), Router(code)
    assert run(flows.acquire(clock, "a", "me", "c", 1_000), router)
    assert clock.by_id


def test_another_refusal_is_an_error() -> None:
    clock, flows, router = ServerClock(), LockFlows(""), Router(13)
    with pytest.raises(OperationFailure, match=LOST):
        run(flows.acquire(clock, "a", "me", "c", 1_000), router)
    assert len(router.tests) == 1 and clock.by_id
