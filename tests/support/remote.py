"""Another process that does what a test tells it, for tests of wrong clocks, of crashes, and of what processes see.

``Remote(url)`` starts it; ``call`` names a provider and a method. Run as a program, this file is that process: it reads
and answers one line of JSON after another.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]


class Remote:
    """A Python process with an adapter and a Django cache on ``url``. ``skew`` is its wall clock's error ("+1h")."""

    def __init__(self, url: str, *, skew: str | None = None) -> None:
        # Monotonic time stays real: a faked one makes Python's waits hang.
        clock = ["faketime", "-f", skew] if skew else []
        environ = {**os.environ, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "PYTHONPATH": str(ROOT)}
        environ.pop("DJANGO_SETTINGS_MODULE", None)
        program = [*clock, sys.executable, "-m", "tests.support.remote", url]
        for left in range(4 if skew else 0, -1, -1):
            self.process = subprocess.Popen(
                program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environ
            )
            try:
                self._answer()
                return
            except RuntimeError:
                # faketime refuses a process number for which one that was killed left its semaphore behind.
                self._close()
                if not left:
                    raise

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the other process ended with {self.process.wait(10)}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"in the other process: {answer['error']}")
        return answer["result"]

    def call(self, subject: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """``method`` of ``lock``, ``cache``, ``django`` (Django's cache), ...: what it returned, as JSON can say it.

        A handle of a lock comes back as ``{"handle": number, "token": ...}``; its methods are called on that number.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([subject, method, args, kwargs]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        if self.process.poll() is None:
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        self.process.stdout.close()


def _shown(result: Any, handles: list[Any]) -> Any:
    if hasattr(result, "is_valid"):
        handles.append(result)
        return {"handle": len(handles) - 1, "token": result.token}
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return result


def _subject(name: str, handles: list[Any]) -> Any:
    from django.core.cache import cache

    from goscope_django import runtime

    if name == "django":
        return cache
    if name == "time":
        import time

        return time
    if name.isdigit():
        return handles[int(name)]
    return getattr(runtime.adapter(), name)


def main(url: str) -> None:
    """Answer on stdout what is asked on stdin, until that ends."""
    import django
    from django.conf import settings

    warnings.simplefilter("error", ResourceWarning)
    settings.configure(
        SECRET_KEY="only-for-tests-" + "x" * 50,
        GOSCOPE={"URL": url},
        CACHES={"default": {"BACKEND": "goscope_django.cache.MongoDBCache"}},
        INSTALLED_APPS=["goscope_django"],
    )
    django.setup()
    handles: list[Any] = []
    print(json.dumps({"result": "ready"}), flush=True)
    for line in sys.stdin:
        subject, method, args, kwargs = json.loads(line)
        try:
            result = _shown(getattr(_subject(str(subject), handles), method)(*args, **kwargs), handles)
            answer: dict[str, Any] = {"result": result}
        except Exception as error:
            answer = {"error": repr(error)}
        print(json.dumps(answer, default=str), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
