"""``cached``: keys, tags, misuse; and that it is ``get_or_set`` for everything else."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from goscope_django.decorators import cached
from goscope_django.exceptions import InvalidType, InvalidValue
from tests.support.commands import on_server
from tests.support.own_fields import entries, make_stale

calls: list[Any] = []


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    with on_server("mongomock://cached", caches={"default": {}, "other": {"KEY_PREFIX": "other"}}):
        entries().delete_many({})
        calls.clear()
        yield


@cached(60)
def price(product: Any, currency: str = "EUR", *more: Any, **options: Any) -> Any:
    calls.append((product, currency, more, options))
    return [product, len(calls)]


@cached(60, key="price:{product}", tags=("product:{product}", "all"), stale=30)
def named(product: int) -> Any:
    calls.append(product)
    if product < 0:
        raise LookupError
    return len(calls)


@cached(60, key="aprice:{product}", tags=("product:{product}",))
async def anamed(product: int) -> Any:
    calls.append(product)
    return len(calls)


class Shop:
    @cached(60, key="shop:{self.name}:{product}")
    def price(self, product: int) -> Any:
        calls.append(product)
        return len(calls)

    @cached(60)
    def unnamed(self) -> Any:
        return 1

    name = "x"


def test_equal_calls_share_a_result_however_they_are_written() -> None:
    first = price(7)
    assert price(7) == price(product=7) == price(7, "EUR") == price(currency="EUR", product=7) == first
    assert len(calls) == 1
    assert price(7) is not price(7), "each gets a value of its own"


DIFFERENT = (
    *(1, 1.0, True, "1", b"1", None, "None", (1,), (1, 2), ("1", 2), ("1,2",), 10**30, "", "a|b"),
    dt.date(2026, 1, 1),
    dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    uuid.UUID(int=1),
)


def test_different_calls_do_not() -> None:
    for number, one in enumerate(DIFFERENT, 1):
        assert price(one)[1] == number
    before = len(calls)
    price(1, "USD"), price(1, "EUR", 2), price(1, "EUR", (2,)), price(1, x=2), price(1, y=2)
    assert len(calls) == before + 5
    assert price(1, x=2, y=3) == price(1, y=3, x=2)


@pytest.mark.parametrize("one", [[1], {"a": 1}, object(), {1}, lambda: 1])
def test_an_argument_that_is_no_key_is_told_by_name_and_not_by_value(one: Any) -> None:
    with pytest.raises(InvalidType, match="'product' of price"):
        price(one)
    with pytest.raises(InvalidType, match="'options' of price"):
        price(1, secret=one)
    with pytest.raises(InvalidType, match=r"'self' of Shop\.unnamed"):
        Shop().unnamed()
    assert calls == []


def test_the_key_is_that_of_the_cache() -> None:
    cache: Any = caches["default"]
    assert named(7) == 1 and cache.get("price:7") == 1
    assert named(7) == 1 and named(8) == 2
    assert cache.delete("price:7") and named(7) == 3
    assert Shop().price(7) == 4 and cache.get("shop:x:7") == 4
    assert asyncio.run(anamed(7)) == 5 and asyncio.run(anamed(product=7)) == 5 and cache.get("aprice:7") == 5


def test_tags_are_templates_or_a_function() -> None:
    cache: Any = caches["default"]
    assert named(7) == 1 and named(8) == 2 and asyncio.run(anamed(7)) == 3
    cache.invalidate_tags("product:7")
    assert named(8) == 2 and named(7) == 4 and asyncio.run(anamed(7)) == 5
    cache.invalidate_tags("all")
    assert named(8) == 6 and asyncio.run(anamed(7)) == 5

    @cached(60, key="f:{x}", tags=lambda x: [f"tag:{x}"])
    def function(x: int) -> int:
        calls.append(x)
        return len(calls)

    assert function(1) == 7 == function(1)
    cache.invalidate_tags("tag:1")
    assert function(1) == 8


def test_a_stale_result_serves_while_the_function_fails() -> None:
    assert named(1) == 1
    make_stale("price:1")
    assert named(1) == 2
    caches["default"].set("unrelated", 1)

    fails = False

    @cached(60, key="failing", stale=30)
    def failing() -> str:
        if fails:
            raise LookupError
        return "old"

    assert failing() == "old"
    make_stale("failing")
    fails = True
    assert failing() == "old"


def test_another_cache_and_version() -> None:
    @cached(60, key="k", cache="other", version=4)
    def function() -> int:
        return 5

    assert function() == 5
    assert caches["other"].get("k", version=4) == 5 and caches["default"].get("k") is None


def test_none_is_a_result_and_an_error_is_none() -> None:
    results: list[Any] = [LookupError, None]

    @cached(60, key="n")
    def function() -> Any:
        calls.append(1)
        found = results.pop(0)
        if found is LookupError:
            raise LookupError
        return found

    with pytest.raises(LookupError):
        function()
    assert function() is None and function() is None and len(calls) == 2


def test_misuse_is_told_where_it_is_written() -> None:
    def plain(x: int) -> int:
        return x

    wrong: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (InvalidType, "parentheses", lambda: cached(plain)),
        (InvalidType, "timeout", lambda: cached("60")),
        (InvalidType, "key", lambda: cached(60, key=5)),  # type: ignore[arg-type]
        (InvalidValue, "names no parameter", lambda: cached(60, key="{y}")(plain)),
        (InvalidValue, "names no parameter", lambda: cached(60, key="k", tags=("t:{y}",))(plain)),
        (InvalidValue, "brace|template|single", lambda: cached(60, key="{x")(plain)),
        (InvalidType, "tuple", lambda: cached(60, key="k", tags="t")(plain)),
        (InvalidType, "tag", lambda: cached(60, key="k", tags=("t", 5))(plain)),  # type: ignore[arg-type]
        (InvalidValue, "key='...'", lambda: cached(60)(plain)),
        (InvalidType, "decorated", lambda: cached(60, key="k")(5)),  # type: ignore[arg-type]
        (InvalidType, "class", lambda: cached(60, key="k")(Shop)),
        (InvalidValue, "stale", lambda: cached(60, stale=0)),
        (InvalidValue, "stale", lambda: cached(60, background=True)),
        (InvalidType, "alias", lambda: cached(60, cache=5)),  # type: ignore[arg-type]
    ]
    for error, text, mistake in wrong:
        with pytest.raises(error, match=text):
            mistake()

    def generator() -> Iterator[int]:
        yield 1

    with pytest.raises(InvalidType, match="generator"):
        cached(60, key="k")(generator)


def test_a_cache_of_another_package_is_told() -> None:
    with (
        override_settings(CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}),
        pytest.raises(ImproperlyConfigured, match="LocMemCache"),
    ):
        named(7)
