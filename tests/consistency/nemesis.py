"""What goes wrong in a run: a schedule that follows from a seed, and who carries it out.

Rules of this file:

* A fault begins and ends. After the last one all is healed, and the moment is noted in the history.
* Clients reach each node through a proxy, the nodes each other through another one (``nodes``). So a cut may separate
  clients from nodes or nodes from each other.
* Clients have two *sides*, each with proxies of its own. Where a primary is cut off from the other nodes, one side
  sees it alone, and the other side the others alone.
* Wrong clocks of nodes end with all nodes having the latest time that one had. While they last is noted in the history.
"""

from __future__ import annotations

import random
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from pymongo import WriteConcern
from pymongo.errors import PyMongoError

from tests.consistency.client import Client
from tests.consistency.history import Recorder
from tests.consistency.nodes import CLOCKS, NOTICED, Nodes
from tests.support.proxy import Proxy

COMMANDS: Final = ("findAndModify", "findAndModify", "update", "update", "delete", "insert", "find")
STARTING: Final = 3.0
"""Seconds after which a killed client is replaced, at least."""


@dataclass(frozen=True)
class Fault:
    """One fault: ``at`` so many seconds after the beginning, for ``lasting`` seconds. ``choice`` is a number in [0, 1)
    that picks its victim; ``what`` is a command's name, ``times`` how often its answer is lost."""

    at: float
    kind: str
    lasting: float = 0.0
    choice: float = 0.0
    what: str = ""
    times: int = 1

    def __str__(self) -> str:
        more = f" {self.times} x {self.what}" if self.what else ""
        return f"{self.at:7.2f} {self.kind}{more} for {self.lasting:.2f} s, {self.choice:.3f}"


def schedule(seed: int, seconds: float, kinds: Sequence[str] = ()) -> list[Fault]:
    """The faults of a run of so many seconds: always the same ones for a seed. Each kind has its turn, or each of
    ``kinds``."""
    dice, found, at = random.Random(f"faults {seed}"), list[Fault](), 0.3
    turns, kinds = list[str](), kinds or KINDS
    while True:
        if not turns:
            turns = dice.sample(kinds, len(kinds))
            turns += ["lose"] * 2 if "lose" in kinds else []
        kind = turns.pop()
        shortest, longest = _LENGTHS[kind]
        lasting = dice.uniform(shortest, longest)
        if at + lasting > seconds:
            return found
        what = dice.choice(COMMANDS) if kind == "lose" else ""
        found.append(Fault(at, kind, lasting, dice.random(), what, dice.choice((1, 1, 1, 2, 3))))
        at += lasting + dice.uniform(0.05, 0.5)


_LENGTHS: Final[dict[str, tuple[float, float]]] = {
    "lose": (0.2, 0.5),
    "kill primary": (1.5, 3.0),
    "stop primary": (0.5, 4.0),
    "kill secondary": (0.5, 2.0),
    "step down": (0.5, 1.0),
    "cut primary": (0.5, 3.0),
    "cut all": (0.2, 2.5),
    "delay": (0.5, 1.5),
    "kill client": (0.2, 0.6),
    "stop client": (0.5, 3.0),
    "stop clients": (0.3, 1.2),
    "remove": (0.3, 0.8),
    "part primary": (1.5, 4.0),
    "part primary in secret": (1.5, 4.0),
    "part one way": (1.0, 4.0),
    "part secondary": (0.5, 3.0),
    "set clock": (3.3, 5.0),
    "set clock of next": (5.0, 7.0),
}
"""Seconds that a fault lasts, from and to."""
PARTS: Final = tuple(kind for kind in _LENGTHS if kind.startswith("part"))
WRONG_CLOCKS: Final = tuple(kind for kind in _LENGTHS if kind.startswith("set clock"))
KINDS: Final = tuple(kind for kind in _LENGTHS if CLOCKS or kind not in WRONG_CLOCKS)
AHEAD: Final = (-600.0, -60.0, -7.0, -2.0, 2.0, 7.0, 60.0, 600.0)
"""Seconds by which a clock of a node is set."""


class Way(Proxy):
    """A client's way to one node. It names the nodes by their ways in what they say of their replica set."""

    def __init__(self, port: int) -> None:
        self.names: dict[str, str] = {}
        self.delay = 0.0
        super().__init__(port)

    def _rewritten(self, name: str, answer: bytes) -> bytes:
        if self.delay:
            time.sleep(self.delay)
        if name != "hello":
            return answer
        self._rewrite = self._renamed
        return super()._rewritten(name, answer)

    def _renamed(self, name: str, reply: dict[str, Any]) -> dict[str, Any]:
        for field in ("hosts", "passives", "arbiters"):
            if field in reply:
                reply[field] = [self.names.get(one, one) for one in reply[field]]
        for field in ("me", "primary"):
            if field in reply:
                reply[field] = self.names.get(reply[field], reply[field])
        return reply

    def cut(self) -> None:
        """Break all connections, and refuse new ones."""
        self._cut = True
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()
        self._threads = [one for one in self._threads if one.is_alive()]

    def heal(self) -> None:
        super().heal()
        self.delay = 0.0


class Nemesis:
    """Carries out a schedule on ``nodes``, each side's ways to them, and ``clients``."""

    def __init__(
        self,
        nodes: Nodes,
        sides: Sequence[dict[int, Way]],
        clients: list[Client],
        recorder: Recorder,
        database: str,
        replace: Callable[[Client], Client],
    ) -> None:
        self.nodes = nodes
        self.sides = sides
        self.ways = [way for side in sides for way in side.values()]
        self.clients = clients
        self.recorder = recorder
        self.database = database
        self.replace = replace
        self._primary = nodes.primary_port()

    def run(self, faults: list[Fault]) -> None:
        """Carry them out in their time, then heal all."""
        began = time.monotonic()
        for fault in faults:
            time.sleep(max(0.0, began + fault.at - time.monotonic()))
            self.recorder.note("nemesis.begin", str(fault))
            getattr(self, "_" + fault.kind.replace(" ", "_"))(fault)
            self.recorder.note("nemesis.end", fault.kind)
        for way in self.ways:
            way.heal()
        self.nodes.wires.heal()
        self.nodes.primary_port()
        self.recorder.note("nemesis.healed")

    def primary(self) -> int:
        """The primary's port, or the last one that is known while there is none."""
        with suppress(PyMongoError), self.nodes.client() as client:
            client.admin.command("ping")
            if client.primary is not None:
                self._primary = self.nodes.member(client.primary)
        return self._primary

    def _lose(self, fault: Fault) -> None:
        for way in self.ways:
            way.lose_answers(fault.what, fault.times)
        time.sleep(fault.lasting)
        for way in self.ways:
            way.heal()

    def _kill_primary(self, fault: Fault) -> None:
        self._without(self.primary(), signal.SIGKILL, fault)

    def _stop_primary(self, fault: Fault) -> None:
        self._without(self.primary(), signal.SIGSTOP, fault)

    def _kill_secondary(self, fault: Fault) -> None:
        others = [port for port in self.nodes.ports if port != self.primary()]
        self._without(others[int(fault.choice * len(others))], signal.SIGKILL, fault)

    def _without(self, port: int, number: int, fault: Fault) -> None:
        self.nodes.signal(port, number)
        time.sleep(fault.lasting)
        self.nodes.resume(port)

    def _step_down(self, fault: Fault) -> None:
        with suppress(PyMongoError):
            self.nodes.step_down(1)
        time.sleep(fault.lasting)

    def _cut_primary(self, fault: Fault) -> None:
        primary = self.primary()
        self._cut_some([side[primary] for side in self.sides], fault)

    def _cut_all(self, fault: Fault) -> None:
        self._cut_some(self.ways, fault)

    def _cut_some(self, ways: list[Way], fault: Fault) -> None:
        for way in ways:
            way.cut()
        time.sleep(fault.lasting)
        for way in ways:
            way.heal()

    def _part_primary(self, fault: Fault) -> None:
        """Cut the primary off from the others, which elect another one at once. The old one notices later."""
        port = self.primary()
        self._part(port, fault, apart=True)

    def _part_primary_in_secret(self, fault: Fault) -> None:
        """The same, while all clients see all nodes."""
        self._part(self.primary(), fault, apart=False)

    def _part(self, port: int, fault: Fault, *, apart: bool) -> None:
        others = [one for one in self.nodes.ports if one != port]
        cut = [self.sides[0][one] for one in others] + [self.sides[1][port]] if apart else []
        self.nodes.isolate(port)
        for way in cut:
            way.cut()
        began = time.monotonic()
        self.nodes.step_up(others[int(fault.choice * len(others))])
        time.sleep(max(0.0, began + fault.lasting - time.monotonic()))
        self.nodes.wires.heal()
        for way in cut:
            way.heal()

    def _part_one_way(self, fault: Fault) -> None:
        """What the primary sends to the others is lost, or what they send to it."""
        inwards = fault.choice < 0.5
        self.nodes.isolate(self.primary(), inwards=inwards, outwards=not inwards)
        time.sleep(fault.lasting)
        self.nodes.wires.heal()

    def _part_secondary(self, fault: Fault) -> None:
        others = [port for port in self.nodes.ports if port != self.primary()]
        self.nodes.isolate(others[int(fault.choice * len(others))])
        time.sleep(fault.lasting)
        self.nodes.wires.heal()

    def _set_clock(self, fault: Fault) -> None:
        """The primary's clock jumps, and jumps again."""
        port = self.primary()
        with self._wrong_clocks(fault) as (first, second):
            for ahead in (first, second):
                self.nodes.set_clock(port, ahead)
                time.sleep((fault.lasting - NOTICED) / 2)

    def _set_clock_of_next(self, fault: Fault) -> None:
        """The clock of a secondary is wrong, and it becomes the primary. Later the clock of the old one is wrong, and
        it comes back."""
        old = self.primary()
        others = [port for port in self.nodes.ports if port != old]
        new = others[int(fault.choice * len(others))]
        with self._wrong_clocks(fault) as (first, second):
            for port, ahead in ((new, first), (old, second)):
                self.nodes.set_clock(port, ahead)
                time.sleep(NOTICED)
                self.nodes.step_up(port)
                time.sleep((fault.lasting - 3 * NOTICED) / 2)

    @contextmanager
    def _wrong_clocks(self, fault: Fault) -> Iterator[tuple[float, float]]:
        """Two times for clocks, as seconds ahead of ours. Afterwards all have the latest one that somebody had."""
        number = int(fault.choice * len(AHEAD) ** 2)
        before = max(self.nodes.clocks.values())
        wrong = before + AHEAD[number % len(AHEAD)], before + AHEAD[number // len(AHEAD)]
        self.recorder.note("clocks.wrong", str(wrong))
        try:
            yield wrong
        finally:
            for port in self.nodes.ports:
                self.nodes.set_clock(port, max(before, *wrong))
            time.sleep(NOTICED)
            self.recorder.note("clocks.agree", str(max(before, *wrong)))

    def _delay(self, fault: Fault) -> None:
        for way in self.ways:
            way.delay = 0.02 + 0.2 * fault.choice
        time.sleep(fault.lasting)
        for way in self.ways:
            way.delay = 0.0

    def _chosen(self, fault: Fault) -> int:
        return int(fault.choice * len(self.clients))

    def _kill_client(self, fault: Fault) -> None:
        number = self._chosen(fault)
        self.clients[number].kill()
        time.sleep(fault.lasting)
        self.clients[number] = self.replace(self.clients[number])

    def _stop_client(self, fault: Fault) -> None:
        self._stopped([self.clients[self._chosen(fault)]], fault)

    def _stop_clients(self, fault: Fault) -> None:
        """All but one."""
        spared = self._chosen(fault)
        self._stopped([one for number, one in enumerate(self.clients) if number != spared], fault)

    def _stopped(self, clients: list[Client], fault: Fault) -> None:
        for one in clients:
            one.signal(signal.SIGSTOP)
        try:
            time.sleep(fault.lasting)
        finally:
            for one in clients:
                one.signal(signal.SIGCONT)

    def _remove(self, fault: Fault) -> None:
        """Remove documents of locks by hand, again and again."""
        until = time.monotonic() + fault.lasting
        with self.nodes.client(socketTimeoutMS=3_000) as client:
            locks = client[self.database].get_collection("go_goscope_locks", write_concern=WriteConcern("majority"))
            while time.monotonic() < until:
                with suppress(PyMongoError):
                    locks.delete_many({"key": {"$regex": "^lock:hand"}})
                time.sleep(0.02)
