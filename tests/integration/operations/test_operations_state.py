"""The state that page, JSON, command and metrics show: correct, complete, bounded, and made while MongoDB is down."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.core.cache import cache, caches
from django.test import override_settings

from goscope_django import figures, operations, runtime
from goscope_django.checkpoints import checkpointed
from goscope_django.circuits import CircuitBreaker
from goscope_django.contracts import Event
from goscope_django.exceptions import InvalidType, InvalidValue
from goscope_django.locks import lock
from goscope_django.mongodb import overview, trouble
from goscope_django.operations import collect
from goscope_django.operations.collect import COMMANDS
from goscope_django.operations.values import State
from goscope_django.process import counters, holder
from tests.support.commands import Recorder
from tests.support.mongod import temporary_mongod
from tests.support.operations import Operators, fill, own_store, query, soon, stopped

SECTIONS = ("server", "locks", "circuits", "tasks", "flights", "idempotency", "cache", "waits", "figures")
PAGED = {
    "locks": ("go_goscope_locks", "key"),
    "circuits": ("go_goscope_circuit", "name"),
    "tasks": ("go_goscope_tasks", "task_id"),
    "flights": ("go_goscope_flights", "key"),
    "idempotency": ("go_goscope_idempotency", "key"),
}


@pytest.fixture(params=["mongod", "mongomock"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    url = "mongomock://" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    with own_store(url):
        yield request.param


@pytest.fixture(params=["sync", "async"])
def by(request: pytest.FixtureRequest) -> Iterator[Operators]:
    found = Operators(request.param)
    yield found
    found.close()


def errors(state: State) -> dict[str, str]:
    return {name: error for name in SECTIONS if (error := getattr(state, name).error) is not None}


def test_an_empty_store_has_an_empty_state(store: str, by: Operators) -> None:
    state = by.see()
    assert state.reachable and not errors(state)
    assert state.problems == ()
    assert all(getattr(state, name).total == 0 and getattr(state, name).items == () for name in PAGED)
    assert state.server.topology == ("replica set" if store == "mongod" else "mongomock")
    assert state.server.indexes_ok is True
    assert len(state.server.indexes) == 13
    assert state.cache.aliases[0].alias == "default" and state.cache.aliases[0].entries == 0
    assert len(state.figures.minutes) == 60
    assert set(state.figures.series) == set(figures.SERIES)
    assert state.key_prefix.startswith("ops")


def test_everything_is_in_it(store: str, by: Operators) -> None:
    adapter = runtime.adapter()
    handle = adapter.lock.acquire("invoice", 60_000, owner="worker")
    assert handle is not None
    breaker = CircuitBreaker("bank", failure_threshold=2)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            breaker.call(lambda: 1 / 0)
    operations.close_circuit("mail", reason="by hand")
    adapter.idempotency.begin("order", 60_000)
    adapter.idempotency.set("paid", "secret", 60_000)
    cache.set("user:1", "abc")
    fill(flights=1)
    with checkpointed("import") as task:
        task.save({"n": 1}, progress=25)
        state = by.see()
    (lock,) = state.locks.items
    assert (lock.key, lock.owner, lock.token) == ("invoice", "worker", handle.token)
    assert lock.expires_in is not None and 50 < lock.expires_in <= 60
    assert lock.held_for is not None and 0 <= lock.held_for < 50
    bank, mail = state.circuits.items
    assert (bank.name, bank.state, bank.override) == ("bank", "open", None)
    assert bank.retry_after is not None and 0 < bank.retry_after <= 30
    assert [(move.from_state, move.to_state, move.reason) for move in bank.history] == [("closed", "open", "failures")]
    assert mail.override is not None and (mail.override.state, mail.override.reason) == ("closed", "by hand")
    assert state.circuits.by_state == {"closed": 1, "open": 1, "half-open": 0}
    assert state.circuits.forced == 1
    (found,) = state.tasks.items
    assert (found.task_id, found.status, found.progress, found.attempt) == ("import", "running", 25.0, 1)
    assert found.heartbeat_age is not None and found.lease_left is not None and found.lease_left > 0
    assert state.tasks.by_status["running"] == 1
    assert [(one.key, one.leader) for one in state.flights.items] == [("f0000", "worker")]
    assert [(one.key, one.state) for one in state.idempotency.items] == [
        ("order", "in_progress"),
        ("paid", "completed"),
    ]
    assert (state.idempotency.in_progress, state.idempotency.completed, state.idempotency.total) == (1, 1, 2)
    assert (state.cache.aliases[0].entries, state.cache.aliases[0].at_least) == (1, False)


def test_what_has_ended_is_not_in_it(store: str, by: Operators) -> None:
    fill(locks=1, flights=1, records=2, tasks=1)
    for collection, _ in PAGED.values():
        query(collection, "update_many", {}, {"$set": {"expiresAt": soon(-1)}})
    state = by.see()
    assert not errors(state)
    assert all(getattr(state, name).items == () and getattr(state, name).total == 0 for name in PAGED)


def test_tasks_whose_worker_is_gone_are_marked(store: str, by: Operators) -> None:
    fill(tasks=4)
    query("go_goscope_tasks", "update_many", {"token": 3}, {"$set": {"tries": 10}})
    state = by.see()
    assert [one.status for one in state.tasks.items] == ["stalled", "running", "exhausted", "running"]
    assert {name: count for name, count in state.tasks.by_status.items() if count} == {
        "stalled": 1,
        "running": 2,
        "exhausted": 1,
    }


def test_what_needs_attention_is_found_whatever_is_on_the_page(store: str, by: Operators) -> None:
    assert by.see().attention.summary == "Nothing needs attention."
    prefix = runtime.adapter().key_prefix
    fill(locks=12, circuits=9, tasks=9)  # of the circuits and tasks some are in order
    query(
        "go_goscope_tasks",
        "update_one",
        {"_id": f"{prefix}t0001"},
        {"$set": {"status": "failed", "error": "ValueError: no"}},
    )
    query(
        "go_goscope_tasks",
        "update_one",
        {"_id": f"{prefix}t0003"},
        {"$set": {"status": "completed", "leaseUntil": soon(-9)}},
    )
    operations.close_circuit("c0000", reason="by hand")
    query("go_goscope_locks", "update_one", {"key": f"{prefix}lock:l00002"}, {"$set": {"createdAt": soon(-7_200)}})
    query(
        "go_goscope_locks",
        "update_one",
        {"key": f"{prefix}lock:l00003"},
        {"$set": {"createdAt": soon(-7_200), "expiresAt": soon(-1)}},
    )
    query("go_goscope_locks", "update_one", {"key": f"{prefix}lock:l00004"}, {"$unset": {"createdAt": True}})
    waiting = [("lock", "l00008", 3, 12.0), ("lock", "l00006", 1, 0.1), ("lock", "gone", 1, 50.0)]
    counters.forget()
    counters.announce(told := lambda: waiting)
    try:
        counters.count("locks_contended")
        counters.observe(Event("lock_lost", {"key": "l00000"}))
        figures.flush()
    finally:
        counters._waiting.remove(told)
    state = by.see(limit=1, search="nothing like it")
    assert not errors(state) and state.locks.matching == 0 and state.waits.items == ()
    assert [(one.kind, one.key) for one in state.attention.items] == [
        *(("circuit_open", name) for name in ("c0001", "c0004", "c0007")),
        ("circuit_forced", "c0000"),
        ("task_failed", "t0001"),
        *(("task_stalled", name) for name in ("t0000", "t0002", "t0004", "t0006", "t0008")),
        ("lock_waited", "l00008"),
        ("lock_held_long", "l00002"),
        ("lease_lost", "locks_lost"),
    ]
    assert (state.attention.total, state.attention.at_least, state.attention.complete) == (13, False, True)
    assert "worker-1" in state.attention.items[-3].sentence
    assert {one.key: one.held_by for one in by.see(limit=1).waits.items}["l00008"] == "worker-1"
    assert "secret" not in json.dumps(state.as_json())


@pytest.mark.parametrize("names", [0, 10])
def test_where_locks_are_counted_by_name_each_has_its_own_rule(names: int, mongo_url: str) -> None:
    with own_store(mongo_url, FIGURES_PER_NAME=names):
        counters.forget()
        for _ in range(6):
            with lock("quick"):
                pass
        assert figures.flush()
        for key in ("quick", "other"):
            assert runtime.adapter().lock.acquire(key, 60_000, owner="web-1:4711, main, 0123456789abcdef")
        query("go_goscope_locks", "update_many", {}, {"$set": {"createdAt": soon(-120)}})
        found = [(one.kind, one.key) for one in operations.state().attention.items]
        assert found == ([("lock_held_long", "quick")] if names else [])


def test_without_names_the_rule_is_that_of_all_locks(store: str, by: Operators) -> None:
    for key in ("old", "young"):
        assert runtime.adapter().lock.acquire(key, 60_000)
    key, moved = f"{runtime.adapter().key_prefix}lock:old", {"$set": {"createdAt": soon(-310)}}
    query("go_goscope_locks", "update_one", {"key": key}, moved)
    assert not by.see().attention.items
    for _ in range(120):
        counters.locks.note("any", counters.HELD, 0.01)
    assert figures.flush()
    assert [(one.kind, one.key) for one in by.see().attention.items] == [("lock_held_long", "old")]
    assert "since locks are held for 5 m 00 s at most as a rule" in by.see().attention.items[0].sentence


def test_a_process_finds_all_that_it_holds_and_waits_for(store: str, by: Operators) -> None:
    fill(locks=4, circuits=4, tasks=4, flights=4, records=4)
    me, prefix = holder.process(), runtime.adapter().key_prefix
    query("go_goscope_locks", "update_one", {"key": f"{prefix}lock:l00001"}, {"$set": {"owner": f"{me}, main"}})
    query("go_goscope_tasks", "update_one", {"_id": f"{prefix}t0001"}, {"$set": {"owner": f"{me}, main"}})
    query("go_goscope_flights", "update_one", {"_id": f"{prefix}flight:f0001"}, {"$set": {"leader": f"{me}, main"}})
    query("go_goscope_idempotency", "update_one", {"_id": f"{prefix}i0001"}, {"$set": {"holder": f"{me}, main"}})
    probe = {"id": "p", "until": soon(60), "holder": f"{me}, main"}
    query("go_goscope_circuit", "update_one", {"key": f"{prefix}circuit:c0002"}, {"$set": {"probes": [probe]}})
    counters.forget()
    counters.announce(told := lambda: [("lock", "l00003", 1, 12.0)])
    try:
        counters.count("locks_contended")
        figures.flush()
    finally:
        counters._waiting.remove(told)
    state = by.see(search=me.upper())
    assert not errors(state)
    assert [one.key for one in state.locks.items] == ["l00001", "l00003"]  # the other one it waits for
    assert [one.task_id for one in state.tasks.items] == ["t0001"]
    assert [one.key for one in state.flights.items] == ["f0001"]
    assert [(one.key, one.holder) for one in state.idempotency.items] == [("i0001", f"{me}, main")]
    assert [one.name for one in state.circuits.items] == ["c0002"]
    assert [one.holder for one in state.circuits.items[0].probes] == [f"{me}, main"]
    assert [(one.key, one.process, one.held_by) for one in state.waits.items] == [("l00003", me, "worker-3")]


@pytest.mark.parametrize("reader", ["circuits", "tasks", "locks"])
def test_attention_that_is_not_known_is_not_called_none(
    reader: str, store: str, by: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise ValueError("not a number")

    monkeypatch.setattr(trouble, reader, fails)
    state = by.see()
    assert not state.attention.complete
    (item,) = state.attention.items
    assert item.kind == "unread" and "not a number" in item.sentence
    assert state.problems == (item.sentence,)


@pytest.mark.parametrize("name", PAGED)
def test_every_section_has_pages(name: str, store: str, by: Operators) -> None:
    fill(locks=7, circuits=7, tasks=7, flights=7, records=7)
    seen: list[str] = []
    cursor, pages = None, 0
    while True:
        section = getattr(by.see(limit=3, cursors={name: cursor}), name)
        assert section.error is None
        assert section.total == 7
        assert len(section.items) <= 3
        seen += [getattr(one, PAGED[name][1]) for one in section.items]
        cursor, pages = section.next, pages + 1
        if cursor is None:
            break
    assert pages == 3 if name != "idempotency" else pages in (3, 4)
    assert len(seen) == len(set(seen)) == 7


@pytest.mark.parametrize("name", PAGED)
def test_search_looks_for_text_in_keys_in_any_case(name: str, store: str, by: Operators) -> None:
    fill(locks=30, circuits=30, tasks=30, flights=30, records=30)
    section = getattr(by.see(search="0012"), name) if name != "locks" else by.see(search="00012").locks
    assert (section.total, section.matching) == (30, 1)
    assert [getattr(one, PAGED[name][1])[-4:] for one in section.items] == ["0012"]
    capital = {"locks": "L00012", "circuits": "C0012", "tasks": "T0012", "flights": "F0012", "idempotency": "I0012"}
    assert getattr(by.see(search=capital[name]), name).matching == 1


@pytest.mark.parametrize("search", [".", ".*", "(", "[", "\\", "$", "^", "lock:", "ops", "\0", "{"])
def test_search_is_text_and_sees_no_prefix(search: str, store: str) -> None:
    fill(locks=3)
    adapter = runtime.adapter()
    adapter.lock.acquire("a.*([\\$^{b", 60_000)
    state = operations.state(search=search)
    assert not errors(state)
    expected = {"lock:": 0, "ops": 0, "\0": 4}.get(search, 1)
    assert (state.locks.total, state.locks.matching) == (4, expected)


def test_owners_are_searched_as_well(store: str) -> None:
    fill(locks=14, tasks=14)
    state = operations.state(search="Worker-3")
    assert (state.locks.matching, state.tasks.matching) == (2, 2)


def test_other_prefixes_are_never_seen(store: str) -> None:
    fill(locks=2, circuits=2, tasks=2, flights=2, records=2)
    with override_settings(GOSCOPE={"TEST": {"URL": runtime.connection().target.place}, "KEY_PREFIX": "elsewhere:"}):
        if store == "mongomock":
            pytest.skip("mongomock: its store belongs to its URL and settings")
        state = operations.state()
        assert all(getattr(state, name).total == 0 for name in PAGED)


def test_a_section_that_fails_says_so_and_leaves_the_rest(
    store: str, by: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(locks=2, circuits=2)

    def fails(*_: Any) -> Any:
        raise ValueError("not a number")

    monkeypatch.setattr(overview, "locks", fails)
    state = by.see()
    assert state.reachable
    assert set(errors(state)) == {"locks"}
    assert state.locks.items == ()
    assert state.circuits.total == 2
    assert any("locks" in problem for problem in state.problems)


def test_no_value_and_no_password_is_in_it(store: str, by: Operators) -> None:
    fill(locks=2, circuits=2, tasks=2, flights=2, records=2)
    cache.set("k", "secret-value")
    text = json.dumps(by.see().as_json())
    assert "secret" not in text
    with override_settings(GOSCOPE={"TEST": {"URL": "mongodb://me:secret@127.0.0.1:1/x"}}):
        text = json.dumps(by.see().as_json())
    assert "secret" not in text and "me:***@" in text


def test_json_has_every_field_and_plain_values_only(store: str) -> None:
    fill(locks=2, circuits=2, tasks=2, flights=2, records=2)
    state = operations.state()
    found = json.loads(json.dumps(state.as_json()))
    assert found["schema_version"] == operations.SCHEMA_VERSION
    assert set(SECTIONS) < set(found)
    moment = datetime.fromisoformat(found["locks"]["items"][0]["expires_at"])
    assert moment.tzinfo is not None and moment.astimezone(UTC) == state.locks.items[0].expires_at
    assert found["locks"]["items"][0]["expires_at"].endswith("Z")


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"limit": 0}, InvalidValue),
        ({"limit": True}, InvalidType),
        ({"limit": "5"}, InvalidType),
        ({"search": None}, InvalidType),
        ({"cursors": {"server": "x"}}, InvalidValue),
        ({"cursors": {"locks": 5}}, InvalidType),
    ],
)
def test_arguments_that_can_not_be_used_are_named(arguments: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind, match=next(iter(arguments))):
        operations.state(**arguments)


def test_a_cursor_that_nobody_gave_is_just_a_place(store: str, by: Operators) -> None:
    fill(locks=3, records=3)
    state = by.see(cursors={"locks": "zzz", "idempotency": "nonsense:§"})
    assert not errors(state)
    assert state.locks.items == () and state.locks.total == 3


def test_a_large_page_is_cut(store: str) -> None:
    assert operations.state(limit=5_000_000).limit == 1_000


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_refresh_costs_a_bounded_number_of_commands(mode: str, mongo_url: str) -> None:
    recorder, by = Recorder(), Operators(mode)
    with own_store(mongo_url, CLIENT_OPTIONS={"event_listeners": [recorder]}):
        by.see()
        recorder.clear()
        by.see()
        empty = len(recorder.events)
        fill(locks=10_000, circuits=1_000, tasks=500, flights=500, records=2_000)
        recorder.clear()
        state = by.see()
        assert not errors(state)
        assert (state.locks.total, state.circuits.total, state.tasks.total) == (10_000, 1_000, 500)
        assert (state.flights.total, state.idempotency.total) == (500, 2_000)
        assert empty <= len(recorder.events) <= COMMANDS + len(state.cache.aliases)
        recorder.clear()
        state = by.see(limit=1_000, cursors={"locks": state.locks.next}, search="l")
        assert len(state.locks.items) == 1_000
        assert len(recorder.events) <= COMMANDS + 1 and "getMore" not in recorder.names
        writes = {"insert", "update", "delete", "findAndModify", "createIndexes"}
        assert not writes & set(recorder.names)
    by.close()


def test_indexes_that_were_present_are_asked_for_again_after_a_while(
    mongo_url: str, monkeypatch: pytest.MonkeyPatch, by: Operators
) -> None:
    monkeypatch.setattr(collect, "_remembers", lambda: True)
    recorder = Recorder()
    with own_store(mongo_url, CLIENT_OPTIONS={"event_listeners": [recorder]}):
        query("go_goscope_locks", "drop_index", "key_1")
        for _ in range(2):  # what is missing is looked for each time
            assert not by.see().server.indexes_ok
        operations.ensure_indexes()
        assert by.see().server.indexes_ok
        recorder.clear()
        assert by.see().server.indexes_ok and "listIndexes" not in recorder.names
        monkeypatch.setattr(collect, "PRESENT", -1.0)
        collect._present.clear()
        for _ in range(2):
            recorder.clear()
            assert by.see().server.indexes_ok and recorder.names.count("listIndexes") == 9


def test_missing_and_other_indexes_are_problems_with_what_repairs_them(mongo_url: str, by: Operators) -> None:
    with own_store(mongo_url):
        query("go_goscope_locks", "drop_index", "key_1")
        query("go_goscope_cache", "drop_index", "expiresAt_1")
        query("go_goscope_cache", "create_index", [("expiresAt", 1)], expireAfterSeconds=9)
        state = by.see()
        assert state.server.indexes_ok is False
        assert {one.name: one.state for one in state.server.indexes if one.state != "present"} == {
            "key_1": "missing",
            "expiresAt_1": "different",
        }
        text = "\n".join(state.problems)
        assert "go_goscope_locks.key_1" in text and "`manage.py goscope_indexes ensure`" in text
        assert "expireAfterSeconds=9" in text and "ensure --repair" in text
        operations.ensure_indexes(repair=True)
        assert by.see().problems == ()


def test_a_server_that_is_away_leaves_a_state_that_says_so(by: Operators) -> None:
    with override_settings(GOSCOPE={"TEST": {"URL": "mongodb://127.0.0.1:1/x"}}):
        state = by.see()
    assert not state.reachable
    assert state.error is not None and "127.0.0.1:1" in state.error
    assert state.hint
    assert set(errors(state)) == set(SECTIONS)
    assert state.cache.aliases[0].error is not None
    assert "can't be reached" in state.problems[0]
    assert [one.kind for one in state.attention.items] == ["unreachable"]
    assert not state.attention.complete and state.attention.items[0].action == state.hint
    assert json.dumps(state.as_json())


@pytest.mark.timeout(45)  # a socket's own time limit is a minute
def test_a_server_that_hangs_is_not_waited_for(by: Operators) -> None:
    with temporary_mongod() as server, own_store(server.uri.replace("/?", "/x?")):
        assert by.see().reachable
        with stopped(server.pid):
            assert not by.see().reachable
        assert by.see().reachable


def test_a_cache_with_a_store_of_its_own_is_looked_at_there(mongo_url: str, by: Operators) -> None:
    with temporary_mongod() as other:
        url = other.uri.replace("/?", "/other?")
        backend = {"BACKEND": "goscope_django.cache.MongoDBCache"}
        with (
            own_store(mongo_url),
            override_settings(
                CACHES={
                    "default": backend,
                    "own": {**backend, "LOCATION": url},
                    "away": {**backend, "LOCATION": "mongodb://127.0.0.1:1/x"},
                }
            ),
        ):
            caches["own"].set("a", 1)
            caches["own"].set("b", 1)
            state = by.see()
    found = {one.alias: one for one in state.cache.aliases}
    assert state.reachable
    assert found["default"].url is None and found["default"].entries == 0
    assert found["own"].url is not None and found["own"].entries == 2 and len(found["own"].indexes) == 2
    assert found["away"].error is not None


def test_a_cache_that_can_not_be_read_leaves_the_others(mongo_url: str, by: Operators) -> None:
    backend = {"BACKEND": "goscope_django.cache.MongoDBCache"}
    away = "mongodb://me:secret@127.0.0.1:1/x?serverSelectionTimeoutMS=60000"
    entries = {
        "away": {**backend, "LOCATION": away},
        "default": backend,
        "scheme": {**backend, "LOCATION": "bogus://me:secret@h/x"},
        "option": {**backend, "OPTIONS": {"NIX": 1}},
        "other": {**backend, "LOCATION": "mongomock://another"},
        "last": {**backend, "KEY_PREFIX": "last"},
    }
    with own_store(mongo_url), override_settings(CACHES=entries):
        caches["last"].set("a", 1)
        state = by.see()
    found = {one.alias: one for one in state.cache.aliases}
    assert {name for name, one in found.items() if one.error} == {"away", "scheme", "option"}
    assert state.reachable
    assert (found["default"].entries, found["last"].entries, found["other"].entries) == (0, 1, 0)
    for name, wrong in (("away", "no server was reached"), ("scheme", "the scheme must be"), ("option", "NIX")):
        assert any(f"cache {name!r}" in problem and wrong in problem for problem in state.problems)
    assert "secret" not in str(state)


def test_who_waits_for_what_is_in_it_as_far_as_it_was_told(store: str, by: Operators) -> None:
    holder = runtime.adapter().lock.acquire("invoice", 60_000, owner="worker")
    assert holder is not None
    threads = [threading.Thread(target=lambda: lock("invoice").acquire().release()) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + 20
        while sum(count for _, _, count, _ in counters.waits()) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert figures.flush()
        state = by.see()
    finally:
        holder.release()
        for thread in threads:
            thread.join()
    (wait,) = state.waits.items
    assert (wait.kind, wait.key, wait.count, wait.held_by) == ("lock", "invoice", 3, "worker")
    assert state.figures.totals["locks_contended"] >= 3
    assert counters.waits() == []


def test_figures_of_the_fleet_are_in_it(store: str, by: Operators) -> None:
    counters.forget()
    cache.set("user:1", "abc")
    cache.get("user:1")
    cache.get("user:2")
    cache.get("session")
    runtime.emit("lock_acquired", key="k", owner="o", token=1)
    assert figures.flush()
    state = by.see()
    alias = state.cache.aliases[0]
    assert (alias.figures.hits, alias.figures.misses, alias.figures.sets) == (1, 2, 1)
    assert alias.figures.hit_ratio == pytest.approx(1 / 3)
    spaces = {one.namespace: (one.figures.hits, one.figures.misses) for one in alias.namespaces}
    assert spaces == {"user": (1, 1), "(none)": (0, 1)}
    assert state.figures.totals["cache_hits"] == 1
    assert state.figures.totals["locks_acquired"] == 1
    assert sum(state.figures.series["cache_misses"]) == 2
