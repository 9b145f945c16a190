"""What somebody on call does, from the first look to the end of the trouble; each walk is one test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.contrib.admin.models import LogEntry
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from goscope_django import operations, runtime
from goscope_django.circuits import CircuitBreaker
from tests.dashboard.test_browser_looks import WIDE, faults
from tests.support.browser import Operator
from tests.support.dashboard import PAGE
from tests.support.operations import fill, own_store, query, soon

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]


@pytest.fixture(autouse=True)
def store(mongo_url: str) -> Iterator[None]:
    with own_store(mongo_url):
        yield


def wait_for(key: str, count: int) -> None:
    """A process has told that so many wait for a lock."""
    prefix, minute = runtime.adapter().key_prefix, soon(0).replace(second=0, microsecond=0)
    waits = {"w.web-1:7": {"at": soon(0), "waits": [["lock", key, count, 30.0]]}}
    name = f"{prefix}minute:{minute:%Y-%m-%dT%H:%M}"
    fields = {"$set": waits, "$setOnInsert": {"at": minute, "expiresAt": soon(600)}}
    query("go_goscope_stats", "update_one", {"_id": name}, fields, upsert=True)


def broken(name: str) -> None:
    def fails() -> None:
        raise ConnectionError("no route to host")

    with pytest.raises(ConnectionError):
        CircuitBreaker(name, failure_threshold=1, reset_timeout=300).call(fails)


def link(operator: Operator, text: str, within: str = "") -> None:
    """Follow the link with this text."""
    for one in operator.every(f"{within} a"):
        if one.text == text:
            operator.follow(one)
            return
    raise AssertionError(f"no link {text!r}")


def test_from_the_tile_to_the_reason_to_forcing_it_closed(operator: Operator) -> None:
    broken("supplier")
    operator.open(every=60)
    assert operator.text("#section-attention .goscope-said").startswith("1 thing needs attention: 1 open circuit")
    operator.find(".goscope-tiles .goscope-alarm a[href='#circuits']").click()
    link(operator, "supplier", "#section-circuits")
    assert operator.driver.current_url.endswith(f"{PAGE}circuit/supplier/")
    assert "ConnectionError: no route to host" in operator.text("#section-known")
    assert "closed → open (failures)" in operator.text("#section-timeline")
    operator.press("Force closed: circuit supplier")
    operator.find("#id_reason").send_keys("their status page says it is over")
    operator.press("Force closed")
    assert operator.driver.current_url.endswith(f"{PAGE}circuit/supplier/")
    assert "is forced closed until it is reset" in operator.text(".messagelist")
    timeline = operator.text("#section-timeline")
    assert "their status page says it is over" in timeline and "root" in timeline
    assert operations.get_circuit("supplier").state == "closed"
    assert operator.console() == []


def test_from_who_waits_to_the_holder_to_its_process_to_releasing(operator: Operator) -> None:
    locks = runtime.adapter().lock
    assert locks.acquire("report", ttl=600_000, owner="web-3:4711, MainThread, GET /report/, 00ff")
    assert locks.acquire("invoices", ttl=600_000, owner="web-3:4711, Thread-2, 11ff")
    assert locks.acquire("other", ttl=600_000, owner="web-4:1, MainThread, 22ff")
    wait_for("report", 4)
    operator.open(every=60)
    operator.follow(operator.row("locks", "report").find_element(By.PARTIAL_LINK_TEXT, "4 waiting"))
    assert operator.text("#waiting") == "4 waiting" and "web-1:7" in operator.text("#section-waiting")
    assert "GET /report/" in operator.text("#section-known")
    link(operator, "web-3:4711", "#section-known")
    names = [one.text for one in operator.every("#section-locks tbody th")]
    assert names == ["invoices", "report"]
    assert "3 held" in operator.text("#section-locks") and "Showing 2 of 2 that match, 3 in all" in operator.text(
        "#section-locks"
    )
    operator.press("Release: lock report")
    operator.press("Release")
    assert operator.text(".messagelist") == "Lock 'report' was released."
    assert "q=web-3" in operator.driver.current_url
    assert [one.text for one in operator.every("#section-locks tbody th")] == ["invoices"]


def test_filter_sort_select_three_act_and_see_three_results(operator: Operator) -> None:
    fill(locks=3, tasks=12)
    operator.size(1_920)  # beside the sidebar there is room for all columns
    operator.open(every=60)
    link(operator, "6 stalled", "#section-tasks")
    link(operator, "PROGRESS", "#section-tasks")
    names = [one.text for one in operator.every("#section-tasks tbody th")]
    assert names == ["t0010", "t0008", "t0006", "t0004", "t0002", "t0000"]
    assert operator.find("#section-tasks th[aria-sort=descending]").text.startswith("PROGRESS")
    for name in names[:3]:
        operator.row("tasks", name).find_element(By.CSS_SELECTOR, "input[type=checkbox]").click()
    operations.delete_task("t0008")  # somebody else was quicker
    operator.refreshed_now()
    assert [one.is_selected() for one in operator.every("#section-tasks tbody input[type=checkbox]")][:2] == [
        True,
        True,
    ]
    operator.row("tasks", "t0004").find_element(By.CSS_SELECTOR, "input[type=checkbox]").click()
    operations.cancel_task("t0004")
    operator.press("Cancel: selected tasks")
    assert "3 tasks: cancel them?" in operator.text("#content")
    operator.press("Cancel")
    found = {row.find_element(By.TAG_NAME, "th").text: row.text for row in operator.every("#content tbody tr")}
    assert set(found) == {"t0010", "t0006", "t0004"}
    assert "done" in found["t0010"] and "was not cancelled: it is cancelled" in found["t0004"]
    assert operator.text("[role=status]") == "2 of 3 done."
    assert LogEntry.objects.count() == 2
    link(operator, "Back to the dashboard")
    assert "tasks.state=stalled&tasks.sort=-progress" in operator.driver.current_url


def test_with_the_keyboard_alone_to_a_thing_and_through_its_menu(operator: Operator) -> None:
    broken("supplier")
    operator.open(every=60)
    focus = operator.driver.switch_to

    def tab_to(name: str) -> None:
        for _ in range(120):
            focus.active_element.send_keys(Keys.TAB)
            now = focus.active_element
            if name in (now.get_attribute("aria-label"), now.text):
                assert operator.run("return getComputedStyle(arguments[0]).outlineStyle", now) != "none", name
                return
        raise AssertionError(f"{name} is not reached")

    tab_to("Select circuit supplier")
    focus.active_element.send_keys(Keys.SPACE)
    assert operator.find("#section-circuits tbody input").is_selected()
    tab_to("More actions: supplier")
    focus.active_element.send_keys(Keys.ENTER)
    assert operator.every("#section-circuits .goscope-menu[open]")
    focus.active_element.send_keys(Keys.ESCAPE)
    assert not operator.every(".goscope-menu[open]")
    assert focus.active_element.get_attribute("aria-label") == "More actions: supplier"
    focus.active_element.send_keys(Keys.ENTER)
    tab_to("Force closed: circuit supplier")
    operator.run("document.documentElement.dataset.old = 'yes'")
    focus.active_element.send_keys(Keys.ENTER)
    operator.arrived()
    assert "Force this circuit closed?" in operator.text("#content")


def test_without_javascript_all_of_it_works(operator: Operator) -> None:
    fill(locks=30, circuits=6)
    operator.devtools("Emulation.setScriptExecutionDisabled", value=True)
    operator.open(every=None)
    assert not [one for one in operator.every(".goscope-all") if one.is_displayed()]
    operator.find("#section-circuits .goscope-find summary").click()
    Select(operator.find("select[name='circuits.state']")).select_by_value("open")
    Select(operator.find("select[name='circuits.sort']")).select_by_value("-name")
    operator.find("#section-circuits .goscope-find button").click()
    # Without JavaScript the driver does not wait for the page that a click leads to.
    operator.until(lambda: [one.text for one in operator.every("#section-circuits tbody th")] == ["c0004", "c0001"])
    for box in operator.every("#section-circuits tbody input"):
        box.click()
    operator.find("#section-circuits .goscope-bulk [formaction*=reset_circuit]").click()
    operator.until(lambda: operator.find("button[name=confirm]")).click()
    operator.until(lambda: operator.text("[role=status]") == "2 of 2 done.")
    operator.find("#content tbody th a").click()
    operator.until(lambda: operator.driver.current_url.endswith(f"{PAGE}circuit/c0004/"))
    operator.until(lambda: "root" in operator.text("#section-timeline"))


@pytest.mark.parametrize(("width", "scheme"), [(1_280, "light"), (320, "dark")])
def test_the_pages_of_things_are_accessible_and_fit(operator: Operator, axe: str, width: int, scheme: str) -> None:
    fill(tasks=1, records=1)
    broken("supplier")
    long = "tenant/0123456789abcdef/" * 20
    assert runtime.adapter().lock.acquire(long, ttl=600_000, owner=f"worker-{long}")
    wait_for(long, 2)
    operator.scheme(scheme)
    operator.size(width)
    operator.open(f"{PAGE}?limit=5", every=60)
    paths = [
        one.get_attribute("href") for one in operator.every("#goscope-live section tbody th a, .goscope-cache h3 a")
    ]
    assert len(paths) == 6  # a lock in two tables
    for path in sorted(set(map(str, paths))):
        operator.open(path.removeprefix(operator.address), every=60)
        assert faults(operator, axe) == [], path
        assert operator.run("return document.documentElement.scrollWidth") <= width, operator.run(WIDE)
        assert operator.run(WIDE) == [], path
    operator.open(f"{PAGE}circuit/supplier/", every=60)
    operator.refreshed_now()
    operator.open(f"{PAGE}?limit=5", every=60)
    operator.find("#section-tasks tbody input").click()
    operator.press("Delete: selected tasks")
    assert faults(operator, axe) == []
    operator.press("Delete")
    assert faults(operator, axe) == []
    assert operator.console() == []
