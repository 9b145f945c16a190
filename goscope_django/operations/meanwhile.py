"""What each feature does while MongoDB can't be reached. Commands and pages show these words, so they say the same.

They say nothing of a project, so anybody may see them. ``docs/how-to/when-mongodb-is-down.md`` has the whole story.
"""

from __future__ import annotations

from typing import Final, NamedTuple


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
