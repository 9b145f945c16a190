"""Places orders, each in a forked child that may be killed. One line of stdin is one child; its pid is answered.

Arguments: the server's URL and the database. A line is ``<key> <order> <seconds>``: ``<order>`` is ``outside`` where
the decorator is outside of ``atomic()``, ``inside``, or ``task`` for a task with two items.
``<seconds>`` is how long a part of the work takes at most.
"""

# ruff: noqa: E402  models can be imported after the settings only

from __future__ import annotations

import os
import random
import sys
import time
from typing import Any

import django
from django.conf import settings

URL, DATABASE = sys.argv[1:3]
settings.configure(
    SECRET_KEY="x" * 50,
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django_mongodb_backend", "HOST": URL, "NAME": DATABASE}},
    DEFAULT_AUTO_FIELD="django_mongodb_backend.fields.ObjectIdAutoField",
    INSTALLED_APPS=["goscope_django"],
    GOSCOPE={"URL": "django://default", "CONNECT_ON_READY": False},
)
django.setup()

from django.db import DatabaseError, models
from django_mongodb_backend import transaction
from pymongo.errors import PyMongoError

from goscope_django.checkpoints import checkpointed
from goscope_django.decorators import idempotent
from goscope_django.exceptions import CheckpointError, IdempotencyConflict, StoreError


class Order(models.Model):  # noqa: DJ008
    """An order, of which there must be one for each key."""

    name = models.CharField(max_length=50)

    class Meta:
        app_label = "shop"


@idempotent(key="{name}", atomic="default", lease=0.4)
def place(name: str, seconds: float) -> str:
    """Two writes with a pause before, between and after them."""
    for part in ("first", "second"):
        time.sleep(seconds * random.random())
        Order._default_manager.create(name=f"{name} {part}")
    time.sleep(seconds * random.random())
    return f"{name} placed"


def attempt(name: str, order: str, seconds: float) -> str:
    """One call, in either order of decorator and transaction."""
    if order == "task":
        with checkpointed(name, lease=0.4, max_attempts=None) as task:
            for part in task.track(["first", "second"], every=1, atomic=True):
                time.sleep(seconds * random.random())
                Order._default_manager.create(name=f"{name} {part}")
                time.sleep(seconds * random.random() / 4)
        return f"{name} placed"
    if order == "outside":
        return place(name, seconds)
    with transaction.atomic():
        result = place(name, seconds)
        time.sleep(seconds * random.random())
    return result


def work(name: str, order: str, seconds: float) -> None:
    """Call until there is a result."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            assert attempt(name, order, seconds) == f"{name} placed"
        except (CheckpointError, IdempotencyConflict, StoreError, PyMongoError, DatabaseError):
            time.sleep(0.03)
        else:
            os._exit(0)
    os._exit(1)


def main() -> None:
    """Fork a child for each line, and tell how it ended."""
    children: dict[int, Any] = {}
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "wait":
            _, status = os.waitpid(int(rest[0]), 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            random.seed()
            work(command, rest[0], float(rest[1]))
        children[pid] = line
        print(pid, flush=True)


main()
