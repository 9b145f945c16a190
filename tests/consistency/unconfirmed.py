"""The planted fault that needs three nodes and some luck: writes that one node alone has confirmed are lost with it.

``python -m tests.consistency.unconfirmed`` (``make soak``): two nodes are frozen and what the third sends them does not
fit in their sockets any more, something is counted, the third is killed, the two go on. A few rounds are made, since a
primary that is alone steps down after a second and a half.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pymongo import MongoClient, WriteConcern
from pymongo.errors import PyMongoError

from goscope_django.core.flow import carry_out, invoke
from goscope_django.mongodb import MongoDBAdapter
from tests.consistency import faults, harness
from tests.consistency.checkers import Violation, check
from tests.consistency.history import Recorder, read
from tests.support.mongod import ReplicaSet, replica_set

ROUNDS: Final = 8
FILLING: Final = [b"x" * 2_000_000] * 12
"""More than a socket and its reader's hold, by far."""


def play(nodes: ReplicaSet, folder: Path, number: int) -> list[Violation]:
    """One round; what the checkers say of it."""
    recorder, key = Recorder(folder / f"c{number}.jsonl", f"c{number}"), f"failures:{number}"
    with MongoClient[dict[str, Any]](harness.url_of(nodes.ports, "alone", serverSelectionTimeoutMS=2_000)) as client:
        database = client.get_default_database()
        circuits = MongoDBAdapter(database).circuit_breaker

        def record(name: str, flow: Any, shown: Any = lambda value: value) -> None:
            carry_out(recorder.call(name, key, flow, shown))

        primary = nodes.primary_port()
        record("count.add", invoke(circuits.record_failure, key, 10**9))
        others = [port for port in nodes.ports if port != primary]
        for port in others:
            nodes.signal(port, signal.SIGSTOP)
        with suppress(PyMongoError):
            filler = database.get_collection("filling", write_concern=WriteConcern(1))
            for one in FILLING:
                filler.insert_one({"x": one})
            record("count.add", invoke(circuits.record_failure, key, 10**9))
        nodes.signal(primary, signal.SIGKILL)
        for port in others:
            nodes.resume(port)
        nodes.primary_port()
        record("count.read", invoke(circuits.get_state, key), lambda found: found.failure_count if found else 0)
        nodes.resume(primary)
    return check(read([folder / f"c{number}.jsonl"]))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, replica_set(3) as nodes:
        sound = play(nodes, Path(folder), 0)
        faults.plant("unconfirmed_writes")
        found: set[str] = set()
        for number in range(1, ROUNDS + 1):
            found |= {one.checker for one in play(nodes, Path(folder), number)}
            if found:
                break
    print(f"writes that one node confirmed: {len(sound)} violations, with the fault planted: {sorted(found) or 'none'}")
    return 0 if not sound and found == {"counters"} else 1


if __name__ == "__main__":
    sys.exit(main())
