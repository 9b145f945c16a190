"""Tags: what is invalidated is a miss for everything and everybody, and what costs how many commands."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import caches
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from goscope_django import runtime
from goscope_django.exceptions import InvalidType, InvalidValue
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import Recorder, on_server
from tests.support.own_fields import document, entries, node_sets, tag_documents

ALIASES: dict[str, dict[str, Any]] = {"default": {}, "other": {"KEY_PREFIX": "other"}}
TAGS = "go_goscope_tags"


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(params=["mongod", "mongomock"])
def store(request: pytest.FixtureRequest, recorder: Recorder) -> Iterator[str]:
    url = "mongomock://tags" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    options = {} if request.param == "mongomock" else {"event_listeners": [recorder]}
    with on_server(url, caches=ALIASES, client_options=options):
        runtime.adapter().ensure_indexes()
        entries().delete_many({})
        tag_documents().delete_many({})
        yield request.param


@pytest.fixture
def real(store: str, recorder: Recorder) -> Recorder:
    if store == "mongomock":
        pytest.skip("mongomock: sends no commands")
    caches["default"].get("time")
    return recorder


def here() -> Any:
    """The default cache of this thread or task."""
    return caches["default"]


@pytest.fixture
def cache(store: str) -> Any:
    return here()


def sent(recorder: Recorder) -> list[tuple[str, str]]:
    return [(event.command_name, event.command[event.command_name]) for event in recorder.events]


def missing_incr(cache: Any) -> None:
    with pytest.raises(ValueError, match="not found"):
        cache.incr("missing")


CACHE_FIND, TAGS_FIND = ("find", "go_goscope_cache"), ("find", TAGS)


def test_an_invalidated_entry_is_missing_for_every_method(cache: Any, drive: Drive) -> None:
    missing = object()

    def again(**more: Any) -> None:
        assert drive(cache, "set", "key", 1, 60, tags=("a", "b"), **more)
        assert drive(cache, "get", "key") == 1
        assert drive(cache, "invalidate_tags", "b") == 1

    again()
    assert drive(cache, "get", "key", missing) is missing
    assert drive(cache, "get_many", ["key"]) == {}
    assert drive(cache, "has_key", "key") is False
    assert drive(cache, "ttl", "key") == 0
    assert drive(cache, "touch", "key", 100) is False
    assert drive(cache, "persist", "key") is False
    assert drive(cache, "expire_at", "key", 2_000_000_000) is False
    assert drive(cache, "set", "key", 2, xx=True) is False
    with pytest.raises(ValueError, match="not found"):
        drive(cache, "incr", "key")
    with pytest.raises(ValueError, match="not found"):
        drive(cache, "incr_version", "key")
    assert drive(cache, "delete", "key") is False
    again()
    assert drive(cache, "add", "key", 3) is True
    assert drive(cache, "get", "key") == 3
    again()
    assert drive(cache, "set", "key", 4, nx=True) is True
    again()
    assert drive(cache, "get_or_set", "key", lambda: 5) == 5
    again()
    assert drive(cache, "set", "key", 6)
    assert drive(cache, "invalidate_tags", "a", "b") == 2
    assert drive(cache, "get", "key") == 6, "it has no tags any more"


def test_a_tagged_entry_that_stands_is_like_any_other(cache: Any, drive: Drive) -> None:
    drive(cache, "set", "key", 1, 60, tags=("a", "b"))
    assert drive(cache, "get_many", ["key"]) == {"key": 1}
    assert drive(cache, "has_key", "key") is True
    assert 59 <= drive(cache, "ttl", "key") <= 60
    assert drive(cache, "add", "key", 2) is False
    assert drive(cache, "set", "key", 2, nx=True) is False
    assert drive(cache, "incr", "key", 4) == 5
    assert drive(cache, "touch", "key", 500) is True
    assert 499 <= drive(cache, "ttl", "key") <= 500
    assert drive(cache, "persist", "key") is True
    assert drive(cache, "ttl", "key") is None
    assert drive(cache, "expire_at", "key", 4_000_000_000) is True
    assert drive(cache, "get", "key") == 5
    assert drive(cache, "incr_version", "key") == 2
    assert drive(cache, "get", "key", version=2) == 5
    drive(cache, "invalidate_tags", "a")
    assert drive(cache, "get", "key", version=2) is None, "none of this has taken its tags away"


def test_replacing_takes_the_new_tags(cache: Any, drive: Drive) -> None:
    drive(cache, "set", "key", 1, tags=("a",))
    assert drive(cache, "set", "key", 2, xx=True, tags=("b",)) is True
    drive(cache, "invalidate_tags", "a")
    assert drive(cache, "get", "key") == 2
    drive(cache, "invalidate_tags", "b")
    assert drive(cache, "get", "key") is None
    drive(cache, "set_many", {"key": 3})
    drive(cache, "invalidate_tags", "a", "b")
    assert drive(cache, "get", "key") == 3


def test_tags_belong_to_the_alias_and_to_all_versions(store: str, drive: Drive) -> None:
    ours, other = here(), caches["other"]
    drive(ours, "set", "key", 1, tags=("a",))
    drive(ours, "set", "key", 2, version=7, tags=("a",))
    drive(other, "set", "key", 3, tags=("a",))
    drive(ours, "invalidate_tags", "a")
    assert drive(ours, "get", "key") is None and drive(ours, "get", "key", version=7) is None
    assert drive(other, "get", "key") == 3


def test_clear_leaves_tags_alone(cache: Any, drive: Drive) -> None:
    drive(cache, "set", "key", 1, tags=("a",))
    before = tag_documents().find_one()
    drive(cache, "clear")
    assert tag_documents().find_one() == before
    drive(cache, "set", "key", 2, tags=("a",))
    assert drive(cache, "get", "key") == 2


def test_a_tag_without_a_document_is_a_miss_and_no_version_comes_again(cache: Any, drive: Drive) -> None:
    versions = set()
    for turn in range(3):
        drive(cache, "set", f"key{turn}", 1, tags=("a",))
        versions.add(tag_documents().find_one()["version"])
        tag_documents().delete_many({})
        assert drive(cache, "get", f"key{turn}") is None
    assert len(versions) == 3
    drive(cache, "set", "new", 1, tags=("a",))
    assert [drive(cache, "get", f"key{turn}") for turn in range(3)] == [None] * 3


def test_a_tag_outlives_its_entries(cache: Any, drive: Drive) -> None:
    def left(field: str) -> float:
        found = tag_documents().find_one()["expiresAt"] - document("key")["expiresAt"]
        return float(found.total_seconds())

    drive(cache, "set", "key", 1, 60, tags=("a",))
    assert left("key") > 0
    drive(cache, "set", "key", 1, 1_000_000, tags=("a",))
    assert left("key") > 0
    drive(cache, "touch", "key", 5_000_000)
    assert left("key") > 0
    drive(cache, "persist", "key")
    assert tag_documents().find_one()["expiresAt"].year == 9999


def test_what_node_writes_over_a_tagged_entry_is_nodes(cache: Any, drive: Drive) -> None:
    drive(cache, "set", "key", 1, 600, tags=("a",))
    node_sets("key", 5)
    drive(cache, "invalidate_tags", "a")
    assert drive(cache, "get", "key") == 5
    assert drive(cache, "get_many", ["key"]) == {"key": 5}
    assert drive(cache, "incr", "key") == 6
    assert drive(cache, "touch", "key", 500) and drive(cache, "add", "key", 1) is False
    assert drive(cache, "get", "key") == 6
    assert drive(cache, "set", "key", 7, xx=True) and drive(cache, "get", "key") == 7


@pytest.mark.parametrize("damage", [7, [1], [{"tag": "x"}], [{"tag": 1, "version": "v"}], {"a": "b"}])
def test_tags_that_cant_be_read_are_a_miss(cache: Any, drive: Drive, damage: Any) -> None:
    drive(cache, "set", "key", 1, 600, tags=("a",))
    entries().update_one({}, {"$set": {"tags": damage}})
    assert drive(cache, "get", "key") is None and drive(cache, "get_many", ["key"]) == {}
    assert drive(cache, "add", "key", 2) is True and drive(cache, "get", "key") == 2


def test_a_value_whose_computing_began_before_is_not_fresh_after(cache: Any, drive: Drive) -> None:
    def compute() -> int:
        here().invalidate_tags("a")
        return 1

    drive(cache, "set", "other", 0, tags=("a",))
    assert drive(cache, "get_or_set", "key", compute, tags=("a",)) == 1
    assert drive(cache, "get", "key") is None
    assert drive(cache, "get_or_set", "key", lambda: 2, tags=("a", "b")) == 2
    assert drive(cache, "get", "key") == 2


def test_who_joins_after_an_invalidation_does_not_get_what_was_computed_from_before(cache: Any) -> None:
    begun, invalidated = threading.Event(), threading.Event()
    calls: list[int] = []

    def compute() -> int:
        calls.append(1)
        if len(calls) == 1:
            begun.set()
            assert invalidated.wait(30)
            return 1
        return 2

    async def first() -> int:
        return int(await asyncio.to_thread(lambda: here().get_or_set("key", compute, tags=("a",))))

    async def both() -> tuple[int, int]:
        one = asyncio.create_task(first())
        await asyncio.to_thread(begun.wait, 30)
        await asyncio.to_thread(here().invalidate_tags, "a")
        two = asyncio.create_task(first())
        from goscope_django.cache.together import together

        while not any(entry.waiters for entry in list(together._entries.values())):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        invalidated.set()
        return await one, await two

    assert asyncio.run(both()) == (1, 2)


@pytest.mark.parametrize("tags", ["a", b"a", 5, ("a", 1), [None]])
def test_tags_of_another_type_are_refused(cache: Any, drive: Drive, tags: Any) -> None:
    with pytest.raises(InvalidType):
        drive(cache, "set", "key", 1, tags=tags)
    with pytest.raises(InvalidType):
        drive(cache, "get_or_set", "key", 1, tags=tags)


def test_tags_that_cant_be_stored_are_refused(cache: Any, drive: Drive) -> None:
    for tags in (("",), ("\ud800",), tuple(map(str, range(1_001)))):
        with pytest.raises(InvalidValue):
            drive(cache, "set", "key", 1, tags=tags)
        with pytest.raises(InvalidValue):
            drive(cache, "invalidate_tags", *tags)
    assert drive(cache, "invalidate_tags") == 0
    odd = ("$x", "a.b", '{"$gt": 1}', "ä\0", "%", ":")
    drive(cache, "set", "key", 1, tags=odd)
    for tag in odd:
        assert drive(cache, "get", "key") == 1
        drive(cache, "invalidate_tags", tag)
        assert drive(cache, "get", "key") is None
        drive(cache, "set", "key", 1, tags=(*odd, tag))


# What it costs


def test_an_untagged_entry_costs_one_command_for_everything(cache: Any, real: Recorder) -> None:
    cache.set("key", 1)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: cache.get("key"),
        lambda: cache.get_many(["key"]),
        lambda: cache.set("key", 1),
        lambda: cache.add("key", 1),
        lambda: cache.add("new", 1),
        lambda: cache.touch("key", 5),
        lambda: cache.touch("missing", 5),
        lambda: cache.persist("key"),
        lambda: cache.has_key("key"),
        lambda: cache.has_key("missing"),
        lambda: cache.ttl("key"),
        lambda: cache.incr("key"),
        lambda: missing_incr(cache),
        lambda: cache.set("key", 1, xx=True),
        lambda: cache.set("key", 1, nx=True),
        lambda: cache.get_or_set("key", 1),
        lambda: cache.delete("missing"),
        lambda: cache.delete("key"),
    )
    for call in calls:
        real.clear()
        call()
        assert len(real.events) == 1, sent(real)


def test_a_tagged_entry_costs_one_more_to_read_and_to_write(cache: Any, real: Recorder) -> None:
    real.clear()
    cache.set("key", 1, tags=("new",))
    assert len(real.events) == 2, "a tag that nobody had yet"
    real.clear()
    cache.set("other", 1, tags=("p", "q", "r"))
    assert len(real.events) == 2, "several that nobody had yet"
    real.clear()
    cache.set("key", 1, tags=("p", "q"))
    assert len(real.events) == 2, "several that are known"
    real.clear()
    cache.set("key", 1, tags=("q", "s", "t"))
    assert len(real.events) == 2, "some known, some new"
    real.clear()
    assert cache.get("key") == 1
    assert sent(real) == [CACHE_FIND, TAGS_FIND]
    cache.set_many({f"plain{n}": n for n in range(5)})
    real.clear()
    assert len(cache.get_many(["key", "other", *(f"plain{n}" for n in range(5))])) == 7
    assert sent(real) == [CACHE_FIND, TAGS_FIND]
    real.clear()
    assert cache.get_or_set("key", lambda: 1, tags=("q",)) == 1
    assert len(real.events) == 2
    real.clear()
    assert cache.has_key("key") and cache.ttl("key")
    assert len(real.events) == 4


@pytest.mark.parametrize("number", [1, 50])
def test_to_invalidate_is_one_command_however_many_entries(cache: Any, real: Recorder, number: int) -> None:
    for place in range(number):
        cache.set(f"key{place}", 1, tags=("a", f"b{place}"))
    real.clear()
    assert cache.invalidate_tags("a", "b0", "none") == 2
    assert sent(real) == [("update", TAGS)]
    (command,) = real.commands
    assert command["writeConcern"]["w"] == "majority"
    assert cache.get_many([f"key{place}" for place in range(number)]) == {}


# A model


class Model(RuleBasedStateMachine):
    """Callers whose computing is interleaved with invalidations: begin, read versions, store, much later."""

    store: Any
    KEYS = ("k1", "k2")
    TAGS = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.cache: Any = caches["default"]
        self.entries: dict[str, tuple[int, frozenset[str]] | None] = {}
        self.computing: list[tuple[str, int, tuple[str, ...], Any, bool]] = []
        self.number = 0
        entries().delete_many({})

    key, some = st.sampled_from(KEYS), st.lists(st.sampled_from(TAGS), unique=True, min_size=0, max_size=3)

    @rule(key=key, tags=some)
    def begin(self, key: str, tags: list[str]) -> None:
        """A caller misses the value and reads what ``get_or_set`` reads before it computes."""
        names = self.cache._keys.stored_tags(tuple(tags))
        terms = self.cache._backing.store.run(self._terms(names))
        self.number += 1
        self.computing.append((key, self.number, tuple(tags), terms, True))

    @staticmethod
    def _terms(names: list[str]) -> Any:
        from goscope_django.mongodb.cache import tags

        return lambda clock: tags.terms(clock, names, 60_000)

    @rule(which=st.integers(0, 5))
    def end(self, which: int) -> None:
        """One of them has computed and stores."""
        if not self.computing:
            return
        key, number, tags, terms, valid = self.computing.pop(which % len(self.computing))
        stored = self.cache._backing.run(False, self.cache._add(key, number, 60, None, terms))
        free = self.entries.get(key) is None
        assert stored is free
        if free and valid:
            self.entries[key] = (number, frozenset(tags))

    @rule(key=key, tags=some)
    def set(self, key: str, tags: list[str]) -> None:
        self.number += 1
        assert self.cache.set(key, self.number, 60, tags=tags)
        self.entries[key] = (self.number, frozenset(tags))

    @rule(key=key)
    def delete(self, key: str) -> None:
        assert self.cache.delete(key) is (self.entries.get(key) is not None)
        self.entries[key] = None

    @rule(key=key)
    def incr(self, key: str) -> None:
        found = self.entries.get(key)
        if found is None:
            with pytest.raises(ValueError, match="not found"):
                self.cache.incr(key)
        else:
            assert self.cache.incr(key) == found[0] + 1
            self.entries[key] = (found[0] + 1, found[1])

    @rule(key=key, timeout=st.sampled_from([30, None]))
    def touch(self, key: str, timeout: int | None) -> None:
        assert self.cache.touch(key, timeout) is (self.entries.get(key) is not None)

    @rule(tags=some)
    def invalidate(self, tags: list[str]) -> None:
        self.cache.invalidate_tags(*tags)
        gone = frozenset(tags)
        self.entries = {key: None if one and one[1] & gone else one for key, one in self.entries.items()}
        self.computing = [(*one[:4], one[4] and not gone & set(one[2])) for one in self.computing]

    @rule(tag=st.sampled_from(TAGS))
    def lose(self, tag: str) -> None:
        """The TTL monitor removes a tag, or an operator does."""
        tag_documents().delete_many({"_id": {"$regex": f":{tag}$"}})
        self.entries = {key: None if one and tag in one[1] else one for key, one in self.entries.items()}
        self.computing = [(*one[:4], one[4] and tag not in one[2]) for one in self.computing]

    @invariant()
    def alike(self) -> None:
        live = {key: one[0] for key, one in self.entries.items() if one is not None}
        assert self.cache.get_many(self.KEYS) == live
        assert {key: self.cache.get(key) for key in self.KEYS if self.cache.has_key(key)} == live


def test_tags_do_as_their_model(store: str) -> None:
    steps = settings(
        max_examples=8 if store == "mongomock" else 5,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Model, settings=steps)
