"""The nightly import is killed and resumed, and refused to a second process."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.demo.shop import Shop, Visitor, eventually

pytestmark = [pytest.mark.real, pytest.mark.fleet]


@pytest.fixture
def nothing_imported(shop: Shop) -> None:
    """No rows of an earlier test. Their task is finished, and begun anew with --restart."""
    shop.rows("DELETE FROM shop_supplieroffer")


def by_attempt(shop: Shop) -> list[int]:
    """How many rows each attempt wrote, in the order of the attempts."""
    found = shop.rows("SELECT count(*) FROM shop_supplieroffer GROUP BY attempt ORDER BY attempt")
    return [count for (count,) in found]


@pytest.mark.usefixtures("nothing_imported")
def test_a_killed_import_resumes_where_it_stopped(shop: Shop) -> None:
    options = ("import_products", "--rows=10000")
    with shop.begin(*options, "--pause=1", "--restart") as first:
        eventually(lambda: sum(by_attempt(shop)) >= 1_000)
        refused = shop.manage(*options)
        assert refused.returncode == 1 and "runs it" in refused.stderr
        first.kill()
    written = sum(by_attempt(shop))
    assert 1_000 <= written < 10_000

    done = shop.manage(*options, "--wait")
    assert done.returncode == 0, done.stderr
    assert "attempt 2 resumes at" in done.stdout
    # At most the chunk that was being saved is written twice.
    first_attempt, second_attempt = by_attempt(shop)
    assert first_attempt >= written - 500 and first_attempt + second_attempt == 10_000
    assert shop.rows("SELECT count(DISTINCT sku) FROM shop_supplieroffer") == [(10_000,)]

    again = shop.manage(*options)
    assert again.returncode == 0 and "is complete" in again.stdout


@pytest.mark.usefixtures("nothing_imported")
def test_sigterm_saves_and_lets_the_next_one_begin_at_once(shop: Shop) -> None:
    options = ("import_products", "--rows=8000")
    with shop.begin(*options, "--pause=1", "--restart") as first:
        eventually(lambda: sum(by_attempt(shop)) >= 1_000)
        first.terminate()
    assert first.returncode == 143
    written = sum(by_attempt(shop))
    done = shop.manage(*options)  # without --wait: the lease was given back
    assert done.returncode == 0, done.stderr
    assert by_attempt(shop) == [written, 8_000 - written]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("nothing_imported")
def test_the_page_starts_kills_and_resumes_all_fifty_thousand_rows(shop: Shop, visitor: Visitor) -> None:
    def task() -> dict[str, Any]:
        found: dict[str, Any] = visitor.get("/import/state.json").json()["task"] or {}
        return found

    visitor.post("/import/", anew="1")
    eventually(lambda: task().get("status") == "running" and task()["progress"] >= 10)
    assert "kills itself" in visitor.post("/import/kill/").text
    eventually(lambda: task()["status"] == "stalled")
    assert "No import is running" in visitor.post("/import/kill/").text
    before = task()
    time.sleep(0.5)
    assert task()["progress"] == before["progress"] < 100

    visitor.post("/import/")
    eventually(lambda: task()["status"] == "completed")
    assert sum(by_attempt(shop)) == 50_000 and len(by_attempt(shop)) == 2
    assert shop.rows("SELECT count(DISTINCT sku) FROM shop_supplieroffer") == [(50_000,)]
    assert "is not run again unless you ask" in visitor.post("/import/").text
