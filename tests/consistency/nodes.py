"""Three nodes that reach each other through proxies of ours, and whose clocks can be set: ``nodes(3)``.

Rules of this file:

* A member is known to the others by its ``Link``. What comes from another member can be stopped there, in one direction
  or both; what comes from anybody else always passes. Who a connection belongs to stands in its first message, in
  ``hostInfo``, which a ``mongod`` sends when test commands are enabled.
* What is stopped is kept back, as by a network that loses it: connections stay open, and go on when all is healed.
* A clock is set through libfaketime, where it is installed (``CLOCKS``). Only the wall clock is set, not what a process
  measures its waits by.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from tests.consistency.client import FAKETIME
from tests.support.mongod import ReplicaSet
from tests.support.proxy import _message

CLOCKS: Final = FAKETIME is not None
"""Whether clocks of nodes can be set here."""
NOTICED: Final = 1.3
"""Seconds until all threads of a node have seen that its clock was set."""
_SENDER: Final = re.compile(rb"\x02hostInfo\x00.{4}[^\x00]*:(\d+)\x00", re.DOTALL)
_PIECE: Final = 65_536


class Wires:
    """What is stopped between members: pairs of the sender's port and the receiver's."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stopped: set[tuple[int, int]] = set()
        self._over = False

    def stop(self, pairs: Iterable[tuple[int, int]]) -> None:
        """From now on keep back what these send."""
        with self._changed:
            self._stopped |= {*pairs}

    def heal(self) -> None:
        """Hand everything on again."""
        with self._changed:
            self._stopped.clear()
            self._changed.notify_all()

    def end(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def wait(self, sender: int | None, receiver: int | None) -> None:
        """Wait until what is sent may pass."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or (sender, receiver) not in self._stopped)


class Link:
    """The way to the member on ``port``, for the other members and for whoever asks the set for its addresses."""

    def __init__(self, port: int, wires: Wires) -> None:
        self._to = port
        self._wires = wires
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket()
        self._open |= {client, server}
        with suppress(OSError):
            server.connect(("127.0.0.1", self._to))
            first = _message(client)
            told = _SENDER.search(first)
            sender = int(told[1]) if told else None
            self._wires.wait(sender, self._to)
            server.sendall(first)
            answers = threading.Thread(target=self._pump, args=(server, client, self._to, sender), daemon=True)
            answers.start()
            self._pump(client, server, sender, self._to)
            answers.join()
        self._open -= {client, server}
        client.close()
        server.close()

    def _pump(self, source: socket.socket, target: socket.socket, sender: int | None, receiver: int | None) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                self._wires.wait(sender, receiver)
                target.sendall(piece)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it, and all connections through it."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class Nodes(ReplicaSet):
    """A replica set whose members can be cut from each other and be given wrong clocks."""

    catch_up = 100  # so that there are two primaries for more than a second after a cut

    def __init__(self, members: int) -> None:
        self.wires = Wires()
        self._links: dict[int, Link] = {}
        self.clocks: dict[int, float] = {}
        """How many seconds each member's clock was set ahead."""
        super().__init__(members, ["--setParameter", "enableTestCommands=1"])

    def _hosts(self) -> dict[int, int]:
        self._links = {port: Link(port, self.wires) for port in self.ports}
        for port in self.ports:
            self.set_clock(port, 0.0)
        return {port: link.port for port, link in self._links.items()}

    def _clock(self, port: int) -> Path:
        return self._folder / f"clock-{port}"

    def _environment(self, port: int) -> dict[str, str]:
        found = super()._environment(port)
        if FAKETIME is None:
            return found
        # Its mending of waits that go by monotonic time makes each wait of a mongod take tens of milliseconds.
        return found | {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock(port)),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            "FAKETIME_DISABLE_SHM": "1",
        }

    def set_clock(self, port: int, ahead: float) -> None:
        """Set a member's clock so many seconds ahead of the true one. It shows after ``NOTICED`` seconds at the latest,
        also in one that is started later."""
        self.clocks[port] = ahead
        new = self._clock(port).with_suffix(".new")
        new.write_text(f"{ahead:+.3f}\n")
        new.replace(self._clock(port))

    def ahead(self, port: int) -> float:
        """How many seconds a member's clock is ahead of ours."""
        with self.direct(port) as client:
            told: float = client.admin.command("hello")["localTime"].timestamp()
        return told - time.time()

    def direct(self, port: int, **options: Any) -> MongoClient[dict[str, Any]]:
        """A client of one member, which no cut touches."""
        options = {"directConnection": True, "tz_aware": True, "serverSelectionTimeoutMS": 3_000, **options}
        return MongoClient("127.0.0.1", port, **options)

    def isolate(self, port: int, *, inwards: bool = True, outwards: bool = True) -> None:
        """Cut a member off from all others. What it sends is ``outwards``."""
        others = [one for one in self.ports if one != port]
        if outwards:
            self.wires.stop((port, one) for one in others)
        if inwards:
            self.wires.stop((one, port) for one in others)

    def step_up(self, port: int) -> None:
        """Let a member stand for election at once, though it may have heard of the primary a moment ago."""
        with suppress(PyMongoError), self.direct(port) as client:
            client.admin.command("replSetStepUp")

    def wait_for_all(self) -> None:
        """Wait until all members have all writes, so that each can be elected."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with suppress(PyMongoError), self.client() as client:
                told = client.admin.command("replSetGetStatus")["members"]
                if len({one["optime"]["ts"] for one in told}) == 1:
                    return
            time.sleep(0.02)
        raise RuntimeError("the members did not agree within half a minute")

    def believes(self, port: int) -> bool:
        """Whether a member takes itself for the primary."""
        with suppress(PyMongoError), self.direct(port) as client:
            return bool(client.admin.command("hello")["isWritablePrimary"])
        return False

    def stop(self) -> None:
        self.wires.end()
        for link in self._links.values():
            link.close()
        super().stop()


@contextmanager
def nodes(members: int = 3) -> Iterator[Nodes]:
    """Yield such a set, with a primary; stop and remove it afterwards."""
    running = Nodes(members)
    try:
        yield running
    finally:
        running.stop()
