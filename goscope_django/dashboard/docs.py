"""Where the docs explain what the page shows. Only addresses are made here; nothing is loaded from there."""

from __future__ import annotations

from typing import Final

HOME: Final = "https://github.com/goscope/goscope-django/blob/main/docs/"

PAGES: Final = {
    "lock": "how-to/locks.md",
    "circuit": "how-to/circuit-breaker.md",
    "task": "how-to/checkpoints.md",
    "idempotency": "how-to/idempotency.md",
    "cache": "how-to/cache.md",
    "flight": "how-to/single-flight.md",
    "wait": "how-to/locks.md",
    "figures": "how-to/monitoring.md",
    "server": "how-to/servers.md",
    "dashboard": "how-to/dashboard.md",
}
"""By what is explained: the page, from ``HOME``."""


def address(path: str) -> str:
    """The address of a page that is named as in the repository: ``docs/how-to/runbook.md#circuit_open``."""
    return HOME + path.removeprefix("docs/")


def page(what: str) -> str:
    """The address of the page that explains it."""
    return HOME + PAGES[what]
