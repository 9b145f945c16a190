"""What an operator does in a browser, and what the page does by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from goscope_django import operations, runtime
from goscope_django.checkpoints import checkpointed
from goscope_django.circuits import CircuitBreaker
from tests.support.browser import Operator
from tests.support.dashboard import PAGE
from tests.support.operations import fill, own_store

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]


@pytest.fixture(autouse=True)
def store(mongo_url: str) -> Iterator[None]:
    with own_store(mongo_url):
        yield


def broken(name: str) -> None:
    """A circuit that is open."""
    with pytest.raises(ZeroDivisionError):
        CircuitBreaker(name, failure_threshold=1, reset_timeout=300).call(lambda: 1 // 0)


@contextmanager
def running(name: str) -> Iterator[threading.Event]:
    """A task that is worked on until the event is set."""
    stop = threading.Event()

    def work() -> None:
        with checkpointed(name) as task:
            for row in range(100):
                task.save({"row": row}, progress=row)
                if stop.wait(0.5):
                    return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


def test_a_lock_appears_counts_down_and_is_released(operator: Operator) -> None:
    operator.open()
    assert "Nothing has been stored yet" in operator.text("#content")
    assert runtime.adapter().lock.acquire("orders", ttl=600_000, owner="worker-1")
    row = operator.until(lambda: operator.row("locks", "orders"))
    assert "worker-1" in row.text
    assert operator.text("#section-locks .goscope-said") == "1 held"
    assert "Nothing has been stored yet" not in operator.text("#content")
    # It counts down in between, too: with the refresh paused.
    operator.press("Pause")
    seen = set()
    for _ in range(8):
        seen.add(row.find_element(By.CSS_SELECTOR, "[data-left]").text)
        time.sleep(0.5)
    assert len(seen) >= 3
    assert all(text.startswith("9 m ") for text in seen)
    operator.press("Release: lock orders")
    assert "Take this lock away from its holder?" in operator.text("#content")
    assert "orders" in operator.text(".goscope-facts")
    operator.press("Release")
    assert operator.text(".messagelist") == "Lock 'orders' was released."
    assert "Nobody holds a lock." in operator.text("#section-locks")
    assert runtime.adapter().lock.get("orders") is None
    assert LogEntry.objects.get().user.get_username() == "root"
    assert operator.console() == []


def test_an_open_circuit_is_reset(operator: Operator) -> None:
    broken("supplier")
    operator.open()
    assert "open" in operator.row("circuits", "supplier").text
    operator.press("Reset: circuit supplier")
    operator.find("#id_reason").send_keys("they are back")
    operator.press("Reset")
    row = operator.row("circuits", "supplier")
    assert row.find_element(By.CSS_SELECTOR, ".goscope-badge").text == "closed"
    row.find_element(By.TAG_NAME, "summary").click()
    assert "they are back" in row.text
    assert operator.text("#section-circuits .goscope-said").startswith("1 closed, 0 open")
    # What is open stays open over a refresh.
    operator.refreshed()
    assert "they are back" in operator.row("circuits", "supplier").text
    assert operations.get_circuit("supplier").state == "closed"


def test_a_bar_moves(operator: Operator) -> None:
    with running("import"):
        operator.open()
        operator.until(lambda: operator.row("tasks", "import"))
        bar = operator.row("tasks", "import").find_element(By.TAG_NAME, "progress")
        first = float(bar.get_attribute("value") or 0)
        operator.until(lambda: float(bar.get_attribute("value") or 0) >= first + 3)
        assert operator.row("tasks", "import").find_element(By.CSS_SELECTOR, ".goscope-badge").text == "running"


def test_who_loses_the_permission_is_refused(operator: Operator) -> None:
    someone = User.objects.create_user("duty", is_staff=True)
    someone.user_permissions.set(Permission.objects.filter(codename__in=["view_dashboard", "release_lock"]))
    operator = Operator(operator.driver, operator.address, someone)
    assert runtime.adapter().lock.acquire("orders", ttl=600_000)
    operator.open()
    operator.row("locks", "orders")
    operator.press("Release: lock orders")
    someone.user_permissions.set(Permission.objects.filter(codename="view_dashboard"))
    operator.press("Release")
    assert "403" in operator.text("body")
    assert runtime.adapter().lock.get("orders") is not None
    operator.open()
    assert not operator.every("[formaction*=release_lock]")
    someone.user_permissions.clear()
    operator.until(lambda: "You no longer have the permission to see this page." in operator.text("#goscope-warning"))
    assert operator.text("#goscope-live") == ""


def test_a_session_that_ended_is_told(operator: Operator) -> None:
    operator.open()
    operator.driver.delete_all_cookies()
    operator.until(lambda: "You are signed out" in operator.text("#goscope-warning"))


def test_a_state_that_changed_meanwhile_is_told(operator: Operator) -> None:
    first = runtime.adapter().lock.acquire("orders", ttl=600_000, owner="worker-1")
    assert first is not None
    operator.open(every=60)
    first.release()
    assert runtime.adapter().lock.acquire("orders", ttl=600_000, owner="worker-2")
    operator.press("Release: lock orders")
    operator.press("Release")
    assert "it is held by 'worker-2' with token" in operator.text(".messagelist .warning")
    assert runtime.adapter().lock.get("orders") is not None


def test_with_the_keyboard_alone(operator: Operator) -> None:
    for name in ("a", "b", "c"):
        assert runtime.adapter().lock.acquire(name, ttl=600_000)
    operator.open()
    body = operator.driver.switch_to

    def tab_to(name: str) -> None:
        for _ in range(120):
            body.active_element.send_keys(Keys.TAB)
            now = body.active_element
            if name in (now.get_attribute("aria-label"), now.text):
                outline = operator.run("return getComputedStyle(arguments[0]).outlineStyle", now)
                assert outline != "none", f"{name} has the focus and does not show it"
                return
        raise AssertionError(f"{name} is not reached")

    tab_to("Release: lock b")
    # The focus stays over refreshes, also where rows above go.
    operations.release_lock("a")
    operator.until(lambda: operator.text("#section-locks .goscope-said") == "2 held")
    assert body.active_element.get_attribute("aria-label") == "Release: lock b"
    body.active_element.send_keys(Keys.ENTER)
    operator.until(lambda: operator.find(".goscope-confirm"))
    tab_to("Release")
    body.active_element.send_keys(Keys.ENTER)
    operator.until(lambda: "Lock 'b' was released." in operator.text(".messagelist"))
    # Where the row itself goes, its section's heading has the focus.
    operator.open()
    tab_to("Release: lock c")
    operations.release_lock("c")
    operator.until(lambda: "Nobody holds a lock." in operator.text("#section-locks"))
    assert body.active_element.text == "Locks"


def test_without_javascript(operator: Operator) -> None:
    fill(locks=60, circuits=2, tasks=2)
    operator.devtools("Emulation.setScriptExecutionDisabled", value=True)
    operator.open(every=None)
    assert not operator.find("#goscope-auto").is_displayed()
    assert not operator.find("#goscope-warning").is_displayed()
    assert len(operator.every("#section-locks tbody tr")) == 25
    operator.follow(operator.driver.find_element(By.LINK_TEXT, "Next page"))
    assert operator.row("locks", "l00025").is_displayed()
    operator.find("#goscope-q").send_keys("l00059")
    operator.press("Search")
    assert [row.text.split()[0] for row in operator.every("#section-locks tbody tr")] == ["l00059"]
    operator.press("Release: lock l00059")
    operator.press("Release")
    assert operator.text(".messagelist") == "Lock 'l00059' was released."
    assert "Nothing here matches the search." in operator.text("#section-locks")
    operator.follow(operator.driver.find_element(By.LINK_TEXT, "Show all"))
    assert "59 held" in operator.text("#section-locks")
    operator.follow(operator.driver.find_element(By.LINK_TEXT, "Reload"))
    operator.find("details summary").click()
    assert operator.driver.current_url.endswith(PAGE)


def test_pause_and_a_hidden_tab_stop_the_refresh(operator: Operator) -> None:
    operator.open()
    operator.refreshed()
    operator.press("Pause")
    assert operator.find("#goscope-pause").get_attribute("aria-pressed") == "true"
    assert runtime.adapter().lock.acquire("orders", ttl=600_000)
    time.sleep(3)
    assert not operator.every("#section-locks tbody tr")
    operator.press("Pause")
    operator.until(lambda: operator.row("locks", "orders"))
    operator.run(
        "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    operations.release_lock("orders")
    time.sleep(3)
    assert operator.row("locks", "orders").is_displayed()
    operator.run("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    operator.until(lambda: not operator.every("#section-locks tbody tr"))


def test_a_refresh_touches_only_what_changed(operator: Operator) -> None:
    fill(locks=5, circuits=5, tasks=4, flights=2, records=2)
    operator.open()
    operator.run(
        "window.touched = []; new MutationObserver((all) => all.forEach((one) => {"
        "  const at = one.target.nodeType === 1 ? one.target : one.target.parentElement;"
        "  if (at && (one.type === 'childList' ? at.closest('tr, [aria-live]') : at.closest('[aria-live]')))"
        "    window.touched.push(at.outerHTML.slice(0, 200)); }))"
        ".observe(document.getElementById('goscope-live'), {subtree: true, childList: true, characterData: true})"
    )
    rows = operator.every("tbody tr")
    operator.refreshed()
    operator.refreshed()
    said = [one for one in operator.run("return window.touched") if "data-left" not in one and "data-age" not in one]
    assert said == []
    for row in rows:
        assert row.tag_name == "tr"  # a row that had been put in anew would be stale
    runtime.adapter().lock.acquire("orders", ttl=600_000)
    operator.until(lambda: operator.row("locks", "orders"))
    for row in rows:
        assert row.tag_name == "tr"
    assert operator.console() == []
