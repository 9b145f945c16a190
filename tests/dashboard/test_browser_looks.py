"""How the page looks and works: narrow, dark, from right to left, with assistive technology, under a strict policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from goscope_django import figures, operations, runtime
from goscope_django.process import counters
from tests.support.browser import Operator
from tests.support.commands import on_server
from tests.support.dashboard import PAGE
from tests.support.long import also
from tests.support.operations import fill, own_store, query

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]


@pytest.fixture(autouse=True)
def store(mongo_url: str) -> Iterator[None]:
    with own_store(mongo_url):
        yield


def lively() -> None:
    """Something in every section, with names that do not fit."""
    fill(locks=30, circuits=6, tasks=8, flights=2, records=4)
    query("go_goscope_locks", "update_many", {}, {"$set": {"token": 1_883_318_331_113_549}})
    long = "tenant/0123456789abcdef/" * 20
    for key in (long, "k" * 5_000, "a key with spaces in it, and no end to them " * 5):
        runtime.adapter().lock.acquire(key, ttl=600_000, owner=f"worker-{long}")
    operations.open_circuit("c0000", reason="w" * 150)
    from django.core.cache import cache

    for number in range(20):
        cache.set(f"user:{number}", "x" * 100)
        cache.get(f"user:{number + 5}")
    counters.alias("default").row("user:")[counters.HITS] += 12_345_678
    counters.announce(told := lambda: [("lock", "l00000", 12, 7_384.0), ("lock", "l00001", 3, 90.0)])
    try:
        figures.flush()
    finally:
        counters._waiting.remove(told)


def faults(operator: Operator, axe: str) -> list[str]:
    """What axe finds that is serious or critical."""
    operator.run(axe)
    found: Any = operator.driver.execute_async_script(
        "const done = arguments[0];"
        "axe.run(document, {resultTypes: ['violations']}).then(done, (one) => done({error: String(one)}))"
    )
    assert "error" not in found, found["error"]
    assert len(found["passes"]) > 10
    return [
        f"{one['impact']}: {one['id']}: {one['help']}: {[node['html'][:200] for node in one['nodes'][:4]]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(
    ("width", "scheme"), [(1_280, "light"), also(1_280, "dark"), also(320, "light"), (320, "dark")]
)
def test_axe_finds_nothing_serious(operator: Operator, axe: str, scheme: str, width: int) -> None:
    operator.scheme(scheme)
    operator.size(width)
    operator.open(every=60)
    assert faults(operator, axe) == []  # the empty page
    lively()
    operator.open(f"{PAGE}?limit=5", every=60)
    assert len(operator.every("section tbody tr")) > 30
    for summary in operator.every("summary"):
        summary.click()
    assert faults(operator, axe) == []
    for label in ("Release: lock l00000", "Force open: circuit c0001", "Delete: task t0000", "Clear: cache default"):
        operator.open(f"{PAGE}?limit=5", every=60)
        operator.press(label)
        assert faults(operator, axe) == [], label
    background = operator.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_while_the_server_is_away(operator: Operator, axe: str, scheme: str) -> None:
    operator.scheme(scheme)
    with on_server("mongodb://127.0.0.1:1/never"):
        operator.open()
        operator.until(lambda: operator.find("#goscope-warning").is_displayed())
        assert faults(operator, axe) == []


WIDE = (
    "const cut = (one) => one && getComputedStyle(one).overflowX == 'hidden'"
    "  && one.getBoundingClientRect().right <= innerWidth + 1;"
    "return [...document.querySelectorAll('body *')].filter((one) => {"
    "  const box = one.getBoundingClientRect(); const style = getComputedStyle(one);"
    "  return box.width > 1 && style.visibility != 'hidden' && (box.right > innerWidth + 1 || box.left < -1)"
    "    && !one.closest('.skip-to-content-link, svg, caption, thead, #nav-sidebar')"
    "    && !cut(one.parentElement.closest('td, th')); })"  # a long name, of which the cell shows the beginning
    ".map((one) => one.outerHTML.slice(0, 120))"
)


OVERFULL = (
    "return [...document.querySelectorAll('section table')].filter((one) => {"
    "  const box = one.getBoundingClientRect(); const room = one.closest('section').getBoundingClientRect();"
    "  return box.right > room.right + 1 || box.left < room.left - 1; })"
    ".map((one) => one.closest('section').id + ' ' + one.offsetWidth + ' in ' + one.closest('section').offsetWidth)"
)


@pytest.mark.parametrize("language", ["en", "ar"])
@pytest.mark.parametrize("width", [320, 768, 1_024, 1_280, 1_920])
def test_nothing_is_to_be_scrolled_sideways(operator: Operator, settings: Any, language: str, width: int) -> None:
    """Also beside the admin's sidebar, which is there from 768 pixels on."""
    settings.LANGUAGE_CODE = language
    lively()
    operations.open_circuit("c0001", reason="as long as a reason may be " * 7)
    operator.size(width, 640)
    operator.open(every=60)
    assert operator.run("return document.documentElement.dir") == ("rtl" if language == "ar" else "ltr")
    for summary in operator.every("summary"):
        summary.click()
    assert operator.run("return document.documentElement.scrollWidth") <= width, operator.run(WIDE)
    assert operator.run(WIDE) == []
    if width == 1_280:  # and without the sidebar, where there is room for other columns
        operator.find("#toggle-nav-sidebar").click()
        assert operator.run("return document.documentElement.scrollWidth") <= width, operator.run(WIDE)
        assert operator.run(WIDE) == []
        operator.find("#toggle-nav-sidebar").click()
    assert operator.run(OVERFULL) == []
    operator.press("Release: lock l00000")
    assert operator.run("return document.documentElement.scrollWidth") <= width, operator.run(WIDE)
    assert operator.run(WIDE) == []


@pytest.mark.parametrize("language", ["en", "ar"])
@pytest.mark.parametrize("width", [320, 1_440])
def test_english_reads_from_left_to_right(operator: Operator, settings: Any, language: str, width: int) -> None:
    """``12 s ago``, not ``ago 12 s``, also in a card on a page that runs from right to left."""
    settings.LANGUAGE_CODE = language
    lively()
    operator.size(width)
    operator.open(every=60)
    number, word = operator.run(
        "const cell = document.querySelector('td[data-label=\"Last heard of\"]:has([data-age])');"
        "const range = document.createRange(); range.selectNodeContents(cell.lastChild);"
        "return [cell.querySelector('[data-age]').getBoundingClientRect().right, range.getBoundingClientRect().right]"
    )
    assert number < word


def test_nothing_offends_a_strict_policy(operator: Operator) -> None:
    lively()
    operator.open()
    operator.refreshed()
    operator.press("Pause")
    operator.press("Pause")
    operator.press("Force open: circuit c0001")
    operator.press("Force open")
    operator.open("/admin/", every=None)
    assert operator.console() == []
    # The policy is in force: what it forbids is complained about.
    operator.run("document.body.setAttribute('style', 'color: red'); document.body.append(new Image())")
    operator.run("const one = document.createElement('script'); one.text = 'window.ran = 1'; document.body.append(one)")
    assert operator.run("return window.ran === undefined")
    assert any("Content Security Policy" in one for one in operator.console())


def test_it_looks_like_the_rest_of_the_admin(operator: Operator) -> None:
    """A skin is another set of the admin's variables: what they say is what the page has."""
    lively()
    operator.open(every=60)
    operator.run(
        "for (const [name, value] of Object.entries({'--body-bg': 'rgb(1, 2, 3)', '--body-fg': 'rgb(250, 251, 252)',"
        "  '--darkened-bg': 'rgb(4, 5, 6)', '--link-fg': 'rgb(7, 8, 9)'}))"
        "  document.documentElement.style.setProperty(name, value)"
    )
    look = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    operator.until(lambda: operator.run(look, ".goscope-tiles a", "backgroundColor") == "rgb(4, 5, 6)")
    assert operator.run(look, ".goscope-tiles a", "color") == "rgb(250, 251, 252)"
    assert operator.run(look, ".goscope-line", "color") == "rgb(7, 8, 9)"
