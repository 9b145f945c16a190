"""Places, rates and sources of tracked loops, without a store."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Group

from goscope_django.checkpoints import loops as task_loops
from goscope_django.checkpoints.tracking import Meter, Place, Source
from goscope_django.core.flow import carry_out
from goscope_django.exceptions import InvalidType, InvalidValue


class Time:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("goscope_django.checkpoints.tracking.time.monotonic", lambda: self.now)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


class TestMeter:
    def test_an_even_pace_is_measured_exactly_and_gives_the_time_remaining(self, time: Time) -> None:
        meter = Meter(10)
        assert (meter.rate, meter.remaining(5)) == (None, None)
        for step in range(1, 20):
            time.now += 2
            meter.note(10 + step * 8)
            assert meter.rate == pytest.approx(4)
        assert meter.remaining(40) == pytest.approx(10)
        assert meter.remaining(0) == 0

    def test_a_change_of_pace_is_followed_within_some_spans_and_not_at_once(self, time: Time) -> None:
        meter, count = Meter(), 0.0
        for pace in [10.0] * 30 + [1.0] * 3:
            time.now += 1
            count += pace
            meter.note(count)
        assert meter.rate is not None
        assert 5 < meter.rate < 10
        for _ in range(200):
            time.now += 1
            count += 1
            meter.note(count)
        assert meter.rate == pytest.approx(1, rel=0.05)

    def test_nothing_is_promised_while_nothing_moves_or_it_goes_back(self, time: Time) -> None:
        meter = Meter(5)
        time.now += 1
        meter.note(5)
        assert meter.remaining(5) is None
        time.now += 1
        meter.note(2)
        assert meter.rate is None
        meter.note(50)  # no time has passed
        assert meter.rate is None


class TestSource:
    @pytest.mark.parametrize("items", [[1, 2, 3], (1, 2, 3), range(1, 4), dict.fromkeys([1, 2, 3])])
    def test_what_can_be_counted(self, items: Any) -> None:
        source = Source(items, None, None)
        assert carry_out(source.count(Place(""))) == 3
        assert [item for item, _ in source.behind(Place("", 1))] == [2, 3]
        assert list(source.behind(Place("", 9))) == []

    def test_what_can_only_be_iterated_is_skipped_through(self) -> None:
        source = Source(iter("abcd"), None, None)
        assert carry_out(source.count(Place(""))) is None
        assert [item for item, _ in source.behind(Place("", 2))] == ["c", "d"]

    def test_a_total_that_is_said_is_believed(self) -> None:
        assert carry_out(Source(iter("abcd"), None, 4).count(Place(""))) == 4

    @pytest.mark.parametrize(
        ("items", "key"),
        [({1}, None), (frozenset(), None), (5, None), ([1], "pk"), ([1], lambda item: item), (lambda last: [], "pk")],
    )
    def test_what_can_not_be_resumed_is_refused(self, items: Any, key: Any) -> None:
        with pytest.raises(InvalidType):
            Source(items, key, None)

    @pytest.mark.parametrize("bad", [{"page": 0}, {"page": -1}, {"page": True}, {"total": "4"}, {"total": -1}])
    def test_numbers_that_are_none_are_refused_and_named(self, bad: dict[str, Any]) -> None:
        with pytest.raises((InvalidType, InvalidValue), match=next(iter(bad))):
            Source([1], None, **{"total": None, **bad})

    async def test_asynchronous_iterables(self) -> None:
        async def letters() -> Any:
            for letter in "abc":
                yield letter

        async def numbers(last: int | None) -> Any:
            for number in range(0 if last is None else last + 1, 4):
                yield number

        assert [item async for item, _ in Source(letters(), None, None).abehind(Place("", 1))] == ["b", "c"]
        source = Source(numbers, lambda number: number, None)
        assert [pair async for pair in source.abehind(Place("", 2, 1))] == [(2, 2), (3, 3)]
        assert [item async for item, _ in Source("abc", None, None).abehind(Place("", 1))] == ["b", "c"]
        with pytest.raises(InvalidType, match="atrack"):
            next(Source(letters(), None, None).behind(Place("")))


def test_a_batch_is_a_transaction_on_the_database_of_its_queryset() -> None:
    assert task_loops.database(True, Group.objects.using("legacy").all()) == "legacy"
    assert task_loops.database(True, Group.objects.all()) == "default"
    assert task_loops.database("other", Group.objects.using("legacy")) == "other"


class TestPolicy:
    def due(self, policy: task_loops.Policy, times: int) -> list[int]:
        return [number for number in range(1, times + 1) if policy.due()]

    def test_after_so_many_items_whatever_the_time(self, time: Time) -> None:
        policy = task_loops.Policy(3, None, 1.0)
        time.now += 100
        assert self.due(policy, 10) == [3, 6, 9]

    def test_after_the_interval_or_the_default(self, time: Time) -> None:
        for interval, default in ((2, 50.0), (None, 2.0)):
            policy = task_loops.Policy(None, interval, default)
            assert self.due(policy, 5) == []
            time.now += 2
            assert self.due(policy, 5) == [1]

    def test_whichever_comes_first(self, time: Time) -> None:
        policy = task_loops.Policy(4, 2, 1.0)
        assert self.due(policy, 3) == []
        time.now += 2
        assert self.due(policy, 5) == [1, 5]

    def test_zero_seconds_are_every_item(self) -> None:
        assert self.due(task_loops.Policy(None, 0, 1.0), 3) == [1, 2, 3]

    @pytest.mark.parametrize("bad", [0, -1, True, 1.5, "3"])
    def test_a_number_of_items_that_is_none_is_refused(self, bad: Any) -> None:
        with pytest.raises((InvalidType, InvalidValue), match="every"):
            task_loops.Policy(bad, None, 1.0)


def test_a_place_survives_being_stored() -> None:
    place = Place("rows")
    place.advance(17)
    again = Place.of(place.stored())
    assert (again.name, again.done, again.key, again.ended) == ("rows", 1, 17, False)
