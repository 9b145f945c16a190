"""What users of django-redis call: its documented examples, in our words, and what its tests take for granted."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from django.core.cache import cache as default_cache

from goscope_django import locks
from goscope_django.cache import CacheLock, MongoDBCache, plain_key
from goscope_django.exceptions import InvalidType, InvalidValue, LockError, LockLost, LockNotAcquired, Unsupported
from goscope_django.testing.conformance.base import Drive
from tests.support.commands import on_server

# ``caches`` gives a proxy of this class.
cache: Any = default_cache
SOON = 22


@pytest.fixture(params=["mongomock", "mongod"], autouse=True)
def server(request: pytest.FixtureRequest) -> Iterator[None]:
    url = "mongomock://redis-users"
    if request.param == "mongod":
        url = request.getfixturevalue("mongo_url")
    with on_server(url, caches={"default": {}}):
        cache.clear()
        for one in locks.backend().list():
            locks.backend().force_release(one.key)
        yield


def test_set_says_whether_it_stored(drive: Drive) -> None:
    assert drive(cache, "set", "key", "value") is True
    assert drive(cache, "set", "key", "value1", nx=True) is False
    assert drive(cache, "set", "other", "value1", nx=True) is True
    assert drive(cache, "set", "other", "value2", nx=True) is False
    assert drive(cache, "get", "other") == "value1"
    assert drive(cache, "set", "nowhere", 1, xx=True) is False
    assert drive(cache, "get", "nowhere") is None
    assert drive(cache, "set", "other", "value3", xx=True, timeout=SOON) is True
    assert drive(cache, "get", "other") == "value3" and 0 < drive(cache, "ttl", "other") <= SOON


def test_a_timeout_of_zero_deletes_and_with_nx_spares_what_is_there(drive: Drive) -> None:
    for timeout in (0, -5, 0.0):
        assert drive(cache, "set", "key", 1, timeout=timeout) is False, "there was nothing to delete"
        assert drive(cache, "set", "key", 1, timeout=timeout, nx=True) is True
        assert drive(cache, "get", "key") is None
        drive(cache, "set", "key", 1)
        assert drive(cache, "set", "key", 2, timeout=timeout, nx=True) is False
        assert drive(cache, "get", "key") == 1
        assert drive(cache, "set", "key", 2, timeout=timeout) is True
        assert drive(cache, "get", "key") is None


def test_nx_and_xx_are_told_apart_and_checked(drive: Drive) -> None:
    with pytest.raises(InvalidValue, match="nx and xx"):
        drive(cache, "set", "key", 1, nx=True, xx=True)
    for wrong in ({"nx": 1}, {"xx": "yes"}, {"nx": None}):
        with pytest.raises(InvalidType):
            drive(cache, "set", "key", 1, **wrong)
    assert drive(cache, "get", "key") is None


def test_xx_takes_other_versions_apart_and_no_value_for_an_expression(drive: Drive) -> None:
    drive(cache, "set", "key", 1, version=2)
    assert drive(cache, "set", "key", {"$add": [1, 1]}, xx=True) is False
    assert drive(cache, "set", "key", {"$add": [1, "$key"]}, xx=True, version=2) is True
    assert drive(cache, "get", "key", version=2) == {"$add": [1, "$key"]}


@pytest.mark.parametrize(
    ("method", "when"),
    [
        ("expire_at", lambda: datetime.now() + timedelta(hours=1)),  # noqa: DTZ005  as django-redis' own example has it
        ("expire_at", lambda: datetime.now(UTC) + timedelta(hours=1)),
        ("expire_at", lambda: int((datetime.now(UTC) + timedelta(hours=1)).timestamp())),
        ("expire_at", lambda: datetime.now(UTC).timestamp() + 3_600),
        ("pexpire_at", lambda: datetime.now() + timedelta(milliseconds=900, hours=1)),  # noqa: DTZ005
        ("pexpire_at", lambda: int((datetime.now(UTC) + timedelta(hours=1)).timestamp() * 1_000)),
    ],
)
def test_expire_at(drive: Drive, method: str, when: Any) -> None:
    assert drive(cache, method, "none", when()) is False
    drive(cache, "set", "foo", "bar", timeout=SOON)
    assert drive(cache, method, "foo", when()) is True
    assert 3_500 < drive(cache, "ttl", "foo") <= 3_602
    assert drive(cache, "get", "foo") == "bar"


@pytest.mark.parametrize("method", ["expire_at", "pexpire_at"])
def test_an_instant_that_has_passed_ends_it(drive: Drive, method: str) -> None:
    for when in (datetime.now(UTC) - timedelta(seconds=1), 0, -1, 1.5):
        drive(cache, "set", "foo", "bar")
        assert drive(cache, method, "foo", when) is True
        assert drive(cache, "get", "foo") is None and drive(cache, "has_key", "foo") is False
        assert drive(cache, method, "foo", datetime.now(UTC) + timedelta(hours=1)) is False, "nothing is revived"


@pytest.mark.parametrize("method", ["expire_at", "pexpire_at"])
def test_what_is_no_instant_is_refused(drive: Drive, method: str) -> None:
    wrong: Any
    for wrong in ("2030-01-01", None, True, timedelta(1)):
        with pytest.raises(InvalidType):
            drive(cache, method, "foo", wrong)
    for wrong in (float("nan"), float("inf"), -float("inf"), 10**30, 1e300):
        with pytest.raises(InvalidValue):
            drive(cache, method, "foo", wrong)


def test_pexpire(drive: Drive) -> None:
    drive(cache, "set", "foo", "bar", timeout=SOON)
    assert drive(cache, "pexpire", "foo", timeout=5_500) is True
    assert 5_000 < drive(cache, "pttl", "foo") <= 5_500
    assert drive(cache, "pexpire", "foo", timedelta(seconds=3)) is True
    assert 2_000 < drive(cache, "pttl", "foo") <= 3_000
    assert drive(cache, "pexpire", "none", 5_500) is False
    assert drive(cache, "pexpire", "foo", 0) is True and drive(cache, "get", "foo") is None
    wrong: Any
    for wrong in ("5", True):
        with pytest.raises(InvalidType):
            drive(cache, "pexpire", "foo", wrong)
    for wrong in (float("nan"), float("inf"), 10**400):
        with pytest.raises(InvalidValue):
            drive(cache, "pexpire", "foo", wrong)


def test_keys_and_patterns(drive: Drive) -> None:
    names = [f"foo_{number}" for number in range(7)]
    drive(cache, "set_many", dict.fromkeys((*names, "bar"), 1))
    assert drive(cache, "keys", "foo_*") == names
    for size in (1, 3, 7, 100_000):
        if drive.kind == "async":
            assert asyncio.run(listed(size)) == names
        else:
            assert list(cache.iter_keys("foo_*", itersize=size)) == names
    assert next(cache.iter_keys("foo_*")) == "foo_0"
    assert drive(cache, "delete_pattern", "foo_[0-2]", itersize=2) == 3
    assert drive(cache, "delete_pattern", "foo_*", itersize=100_000) == 4
    assert drive(cache, "keys", "*") == ["bar"]
    for wrong, error in ((0, InvalidValue), (-1, InvalidValue), ("10", InvalidType), (1.5, InvalidType)):
        with pytest.raises(error):
            drive(cache, "delete_pattern", "foo_*", itersize=wrong)
        with pytest.raises(error):
            list(cache.iter_keys("*", itersize=wrong))


async def listed(size: int) -> list[str]:
    return [key async for key in cache.aiter_keys("foo_*", itersize=size)]


def test_patterns_of_another_version_and_prefix(drive: Drive) -> None:
    other = MongoDBCache("", {"KEY_PREFIX": "theirs"})
    other.set_many({"a1": 1, "a2": 1})
    drive(cache, "set", "a1", 1, version=2)
    drive(cache, "set", "a1", 1)
    assert drive(cache, "delete_pattern", "a*", version=2) == 1
    assert drive(cache, "delete_pattern", "a*", prefix="theirs") == 2
    assert drive(cache, "get", "a1") == 1
    plain = MongoDBCache("", {"KEY_FUNCTION": plain_key})
    plain.set("p:x", 1)
    assert drive(plain, "delete_pattern", "?", prefix="p") == 1


# The lock


def test_a_lock_is_acquired_and_released(drive: Drive) -> None:
    mine, other = cache.lock("somekey", timeout=SOON), cache.lock("somekey", timeout=SOON)
    assert isinstance(mine, CacheLock) and mine.name == ":1:somekey"
    assert drive(mine, "locked") is False and drive(mine, "owned") is False
    assert drive(mine, "acquire") is True
    assert drive(mine, "locked") is True and drive(mine, "owned") is True
    assert drive(other, "locked") is True and drive(other, "owned") is False
    assert drive(other, "acquire", blocking=False) is False
    assert drive(other, "acquire", blocking_timeout=0.05) is False
    drive(mine, "release")
    assert drive(mine, "locked") is False and drive(mine, "owned") is False
    assert drive(other, "acquire", blocking=False) is True
    drive(other, "release")


def test_what_is_not_held_can_be_neither_released_nor_extended(drive: Drive) -> None:
    lock = cache.lock("somekey", timeout=SOON)
    for method in ("release", "extend", "reacquire"):
        with pytest.raises(LockError):
            drive(lock, method)
    assert drive(lock, "acquire")
    locks.backend().force_release(lock.name)
    assert drive(lock, "owned") is False
    with pytest.raises(LockLost):
        drive(lock, "extend", 5)
    with pytest.raises(LockLost):
        drive(lock, "release")


def test_extend_adds_to_what_is_left_or_replaces_it(drive: Drive) -> None:
    lock = cache.lock("somekey", timeout=10)
    drive(lock, "acquire")

    def left() -> float:
        found = locks.backend().get(lock.name)
        assert found is not None and found.expires_at is not None
        return (found.expires_at - datetime.now(UTC)).total_seconds()

    assert drive(lock, "extend", 20) is True and 25 < left() < 31
    assert drive(lock, "extend", timedelta(seconds=20)) is True and 45 < left() < 51
    assert drive(lock, "extend", 5, replace_ttl=True) is True and 0 < left() < 6
    assert drive(lock, "extend") is True and 6 < left() < 11
    assert drive(lock, "reacquire") is True and 6 < left() < 11
    drive(lock, "release")


def test_a_timeout_is_the_longest_time_and_without_one_it_is_renewed() -> None:
    with_end, asked, without = (
        cache.lock("a", timeout=0.4),
        cache.lock("b", timeout=0.4, auto_extend=True),
        cache.lock("c"),
    )
    for lock in (with_end, asked, without):
        assert lock.acquire()
    time.sleep(0.9)
    assert [lock.owned() for lock in (with_end, asked, without)] == [False, True, True]
    with pytest.raises(LockLost):
        with_end.release()
    asked.release()
    without.release()


def test_a_lock_with_a_timeout_may_be_dropped_and_ends_by_itself() -> None:
    """Many use it so, to do something once in a while: acquired, and never given back."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.lock("once", timeout=SOON).acquire(blocking=False)
        gc.collect()
    assert not cache.lock("once", timeout=SOON).acquire(blocking=False)


def test_with_gives_the_lock_itself() -> None:
    with cache.lock("somekey") as lock:
        assert lock.owned() and lock.token > 0 and not lock.lost.is_set()
        with pytest.raises(LockNotAcquired), cache.lock("somekey", blocking=False):
            pass
    assert not lock.locked()
    with pytest.raises(ZeroDivisionError), cache.lock("somekey"):
        raise ZeroDivisionError
    assert not lock.locked()

    @cast("MongoDBCache", cache).lock("somekey")
    def decorated() -> bool:
        return bool(cache.lock("somekey").locked())

    assert decorated() and not lock.locked()


def test_with_works_in_a_task() -> None:
    async def block() -> int:
        async with cache.lock("somekey") as lock:
            assert await lock.aowned()
            return int(lock.token)

    assert asyncio.run(block()) > 0
    assert locks.backend().list() == []


def test_thread_local_keeps_other_threads_from_releasing() -> None:
    for thread_local, expected in ((True, [False, "LockError"]), (False, [True, "released"])):
        lock, seen = cache.lock("somekey", timeout=SOON, thread_local=thread_local), list[Any]()

        def elsewhere(lock: CacheLock = lock, seen: list[Any] = seen) -> None:
            seen.append(lock.owned())
            try:
                lock.release()
                seen.append("released")
            except LockError as error:
                seen.append(type(error).__name__)

        assert lock.acquire()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert seen == expected
        assert lock.locked() is thread_local
        if thread_local:
            lock.release()


def test_the_arguments_of_a_lock_are_checked_where_it_is_made() -> None:
    for wrong in ({"sleep": "1"}, {"timeout": "5"}, {"blocking": 1}, {"thread_local": 1}, {"blocking_timeout": "1"}):
        with pytest.raises(InvalidType):
            cache.lock("somekey", **wrong)
    with pytest.raises(InvalidValue):
        cache.lock("somekey", sleep=0)


# What there is not


@pytest.mark.parametrize(
    "name", ["sadd", "asadd", "hset", "zadd", "lpush", "sscan_iter", "pipeline", "publish", "setbit"]
)
def test_redis_types_are_an_error_that_says_so(name: str) -> None:
    assert not hasattr(cache, name)
    with pytest.raises(AttributeError, match=f"MongoDBCache has no {name}: Redis'") as caught:
        getattr(MongoDBCache("", {}), name)
    assert isinstance(caught.value, Unsupported) and "from-django-redis" in str(caught.value)


@pytest.mark.parametrize("name", ["client", "get_client", "connect"])
def test_the_raw_client_is_an_error_that_says_so(name: str) -> None:
    with pytest.raises(Unsupported, match="no Redis client"):
        getattr(MongoDBCache("", {}), name)


def test_other_names_are_as_unknown_as_ever() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing_like_it'") as caught:
        MongoDBCache("", {}).nothing_like_it  # type: ignore[attr-defined]  # noqa: B018
    assert not isinstance(caught.value, Unsupported)
    assert not hasattr(cache, "add_many")
