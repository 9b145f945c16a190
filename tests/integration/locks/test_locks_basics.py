"""``lock`` over {a real server, mongomock} x {sync, async}: what it promises, and its peers' faults L1 to L11."""

# ruff: noqa: PT012 - what is tested is what leaving a block raises

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from goscope_django import locks, runtime
from goscope_django.contracts import LockHandle
from goscope_django.exceptions import InvalidType, InvalidValue, LockLost, LockNotAcquired, StoreUnavailable
from goscope_django.locks import lock, waiting
from goscope_django.process import renewal
from tests.support.locks import Async, Sync, Twin, expire, raw, settings_for, take_over


@pytest.fixture(params=["real", "mongomock"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    url = request.getfixturevalue("mongo_url") if request.param == "real" else "mongomock://"
    with settings_for(url):
        runtime.adapter().ensure_indexes()
        raw().delete_many({})
        yield request.param


@pytest.fixture(params=[Sync(), Async()], ids=["sync", "async"])
async def twin(request: pytest.FixtureRequest, store: str) -> AsyncIterator[Twin]:
    yield request.param
    assert not waiting._lines


async def test_the_handle_is_the_contracts(twin: Twin) -> None:
    async with twin.block(lock("stock", 30)) as handle:
        assert isinstance(handle, LockHandle)
        assert handle.key == "stock"
        assert handle.token > 0
        assert abs(handle.expires_at - datetime.now(UTC) - timedelta(seconds=30)) < timedelta(seconds=20)
        assert not handle.lost.is_set()
        handle.ensure_held()
        assert await twin.is_valid(handle)
        info = locks.backend().get("stock")
        assert info is not None
        assert (info.owner, info.token) == (handle.owner, handle.token)
    assert handle.released
    assert locks.backend().get("stock") is None
    assert not await twin.is_valid(handle)
    with pytest.raises(LockLost):
        handle.ensure_held()


async def test_it_is_not_re_entrant_for_the_same_owner_either(twin: Twin) -> None:
    async with twin.block(lock("stock", owner="me")) as handle:
        assert handle.owner == "me"
        with pytest.raises(LockNotAcquired) as caught:
            await twin.acquire(lock("stock", owner="me", blocking=False))
        assert caught.value.key == "stock"


@pytest.mark.parametrize(
    "expires_at", [{}, {"expiresAt": None}, {"expiresAt": datetime(2999, 1, 1, tzinfo=UTC)}], ids=str
)
@pytest.mark.parametrize("owner", [{}, {"owner": None}, {"owner": ""}], ids=str)
async def test_whatever_stands_under_the_key_holds_the_lock(
    store: str, twin: Twin, owner: dict[str, Any], expires_at: dict[str, Any]
) -> None:
    """A released lock's document is gone: one that somebody put there by hand, or whose fields were lost, is held."""
    if store == "mongomock" and owner.get("owner") is None and expires_at.get("expiresAt") is None:
        pytest.skip("mongomock: it can't tell a document with nothing but its key from one that an upsert inserts")
    key = f"{runtime.adapter().key_prefix}lock:stock"
    raw().insert_one({"key": key, **owner, **expires_at})
    with pytest.raises(LockNotAcquired):
        await twin.acquire(lock("stock", blocking_timeout=0.05))
    assert "claim" not in (raw().find_one({"key": key}) or {"claim": "none"})
    info = locks.backend().get("stock")
    assert info is not None and (info.owner, info.token) == ("", None)
    assert list(locks.backend().list()) == [info]
    assert locks.backend().force_release("stock")
    async with twin.block(lock("stock", blocking=False)):
        pass


@pytest.mark.parametrize("options", [{"blocking": False}, {"blocking_timeout": 0}, {"blocking_timeout": 0.05}])
async def test_a_wait_in_vain(twin: Twin, options: dict[str, Any]) -> None:
    take_over("stock")
    with pytest.raises(LockNotAcquired):
        await twin.acquire(lock("stock", **options))


async def test_a_timeout_of_zero_gets_a_free_lock(twin: Twin) -> None:
    async with twin.block(lock("stock", blocking_timeout=0)):
        pass


async def test_one_object_serves_many_blocks_at_once(twin: Twin) -> None:
    one = lock("shared", 30)
    order: list[int] = []

    async def work() -> None:
        async with twin.block(one) as handle:
            order.append(handle.token)

    if twin.asynchronous:
        await asyncio.gather(*(work() for _ in range(8)))
    else:
        threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
    assert len(order) == 8
    assert order == sorted(set(order))
    assert not one._entered


async def test_l1_a_stale_handle_does_not_touch_its_successor(twin: Twin) -> None:
    """Both name the same owner, as two threads of a host would."""
    first = await twin.acquire(lock("stock", owner="host-1", auto_extend=False))
    expire("stock")
    second = await twin.acquire(lock("stock", owner="host-1", auto_extend=False))
    assert second.token > first.token
    assert not await twin.release(first)
    assert first.lost.is_set()
    assert not await twin.extend(first)
    assert not await twin.is_valid(first)
    assert await twin.is_valid(second)
    assert await twin.release(second)


async def test_l2_tokens_grow_over_release_expiry_and_removal(twin: Twin, request: Any) -> None:
    tokens = []
    for step in range(12):
        handle = await twin.acquire(lock("stock", auto_extend=False))
        tokens.append(handle.token)
        if step % 3 == 0:
            expire("stock")
            handle._renewal.stop()
        elif step % 3 == 1:
            raw().delete_many({})
            handle._renewal.stop()
        else:
            assert await twin.release(handle)
    assert tokens == sorted(set(tokens))


async def test_l7_a_loss_is_told_and_raised_at_the_end_of_the_block(twin: Twin) -> None:
    told: list[Any] = []
    with pytest.raises(LockLost) as caught:
        async with twin.block(lock("stock", 0.3)) as handle:
            handle.on_lost(told.append)
            take_over("stock")
            assert await asyncio.to_thread(handle.lost.wait)
            await asyncio.sleep(0.02)
            with pytest.raises(LockLost):
                handle.check()
            late: list[Any] = []
            handle.on_lost(late.append)
            assert late == [handle]
    assert caught.value.key == "stock"
    assert told == [handle]
    assert not handle.release()
    info = locks.backend().get("stock")
    assert info is not None
    assert info.owner == "another"


async def test_l7_a_block_that_raises_is_not_overruled_by_the_loss(twin: Twin) -> None:
    with pytest.raises(KeyError):
        async with twin.block(lock("stock", 30)) as handle:
            take_over("stock")
            assert not await twin.is_valid(handle)
            raise KeyError


async def test_l7_a_loss_that_only_the_release_finds_out(twin: Twin) -> None:
    with pytest.raises(LockLost):
        async with twin.block(lock("stock", 30)) as handle:
            take_over("stock")
            assert not handle.lost.is_set()
    assert handle.lost.is_set()


async def test_l7_without_auto_extend_the_end_of_the_lease_is_a_loss(twin: Twin) -> None:
    with pytest.raises(LockLost):
        async with twin.block(lock("stock", 0.15, auto_extend=False)) as handle:
            assert await handle.wait_lost()
    assert not await twin.release(handle)


async def test_wait_lost_ends_with_the_release_too(twin: Twin) -> None:
    handle = await twin.acquire(lock("stock"))
    waits = asyncio.create_task(handle.wait_lost())
    await asyncio.sleep(0.01)
    await twin.release(handle)
    assert await waits is False


async def test_l8_nothing_is_renewed_after_the_release(twin: Twin) -> None:
    handle = await twin.acquire(lock("stock", 0.3))
    assert await twin.release(handle)
    assert not handle._renewal.active
    # A renewal that was on its way must not bring the document back, nor touch the successor's.
    second = await twin.acquire(lock("stock", 30))
    assert handle._renewal.renewable.renew([handle._renewal.renewable], 5) == frozenset()
    assert await twin.is_valid(second)
    assert await twin.release(second)


async def test_l9_a_lock_outlives_its_lease_while_it_is_held(twin: Twin) -> None:
    async with twin.block(lock("stock", 0.6)) as handle:
        first = handle.expires_at
        while handle.expires_at < first + timedelta(seconds=0.7):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await twin.is_valid(handle)
        info = locks.backend().get("stock")
        assert info is not None
        assert info.expires_at is not None
        assert info.expires_at >= first


async def test_l10_a_handle_can_be_handed_to_another_thread(twin: Twin) -> None:
    async with twin.block(lock("stock", 0.6)) as handle:
        first = handle.expires_at
        assert await asyncio.to_thread(handle.extend)
        assert await asyncio.to_thread(handle.is_valid)
        assert await asyncio.to_thread(handle.release)
        assert handle.expires_at >= first
    assert not await twin.release(handle)  # nor was leaving the block an error


async def test_l7_after_a_release_that_failed_the_end_of_the_lease_is_told_all_the_same(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: Any) -> bool:
        raise StoreUnavailable("away")

    async def afail(handle: Any) -> bool:
        raise StoreUnavailable("away")

    told: list[Any] = []
    handle = await twin.acquire(lock("stock", 0.4))
    handle.on_lost(told.append)
    with monkeypatch.context() as patch:
        patch.setattr(locks.backend(), "release", fail)
        patch.setattr(locks.backend(), "arelease", afail)
        with pytest.raises(StoreUnavailable):
            await twin.release(handle)
        assert not handle.lost.is_set()
        handle.ensure_held()
        assert await handle.wait_lost()  # it is not renewed any more
        with pytest.raises(LockLost):
            handle.ensure_held()
        for _ in range(1_000):  # whoever notices first tells, and that may still be at it
            if told:
                break
            await asyncio.sleep(0.01)
        assert told == [handle]
        assert not await twin.release(handle)


async def test_l10_a_release_that_failed_can_be_tried_again(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = locks.backend()
    handle = await twin.acquire(lock("stock"))

    def fail(*_: object) -> bool:
        raise StoreUnavailable("away")

    async def afail(*_: object) -> bool:
        raise StoreUnavailable("away")

    monkeypatch.setattr(backend, "release", fail)
    monkeypatch.setattr(backend, "arelease", afail)
    with pytest.raises(StoreUnavailable):
        await twin.release(handle)
    with pytest.raises(StoreUnavailable):
        async with twin.block(handle):
            pass
    with pytest.raises(KeyError):
        async with twin.block(handle):
            raise KeyError
    monkeypatch.undo()
    assert await twin.release(handle)
    assert locks.backend().get("stock") is None


async def test_l11_an_expired_lock_is_taken_at_once(twin: Twin) -> None:
    handle = await twin.acquire(lock("stock", auto_extend=False))
    expire("stock")
    second = await twin.acquire(lock("stock", blocking=False))
    assert second.token > handle.token
    assert await twin.release(second)
    handle._renewal.stop()


async def test_extending_by_the_handle(twin: Twin) -> None:
    handle = await twin.acquire(lock("stock", 30, auto_extend=False))
    assert await twin.extend(handle, 90_000)
    assert await asyncio.to_thread(_left, "stock") > 60
    assert await twin.extend(handle, timeout=timedelta(minutes=5))
    assert await asyncio.to_thread(_left, "stock") > 240
    assert handle._renewal.deadline - renewal.now() > 240
    assert await twin.extend(handle)
    assert await asyncio.to_thread(_left, "stock") < 60
    assert await twin.release(handle)
    assert not await twin.extend(handle)


def _left(key: str) -> float:
    provider = runtime.adapter().lock
    return provider.store.run(provider.flows.remaining, key)


async def test_a_lock_of_node_is_waited_for(twin: Twin) -> None:
    """It has neither claim nor token."""
    take_over("stock", owner="node")
    raw().update_one({}, {"$unset": {"claim": 1, "token": 1}})
    with pytest.raises(LockNotAcquired):
        await twin.acquire(lock("stock", blocking_timeout=0.1))
    expire("stock")
    async with twin.block(lock("stock")) as handle:
        assert handle.token > 0


async def test_two_releases_at_once_are_one(twin: Twin) -> None:
    handle = await twin.acquire(lock("stock"))
    answers = await asyncio.gather(*(asyncio.to_thread(handle.release) for _ in range(4)))
    assert sorted(answers) == [False, False, False, True]
    assert not handle.lost.is_set()


async def test_the_backend_by_itself(twin: Twin) -> None:
    store = locks.backend()
    handle = await twin.acquire(lock("a"))
    assert [one.key for one in store.list()] == ["a"]
    assert [one.key for one in await store.alist("a|b")] == ["a"]
    assert store.list("b") == []
    assert store.extend(handle, 40)
    assert await store.aextend(handle.inner, timedelta(seconds=40))
    assert await store.aforce_release("a")
    assert not store.force_release("a")
    assert not store.extend(handle, 40)
    assert not await store.arelease(handle)
    assert await store.aget("a") is None
    assert not await twin.release(handle)
    with pytest.raises(InvalidType):
        store.release("a")


async def test_signals_and_log(twin: Twin, caplog: pytest.LogCaptureFixture) -> None:
    from goscope_django import signals

    heard: list[tuple[str, Any]] = []

    def hear(signal: Any, **details: Any) -> None:
        name = next(name for name, one in signals.SIGNALS.items() if one is signal)
        details.pop("sender")
        heard.append((name, details))

    caplog.set_level("DEBUG", "goscope.locks")
    watched = [signals.lock_acquired, signals.lock_released, signals.lock_lost]
    for one in watched:
        one.connect(hear)
    try:
        async with twin.block(lock("a")) as handle:
            pass
        with pytest.raises(LockLost):
            async with twin.block(lock("a")) as second:
                take_over("a")
    finally:
        for one in watched:
            one.disconnect(hear)
    details = [{"key": "a", "owner": held.owner, "token": held.token} for held in (handle, second)]
    assert heard == [
        ("lock_acquired", details[0]),
        ("lock_released", details[0]),
        ("lock_acquired", details[1]),
        ("lock_lost", details[1]),
    ]
    assert [record.levelname for record in caplog.records] == ["DEBUG", "DEBUG", "DEBUG", "WARNING"]


def test_a_handle_that_is_dropped_is_not_renewed_for_ever(store: None) -> None:
    handle = lock("dropped").acquire()
    kept = handle._renewal
    with pytest.warns(ResourceWarning, match="dropped without release"):
        del handle
    assert not kept.active


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"key": 1}, InvalidType),
        ({"key": "k", "timeout": 0}, InvalidValue),
        ({"key": "k", "timeout": -1}, InvalidValue),
        ({"key": "k", "timeout": True}, InvalidType),
        ({"key": "k", "timeout": float("nan")}, InvalidValue),
        ({"key": "k", "blocking_timeout": float("inf")}, InvalidValue),
        ({"key": "k", "blocking_timeout": -1}, InvalidValue),
        ({"key": "k", "blocking": 1}, InvalidType),
        ({"key": "k", "auto_extend": None}, InvalidType),
        ({"key": "k", "owner": b"me"}, InvalidType),
    ],
)
def test_wrong_arguments_are_told_at_once(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        lock(**arguments)
    key = arguments.pop("key")
    if key == "k":
        with pytest.raises(error):
            locks.locked(lambda: "k", **arguments)


def test_the_lease_is_the_settings_default(store: None) -> None:
    from django.conf import settings

    with settings_for(settings.GOSCOPE["TEST"]["URL"], DEFAULT_LOCK_TIMEOUT=500), lock("k") as handle:
        assert _left("k") > 400
        assert handle._renewal.renewable.milliseconds == 500_000


@pytest.mark.parametrize("late", [True, False], ids=["always", "for a while"])
async def test_a_lease_that_ends_before_its_answer_comes_is_an_error_and_no_wait_without_end(
    twin: Twin, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    backend, attempts = locks.backend(), 0

    def slowly() -> None:
        nonlocal attempts
        attempts += 1
        if late or attempts < 4:
            time.sleep(0.02 if late else 0.25)

    def acquire(*args: Any) -> Any:
        got = type(backend).acquire(backend, *args)
        slowly()
        return got

    async def aacquire(*args: Any) -> Any:
        got = await type(backend).aacquire(backend, *args)
        slowly()
        return got

    monkeypatch.setattr(backend, "acquire", acquire, raising=False)
    monkeypatch.setattr(backend, "aacquire", aacquire, raising=False)
    if late:
        with pytest.raises(LockNotAcquired, match=r"lock 'stock': timeout=0.01 s is shorter .* give it a longer one"):
            await twin.acquire(lock("stock", 0.01))
    else:
        handle = await twin.acquire(lock("stock", 0.2))
        assert attempts >= 4
        await twin.release(handle)
