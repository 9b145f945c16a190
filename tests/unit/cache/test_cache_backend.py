"""One cache object without a server: whose keys it makes, what an operator does with it, how ``get_or_set`` ends."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache.backends.base import CacheKeyWarning

from goscope_django import locks
from goscope_django.cache import MongoDBCache, plain_key
from goscope_django.cache.computing import _computed_here
from goscope_django.core.flow import Call
from goscope_django.mongodb.cache.flows import MISSING
from goscope_django.process import counters
from tests.support.commands import on_server


@pytest.fixture(autouse=True)
def mongomock() -> Iterator[None]:
    with on_server("mongomock://cache-backend", caches={"default": {}}):
        yield


class Strict(MongoDBCache):
    """A subclass that checks keys its own way."""

    def validate_key(self, key: str) -> None:
        if "!" in key:
            raise LookupError(key)


@pytest.mark.parametrize("params", [{}, {"KEY_FUNCTION": plain_key}])
def test_a_subclass_that_checks_keys_is_asked_for_each(params: dict[str, Any]) -> None:
    cache = Strict("", params)
    cache.set("good", 1)
    for method, keys in ((cache.get, "bad!"), (cache.get_many, ["good", "bad!"])):
        with pytest.raises(LookupError):
            method(keys)


@pytest.mark.parametrize("params", [{}, {"KEY_FUNCTION": plain_key}])
def test_django_warns_of_odd_keys_and_of_no_others(params: dict[str, Any]) -> None:
    cache = MongoDBCache("", params)
    for odd in ("a b", "a\x7f", "x" * 251):
        with pytest.warns(CacheKeyWarning):
            cache.set(odd, 1)
        with pytest.warns(CacheKeyWarning):
            cache.get_many([odd, "plain"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.set("plain:ü", 1)
        cache.get_many(["plain", "plain:ü"])


def test_remove_all_says_how_many_and_spares_other_prefixes() -> None:
    mine, other = MongoDBCache("", {"KEY_PREFIX": "a"}), MongoDBCache("", {"KEY_PREFIX": "a:b"})
    for remove in (mine.remove_all, lambda: asyncio.run(mine.aremove_all())):
        mine.set_many({"x": 1, "y": 2})
        mine.set("x", 3, version=7)
        other.set("z", 4)
        assert remove() == 3
        assert (mine.get("x"), mine.get("x", version=7), other.get("z")) == (None, None, 4)


def test_operations_are_counted_under_the_alias_that_is_named() -> None:
    cache = MongoDBCache("", {})
    cache.count_as("an-operator")
    before = list(counters.alias("an-operator").row("k"))
    cache.get("k")
    after = counters.alias("an-operator").row("k")
    assert after[counters.MISSES] == before[counters.MISSES] + 1


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_a_value_that_could_not_be_computed_leaves_no_lock(error: type[BaseException]) -> None:
    cache, seen = MongoDBCache("", {}), []

    def fail() -> None:
        seen.append(len(locks.backend().list()))
        raise error

    with pytest.raises(error):
        cache.get_or_set("failing", fail)
    assert seen == [1], "it was computed under a lock"
    assert locks.backend().list() == []


def test_a_cancelled_computation_leaves_no_lock() -> None:
    cache = MongoDBCache("", {})

    async def cancelled() -> None:
        begun = asyncio.Event()

        async def compute() -> None:
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(cache.aget_or_set("cancelled", compute))
        await begun.wait()
        assert len(await locks.backend().alist()) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await locks.backend().alist() == []

    asyncio.run(cancelled())


def test_a_computation_that_is_closed_asks_for_nothing_more() -> None:
    def compute() -> int:
        raise AssertionError("never run")

    subject = MongoDBCache("", {})
    flow = subject.computing.get_or_set(subject.wanted("closed", compute, 60))
    next(flow)
    command = flow.send(MISSING)
    answers: list[Any] = [object(), MISSING]  # the lease is there, and there is still no value
    for answer in answers:
        command = flow.send(answer)
    assert isinstance(command, Call) and command.plain is compute
    flow.close()  # a RuntimeError if it still yielded
    assert _computed_here.get() == frozenset()
