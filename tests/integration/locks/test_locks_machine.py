"""A state machine: two handles' worth of operations against a model that is one variable and a clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb.document import clock
from goscope_django.mongodb.document.lease import renew_all
from goscope_django.mongodb.locks.flows import LEASE, LOCKS
from tests.support.long import examples

KEYS = st.sampled_from(["a", "b"])
OWNERS = st.sampled_from([None, "x", "y"])
TTL = st.integers(1, 5_000)


class ManualClock(clock.LocalClock):
    """Time goes on when it is told to."""

    def __init__(self) -> None:
        self.steps = 0
        self.time = datetime(2030, 1, 1, tzinfo=UTC)

    def _moment(self, milliseconds: int = 0) -> datetime:
        return (self.time + timedelta(milliseconds=milliseconds)).replace(tzinfo=None)

    def read_stamp(self, document: dict[str, Any]) -> datetime:
        return self.time

    def token(self) -> Any:
        # A replica set's clock ticks with every write.
        self.steps += 1
        return int(self.time.timestamp()) * clock.TOKEN_STEPS + self.steps


class Locks(RuleBasedStateMachine):
    """The model: for each key who holds it until when, and the last token."""

    def __init__(self) -> None:
        super().__init__()
        import mongomock

        self.adapter = MongoDBAdapter(mongomock.MongoClient().db, key_prefix="p:")
        self.clock = ManualClock()
        executor: Any = self.adapter.store.executor()
        executor.clock = self.clock
        self.handles: list[Any] = []
        self.model: dict[str, tuple[Any, int]] = {}
        self.tokens: dict[str, int] = {}
        self.elapsed = 0

    def holder(self, key: str) -> Any:
        handle, until = self.model.get(key, (None, 0))
        return handle if until > self.elapsed else None

    def one(self, index: int) -> Any:
        return self.handles[index % len(self.handles)]

    @rule(milliseconds=st.integers(1, 4_000))
    def wait(self, milliseconds: int) -> None:
        self.elapsed += milliseconds
        self.clock.time += timedelta(milliseconds=milliseconds)

    @rule(key=KEYS, ttl=TTL, owner=OWNERS)
    def acquire(self, key: str, ttl: int, owner: str | None) -> None:
        handle = self.adapter.lock.acquire(key, ttl, owner)
        assert (handle is None) == (self.holder(key) is not None)
        if handle is not None:
            assert handle.token > self.tokens.get(key, 0)
            self.tokens[key] = handle.token
            self.model[key] = (handle, self.elapsed + ttl)
            self.handles.append(handle)

    @precondition(lambda self: self.handles)
    @rule(index=st.integers(0, 50))
    def release(self, index: int) -> None:
        handle = self.one(index)
        held = self.holder(handle.key) is handle
        assert handle.release() is held
        if held:
            del self.model[handle.key]

    @precondition(lambda self: self.handles)
    @rule(index=st.integers(0, 50), ttl=TTL)
    def extend(self, index: int, ttl: int) -> None:
        handle = self.one(index)
        held = self.holder(handle.key) is handle
        assert handle.extend(ttl) is held
        if held:
            self.model[handle.key] = (handle, self.elapsed + ttl)

    @precondition(lambda self: self.handles)
    @rule(ttl=TTL)
    def renew_everything(self, ttl: int) -> None:
        """The batch, with every handle that there ever was: it revives nobody and shortens nothing."""
        holders = [(f"p:lock:{one.key}", one.claim) for one in self.handles]
        renewed = self.adapter.store.run(renew_all, LOCKS, "key", LEASE, holders, ttl)
        expected = {handle.claim for key in ("a", "b") if (handle := self.holder(key)) is not None}
        assert renewed == expected
        for key in ("a", "b"):
            if self.holder(key) is not None:
                handle, until = self.model[key]
                self.model[key] = (handle, max(until, self.elapsed + ttl))

    @rule(key=KEYS, owner=OWNERS, ttl=TTL)
    def extend_by_owner(self, key: str, owner: str | None, ttl: int) -> None:
        held = self.holder(key)
        expected = held is not None and held.owner == (owner or "nobody")
        assert self.adapter.lock.extend(key, ttl, owner or "nobody") is expected
        if expected:
            self.model[key] = (held, self.elapsed + ttl)

    @rule(key=KEYS)
    def force_release(self, key: str) -> None:
        assert self.adapter.lock.force_release(key) is (self.holder(key) is not None)
        if self.holder(key) is not None:
            del self.model[key]

    @invariant()
    def observers_see_the_model(self) -> None:
        live = {key: handle for key in ("a", "b") if (handle := self.holder(key)) is not None}
        assert {info.key: info.token for info in self.adapter.lock.list()} == {k: h.token for k, h in live.items()}
        for handle in self.handles:
            assert handle.is_valid() is (live.get(handle.key) is handle)
        for key in ("a", "b"):
            flows = self.adapter.lock.flows
            rest = self.adapter.store.run(flows.remaining, key)
            assert (rest > 0) is (key in live)


TestLocks = Locks.TestCase
TestLocks.settings = settings(max_examples=examples(60), stateful_step_count=25, deadline=None)
