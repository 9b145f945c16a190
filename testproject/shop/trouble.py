"""Things to look at on the dashboard: a lock that others wait for, a task whose worker died, an open circuit.

Each comes at the press of a button, and goes by itself or by what an operator does about it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_POST

from goscope_django.checkpoints import Task, TaskInfo
from goscope_django.circuits import CircuitBreaker, CircuitOpen
from goscope_django.exceptions import DispatchRefused, GoscopeError
from goscope_django.locks import lock
from testproject.shop.importing import in_background

LOCK = "warehouse:count"
HELD = 30.0
"""Seconds for which the lock is held, unless somebody releases it."""

NEWSLETTER = "newsletter"
LETTERS = 50
LEASE = 3
"""Seconds after which a dead worker's task is stalled."""

FAILURES = 3

carrier = CircuitBreaker("carrier", failure_threshold=FAILURES, reset_timeout=300)


class CarrierFailed(Exception):
    """The parcel service did not answer."""


def _count_the_warehouse(finished: threading.Event) -> None:
    with suppress(GoscopeError), lock(LOCK, timeout=HELD, auto_extend=False, blocking=False) as handle:
        deadline = time.monotonic() + HELD
        while handle.is_valid() and time.monotonic() < deadline:
            finished.wait(0.5)


def _wait_for_the_count() -> None:
    with suppress(GoscopeError), lock(LOCK, timeout=5, blocking_timeout=HELD + 10):
        pass


@require_POST
def hold(request: HttpRequest) -> HttpResponse:
    """Hold a lock for 30 seconds, with two who wait for it."""
    finished = threading.Event()
    bodies = [lambda: _count_the_warehouse(finished), _wait_for_the_count, _wait_for_the_count]
    for number, body in enumerate(bodies):
        threading.Thread(target=body, name=("counting", "waiting-1", "waiting-2")[number], daemon=True).start()
        time.sleep(0.2 if number == 0 else 0)  # the first one gets the lock
    text = f"{LOCK} is held for {HELD:.0f} seconds, and two wait for it. The dashboard shows them after ten seconds."
    messages.warning(request, text, extra_tags="trouble")
    return redirect("/#trouble")


def send_newsletter(task: Task, *, dies: bool = False) -> None:
    """Send the letters that were not sent yet. With ``dies`` the worker is killed in the middle."""
    for number in task.track(range(LETTERS), every=1):
        time.sleep(0.02)
        if dies and number == LETTERS * 2 // 5:
            os.kill(os.getpid(), signal.SIGKILL)


def dispatch(info: TaskInfo) -> None:
    """What *Run again* on the dashboard does: start the command of a task that this shop knows, and no other."""
    if info.task_id != NEWSLETTER:
        raise DispatchRefused(f"task {info.task_id!r:.200} is none that the demo starts again", "unknown")
    in_background(command="send_newsletter")


@require_POST
def stall(request: HttpRequest) -> HttpResponse:
    """Start a worker that dies in the middle of its task."""
    in_background("--dies", command="send_newsletter")
    text = f"A worker sends the newsletter and dies. In about {LEASE + 3} seconds its task has stalled: run it again."
    messages.warning(request, text, extra_tags="trouble")
    return redirect("/#trouble")


def _ask_the_carrier() -> None:
    raise CarrierFailed("HTTP 503 from the parcel service: maintenance until 04:00")


@require_POST
def fail(request: HttpRequest) -> HttpResponse:
    """Let the parcel service fail until its circuit opens."""
    for _ in range(FAILURES):
        with suppress(CarrierFailed, CircuitOpen):
            carrier.call(_ask_the_carrier)
    text = "The parcel service failed three times, so its circuit is open. The dashboard can force it closed."
    messages.error(request, text, extra_tags="trouble")
    return redirect("/#trouble")
