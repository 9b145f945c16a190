"""Programs that use the package, for the type checker only: ``make lint`` checks this file, and nothing runs it.

Each line with ``type: ignore`` is a mistake that mypy must find: it complains about an ignore that is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, assert_type

from django.http import HttpRequest, HttpResponse
from django.urls import path
from pymongo import AsyncMongoClient, MongoClient
from pymongo.collection import Collection

from goscope_django.cache import CacheLock
from goscope_django.cache import cache as django_cache
from goscope_django.checkpoints import TaskAlreadyRunning, checkpointed
from goscope_django.circuits import CircuitBreaker, CircuitOpen
from goscope_django.contracts import (
    CacheProvider,
    Checkpoint,
    CheckpointProvider,
    CircuitBreakerState,
    CircuitBreakerStateProvider,
    IdempotencyClaim,
    IdempotencyProvider,
    IdempotencyRecord,
    LockHandle,
    LockInfo,
    LockProvider,
)
from goscope_django.decorators import cached, cached_page, idempotent, locked, single_flight
from goscope_django.fencing import fenced_update_one
from goscope_django.idempotency import Attempt, IdempotencyConflict, IdempotentRequest
from goscope_django.locks import HeldLock, LockLost, LockNotAcquired, lock
from goscope_django.mongodb import MongoDBAdapter, MongoDBIdempotencyAdapter

client: MongoClient[dict[str, Any]] = MongoClient("mongodb://localhost/shop")
adapter = MongoDBAdapter(client.shop, key_prefix="shop:", default_lock_ttl=30_000)


def the_providers_keep_their_contracts() -> None:
    lock: LockProvider = adapter.lock
    circuits: CircuitBreakerStateProvider = adapter.circuit_breaker
    cache: CacheProvider = adapter.cache
    checkpoints: CheckpointProvider = adapter.checkpoint
    idempotency: IdempotencyProvider = adapter.idempotency
    alone: IdempotencyProvider = MongoDBIdempotencyAdapter(client.shop, key_prefix="")
    print(lock, circuits, cache, checkpoints, idempotency, alone)


def connecting() -> None:
    adapter.connect()
    adapter.ensure_indexes()
    assert_type(adapter.is_connected(), bool)
    adapter.disconnect()


def locks() -> None:
    handle = adapter.lock.acquire("stock", timedelta(seconds=5), owner="me")
    handle.release()  # type: ignore[union-attr]  # None when somebody else holds it
    if handle is None:
        return
    same: LockHandle = handle
    assert_type(handle.token, int)
    assert_type(handle.expires_at, datetime)
    assert_type(handle.extend(5_000), bool)
    assert_type(handle.is_valid(), bool)
    assert_type(handle.release(), bool)
    with handle as inner:
        assert_type(inner.key, str)
    assert_type(adapter.lock.extend("stock", 5_000, "me"), bool)
    assert_type(adapter.lock.force_release("stock"), bool)
    assert_type(adapter.lock.get("stock"), LockInfo | None)
    infos: Sequence[LockInfo] = adapter.lock.list("st.*")
    infos[0].owner = "you"  # type: ignore[misc]  # values are frozen
    adapter.lock.acquire("stock", 1.5)  # type: ignore[arg-type]  # milliseconds are whole
    adapter.lock.acquire(b"stock")  # type: ignore[arg-type]
    print(same)


def circuits() -> None:
    assert_type(adapter.circuit_breaker.get_state("supplier"), CircuitBreakerState | None)
    adapter.circuit_breaker.set_state("supplier", CircuitBreakerState("half-open", 3))
    CircuitBreakerState("ajar")  # type: ignore[arg-type]
    assert_type(adapter.circuit_breaker.record_failure("supplier", 5), int)
    adapter.circuit_breaker.record_success("supplier")
    states: Mapping[str, CircuitBreakerState] = adapter.circuit_breaker.list()
    assert_type(adapter.circuit_breaker.delete("supplier"), bool)
    print(states)


def cache() -> None:
    adapter.cache.set("price", {"amount": 3.5}, 60_000)
    found = adapter.cache.get("price")
    print(found["amount"])
    assert_type(adapter.cache.has("price"), bool)
    keys: Sequence[str] = adapter.cache.keys("pr.*")
    print(keys)


def checkpoints(now: datetime) -> None:
    adapter.checkpoint.save(Checkpoint("1", "import", 0, now, 12.5, {"row": 7}))
    assert_type(adapter.checkpoint.load_latest("import"), Checkpoint | None)
    assert_type(adapter.checkpoint.load("1"), Checkpoint | None)
    assert_type(adapter.checkpoint.cleanup("import", 3), int)


def idempotency() -> None:
    assert_type(adapter.idempotency.get("order"), IdempotencyRecord | None)
    claim = adapter.idempotency.begin("order", 60_000, fingerprint="abc", lease_ttl=timedelta(seconds=30))
    assert_type(claim, IdempotencyClaim)
    if claim.outcome == "started" and claim.token is not None:
        assert_type(adapter.idempotency.complete("order", claim.token, {"status": 201}), bool)
        assert_type(adapter.idempotency.abandon("order", claim.token), bool)
        assert_type(adapter.idempotency.extend("order", claim.token, 30_000), bool)


async def the_twins_are_coroutines() -> None:
    twin = MongoDBAdapter(AsyncMongoClient[dict[str, Any]]("mongodb://localhost/shop").shop)
    await twin.aconnect()
    handle = await twin.lock.aacquire("stock")
    if handle is not None:
        async with handle:
            assert_type(await handle.ais_valid(), bool)
        assert_type(await handle.aextend(5_000), bool)
        assert_type(await handle.arelease(), bool)
    assert_type(await twin.circuit_breaker.arecord_failure("supplier", 5), int)
    assert_type(await twin.cache.ahas("price"), bool)
    assert_type(await twin.checkpoint.aload_latest("import"), Checkpoint | None)
    assert_type(await twin.idempotency.abegin("order", 60_000), IdempotencyClaim)


def locks_of_django(things: Collection[dict[str, Any]]) -> None:
    with lock("stock", timedelta(seconds=5), blocking_timeout=0.5, owner="me") as held:
        handle: LockHandle = held
        assert_type(held, HeldLock)
        assert_type(held.lost.is_set(), bool)
        assert_type(held.extend(timeout=3), bool)
        held.on_lost(lambda lost: print(lost.token))
        assert_type(fenced_update_one(things, {"_id": 1}, {"$set": {"left": 3}}, held).matched_count, int)
    lock("stock", blocking_timeout="5")  # type: ignore[arg-type]
    with django_cache.lock("rebuild", 5) as built:
        assert_type(built, CacheLock)
        assert_type(built.token, int)
        assert_type(built.extend(5), bool)
    assert_type(django_cache.lock("rebuild", timeout=5, sleep=0.1, blocking_timeout=1).acquire(blocking=False), bool)
    assert_type(django_cache.set("price", 1, nx=True), bool)
    print(handle)

    @cached(60, key="price:{product}", stale=600, tags=("product:{product}",))
    def price(product: int) -> float:
        return product * 1.5

    assert_type(price(7), float)
    assert_type(django_cache.invalidate_tags("product:7"), int)
    django_cache.get_or_set("price", price, 60, stale=600, background=True, tags=("shop",))
    print(cached_page(60, tags=lambda request: ["shop"]))

    @locked("report", 30)
    def report(day: int, *, full: bool = False) -> str:
        return f"{day} {full}"

    assert_type(report(1, full=True), str)
    report("1")  # type: ignore[arg-type]

    @locked(lambda day: f"report:{day}")
    async def areport(day: int) -> bytes:
        return b""

    async def use() -> None:
        assert_type(await areport(1), bytes)
        async with lock("stock") as other:
            assert_type(await other.wait_lost(), bool)

    print(use)


def the_cache_of_django_is_ours() -> None:
    assert_type(django_cache.ttl("price"), int | None)
    assert_type(django_cache.pttl("price"), int | None)
    assert_type(django_cache.expire("price", 30), bool)
    assert_type(django_cache.persist("price"), bool)
    for key in django_cache.iter_keys("price:*"):
        assert_type(key, str)
    try:
        with django_cache.lock("rebuild", 5, blocking=False):
            pass
    except (LockNotAcquired, LockLost) as error:
        assert_type(error.key, str)
    django_cache.nonsense()  # type: ignore[attr-defined]


@idempotent(required=True)
def pay(request: IdempotentRequest, order: int) -> HttpResponse:
    assert_type(request.idempotency, Attempt | None)
    if request.idempotency is not None:
        assert_type(request.idempotency.key, str)
    return HttpResponse(request.headers["X-Order"])


@single_flight(key="report:{year}")
async def report_of(year: int) -> bytes:
    return b""


@single_flight()
def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("")


urlpatterns = [path("pay/<int:order>/", pay), path("", page)]


@idempotent(key="charge:{order}", name="charge")
def charge(order: int) -> str:
    return str(order)


async def errors_are_where_they_are_raised() -> None:
    assert_type(await report_of(2026), bytes)
    await report_of("2026")  # type: ignore[arg-type]
    try:
        assert_type(charge(1), str)
    except IdempotencyConflict as error:
        assert_type(error.retry_after, float)
    try:
        with checkpointed("import") as task:
            assert_type(list(task.track(range(3))), list[int])
    except TaskAlreadyRunning as error:
        assert_type((error.task_id, error.retry_after), tuple[str, float])
    try:
        assert_type(CircuitBreaker("supplier").call(len, "abc"), int)
    except CircuitOpen as error:
        assert_type((error.name, error.retry_after), tuple[str, float])
    raise LockNotAcquired("held", "stock")
