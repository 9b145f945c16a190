"""The cache against Django's own LocMemCache, step for step, in both colours, on both stores."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, ClassVar

import pytest
from django.core.cache import caches
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.support.commands import on_server
from tests.support.near import opened

KEYS = st.sampled_from(["a", "b", "c", "a.b", "$x", "a\nb"])
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from(["", "7", "$a", (1, "x"), [1], {"$gt": 1}])
)
VERSIONS = st.sampled_from([None, 1, 2, 3])
TIMEOUTS = st.sampled_from([None, 300, 0, -1])
_numbers = itertools.count()


class Model(RuleBasedStateMachine):
    """Every rule does the same to both and compares what comes of it."""

    url: ClassVar[str]
    near: ClassVar[bool] = False
    runner: ClassVar[asyncio.Runner | None]

    @initialize()
    def begin(self) -> None:
        model = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": f"model-{next(_numbers)}"}
        entry = {"OPTIONS": {"NEAR": self.near}}
        self.context = on_server(self.url, caches={"default": entry, "model": model})
        self.context.__enter__()
        self.ours, self.model = caches["default"], caches["model"]
        self.ours.clear()
        if self.near:
            opened(self.ours)

    def teardown(self) -> None:
        if hasattr(self, "context"):
            self.context.__exit__(None, None, None)

    def both(self, method: str, *args: Any, **kwargs: Any) -> Any:
        expected: Any
        try:
            expected = getattr(self.model, method)(*args, **kwargs)
        except (ValueError, TypeError):
            expected = "an error"
        try:
            found = self._ours(method, *args, **kwargs)
        except ValueError:
            found = "an error"
        if method == "set" and type(found) is bool:
            found = None  # Django's own gives nothing back; ours says what came of it, as django-redis does
        assert (type(found), found) == (type(expected), expected), f"{method}{args}{kwargs}"
        return found

    def _ours(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self.runner is None:
            return getattr(self.ours, method)(*args, **kwargs)

        async def call() -> Any:
            return await getattr(self.ours, f"a{method}")(*args, **kwargs)

        return self.runner.run(call())

    @rule(key=KEYS, value=VALUES, timeout=TIMEOUTS, version=VERSIONS)
    def set(self, key: str, value: Any, timeout: Any, version: Any) -> None:
        self.both("set", key, value, timeout, version=version)

    @rule(key=KEYS, version=VERSIONS, default=VALUES)
    def get(self, key: str, version: Any, default: Any) -> None:
        self.both("get", key, default, version=version)

    @rule(key=KEYS, value=VALUES, timeout=TIMEOUTS, version=VERSIONS)
    def add(self, key: str, value: Any, timeout: Any, version: Any) -> None:
        self.both("add", key, value, timeout, version=version)

    @rule(key=KEYS, value=VALUES, version=VERSIONS)
    def get_or_set(self, key: str, value: Any, version: Any) -> None:
        self.both("get_or_set", key, value, 300, version=version)

    @rule(key=KEYS, timeout=TIMEOUTS, version=VERSIONS)
    def touch(self, key: str, timeout: Any, version: Any) -> None:
        self.both("touch", key, timeout, version=version)

    @rule(key=KEYS, number=st.integers(-3, 3), version=VERSIONS)
    def incr(self, key: str, number: int, version: Any) -> None:
        if type(self.model.get(key, version=version)) is not bool:  # which Python adds to and the server does not
            self.both("incr", key, number, version=version)

    @rule(key=KEYS, number=st.integers(-3, 3), version=VERSIONS)
    def decr(self, key: str, number: int, version: Any) -> None:
        if type(self.model.get(key, version=version)) is not bool:
            self.both("decr", key, number, version=version)

    @rule(key=KEYS, version=VERSIONS)
    def delete(self, key: str, version: Any) -> None:
        self.model.has_key(key, version=version)  # which makes LocMemCache see that an entry has expired
        self.both("delete", key, version=version)

    @rule(key=KEYS, version=VERSIONS)
    def has_key(self, key: str, version: Any) -> None:
        self.both("has_key", key, version=version)

    @rule(data=st.dictionaries(KEYS, VALUES, max_size=4), timeout=TIMEOUTS, version=VERSIONS)
    def set_many(self, data: dict[str, Any], timeout: Any, version: Any) -> None:
        self.both("set_many", data, timeout, version=version)

    @rule(keys=st.lists(KEYS, max_size=4), version=VERSIONS)
    def get_many(self, keys: list[str], version: Any) -> None:
        self.both("get_many", keys, version=version)

    @rule(keys=st.lists(KEYS, max_size=4), version=VERSIONS)
    def delete_many(self, keys: list[str], version: Any) -> None:
        self.both("delete_many", keys, version=version)

    @rule(key=KEYS, delta=st.sampled_from([1, 2]), version=VERSIONS)
    def incr_version(self, key: str, delta: int, version: Any) -> None:
        self.both("incr_version", key, delta, version=version)

    @rule()
    def clear(self) -> None:
        self.both("clear")

    @rule()
    def everything(self) -> None:
        for version in (1, 2, 3, 4, 5):
            self.both("get_many", ["a", "b", "c", "a.b", "$x", "a\nb"], version=version)


@pytest.mark.filterwarnings("ignore::django.core.cache.backends.base.CacheKeyWarning")
@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("store", ["mongod", "mongomock", "near"])
def test_it_does_as_djangos_own_cache(store: str, colour: str, request: pytest.FixtureRequest) -> None:
    url = "mongomock://model" if store == "mongomock" else request.getfixturevalue("mongo_url")
    runner = asyncio.Runner() if colour == "async" else None
    machine = type("Machine", (Model,), {"url": url, "runner": runner, "near": store == "near"})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=6 if store == "near" else 30,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],
            ),
        )
    finally:
        if runner is not None:
            runner.close()
