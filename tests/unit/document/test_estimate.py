"""The estimate of the server's time: what it builds on, and what it leaves to the server."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goscope_django.mongodb.document import estimate as module
from goscope_django.mongodb.document.estimate import HOLDS, MARGIN, PATIENCE, RELIEF, Estimate

SERVER = datetime(2031, 5, 6, 7, 8, 9)  # noqa: DTZ001  as the driver gives it


class Ticks:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    ticks = Ticks()
    monkeypatch.setattr(module, "tick", ticks)
    return ticks


def learned(ticks: Ticks) -> Estimate:
    """An estimate to which the server has just said that it is ``SERVER``."""
    found = Estimate()
    found.learn(SERVER, ticks.now)
    return found


def after(seconds: float) -> datetime:
    return SERVER + timedelta(seconds=seconds)


def test_nothing_is_known_at_first(ticks: Ticks) -> None:
    found = Estimate()
    assert found.due()
    assert found.passed(SERVER) is None
    assert found.reached() is None


def test_a_statement_is_built_on_for_a_second(ticks: Ticks) -> None:
    found = learned(ticks)
    assert not found.due()
    assert [found.passed(after(-1)), found.passed(after(1))] == [True, False]
    ticks.now += 0.9
    assert [found.passed(after(0.8)), found.passed(after(1))] == [True, False]
    ticks.now += 0.1
    assert found.due()
    assert [found.passed(after(-100)), found.passed(after(100))] == [None, None]


def test_what_is_near_is_left_to_the_server(ticks: Ticks) -> None:
    found = learned(ticks)
    assert found.passed(SERVER) is None
    assert found.passed(after(MARGIN * 0.9)) is None
    assert found.passed(after(-MARGIN * 0.9)) is None


def test_a_slow_statement_is_not_used(ticks: Ticks) -> None:
    found, sent = Estimate(), ticks.now
    ticks.now += MARGIN * 1.01
    found.learn(SERVER, sent)
    assert found.passed(after(-100)) is None


def test_answers_without_a_statement_are_asked_for_less_in_the_end(ticks: Ticks) -> None:
    found = Estimate()
    for _ in range(PATIENCE):
        found.learn(None, ticks.now)
        assert found.due()
    found.learn(None, ticks.now)
    assert not found.due()
    ticks.now += 0.01
    assert found.due()
    found.learn(SERVER, ticks.now)
    ticks.now += HOLDS
    found.learn(None, ticks.now)
    assert found.due()


def test_a_question_in_vain_is_not_repeated_at_once(ticks: Ticks) -> None:
    found = Estimate()
    assert found.question() and not found.question()
    found.learn(None, ticks.now - MARGIN)
    ticks.now += RELIEF * 0.9
    assert not found.question()
    ticks.now += RELIEF * 0.2
    assert found.question()
    found.learn(SERVER, ticks.now)
    assert found.question(), "the link is quick enough"


def test_what_is_not_set_never_comes(ticks: Ticks) -> None:
    assert learned(ticks).passed(None) is False


@pytest.mark.parametrize("moment", ["2031", 5, b""], ids=repr)
def test_what_is_no_instant_is_left_to_the_server(ticks: Ticks, moment: object) -> None:
    assert learned(ticks).passed(moment) is None


def test_a_sleeping_machine_forgets(ticks: Ticks) -> None:
    found = learned(ticks)
    ticks.now += 3_600
    assert found.due()
    assert found.passed(after(10)) is None


@given(
    way=st.floats(0, MARGIN * 0.99),
    asked=st.floats(0, 1),
    later=st.floats(0, HOLDS * 1.5),
    moment=st.floats(-5, 5),
)
def test_it_never_says_what_the_server_would_not(way: float, asked: float, later: float, moment: float) -> None:
    # The server looks at its clock somewhere between the sending and the answer.
    found, start = Estimate(), 50.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "tick", lambda: start + way)
        found.learn(after(asked * way), start)
        patch.setattr(module, "tick", lambda: start + way + later)
        said = found.passed(after(moment))
        reached = found.reached()
    assert said in (None, moment <= way + later)
    assert (reached is None) is (start + way + later >= start + way + HOLDS)
    # What it has surely reached is behind the server's clock, but not by much.
    assert reached is None or after(later + asked * way - way - 0.003) < reached < after(later + asked * way)
