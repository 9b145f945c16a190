"""What an operator sees of circuits and does to them, for the whole fleet.

Rule of this file: an operator's word is one update. It wins over whatever calls report, since every other update and
every process asks for ``override`` first; with an expected generation it is refused if the circuit has moved since.
"""

from __future__ import annotations

from typing import Any

from pymongo.errors import DuplicateKeyError

from goscope_django.mongodb.breaker_table import COMMANDS, CircuitInfo, Command
from goscope_django.mongodb.breakers import FIELDS, BreakerFlows, Reading
from goscope_django.mongodb.circuit_document import info, move
from goscope_django.mongodb.circuits import CIRCUITS
from goscope_django.mongodb.expressions import COUNTABLE, Clock, literal, prefix_range
from goscope_django.mongodb.flow import Flow, ask
from goscope_django.mongodb.lease import new_claim


class OperatorFlows(BreakerFlows):
    """The operations of one prefix, as flows. Each is one command."""

    def command(
        self, clock: Clock, name: str, command: Command, note: str, expected: int | None
    ) -> Flow[tuple[CircuitInfo, Reading] | None]:
        """Carry out ``command``: what came of it. ``None`` if the generation is not ``expected``, or nothing is there
        to reset."""
        claim, to = new_claim(), COMMANDS[command]
        # Whatever is no generation reads as 0.
        unmoved = {"$not": {"$gte": 1, "$lt": COUNTABLE}}
        test = {} if expected is None else {"generation": expected or unmoved}

        def make() -> list[dict[str, Any]]:
            said = {"state": to.to, "reason": literal(note), "at": clock.now()}
            return [
                {"$set": move(clock, True, to, claim, note=note)},
                {"$set": {"override": {"$cond": [command == "reset", None, said]}}},
            ]

        insert = command != "reset" and not expected
        try:
            found = yield from self.update(clock, name, make, claim, test=test, insert=insert)
        except DuplicateKeyError:
            if expected is None:
                raise
            return None  # asked for a circuit that has not moved yet, but it has
        return (info(name, found.document, found.now), found) if found.document and found.now else None

    def show(self, clock: Clock, name: str) -> Flow[CircuitInfo | None]:
        found = yield from ask(CIRCUITS, "find_one", {"key": self.prefix + name}, {**FIELDS, **clock.stamp()})
        return info(name, found, clock.read_stamp(found)) if found else None

    def list(self, clock: Clock) -> Flow[list[CircuitInfo]]:
        test = {"key": prefix_range(self.prefix)}
        found = yield from ask(CIRCUITS, "find", test, {**FIELDS, **clock.stamp()}, sort=[("key", 1)])
        return [info(one["key"][len(self.prefix) :], one, clock.read_stamp(one)) for one in found]
