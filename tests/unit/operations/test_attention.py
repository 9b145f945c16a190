"""What needs attention, as a pure function of what was read: nothing is left out, called well unread, or shown raw."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from goscope_django.circuits import CircuitFailure, CircuitOverride
from goscope_django.core import histogram
from goscope_django.mongodb.trouble import MOST
from goscope_django.operations import ATTENTION_KINDS, Attention, AttentionItem
from goscope_django.operations.attention import LONG_HELD, NOTHING, RUNBOOK, SHOWN, Trouble, attention, command, quoted
from goscope_django.operations.convert import Problem
from goscope_django.operations.values import (
    Cache,
    CacheAlias,
    CacheFigures,
    CircuitItem,
    Figures,
    LockFigures,
    LockItem,
    LossItem,
    NameFigures,
    SumFigures,
    TaskItem,
    Timing,
    WaitItem,
)

NOW = datetime(2026, 11, 30, 3, 0, tzinfo=UTC)
OWNER = "web-1:4711, Thread-3, POST /orders/<int:pk>/, 0123456789abcdef"


def lock(key: str, *, held_for: float | None = 60.0, token: int | None = 7, owner: str = OWNER) -> LockItem:
    return LockItem(
        key=key, owner=owner, token=token, created_at=None, expires_at=None, expires_in=10.0, held_for=held_for
    )


def circuit(name: str, **fields: Any) -> CircuitItem:
    base: dict[str, Any] = {
        "state": "open",
        "failure_count": 5,
        "generation": 3,
        "retry_after": 12.0,
        "opened_at": NOW,
        "open_for": 130.0,
        "last_failure_time": None,
        "last_success_time": None,
        "updated_at": None,
        "probes": (),
        "override": None,
        "history": (),
    }
    return CircuitItem(name=name, **{**base, **fields})


def task(name: str, status: str, **fields: Any) -> TaskItem:
    base: dict[str, Any] = {
        "owner": OWNER,
        "token": 9,
        "attempt": 2,
        "max_attempts": 5,
        "sequence": 3,
        "progress": 25.0,
        "done": None,
        "total": None,
        "rate": None,
        "estimated_time_remaining": None,
        "started_at": None,
        "finished_at": None,
        "heartbeat_at": None,
        "heartbeat_age": 90.0,
        "lease_left": None,
        "cancel_requested": False,
        "failure": None,
    }
    return TaskItem(task_id=name, status=status, **{**base, **fields})


def wait(key: str, longest: float, count: int = 1, kind: str = "lock") -> WaitItem:
    return WaitItem(kind=kind, key=key, process="p", count=count, longest=longest, seen_at=NOW)


def judged(trouble: Trouble | None = None, **given: Any) -> Attention:
    base: dict[str, Any] = {
        "problems": (),
        "waits": (),
        "losses": (),
        "figures": Figures(),
        "cache": Cache(),
        "now": NOW,
    }
    return attention(trouble or Trouble(), **{**base, **given})


def only(found: Attention) -> AttentionItem:
    (item,) = found.items
    assert found.total == 1 and found.by_kind == {item.kind: 1}
    return item


def test_nothing_is_said_in_one_line() -> None:
    assert judged() == Attention(summary=NOTHING)


@pytest.mark.parametrize("kind", ["unreachable", "cache_unread", "unread"])
def test_what_could_not_be_read_is_never_called_well(kind: Any) -> None:
    found = judged(problems=[Problem(kind, "x", "it could not be read: \x1b[31m")], hint="Start it.")
    assert not found.complete
    assert only(found).kind == kind
    assert only(found).sentence == "it could not be read: \\x1b[31m"
    assert only(found).action == ("Start it." if kind == "unreachable" else only(found).action) != ""


def test_an_open_circuit() -> None:
    found = only(judged(Trouble(circuits=(circuit("bank"),))))
    assert (found.kind, found.target, found.key, found.token) == ("circuit_open", "circuit", "bank", 3)
    assert found.seconds == 130.0
    assert "'bank'" in found.sentence and "2 m 10 s" in found.sentence and "12 s" in found.sentence
    assert found.command == "manage.py goscope_circuit show bank"


def test_an_open_circuit_says_why() -> None:
    why = CircuitFailure("TimeoutError", "timed out after 5 s", NOW)
    found = only(judged(Trouble(circuits=(circuit("bank", opened_by=why),))))
    assert found.sentence.endswith("It was opened by TimeoutError: timed out after 5 s")


@pytest.mark.parametrize(("state", "effect"), [("open", "refused"), ("closed", "go through")])
def test_a_forced_circuit_is_told_with_its_reason(state: Any, effect: str) -> None:
    override = CircuitOverride(state, "maint\x1benance", NOW - timedelta(minutes=5))
    found = only(judged(Trouble(circuits=(circuit("bank", state=state, override=override),))))
    assert (found.kind, found.seconds) == ("circuit_forced", 300.0)
    assert effect in found.sentence and "maint\\x1benance" in found.sentence
    assert found.command == "manage.py goscope_circuit reset bank"


def test_tasks() -> None:
    found = judged(
        Trouble(
            tasks=(
                task("a", "stalled"),
                task("b", "failed", failure="ValueError: no\nsuch row"),
                task("c", "exhausted", max_attempts=2),
            )
        )
    )
    assert [(one.kind, one.key) for one in found.items] == [
        ("task_exhausted", "c"),
        ("task_failed", "b"),
        ("task_stalled", "a"),
    ]
    assert "web-1:4711, Thread-3, POST /orders/<int:pk>/" in found.items[2].sentence
    assert "0123456789abcdef" not in found.items[2].sentence
    assert "ValueError: no\\nsuch row" in found.items[1].sentence and "2 of 5" in found.items[1].sentence
    assert found.items[0].command == "manage.py goscope_checkpoint reset c"
    assert found.summary == ("3 things need attention: 1 task without attempts left, 1 failed task, 1 stalled task.")


def test_locks_that_others_wait_for_come_longest_first_and_before_those_held_long() -> None:
    old = lock("old", held_for=LONG_HELD)
    found = judged(
        Trouble(
            waited=(lock("a"), lock("b"), lock("quick"), replace(old, key="both")),
            held=(replace(old, key="both"), old, lock("young", held_for=LONG_HELD - 1), lock("ageless", held_for=None)),
        ),
        waits=[
            wait("a", 5, 2),
            wait("b", 30),
            wait("a", 9),
            wait("quick", 0.2),
            wait("both", 2),
            wait("old", 9, 1, "x"),
        ],
    )
    assert [(one.kind, one.key, one.seconds) for one in found.items] == [
        ("lock_waited", "b", 30),
        ("lock_waited", "a", 9),
        ("lock_waited", "both", 2),
        ("lock_held_long", "old", LONG_HELD),
    ]
    assert "3 callers wait" in found.items[1].sentence and "1 caller waits" in found.items[0].sentence
    assert found.items[0].command == "manage.py goscope_lock release --token 7 b"


def test_what_is_unusual_for_a_name_is_told_by_how_long_it_is_held_as_a_rule() -> None:
    def known(name: str, p95: float, count: int) -> LockFigures:
        held, wait = Timing(count=count, p95=p95), Timing()
        return LockFigures(name=name, acquired=count, contended=0, not_acquired=0, lost=0, wait=wait, held=held)

    names = (
        NameFigures(hour=NOW, locks=(known("quick", 0.5, 50), known("steady", 900.0, 9), known("rare", 0.5, 4))),
        NameFigures(hour=NOW, locks=(known("steady", 60.0, 9), known("slow", 20.0, 5))),
    )
    held = [lock("quick", held_for=60.0), lock("steady", held_for=8_999.0), lock("rare", held_for=3_599.0)]
    held += [lock("slow", held_for=201.0), lock("slow", held_for=199.0), lock("unknown", held_for=3_600.0)]
    found = judged(Trouble(held=tuple(held)), figures=Figures(names=names))
    assert [(one.key, one.seconds) for one in found.items] == [("unknown", 3_600.0), ("slow", 201.0), ("quick", 60.0)]
    assert "held for 20 s at most as a rule" in found.items[1].sentence


def test_a_lock_that_was_taken_after_its_waiters_came_changes_hands_and_is_not_to_be_released() -> None:
    waits = [wait("quick", 9), wait("stuck", 9)]
    found = judged(Trouble(waited=(lock("quick", held_for=0.3), lock("stuck", held_for=9.1))), waits=waits).items
    stuck, quick = sorted(found, key=lambda one: one.key, reverse=True)
    assert "changes hands" in quick.action and quick.command == "manage.py goscope_lock show quick"
    assert "release the lock" in stuck.action and stuck.command == "manage.py goscope_lock release --token 7 stuck"


def held(*holds: tuple[float, int]) -> Figures:
    """The holds of all locks in 28 days, as seconds and how many."""
    row = [0] * histogram.WIDTH
    for seconds, count in holds:
        for _ in range(count):
            histogram.note(row, 0, seconds)
    timing = Timing(count=sum(row[: histogram.BUCKETS]), buckets=tuple(row[: histogram.BUCKETS]))
    return Figures(sums=SumFigures(since=NOW - timedelta(days=28), timings={"lock_held": timing}))


@pytest.mark.parametrize(
    ("figures", "most"),
    [
        (Figures(), 3_600.0),
        (held((0.1, 99)), 3_600.0),
        (held((0.1, 100)), 300.0),
        (held((0.1, 5_000), (299.0, 28)), 300.0),
        (held((0.1, 5_000), (1_200.0, 28)), 3_600.0),
        (held((0.1, 5_000), (600.0, 4)), 900.0),
        (held((0.1, 5_000), (600.0, 2)), 900.0),
        (held((0.1, 5_000), (600.0, 1)), 300.0),
        (held((0.1, 5_000), (600.0, 1), (1_800.0, 1)), 900.0),
        (held((0.1, 5_000), (20_000.0, 28)), 3_600.0),
        (held((20_000.0, 200)), 3_600.0),
    ],
)
def test_without_figures_per_name_unusual_is_what_no_lock_does_once_a_fortnight(figures: Figures, most: float) -> None:
    locks = (lock("over", held_for=most), lock("under", held_for=most - 1))
    found = only(judged(Trouble(held=locks), figures=figures))
    assert (found.kind, found.key) == ("lock_held_long", "over")
    assert ("at most as a rule" in found.sentence) == (most < 3_600)


def test_a_young_count_has_no_rare_holds() -> None:
    figures = held((0.1, 500), (600.0, 1))
    young = replace(figures, sums=replace(figures.sums, since=NOW - timedelta(hours=1)))
    locks = (lock("over", held_for=900.0), lock("under", held_for=899.0))
    assert only(judged(Trouble(held=locks), figures=young)).key == "over"


def test_a_lock_of_node_is_released_by_its_owner() -> None:
    found = only(judged(Trouble(held=(lock("it's", held_for=LONG_HELD, token=None, owner="node worker"),))))
    assert found.command is not None
    assert shlex.split(found.command) == ["manage.py", "goscope_lock", "release", "--owner", "node worker", "it's"]


def test_leases_lost_and_entries_forged() -> None:
    totals = {"locks_lost": 2, "tasks_lost": 1, "idempotent_lost": 0, "tasks_refused": 1, "checkpoints_unreadable": 3}
    aliases = (
        CacheAlias(alias="a b", key_prefix="", figures=CacheFigures(forged=1)),
        CacheAlias(alias="c", key_prefix=""),
    )
    lost = LossItem(kind="lock", key="nightly", holder=OWNER, token=7, at=NOW, age=60.0)
    found = judged(figures=Figures(totals=totals), cache=Cache(aliases=aliases), losses=[lost])
    assert [(one.kind, one.target, one.key) for one in found.items] == [
        ("lease_lost", "figures", "locks_lost"),
        ("lease_lost", "figures", "tasks_lost"),
        ("forged", "cache", "a b"),
        ("forged", "figures", "tasks_refused"),
        ("forged", "figures", "checkpoints_unreadable"),
    ]
    assert found.items[0].sentence.startswith("2 locks were lost")
    assert "'nightly', of web-1:4711, Thread-3, POST /orders/<int:pk>/." in found.items[0].sentence
    assert found.items[1].sentence.startswith("1 task was lost")
    assert found.items[2].command == "manage.py goscope_cache stats --alias 'a b'"


def test_much_of_a_kind_is_counted_and_cut() -> None:
    found = judged(Trouble(circuits=tuple(circuit(f"c{n}", open_for=float(n)) for n in range(MOST + 1))))
    assert (found.total, found.at_least, len(found.items)) == (MOST, True, SHOWN)
    assert found.items[0].key == f"c{MOST}"
    assert found.summary.startswith("100+ things need attention: 100 open circuits")


def test_the_most_urgent_kind_comes_first() -> None:
    problems = [Problem("clock", "", "clock"), Problem("indexes", "", "missing"), Problem("server", "", "rights")]
    found = judged(Trouble(circuits=(circuit("c"),), tasks=(task("t", "failed"),)), problems=problems)
    kinds = [one.kind for one in found.items]
    assert (
        kinds
        == sorted(kinds, key=ATTENTION_KINDS.index)
        == ["server", "indexes", "clock", "circuit_open", "task_failed"]
    )
    assert all(one.action for one in found.items)


def test_the_runbook_has_a_section_for_each_kind_and_each_says_what_to_do() -> None:
    text = (Path(__file__).parents[3] / RUNBOOK).read_text()
    sections = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    assert sections.keys() == set(ATTENTION_KINDS)
    for kind, section in sections.items():
        assert re.findall(r"^\*\*(.+?)\*\*:", section, re.MULTILINE) == ["It means", "Check", "Do"], kind
    assert only(judged(Trouble(circuits=(circuit("bank"),)))).docs == f"{RUNBOOK}#circuit_open"


@pytest.mark.parametrize("key", ["-x", "--json"])
def test_a_key_is_never_taken_for_an_option(key: str) -> None:
    assert shlex.split(command("goscope_lock release", key, "--token", "1"))[-2:] == ["--", key]


def test_a_key_that_is_not_printable_is_typed_by_escapes() -> None:
    assert quoted("a'b\\c\x1b\n\u202e") == "$'a\\'b\\\\c\\x1b\\n\\u202e'"
    assert quoted("a b") == "'a b'"
