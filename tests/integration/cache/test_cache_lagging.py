"""Reads from a secondary that lags (``readPreference`` in the URL): what is computed once stays computed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import caches
from pymongo import MongoClient

from goscope_django.mongodb.driver import client as clients
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import on_server
from tests.support.mongod import ReplicaSet, replica_set
from tests.support.own_fields import document, make_stale

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def members() -> Iterator[ReplicaSet]:
    """Two members. One has no vote, so the other is the majority; it is the only one that the cache reads from."""
    with replica_set(2, extra_args=("--setParameter", "enableTestCommands=1")) as found:
        with found.client() as client:
            config = client.admin.command("replSetGetConfig")["config"]
            config["version"] += 1
            config["members"][1] |= {"priority": 0, "votes": 0, "tags": {"lags": "yes"}}
            client.admin.command("replSetReconfig", config)
        yield found
        clients.close_all()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lag(members: ReplicaSet, mode: str) -> None:
    with MongoClient[Any]("127.0.0.1", members.ports[1], directConnection=True) as client:
        client.admin.command("configureFailPoint", "rsSyncApplyStop", mode=mode)


@pytest.fixture
def cache(members: ReplicaSet) -> Iterator[Any]:
    """A cache that reads from that member, which has the entry ``key`` (stale) and nothing later."""
    url = members.uri.replace("/?", "/lagging?") + "&w=1&readPreference=secondary&readPreferenceTags=lags:yes"
    lag(members, "off")
    with on_server(url):
        found: Any = caches["default"]
        found.clear()
        wait_for(lambda: document("key") is None)  # it still lags for a moment
        found.get_or_set("key", lambda: "old", 60, stale=60)
        make_stale("key")
        wait_for(lambda: document("key") == stale_one(members))
        lag(members, "alwaysOn")
        found.set("later", 1)
        time.sleep(0.1)
        assert found.get("later") is None, "the secondary was to lag"
        try:
            yield found
        finally:
            lag(members, "off")


def stale_one(members: ReplicaSet) -> Any:
    """The entry as the primary has it."""
    with members.client() as client:
        return client["lagging"]["go_goscope_cache"].find_one({"key": "cache::1:key"})


class Computed:
    """Computes, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> str:
        self.times += 1
        return f"new {self.times}"


def test_a_missing_value_that_another_one_has_computed_is_not_computed_again(cache: Any, drive: Drive) -> None:
    compute = Computed()
    assert [drive(cache, "get_or_set", "missing", compute, 60) for _ in range(3)] == ["new 1"] * 3
    assert cache.get("missing") is None, "the secondary was to lag"
    assert compute.times == 1


def test_a_stale_value_that_another_one_has_replaced_is_not_computed_again(cache: Any, drive: Drive) -> None:
    compute = Computed()
    assert [drive(cache, "get_or_set", "key", compute, 60, stale=60) for _ in range(3)] == ["new 1"] * 3
    assert compute.times == 1


def test_the_value_of_whoever_was_faster_is_what_all_get(cache: Any, drive: Drive) -> None:
    def slow() -> str:
        cache.set("raced", "theirs", 60)
        return "ours"

    assert drive(cache, "get_or_set", "raced", slow, 60) == "theirs"
