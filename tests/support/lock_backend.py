"""A lock backend without MongoDB, as a user of the package would write one."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from goscope_django.contracts import LockInfo


@dataclass
class MemoryHandle:
    key: str
    owner: str
    token: int
    expires_at: datetime
    until: float


class MemoryBackend:
    """Locks of one process, in a dictionary."""

    def __init__(self) -> None:
        self.held: dict[str, MemoryHandle] = {}
        self.tokens = itertools.count(1)
        self.guard = threading.Lock()
        self.calls: list[str] = []
        self.hang: threading.Event | None = None

    def acquire(self, key: str, timeout: Any = None, owner: str | None = None) -> MemoryHandle | None:
        self.calls.append("acquire")
        with self.guard:
            if (found := self.held.get(key)) is not None and found.until > time.monotonic():
                return None
            handle = MemoryHandle(key, owner or "somebody", next(self.tokens), datetime.now(UTC), 0.0)
            self.held[key] = handle
            self._grant(handle, timeout)
            return handle

    def _grant(self, handle: MemoryHandle, timeout: float) -> None:
        handle.until = time.monotonic() + timeout
        handle.expires_at = datetime.now(UTC) + timedelta(seconds=timeout)

    def extend(self, handle: MemoryHandle, timeout: float) -> bool:
        self.calls.append("extend")
        if self.hang is not None:
            self.hang.wait()
        with self.guard:
            if self.held.get(handle.key) is not handle or handle.until <= time.monotonic():
                return False
            self._grant(handle, timeout)
            return True

    def release(self, handle: MemoryHandle) -> bool:
        self.calls.append("release")
        with self.guard:
            if self.held.get(handle.key) is not handle or handle.until <= time.monotonic():
                return False
            del self.held[handle.key]
            return True

    def force_release(self, key: str) -> bool:
        return self.held.pop(key, None) is not None

    def get(self, key: str) -> LockInfo | None:
        self.calls.append("get")
        found = self.held.get(key)
        if found is None or found.until <= time.monotonic():
            return None
        return LockInfo(key, found.owner, found.token, None, found.expires_at)

    def list(self, pattern: str | None = None) -> Any:
        return [self.get(key) for key in self.held]

    async def aacquire(self, key: str, timeout: Any = None, owner: str | None = None) -> MemoryHandle | None:
        return self.acquire(key, timeout, owner)

    async def aextend(self, handle: MemoryHandle, timeout: float) -> bool:
        return self.extend(handle, timeout)

    async def arelease(self, handle: MemoryHandle) -> bool:
        return self.release(handle)

    async def aforce_release(self, key: str) -> bool:
        return self.force_release(key)

    async def aget(self, key: str) -> LockInfo | None:
        return self.get(key)

    async def alist(self, pattern: str | None = None) -> Any:
        return self.list(pattern)


class SyncBackend:
    """``MemoryBackend`` for sync code alone: it has no async versions."""

    def __init__(self) -> None:
        memory = MemoryBackend()
        self.acquire = memory.acquire
        self.extend = memory.extend
        self.release = memory.release
        self.force_release = memory.force_release
        self.get = memory.get
        self.list = memory.list
