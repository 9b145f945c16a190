"""What tests of locks share: sync and async behind one interface, documents, and a lock that another process holds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from django.test import override_settings
from pymongo import MongoClient

from goscope_django import runtime
from goscope_django.locks import HeldLock, Lock

LOCKS = "go_goscope_locks"


class Sync:
    """Calls the sync methods."""

    asynchronous = False

    async def acquire(self, one: Lock) -> HeldLock:
        return one.acquire()

    async def release(self, handle: HeldLock) -> bool:
        return handle.release()

    async def extend(self, handle: HeldLock, ttl: Any = None, **more: Any) -> bool:
        return handle.extend(ttl, **more)

    async def is_valid(self, handle: HeldLock) -> bool:
        return handle.is_valid()

    @asynccontextmanager
    async def block(self, one: Lock | HeldLock) -> AsyncIterator[HeldLock]:
        with one as handle:
            yield handle


class Async:
    """Calls the async versions."""

    asynchronous = True

    async def acquire(self, one: Lock) -> HeldLock:
        return await one.aacquire()

    async def release(self, handle: HeldLock) -> bool:
        return await handle.arelease()

    async def extend(self, handle: HeldLock, ttl: Any = None, **more: Any) -> bool:
        return await handle.aextend(ttl, **more)

    async def is_valid(self, handle: HeldLock) -> bool:
        return await handle.ais_valid()

    @asynccontextmanager
    async def block(self, one: Lock | HeldLock) -> AsyncIterator[HeldLock]:
        async with one as handle:
            yield handle


Twin = Sync | Async


@contextmanager
def settings_for(url: str, **goscope: Any) -> Iterator[None]:
    """``GOSCOPE`` leads to ``url``."""
    with override_settings(GOSCOPE={"TEST": {"URL": url}, **goscope}):
        yield


def raw() -> Any:
    """The collection of locks: by a client of the tests' own on a real server, else mongomock's."""
    executor = runtime.adapter().store.executor()
    return executor.collection(LOCKS)


def take_over(key: str, **fields: Any) -> None:
    """Another process holds ``key`` now, whoever held it before: what an acquisition after an expiry leaves behind."""
    document = {
        "owner": "another",
        "claim": "another's",
        "token": 2**60,
        "createdAt": datetime.now(UTC),
        "expiresAt": datetime.now(UTC) + timedelta(hours=1),
        **fields,
    }
    full = f"{runtime.adapter().key_prefix}lock:{key}"
    raw().update_one({"key": full}, {"$set": document}, upsert=True)


def expire(key: str) -> None:
    """The lease of ``key`` ended an hour ago."""
    full = f"{runtime.adapter().key_prefix}lock:{key}"
    ended = datetime.now(UTC) - timedelta(hours=1)
    assert raw().update_one({"key": full}, {"$set": {"expiresAt": ended}}).matched_count == 1


@contextmanager
def without_ttl_monitor(url: str) -> Iterator[None]:
    """The server removes nothing of its own accord."""
    with MongoClient[dict[str, Any]](url) as client:
        client.admin.command("setParameter", 1, ttlMonitorEnabled=False)
        try:
            yield
        finally:
            client.admin.command("setParameter", 1, ttlMonitorEnabled=True)
