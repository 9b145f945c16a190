"""Programs that tests start as processes of their own, with warnings as errors: ``process_scripts.py NAME URL``.

Each prints what it found as JSON on its last line; whatever is on stderr is a complaint.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
established: list[str] = []


def set_up(url: str, **more: Any) -> None:
    """Configure Django for ``url``."""
    import django
    from django.conf import settings

    settings.configure(
        SECRET_KEY="only-for-tests-" + "x" * 50,
        GOSCOPE={"URL": url, **more},
        CACHES={"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}},
        INSTALLED_APPS=["goscope_django"],
    )
    django.setup()


def sockets() -> list[str]:
    """The sockets of this process, by the kernel's number."""
    found = []
    for one in Path("/proc/self/fd").iterdir():
        try:
            target = str(one.readlink())
        except OSError:
            continue
        if target.startswith("socket:"):
            found.append(target)
    return sorted(found)


def settle() -> None:
    """Wait until the driver's threads of start-up have ended: they look only twice a second whether they should."""
    deadline = time.monotonic() + 10
    while any(one.name.startswith("pymongo") for one in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)


def _client() -> Any:
    from goscope_django import runtime

    return runtime.connection().sync().database.client


def _connections() -> list[int]:
    """The server's numbers of the connections that this process's client has open for commands."""
    status = _client().admin.command("hello")
    return [int(status["connectionId"])]


def _use(child: str) -> dict[str, Any]:
    """What a forked child does: everything, in both colours."""
    from django.core.cache import cache

    from goscope_django import runtime

    # Those of the parent's client, not one that a thread of it was just making when it forked.
    inherited = set(sockets()).intersection(established)
    cache.set(f"from-{child}", child, 60)
    found = cache.get("from-parent")

    async def both() -> Any:
        await cache.aset(f"async-{child}", child, 60)
        return await cache.aget("from-parent")

    asynchronous = asyncio.run(both())
    handle = runtime.adapter().lock.acquire(f"lock-{child}", 10_000)
    released = handle is not None and handle.release()
    return {
        "found": [found, asynchronous],
        "released": released,
        "connection": _connections(),
        "inherited": len(inherited),
        "kept": sorted(inherited & set(sockets())) == sorted(inherited),
    }


def _parent(url: str) -> dict[str, Any]:
    """Open a client and use it in both colours, as a process may before it forks."""
    set_up(url)
    settle()
    from django.core.cache import cache

    cache.set("from-parent", "parent", 60)
    before: dict[str, Any] = {"connection": _connections(), "sockets": sockets()}
    established.extend(before["sockets"])
    asyncio.run(cache.aget("from-parent"))
    return before


def _after(before: dict[str, Any], children: list[dict[str, Any]]) -> dict[str, Any]:
    """The parent goes on with the very connection that it had."""
    from django.core.cache import cache

    return {
        "children": children,
        "found": [cache.get(f"from-{number}") for number in range(len(children))],
        "same connection": _connections() == before["connection"],
        "same sockets": set(before["sockets"]) <= set(sockets()),
        "own": before["connection"],
    }


def fork_os(url: str) -> dict[str, Any]:
    """``os.fork`` with an open client; the children end in order, with all that is done at an interpreter's exit."""
    before, children = _parent(url), []
    for number in range(2):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            with os.fdopen(write, "w") as stream:
                json.dump(_use(str(number)), stream)
            sys.exit(0)
        os.close(write)
        with os.fdopen(read) as stream:
            children.append(json.load(stream))
        assert os.waitpid(pid, 0)[1] == 0
    gc.collect()
    return _after(before, children)


def _put(queue: Any, number: int) -> None:
    queue.put(_use(str(number)))


def fork_multiprocessing(url: str) -> dict[str, Any]:
    """The same by ``multiprocessing`` with the start method "fork"; two children, one after the other."""
    before, children, context = _parent(url), [], multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    for number in range(2):
        process = context.Process(target=_put, args=(queue, number))
        process.start()
        children.append(queue.get())
        process.join(30)
        assert process.exitcode == 0, process.exitcode
    return _after(before, children)


def fork_in_a_loop(url: str) -> dict[str, Any]:
    """``os.fork`` while an event loop with an open asynchronous client runs; the child ends in order."""
    before, children = _parent(url), []
    from django.core.cache import cache

    async def inside() -> None:
        assert await cache.aget("from-parent") == "parent"
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            answer: list[Any] = []
            # A loop runs on this thread as far as Python knows, so the child works on another one.
            worker = threading.Thread(target=lambda: answer.append(_use("0")))
            worker.start()
            worker.join()
            with os.fdopen(write, "w") as stream:
                json.dump(answer[0], stream)
            sys.stdout.flush()
            gc.collect()
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as stream:
            children.append(json.load(stream))
        assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222 - it has ended
        assert await cache.aget("from-parent") == "parent"

    asyncio.run(inside())
    return _after(before, children)


def many_loops(url: str) -> dict[str, Any]:
    """Event loops one after the other, each of which uses the cache: what stays open afterwards."""
    set_up(url)
    from django.core.cache import cache

    async def use(number: int) -> Any:
        await cache.aset("k", number)
        return await asyncio.gather(*(cache.aget("k") for _ in range(5)))

    settle()
    before = len(sockets())
    found = [asyncio.run(use(number)) for number in range(15)]
    gc.collect()
    return {"right": found == [[number] * 5 for number in range(15)], "left open": len(sockets()) - before}


def ready(url: str) -> dict[str, Any]:
    """What is there after ``django.setup()``, and after the first use."""
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logging.getLogger("goscope").addHandler(Listener(logging.WARNING))
    import pymongo  # noqa: F401 - what it opens of its own accord does not count

    threads, open_before = threading.active_count(), sockets()
    started = time.monotonic()
    set_up(url)
    taken = time.monotonic() - started
    from goscope_django.mongodb.driver import client as clients

    # A driver's threads look only twice a second whether they should end; a fork that comes earlier waits for them.
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    at_fork = threading.active_count() - threads
    os.waitpid(pid, 0)
    settle()
    return {
        "seconds": taken,
        "threads": at_fork,
        "threads in the end": threading.active_count() - threads,
        "sockets": len(sockets()) - len(open_before),
        "clients": sum(one._client is not None for one in clients._connections.values()),
        "heard": heard,
    }


def fail_fast(url: str) -> dict[str, Any]:
    """``FAIL_FAST`` with a server that is away."""
    from goscope_django.exceptions import StoreUnavailable

    try:
        set_up(url, FAIL_FAST=True)
    except StoreUnavailable as error:
        return {"raised": str(error)}
    return {"raised": None}


def later(url: str) -> dict[str, Any]:
    """Start while the server is away, and use it once it is there: a line on stdin says that it is."""
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logging.getLogger("goscope").addHandler(Listener(logging.WARNING))
    set_up(url)
    print("away", flush=True)
    sys.stdin.readline()
    from django.core.cache import cache

    from goscope_django import runtime

    cache.set("k", 1)
    states = {one.state for one in runtime.adapter().check_indexes()}
    return {"heard": heard, "found": cache.get("k"), "indexes": sorted(states)}


def main(name: str, url: str) -> None:
    """Run one of the programs above."""
    warnings.simplefilter("error")
    # From 3.12 on Python warns of any fork of a process with threads; an open client of PyMongo has some.
    warnings.filterwarnings("ignore", "This process .* multi-threaded", DeprecationWarning)
    # PyMongo 4.20 leaves a connection to the collector if its asynchronous client closes just while it is made. A
    # client that nobody closed says "Unclosed AsyncMongoClient" beside that.
    warnings.filterwarnings("ignore", "unclosed (transport|<socket)", ResourceWarning)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it tells of steps that a slow machine makes long
    task: Callable[[str], dict[str, Any]] = globals()[name]
    print(json.dumps(task(url)))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(*sys.argv[1:3])
