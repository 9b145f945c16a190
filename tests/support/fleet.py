"""Many processes that do the same thing at the same time. ``run_fleet("failures", 8, url, 200)`` is what they returned.

It starts one process, which imports everything and then forks the others. Each of them opens its own client, and all
begin together. Run as a program, this file is that process.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_fleet(task: str, processes: int, *args: Any, timeout: float = 100) -> list[Any]:
    """What ``task`` (a function of this module) returned in each of so many processes; ``args`` are handed to it."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    environ.pop("DJANGO_SETTINGS_MODULE", None)
    program = [sys.executable, "-W", "error::ResourceWarning", "-m", "tests.support.fleet"]
    done = subprocess.run(
        [*program, task, str(processes), json.dumps(args)],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=environ,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[Any] = json.loads(done.stdout)
    assert len(answers) == processes
    for answer in answers:
        assert "error" not in answer, answer["error"]
    return [answer["result"] for answer in answers]


def _adapter(url: str) -> Any:
    from pymongo import MongoClient

    from goscope_django.mongodb import MongoDBAdapter

    return MongoDBAdapter(MongoClient[Any](url).get_default_database())


def failures(number: int, url: str, times: int) -> list[int]:
    """Record so many failures of one circuit; the counts that came back."""
    circuits = _adapter(url).circuit_breaker
    return [circuits.record_failure("shared", 10**6) for _ in range(times)]


def increments(number: int, url: str, times: int) -> list[int]:
    """Add one so many times; the sums that came back."""
    from goscope_django.mongodb.cache.flows import CacheFlows
    from goscope_django.mongodb.codec import Codec

    store, flows = _adapter(url).store, CacheFlows(Codec(pickle=False))
    return [store.run(flows.incr, "cache:counter", 1) or 0 for _ in range(times)]


def signed_increments(number: int, url: str, times: int) -> list[int]:
    """``increments`` of a number that is signed."""
    from goscope_django.mongodb.cache.flows import CacheFlows
    from goscope_django.mongodb.codec import Codec
    from tests.support.codec import HmacSigner

    store, flows = _adapter(url).store, CacheFlows(Codec(signer=HmacSigner()), sign=True)
    store.run(flows.add, "cache:signed", 0, None)
    return [store.run(flows.incr, "cache:signed", 1) or 0 for _ in range(times)]


def critical_sections(number: int, url: str, key: str, folder: str, seconds: float) -> list[int]:
    """Fight for a lock and, with it, for a file that only its holder may have made; the tokens in order.

    The file is the witness: it is made with O_EXCL under the lock, which fails if another holder is inside.
    """
    locks = _adapter(url).lock
    witness, tokens, deadline = Path(folder) / "inside", list[int](), time.monotonic() + seconds
    while time.monotonic() < deadline:
        handle = locks.acquire(key, 20_000)
        if handle is None:
            time.sleep(0.002 * (1 + number % 3))
            continue
        os.close(os.open(witness, os.O_CREAT | os.O_EXCL))
        time.sleep(0.002)
        witness.unlink()
        assert handle.release(), "a lock with a long lease was lost"
        tokens.append(handle.token)
    return tokens


def one_acquisition(number: int, url: str, keys: list[str]) -> list[str]:
    """Try each key once; those that were acquired."""
    locks = _adapter(url).lock
    return [key for key in keys if locks.acquire(key, 60_000) is not None]


def additions(number: int, url: str, keys: list[str]) -> list[str]:
    """``add`` each key once; those that were stored."""
    from goscope_django.mongodb.cache.flows import CacheFlows
    from goscope_django.mongodb.codec import Codec

    store, flows = _adapter(url).store, CacheFlows(Codec(pickle=False))
    return [key for key in keys if store.run(flows.add, f"cache:{key}", number, None)]


def beginnings(number: int, url: str, keys: list[str]) -> list[list[Any]]:
    """``begin`` each key once; those that were started, with their tokens."""
    idempotency = _adapter(url).idempotency
    found = [(key, idempotency.begin(key, 60_000)) for key in keys]
    return [[key, claim.token] for key, claim in found if claim.outcome == "started"]


def leases_of_the_dead(number: int, url: str, key: str, rounds: int) -> list[int]:
    """Take a lock on a short lease again and again and never give it back; the tokens."""
    locks, tokens = _adapter(url).lock, list[int]()
    while len(tokens) < rounds:
        handle = locks.acquire(key, 15, owner=secrets.token_hex(4))
        if handle is not None:
            tokens.append(handle.token)
        time.sleep(0.003)
    return tokens


def main(task: str, processes: int, args: list[Any]) -> int:
    """Fork, let all begin together, and print what each answered."""
    import goscope_django.mongodb  # noqa: F401 - before the fork, so that all begin at once

    begin_read, begin_write = os.pipe()
    pipes, children = [], []
    for number in range(processes):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(begin_write)
            os.read(begin_read, 1)  # returns when the parent closes the other end
            try:
                answer = {"result": globals()[task](number, *args)}
            except BaseException as error:
                answer = {"error": repr(error)}
            with os.fdopen(write, "w") as stream:
                json.dump(answer, stream)
            os._exit(0)
        os.close(write)
        pipes.append(read)
        children.append(child)
    os.close(begin_write)
    answers = []
    for read in pipes:
        with os.fdopen(read) as stream:
            answers.append(json.load(stream))
    for child in children:
        os.waitpid(child, 0)
    print(json.dumps(answers))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])))
