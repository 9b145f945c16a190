"""A circuit's document: the expressions that updates are made of, and how the document is read.

``state``, ``failureCount`` and the three times are shared with Node. Our own fields are ``generation`` (grows with
every move), ``openedAt``, ``resetTimeout`` (milliseconds, of the breaker that opened it), ``failures``
(``[{at, n}]``, those that still count), ``probes`` (``[{id, until, holder}]``), ``successes`` (of probes),
``override`` (``{state, reason, at}``), ``history``, and ``lastFailure`` and ``openedBy`` (``{type, text, at}``).

Rules of this file: a document that Node wrote must make sense.

* Node opens a circuit without ``openedAt``. Then the last failure is the opening, or else the last update.
* Node counts in ``failureCount`` alone. If that is more than our list holds, the rest happened at the last failure. If
  it is less, somebody closed the circuit, and our list no longer counts.
* Node leaves our ``lastFailure`` and ``openedBy`` standing. They count only for the failure at whose time they are.
* An opening far in the future comes from a wrong clock, and delays nobody.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from goscope_django.contracts import CIRCUIT_STATES, CircuitState
from goscope_django.core.reasons import Reason
from goscope_django.mongodb.circuits.table import (
    DEFAULT_RESET,
    HISTORY_LENGTH,
    CircuitFailure,
    CircuitInfo,
    CircuitOverride,
    CircuitProbe,
    CircuitTransition,
    Move,
)
from goscope_django.mongodb.document import reading
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import (
    Expression,
    array,
    conditions,
    countable,
    instant,
    is_null,
    just,
    literal,
    or_null,
)

CIRCUITS: Final = "go_goscope_circuit"
"""The collection."""

_SAME: Final = timedelta(seconds=1)
"""On mongomock the fields of one update may be some milliseconds apart."""

STATE: Final[Expression] = {"$ifNull": ["$state", "closed"]}
GENERATION: Final[Expression] = countable("generation")
FAILURE_COUNT: Final[Expression] = countable("failureCount")
UNFORCED: Final[Expression] = is_null("override")
CLOSED: Final[Expression] = {"$cond": [{"$in": [STATE, ["open", "half-open"]]}, False, True]}
OPEN: Final[Expression] = {"$eq": [STATE, "open"]}
HALF_OPEN: Final[Expression] = {"$eq": [STATE, "half-open"]}

OPENED_AT: Final[Expression] = {
    "$ifNull": [{"$max": [or_null("openedAt"), or_null("lastFailureTime")]}, or_null("updatedAt")]
}


def all_of(*tests: Expression) -> Expression:
    """True if all ``tests`` are."""
    return {"$and": list(tests)}


def kept(field: str, test: Expression) -> Expression:
    """The items ``x`` of the array in ``field`` for which ``test`` (on ``$$x``) holds."""
    return {"$filter": {"input": array(field), "as": "x", "cond": test}}


def running(clock: Clock) -> Expression:
    """The probes whose lease lasts, of whatever generation."""
    return kept("probes", {"$gt": ["$$x.until", clock.now()]})


def without(claim: str) -> Expression:
    """The probes but for that of ``claim``."""
    return kept("probes", {"$ne": ["$$x.id", literal(claim)]})


def joined(*arrays: Expression) -> Expression:
    """The arrays, one after the other."""
    return {"$concatArrays": list(arrays)}


def elapsed(clock: Clock, reset: int) -> Expression:
    """True if the circuit opened at least ``reset`` milliseconds ago, or impossibly far in the future."""
    return {"$or": [{"$lte": [OPENED_AT, clock.before(reset)]}, {"$gt": [OPENED_AT, clock.after(reset)]}]}


def noted(clock: Clock, to: Expression, reason: str, claim: str, note: str = "") -> Expression:
    """The history with one more move in it; ``claim`` (random) tells whose move it is."""
    entry = {
        "at": clock.now(),
        "from": STATE,
        "to": to,
        "reason": literal(reason),
        "id": literal(claim),
        **({"note": literal(note)} if note else {}),
    }
    return {"$slice": [joined(array("history"), just(entry)), -HISTORY_LENGTH]}


def why(clock: Clock, reason: Reason | None) -> Expression:
    """A failure as it is kept: its ``reason``, now; null if that is not to be kept."""
    if reason is None:
        return None
    return {"type": literal(reason.type), "text": literal(reason.text), "at": clock.now()}


def move(
    clock: Clock, test: Expression, to: Move, claim: str, *, note: str = "", **more: Expression
) -> dict[str, Expression]:
    """Fields of a ``$set`` that take the circuit to ``to`` where ``test`` holds; ``more`` are set along with it."""
    changes: dict[str, Expression] = {
        "state": to.to,
        "generation": {"$add": [GENERATION, 1]},
        "history": noted(clock, to.to, to.reason, claim, note),
        "failures": [],
        # A trial call that runs keeps its place whatever the circuit does meanwhile: so many run at most.
        "probes": running(clock),
        "successes": 0,
        "updatedAt": clock.now(),
        **_entered(clock, to.to),
        **more,
    }
    return conditions(test, changes)


def _entered(clock: Clock, state: CircuitState) -> dict[str, Expression]:
    if state == "closed":
        return {"openedAt": None, "failureCount": 0}
    return {"openedAt": clock.now()} if state == "open" else {}


def last_move(document: dict[str, Any] | None, claim: str) -> dict[str, Any] | None:
    """The document's last move if it has the id ``claim``: then the update that just ran made it."""
    history = document.get("history") if document else None
    if isinstance(history, list) and history and isinstance(history[-1], dict) and history[-1].get("id") == claim:
        entry: dict[str, Any] = history[-1]
        return entry
    return None


def state_of(document: dict[str, Any]) -> CircuitState:
    """The state. Anything that is not a state reads as closed."""
    state = document.get("state")
    return state if state in CIRCUIT_STATES else "closed"


def whole(value: object) -> int:
    """A count; 0 where there is none."""
    return max(0, reading.whole(value))


def opened_at(document: dict[str, Any]) -> datetime | None:
    """When the circuit opened, as ``OPENED_AT`` says."""
    moments = [instant(document.get("openedAt")), instant(document.get("lastFailureTime"))]
    known = [one for one in moments if one is not None]
    return max(known) if known else instant(document.get("updatedAt"))


def override_of(document: dict[str, Any]) -> CircuitOverride | None:
    """The operator's override, if there is one."""
    found = document.get("override")
    if not isinstance(found, dict):
        return None
    state: CircuitState = "closed" if found.get("state") == "closed" else "open"
    return CircuitOverride(state, str(found.get("reason", "")), instant(found.get("at")))


def probes_of(document: dict[str, Any], now: datetime) -> tuple[CircuitProbe, ...]:
    """The probes whose lease lasts at ``now``."""
    found = []
    for one in reading.rows(document.get("probes")):
        until = instant(one.get("until"))
        if until is not None and until > now:
            found.append(CircuitProbe(str(one.get("id")), until, reading.text(one.get("holder"))))
    return tuple(found)


def _failure(document: dict[str, Any], field: str, moment: datetime | None) -> CircuitFailure | None:
    """What is kept of the failure at ``moment``."""
    found = reading.document(document.get(field))
    at = instant(found.get("at"))
    if at is None or moment is None or abs(at - moment) > _SAME:
        return None
    return CircuitFailure(reading.text(found.get("type")) or "", reading.text(found.get("text")) or "", at)


def _history(document: dict[str, Any]) -> tuple[CircuitTransition, ...]:
    return tuple(
        CircuitTransition(
            instant(one.get("at")),
            str(one.get("from", "")),
            str(one.get("to", "")),
            str(one.get("reason", "")),
            str(one.get("note", "")),
        )
        for one in reading.rows(document.get("history"))
    )


def info(name: str, document: dict[str, Any], now: datetime) -> CircuitInfo:
    """What an observer sees at ``now`` (of the server)."""
    state, override = state_of(document), override_of(document)
    opening, retry_after = opened_at(document), None
    if override is not None:
        state = override.state
    elif state == "open":
        # In seconds, since another writer's number may be more than a timedelta can hold.
        reset = whole(document.get("resetTimeout")) / 1_000 or DEFAULT_RESET
        left = (opening - now).total_seconds() + reset if opening else 0.0
        retry_after = left if 0 < left <= 2 * reset else 0.0
    return CircuitInfo(
        name=name,
        state=state,
        failure_count=whole(document.get("failureCount")),
        generation=whole(document.get("generation")),
        retry_after=retry_after,
        opened_at=opening if state == "open" else None,
        last_failure_time=instant(document.get("lastFailureTime")),
        last_success_time=instant(document.get("lastSuccessTime")),
        updated_at=instant(document.get("updatedAt")),
        successes=whole(document.get("successes")) if state == "half-open" else 0,
        probes=probes_of(document, now) if state == "half-open" else (),
        override=override,
        history=_history(document),
        opened_by=_failure(document, "openedBy", opening) if state_of(document) != "closed" else None,
        last_failure=_failure(document, "lastFailure", instant(document.get("lastFailureTime"))),
    )
