"""What an operator does to circuits and an observer sees of them; ``circuits`` hands these functions on.

Rule of this file: each function is one round trip and holds for the whole fleet. This process obeys at once, the others
with their next reading, a second later at most.
"""

from __future__ import annotations

import re
import time

from goscope_django.circuits import registry as breaker_registry
from goscope_django.core import arguments
from goscope_django.exceptions import InvalidType, InvalidValue
from goscope_django.mongodb.circuits.flows import OperatorFlows, Reading
from goscope_django.mongodb.circuits.table import CircuitInfo
from goscope_django.mongodb.driver.store import Store


def named(name: object) -> str:
    """``name`` if a circuit can have it."""
    text = arguments.key(name, "name")
    if not text:
        raise InvalidValue("name='': a circuit needs a name, or all breakers would share one state")
    return text


def _operator() -> tuple[Store, OperatorFlows]:
    adapter = breaker_registry.current().adapter
    return adapter.store, OperatorFlows(adapter.key_prefix)


def _checked(name: object, reason: object, expected: object) -> tuple[str, str, int | None]:
    if not isinstance(reason, str):
        raise InvalidType(f"reason={reason!r:.80}: text (str) is needed")
    generation = None if expected is None else arguments.count(expected, "expected_generation", least=0)
    return named(name), arguments.key(reason, "reason"), generation


def _obey(name: str, asked: float, found: tuple[CircuitInfo, Reading] | None) -> CircuitInfo | None:
    if found is None:
        return None
    breaker_registry.current().learn(name, found[1], asked)
    return found[0]


def force_open(name: str, reason: str = "", *, expected_generation: int | None = None) -> CircuitInfo | None:
    """Refuse all calls through the circuit until ``reset``, whatever calls report; the circuit as it is then.

    ``None``, and nothing changed, if the circuit's generation is not ``expected_generation``. ``reason`` is kept. One
    atomic update, which makes the circuit if it is not there. Raises ``StoreError``.
    """
    full, note, expected = _checked(name, reason, expected_generation)
    (store, flows), asked = _operator(), time.monotonic()
    return _obey(full, asked, store.run(flows.command, full, "force_open", note, expected))


async def aforce_open(name: str, reason: str = "", *, expected_generation: int | None = None) -> CircuitInfo | None:
    """Asynchronous twin of ``force_open``."""
    full, note, expected = _checked(name, reason, expected_generation)
    (store, flows), asked = _operator(), time.monotonic()
    return _obey(full, asked, await store.arun(flows.command, full, "force_open", note, expected))


def force_close(name: str, reason: str = "", *, expected_generation: int | None = None) -> CircuitInfo | None:
    """Let all calls through until ``reset`` and count no failures; else like ``force_open``."""
    full, note, expected = _checked(name, reason, expected_generation)
    (store, flows), asked = _operator(), time.monotonic()
    return _obey(full, asked, store.run(flows.command, full, "force_close", note, expected))


async def aforce_close(name: str, reason: str = "", *, expected_generation: int | None = None) -> CircuitInfo | None:
    """Asynchronous twin of ``force_close``."""
    full, note, expected = _checked(name, reason, expected_generation)
    (store, flows), asked = _operator(), time.monotonic()
    return _obey(full, asked, await store.arun(flows.command, full, "force_close", note, expected))


def reset(name: str, reason: str = "", *, expected_generation: int | None = None) -> CircuitInfo | None:
    """Remove an operator's override, close the circuit and forget its failures; the circuit as it is then.

    ``None``, and nothing changed, if there is no such circuit or its generation is not ``expected_generation``. One
    atomic update. Raises ``StoreError``.
    """
    full, note, expected = _checked(name, reason, expected_generation)
    (store, flows), asked = _operator(), time.monotonic()
    return _obey(full, asked, store.run(flows.command, full, "reset", note, expected))


async def areset(name: str, reason: str = "", *, expected_generation: int | None = None) -> CircuitInfo | None:
    """Asynchronous twin of ``reset``."""
    full, note, expected = _checked(name, reason, expected_generation)
    (store, flows), asked = _operator(), time.monotonic()
    return _obey(full, asked, await store.arun(flows.command, full, "reset", note, expected))


def get_circuit(name: str) -> CircuitInfo | None:
    """The circuit as it is now by the server's time; ``None`` if nothing was ever written about it."""
    store, flows = _operator()
    return store.run(flows.show, named(name))


async def aget_circuit(name: str) -> CircuitInfo | None:
    """Asynchronous twin of ``get_circuit``."""
    store, flows = _operator()
    return await store.arun(flows.show, named(name))


def list_circuits(pattern: str | re.Pattern[str] | None = None) -> list[CircuitInfo]:
    """The circuits of this project's prefix whose whole name matches the regular expression ``pattern``, by name."""
    test, (store, flows) = arguments.pattern(pattern), _operator()
    return [one for one in store.run(flows.list) if test is None or test.fullmatch(one.name)]


async def alist_circuits(pattern: str | re.Pattern[str] | None = None) -> list[CircuitInfo]:
    """Asynchronous twin of ``list_circuits``."""
    test, (store, flows) = arguments.pattern(pattern), _operator()
    return [one for one in await store.arun(flows.list) if test is None or test.fullmatch(one.name)]
