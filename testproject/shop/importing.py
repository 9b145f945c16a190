"""A task that resumes: the import of the supplier's price list. A killed import keeps the rows that it has written.

``manage.py import_products`` does the work, from a shell, a timer or the button on the start page.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.db.models import Count
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from goscope_django.cache import cache
from goscope_django.checkpoints import Task, TaskInfo, get_task
from testproject.shop.models import SupplierOffer

ROWS = 50_000
CHUNK = 500
"""Rows that are written in one transaction."""
LEASE = 5
"""Seconds after which the task of a killed import can be taken over."""
CRASH = "import:crash"


def task_id() -> str:
    """One task for each night, so that tomorrow's import is another one."""
    return f"import-products:{timezone.localdate().isoformat()}"


class PriceList(Sequence[list[SupplierOffer]]):
    """The supplier's list in chunks: the same rows in the same order each time, which is what resuming needs."""

    def __init__(self, rows: int, attempt: int) -> None:
        self.rows = rows
        self.attempt = attempt

    def __len__(self) -> int:
        return math.ceil(self.rows / CHUNK)

    def __getitem__(self, position: Any) -> Any:
        if not 0 <= position < len(self):
            raise IndexError(position)
        return list(self._offers(position * CHUNK, min(self.rows, (position + 1) * CHUNK)))

    def _offers(self, first: int, last: int) -> Iterator[SupplierOffer]:
        for number in range(first, last):
            price = Decimal((number * 7_919) % 99_000 + 1_000) / 100
            yield SupplierOffer(sku=f"S{number:06}", name=f"Part {number}", price=price, attempt=self.attempt)


def import_list(task: Task, rows: int, pause: float) -> None:
    """Write the list. Each chunk is a transaction, and its place is saved once it is committed.

    A process that dies between the two writes that chunk again: the rows are the same, so nothing is doubled.
    """
    if not task.resumed:
        SupplierOffer.objects.all().delete()  # so that the page shows which attempt wrote what
    for chunk in task.track(PriceList(rows, task.attempt), every=1, atomic=True):
        SupplierOffer.objects.bulk_create(
            chunk, update_conflicts=True, unique_fields=["sku"], update_fields=["name", "price", "attempt"]
        )
        time.sleep(pause)
        if cache.delete(CRASH):
            os.kill(os.getpid(), signal.SIGKILL)  # the button: no clean-up at all


def in_background(*arguments: str, command: str = "import_products") -> int:
    """Start ``manage.py import_products``, or another ``command``, as a process of its own; its id."""
    line = [sys.executable, str(settings.BASE_DIR / "manage.py"), command, *arguments]
    process = subprocess.Popen(line, cwd=settings.BASE_DIR, stdin=subprocess.DEVNULL)  # noqa: S603 - our own
    # It ends with its work or by the terminal's Ctrl-C; the thread only waits for it, so that no zombie is left.
    threading.Thread(target=process.wait, daemon=True).start()
    return process.pid


@require_POST
def start(request: HttpRequest) -> HttpResponse:
    """Start the import, or resume it where it stopped; with ``anew`` from the beginning."""
    info = get_task(task_id())
    anew = "anew" in request.POST
    if info is not None and info.status == "completed" and not anew:
        text = "Tonight's import is complete. A completed task is not run again unless you ask for it."
        messages.warning(request, text, extra_tags="import")
        return redirect("/#import")
    pid = in_background("--pause=0.1", "--wait", *(["--restart"] if anew else []))
    messages.info(request, f"Process {pid} was started to import.", extra_tags="import")
    return redirect("/#import")


@require_POST
def kill(request: HttpRequest) -> HttpResponse:
    """Whichever process imports now kills itself with SIGKILL after its next rows."""
    info = get_task(task_id())
    if info is None or info.status != "running" or info.stalled:
        messages.warning(request, "No import is running.", extra_tags="import")
        return redirect("/#import")
    cache.set(CRASH, True, LEASE)
    text = (
        f"{info.owner} kills itself. Start the import again: it waits until the lease of the killed process "
        f"({LEASE} seconds) has ended, and resumes where it stopped."
    )
    messages.warning(request, text, extra_tags="import")
    return redirect("/#import")


def state() -> dict[str, Any]:
    """Where tonight's import stands."""
    info = get_task(task_id())
    attempts = SupplierOffer.objects.values("attempt").annotate(rows=Count("id")).order_by("attempt")
    return {"task": None if info is None else _shown(info), "attempts": list(attempts)}


def _shown(info: TaskInfo) -> dict[str, Any]:
    return {
        "id": info.task_id,
        "status": "stalled" if info.stalled else info.status,
        "owner": info.owner,
        "attempt": info.attempt,
        "progress": info.progress,
        "rate": None if info.rate is None else info.rate * CHUNK,
        "seconds_left": info.estimated_time_remaining,
    }


@require_safe
def state_json(request: HttpRequest) -> HttpResponse:
    """``state`` as data, for the page's progress bar."""
    return JsonResponse(state())
