"""A page for each thing: everything known of it, what operators did to it, and an address that can be sent on."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client

from goscope_django import figures, operations, runtime
from goscope_django.checkpoints import checkpointed
from goscope_django.circuits import CircuitBreaker
from goscope_django.dashboard import addresses, docs
from goscope_django.dashboard.forms import Seen
from goscope_django.operations.details import KINDS
from goscope_django.process import counters
from tests.dashboard.test_hostile import KEYS, Elements, assert_clean
from tests.support.commands import Recorder, on_server
from tests.support.dashboard import (
    PAGE,
    WRITES,
    action_url,
    browser_of,
    circuit_seen,
    lock_seen,
    posted,
    task_seen,
    user,
)
from tests.support.operations import Operators, own_store, query, soon

pytestmark = [pytest.mark.django_db]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def operator() -> Client:
    return browser_of(User.objects.create_superuser("root"))


@pytest.fixture(autouse=True)
def store(mongo_url: str) -> Iterator[None]:
    with own_store(mongo_url):
        yield


def fail() -> None:
    with checkpointed("import") as task:
        task.save({"secret-state": 1}, progress=50)
        raise RuntimeError("row 17 is broken")


def everything() -> None:
    """One of each kind."""
    assert runtime.adapter().lock.acquire("orders", ttl=600_000, owner="web-3:4711, MainThread, POST /orders/, 0123")
    with pytest.raises(ZeroDivisionError):
        CircuitBreaker("supplier", failure_threshold=1, reset_timeout=300).call(lambda: 1 // 0)
    with pytest.raises(RuntimeError):
        fail()
    claim = runtime.adapter().idempotency.begin("pay", ttl=600_000)
    assert claim.token is not None
    runtime.adapter().idempotency.complete("pay", claim.token, "secret-answer")
    prefix = runtime.adapter().key_prefix
    minute = soon(0).replace(second=0, microsecond=0)
    told = {"at": soon(0), "waits": [["lock", "orders", 3, 12.0]]}
    query(
        "go_goscope_stats",
        "update_one",
        {"_id": f"{prefix}minute:{minute:%Y-%m-%dT%H:%M}"},
        {"$set": {"w.web-1:7": told}},
        upsert=True,
    )


ADDRESSES = {"lock": "orders", "circuit": "supplier", "task": "import", "idempotency": "pay", "cache": "default"}


def page_of(client: Client, kind: str, key: str, status: int = 200, **params: str) -> str:
    answer = client.get(f"{PAGE}{kind}/{addresses.encoded(key)}/", params)
    assert answer.status_code == status
    assert "no-store" in answer.headers["Cache-Control"]
    return answer.content.decode()


def test_every_name_leads_to_a_page_that_says_what_is_known(operator: Client) -> None:
    everything()
    page = operator.get(PAGE).content.decode()
    for kind, key in ADDRESSES.items():
        assert f'<a href="{PAGE}{kind}/{key}/"><bdi>{key}</bdi></a>' in page, kind
        found = page_of(operator, kind, key)
        text = Elements(found).text
        assert key in text and "secret" not in text
        assert_clean(found.replace(docs.HOME, "/"))
        assert f'href="{docs.page(kind)}"' in found
        live = page_of(operator, kind, key, live="1")
        assert "<html" not in live and 'id="goscope-state"' in live
        assert f'data-live="{PAGE}{kind}/{key}/"' in found
    lock = Elements(page_of(operator, "lock", "orders")).text
    assert "3 waiting" in lock and "web-1:7" in lock and "POST /orders/" in lock and "acquired" in lock
    assert f'href="{PAGE}?q=web-3%3A4711"' in page_of(operator, "lock", "orders")
    circuit = Elements(page_of(operator, "circuit", "supplier")).text
    assert "closed → open (failures)" in circuit and "ZeroDivisionError" in circuit
    task = Elements(page_of(operator, "task", "import")).text
    assert "row 17 is broken" in task and "checkpoint 1" in task and "50 %" in task
    record = Elements(page_of(operator, "idempotency", "pay")).text
    assert "completed" in record and "never shown here" in record


def test_what_is_gone_is_told(operator: Client) -> None:
    assert "Nobody holds this lock now." in page_of(operator, "lock", "orders")
    for kind, key in ADDRESSES.items():
        if kind not in ("lock", "cache"):
            page = page_of(operator, kind, key, status=404)
            assert "goscope-none" in page and "formaction" not in page
    assert "uses MongoDBCache" in page_of(operator, "cache", "nowhere", status=404)
    assert operator.get(f"{PAGE}flight/x/").status_code == 404
    assert operator.get(f"{PAGE}lock/~FF/").status_code == 404


def test_what_operators_did_stands_in_the_timeline_and_leads_back(operator: Client) -> None:
    everything()
    seen = circuit_seen("supplier")
    answer = posted(operator, "close_circuit", seen, reason="they answer again", **{"from": "item"})
    assert answer.url == f"{PAGE}circuit/supplier/"
    page = Elements(operator.get(answer.url).content.decode()).text
    assert "root" in page and "is forced closed until it is reset. they answer again" in page
    answer = posted(operator, "release_lock", lock_seen("orders"), **{"from": "item"})
    assert answer.url == f"{PAGE}lock/orders/"
    page = Elements(operator.get(answer.url).content.decode()).text
    assert "Nobody holds this lock now." in page and "was released." in page and "root" in page
    assert "was released" not in Elements(page_of(operator, "lock", "others")).text
    answer = posted(operator, "delete_checkpoint", task_seen("import"), **{"from": "item"})
    assert operator.get(answer.url).status_code == 404
    # The admin's log leads to the same pages.
    for entry in LogEntry.objects.all():
        assert operator.get(str(entry.get_admin_url())).headers["Location"] in (
            f"{PAGE}circuit/supplier/",
            f"{PAGE}lock/orders/",
            f"{PAGE}task/import/",
        )


def test_an_idempotency_record_is_deleted_as_it_was_seen(operator: Client) -> None:
    everything()
    (record,) = operations.state().idempotency.items
    page = page_of(operator, "idempotency", "pay")
    (seen,) = Elements(page).seen()
    assert (seen.key, seen.mark) == ("pay", record.token)
    stale = Seen("pay", (record.token or 0) + 1)
    answer = posted(operator, "delete_idempotency", stale)
    assert "was not deleted: it is completed with token" in operator.get(answer.url).content.decode()
    answer = posted(operator, "delete_idempotency", seen)
    assert "a repeat of its request runs again" in operator.get(answer.url).content.decode()
    assert operations.state().idempotency.total == 0
    assert LogEntry.objects.get().object_id == "idempotency:pay"


@pytest.mark.parametrize("kind", KEYS)
def test_any_key_has_an_address(operator: Client, kind: str) -> None:
    key = KEYS[kind]
    assert runtime.adapter().lock.acquire(key, ttl=60_000, owner="x")
    page = Elements(operator.get(PAGE).content.decode())
    links = [attrs["href"] for tag, attrs in page.found if tag == "a" and "/lock/" in attrs.get("href", "")]
    posts = [attrs for tag, attrs in page.found if tag == "button" and attrs.get("name") == "item"]
    assert len(links) + len(posts) == 1
    if links:
        segment = links[0].removeprefix(f"{PAGE}lock/").removesuffix("/")
        assert re.fullmatch(r"[A-Za-z0-9_.:@~-]+", segment) and segment.strip(".")
        assert addresses.decoded(segment) == key
        found = operator.get(links[0])
    else:
        data = {"item": posts[0]["value"], "csrfmiddlewaretoken": "t" * 32}
        operator.cookies["csrftoken"] = "t" * 32
        found = operator.post(posts[0]["formaction"], data)
    assert found.status_code == 200
    shown = assert_clean(found.content.decode().replace(docs.HOME, "/"))
    assert [seen.key for seen in shown.seen()] == [key]
    posted(operator, "release_lock", lock_seen(key), **{"from": "item"})
    entry = LogEntry.objects.get()
    back = operator.get(str(entry.get_admin_url())).headers["Location"]
    assert operator.get(back.partition("#")[0]).status_code == 200


def test_keys_that_look_alike_have_a_history_of_their_own(operator: Client) -> None:
    for key in ("k" * 500 + "1", "k" * 500 + "2"):
        assert runtime.adapter().lock.acquire(key, ttl=60_000)
    posted(operator, "release_lock", lock_seen("k" * 500 + "1"))
    assert "was released" in page_of(operator, "lock", "k" * 500 + "1")
    assert "was released" not in page_of(operator, "lock", "k" * 500 + "2")


def test_a_page_says_what_needs_attention_as_the_dashboard_and_the_command_do(operator: Client) -> None:
    assert runtime.adapter().lock.acquire("quick", ttl=600_000, owner="x")
    assert "Needs attention" not in operator.get(f"{PAGE}lock/quick/").content.decode()
    for _ in range(120):
        counters.locks.note("any", counters.HELD, 0.01)
    counters.alias("default").row("user:1")[counters.FORGED] += 3
    counters.count("tasks_refused")  # is about no single thing
    assert figures.flush()
    key = f"{runtime.adapter().key_prefix}lock:quick"
    query("go_goscope_locks", "update_one", {"key": key}, {"$set": {"createdAt": soon(-400)}})
    with pytest.raises(RuntimeError):
        fail()
    operations.open_circuit("carrier")
    things = {"lock/quick": "lock_held_long", "circuit/carrier": "circuit_forced", "task/import": "task_failed"}
    for where, kind in {**things, "cache/default": "forged"}.items():
        page = assert_clean(operator.get(f"{PAGE}{where}/").content.decode())
        (one,) = (
            one
            for one in operations.state().attention.items
            if (one.kind, one.target) == (kind, where.partition("/")[0])
        )
        assert page.text.count("Needs attention") == 1 and one.action in page.text and str(one.command) in page.text
        assert page.text.count("Runbook") == 1, where
        (same,) = operations.details(one.target, one.key).attention  # type: ignore[arg-type]
        assert (same.kind, same.action, same.command) == (one.kind, one.action, one.command)


def test_typed_addresses_stand_for_themselves(operator: Client) -> None:
    for key in ("order_10", "a/b", "report:daily", "100%"):
        assert runtime.adapter().lock.acquire(key, ttl=60_000, owner="x")
    for path in ("order_10", "a/b", "a%2Fb", "report:daily", "100%25"):
        assert [one.mark for one in Elements(operator.get(f"{PAGE}lock/{path}/").content.decode()).seen()], path


@pytest.mark.parametrize(
    "item", ["", "[]", '["lock"]', '["flight","x"]', '["lock",1]', '["lock","\\ud800"]', "[" * 9_999]
)
def test_what_does_not_say_what_to_show_is_refused(operator: Client, item: str) -> None:
    operator.cookies["csrftoken"] = "t" * 32
    answer = operator.post(f"{PAGE}item/", {"item": item, "csrfmiddlewaretoken": "t" * 32})
    assert answer.status_code == 400


def test_looking_writes_nothing_and_needs_its_permission(mongo_url: str) -> None:
    recorder = Recorder()
    with own_store(mongo_url, client_options={"event_listeners": [recorder]}):
        everything()
        someone = browser_of(user("view_dashboard"))
        for kind, key in ADDRESSES.items():
            recorder.clear()
            page = page_of(someone, kind, key)
            assert 0 < len(recorder.names) <= 5, (kind, recorder.names)
            assert not WRITES.intersection(recorder.names)
            assert "formaction" not in page
            address = f"{PAGE}{kind}/{key}/"
            assert browser_of(user("release_lock", name=kind)).get(address).status_code == 403
            assert browser_of(None).get(address).status_code == 302
            assert someone.delete(address, headers={"X-CSRFToken": "t" * 32}).status_code in (403, 405)
        assert not LogEntry.objects.exists()


def test_while_mongodb_is_down_the_page_says_so(operator: Client) -> None:
    with on_server("mongodb://u:hunter2@127.0.0.1:1/never"):
        for kind, key in ADDRESSES.items():
            page = page_of(operator, kind, key)
            assert 'data-reachable="no"' in page and "hunter2" not in page


def test_the_docs_that_are_named_exist() -> None:
    assert docs.address("docs/how-to/runbook.md#forged") == f"{docs.HOME}how-to/runbook.md#forged"
    assert set(docs.PAGES) >= set(KINDS)
    for page in docs.PAGES.values():
        assert (ROOT / "docs" / page).is_file(), page


def test_details_are_the_same_for_sync_and_async() -> None:
    by: Any = Operators("async")
    everything()
    for kind, key in ADDRESSES.items():
        found, native = operations.details(kind, key), by.details(kind, key)  # type: ignore[arg-type]
        assert type(found.item) is type(native.item) and found.item is not None
        assert (found.waits, found.checkpoints) == (native.waits, native.checkpoints)
    by.close()


def test_asking_first_keeps_where_one_came_from(operator: Client) -> None:
    everything()
    data = {"seen": lock_seen("orders").encoded(), "from": "item"}
    page = html.unescape(operator.get(action_url("release_lock"), data).content.decode())
    assert '<input type="hidden" name="from" value="item">' in page
    assert f'href="{PAGE}lock/orders/"' in page
