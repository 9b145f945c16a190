"""Works on a replica set without a pause and writes down what it was told: ``failover_worker.py URL NUMBER SECONDS``.

Lines of JSON: locks held from when to when (monotonic time, which all processes of a machine share) with their tokens,
sums acknowledged, and how often an operation raised.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from pymongo import MongoClient

from goscope_django.exceptions import OutcomeUnknown, StoreError
from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb.cache.flows import CacheFlows
from goscope_django.mongodb.codec import Codec


def main(url: str, number: int, seconds: float) -> None:
    """Loop until the time is over; print what happened."""
    client = MongoClient[dict[str, Any]](url)
    adapter = MongoDBAdapter(client.get_default_database())
    flows, store = CacheFlows(Codec(pickle=False)), adapter.store
    held: list[tuple[float, float, int]] = []
    sums: list[int] = []
    kept: list[str] = []
    unknown = failed = unknown_sums = 0
    deadline = time.monotonic() + seconds
    print("ready", flush=True)
    while time.monotonic() < deadline:
        try:
            handle = adapter.lock.acquire("shared", 60_000)
            if handle is not None:
                taken = time.monotonic()
                time.sleep(0.005)
                given_back = time.monotonic()
                held.append((taken, given_back, handle.token))
                while True:  # it is ours until it is given back, whatever happens to the servers
                    try:
                        assert handle.release()
                        break
                    except StoreError:
                        failed += 1
        except OutcomeUnknown:
            unknown += 1
        except StoreError:
            failed += 1
        try:
            found = store.run(flows.incr, "cache:counter", 1)
            if found is not None:
                sums.append(found)
        except StoreError:
            unknown_sums += 1
        name = f"kept-{number}-{len(kept)}"
        try:
            if adapter.lock.acquire(name, 600_000) is not None:
                kept.append(name)
        except StoreError:
            failed += 1
    answer = {"held": held, "sums": sums, "kept": kept, "unknown": unknown, "failed": failed}
    print(json.dumps({**answer, "unknown sums": unknown_sums}))
    client.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
