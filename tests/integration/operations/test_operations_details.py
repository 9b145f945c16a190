"""Everything that is known of one thing: complete, bounded, without values, for what is there and for what was lost."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from django.test import override_settings

from goscope_django import figures, operations, runtime
from goscope_django.checkpoints import checkpointed
from goscope_django.exceptions import InvalidValue, StoreUnavailable
from goscope_django.operations import Details
from goscope_django.operations.details import KINDS, Kind
from goscope_django.operations.values import plain
from goscope_django.process import counters
from tests.support.commands import Recorder
from tests.support.operations import Operators, fill, own_store, query


@pytest.fixture(params=["mongod", "mongomock"])
def url(request: pytest.FixtureRequest) -> str:
    return "mongomock://" if request.param == "mongomock" else str(request.getfixturevalue("mongo_url"))


@pytest.fixture(params=["sync", "async"])
def by(request: pytest.FixtureRequest) -> Iterator[Operators]:
    found = Operators(request.param)
    yield found
    found.close()


KEYS: dict[Kind, str] = {
    "lock": "l00001",
    "circuit": "c0001",
    "task": "import",
    "idempotency": "i0001",
    "cache": "default",
}


def test_every_kind_is_told(url: str, by: Operators) -> None:
    with own_store(url):
        fill(locks=3, circuits=3, records=3)
        with checkpointed("import") as task:
            task.save({"n": "secret"}, progress=25)
        found: dict[Kind, Details] = {kind: by.details(kind, KEYS[kind]) for kind in KINDS}
        state = operations.state()
    assert "secret" not in json.dumps(plain(found))
    for kind, one in found.items():
        assert (one.kind, one.key) == (kind, KEYS[kind]) and one.item is not None
        assert one.docs.startswith("docs/how-to/")
        moments = [moment.at for moment in one.timeline if moment.at is not None]
        assert moments == sorted(moments, reverse=True) and len(moments) == len(one.timeline)
    assert plain(found["lock"].item)["token"] == state.locks.items[1].token
    assert [one.text for one in found["lock"].timeline][-1] == "acquired by worker-1"
    assert [one.kind for one in found["circuit"].attention] == ["circuit_open"]
    assert "closed to open: failures" in [one.text for one in found["circuit"].timeline]
    assert [one.progress for one in found["task"].checkpoints][:1] == [25.0]
    assert "saved number 1, at 25.0 %" in [one.text for one in found["task"].timeline]
    assert found["idempotency"].timeline[-1].text == "claimed"
    assert found["cache"].item == state.cache.aliases[0]


def test_what_is_not_there_is_not_known(url: str, by: Operators) -> None:
    with own_store(url):
        for kind in KINDS:
            found = by.details(kind, "nix")
            assert not found.known and found.item is None and found.timeline == ()
        runtime.emit("task_lost", task_id="nix", attempt=1)
        counters.count("locks_contended")
        assert figures.flush()
        found = by.details("task", "nix")
        assert found.known and found.item is None and found.timeline[0].text.startswith("lost by ")
        with pytest.raises(InvalidValue, match="lock, circuit"):
            by.details("flight", "nix")


def test_an_answer_hides_a_claim_beside_it(url: str) -> None:
    with own_store(url):
        fill(records=2)
        prefix = runtime.adapter().key_prefix
        answer = query("go_goscope_idempotency", "find_one", {"key": f"{prefix}i0000"})
        query("go_goscope_idempotency", "insert_one", {**answer, "_id": f"{prefix}x", "key": f"{prefix}i0001"})
        found = operations.details("idempotency", "i0001").item
        assert found is not None and plain(found)["state"] == "completed"


def test_it_costs_five_commands_beside_the_first(mongo_url: str) -> None:
    recorder = Recorder()
    with own_store(mongo_url, CLIENT_OPTIONS={"event_listeners": [recorder]}):
        fill(locks=3, circuits=3, tasks=3, records=3)
        operations.state()
        for kind in KINDS:
            key = "t0001" if kind == "task" else KEYS[kind]
            recorder.clear()
            operations.details(kind, key)
            assert kind == "cache" or len(recorder.names) <= 6, (kind, recorder.names)
            assert not {"insert", "update", "delete", "findAndModify"} & set(recorder.names)


def test_without_a_server_it_is_an_error(by: Operators) -> None:
    away = {"TEST": {"URL": "mongodb://127.0.0.1:1/x?serverSelectionTimeoutMS=200"}}
    with override_settings(GOSCOPE=away):
        for kind in KINDS:
            with pytest.raises(StoreUnavailable):
                by.details(kind, KEYS[kind])
