"""The catalogue, the price list, the basket, and what all pages have in common."""

from __future__ import annotations

import re

import httpx
import pytest
from pymongo import MongoClient

from tests.demo.shop import UVICORN, Shop, Visitor

pytestmark = [pytest.mark.real, pytest.mark.fleet]
PAGES = (
    *("/", "/catalogue/", "/catalogue/?category=Toys&page=2", "/prices/", "/basket/", "/report/"),
    *("/supplier/quote/P00001/", "/import/state.json", "/admin/login/"),
)


@pytest.mark.parametrize("path", PAGES)
def test_pages_answer_and_hold_nothing_inline(visitor: Visitor, path: str) -> None:
    response = visitor.get(path)
    assert response.status_code == 200, response.text
    assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", response.text)


@pytest.mark.parametrize("path", ["/static/shop/shop.css", "/static/shop/shop.js", "/static/admin/css/base.css"])
def test_static_files_are_served_although_debug_is_off(visitor: Visitor, path: str) -> None:
    assert visitor.get(path).status_code == 200


def test_it_is_served_by_asgi_as_well(shop: Shop) -> None:
    with shop.serve(*UVICORN) as url, Visitor(url) as visitor:
        for path in ("/", "/catalogue/", "/static/shop/shop.css", "/supplier/quote/P00001/"):
            assert visitor.get(path).status_code == 200, path
        assert "Total" in visitor.post("/basket/add/", sku="P00001").text
        roles = [one.headers["X-Single-Flight"] for one in visitor.at_once(4, lambda: visitor.get("/report/"))]
    assert sorted(roles) == ["follower"] * 3 + ["leader"]


def stored(shop: Shop, part: str) -> list[dict[str, object]]:
    """Cache entries whose key holds ``part``."""
    with MongoClient[dict[str, object]](shop.mongo_url) as client:
        return list(client.get_default_database().go_goscope_cache.find({"key": {"$regex": re.escape(part)}}))


def figures(response: httpx.Response) -> str:
    found = re.search(r"The figures were computed at [\d:]+ by process \d+ in \d+ ms", response.text)
    assert found is not None, response.text
    return found[0]


def test_figures_come_from_the_cache_the_second_time(visitor: Visitor, shop: Shop) -> None:
    visitor.post("/catalogue/forget/")
    first = figures(visitor.get("/catalogue/"))
    [entry] = stored(shop, "catalogue:figures")
    # Whatever the figures would be by now, those that were kept are shown.
    shop.rows("UPDATE shop_sale SET quantity = quantity + 1")
    page = visitor.get("/catalogue/")
    assert figures(page) == first
    assert stored(shop, "catalogue:figures") == [entry]
    visitor.post("/catalogue/forget/")
    assert stored(shop, "catalogue:figures")[0]["updatedAt"] != entry["updatedAt"]  # the redirect computed them


def test_the_price_list_is_kept_as_a_page(visitor: Visitor, shop: Shop) -> None:
    before = visitor.get("/prices/").text
    shop.rows("UPDATE shop_product SET name = 'Changed meanwhile' WHERE sku = 'P00007'")
    assert visitor.get("/prices/").text == before
    assert "Changed meanwhile" in visitor.get("/prices/?another").text


def test_the_basket_is_a_session_in_mongodb(visitor: Visitor, shop: Shop) -> None:
    assert "Total" in visitor.post("/basket/add/", sku="P00002").text
    visitor.post("/basket/add/", sku="P00002")
    assert "2 pieces" in visitor.get("/").text
    key = visitor.client.cookies["sessionid"]
    with MongoClient[dict[str, object]](shop.mongo_url) as client:
        kept = [str(one) for one in client.get_default_database().go_goscope_cache.find()]
    assert [one for one in kept if "goscope.session:" in one], "it is a session of ours"
    assert not [one for one in kept if key in one], "its key is nowhere"
    assert not shop.rows("SELECT * FROM django_session")


def test_the_staff_user_can_log_in(visitor: Visitor) -> None:
    visitor.get("/admin/login/")
    page = visitor.post("/admin/login/", username="demo", password="correct horse", next="/admin/")
    assert "Site administration" in page.text
    assert visitor.get("/admin/shop/product/").status_code == 200


def test_demo_data_may_be_run_again(shop: Shop) -> None:
    counts = "SELECT (SELECT count(*) FROM shop_product), (SELECT count(*) FROM shop_sale)"
    before = shop.rows(counts)
    done = shop.manage("demo_data")
    assert done.returncode == 0 and "there already" in done.stdout
    assert shop.rows(counts) == before == [(4_000, 30_000)]
