"""Every public operation that writes, sync and async, once for each message that it sends: that one is lost, or the
answer to it, and all else arrives.

No outcome is written down here. An operation is carried out without a loss first, and what it answers and leaves is
compared. With the loss it has to answer and leave the same. Where it may not know (``unknown``) it says so, and each
document is as it was before or as it would be after. What says that nothing was changed has changed nothing.
``test_one_reply_lost`` has the same for the parts of operations, with an outage after it; ``tests.consistency.sweep``
for clients that go on.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId
from django.core.cache import caches

from goscope_django import checkpoints, circuits, locks, operations, runtime
from goscope_django.checkpoints import checkpointed
from goscope_django.circuits import CircuitBreaker
from goscope_django.contracts import Checkpoint, CircuitBreakerState
from goscope_django.core.flow import Flow, acarry_out, call, carry_out
from goscope_django.exceptions import GoscopeError, OutcomeUnknown, StoreUnavailable
from goscope_django.idempotency import idempotent
from goscope_django.sessions import SessionStore
from goscope_django.single_flight import single_flight
from tests.consistency.sweep import Loser
from tests.support.commands import on_server
from tests.support.long import share
from tests.support.mongod import ReplicaSet

pytestmark = [pytest.mark.real, pytest.mark.slow]

DATABASE = "one_lost"
LONG = 6_000
"""Seconds, so that no lease is renewed or ends meanwhile."""
NOW = datetime(2026, 1, 31, tzinfo=UTC)
CACHES: dict[str, dict[str, Any]] = {"default": {}, "signed": {"OPTIONS": {"SIGN": True}}}


@pytest.fixture(scope="module")
def loser(server: ReplicaSet) -> Iterator[Loser]:
    with Loser(server.ports[0]) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def direct(server: ReplicaSet) -> Iterator[Any]:
    with server.client() as client:
        yield client[DATABASE]


@pytest.fixture
def store(loser: Loser) -> Iterator[None]:
    url = f"mongodb://127.0.0.1:{loser.port}/{DATABASE}?directConnection=true&serverSelectionTimeoutMS=5000"
    loser.heal()
    with on_server(url, caches=CACHES):
        runtime.adapter().ensure_indexes()
        yield
    loser.heal()


def on(subject: Any, name: str, *args: Any, **kwargs: Any) -> Flow[Any]:
    """Call a method or function of that name, or its async twin."""
    return call(getattr(subject, name), getattr(subject, f"a{name}"), *args, **kwargs)


def nothing() -> Flow[None]:
    yield from ()


@dataclass(frozen=True)
class Case:
    """``act`` gets what ``before`` gave. ``unknown``: it has a command that is not repeated (of several documents)."""

    act: Callable[[Any], Flow[Any]]
    before: Callable[[], Flow[Any]] = nothing
    unknown: bool = False


# Locks


def adapter(provider: str) -> Any:
    return getattr(runtime.adapter(), provider)


_numbers = itertools.count()
_current = [0]
_taken: list[Any] = []


def key() -> str:
    """A name that is new in each scene: a process remembers locks and circuits by their names."""
    return f"key-{_current[0]}"


def lock_taken() -> Flow[Any]:
    found = yield from on(locks.lock(key(), LONG), "acquire")
    _taken.append(found)
    return found


def block(subject: Any) -> Flow[Any]:
    yield from call(subject.__enter__, subject.__aenter__)
    yield from call(subject.__exit__, subject.__aexit__, None, None, None)


def taken_and_given() -> Flow[Any]:
    return block(locks.lock(key(), LONG))


def released(found: Any) -> Flow[Any]:
    return (yield from on(found, "release"))


def held_by_us() -> Flow[Any]:
    found = yield from lock_taken()
    return found is not None


LOCKS = {
    "lock acquire": Case(lambda _: held_by_us()),
    "lock block": Case(lambda _: taken_and_given()),
    "lock release": Case(released, lock_taken),
    "lock extend": Case(lambda found: on(found, "extend", timeout=2 * LONG), lock_taken),
    "cache.lock": Case(lambda _: block(caches["default"].lock(key(), timeout=LONG))),  # type: ignore[attr-defined]
    "operations.release_lock": Case(lambda _: on(operations, "release_lock", key()), lock_taken),
    "lock.force_release": Case(lambda _: on(adapter("lock"), "force_release", key()), lock_taken),
}


# Circuits


class BodyError(Exception):
    """What a call through a breaker raises."""


def passed(fails: bool, **options: Any) -> Flow[Any]:
    breaker = CircuitBreaker(key(), **{"failure_threshold": 1, "reset_timeout": LONG, **options})
    yield from call(breaker.__enter__, breaker.__aenter__)
    error = (BodyError, BodyError(), None) if fails else (None, None, None)
    yield from call(breaker.__exit__, breaker.__aexit__, *error)


def opened() -> Flow[Any]:
    return passed(True)


def one_failure() -> Flow[Any]:
    return on(adapter("circuit_breaker"), "record_failure", key(), 9)


CIRCUITS = {
    "breaker, a success": Case(lambda _: passed(False)),
    "breaker, a success after a failure": Case(lambda _: passed(False, failure_threshold=3), one_failure),
    "breaker, a failure": Case(lambda _: passed(True)),
    "circuit.record_failure": Case(lambda _: one_failure(), one_failure),
    "circuit.record_success": Case(lambda _: on(adapter("circuit_breaker"), "record_success", key()), one_failure),
    "circuit.set_state": Case(
        lambda _: on(adapter("circuit_breaker"), "set_state", key(), CircuitBreakerState("open", 3, None, None))
    ),
    "circuit.delete": Case(lambda _: on(adapter("circuit_breaker"), "delete", key()), opened),
    "force_open": Case(lambda _: silent(on(circuits, "force_open", key()))),
    "force_close": Case(lambda _: silent(on(circuits, "force_close", key())), opened),
    "reset": Case(lambda _: silent(on(circuits, "reset", key())), opened),
    "operations.open_circuit": Case(lambda _: done(on(operations, "open_circuit", key())), opened),
    "operations.close_circuit": Case(lambda _: done(on(operations, "close_circuit", key())), opened),
    "operations.reset_circuit": Case(lambda _: done(on(operations, "reset_circuit", key())), opened),
}


def silent(flow: Flow[Any]) -> Flow[None]:
    yield from flow


def done(flow: Flow[Any]) -> Flow[Any]:
    found = yield from flow
    return type(found).__name__


# The cache


def cached(name: str, *args: Any, alias: str = "default", **kwargs: Any) -> Flow[Any]:
    return on(caches[alias], name, *args, **kwargs)


def filled(alias: str = "default") -> Flow[None]:
    yield from cached("set", "k", [1], LONG, alias=alias)
    yield from cached("set", "n", 5, LONG, alias=alias)
    yield from cached("set", "tagged", [2], LONG, alias=alias, tags=["a", "b"])
    yield from cached("get_or_set", "stale", [3], LONG, alias=alias, tags=["a"], stale=LONG)


WRITES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "set": ("set", ("k", [9], LONG), {}),
    "set new": ("set", ("new", [9], LONG), {}),
    "set nx": ("set", ("new", [9], LONG), {"nx": True}),
    "set xx": ("set", ("k", [9], LONG), {"xx": True}),
    "set tags": ("set", ("k", [9], LONG), {"tags": ["a", "new"]}),
    "set for no time": ("set", ("k", [9], 0), {}),
    "add": ("add", ("new", [9], LONG), {}),
    "add in vain": ("add", ("k", [9], LONG), {}),
    "get_or_set": ("get_or_set", ("new", [9], LONG), {}),
    "get_or_set tags": ("get_or_set", ("new", [9], LONG), {"tags": ["a", "new"], "stale": LONG}),
    "incr": ("incr", ("n",), {}),
    "decr": ("decr", ("n", 2), {}),
    "touch": ("touch", ("k", 2 * LONG), {}),
    "touch tagged": ("touch", ("tagged", 2 * LONG), {}),
    "touch stale": ("touch", ("stale", 2 * LONG), {}),
    "persist": ("persist", ("k",), {}),
    "expire_at": ("expire_at", ("tagged", datetime(2126, 1, 1, tzinfo=UTC)), {}),
    "delete": ("delete", ("k",), {}),
    "delete tagged": ("delete", ("tagged",), {}),
    "delete nothing": ("delete", ("nothing",), {}),
    "incr_version": ("incr_version", ("k",), {}),
    "set_many": ("set_many", ({"k": 1, "new": 2}, LONG), {}),
    "delete_many": ("delete_many", (["k", "n"],), {}),
    "delete_pattern": ("delete_pattern", ("*a*",), {}),
    "invalidate_tags": ("invalidate_tags", ("a", "b"), {}),
    "clear": ("clear", (), {}),
    "remove_all": ("remove_all", (), {}),
}
OF_MANY = {"delete_many", "delete_pattern", "clear", "remove_all", "set_many", "incr_version"}


def write(alias: str, name: str) -> Case:
    method, args, kwargs = WRITES[name]
    return Case(
        lambda _: cached(method, *args, alias=alias, **kwargs), lambda: filled(alias), unknown=method in OF_MANY
    )


CACHE = {f"{alias} {name}": write(alias, name) for alias in CACHES for name in WRITES}


# Sessions


def session() -> Flow[Any]:
    made = SessionStore()
    made["user"] = 1
    yield from on(made, "create")
    return SessionStore(made.session_key)


def changed(found: SessionStore, *args: Any) -> Flow[Any]:
    yield from on(found, "load")
    found["more"] = 2
    yield from on(found, "save", *args)


SESSIONS = {
    "session create": Case(lambda _: silent(session())),
    "session save": Case(changed, session),
    "session delete": Case(lambda found: on(found, "delete"), session),
    "session flush": Case(lambda found: on(found, "flush"), session),
    "session cycle_key": Case(lambda found: on(found, "cycle_key"), session),
}


# Flights and idempotency


def plain(key: str) -> str:
    return f"value of {key}"


async def aplain(key: str) -> str:
    return plain(key)


flight: dict[str, Any] = {"timeout": LONG, "key": "{key}", "name": "lost", "on_error": "raise"}
once: dict[str, Any] = {"lease": LONG, "key": "{key}", "name": "lost"}
FLY, ONCE = SimpleNamespace(), SimpleNamespace()
FLY.fly, FLY.afly = single_flight(**flight)(plain), single_flight(**flight)(aplain)
ONCE.once, ONCE.aonce = idempotent(**once)(plain), idempotent(**once)(aplain)


def begun() -> Flow[Any]:
    return on(adapter("idempotency"), "begin", "i", LONG * 1_000, None, LONG * 1_000)


def recorded() -> Flow[Any]:
    return on(adapter("idempotency"), "set", "i", "value", LONG * 1_000)


CLAIMS = {
    "single flight": Case(lambda _: on(FLY, "fly", key())),
    "idempotent": Case(lambda _: on(ONCE, "once", key())),
    "idempotent again": Case(lambda _: on(ONCE, "once", key()), lambda: on(ONCE, "once", key())),
    "idempotency.begin": Case(lambda _: outcome(begun())),
    "idempotency.begin again": Case(lambda _: outcome(begun()), recorded),
    "idempotency.complete": Case(lambda found: on(adapter("idempotency"), "complete", "i", found.token, 1), begun),
    "idempotency.abandon": Case(lambda found: on(adapter("idempotency"), "abandon", "i", found.token), begun),
    "idempotency.extend": Case(
        lambda found: on(adapter("idempotency"), "extend", "i", found.token, 2_000 * LONG), begun
    ),
    "idempotency.set": Case(lambda _: recorded()),
    "idempotency.delete": Case(lambda _: on(adapter("idempotency"), "delete", "i"), recorded),
    "operations.delete_idempotency": Case(lambda _: on(operations, "delete_idempotency", "i"), recorded),
}


def outcome(flow: Flow[Any]) -> Flow[Any]:
    found = yield from flow
    return found.outcome, found.value


# Tasks


def task_block(**options: Any) -> Any:
    return checkpointed(key(), lease=LONG, on_sigterm=False, **options)


def worked(error: type[Exception] | None = None) -> Flow[Any]:
    one = task_block()
    task = yield from call(one.__enter__, one.__aenter__)
    yield from on(task, "save", {"n": 1})
    yield from on(task, "save", {"n": 2})
    ended = (None, None, None) if error is None else (error, error("x"), None)
    yield from call(one.__exit__, one.__aexit__, *ended)
    return task.data


def failed() -> Flow[Any]:
    return worked(BodyError)


def saved() -> Flow[None]:
    for number in (1, 2, 3):
        yield from on(adapter("checkpoint"), "save", Checkpoint(f"c{number}", key(), number, NOW, data=number))


TASKS = {
    "task": Case(lambda _: worked()),
    "task that fails": Case(lambda _: failed()),
    "task after a failure": Case(lambda _: worked(), failed),
    "cancel_task": Case(lambda _: on(checkpoints, "cancel_task", key()), failed),
    "reset_task": Case(lambda _: on(checkpoints, "reset_task", key()), failed, unknown=True),
    "delete_task": Case(lambda _: on(checkpoints, "delete_task", key()), failed, unknown=True),
    "cleanup_tasks": Case(lambda _: on(checkpoints, "cleanup_tasks"), worked, unknown=True),
    "operations.cancel_task": Case(lambda _: done(on(operations, "cancel_task", key())), failed),
    "operations.reset_task": Case(lambda _: done(on(operations, "reset_task", key())), failed, unknown=True),
    "operations.delete_task": Case(lambda _: done(on(operations, "delete_task", key())), failed, unknown=True),
    "operations.cleanup_checkpoints": Case(
        lambda _: done(on(operations, "cleanup_checkpoints", key(), 1)), saved, unknown=True
    ),
    "checkpoint.save": Case(lambda _: on(adapter("checkpoint"), "save", Checkpoint("c4", key(), 4, NOW)), saved),
    "checkpoint.cleanup": Case(lambda _: on(adapter("checkpoint"), "cleanup", key(), 1), saved, unknown=True),
    "checkpoint.delete_all": Case(lambda _: on(adapter("checkpoint"), "delete_all", key()), saved, unknown=True),
}

CASES: dict[str, Case] = {**LOCKS, **CIRCUITS, **CACHE, **SESSIONS, **CLAIMS, **TASKS}


# What is left of it


_RANDOM = re.compile(r":[\w-]{6}:[\w-]{43}|[0-9a-z]{16,}|key-\d+")


_CHANGING = {"took", "owner", "leader", "holder"}


def shape(value: Any, now: datetime) -> Any:
    """``value`` without what differs each time: random texts, tokens, signatures, times to the quarter of an hour. A
    field that is null is as one that is missing."""
    if isinstance(value, dict):
        kept = {name: one for name, one in value.items() if one is not None and name not in _CHANGING}
        return {name: shape(kept[name], now) for name in sorted(kept)}
    if isinstance(value, list):
        return [shape(one, now) for one in value]
    if isinstance(value, datetime):
        return f"in {round((value - now).total_seconds() / 900)} quarters"
    if isinstance(value, str):
        return _RANDOM.sub("random", value)
    if isinstance(value, int) and value > 2**40:
        return "token"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return "id" if isinstance(value, ObjectId) else value


def left(direct: Any) -> list[str]:
    now = direct.client.admin.command("hello")["localTime"]
    found = []
    for name in sorted(direct.list_collection_names()):
        if name not in ("go_goscope_stats", "go_goscope_losses"):
            found += [f"{name} {shape(one, now)}" for one in direct[name].find()]
    return sorted(found)


class Scene:
    """Carries out a case with a message lost, sync or async."""

    def __init__(self, case: Case, mode: str, loser: Loser, direct: Any) -> None:
        self.case = case
        self.mode = mode
        self.loser = loser
        self.direct = direct
        self.before: list[str] = []

    def play(self, way: str, number: int) -> tuple[Any, list[str]]:
        """What came of it, an error or a value, and what is left."""
        self.loser.heal()
        _current[0] = next(_numbers)
        for name in self.direct.list_collection_names():
            self.direct[name].delete_many({})

        def scene() -> Flow[Any]:
            given = yield from self.case.before()
            self.before = left(self.direct)
            self.loser.arm(way, number)
            try:
                return (yield from self.case.act(given))
            except (OutcomeUnknown, StoreUnavailable, BodyError) as error:
                return error

        try:
            found = carry_out(scene()) if self.mode == "sync" else asyncio.run(acarry_out(scene()))
        finally:
            self.count = self.loser.count
            hit = self.loser.hit
            self.loser.heal()
        state = left(self.direct)
        for one in _taken:
            with suppress(GoscopeError):
                one.release()
        _taken.clear()
        assert hit or way == "none", "so many messages were sent"
        return found, state


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("name", CASES)
def test_one_message_lost(name: str, mode: str, store: None, loser: Loser, direct: Any) -> None:
    case = CASES[name]
    scene = Scene(case, mode, loser, direct)
    expected, after = scene.play("none", 10**6)
    before, messages = scene.before, scene.count
    assert messages, "it sends something"
    pairs = [(way, number) for number in range(1, messages + 1) for way in ("answer", "command")]
    turn = list(CASES).index(name) + (mode == "async")
    for way, number in share(pairs, turn) or pairs[:1]:
        found, state = scene.play(way, number)
        told = f"{way} {number} of {messages}: {found!r}\nbefore {before}\nafter {after}\nleft {state}"
        if isinstance(found, StoreUnavailable):
            assert state == before, told
        elif isinstance(found, OutcomeUnknown):
            assert case.unknown, told
            assert {*state} <= {*before, *after}, told
        else:
            assert (shape(repr(found), NOW), state) == (shape(repr(expected), NOW), after), told
