"""Makes the pictures in ``docs``: ``python -m pytest tests/dashboard/screenshots.py``.

Everything on them was done by the features themselves; only the instants at which it happened were moved.
"""

from __future__ import annotations

import base64
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.cache import cache

from goscope_django import figures, operations, runtime
from goscope_django.checkpoints import checkpointed, register_dispatcher
from goscope_django.circuits import CircuitBreaker
from goscope_django.decorators import single_flight
from goscope_django.exceptions import CircuitOpen, GoscopeError
from goscope_django.locks import lock
from tests.conftest import with_database
from tests.support.browser import Operator
from tests.support.commands import on_server
from tests.support.dashboard import PAGE
from tests.support.mongod import replica_set
from tests.support.operations import query, soon

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.real, pytest.mark.timeout(300)]
DOCS = Path(__file__).resolve().parents[2] / "docs"
LARGEST = 300_000


@contextmanager
def at_work(*bodies: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run them beside until the end."""
    stop = threading.Event()
    threads = [threading.Thread(target=body, args=(stop,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def task(name: str, total: int, pace: float) -> Callable[[threading.Event], None]:
    """A task that goes on and on."""

    def body(stop: threading.Event) -> None:
        with checkpointed(name, interval=0.2) as one:
            for _ in one.track(range(total), total=total):
                if stop.wait(pace):
                    return

    return body


def holder(key: str, owner: str, timeout: float) -> Callable[[threading.Event], None]:
    def body(stop: threading.Event) -> None:
        with suppress(GoscopeError), lock(key, timeout=timeout, owner=owner):
            stop.wait()

    return body


def waiter(key: str) -> Callable[[threading.Event], None]:
    def body(stop: threading.Event) -> None:
        with suppress(GoscopeError), lock(key, blocking_timeout=60):
            pass

    return body


@single_flight(key=lambda month: month, timeout=30)
def sales_report(month: str) -> int:
    stopped.wait()
    return 1


stopped = threading.Event()


def flight(stop: threading.Event) -> None:
    threading.Thread(target=sales_report, args=("2026-11",), daemon=True).start()
    time.sleep(0.5)
    threading.Thread(target=sales_report, args=("2026-11",), daemon=True).start()
    stop.wait()
    stopped.set()


def an_hour() -> None:
    """Traffic, a minute of it at a time, whose figures are then moved to that minute."""
    dice, prefix = random.Random(4), runtime.adapter().key_prefix
    supplier = CircuitBreaker("supplier", failure_threshold=3, reset_timeout=300)
    for back in range(59, 0, -1):
        for number in range(dice.randrange(10, 30) + (20 if 15 < back < 35 else 0)):
            key = dice.choice(("product:", "basket:", "product:")) + str(number % dice.choice((9, 40)))
            if cache.get(key) is None:
                cache.set(key, "x" * dice.randrange(200, 2_000))
        cache.delete(f"product:{dice.randrange(9)}")
        for _ in range(dice.randrange(5)):
            with lock(f"order:{dice.randrange(10_000)}"):
                pass
        if back < 5:
            for _ in range(dice.randrange(3, 9)):
                with suppress(ConnectionError, CircuitOpen):
                    supplier.call(lose)
        assert figures.flush()
        (names,) = query("go_goscope_stats", "find", {"_id": {"$regex": "names:"}, "moved": None}, limit=1)
        (minute,) = query("go_goscope_stats", "find", {"_id": {"$regex": "minute:"}, "moved": None})
        moment = minute["at"] - timedelta(minutes=back)
        query("go_goscope_stats", "delete_one", {"_id": minute["_id"]})
        minute |= {"_id": f"{prefix}minute:{moment:%Y-%m-%dT%H:%M}", "at": moment, "moved": True}
        query("go_goscope_stats", "insert_one", minute)
        names["_id"] = f"{prefix}names:{moment:%Y-%m-%dT%H}"
        query("go_goscope_stats", "replace_one", {"_id": names["_id"]}, names, upsert=True)


def gone(name: str, part: float) -> None:
    """A task whose worker was killed some minutes ago."""
    with checkpointed(name) as one:
        one.save({"row": 1}, progress=100 * part)
        (head,) = query("go_goscope_tasks", "find", {"_id": runtime.adapter().key_prefix + name})
    moments = {"leaseUntil": soon(-400), "heartbeatAt": soon(-430), "startedAt": soon(-900)}
    kept = {field: head[field] for field in ("status", "claim", "progress", "owner")}
    query(
        "go_goscope_tasks",
        "update_one",
        {"_id": head["_id"]},
        {"$set": {**kept, **moments}, "$unset": {"finishedAt": 1}},
    )


def lose() -> None:
    raise ConnectionError("the supplier does not answer")


def store() -> None:
    """What stands there before anybody looks."""
    an_hour()
    CircuitBreaker("payments").call(int)
    gone("reindex-catalogue", 0.42)
    register_dispatcher(lambda info: None)
    with suppress(ConnectionError):
        CircuitBreaker("search").call(lose)
    operations.close_circuit("search", reason="false alarm, see the incident's notes")
    with suppress(ConnectionError), checkpointed("reprice-2026-11") as one:
        one.save({"row": 1}, progress=12)
        lose()
    records = runtime.adapter().idempotency
    records.begin("POST /orders 7f3a", ttl=86_400_000)
    claim = records.begin("POST /payments 19bc", ttl=86_400_000)
    assert claim.token is not None
    records.complete("POST /payments 19bc", claim.token, {"status": 201})


def test_pictures(operator: Operator) -> None:
    with replica_set(members=3) as server, on_server(with_database(server.uri, "shop"), KEY_PREFIX="shop:"):
        runtime.connection().prepare(10)
        store()
        bodies = (
            task("import-products", 1_700, 0.01),
            task("send-newsletter", 1_200, 0.05),
            holder("report:daily", "web-3:gunicorn-12", 90),
            holder("stock:4711", "web-1:gunicorn-7", 30),
            holder("invoices", "worker-2:celery-31", 600),
            waiter("stock:4711"),
            waiter("stock:4711"),
            flight,
        )
        with at_work(*bodies):
            time.sleep(12)
            figures.flush()
            operator.run("localStorage.setItem('django.admin.navSidebarIsOpen', 'false')")
            operator.open(every=60)
            for scheme in ("light", "dark"):
                operator.scheme(scheme)
                operator.size(1_280, 1_000)
                time.sleep(1)
                picture(operator, DOCS / f"dashboard-{scheme}.png", 1_280, 1_500)
            operator.scheme("light")
            operator.size(360, 800)
            operator.open(every=60)
            picture(operator, DOCS / "dashboard-360.png", 360, 1_500)
            operator.size(1_280, 1_000)
            operator.open(f"{PAGE}circuit/supplier/", every=60)
            picture(operator, DOCS / "dashboard-circuit.png", 1_280, 700)
            if extra := os.environ.get("PICTURES"):  # for whoever works on the page: all of it, and other widths
                everywhere(operator, Path(extra))


def everywhere(operator: Operator, folder: Path) -> None:
    """Further pictures, of the whole page."""
    operator.run("localStorage.removeItem('django.admin.navSidebarIsOpen')")
    for width in (320, 768, 1_024, 1_280, 1_920):
        operator.size(width, 1_000)
        operator.open(every=60)
        height = operator.run("return document.querySelector('#goscope').getBoundingClientRect().bottom")
        picture(operator, folder / f"page-{width}.png", width, min(4_000, int(height) + 100), largest=3_000_000)
    operator.size(1_280, 1_000)
    for name in ("lock/stock:4711", "task/reindex-catalogue", "cache/default", "idempotency/POST~20~2Forders~207f3a"):
        operator.open(f"{PAGE}{name}/", every=60)
        picture(operator, folder / f"{name.partition('/')[0]}.png", 1_280, 900, largest=3_000_000)


def picture(operator: Operator, path: Path, width: int, height: int, largest: int = LARGEST) -> None:
    operator.size(width, height)
    operator.run("document.querySelector('main').scrollTo(0, 0); document.querySelector('#main').scrollTo(0, 0)")
    operator.run("scrollTo(0, 0); document.activeElement.blur()")
    shot = operator.devtools("Page.captureScreenshot", format="png")
    content = base64.b64decode(shot["data"])
    assert len(content) < largest, len(content)
    path.write_bytes(content)
