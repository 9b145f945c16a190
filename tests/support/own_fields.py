"""Cache entries whose time passes without waiting, by changing what stands in the document."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from goscope_django import runtime


def entries() -> Any:
    """The collection of the main store."""
    return runtime.connection().sync().database.go_goscope_cache


def tag_documents() -> Any:
    """The collection of tags."""
    return runtime.connection().sync().database.go_goscope_tags


def document(key: str) -> dict[str, Any]:
    """The document of the default version of ``key``."""
    found: dict[str, Any] = entries().find_one({"key": f"cache::1:{key}"})
    return found


def ago(seconds: float) -> datetime:
    """That many seconds ago, as a date of BSON."""
    moment = datetime.now(UTC) - timedelta(seconds=seconds)
    return moment.replace(microsecond=moment.microsecond // 1_000 * 1_000, tzinfo=None)


def make_stale(key: str, seconds: float = 1) -> None:
    """Let the entry have been stale for ``seconds``."""
    change = {"$set": {"freshUntil": ago(seconds)}}
    assert entries().update_one({"key": f"cache::1:{key}"}, change).modified_count == 1


def let_end(key: str) -> None:
    """Let the entry have ended a second ago, stale or not."""
    change = {"$set": {"freshUntil": ago(2), "expiresAt": ago(1), "ownFor.expiresAt": ago(1)}}
    entries().update_one({"key": f"cache::1:{key}"}, change)


def node_sets(key: str, value: Any) -> None:
    """What Node's ``set`` does: it writes its four fields and leaves every other one as it was."""
    later = ago(-600)
    fields = {"key": f"cache::1:{key}", "value": value, "expiresAt": later, "updatedAt": ago(-0.005)}
    entries().update_one({"key": f"cache::1:{key}"}, {"$set": fields}, upsert=True)
