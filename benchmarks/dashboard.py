"""One page of the dashboard over 10,000 held locks, 1,000 circuits and 500 tasks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.template.loader import render_to_string
from django.test import override_settings
from pymongo import MongoClient
from pymongo.monitoring import CommandListener

from benchmarks.harness import Report

LOCKS, CIRCUITS, TASKS = 10_000, 1_000, 500
GOAL = 1.0
"""Seconds."""

PREFIX = "dashboard:"


class _Counter(CommandListener):
    def __init__(self) -> None:
        self.count = 0

    def started(self, event: Any) -> None:
        self.count += event.command_name not in ("hello", "endSessions")

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


@contextmanager
def _filled(database: Any) -> Iterator[None]:
    now = datetime.now(UTC)
    later = now + timedelta(hours=1)
    everything: dict[str, list[dict[str, Any]]] = {
        "go_goscope_locks": [
            {
                "_id": f"{PREFIX}lock:order:{n:05}",
                "key": f"{PREFIX}lock:order:{n:05}",
                "owner": f"worker-{n % 40}",
                "claim": f"c{n}",
                "token": n + 1,
                "createdAt": now,
                "expiresAt": later,
            }
            for n in range(LOCKS)
        ],
        "go_goscope_circuit": [
            {
                "_id": f"{PREFIX}circuit:supplier-{n:04}",
                "key": f"{PREFIX}circuit:supplier-{n:04}",
                "state": ("closed", "open", "half-open")[n % 3],
                "failureCount": n % 3,
                "generation": n,
                "openedAt": now,
                "resetTimeout": 60_000,
                "updatedAt": now,
                "history": [{"at": now, "from": "closed", "to": "open", "reason": "failures", "id": "x"}] * 20,
            }
            for n in range(CIRCUITS)
        ],
        "go_goscope_tasks": [
            {
                "_id": f"{PREFIX}import-{n:04}",
                "status": "running",
                "claim": f"c{n}",
                "owner": f"worker-{n % 40}",
                "token": n + 1,
                "attempt": 1,
                "tries": 1,
                "maxAttempts": 10,
                "sequence": n,
                "progress": n % 100,
                "leaseUntil": later if n % 2 else now - timedelta(seconds=5),
                "heartbeatAt": now,
                "cancelRequested": False,
                "expiresAt": None,
            }
            for n in range(TASKS)
        ],
    }
    try:
        for name, documents in everything.items():
            database[name].insert_many(documents)
        yield
    finally:
        for name, documents in everything.items():
            database[name].delete_many({"_id": {"$in": [one["_id"] for one in documents]}})


def run(report: Report, client: MongoClient[dict[str, Any]], name: str) -> None:
    """Reading the state, and making the page of it, as the view does; each a median."""
    from goscope_django import operations
    from goscope_django.dashboard.actions import ACTIONS
    from goscope_django.dashboard.forms import Query
    from goscope_django.dashboard.presenters import Presented

    counter = _Counter()
    options = {"event_listeners": [counter]}
    template = {
        "TEMPLATES": [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
        "GOSCOPE": {**settings.GOSCOPE, "KEY_PREFIX": PREFIX, "CLIENT_OPTIONS": options},
    }
    print(f"\nDashboard: {LOCKS:,} held locks, {CIRCUITS:,} circuits, {TASKS:,} tasks\n")
    print(f"{'page':<44} {'state s':>8} {'page s':>8} {'commands':>9}  goal")
    queries = {
        "first page": Query(),
        "a page far behind": Query(
            cursors={"locks": "order:09900", "circuits": "supplier-0900", "tasks": "import-0450"}
        ),
        "a search": Query(search="99"),
        "200 of each": Query(limit=200),
    }
    urls = dict.fromkeys(ACTIONS, "/")
    allowed = {one.permission for one in ACTIONS.values()}
    with _filled(client[name]), override_settings(**template):
        for title, query in queries.items():
            states, pages, commands = [], [], []
            for _ in range(max(3, report.rounds)):
                counter.count = 0
                began = time.perf_counter()
                state = operations.state(limit=query.limit, cursors=query.cursors, search=query.search)
                states.append(time.perf_counter() - began)
                context = Presented(state=state, query=query, allowed=allowed, urls=urls).context()
                text = render_to_string("goscope/live.html", {**context, "query": query, "page_url": "/"})
                pages.append(time.perf_counter() - began)
                commands.append(counter.count)
                assert state.reachable
                assert text.count("<tr id=") >= len(state.locks.items) > 0
            page = statistics.median(pages)
            met = page < GOAL
            if not met:
                report.missed.append(f"dashboard, {title}: {page:.2f} s, must be under {GOAL:g} s")
            print(
                f"{title:<44} {statistics.median(states):>8.3f} {page:>8.3f} {max(commands):>9}  "
                f"under {GOAL:g} s: {'met' if met else 'MISSED'}",
                flush=True,
            )
