"""How long the tests may look: ``make test`` tries some inputs of a kind, ``make test-long`` all of them.

What makes a kind is always among the some. Rules: a test marked ``long`` has a brother that is not, with another input;
``examples`` of Hypothesis are fewer, never none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import pytest

LONG: Final = bool(os.environ.get("GOSCOPE_LONG"))


def also(*values: Any) -> Any:
    """One more row of ``parametrize``, which only a long run tries."""
    return pytest.param(*values, marks=pytest.mark.long)


def examples(number: int) -> int:
    """How many examples Hypothesis tries, of ``number`` in a long run."""
    return number if LONG else max(20, number // 3)


def share(values: Sequence[Any], turn: int) -> Sequence[Any]:
    """A third of ``values``, another one in each ``turn``; all of them in a long run."""
    return values if LONG else values[turn % 3 :: 3]
