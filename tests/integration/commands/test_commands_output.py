"""What commands show: the same as data and as text, in 80 columns, with nothing from users that steers a terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import IO, Any

import pytest
from django.core.cache import cache
from django.core.management import call_command
from django.core.management.base import CommandError
from hypothesis import given
from hypothesis import strategies as st

from goscope_django import figures, operations, runtime
from goscope_django.checkpoints import checkpointed, get_task
from goscope_django.circuits import CircuitBreaker
from goscope_django.management.output import WIDTH, columns, duration, folded, tabulated
from goscope_django.operations.wording import escaped
from goscope_django.process import counters
from tests.support.operations import fill, own_store, query, soon

HOSTILE = "k\x1b[31m<script>\r\n\u202e" + "ü" * 120


@pytest.fixture(params=["mongod", "mongomock"], autouse=True)
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    url = "mongomock://" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    with own_store(url):
        yield request.param


def run(*arguments: str, **options: Any) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out, stderr=io.StringIO(), **options)
    return out.getvalue()


def data(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return found


def everything() -> None:
    """Some of everything, with names that are hard to show."""
    adapter = runtime.adapter()
    adapter.lock.acquire(HOSTILE, 60_000, owner=HOSTILE)
    for number in range(3):
        adapter.lock.acquire(f"lock-{number}", 60_000, owner=f"worker-{number}")
    operations.open_circuit(HOSTILE, reason=HOSTILE)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            CircuitBreaker("bank").call(lambda: 1 / 0)
    fill(tasks=4, flights=2, records=3)
    query("go_goscope_tasks", "update_many", {"token": 1}, {"$set": {"owner": HOSTILE, "error": HOSTILE, "rate": 12.5}})
    cache.set_many({"user:1": 1, "user:2": 2})


SHOWING = [
    ("goscope_status",),
    ("goscope_lock", "list"),
    ("goscope_lock", "show", HOSTILE),
    ("goscope_idempotency", "list"),
    ("goscope_idempotency", "show", "i0001"),
    ("goscope_circuit", "list"),
    ("goscope_circuit", "show", HOSTILE),
    ("goscope_checkpoint", "list"),
    ("goscope_checkpoint", "show", "t0000"),
    ("goscope_cache", "keys"),
    ("goscope_cache", "stats"),
    ("goscope_indexes", "check"),
]


@pytest.mark.parametrize("arguments", SHOWING, ids=lambda arguments: " ".join(arguments[:2]))
def test_text_fits_80_columns_and_controls_nothing(arguments: tuple[str, ...]) -> None:
    everything()
    shown = run(*arguments)
    assert shown.strip()
    assert "\x1b" not in shown and "\r" not in shown and "\u202e" not in shown
    title = (operations.state(limit=1).url, escaped(HOSTILE))
    for line in shown.splitlines():
        assert len(line) <= WIDTH or any(one in line for one in title), line


@pytest.mark.parametrize("arguments", SHOWING, ids=lambda arguments: " ".join(arguments[:2]))
def test_json_is_one_document_with_a_version(arguments: tuple[str, ...]) -> None:
    everything()
    found = data(*arguments)
    assert found["schema_version"] == operations.SCHEMA_VERSION
    assert "secret" not in json.dumps(found)


def test_status_shows_what_the_state_has() -> None:
    everything()
    found, state = data("goscope_status"), operations.state(limit=10).as_json()
    moving = {"generated_at", "took", "attention", "server", "figures", "waits"}
    for name in ("locks", "circuits", "tasks", "flights", "idempotency", "cache"):
        assert still(found[name]) == still(state[name])
    assert set(found) == set(state) and moving < set(found)
    text = run("goscope_status")
    assert "4 held" in text
    assert "2 open (1 forced)" in text
    assert "2 running, 2 stalled" in text
    assert "1 in progress, 2 completed" in text


def still(section: dict[str, Any]) -> Any:
    """A section without what moves with time."""
    moving = ("expires_in", "held_for", "retry_after", "heartbeat_age", "lease_left", "age", "open_for")
    items = section.get("items", ())
    return {**section, "items": [{name: v for name, v in one.items() if name not in moving} for one in items]}


def test_limits_and_searches() -> None:
    fill(locks=30, circuits=30, tasks=30)
    for command, kind in (("lock", "locks"), ("circuit", "circuits"), ("checkpoint", "tasks")):
        found = data(f"goscope_{command}", "list", "--limit", "4")[kind]
        assert (len(found["items"]), found["total"]) == (4, 30)
        behind = data(f"goscope_{command}", "list", "--limit", "4", "--after", found["next"])[kind]
        assert behind["items"][0] != found["items"][-1] and len(behind["items"]) == 4
        assert data(f"goscope_{command}", "list", "--search", "0007")[kind]["matching"] == 1
    assert len(data("goscope_circuit", "list", "--state", "open")["circuits"]["items"]) == 10
    assert len(data("goscope_checkpoint", "list", "--status", "stalled")["tasks"]["items"]) == 15
    out, err = io.StringIO(), io.StringIO()
    call_command("goscope_lock", "list", "--limit", "4", stdout=out, stderr=err)
    assert "--after" in err.getvalue() and "30" in err.getvalue()


def test_a_state_is_looked_for_among_all_and_not_among_those_of_one_page() -> None:
    fill(circuits=30, tasks=30)
    query("go_goscope_circuit", "update_many", {}, {"$set": {"state": "closed"}})
    query("go_goscope_tasks", "update_many", {}, {"$set": {"leaseUntil": soon(60)}})
    operations.open_circuit("c0028", reason="")
    query("go_goscope_tasks", "update_many", {"token": 30}, {"$set": {"status": "failed", "rate": 12.5}})
    for arguments, kind, name in (
        (("goscope_circuit", "list", "--state", "open"), "circuits", "c0028"),
        (("goscope_circuit", "list", "--state", "forced"), "circuits", "c0028"),
        (("goscope_checkpoint", "list", "--status", "failed"), "tasks", "t0029"),
    ):
        found = data(*arguments, "--limit", "2")[kind]
        assert [one.get("name") or one.get("task_id") for one in found["items"]] == [name]
        assert (found["total"], found["matching"]) == (30, 1)
        shown = run(*arguments, "--limit", "2").splitlines()
        assert len(shown) == 2 and name in shown[1] and "12.5/s" not in shown[1]


def test_an_open_circuit_that_is_tried_at_the_next_call_says_so() -> None:
    fill(circuits=2)
    query("go_goscope_circuit", "update_many", {}, {"$set": {"openedAt": soon(-3_600)}})
    for arguments in (("list",), ("show", "c0001")):
        assert "now" in run("goscope_circuit", *arguments)


def test_circuits_are_worked_with() -> None:
    run("goscope_circuit", "open", "bank", "--reason", "maintenance", "--no-input")
    found = data("goscope_circuit", "show", "bank")["circuit"]
    assert (found["state"], found["override"]["reason"], found["generation"]) == ("open", "maintenance", 1)
    assert "maintenance" in run("goscope_circuit", "show", "bank")
    with pytest.raises(CommandError, match="generation 1 now, not 7") as caught:
        run("goscope_circuit", "close", "bank", "--generation", "7", "--no-input")
    assert caught.value.returncode == 1
    run("goscope_circuit", "close", "bank", "--generation", "1", "--no-input")
    assert data("goscope_circuit", "show", "bank")["circuit"]["state"] == "closed"
    run("goscope_circuit", "reset", "bank", "--no-input")
    assert data("goscope_circuit", "show", "bank")["circuit"]["override"] is None
    with pytest.raises(CommandError) as caught:
        run("goscope_circuit", "show", "nix")
    assert caught.value.returncode == 1


def test_tasks_are_worked_with() -> None:
    with checkpointed("import", keep=None) as task:
        for number in range(4):
            task.save({"secret": number}, progress=number * 10)
    shown = data("goscope_checkpoint", "show", "import")
    assert shown["task"]["status"] == "completed"
    assert len(shown["checkpoints"]) >= 4
    assert set(shown["checkpoints"][0]) == {"id", "sequence", "timestamp", "progress"}
    removed = data("goscope_checkpoint", "cleanup", "import", "--keep", "1", "--no-input")["done"]
    assert removed["count"] == len(shown["checkpoints"]) - 1
    run("goscope_checkpoint", "reset", "import", "--no-input")
    found = get_task("import")
    assert found is not None and found.status == "interrupted"
    run("goscope_checkpoint", "cancel", "import", "--token", str(found.token), "--no-input")
    found = get_task("import")
    assert found is not None and found.status == "cancelled"
    with pytest.raises(CommandError) as caught:
        run("goscope_checkpoint", "delete", "import", "--token", "1", "--no-input")
    assert caught.value.returncode == 1
    run("goscope_checkpoint", "delete", "import", "--no-input")
    with pytest.raises(CommandError) as caught:
        run("goscope_checkpoint", "show", "import")
    assert caught.value.returncode == 1


def test_a_stalled_and_an_exhausted_task_say_what_happens_next() -> None:
    fill(tasks=3)
    query("go_goscope_tasks", "update_many", {"token": 3}, {"$set": {"tries": 10, "leaseUntil": soon(-1)}})
    assert "next start goes on" in run("goscope_checkpoint", "show", "t0000")
    assert "goscope_checkpoint reset" in run("goscope_checkpoint", "show", "t0002")


def test_caches_are_worked_with() -> None:
    cache.set_many({"user:1": 1, "user:2": 2, "cart:1": 3, "a\u202eb": 4})
    cache.set("user:9", 1, version=7)
    assert run("goscope_cache", "keys", "user:*").split() == ["user:1", "user:2"]
    assert "a\\u202eb" in run("goscope_cache", "keys")
    assert data("goscope_cache", "keys", "--key-version", "7")["keys"] == ["user:9"]
    assert data("goscope_cache", "keys", "--limit", "2")["more"] is True
    with pytest.raises(CommandError) as caught:
        run("goscope_cache", "delete", "user:1", "nix", "--no-input")
    assert caught.value.returncode == 1
    assert cache.get("user:1") is None
    assert data("goscope_cache", "clear", "--pattern", "user:*", "--no-input")["done"]["count"] == 1
    assert data("goscope_cache", "stats")["aliases"][0]["entries"] == 3
    assert data("goscope_cache", "clear", "--no-input")["done"]["count"] == 3


@pytest.mark.parametrize("answer", ["no", "", "y\x00es"])
def test_without_a_yes_nothing_is_done(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    cache.set("a", 1)
    with pytest.raises(CommandError, match="Nothing was done"):
        run("goscope_cache", "clear")
    assert cache.get("a") == 1


@given(
    st.lists(st.tuples(st.text(max_size=200), st.text(max_size=200), st.integers()), max_size=5),
    st.integers(0, 2),
    st.integers(10, 200),
)
def test_tables_fit_whatever_is_in_them(rows: list[tuple[str, str, int]], first: int, width: int) -> None:
    lines = tabulated(("FIRST", "SECOND", "THIRD"), rows, width, [first])
    assert len(lines) == len(rows) + 1
    assert all(columns(line) <= width and (line.isprintable() or not line) for line in lines)


@given(st.text(max_size=400), st.integers(20, 120))
def test_long_sentences_are_folded_and_nothing_is_lost(text: str, width: int) -> None:
    lines = folded(escaped(text), width)
    assert all(columns(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(escaped(text).split())


def test_an_owner_is_cut_before_a_key_and_a_key_last() -> None:
    rows = [("invoice:" + "k" * 36, "web-1:4711, Thread-3, POST /orders/<int:pk>/", 7, "3m 02s", "28s")]
    _, line = tabulated(("LOCK", "OWNER", "TOKEN", "HELD", "LEFT"), rows, 80, [1])
    assert rows[0][0] in line and "28s" in line and "web-1" in line and "…" in line
    assert columns(line) <= 80
    _, narrow = tabulated(("LOCK", "OWNER", "TOKEN", "HELD", "LEFT"), rows, 60, [1])
    assert "invoice:k" in narrow and columns(narrow) <= 60
    long = [("import/" + "k" * 90, "web-1:4711, Thread-3", 1883318331113549, "3h 02m", "28s")]
    _, line = tabulated(("LOCK", "OWNER", "TOKEN", "HELD", "LEFT"), [*long], 80, [1])
    assert "1883318331113549" in line and "3h 02m" in line and "import/" in line and columns(line) <= 80
    _, whole = tabulated(("LOCK", "OWNER", "TOKEN", "HELD", "LEFT"), rows, None, [1])
    assert rows[0][0] in whole and rows[0][1] in whole


@contextmanager
def terminal(rows: int, width: int) -> Iterator[tuple[IO[str], Callable[[], str]]]:
    """A terminal of this size, and what was shown on it once it is closed."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, width, 0, 0))
    shown: list[bytes] = []

    def read() -> None:  # all the time: a terminal takes some kilobytes only until they are read
        with suppress(OSError):  # nobody writes any more
            while part := os.read(master, 65_536):
                shown.append(part)

    stream, reader = os.fdopen(slave, "w"), threading.Thread(target=read)
    reader.start()

    def closed() -> str:
        stream.close()
        reader.join()
        return b"".join(shown).decode()

    try:
        yield stream, closed
    finally:
        closed()
        os.close(master)


@pytest.mark.parametrize("width", [50, 100, 160])
def test_a_table_is_as_wide_as_the_terminal(width: int) -> None:
    key, owner = "k" * 60, "o" * 60
    assert runtime.adapter().lock.acquire(key, 60_000, owner=owner)
    with terminal(24, width) as (stream, shown):
        call_command("goscope_lock", "list", stdout=stream, no_color=True)
        lines = shown().split("\r\n")
    assert max(map(len, lines)) <= width
    assert (key in lines[1]) == (width >= 100) and (owner in lines[1]) == (width == 160)


def test_full_cuts_nothing() -> None:
    key, owner = "k" * 100, "host:1, main, 0123456789abcdef"
    assert runtime.adapter().lock.acquire(key, 60_000, owner=owner)
    for arguments in (("goscope_lock", "list"), ("goscope_status",)):
        assert key not in run(*arguments) and owner not in run(*arguments)
        assert key in run(*arguments, "--full") and owner in run(*arguments, "--full")


def test_watch_redraws_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        assert runtime.adapter().lock.acquire(f"lock-{number}", 60_000)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    module = "goscope_django.management.commands.goscope_status.time"
    monkeypatch.setattr(module, SimpleNamespace(sleep=pause))  # and not the one that PyMongo's threads use
    with terminal(20, 100) as (stream, shown):
        call_command("goscope_status", "--watch", "5", "--limit", "30", stdout=stream)
        screens = shown().split("\x1b[H")[1:]
    assert pauses == [5.0] * 3 and len(screens) == 3
    for one in screens:
        lines = one.split("\r\n")
        assert len(lines) <= 21 and "lines more" in one and "Nothing needs attention." in one
        assert "\x1b[2J" not in one and "\x1b[J" in one
        assert all("\x1b[K" in line for line in lines if line.strip() and "\x1b[J" not in line)


def test_a_lock_is_shown_with_who_waits_and_when_it_was_lost() -> None:
    assert runtime.adapter().lock.acquire("nightly", 60_000, owner="web-1:4711, main, 0123456789abcdef")
    runtime.emit("lock_lost", key="nightly", owner="web-9:1, main, 0123456789abcdef", token=3)
    counters.announce(told := lambda: [("lock", "nightly", 2, 9.0)])
    try:
        counters.count("locks_contended")
        figures.flush()
    finally:
        counters._waiting.remove(told)
        counters.forget()
    found = data("goscope_lock", "show", "nightly")
    assert (found["lock"]["key"], found["waits"][0]["count"], found["losses"][0]["token"]) == ("nightly", 2, 3)
    assert [one["kind"] for one in found["attention"]] == ["lock_waited"]
    text = run("goscope_lock", "show", "nightly")
    assert "web-1:4711, main" in text and "0123456789abcdef" not in text
    assert "lost by web-9:1, main" in text and "2 callers wait" in text
    operations.release_lock("nightly")
    assert data("goscope_lock", "show", "nightly")["lock"] is None  # it is still known that it was lost
    with pytest.raises(CommandError, match="is not held") as caught:
        run("goscope_lock", "show", "other")
    assert caught.value.returncode == 1


def test_a_circuit_and_a_task_are_shown_with_why() -> None:
    breaker = CircuitBreaker("bank", failure_threshold=1)
    with pytest.raises(TimeoutError):
        breaker.call(_late)
    text = run("goscope_circuit", "show", "bank")
    assert "opened by     TimeoutError: timed out after 5 s" in text and "closed  open  failures" in text
    with pytest.raises(TimeoutError), checkpointed("import"):
        _late()
    text = run("goscope_checkpoint", "show", "import")
    assert "TimeoutError: timed out after 5 s" in text and "in _late" in text and "goscope_checkpoint show" in text
    found = data("goscope_checkpoint", "show", "import")
    assert found["task"]["last_failure"]["trace"][-1].endswith("in _late")


def _late() -> None:
    raise TimeoutError("timed out after 5 s")


def test_idempotency_records_are_worked_with_and_never_show_what_is_stored() -> None:
    provider = runtime.adapter().idempotency
    claim = provider.begin("order", 60_000)
    provider.set("paid", "secret-answer", 60_000)
    listed = data("goscope_idempotency", "list")["idempotency"]
    assert [(one["key"], one["state"]) for one in listed["items"]] == [("order", "in_progress"), ("paid", "completed")]
    shown = data("goscope_idempotency", "show", "paid")
    assert shown["record"]["state"] == "completed" and "secret" not in json.dumps([listed, shown])
    for arguments in (("list",), ("show", "order"), ("show", "paid"), ("list", "--full")):
        text = run("goscope_idempotency", *arguments)
        assert "secret" not in text and text.strip()
    with pytest.raises(CommandError, match="not 7") as caught:
        run("goscope_idempotency", "delete", "order", "--token", "7", "--no-input")
    assert caught.value.returncode == 1
    run("goscope_idempotency", "delete", "order", "--token", str(claim.token), "--no-input")
    run("goscope_idempotency", "delete", "paid", "--no-input")
    assert run("goscope_idempotency", "list") == "No records.\n"
    for verb in ("show", "delete"):
        with pytest.raises(CommandError, match="does not exist") as caught:
            run("goscope_idempotency", verb, "paid", *(["--no-input"] if verb == "delete" else []))
        assert caught.value.returncode == 1


def test_tables_fit_in_columns_not_in_characters() -> None:
    rows = [("鍵🔑" * 40, "ключ", 1), ("plain", "e\u0301" * 20, 22)]
    heading, wide, combining = tabulated(("FIRST", "SECOND", "THIRD"), rows)
    assert columns(wide) <= WIDTH and "…" in wide
    assert columns(wide[: wide.index("ключ")]) == heading.index("SECOND") == combining.index("e\u0301")
    assert columns(wide[: wide.rindex("1")]) == heading.index("THIRD") == columns(combining[: combining.rindex("22")])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (0.04, "0.0s"),
        (9.96, "10.0s"),
        (59.9, "59s"),
        (61, "1m 01s"),
        (3_725, "1h 02m"),
        (90_000, "1d 01h"),
    ],
)
def test_durations_have_two_units(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown
