"""A worker with one task, run as a program: ``task_worker.py URL PREFIX MODE JSON``; answers in lines of JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from django.conf import settings


def say(what: str, **details: Any) -> None:
    print(json.dumps({"what": what, **details}), flush=True)


def numbers(path: str, items: int, pause: float, **options: Any) -> None:
    """Write down each number with a system call of its own, as work that can't be taken back."""
    from goscope_django.checkpoints import checkpointed
    from goscope_django.exceptions import TaskAlreadyRunning

    every = options.pop("every")
    while True:
        try:
            with checkpointed("numbers", **options) as task:
                say("started", attempt=task.attempt, resumed=task.resumed)
                with open(path, "ab", buffering=0) as file:  # noqa: PTH123
                    for number in task.track(range(items), every=every):
                        file.write(b"%d\n" % number)
                        time.sleep(pause)
            say("completed")
            return
        except TaskAlreadyRunning:
            time.sleep(0.05)


def once(hold: bool, **options: Any) -> None:
    """Run the task (until a line comes in, with ``hold``), or say that somebody else does."""
    from goscope_django.checkpoints import checkpointed
    from goscope_django.exceptions import TaskAlreadyRunning

    try:
        with checkpointed("once", **options) as task:
            say("started", attempt=task.attempt, token=task.token, wall=time.time())
            task.save({"by": os.getpid()})
            if hold:
                sys.stdin.readline()  # not a sleep, which does not get along with libfaketime
    except TaskAlreadyRunning as error:
        say("running", retry_after=error.retry_after)
    else:
        say("completed")


def zombie(**options: Any) -> None:
    """Save, wait to be stopped and woken up, and try to save again."""
    from goscope_django.checkpoints import checkpointed
    from goscope_django.exceptions import TaskLost

    try:
        with checkpointed("zombie", **options) as task:
            task.save("mine")
            say("started", token=task.token)
            sys.stdin.readline()
            try:
                task.save("stale")
            except TaskLost:
                say("refused")
                raise
            say("saved")
    except TaskLost:
        say("lost")


def blind(**options: Any) -> None:
    """A zombie whose own view of its lease says nothing: only the server can refuse it."""
    from goscope_django.checkpoints.state import TaskState

    TaskState.lost = False  # type: ignore[assignment,method-assign]
    zombie(**options)


def main(url: str, prefix: str, mode: str, options: str) -> None:
    settings.configure(
        GOSCOPE={"URL": url, "KEY_PREFIX": prefix}, INSTALLED_APPS=["goscope_django"], SECRET_KEY="x" * 50, USE_TZ=True
    )
    import django

    django.setup()
    globals()[mode](**json.loads(options))


if __name__ == "__main__":
    main(*sys.argv[1:])
