"""Paying, the supplier, the report and the stock, while two processes serve the shop."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import MongoClient

from tests.demo.shop import Shop, Visitor, eventually

pytestmark = [pytest.mark.real, pytest.mark.fleet]


def test_paying_six_times_with_one_key_charges_once(visitor: Visitor, shop: Shop) -> None:
    visitor.secret()
    responses = visitor.at_once(6, lambda: visitor.post("/pay/", key="six-clicks", card="25"))
    assert [one.status_code for one in responses] == [200] * 6
    assert len({re.search(r"Payment no\. \d+", one.text)[0] for one in responses}) == 1  # type: ignore[index]
    assert Counter(one.headers.get("Idempotent-Replayed") for one in responses) == {None: 1, "true": 5}
    assert shop.rows("SELECT amount FROM shop_payment WHERE key = 'six-clicks'") == [(25,)]


def test_a_key_pays_for_one_amount_only(visitor: Visitor, shop: Shop) -> None:
    assert visitor.post("/pay/", key="changed", card="10").status_code == 200
    refused = visitor.post("/pay/", key="changed", card="50")
    assert refused.status_code == 422
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert shop.rows("SELECT amount FROM shop_payment WHERE key = 'changed'") == [(10,)]


def test_one_form_is_one_payload_however_it_is_sent(visitor: Visitor, shop: Shop) -> None:
    """The script sends six as multipart; then the browser's own button sends the same form urlencoded."""
    fields = {"key": "six-then-one", "card": "25", **visitor.secret()}
    first = visitor.client.post("/pay/", files={name: (None, value) for name, value in fields.items()})
    second = visitor.post("/pay/", key="six-then-one", card="25")
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.headers["Idempotent-Replayed"] == "true"
    assert shop.rows("SELECT count(*) FROM shop_payment WHERE key = 'six-then-one'") == [(1,)]


def test_a_refusal_is_a_page_for_people(visitor: Visitor, shop: Shop) -> None:
    assert visitor.post("/pay/", key="for-people", card="10").status_code == 200
    data = {"key": "for-people", "card": "50", **visitor.secret()}
    refused = visitor.client.post("/pay/", data=data, headers={"Accept": "text/html,*/*;q=0.8"})
    assert refused.status_code == 422
    assert refused.headers["Content-Type"].startswith("text/html")
    assert "Nothing was paid" in refused.text and "/#pay" in refused.text
    assert shop.rows("SELECT amount FROM shop_payment WHERE key = 'for-people'") == [(10,)]


def test_something_to_look_at(visitor: Visitor, shop: Shop) -> None:
    """A lock that two wait for, a circuit that is open, and a task whose worker died and that is run again."""
    with MongoClient[dict[str, Any]](shop.mongo_url, tz_aware=True) as client:
        store = client.get_default_database()

        def stalled() -> bool:
            head = store.go_goscope_tasks.find_one({"_id": "shop:newsletter"})
            return head is not None and head["status"] == "running" and head["leaseUntil"] < datetime.now(UTC)

        assert "A worker sends the newsletter and dies" in visitor.post("/trouble/stall/").text
        assert "is held for 30 seconds" in visitor.post("/trouble/hold/").text
        held = {"key": "shop:lock:warehouse:count"}

        def holder() -> str:
            return str((store.go_goscope_locks.find_one(held) or {"owner": ""})["owner"])

        eventually(lambda: "counting" in holder())
        assert "its circuit is open" in visitor.post("/trouble/fail/").text
        circuit = store.go_goscope_circuit.find_one({"key": "shop:circuit:carrier"})
        assert circuit is not None and circuit["state"] == "open"
        store.go_goscope_locks.delete_one(held)  # as an operator's release does
        eventually(lambda: "counting" not in holder())
        page = visitor.get("/").text
        for path in ("", "lock/warehouse:count/", "task/newsletter/", "circuit/carrier/"):
            assert f'href="/admin/goscope/dashboard/{path}"' in page
        eventually(stalled)
        done = shop.manage("send_newsletter")
        assert done.returncode == 0, done.stderr
        head = store.go_goscope_tasks.find_one({"_id": "shop:newsletter"})
        assert head is not None and (head["status"], head["attempt"]) == ("completed", 2)


def test_paying_needs_a_key_and_something_to_pay_for(visitor: Visitor, shop: Shop) -> None:
    before = shop.rows("SELECT count(*) FROM shop_payment")
    assert visitor.post("/pay/", card="10").status_code == 400
    assert visitor.post("/pay/", key="nothing").status_code == 400
    assert visitor.post("/pay/", key="odd", card="11").status_code == 400
    assert shop.rows("SELECT count(*) FROM shop_payment") == before


def test_another_visitor_with_the_same_key_pays_too(visitor: Visitor, address: str, shop: Shop) -> None:
    with Visitor(address) as other:
        for one in (visitor, other):
            one.post("/basket/add/", sku="P00001")
            assert one.post("/pay/", key="a-common-key").status_code == 200
            assert "It is empty" in one.get("/basket/").text
    assert shop.rows("SELECT count(*) FROM shop_payment WHERE key = 'a-common-key'") == [(2,)]


def test_the_report_is_made_once_for_all_who_ask_meanwhile(visitor: Visitor) -> None:
    responses = visitor.at_once(6, lambda: visitor.get("/report/?format=json"))
    assert Counter(one.headers["X-Single-Flight"] for one in responses) == {"leader": 1, "follower": 5}
    assert len({one.text for one in responses}) == 1
    later = visitor.get("/report/?format=json")
    assert later.headers["X-Single-Flight"] == "leader"
    assert later.json()["number"] == responses[0].json()["number"] + 1


def test_a_supplier_that_fails_is_left_alone_until_it_is_back(visitor: Visitor) -> None:
    assert visitor.get("/supplier/quote/P00001/").status_code == 200
    visitor.post("/supplier/switch/", mode="down")
    statuses: list[int] = []
    # Each process learns of the open circuit within a second; until then it may let a call through.
    while statuses[-4:] != [503] * 4:
        statuses.append(visitor.get("/supplier/quote/P00001/").status_code)
        assert len(statuses) < 20
    assert statuses[:3] == [502] * 3
    refused = visitor.get("/supplier/quote/P00001/")
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["Retry-After"]) <= 10
    page = visitor.post("/supplier/ask/").text
    assert "The circuit is open" in page and "<strong>open</strong>" in page

    visitor.post("/supplier/switch/", mode="fine")
    eventually(lambda: visitor.get("/supplier/quote/P00001/").status_code == 200, 30)
    assert "<strong>closed</strong>" in visitor.get("/").text


def test_the_stock_is_written_under_rising_tokens(visitor: Visitor, shop: Shop) -> None:
    stock = "SELECT stock, fence FROM shop_product WHERE sku = 'P00003'"
    visitor.post("/stock/", sku="P00003", counted="17")
    [(first, token)] = shop.rows(stock)
    visitor.post("/stock/", sku="P00003", counted="18")
    [(second, newer)] = shop.rows(stock)
    assert (first, second) == (17, 18) and 0 < token < newer


def test_the_stock_refuses_a_worker_that_comes_too_late(visitor: Visitor, shop: Shop) -> None:
    visitor.post("/stock/", sku="P00004", counted="40")
    page = visitor.post("/stock/stale/", sku="P00004").text
    assert "the row refused it" in page
    assert shop.rows("SELECT stock FROM shop_product WHERE sku = 'P00004'") == [(41,)]


@pytest.mark.parametrize("counted", ["", "-1", "1e3", "½", "99999999"])
def test_a_stock_that_is_no_number_changes_nothing(visitor: Visitor, shop: Shop, counted: str) -> None:
    before = shop.rows("SELECT stock, fence FROM shop_product WHERE sku = 'P00005'")
    assert "A whole number" in visitor.post("/stock/", sku="P00005", counted=counted).text
    assert shop.rows("SELECT stock, fence FROM shop_product WHERE sku = 'P00005'") == before
