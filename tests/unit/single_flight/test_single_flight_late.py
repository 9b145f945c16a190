"""A flight whose lease has ended before the answer that granted it came: the function does not run on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from goscope_django import runtime
from goscope_django.mongodb.single_flight.provider import MongoDBFlightProvider
from goscope_django.mongodb.single_flight.values import Terms
from tests.support.locks import settings_for

MODULE = "goscope_django.mongodb.single_flight.flows.time"


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    with settings_for("mongomock://"):
        yield


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_it_is_given_up_and_taken_anew(monkeypatch: pytest.MonkeyPatch, asynchronous: bool) -> None:
    adapter = runtime.adapter()
    provider = MongoDBFlightProvider(adapter.store, key_prefix=f"late-{asynchronous}:")
    # The first attempt takes a minute, all that follows a moment.
    moments = itertools.chain([0.0, 0.0, 0.0, 60.0], itertools.count(60.0, 0.001))
    monkeypatch.setattr(MODULE, SimpleNamespace(monotonic=lambda: next(moments)))
    terms, deadline = Terms(30_000, 1_000, "me", 10.0), 1_000.0

    def pace(waited: float, flying: float, looks: int) -> float:
        return 0.0

    if asynchronous:
        entered = await provider.aenter("k", terms, None, pace, deadline)
    else:
        entered = provider.enter("k", terms, None, pace, deadline)
    assert entered.claim is not None and entered.sent >= 60.0, "under the lease of the second attempt"
    assert provider.abort("k", entered, terms)
