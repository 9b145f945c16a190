"""What several tests of the cache ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from goscope_django import signals


@pytest.fixture
def told() -> Iterator[list[dict[str, Any]]]:
    """What the signal ``cache_entry_forged`` tells, in order."""
    found: list[dict[str, Any]] = []

    def receiver(sender: Any, signal: Any, **details: Any) -> None:
        found.append(details)

    signals.cache_entry_forged.connect(receiver)
    yield found
    signals.cache_entry_forged.disconnect(receiver)
