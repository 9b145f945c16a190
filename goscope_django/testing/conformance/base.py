"""What all suites share: one body for both colours, and named gaps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

SHORT = 120
"""A time to live that a test outlives, in milliseconds."""


class Drive:
    """Calls a method in one colour: ``drive(provider, "acquire", "key")``."""

    def __init__(self, colour: str) -> None:
        self.colour = colour
        self._runner = asyncio.Runner() if colour == "async" else None

    def __call__(self, subject: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._runner is None:
            return getattr(subject, method)(*args, **kwargs)

        async def call() -> Any:
            return await getattr(subject, f"a{method}")(*args, **kwargs)

        return self._runner.run(call())

    def together(self, number: int, call: Callable[[int], tuple[Any, str, tuple[Any, ...]]]) -> list[Any]:
        """``number`` calls at once, in threads or in tasks; ``call(n)`` gives subject, method and arguments."""
        calls = [call(n) for n in range(number)]
        if self._runner is None:
            with ThreadPoolExecutor(number) as pool:
                return list(pool.map(lambda one: getattr(one[0], one[1])(*one[2]), calls))

        async def gather() -> list[Any]:
            return await asyncio.gather(*(getattr(subject, f"a{name}")(*args) for subject, name, args in calls))

        return self._runner.run(gather())

    def close(self) -> None:
        """End the event loop."""
        if self._runner is not None:
            self._runner.close()


class Conformance:
    """Base of the suites. Subclasses give a fixture ``provider``."""

    gaps: ClassVar[dict[str, str]] = {}
    """What this adapter can't do: the name of a test, and the reason."""

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
        """Wait until a lease of ``milliseconds`` has ended."""
        time.sleep(milliseconds / 1_000 + 0.02)
