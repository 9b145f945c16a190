"""Counting and sending figures: exact, bounded, and disturbing nobody. On mongomock where no server is needed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.cache import cache, caches
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st
from pymongo.errors import BulkWriteError

from goscope_django import figures, runtime
from goscope_django.checkpoints import checkpointed
from goscope_django.circuits import CircuitBreaker
from goscope_django.core import histogram
from goscope_django.decorators import idempotent, single_flight
from goscope_django.exceptions import (
    CircuitOpen,
    IdempotencyMismatch,
    LockNotAcquired,
    OutcomeUnknown,
    StoreUnavailable,
)
from goscope_django.locks import lock, waiting
from goscope_django.mongodb import figures as stats
from goscope_django.mongodb.driver.store import Store
from goscope_django.mongodb.figures import OTHER, Batch, Hour, Slots
from goscope_django.process import counters
from goscope_django.process.counters import DELETES, ERRORS, FORGED, HITS, MISSES, NONE, READ, SETS, WRITTEN, Alias


@pytest.fixture(autouse=True)
def from_zero() -> Iterator[None]:
    counters.forget()
    figures._flusher._slots = Slots()
    runtime.adapter().store.run(lambda clock: stats_cleared())
    yield
    counters.forget()


def stats_cleared() -> Any:
    from goscope_django.core.flow import ask

    yield from ask(stats.STATS, "delete_many", {})


def hour() -> Hour:
    adapter = runtime.adapter()
    return adapter.store.run(stats.read, adapter.key_prefix, datetime.now(UTC))


def batch(**pairs: int) -> Batch:
    """Hits of namespaces of one alias."""
    counts = {("a", name): [number, *[0] * 7] for name, number in pairs.items()}
    return Batch("p", {"a": [sum(pairs.values()), *[0] * 7]}, counts, {})


# Counting


@pytest.mark.parametrize(
    ("key", "namespace"),
    [
        ("user:1", "user"),
        ("user:1:name", "user"),
        (":1", ""),
        ("plain", NONE),
        ("", NONE),
        (17, NONE),
        ("django.contrib.sessions.cacheabc123secret", "django.contrib.sessions"),
        ("views.decorators.cache.cache_page..GET.0123.4567.en-us.UTC", "views.decorators.cache"),
        ("template.cache.sidebar.0123456789", "template.cache"),
        (f"{'x' * 65}:1", OTHER),
    ],
)
def test_the_namespace_is_what_stands_before_the_first_colon_and_never_a_whole_key(key: Any, namespace: str) -> None:
    alias = Alias("a")
    alias.add(key, HITS)
    assert {name: counts[HITS] for name, counts in alias.unsent().items()} == {namespace: 1}


def test_the_number_of_namespaces_of_a_process_is_bounded_and_nothing_is_lost() -> None:
    alias = Alias("a")
    for number in range(10_000):
        alias.add(f"n{number}:x", MISSES)
    assert len(alias.rows) <= counters.MAX_ROWS + 1
    assert sum(counts[MISSES] for counts in alias.unsent().values()) == 10_000
    assert alias.unsent()[OTHER][MISSES] == 10_000 - counters.MAX_ROWS


def test_a_namespace_that_nobody_uses_makes_room_and_takes_its_last_counts_along() -> None:
    alias = Alias("a")
    alias.add("old:1", HITS)
    alias.settle(alias.unsent(), 0.0)
    alias.add("new:1", HITS)
    alias.settle(alias.unsent(), counters.IDLE + 1)
    assert set(alias.rows) == {"new"}
    alias.add("old:1", HITS)
    assert alias.unsent() == {"old": [1, *[0] * 7]}


def test_threads_that_count_at_once_lose_nothing() -> None:
    alias, each, number = Alias("a"), 20_000, 8
    start = threading.Barrier(number)

    def work() -> None:
        start.wait()
        for _ in range(each):
            alias.add("user:1", HITS)

    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    sent = 0
    while any(thread.is_alive() for thread in threads):  # whoever sends reads meanwhile
        part = alias.unsent()
        alias.settle(part, 1.0)
        sent += sum(counts[HITS] for counts in part.values())
    sent += sum(counts[HITS] for counts in alias.unsent().values())
    assert sent == each * number


def test_sizes_are_counted_where_they_are_known() -> None:
    alias = Alias("a")
    for value in (b"12345", "1234", "ä", 17, None, ["x"]):
        alias.valued("k:1", value, SETS, WRITTEN)
        alias.valued("k:1", value, HITS, READ)
    assert alias.unsent()["k"][WRITTEN] == 9
    assert alias.unsent()["k"][READ] == 9
    assert alias.unsent()["k"][SETS] == 6


def test_the_cache_counts_what_it_does() -> None:
    cache.set("user:1", 1)
    cache.get("user:1")
    cache.get("user:2")
    cache.add("user:1", 2)
    cache.add("user:3", 3)
    cache.set_many({"user:4": 4, "cart:1": 5})
    cache.get_many(["user:1", "user:2", "cart:1", "cart:2", "nothing"])
    cache.get_many(["user:1", "user:3"])
    cache.delete("user:1")
    cache.delete_many(["user:3", "user:9"])
    found = counters.alias("default").unsent()
    assert found["user"][HITS] == 1 + 1 + 2
    assert found["user"][MISSES] == 1 + 1
    assert found["user"][SETS] == 3
    assert found["user"][DELETES] == 3
    assert (found["cart"][HITS], found["cart"][MISSES], found["cart"][SETS]) == (1, 1, 1)
    assert found[NONE][MISSES] == 1


async def test_the_cache_counts_what_it_does_asynchronously() -> None:
    await cache.aset("user:1", "abc")
    await cache.aget("user:1")
    await cache.aget("user:2")
    await cache.aget_many(["user:1", "user:2"])
    await cache.adelete("user:1")
    found = counters.alias("default").unsent()["user"]
    assert (found[HITS], found[MISSES], found[SETS], found[DELETES], found[READ]) == (2, 2, 1, 1, 3)


@given(st.lists(st.sampled_from(["a:1", "a:2", "ab:1", "a", "b:1", ":x", "a:1:2", 5]), unique=True), st.data())
def test_many_keys_are_counted_as_each_alone(keys: list[Any], data: st.DataObject) -> None:
    found = set(data.draw(st.lists(st.sampled_from(keys), unique=True))) if keys else set()
    together, alone = Alias("a"), Alias("a")
    together.read(keys, found)
    together.many(keys, SETS)
    for key in keys:
        alone.add(key, HITS if key in found else MISSES)
        alone.add(key, SETS)
    assert together.unsent() == alone.unsent()


def test_aliases_are_told_apart_though_django_does_not_name_them() -> None:
    backend = {"BACKEND": "goscope_django.cache.MongoDBCache"}
    with override_settings(CACHES={"default": backend, "other": {**backend, "KEY_PREFIX": "o", "TIMEOUT": 5}}):
        caches["other"].get("x:1")
        caches["default"].get("x:1")
    assert counters.alias("other").unsent()["x"][MISSES] == 1
    assert counters.alias("default").unsent()["x"][MISSES] == 1


def test_a_forged_entry_is_counted_where_it_belongs() -> None:
    cache.set("user:1", {1, 2})  # tagged
    adapter = runtime.adapter()

    def forge(clock: Any) -> Any:
        from goscope_django.core.flow import ask

        key = f"{adapter.key_prefix}cache::1:user:1"
        forged = {"__goscope__": 999, "t": "set", "v": [1]}
        yield from ask("go_goscope_cache", "update_one", {"key": key}, {"$set": {"value": forged}})

    adapter.store.run(forge)
    before = counters.alias("default").unsent()["user"]
    assert cache.get("user:1") is None
    found = counters.alias("default").unsent()["user"]
    assert (found[FORGED] - before[FORGED], found[MISSES] - before[MISSES]) == (1, 1)


def test_events_are_counted_by_name() -> None:
    for _ in range(3):
        runtime.emit("lock_acquired", key="k", owner="o", token=1)
    runtime.emit("circuit_opened", name="c", reason="failures", retry_after=1)
    figures.count("flights_led", 4)
    assert figures.flush()
    found = hour()
    assert found.series["locks_acquired"][-1] + found.series["locks_acquired"][-2] == 3
    assert sum(found.series["circuits_opened"]) == 1
    assert sum(found.series["flights_led"]) == 4


# How long things took, and what the features count


def totals() -> dict[str, int]:
    """The sums since counting began, if there is anything."""
    found = hour().totals
    return {} if found is None else {name: sum(counts) for name, counts in found.series.items()}


def measured(name: str) -> int:
    """How many durations were counted, by the minute, by the hour and in all: the same number."""
    found = hour()
    assert found.totals is not None
    counts = {
        sum(sum(row[: histogram.BUCKETS]) for row in rows.get(name, ()))
        for rows in (found.histograms, found.day.histograms, found.totals.histograms)
    }
    (number,) = counts
    return number


def test_locks_count_how_long_they_were_waited_for_and_held() -> None:
    with lock("free"):
        pass
    held, waits = lock("busy").acquire(), threading.Thread(target=lambda: lock("busy").acquire().release())
    waits.start()
    while not waiting.waits():
        time.sleep(0.001)
    held.release()
    waits.join()
    with lock("busy"), pytest.raises(LockNotAcquired):
        lock("busy", blocking=False).acquire()
    assert figures.flush()
    assert (measured("lock_held"), measured("lock_wait")) == (4, 1)
    wanted = {"locks_acquired": 4, "locks_contended": 1, "locks_not_acquired": 1}
    assert {name: count for name, count in totals().items() if name.startswith("locks")} == wanted


async def test_locks_count_the_same_asynchronously() -> None:
    held = await lock("busy").aacquire()
    with pytest.raises(LockNotAcquired):
        await lock("busy", blocking_timeout=0.01).aacquire()
    await held.arelease()
    assert await figures.aflush()
    assert (measured("lock_held"), measured("lock_wait")) == (1, 1)


def test_a_lock_that_was_lost_was_held_until_then() -> None:
    handle = lock("k").acquire()
    runtime.adapter().lock.force_release("k")
    assert not handle.release()
    assert figures.flush()
    assert (measured("lock_held"), totals()["locks_lost"]) == (1, 1)


def test_circuits_count_every_call_whichever_way_it_is_made() -> None:
    breaker = CircuitBreaker("counted", failure_threshold=2)

    async def nothing() -> None:
        pass

    @breaker
    def decorated() -> None:
        pass

    def fail() -> None:
        raise ConnectionError

    for _ in range(3):
        breaker.call(lambda: None)
        decorated()
        with breaker:
            pass
        asyncio.run(breaker.acall(nothing))
    for _ in range(2):
        with pytest.raises(ConnectionError):
            breaker.call(fail)
    for _ in range(3):
        with pytest.raises(CircuitOpen):
            breaker.call(fail)
    assert figures.flush()
    found = {name: count for name, count in totals().items() if name.startswith("circuit")}
    assert found == {"circuit_calls": 14, "circuit_failures": 2, "circuits_opened": 1, "circuit_rejections": 3}


def test_flights_count_how_long_their_function_ran() -> None:
    @single_flight(key=lambda: "k", name="figures.flight")
    def fine() -> int:
        return 1

    @single_flight(key=lambda: "k", name="figures.failing")
    def failing() -> int:
        raise ConnectionError

    assert fine() == 1
    with pytest.raises(ConnectionError):
        failing()
    assert figures.flush()
    assert (measured("flight_time"), totals()["flights_led"]) == (2, 2)


def test_idempotent_calls_are_counted_by_what_became_of_them() -> None:
    @idempotent(key="k", name="figures.idempotent", fingerprint=True)
    def pay(amount: int) -> int:
        return amount

    assert (pay(1), pay(1)) == (1, 1)
    with pytest.raises(IdempotencyMismatch):
        pay(2)
    assert figures.flush()
    found = totals()
    assert (found["idempotent_run"], found["idempotent_replayed"], found["idempotent_mismatches"]) == (1, 1, 1)


def test_tasks_count_items_as_they_are_saved_and_never_twice() -> None:
    def run(stop: int) -> None:
        with suppress(ConnectionError), checkpointed("figures.task") as task:
            for item in task.track(range(10)):
                if item == stop:
                    raise ConnectionError

    run(7)
    assert figures.flush()
    assert totals()["task_items"] == 7
    run(99)
    assert figures.flush()
    assert totals()["task_items"] == 10


def test_the_items_of_a_task_that_counts_them_itself() -> None:
    for start in (0, 30):
        with suppress(ConnectionError), checkpointed("figures.counts") as task:
            task.save(done=start + 10)
            task.save(done=start + 20)
            raise ConnectionError
    assert figures.flush()
    # Where a resumed run begins is not known before its first save.
    assert totals()["task_items"] == 20 + 10


# Sending


def test_what_was_sent_is_not_sent_again() -> None:
    cache.get("user:1")
    assert figures.flush()
    assert figures.flush()
    cache.get("user:1")
    assert figures.flush()
    assert hour().aliases["default"]["misses"] == 2
    assert hour().pairs["default", "user"]["misses"] == 2


async def test_it_can_be_sent_from_an_event_loop() -> None:
    await cache.aget("user:1")
    assert await figures.aflush()
    assert hour().aliases["default"]["misses"] == 1


def test_nothing_is_written_where_nothing_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "run", lambda *args, **kwargs: pytest.fail("it asked the server"))
    assert figures.flush()


def test_a_server_that_is_away_costs_no_count_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    cache.get("user:1")
    with monkeypatch.context() as away:

        def fail(*args: Any, **kwargs: Any) -> Any:
            raise StoreUnavailable("away")

        away.setattr(Store, "run", fail)
        assert not figures.flush()
    assert figures.flush()
    assert hour().aliases["default"]["misses"] == 1


def test_an_outcome_that_is_unknown_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    cache.get("user:1")
    run = Store.run
    with monkeypatch.context() as broken:

        def lost(*args: Any, **kwargs: Any) -> Any:
            run(*args, **kwargs)
            raise OutcomeUnknown("lost")

        broken.setattr(Store, "run", lost)
        figures.flush()
    figures.flush()
    assert hour().aliases["default"]["misses"] == 1


def test_names_that_were_removed_are_not_taken_for_others() -> None:
    adapter, now = runtime.adapter(), datetime.now(UTC)
    mine, theirs = Slots(), Slots()
    adapter.store.run(stats.add, adapter.key_prefix, batch(mine=1), mine, now)
    adapter.store.run(lambda clock: stats_cleared())
    adapter.store.run(stats.add, adapter.key_prefix, batch(theirs=10), theirs, now)
    adapter.store.run(stats.add, adapter.key_prefix, batch(mine=1), mine, now)
    found = hour()
    assert {name: counts["hits"] for (_, name), counts in found.pairs.items()} == {"theirs": 10}
    assert found.aliases == {"a": {"hits": 10}, OTHER: {"hits": 1}}


def test_names_are_data_whatever_they_look_like() -> None:
    names = ["a.b", "$x", "", "$", "0", "ü", "a\0b", "-1"]
    alias = counters.alias("we.ird$")
    for name in names:
        alias.add(f"{name}:1", HITS)
    assert figures.flush()
    assert {name for of, name in hour().pairs if of == "we.ird$"} == set(names)
    assert hour().aliases["we.ird$"]["hits"] == len(names)


def test_the_fleet_keeps_a_bounded_number_of_names_and_all_sums() -> None:
    adapter, now = runtime.adapter(), datetime.now(UTC)
    for process in range(20):
        names = {f"p{process}n{number}": 1 for number in range(30)}
        adapter.store.run(stats.add, adapter.key_prefix, batch(**names), Slots(), now)
    found = hour()
    assert len(found.pairs) == stats.MAX_NAMESPACES
    assert found.aliases["a"]["hits"] == 600


def test_aliases_beyond_the_limit_are_summed_up() -> None:
    adapter, now = runtime.adapter(), datetime.now(UTC)
    counts = {f"alias{number:02}": [1, *[0] * 7] for number in range(stats.MAX_ALIASES + 4)}
    adapter.store.run(stats.add, adapter.key_prefix, Batch("p", counts, {}, {}), Slots(), now)
    found = hour()
    assert len(found.aliases) == stats.MAX_ALIASES + 1
    assert found.aliases[OTHER]["hits"] == 4


def test_an_hour_is_read_by_the_minute_and_no_further() -> None:
    adapter = runtime.adapter()
    now = datetime.now(UTC)
    slots = Slots()
    # Mongomock's time is this process's, so a first batch would fall into now: its names are registered before.
    for back in (0, 1, 59, 60, 90):
        moment = now - timedelta(minutes=back)
        adapter.store.run(stats._register, adapter.key_prefix, stats._hour(moment), batch(x=1), slots)
        adapter.store.run(stats.add, adapter.key_prefix, batch(x=back + 1), slots, moment)
    found = adapter.store.run(stats.read, adapter.key_prefix, now)
    assert len(found.minutes) == 60
    assert found.minutes[-1] == now.replace(second=0, microsecond=0)
    hits = found.series["cache_hits"]
    assert (hits[-1], hits[-2], hits[0]) == (1, 2, 60)
    assert sum(hits) == 63
    assert found.pairs["a", "x"]["hits"] == 63


def test_a_day_is_read_by_the_hour_and_the_sums_have_everything() -> None:
    adapter, slots = runtime.adapter(), Slots()
    now = datetime.now(UTC)
    row = [2, *[0] * (stats.LOCK.width - 1)]

    def sent(clock: Any, changes: Any) -> Any:
        return stats._send(changes)

    histogram.note(row, stats.LOCK.start("lock_held"), 0.3)
    for back in (0, 1, 23, 24):
        # Mongomock removes what has expired at once, as it is stored.
        one = Batch("p", {"a": [3, *[0] * 7]}, {}, {"flights_led": 5}, boards={stats.LOCK: {OTHER: row}})
        moment = now - timedelta(hours=back)
        changes = list(stats._changes(adapter.key_prefix, one, slots, moment))
        adapter.store.run(sent, changes)
    found = adapter.store.run(stats.read, adapter.key_prefix, now)
    assert len(found.day.moments) == 24
    assert found.day.moments[-1] == stats._hour(now)
    for name, each in (("flights_led", 5), ("locks_acquired", 2), ("cache_hits", 3)):
        assert [at for at, count in enumerate(found.day.series[name]) if count] == [0, 22, 23], name
        assert set(found.day.series[name]) == {0, each}
        assert found.totals is not None
        assert found.totals.series[name] == (4 * each,)
    assert [sum(one[: histogram.BUCKETS]) for one in found.day.histograms["lock_held"]] == [1, *[0] * 21, 1, 1]
    # The minutes have the cache's counts by alias alone: they are not counted twice.
    assert sum(found.series["cache_hits"]) == 3


# By name


def by_name(count: int) -> Any:
    return override_settings(GOSCOPE={"FIGURES_PER_NAME": count})


def named(kind: str = "lock") -> dict[str, tuple[int, ...]]:
    """The first counters of what was counted by name in the last hours."""
    found: dict[str, tuple[int, ...]] = {}
    for kinds in hour().named.values():
        for name, row in kinds.get(kind, {}).items():
            found[name] = tuple(a + b for a, b in zip(found.get(name, (0, 0, 0, 0)), row[:4], strict=True))
    return found


def test_single_names_are_counted_only_where_that_is_asked_for() -> None:
    CircuitBreaker("figures.named").call(lambda: None)
    with lock("a"):
        pass
    assert figures.flush()
    assert hour().named == {}
    with by_name(5):
        for _ in range(3):
            CircuitBreaker("figures.named").call(lambda: None)
        with lock("a"), lock("b.$c"):
            pass
        assert figures.flush()
        assert named() == {"a": (1, 0, 0, 0), "b.$c": (1, 0, 0, 0)}
        assert named("circuit") == {"figures.named": (3, 0, 0, 0)}
        (kinds,) = hour().named.values()
        held = kinds["lock"]["a"][stats.LOCK.start("lock_held") :][: histogram.WIDTH]
        assert sum(held[: histogram.BUCKETS]) == 1
    assert totals()["locks_acquired"] == 3


def test_the_most_active_names_have_the_places_and_the_rest_is_counted_together() -> None:
    with by_name(4):
        for number in range(40):
            for _ in range(1 + 3 * (number in (7, 21, 35))):
                counters.locks.add(f"k{number}", counters.ACQUIRED)
        assert figures.flush()
        assert named() == {"k7": (4, 0, 0, 0), "k21": (4, 0, 0, 0), "k35": (4, 0, 0, 0), OTHER: (37, 0, 0, 0)}
        # The last place is for one that is busy, and for the first of those.
        for name in ("rare", "busy", "late"):
            for _ in range(1 if name == "rare" else stats.BUSY):
                counters.locks.add(name, counters.ACQUIRED)
        counters.locks.add("k7", counters.ACQUIRED)
        assert figures.flush()
        found = named()
        assert (found["k7"][0], found["busy"][0], found[OTHER][0]) == (5, stats.BUSY, 37 + 1 + stats.BUSY)
        assert len(found) == 5


def test_a_fleet_has_no_more_names_than_one_process_and_all_that_was_counted() -> None:
    adapter, now = runtime.adapter(), datetime.now(UTC)
    one = (1, *[0] * (stats.LOCK.width - 1))
    for process in range(30):
        boards = {stats.LOCK: {f"p{process}n{number}": one for number in range(7)}}
        adapter.store.run(stats.add, adapter.key_prefix, Batch("p", {}, {}, {}, boards=boards, names=8), Slots(), now)
    found = named()
    assert len(found) == 6 + 1
    assert sum(row[0] for row in found.values()) == 30 * 7


def test_names_are_looked_up_once_and_not_with_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[int] = []
    register = stats._register_named

    def counted(*args: Any) -> Any:
        registered.append(1)
        return register(*args)

    monkeypatch.setattr(stats, "_register_named", counted)
    with by_name(1):
        for _ in range(5):
            counters.locks.add("a", counters.ACQUIRED)
            counters.locks.add("b", counters.ACQUIRED)
            assert figures.flush()
        assert named() == {"a": (5, 0, 0, 0), OTHER: (5, 0, 0, 0)}
    assert sum(registered) <= 2  # an hour may end meanwhile


def test_a_name_that_is_gone_from_the_store_is_not_taken_for_another() -> None:
    with by_name(3):
        counters.locks.add("mine", counters.ACQUIRED)
        assert figures.flush()
        runtime.adapter().store.run(lambda clock: stats_cleared())
        counters.locks.add("mine", counters.ACQUIRED)
        assert figures.flush()
        assert named() == {OTHER: (1, 0, 0, 0)}


def test_what_is_not_used_makes_room_for_other_names_in_a_process() -> None:
    board = counters.Board(stats.LOCK, by_name=True)
    with by_name(3):
        for number in range(counters.MAX_NAMES):
            board.add(f"k{number}", counters.ACQUIRED)
        board.add("x" * (counters.LONGEST_KEY + 1), counters.ACQUIRED)
        assert board.row("late") is board.row(OTHER)
        board.settle(board.unsent(), 0.0)
        board.add("k1", counters.ACQUIRED)
        board.settle(board.unsent(), counters.IDLE_NAME + 1)
        assert set(board.rows) == {"k1"}
        assert board.row("late") is not board.row(OTHER)


def test_a_batch_of_which_a_part_is_refused_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other parts of it may be there."""
    figures.count("flights_led")
    from goscope_django.mongodb.driver.execute import MockExecutor

    send = MockExecutor._upsert_many

    def refuse(self: Any, collection: Any, changes: Any) -> Any:
        send(self, collection, changes[:1])
        raise BulkWriteError({"writeErrors": [{"index": 1, "code": 17419, "errmsg": "too large"}]})

    with monkeypatch.context() as broken:
        broken.setattr(MockExecutor, "_upsert_many", refuse)
        figures.flush()
    assert figures.flush()
    assert sum(hour().series["flights_led"]) == 1
    assert totals() == {}


def test_documents_that_two_processes_make_at_once_get_both_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from goscope_django.mongodb.driver.execute import MockExecutor

    send = MockExecutor._upsert_many
    sent: list[int] = []

    def collide(self: Any, collection: Any, changes: Any) -> Any:
        sent.append(len(changes))
        if len(sent) > 1:
            return send(self, collection, changes)
        assert send(self, collection, changes[:1]) == []
        return list(range(1, len(changes)))

    monkeypatch.setattr(MockExecutor, "_upsert_many", collide)
    figures.count("flights_led")
    assert figures.flush()
    assert sent == [3, 2]
    assert (sum(hour().series["flights_led"]), totals()["flights_led"]) == (1, 1)


def test_damaged_documents_are_read_as_nothing() -> None:
    adapter, now = runtime.adapter(), datetime.now(UTC)

    def damage(clock: Any) -> Any:
        from goscope_django.core.flow import ask

        for name in ("totals", f"hour:{now:%Y-%m-%dT%H}", f"minute:{now:%Y-%m-%dT%H:%M}"):
            odd = {"e": {"flights_led": "many", "x": 2**63 - 1}, "h": {"lock_wait": [1, 2], "odd": {"0": -5, "99": 1}}}
            test = {"_id": f"{adapter.key_prefix}{name}"}
            yield from ask(stats.STATS, "update_one", test, {"$set": {**odd, "at": "yesterday"}}, upsert=True)

    adapter.store.run(damage)
    found = hour()
    assert found.totals is None
    assert set(found.day.series["flights_led"]) == {0}
    assert all(count == 0 for rows in found.histograms.values() for row in rows for count in row)


def test_what_a_process_waits_for_goes_along() -> None:
    def told() -> list[tuple[str, str, int, float]]:
        return [("lock", "k", 3, 12.5), ("flight", "f", 1, 2.0)]

    figures.announce(told)
    try:
        figures.count("locks_contended")
        assert figures.flush()
        found = [(one.kind, one.key, one.count, one.longest) for one in hour().waits]
        assert found == [("flight", "f", 1, 2.0), ("lock", "k", 3, 12.5)]
    finally:
        counters._waiting.remove(told)  # locks and flights go on reporting theirs


def test_the_errors_of_the_cache_are_counted() -> None:
    away = {"TEST": {"URL": "mongodb://127.0.0.1:1/x"}, "CLIENT_OPTIONS": {"serverSelectionTimeoutMS": 50}}
    with override_settings(GOSCOPE={**away, "ON_ERROR": "ignore"}):
        cache.get("user:1")
        cache.get("user:1")
    with override_settings(GOSCOPE=away), pytest.raises(StoreUnavailable):
        cache.get("user:1")
    assert counters.alias("default").unsent()[NONE][ERRORS] == 3
