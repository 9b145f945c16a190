"""What an operator does to circuits, and what an observer sees of them.

Each function is one round trip, and each command holds for the whole fleet. This process obeys at once, other processes
with their next reading, as a rule a second later.
"""

from __future__ import annotations

import re
import time

from goscope_django.circuits import registry
from goscope_django.core import arguments
from goscope_django.core.flow import Flow, acarry_out, call, carry_out
from goscope_django.exceptions import InvalidType
from goscope_django.mongodb.circuits.table import CircuitInfo, Command


def force_open(name: str, reason: str = "", *, expected_generation: int | None = None) -> CircuitInfo | None:
    """Refuse all calls through the circuit ``name`` until ``reset``, whatever calls report; the circuit as it is then.

    ``None``, and nothing changed, if the circuit's generation is not ``expected_generation``. ``reason`` is kept in its
    history. One round trip, an atomic update, which makes the circuit if it does not exist. Raises ``InvalidType`` or
    ``InvalidValue`` for a bad argument, else ``StoreError``.
    """
    return carry_out(_command("force_open", name, reason, expected_generation))


async def aforce_open(name: str, reason: str = "", *, expected_generation: int | None = None) -> CircuitInfo | None:
    """Async version of ``force_open``."""
    return await acarry_out(_command("force_open", name, reason, expected_generation))


def force_close(name: str, reason: str = "", *, expected_generation: int | None = None) -> CircuitInfo | None:
    """Let all calls through until ``reset``, and count no failures. The rest is as in ``force_open``."""
    return carry_out(_command("force_close", name, reason, expected_generation))


async def aforce_close(name: str, reason: str = "", *, expected_generation: int | None = None) -> CircuitInfo | None:
    """Async version of ``force_close``."""
    return await acarry_out(_command("force_close", name, reason, expected_generation))


def reset(name: str, reason: str = "", *, expected_generation: int | None = None) -> CircuitInfo | None:
    """Remove an operator's override, close the circuit ``name`` and forget its failures; the circuit as it is then.

    ``None``, and nothing changed, if there is no such circuit or its generation is not ``expected_generation``.
    ``reason`` is kept in its history. One round trip, an atomic update. Raises ``InvalidType`` or ``InvalidValue`` for
    a bad argument, else ``StoreError``.
    """
    return carry_out(_command("reset", name, reason, expected_generation))


async def areset(name: str, reason: str = "", *, expected_generation: int | None = None) -> CircuitInfo | None:
    """Async version of ``reset``."""
    return await acarry_out(_command("reset", name, reason, expected_generation))


def get_circuit(name: str) -> CircuitInfo | None:
    """The circuit ``name`` as it is now by the server's time; ``None`` if nothing was ever written about it.

    One round trip. Raises ``InvalidType`` or ``InvalidValue`` for a bad name, else ``StoreError``.
    """
    return carry_out(_show(name))


async def aget_circuit(name: str) -> CircuitInfo | None:
    """Async version of ``get_circuit``."""
    return await acarry_out(_show(name))


def list_circuits(pattern: str | re.Pattern[str] | None = None) -> list[CircuitInfo]:
    """The circuits of this project's prefix whose whole name matches the regular expression ``pattern``, by name.

    One round trip. The pattern is code, never a user's text. Raises ``InvalidType`` or ``InvalidValue`` for a bad one,
    else ``StoreError``.
    """
    return carry_out(_list(pattern))


async def alist_circuits(pattern: str | re.Pattern[str] | None = None) -> list[CircuitInfo]:
    """Async version of ``list_circuits``."""
    return await acarry_out(_list(pattern))


def _command(command: Command, name: object, reason: object, expected: object) -> Flow[CircuitInfo | None]:
    """Carry out the command, and let this process obey it at once."""
    if not isinstance(reason, str):
        raise InvalidType(f"reason={reason!r:.80}: text (str) is needed")
    generation = None if expected is None else arguments.count(expected, "expected_generation", least=0)
    full, note = registry.circuit_name(name), arguments.key(reason, "reason")
    known, asked = registry.current(), time.monotonic()
    store = known.adapter.store
    found = yield from call(store.run, store.arun, known.flows.command, full, command, note, generation)
    if found is None:
        return None
    info: CircuitInfo
    info, reading = found
    known.learn(full, reading, asked)
    return info


def _show(name: object) -> Flow[CircuitInfo | None]:
    known = registry.current()
    store = known.adapter.store
    found: CircuitInfo | None = yield from call(store.run, store.arun, known.flows.show, registry.circuit_name(name))
    return found


def _list(pattern: str | re.Pattern[str] | None) -> Flow[list[CircuitInfo]]:
    test, known = arguments.pattern(pattern), registry.current()
    store = known.adapter.store
    found = yield from call(store.run, store.arun, known.flows.list)
    return [one for one in found if test is None or test.fullmatch(one.name)]
