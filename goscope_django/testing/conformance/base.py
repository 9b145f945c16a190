"""What all suites share: each test is written once for sync and async, and gaps are named."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, ClassVar

import pytest

SHORT = 120
"""A time to live that a test outlives, in milliseconds."""

BAD_TTLS = [0, -1, True, False, 1.5, float("nan"), float("inf"), "100", b"1", [], 10**30, timedelta(0), timedelta(-1)]
"""What no ``ttl`` can be."""


class Drive:
    """Calls methods or their async versions, as ``kind`` says: ``drive(provider, "acquire", "key")``.

    ``kind`` is ``"sync"`` or ``"async"``; the fixture ``drive`` gives one of each. Raises nothing of its own, and sends
    nothing but what the methods called send.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._runner = asyncio.Runner() if kind == "async" else None

    def __call__(self, subject: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._runner is None:
            return getattr(subject, method)(*args, **kwargs)

        async def call() -> Any:
            return await getattr(subject, f"a{method}")(*args, **kwargs)

        return self._runner.run(call())

    def together(self, number: int, call: Callable[[int], tuple[Any, str, tuple[Any, ...]]]) -> list[Any]:
        """The results of ``number`` calls at once, in threads or tasks; ``call(n)`` is subject, method, arguments.

        Raises what the methods called raise. Sends nothing but what they send.
        """
        calls = [call(n) for n in range(number)]
        if self._runner is None:
            with ThreadPoolExecutor(number) as pool:
                return list(pool.map(lambda one: getattr(one[0], one[1])(*one[2]), calls))

        async def gather() -> list[Any]:
            return await asyncio.gather(*(getattr(subject, f"a{name}")(*args) for subject, name, args in calls))

        return self._runner.run(gather())

    def close(self) -> None:
        """End the event loop. Raises nothing and sends nothing."""
        if self._runner is not None:
            self._runner.close()


class Conformance:
    """Base of the suites. A subclass has a fixture ``provider``, the object under test."""

    gaps: ClassVar[dict[str, str]] = {}
    """What this adapter can't do: the test's name and the reason. Such a test is skipped."""

    @pytest.fixture(params=["sync", "async"])
    def drive(self, request: pytest.FixtureRequest) -> Iterator[Drive]:
        drive = Drive(request.param)
        yield drive
        drive.close()

    @pytest.fixture(autouse=True)
    def _gap(self, request: pytest.FixtureRequest) -> None:
        reason = self.gaps.get(request.node.originalname)
        if reason:
            pytest.skip(reason)

    @staticmethod
    def outlive(milliseconds: float = SHORT) -> None:
        """Wait until a lease of ``milliseconds`` has ended. Raises nothing and sends nothing."""
        time.sleep(milliseconds / 1_000 + 0.02)
