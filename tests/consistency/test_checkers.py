"""Each checker says nothing of a good history, and finds what is wrong in a bad one that differs in one answer."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from goscope_django.core.flow import carry_out, invoke
from goscope_django.exceptions import LockLost, OutcomeUnknown, StoreUnavailable
from tests.consistency import checkers
from tests.consistency.history import NEVER, Operation, Recorder, read
from tests.consistency.nemesis import PARTS, WRONG_CLOCKS, schedule

_numbers = itertools.count(1)


def op(name: str, began: float, ended: float, result: Any = None, *, outcome: str = "ok", **more: Any) -> Operation:
    key, number = more.pop("key", "k"), more.pop("number", f"n{next(_numbers)}")
    ended = ended if outcome in ("ok", "fail") else NEVER
    client = more.pop("client", "c1")
    return Operation(number, client, name, key, began, ended, outcome, result, more, more.pop("error", ""))


def take(number: str, began: float, ended: float, token: int = 1, ttl: float = 10_000, **more: Any) -> Operation:
    kind = more.pop("kind", "lock")
    return op(f"{kind}.take", began, ended, {"token": token}, number=number, ttl=ttl, **more)


def give(hold: str, began: float, ended: float, result: bool | None = True, **more: Any) -> Operation:
    kind = more.pop("kind", "lock")
    return op(f"{kind}.give", began, ended, result, hold=hold, **more)


def names(history: list[Operation]) -> set[str]:
    return {one.checker for one in checkers.check(sorted(history, key=lambda one: one.began))}


def test_one_holder_after_another() -> None:
    assert not names([take("a", 0, 1), give("a", 2, 4), take("b", 2.5, 3, 2), give("b", 5, 6)])


def test_a_lease_that_has_ended_excludes_nobody() -> None:
    assert not names([take("a", 0, 1, ttl=2_000), take("b", 1, 2.5, 2), give("a", 3, 3.1, False)])


@pytest.mark.parametrize(
    "bad",
    [
        [take("a", 0, 1), take("b", 2, 3, 2)],
        [take("a", 0, 1), take("b", 2, 3, 2), give("a", 9, 9.1, None)],
        [take("a", 0, 1), take("b", 0.5, 1.5, 2)],
        [take("a", 0, 1, ttl=3_000), op("lock.renew", 2, 2.1, True, hold="a", ttl=3_000), take("b", 4, 4.5, 2)],
        # Its lease had ended, but it was told that it still had it.
        [take("a", 0, 1, ttl=2_000), give("a", 9, 9.1), take("b", 3, 3.5, 2, ttl=1_000)],
    ],
)
def test_two_holders_at_once(bad: list[Operation]) -> None:
    assert "exclusion" in names(bad)


def test_two_probes_where_two_may_run_and_three() -> None:
    probes = [take(name, at, at + 0.1, at + 1, kind="probe", most=2) for at, name in enumerate("abc")]
    assert not names(probes[:2])
    assert names(probes) == {"exclusion"}


def test_tokens_that_repeat_or_go_back() -> None:
    first = [take("a", 0, 1, 5), give("a", 2, 3)]
    assert not names([*first, take("b", 4, 5, 6)])
    assert names([*first, take("b", 4, 5, 5)]) == {"tokens"}
    assert names([*first, take("b", 4, 5, 4)]) == {"tokens"}
    assert not names([take("a", 0, 5, 7, ttl=1), take("b", 1, 2, 6, ttl=1)]), "they ran at once: any order"
    assert names([take("a", 0, 1, 5, key="hand:1"), take("b", 4, 5, 4, key="hand:1")]) == {"tokens"}


def test_a_hold_that_was_lost_while_its_lease_lasted() -> None:
    assert names([take("a", 0, 1), give("a", 2, 3, False)]) == {"kept"}
    assert not names([take("a", 0, 1, ttl=2_000), give("a", 2, 3, False)])
    assert not names([take("a", 0, 1), give("a", 2, 3, outcome="unknown"), give("a", 4, 5, False)]), (
        "given back already"
    )
    renewed = op("lock.renew", 1.5, 1.6, True, hold="a", ttl=2_000)
    assert names([take("a", 0, 1, ttl=2_000), renewed, give("a", 2.9, 3, False)]) == {"kept"}
    late = op("lock.renew", 1.5, 2.2, True, hold="a", ttl=2_000)
    assert not names([take("a", 0, 1, ttl=2_000), late, give("a", 2.9, 3, False)]), "its holder has given up meanwhile"


def test_a_release_that_is_true_after_a_takeover() -> None:
    taken_over = [take("a", 0, 1, ttl=2_000), take("b", 3, 3.1, 2, ttl=100)]
    assert not names([*taken_over, give("a", 5, 5.1, False)])
    assert "kept" in names([*taken_over, give("a", 5, 5.1)])


def added(began: float, ended: float, result: int | None = None, **more: Any) -> Operation:
    return op("count.add", began, ended, result, **more)


def total(began: float, result: int) -> Operation:
    return op("count.read", began, began + 1, result)


def test_counters() -> None:
    unknown = added(2, 3, outcome="unknown")
    good = [added(0, 1, 1), added(1.5, 2, 2), unknown]
    assert not names([*good, total(5, 2)]) and not names([*good, total(5, 3)])
    assert names([*good, total(5, 1)]) == {"counters"}, "something acknowledged is lost"
    assert names([*good, total(5, 4)]) == {"counters"}, "something was counted twice"
    assert names([added(0, 1, 1), added(2, 3, outcome="fail"), total(5, 2)]) == {"counters"}, "it had not failed"
    assert names([added(0, 1, 1), added(2, 3, 1)]) == {"counters"}
    assert names([added(0, 1, 2), added(2, 3, 1)]) == {"counters"}
    assert not names([added(0, 3, 2), added(2, 3, 1)])


def written(began: float, ended: float, value: object, **more: Any) -> Operation:
    return op("reg.write", began, ended, None, value=value, **more)


def seen(began: float, ended: float, value: object, **more: Any) -> Operation:
    return op("reg.read", began, ended, value, **more)


def test_registers() -> None:
    assert not names([seen(0, 1, None), written(2, 4, "a"), seen(3, 3.5, "a"), seen(5, 6, "a")])
    assert not names([written(0, 9, "a"), written(1, 8, "b"), seen(2, 3, "b"), seen(4, 5, "a")])
    assert names([written(0, 1, "a"), seen(2, 3, None)]) == {"registers"}
    assert names([written(0, 1, "a"), written(2, 3, "b"), seen(4, 5, "a")]) == {"registers"}
    assert names([written(0, 9, "a"), seen(1, 2, "a"), written(3, 4, "b"), seen(5, 6, "b"), seen(7, 8, "a")]) == {
        "registers"
    }, "a write that was carried out twice"


def test_a_write_with_an_unknown_outcome_may_come_late_or_never() -> None:
    unknown = written(0, 1, "a", outcome="unknown")
    assert not names([unknown, seen(2, 3, None), seen(4, 5, "a")]) and not names([unknown, seen(9, 10, None)])
    assert names([unknown, seen(2, 3, "a"), seen(4, 5, None)]) == {"registers"}, "but then it stays"
    assert names([written(0, 1, "a", outcome="fail"), seen(2, 3, "a")]) == {"registers"}


def test_additions_and_deletions_of_a_register() -> None:
    def add(began: float, value: str, result: bool) -> Operation:
        return op("reg.add", began, began + 0.5, result, value=value)

    def delete(began: float, result: bool) -> Operation:
        return op("reg.delete", began, began + 0.5, result)

    assert not names([add(0, "a", True), add(1, "b", False), delete(2, True), delete(3, False), add(4, "c", True)])
    assert names([add(0, "a", True), add(1, "b", True)]) == {"registers"}
    assert names([add(0, "a", False)]) == {"registers"}
    assert names([add(0, "a", True), delete(1, False)]) == {"registers"}
    assert names([delete(1, True)]) == {"registers"}


def test_the_search_agrees_with_a_real_register() -> None:
    """Random histories of a register that is one are in order; with one answer changed to a value of later they
    aren't."""
    for seed in range(30):
        dice, value, history = random.Random(seed), None, list[Operation]()
        for number in range(40):
            at = float(number)
            began, ended = at - dice.random() * 3, at + dice.random() * 3
            if dice.random() < 0.5:
                value = f"v{number}"
                history.append(written(began, ended, value))
            else:
                history.append(seen(began, ended, value))
        assert checkers.linearizable(history) is True
        early = seen(-20, -19, "v39")
        assert checkers.linearizable([early, written(39, 40, "v39"), *history]) is False


def started(number: str, began: float, token: int, ttl: float = 500) -> Operation:
    return take(number, began, began + 0.1, token, ttl, kind="claim")


def complete(hold: str, began: float, value: str, result: bool = True, **more: Any) -> Operation:
    return op("claim.give", began, began + 0.1, result, hold=hold, value=value, **more)


def replayed(began: float, value: str) -> Operation:
    return op("claim.take", began, began + 0.1, ["completed", value], ttl=1)


def test_claims() -> None:
    good = [started("a", 0, 1), started("b", 1, 2), complete("b", 1.2, "x"), complete("a", 2, "y", False)]
    assert not names([*good, replayed(3, "x"), op("claim.read", 4, 5, ["completed", "x"])])
    assert names([*good, replayed(3, "z")]) == {"claims"}
    assert "claims" in names([*good[:3], complete("a", 2, "y")]), "a zombie's completion"
    assert names([*good, op("claim.read", 4, 5, None)]) == {"claims"}, "an acknowledged result is lost"
    assert names([*good, started("c", 3, 3)]) == {"claims"}, "it runs again"
    assert names([started("a", 0, 1), complete("a", 0.2, "x", outcome="fail"), replayed(3, "x")]) == {"claims"}
    assert not names([started("a", 0, 1), complete("a", 0.2, "x", outcome="unknown"), replayed(3, "x")])


def handed(number: str, began: float, token: int, n: int, value: str | None, ttl: float = 500) -> Operation:
    result = {"token": token, "n": n, "value": value}
    return op("task.take", began, began + 0.1, result, number=number, ttl=ttl)


def saved(hold: str, began: float, n: int, value: str, result: bool = True, **more: Any) -> Operation:
    return op("task.renew", began, began + 0.1, result, hold=hold, ttl=500, n=n, value=value, **more)


def test_saves() -> None:
    good = [
        handed("a", 0, 1, 0, None),
        saved("a", 0.2, 1, "x"),
        handed("b", 1, 2, 1, "x"),
        saved("a", 2, 2, "y", False),
    ]
    assert not names(good)
    assert names([*good[:2], handed("b", 1, 2, 0, None)]) == {"saves"}, "an acknowledged state was lost"
    assert "saves" in names([*good[:3], saved("a", 2, 2, "y")]), "a zombie's save"
    assert names([*good[:2], handed("b", 1, 2, 1, "q")]) == {"saves"}
    failed = saved("a", 0.2, 1, "x", outcome="fail")
    assert names([good[0], failed, handed("b", 1, 2, 1, "x")]) == {"saves"}


def called(number: str, began: float, ended: float, run: str, key: str = "k", **more: Any) -> Operation:
    return op("flight.call", began, ended, run, key=key, number=number, **more)


def ran(number: str, call: str, began: float, ended: float, key: str = "k") -> Operation:
    return op("flight.run", began, ended, number, key=key, number=number, call=call, ttl=5_000)


def test_flights() -> None:
    good = [called("a", 0, 3, "r"), ran("r", "a", 1, 2), called("b", 2.5, 4, "r")]
    assert not names(good)
    assert names([*good, called("c", 3.5, 4, "r")]) == {"flights"}, "published before its call began"
    assert names([*good, called("c", 2, 4, "r", key="other")]) == {"flights"}
    assert names([*good, called("c", 0.5, 4, "s"), ran("s", "c", 1.5, 3)]) == {"flights"}, "two led at once"
    assert not names([called("a", 0, 9, "r"), ran("r", "a", 1, 8), called("c", 2, 7, "s"), ran("s", "c", 6, 7)])


def test_replays() -> None:
    def call(number: str, began: float, run: str, own: bool) -> Operation:
        return op("once.call", began, began + 1, [run, own], number=number)

    runs = [op("once.run", 0.1, 0.2, name, number=name) for name in "rs"]
    assert not names([*runs, call("a", 0, "r", True), call("b", 2, "r", False), call("c", 3, "r", False)])
    assert names([*runs, call("a", 0, "r", True), call("b", 2, "r", False), call("c", 2, "s", False)]) == {"replays"}
    assert names([*runs, call("a", 0, "r", False), call("b", 2, "s", True)]) == {"replays"}
    assert names([call("a", 0, "q", False)]) == {"replays"}


def test_errors_and_recovery() -> None:
    healed = op("nemesis.healed", 10, 10, client="nemesis")
    before = added(1, 2, 1)
    assert not names([before, healed, added(11, 12, 2)])
    assert names([before, healed]) == {"recovery"}
    assert names([before, healed, added(41, 42, 2)]) == {"recovery"}
    late = added(50, 51, outcome="fail", error="StoreUnavailable")
    assert names([before, healed, added(11, 12, 2), late]) == {"recovery"}
    assert names([added(1, 2, outcome="bug", error="KeyError: 'now'")]) == {"errors"}


def test_the_history_is_what_was_recorded(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.jsonl", "c1")

    def raising(error: Exception) -> Any:
        def body() -> None:
            raise error

        return invoke(body)

    def record(name: str, flow: Any) -> Any:
        return carry_out(recorder.call(name, "k", flow, lambda x: x, {LockLost: False}, ttl=5))

    assert record("a.b", invoke(lambda: 7)).value == 7
    assert record("a.lost", raising(LockLost("x"))).value is False
    assert not record("a.fail", raising(StoreUnavailable("x"))).ok
    assert not record("a.unknown", raising(OutcomeUnknown("x"))).ok
    assert not record("a.bug", raising(KeyError("now"))).ok
    recorder.begin("a.killed", "k", {})
    with (tmp_path / "a.jsonl").open("ab") as torn:
        torn.write(b'{"begin": ')
    found = read([tmp_path / "a.jsonl"])
    assert [(one.name, one.outcome, one.result) for one in found] == [
        ("a.b", "ok", 7),
        ("a.lost", "ok", False),
        ("a.fail", "fail", None),
        ("a.unknown", "unknown", None),
        ("a.bug", "bug", None),
        ("a.killed", "unknown", None),
    ]
    assert [one.ended == NEVER for one in found] == [False, False, False, True, True, True]
    assert found[0].args == {"ttl": 5} and found[0].began <= found[0].ended <= found[1].began


def test_a_seed_names_a_schedule() -> None:
    assert schedule(5, 60) == schedule(5, 60) != schedule(6, 60)
    assert {one.kind for one in schedule(5, 60)} >= {"lose", "kill primary", "stop primary", "step down", "kill client"}
    assert all(one.at + one.lasting <= 60 for one in schedule(5, 60))


def clocks(began: float, ended: float) -> list[Operation]:
    """Clocks of servers are wrong meanwhile."""
    return [
        op("clocks.wrong", began, began, client="nemesis"),
        op("clocks.agree", ended, ended, client="nemesis"),
    ]


def test_while_clocks_of_servers_are_wrong_no_lease_is_certain() -> None:
    taken_over = [take("a", 0, 1), take("b", 5, 6, 2)]
    lost = [take("a", 0, 1), give("a", 2, 3, False)]
    assert names(taken_over) == {"exclusion"} and names(lost) == {"kept"}
    for wrong in (clocks(0.5, 9), clocks(-1, 9), clocks(-1, 0.5)):
        assert not names([*wrong, *taken_over]) and not names([*wrong, *lost])
    assert names([*clocks(-2, -1), *taken_over, *clocks(6.5, 8)]) == {"exclusion"}
    assert names([*clocks(-2, -1), *lost, *clocks(4, 5)]) == {"kept"}
    assert names([*clocks(0.5, 9), *taken_over, give("a", 7, 7.1)]) == {"kept"}, "it was told that it still had it"
    assert "tokens" in names([*clocks(0.5, 9), take("a", 0, 1, 5), take("b", 5, 6, 5)])
    asked, run = op("flight.call", 0, 4, "r1", number="f1"), op("flight.run", 1, 4, number="r1", call="f1", ttl=9_000)
    second = op("flight.call", 2, 5, "r2", number="f2"), op("flight.run", 3, 5, number="r2", call="f2", ttl=9_000)
    assert names([asked, run, *second]) == {"flights"} and not names([*clocks(1.5, 9), asked, run, *second])


def test_a_schedule_of_some_kinds() -> None:
    assert {one.kind for one in schedule(5, 60, PARTS)} == {*PARTS}
    assert {one.kind for one in schedule(5, 60, WRONG_CLOCKS)} == {*WRONG_CLOCKS}
