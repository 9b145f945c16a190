"""Checkers: functions of a history, which give what in it breaks a promise. They know nothing of the product.

Rules of this file:

* Only what is certain is judged. A hold lasts for certain from the answer that granted it until its lease ends, counted
  from when the grant was *asked* for, or until its holder began to give it back. Where an answer says that the holder
  still had it, it lasted until that call began.
* Two operations are in order only if one had ended before the other began.
* What is unknown may have happened at any later time, or never.
* While clocks of servers are wrong (from ``clocks.wrong`` to ``clocks.agree``) no lease lasts for certain: what was
  granted before lasts up to then, and what was granted meanwhile only as long as its holder is told that it has it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.consistency.history import Operation

MARGIN: Final = 0.05
"""Seconds by which the clock of a machine may be slewed within one lease."""
RECOVERY: Final = 30.0
"""Seconds after the last fault, by the end of which everything works again."""
HAND: Final = "hand"
"""What keys begin with whose documents are removed by hand: there nothing is exclusive, but tokens rise."""


@dataclass(frozen=True)
class Violation:
    """A broken promise, and the operations that show it."""

    checker: str
    text: str
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.checker}: {self.text}", *(f"    {one}" for one in self.operations)])


Checker = Callable[[Sequence[Operation]], list[Violation]]


# Holds: locks, claims, tasks and probes


@dataclass
class Hold:
    """What one grant gave its holder: for certain from ``start`` to ``until``. ``kept``: up to when it was told that
    it still has it."""

    take: Operation
    until: float = -math.inf
    kept: float = -math.inf
    after: list[Operation] = field(default_factory=list)

    @property
    def start(self) -> float:
        return self.take.ended

    @property
    def token(self) -> int | None:
        result = self.take.result
        return result.get("token") if isinstance(result, dict) else None


Span = tuple[float, float]


def wrong_clocks(history: Sequence[Operation]) -> list[Span]:
    """From when to when clocks of servers were wrong."""
    begun = [one.began for one in history if one.name == "clocks.wrong"]
    ended = [one.ended for one in history if one.name == "clocks.agree"]
    return [(began, min((end for end in ended if end > began), default=math.inf)) for began in begun]


def _certain(asked: float, until: float, wrong: list[Span]) -> float:
    """Until when what was asked for at ``asked`` lasted for certain, where it would until ``until``."""
    for began, ended in wrong:
        if asked < began:
            until = min(until, began)
        elif asked < ended:
            return -math.inf
    return until


def holds(history: Sequence[Operation]) -> list[Hold]:
    """The holds of a history, by their start.

    ``*.take`` grants (``result`` is a dictionary) for ``args["ttl"]`` milliseconds. ``*.renew`` (``args["ttl"]``, which
    never shortens it) and ``*.give`` name it by ``args["hold"]``, and are true if the holder still had it.
    """
    wrong = wrong_clocks(history)
    found = {
        one.number: Hold(one, _certain(one.began, one.began + one.args["ttl"] / 1_000 - MARGIN, wrong))
        for one in history
        if one.name.endswith(".take") and one.ok and isinstance(one.result, dict)
    }
    for one in history:
        hold = found.get(one.args.get("hold", ""))
        if hold is None or not one.name.endswith((".renew", ".give")):
            continue
        hold.after.append(one)
        if one.ok and one.result is True:
            hold.kept = max(hold.kept, one.began)
            if one.name.endswith(".renew"):
                end = one.began + one.args["ttl"] / 1_000 - MARGIN
                hold.until = max(hold.until, _certain(one.began, end, wrong))
    for hold in found.values():
        gives = [one for one in hold.after if one.name.endswith(".give")]
        if gives:
            hold.until = min(hold.until, gives[0].began)
        hold.until = max(hold.until, hold.kept)
    return sorted(found.values(), key=lambda one: one.start)


def exclusion(history: Sequence[Operation]) -> list[Violation]:
    """At no moment are there more holders of a key than ``args["most"]`` (one) for certain."""
    found, current = [], defaultdict[tuple[str, str], list[Hold]](list)
    for hold in holds(history):
        place = (hold.take.kind, hold.take.key)
        if hold.take.key.startswith(HAND) or hold.until <= hold.start:
            continue
        others = current[place] = [one for one in current[place] if one.until > hold.start]
        others.append(hold)
        most = hold.take.args.get("most", 1)
        if len(others) > most:
            operations = [operation for one in others for operation in (one.take, *one.after)]
            text = f"{len(others)} held {place[1]!r} at {hold.start:.4f}; {most} may"
            found.append(Violation("exclusion", text, tuple(operations)))
    return found


def tokens(history: Sequence[Operation]) -> list[Violation]:
    """No token of a key is given twice, and a later grant has a higher one."""
    found = []
    for group in _by_key(one for one in history if one.name.endswith(".take") and one.ok).values():
        granted = [one for one in group if isinstance(one.result, dict) and one.result.get("token") is not None]
        seen: dict[int, Operation] = {}
        for one in granted:
            other = seen.setdefault(one.result["token"], one)
            if other is not one:
                found.append(Violation("tokens", "a token was given twice", (other, one)))
        # In the order of their beginnings: compared with the highest token of all that had ended by then.
        ended = sorted(granted, key=lambda one: one.ended)
        highest, at = None, 0
        for one in sorted(granted, key=lambda one: one.began):
            while at < len(ended) and ended[at].ended < one.began:
                if highest is None or ended[at].result["token"] > highest.result["token"]:
                    highest = ended[at]
                at += 1
            if highest is not None and highest.result["token"] > one.result["token"]:
                found.append(Violation("tokens", "a later grant has a lower token", (highest, one)))
    return found


def kept(history: Sequence[Operation]) -> list[Violation]:
    """A holder is not told that it has lost what it has for certain, nor that it still has what another took since."""
    found, all_of = [], defaultdict[tuple[str, str], list[Hold]](list)
    wrong = wrong_clocks(history)
    for hold in holds(history):
        all_of[hold.take.kind, hold.take.key].append(hold)
    for (_, key), group in all_of.items():
        if key.startswith(HAND):
            continue
        for hold in group:
            for one in hold.after:
                lasting = _lease(hold, one)
                # The lease has to lie outside the time of wrong clocks wholly, whichever call asked for it.
                lasting = min(lasting, _certain(hold.take.began, lasting, wrong))
                if one.ok and one.result is False and one.ended < lasting - MARGIN:
                    text = "a hold was lost, or told to be lost, while its lease lasted"
                    found.append(Violation("kept", text, (hold.take, *hold.after)))
                    break
            for other in group:
                later = other.take.began > hold.start and other.take.ended < hold.kept
                if later and hold.take.args.get("most", 1) == 1:
                    text = "a holder was told that it still had it after another one had taken it"
                    found.append(Violation("kept", text, (hold.take, other.take, *hold.after)))
    return found


def _lease(hold: Hold, asked: Operation) -> float:
    """Until when the holder knew that it had it when ``asked`` began.

    A renewal whose answer came after the end of the lease by the holder's own clock does not count: by then it may have
    given up, which errs on the safe side.
    """
    end: float = hold.take.began + hold.take.args["ttl"] / 1_000
    for one in hold.after:
        if one is not asked and one.name.endswith(".give") and one.began < asked.ended:
            return -math.inf  # it may be given back already
        in_time = one.name.endswith(".renew") and one.ended < min(asked.began, end - MARGIN)
        if in_time and one.ok and one.result is True:
            end = max(end, one.began + one.args["ttl"] / 1_000)
    return end


# Counters


def counters(history: Sequence[Operation]) -> list[Violation]:
    """A counter from 0, to which ``count.add`` adds one, counts all that is acknowledged, once, and nothing more than
    what may have happened."""
    found = []
    for key, group in _by_key(one for one in history if one.kind == "count").items():
        adds = [one for one in group if one.name == "count.add" and one.outcome in ("ok", "unknown", "bug")]
        known = [one for one in adds if one.ok]
        seen: dict[int, Operation] = {}
        for one in known:
            other = seen.setdefault(one.result, one)
            if other is not one:
                found.append(Violation("counters", "two additions gave one sum", (other, one)))
        found += _rising(known)
        for one in group:
            if one.name != "count.read" or not one.ok:
                continue
            least = sum(other.ended < one.began for other in known)
            most = sum(other.began < one.ended for other in adds)
            if not least <= one.result <= most:
                text = f"{key!r} has {one.result}: at least {least} were acknowledged, at most {most} may be in it"
                unknown = tuple(other for other in adds if not other.ok)
                found.append(Violation("counters", text, (one, *unknown[:20])))
            elif one.result < (high := max((other.result for other in known if other.ended < one.began), default=0)):
                found.append(Violation("counters", f"{key!r} has {one.result}, after {high}", (one,)))
    return found


def _rising(known: list[Operation]) -> list[Violation]:
    found, ended = [], sorted(known, key=lambda one: one.ended)
    highest, at = None, 0
    for one in known:
        while at < len(ended) and ended[at].ended < one.began:
            if highest is None or ended[at].result > highest.result:
                highest = ended[at]
            at += 1
        if highest is not None and one.result <= highest.result:
            found.append(Violation("counters", "a later addition gave a lower sum", (highest, one)))
    return found


# Registers


MOST_STATES: Final = 300_000
"""States that the search for one register looks at before it gives up, and says nothing."""


def registers(history: Sequence[Operation]) -> list[Violation]:
    """Each register behaves as if its operations happened one after the other, each between its begin and its end."""
    found = []
    for key, group in _by_key(one for one in history if one.kind == "reg").items():
        useful = [one for one in group if one.outcome in ("ok", "unknown", "bug")]
        useful = [one for one in useful if one.ok or one.name != "reg.read"]
        if linearizable(useful) is False:
            text = f"no order of the operations on {key!r} explains their answers"
            found.append(Violation("registers", text, tuple(_smallest(useful))))
    return found


def linearizable(operations: Sequence[Operation]) -> bool | None:
    """Whether some order explains the answers; ``None`` if the search was given up.

    After Wing and Gong (1993), with Lowe's memory of what was tried: depth first over (what is done, the value).
    """
    todo = sorted(operations, key=lambda one: one.began)
    needed = sum(1 << at for at, one in enumerate(todo) if one.ok)
    seen: set[tuple[int, Any]] = set()
    stack: list[tuple[int, Any]] = [(0, None)]
    while stack:
        done, value = stack.pop()
        if done & needed == needed:
            return True
        if (done, value) in seen:
            continue
        seen.add((done, value))
        if len(seen) > MOST_STATES:
            return None
        first_end = min((one.ended for at, one in enumerate(todo) if not done >> at & 1), default=math.inf)
        for at, one in enumerate(todo):
            if one.began > first_end:
                break
            if not done >> at & 1:
                stack += [(done | 1 << at, after) for after in _applied(one, value)]
    return False


def _applied(one: Operation, value: Any) -> list[Any]:
    """What the register may hold after ``one``; nothing if its answer does not fit."""
    wanted = one.args.get("value")
    if one.name == "reg.read":
        return [value] if one.result == value else []
    if one.name == "reg.write":
        return [wanted]
    if one.name == "reg.add":
        return [wanted if value is None else value] if not one.ok or one.result is (value is None) else []
    if one.name == "reg.delete":
        return [None] if not one.ok or one.result is (value is not None) else []
    raise ValueError(one.name)


def _smallest(operations: Sequence[Operation]) -> Sequence[Operation]:
    """The shortest beginning that has no order either, for people to read."""
    ordered = sorted(operations, key=lambda one: min(one.ended, one.began + 1_000))
    low, high = 0, len(ordered)
    while high - low > 1:
        middle = (low + high) // 2
        cut = ordered[middle - 1].ended
        known = [one for one in operations if one.began <= cut]
        # What has not ended by then may or may not have happened.
        known = [one if one.ended <= cut else _unanswered(one) for one in known if one.ok or one.name != "reg.read"]
        known = [one for one in known if one.ok or one.name != "reg.read"]
        if linearizable(known) is False:
            high = middle
        else:
            low = middle
    cut = ordered[high - 1].ended
    return [one for one in sorted(operations, key=lambda one: one.began) if one.began <= cut][-25:]


def _unanswered(one: Operation) -> Operation:
    return Operation(one.number, one.client, one.name, one.key, one.began, args=one.args)


# Claims


def claims(history: Sequence[Operation]) -> list[Violation]:
    """A key is completed once, with one value, and from then on nobody starts it again.

    ``claim.take`` starts it (a dictionary with a token), or says what was stored (``"completed", value``) or that it
    is in progress. ``claim.give`` with ``args["value"]`` completes it.
    """
    found: list[Violation] = []
    for group in _by_key(one for one in history if one.kind == "claim").values():
        completed = [one for one in group if one.name == "claim.give" and "value" in one.args]
        done = [one for one in completed if one.ok and one.result is True]
        if len(done) > 1:
            found.append(Violation("claims", "a key was completed twice", tuple(done)))
        told = [one for one in group if one.ok and isinstance(one.result, list) and one.result[0] == "completed"]
        values = {one.result[1]: one for one in told} | {one.args["value"]: one for one in done}
        if len(values) > 1:
            found.append(Violation("claims", "two results of one key", tuple(values.values())))
        tried = {one.args["value"]: one for one in completed if one.outcome != "fail"}
        found += [
            Violation("claims", "a result that nobody had stored", (one,))
            for one in told
            if one.result[1] not in tried or tried[one.result[1]].began > one.ended
        ]
        first = min([*done, *told], key=lambda one: one.ended, default=None)
        for one in group:
            looks = one.name in ("claim.take", "claim.read")
            if first is not None and looks and one.ok and one.began > first.ended and one not in told:
                found.append(Violation("claims", "a stored result is not there any more", (first, one)))
    return found


# Tasks


def saves(history: Sequence[Operation]) -> list[Violation]:
    """What is acknowledged is handed to the next runner, and nobody saves after another runner has started.

    States are numbered: a runner that is handed ``n`` saves ``n + 1`` and so on. ``task.take`` has ``n`` and ``value``
    of what was handed over, ``task.renew`` (a save) those of what was saved.
    """
    found: list[Violation] = []
    for group in _by_key(one for one in history if one.kind == "task").values():
        takes = [one for one in group if one.name in ("task.take", "task.read") and one.ok]
        takes = [one for one in takes if isinstance(one.result, dict)]
        written = [one for one in group if one.name == "task.renew"]
        known = [one for one in written if one.ok and one.result is True]
        by_number = {one.number: one for one in takes}
        values = {one.args["value"]: one for one in written}
        for one in takes:
            before = max(
                (other for other in known if other.ended < one.began), key=lambda save: save.args["n"], default=None
            )
            if before is not None and one.result["n"] < before.args["n"]:
                found.append(Violation("saves", "an acknowledged state was lost", (before, one)))
            value = one.result["value"]
            if value is not None and (value not in values or values[value].began > one.ended):
                found.append(Violation("saves", "a state that nobody had saved", (one,)))
            elif value is not None and values[value].outcome == "fail":
                text = "a state that was told not to have been saved"
                found.append(Violation("saves", text, (values[value], one)))
        for save in known:
            own = by_number.get(save.args["hold"])
            for other in takes:
                if own is None or other.name != "task.take" or other is own:
                    continue
                if other.began > own.ended and other.ended < save.began:
                    found.append(Violation("saves", "a runner saved after another one had started", (own, other, save)))
    return found


# Flights


def flights(history: Sequence[Operation]) -> list[Violation]:
    """No caller gets a result that was published before its call began, and of runs led on a lease there is one at a
    time.

    ``flight.call`` has the run's number as its result, ``flight.run`` is a run within one (``args["call"]``), which
    publishes the result before it ends.
    """
    found, runs = [], {one.number: one for one in history if one.name == "flight.run"}
    calls = {one.number: one for one in history if one.name == "flight.call"}
    for one in calls.values():
        if not one.ok:
            continue
        run = runs.get(one.result)
        if run is None or run.key != one.key:
            found.append(Violation("flights", "a result of no run of this key", (one, *([run] if run else []))))
        elif calls[run.args["call"]].ended < one.began:
            text = "a result that was there before the call began"
            found.append(Violation("flights", text, (run, calls[run.args["call"]], one)))
    current, wrong = defaultdict[str, list[tuple[Operation, float]]](list), wrong_clocks(history)
    for run in sorted(runs.values(), key=lambda one: one.began):
        asked = calls[run.args["call"]].began
        until = min(run.ended, _certain(asked, asked + run.args["ttl"] / 1_000 - MARGIN, wrong))
        others = current[run.key] = [(one, end) for one, end in current[run.key] if end > run.began]
        if until > run.began:
            if others:
                found.append(Violation("flights", "two runs led one flight", (*(one for one, _ in others), run)))
            others.append((run, until))
    return found


def replays(history: Sequence[Operation]) -> list[Violation]:
    """All repeats of an idempotent call get one result (``once.call``; its result is ``[run, own]``, or nothing)."""
    found = []
    runs = {one.number: one for one in history if one.name == "once.run"}
    for group in _by_key(one for one in history if one.name == "once.call" and one.ok and one.result).values():
        repeats = {one.result[0]: one for one in group if not one.result[1]}
        if len(repeats) > 1:
            found.append(Violation("replays", "repeats with different results", tuple(repeats.values())))
        for one in group:
            run = runs.get(one.result[0])
            if run is None or run.key != one.key or run.began > one.ended:
                found.append(Violation("replays", "a result of no run of this key", (one,)))
        first = min((one for one in group if not one.result[1]), key=lambda one: one.ended, default=None)
        found += [
            Violation("replays", "it ran again after a result had been replayed", (first, one))
            for one in group
            if first is not None and one.result[1] and one.began > first.ended
        ]
    return found


# Errors and recovery


def errors(history: Sequence[Operation]) -> list[Violation]:
    """Every error is a documented one."""
    return [Violation("errors", "an error that is not documented", (one,)) for one in history if one.outcome == "bug"]


def recovery(history: Sequence[Operation]) -> list[Violation]:
    """Within ``RECOVERY`` seconds after the last fault (``nemesis.healed``) everything works again, and goes on to."""
    healed = next((one for one in history if one.name == "nemesis.healed"), None)
    if healed is None:
        return []
    found, after = [], [one for one in history if one.began > healed.ended and one.kind != "nemesis"]
    for kind in sorted({_worker(one) for one in history if one.client.startswith("c")}):
        worked = [one.ended for one in after if one.ok and _worker(one) == kind]
        if not worked or min(worked) > healed.ended + RECOVERY:
            tried = [one for one in after if _worker(one) == kind]
            text = f"{kind} did not work again within {RECOVERY:g} seconds of the last fault"
            found.append(Violation("recovery", text, (healed, *tried[:5])))
    worked_again: dict[tuple[str, str], Operation] = {}
    for one in after:
        who = (one.client, one.args.get("mode", "sync"))
        if one.ok:
            worked_again.setdefault(who, one)
        elif one.error and one.began > healed.ended + RECOVERY and who in worked_again:
            text = "it failed long after the last fault, although it had worked again"
            found.append(Violation("recovery", text, (healed, worked_again[who], one)))
    return found


def _worker(one: Operation) -> str:
    return f"{one.kind} ({one.args.get('mode', 'sync')})"


def _by_key(operations: Iterable[Operation]) -> dict[tuple[str, str], list[Operation]]:
    found = defaultdict[tuple[str, str], list[Operation]](list)
    for one in operations:
        found[one.kind, one.key].append(one)
    return found


CHECKERS: Final[dict[str, Checker]] = {
    "exclusion": exclusion,
    "tokens": tokens,
    "kept": kept,
    "counters": counters,
    "registers": registers,
    "claims": claims,
    "saves": saves,
    "flights": flights,
    "replays": replays,
    "errors": errors,
    "recovery": recovery,
}


def check(history: Sequence[Operation]) -> list[Violation]:
    """All that is wrong with a history."""
    return [violation for checker in CHECKERS.values() for violation in checker(history)]
