"""Circuits in tests: both stores, sync and async, and documents that are aged by updates rather than by waiting."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from django.test import override_settings

from goscope_django import circuits, runtime, signals
from goscope_django.circuits import CircuitBreaker, CircuitInfo, registry
from goscope_django.circuits.snapshot import NEW
from goscope_django.mongodb.circuits.document import CIRCUITS

STORES = ["mock", "real"]
KINDS = ["sync", "async"]


class Boom(Exception):
    """What the guarded calls of the tests fail with."""


class Caller:
    """Makes calls of one kind, sync or async, for a test that is written once."""

    def __init__(self, name: str, runner: asyncio.Runner) -> None:
        self.name = name
        self._runner = runner

    def operate(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """``circuits.<name>(...)`` or its async version."""
        if self.name == "sync":
            return getattr(circuits, name)(*args, **kwargs)
        return self._runner.run(getattr(circuits, f"a{name}")(*args, **kwargs))

    def call(self, breaker: CircuitBreaker, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``fn`` through ``breaker``."""
        if self.name == "sync":
            return breaker.call(fn, *args, **kwargs)

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return fn(*args, **kwargs)

        return self._runner.run(breaker.acall(awaited, *args, **kwargs))

    def ends(self, breaker: CircuitBreaker, error: BaseException | None = None) -> str:
        """How a call that returns, or raises ``error``, ends: ``ok``, ``refused`` or the error's name."""

        def body() -> str:
            if error is not None:
                raise error
            return "ok"

        try:
            return str(self.call(breaker, body))
        except circuits.CircuitOpen:
            return "refused"
        except BaseException as raised:
            if raised is not error:
                raise
            return type(raised).__name__

    @contextmanager
    def running(self, breaker: CircuitBreaker, error: BaseException | None = None) -> Iterator[None]:
        """A call that is admitted here and ends with the block, with ``error`` if one is given."""
        if self.name == "sync":
            try:
                with breaker:
                    yield
                    if error is not None:
                        raise error
            except BaseException as raised:
                if raised is not error:
                    raise
            return
        # The context manager's two ends run in one task's context only if the test asks for it.
        snap = self._runner.run(breaker._aenter())
        yield
        outcome = "success" if error is None else breaker._judge.outcome(error)
        self._runner.run(breaker._aleave(snap, outcome))


@contextmanager
def caller(name: str) -> Iterator[Caller]:
    with asyncio.Runner() as runner:
        yield Caller(name, runner)


@contextmanager
def own_store(url: str, **settings: Any) -> Iterator[str]:
    """Settings for ``url`` with a key prefix of the test's own, which is yielded."""
    prefix = f"{uuid.uuid4().hex[:8]}:"
    with override_settings(GOSCOPE={"TEST": {"URL": url, "KEY_PREFIX": prefix}}, **settings):
        registry.forget()
        try:
            yield prefix
        finally:
            registry.forget()


def documents() -> Any:
    """The raw collection of circuits, of either store."""
    return runtime.connection().sync().database[CIRCUITS]


def document(name: str) -> dict[str, Any] | None:
    """The circuit's raw document."""
    found: dict[str, Any] | None = documents().find_one({"key": f"{runtime.adapter().key_prefix}circuit:{name}"})
    return found


def age_all_but_probes(name: str, seconds: float) -> None:
    """``age``, but the probes that run keep their leases."""
    before = (document(name) or {}).get("probes")
    age(name, seconds)
    documents().update_one({"_id": (document(name) or {})["_id"]}, {"$set": {"probes": before}})
    look_again()


def age(name: str, seconds: float) -> None:
    """Let everything in the circuit's document have happened ``seconds`` earlier, and this process look again."""

    def older(value: Any) -> Any:
        if isinstance(value, datetime):
            return value - timedelta(seconds=seconds)
        if isinstance(value, dict):
            return {key: older(one) for key, one in value.items()}
        return [older(one) for one in value] if isinstance(value, list) else value

    found = document(name)
    assert found
    documents().replace_one({"_id": found["_id"]}, older(found))
    look_again()


def look_again() -> None:
    """Let this process read all circuits anew at its next call, as any other process would."""
    found = registry.current()
    found.due = 0.0
    for view in found.views.values():
        view.snap = NEW


def stale() -> None:
    """Let what this process knows of all circuits be a second old."""
    found = registry.current()
    found.due = 0.0
    for view in found.views.values():
        view.snap.closed_until = view.known_until = 0.0


def shown(name: str) -> CircuitInfo:
    """The circuit, which must exist."""
    found = circuits.get_circuit(name)
    assert found
    return found


@contextmanager
def heard(*names: str) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The signals of these names (all of a circuit if none is given) that are sent in the block."""
    received: list[tuple[str, dict[str, Any]]] = []
    wanted = names or ("circuit_opened", "circuit_half_opened", "circuit_closed")

    def receiver_of(name: str) -> Callable[..., None]:
        def receive(sender: object, signal: object, **details: Any) -> None:
            received.append((name, details))

        return receive

    receivers = [(signals.SIGNALS[name], receiver_of(name)) for name in wanted]
    for signal, receiver in receivers:
        signal.connect(receiver, weak=False)
    try:
        yield received
    finally:
        for signal, receiver in receivers:
            signal.disconnect(receiver)
