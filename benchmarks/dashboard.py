"""One page of the dashboard over 10,000 held locks, 1,000 circuits and 500 tasks."""

from __future__ import annotations

import statistics
import time
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


def run(report: Report, client: MongoClient[dict[str, Any]], name: str) -> None:
    """Reading the state, and making the page of it, as the view does; each a median."""
    from goscope_django import operations
    from goscope_django.dashboard.actions import ACTIONS
    from goscope_django.dashboard.forms import Query
    from goscope_django.dashboard.presenters import Presented
    from goscope_django.dashboard.rows import Rows
    from tests.support.operations import fill

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
        "a page far behind": Query(cursors={"locks": "l09900", "circuits": "c0900", "tasks": "t0450"}),
        "a search": Query(search="99"),
        "200 of each": Query(limit=200),
        "sorted": Query(orders={"locks": "-held", "circuits": "-failures", "tasks": "-progress"}),
        "sorted, far behind": Query(cursors={"locks": "9900"}, orders={"locks": "-held"}),
        "filtered": Query(states={"circuits": "open", "tasks": "stalled"}, orders={"locks": "-waiters"}),
        "a search for a state, sorted": Query(search="stalled", orders={"tasks": "-rate"}),
    }
    rows = Rows({one.permission for one in ACTIONS.values()}, dict.fromkeys(ACTIONS, "/"), "/")
    with override_settings(**template):
        fill(LOCKS, CIRCUITS, TASKS)
        for title, query in queries.items():
            states, pages, commands = [], [], []
            for _ in range(max(3, report.rounds)):
                counter.count = 0
                began = time.perf_counter()
                state = operations.state(
                    limit=query.limit,
                    cursors=query.cursors,
                    search=query.search,
                    states=query.states,
                    orders=query.orders,
                )
                states.append(time.perf_counter() - began)
                context = Presented(state=state, query=query, rows=rows).context()
                text = render_to_string("goscope/live.html", {**context, "query": query, "page_url": "/"})
                pages.append(time.perf_counter() - began)
                commands.append(counter.count)
                assert state.reachable
                assert text.count("<tr id=") >= len(state.locks.items) + len(state.tasks.items) > 0
            page = statistics.median(pages)
            met = page < GOAL
            if not met:
                report.missed.append(f"dashboard, {title}: {page:.2f} s, must be under {GOAL:g} s")
            print(
                f"{title:<44} {statistics.median(states):>8.3f} {page:>8.3f} {max(commands):>9}  "
                f"under {GOAL:g} s: {'met' if met else 'MISSED'}",
                flush=True,
            )
    for collection in ("go_goscope_locks", "go_goscope_circuit", "go_goscope_tasks"):
        client[name][collection].delete_many({"_id": {"$regex": f"^{PREFIX}"}})
