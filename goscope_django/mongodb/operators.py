"""What operators take away from whoever has it: locks, and idempotency claims and results.

Rule of this file: one update or delete, whose filter has the mark that the operator saw; what is there instead is read
afterwards, only to say so.
"""

from __future__ import annotations

from typing import Any

from goscope_django.contracts import IdempotencyInfo, LockInfo
from goscope_django.mongodb.expressions import Clock
from goscope_django.mongodb.flow import Flow, ask
from goscope_django.mongodb.idempotency_claims import IDEMPOTENCY, claim_key
from goscope_django.mongodb.idempotency_flows import idempotency_info
from goscope_django.mongodb.lock_flows import LEASE, LOCKS, LockFlows


def release_lock(
    clock: Clock, flows: LockFlows, key: str, token: int | None, owner: str | None
) -> Flow[tuple[bool, LockInfo | None]]:
    """Remove a held lock that has this token (and owner), whoever holds it; else what is there. Two commands at
    most."""
    identity: dict[str, Any] = {"key": flows.prefix + key}
    if token is not None:
        identity["token"] = token
    if owner is not None:
        identity["owner"] = owner or {"$in": ["", None]}  # as it was seen: one without an owner has "" for it
    removed = yield from ask(LOCKS, "delete_one", LEASE.mine(clock, **identity))
    if removed.deleted_count:
        return True, None
    return False, (yield from flows.get(clock, key))


def delete_idempotency(
    clock: Clock, prefix: str, key: str, token: int | None
) -> Flow[tuple[int, IdempotencyInfo | None]]:
    """Remove a claim or result that has this token; else what is there. Two commands at most."""
    full = prefix + key
    either: dict[str, Any] = {"key": {"$in": [full, claim_key(full)]}}
    test = either if token is None else {**either, "token": token}
    removed = yield from ask(IDEMPOTENCY, "delete_many", test)
    if removed.deleted_count:
        return int(removed.deleted_count), None
    found = yield from ask(IDEMPOTENCY, "find_one", {**either, "$expr": clock.live()}, {"value": False})
    return 0, None if found is None else idempotency_info(found, prefix)
