"""Circuit breakers that a whole fleet shares.

``CircuitBreaker`` guards calls to something that may fail. ``force_open``, ``force_close`` and ``reset`` are for
operators, ``list_circuits`` and ``get_circuit`` for observers. Making a breaker or looking at a circuit never writes.

A call through a closed circuit sends nothing. The first call in a process reads its circuit, with one command of one
key. A failure is one command, and so is the first success after one. Each process reads all circuits in use at most
once a second, with one command. While MongoDB can't be reached, breakers go
on with this process's own state; the events ``degraded`` and ``recovered`` tell of it once each.
"""

from __future__ import annotations

from goscope_django.circuits.breaker import CircuitBreaker, circuit_breaker
from goscope_django.circuits.operators import (
    aforce_close,
    aforce_open,
    aget_circuit,
    alist_circuits,
    areset,
    force_close,
    force_open,
    get_circuit,
    list_circuits,
    reset,
)
from goscope_django.exceptions import CircuitOpen
from goscope_django.mongodb.circuits.table import (
    CircuitFailure,
    CircuitInfo,
    CircuitOverride,
    CircuitProbe,
    CircuitTransition,
)

__all__ = [
    "CircuitBreaker",
    "CircuitFailure",
    "CircuitInfo",
    "CircuitOpen",
    "CircuitOverride",
    "CircuitProbe",
    "CircuitTransition",
    "aforce_close",
    "aforce_open",
    "aget_circuit",
    "alist_circuits",
    "areset",
    "circuit_breaker",
    "force_close",
    "force_open",
    "get_circuit",
    "list_circuits",
    "reset",
]
