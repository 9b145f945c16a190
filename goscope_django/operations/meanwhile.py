"""What each feature does while MongoDB can't be reached. Commands and pages show these words, so they say the same.

They say nothing of a project, so anybody may see them. ``docs/how-to/when-mongodb-is-down.md`` has the whole story.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from goscope_django.operations.values import State
from goscope_django.operations.wording import PAGE

KNOWN: Final = 10.0
"""Seconds for which a process has looked in vain before it says since when."""


class Meanwhile(NamedTuple):
    """One ``feature``: what it does ``now``, and ``then``, when the server answers again."""

    feature: str
    now: str
    then: str


FEATURES: Final = (
    Meanwhile("Sessions", "503 for each page that needs one; no cookie is deleted", "everybody is still signed in"),
    Meanwhile("Cache", 'ON_ERROR: an error, or a miss ("ignore")', "entries are still there, unless they have expired"),
    Meanwhile(
        "Locks",
        "none is acquired; a holder goes on until its lease ends, and learns of that",
        "a release that failed is tried again",
    ),
    Meanwhile("Circuits", "each process decides by what it knows", "the shared state counts again"),
    Meanwhile(
        "Single flight",
        'ON_ERROR: an error, or each request runs the view ("ignore")',
        "requests share again",
    ),
    Meanwhile(
        "Idempotency",
        '503, and nothing is run, unless the view says on_error="ignore"',
        "what was done is recorded, if its lease lasts",
    ),
    Meanwhile("Tasks", "none is started, none can save", "a task goes on from its last checkpoint"),
)


def since_when(state: State, at: str) -> str:
    """Since when the server of ``state`` can't be reached, as far as that is known; ``at`` is the instant as text."""
    if state.away_since is None:
        return ""
    lasted = (state.generated_at - state.away_since).total_seconds()
    if state.away_seen_by == "member":
        return (
            f"There has been no primary since about {at} ({PAGE.duration(max(0.0, lasted))} ago): a member that still "
            "answers has nothing later."
        )
    if lasted < KNOWN:
        return (
            "Since when is not known here, as this process has only just asked. One that has run for longer knows: "
            "look at the dashboard, or at goscope_up in Prometheus."
        )
    return f"This process has not reached it since {at} ({PAGE.duration(lasted)} ago). It may be away for longer."
