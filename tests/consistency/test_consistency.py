"""Short runs of the harness: clients of every feature against three nodes, and a few seconds of faults.

``make soak`` makes long ones, with other seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.consistency import harness
from tests.consistency.nemesis import KINDS, PARTS, WRONG_CLOCKS
from tests.consistency.nodes import Nodes, nodes

pytestmark = [pytest.mark.real, pytest.mark.fleet, pytest.mark.slow]
SEED, SECONDS = 13, 8.0


@pytest.fixture(scope="module")
def running() -> Iterator[Nodes]:
    with nodes(3) as started:
        yield started


@pytest.mark.timeout(240)
def test_a_short_run(running: Nodes, tmp_path: Path) -> None:
    others = [kind for kind in KINDS if kind not in (*PARTS, *WRONG_CLOCKS)]
    report = harness.run(running, SEED, SECONDS, tmp_path, clients=3, kinds=others)
    assert not report.violations, str(report)
    done = {(one.kind, one.args.get("mode")) for one in report.history if one.ok}
    features = ("lock", "section", "count", "reg", "claim", "once", "flight", "probe", "task")
    assert done >= {(feature, mode) for feature in features for mode in ("sync", "async")}
    assert len({one.client for one in report.history}) >= 4


@pytest.mark.timeout(240)
def test_a_short_run_with_nodes_cut_off_from_each_other_and_with_wrong_clocks(running: Nodes, tmp_path: Path) -> None:
    kinds = ["part primary", *WRONG_CLOCKS] if KINDS[-1] in WRONG_CLOCKS else list(PARTS)
    report = harness.run(running, SEED + 3, SECONDS + 4, tmp_path, clients=4, kinds=kinds)
    assert not report.violations, str(report)
    assert {one.kind for one in report.faults} >= {"part primary", kinds[-1]}
    clients = {one.client for one in report.history if one.ok and one.kind == "lock"}
    assert len(clients) == 4, "clients of both sides"
