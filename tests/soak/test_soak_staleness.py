"""A few seconds of the hunt for answers that are too old: see ``staleness``. ``make soak`` makes a million reads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.soak import staleness
from tests.soak.staleness import Troubles, hunt
from tests.support.mongod import replica_set
from tests.support.proxy import Proxy

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Proxy, str, str]]:
    with replica_set(1) as server, Proxy(server.ports[0]) as proxy:
        around = f"mongodb://127.0.0.1:{server.ports[0]}/soak?directConnection=true"
        yield proxy, f"mongodb://127.0.0.1:{proxy.port}/soak?directConnection=true", around


def test_no_answer_is_older_than_max_stale(place: tuple[Proxy, str, str]) -> None:
    proxy, url, around = place
    faults, figures = hunt(url, around, reads=100_000, seconds=6, trouble=Troubles(proxy))
    assert not faults, faults[:20]
    assert figures["read"] >= 100_000
    assert figures["hits"] > 10_000, "this was to be about near entries"


def test_a_cache_that_takes_silence_for_a_proof_is_found(place: tuple[Proxy, str, str]) -> None:
    proxy, url, around = place
    troubles = Troubles(proxy, 2.5)

    def hang(pids: list[int]) -> None:
        troubles.turn = 0  # nothing but delays
        troubles(pids)

    faults, _ = hunt(url, around, reads=2_000, seconds=4, processes=2, broken="silence", trouble=hang)
    assert any("after it was replaced" in one for one in faults)


def test_the_judgement_finds_what_is_too_old() -> None:
    committed = {"k": {"1": 10.0, "2": 20.0, "3": staleness.UNKNOWN, "4": 40.0}}
    answer = {"committed": committed, "faults": [], "seen": {"k": {"1": 20.9, "2": 40.9, "3": 40.9, "4": 99.0}}}
    assert not staleness.too_old([answer])
    for version, asked in (("1", 21.1), ("2", 41.1), ("3", 41.1)):
        late = {**answer, "seen": {"k": {version: asked}}}
        assert len(staleness.too_old([late])) == 1
    assert staleness.too_old([{**answer, "faults": ["own"]}]) == ["own"]
