"""A short run of the harness: clients of every feature against three nodes, and a few seconds of faults.

``make soak`` makes long ones, with other seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.consistency import harness
from tests.support.mongod import ReplicaSet, replica_set

pytestmark = [pytest.mark.real, pytest.mark.fleet, pytest.mark.slow]
SEED, SECONDS = 13, 8.0


@pytest.fixture(scope="module")
def nodes() -> Iterator[ReplicaSet]:
    with replica_set(members=3) as running:
        yield running


@pytest.mark.timeout(240)
def test_a_short_run(nodes: ReplicaSet, tmp_path: Path) -> None:
    report = harness.run(nodes, SEED, SECONDS, tmp_path, clients=3)
    assert not report.violations, str(report)
    done = {(one.kind, one.args.get("mode")) for one in report.history if one.ok}
    features = ("lock", "section", "count", "reg", "claim", "once", "flight", "probe", "task")
    assert done >= {(feature, mode) for feature in features for mode in ("sync", "async")}
    assert len({one.client for one in report.history}) >= 4
