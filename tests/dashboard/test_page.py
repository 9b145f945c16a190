"""What a page costs, and what it shows while MongoDB is down, without content, and with a lot of it."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth.models import User
from django.test import Client, override_settings

from goscope_django import conf, operations
from goscope_django.dashboard import text
from goscope_django.dashboard.forms import PAGE as PAGE_SIZE
from goscope_django.dashboard.forms import Query, Seen
from goscope_django.dashboard.sparklines import sparkline
from goscope_django.operations.collect import COMMANDS
from tests.conftest import with_database
from tests.support.commands import Recorder, on_server
from tests.support.dashboard import LIVE, PAGE, STATE, browser_of, posted
from tests.support.dashboard import lock_seen as seen_lock
from tests.support.mongod import replica_set
from tests.support.operations import fill, own_store

pytestmark = [pytest.mark.django_db]


@pytest.fixture
def operator() -> Client:
    return browser_of(User.objects.create_superuser("root"))


class Outline(HTMLParser):
    """Whether the page's tables, sections and controls have names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.named_by: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids += [given["id"]] if "id" in given else []
        self.named_by += [given["aria-labelledby"]] if "aria-labelledby" in given else []
        if tag == "table":
            self.tables.append({"caption": False, "scopes": 0, "bare": 0})
        elif tag == "caption":
            self.tables[-1]["caption"] = True
        elif tag == "th":
            self.tables[-1]["scopes" if given.get("scope") in ("col", "row") else "bare"] += 1


@pytest.mark.parametrize("size", [0, 1, 300])
def test_a_page_costs_a_bounded_number_of_commands(operator: Client, mongo_url: str, size: int) -> None:
    recorder = Recorder()
    with own_store(mongo_url, client_options={"event_listeners": [recorder]}):
        fill(locks=size, circuits=size, tasks=size, flights=size, records=size)
        for url in (PAGE, LIVE, STATE, f"{PAGE}?q=l0", f"{PAGE}?locks=l00025&tasks=t0025&limit=200"):
            recorder.clear()
            assert operator.get(url).status_code == 200
            assert 0 < len(recorder.names) <= COMMANDS + 1, (url, recorder.names)  # one for the cache alias


def test_ten_thousand_locks_have_pages(operator: Client, mongo_url: str) -> None:
    with own_store(mongo_url):
        fill(locks=10_000)
        page = operator.get(PAGE).content.decode()
        assert f"Showing {PAGE_SIZE} of 10,000<" in page
        assert page.count('aria-label="Release: lock ') == PAGE_SIZE
        page = operator.get(PAGE, {"locks": "l09990"}).content.decode()
        assert "l09991" in page and "l09999" in page and "l09990" not in page.replace("locks=l09990", "")
        assert "First page" in page and "Next page" not in page
        page = operator.get(PAGE, {"q": "l0999"}).content.decode()
        assert page.count('aria-label="Release: lock ') == 10
        assert "Showing 10 of 10 that match, 10,000 in all" in page


def test_the_first_page_explains_how_to_begin(operator: Client, mongo_url: str) -> None:
    with own_store(mongo_url):
        page = operator.get(PAGE).content.decode()
        assert "Nothing has been stored yet" in page
        assert "from goscope_django.locks import lock" in page
        assert "Nothing has been stored yet" not in operator.get(PAGE, {"q": "x"}).content.decode()
        fill(locks=1)
        assert "Nothing has been stored yet" not in operator.get(PAGE).content.decode()


def test_structure_for_assistive_technology(operator: Client, mongo_url: str) -> None:
    with own_store(mongo_url):
        fill(locks=30, circuits=30, tasks=30, flights=30, records=30)
        found = Outline(operator.get(PAGE).content.decode())
    assert len(found.tables) >= 7
    for table in found.tables:
        assert table["caption"] and table["scopes"] and not table["bare"], table
    assert len(found.ids) == len(set(found.ids))
    assert set(found.named_by) <= set(found.ids)


def test_the_live_part_is_the_pages_own(operator: Client, mongo_url: str) -> None:
    with own_store(mongo_url):
        fill(locks=2)
        live = operator.get(LIVE).content.decode()
        assert "<html" not in live
        assert 'id="goscope-state"' in live
        assert operator.get(PAGE).content.decode().count('id="goscope-state"') == 1


def test_without_a_server_the_page_still_comes(operator: Client) -> None:
    with on_server("mongodb://127.0.0.1:1/never"):
        for url in (PAGE, LIVE):
            page = operator.get(url).content.decode()
            assert "MongoDB can&#x27;t be reached" in page or "MongoDB can't be reached" in page
            assert "Since when is not known here" in page or "This process has not reached it since" in page
            assert "Is the server running, does GOSCOPE" in page
            assert 'data-reachable="no"' in page
        answer = operator.get(STATE)
        assert answer.status_code == 200
        assert answer.json()["reachable"] is False


@pytest.mark.real
def test_a_server_that_hangs_costs_seconds_and_not_more(operator: Client) -> None:
    """The time limit is the page's own: it does not depend on what the URL says."""
    import signal

    with replica_set(members=1) as server, on_server(with_database(server.uri, "hang")):
        assert 'data-reachable="yes"' in operator.get(PAGE).content.decode()
        port = server.kill_primary(signal.SIGSTOP)
        try:
            began = time.monotonic()
            page = operator.get(PAGE).content.decode()
            assert time.monotonic() - began < 15  # a driver left alone waits 30 seconds for each thing asked
            assert 'data-reachable="no"' in page
            answer = posted(operator, "clear_cache", Seen("default"))
            assert answer.status_code == 302
        finally:
            server.resume(port)
        deadline = time.monotonic() + 30
        while 'data-reachable="yes"' not in operator.get(PAGE).content.decode():
            assert time.monotonic() < deadline


def test_settings_that_cannot_be_used_are_told(operator: Client) -> None:
    with override_settings(GOSCOPE={"TEST": {"URL": "redis://u:hunter2@127.0.0.1/0"}}):
        conf.reset()
        for url in (PAGE, LIVE):
            page = operator.get(url).content.decode()
            assert "The settings can" in page and "manage.py check" in page
            assert "hunter2" not in page
        assert operator.get(STATE).status_code == 500


def test_a_missing_index_is_told_with_the_command_that_makes_it(operator: Client, mongo_url: str) -> None:
    from tests.support.operations import query

    with own_store(mongo_url):
        query("go_goscope_locks", "drop_index", "key_1")
        try:
            page = operator.get(PAGE).content.decode()
            assert "1 thing needs attention: 1 index problem." in page
            assert "manage.py goscope_indexes ensure" in page
            assert "1 wrong" in page
        finally:
            operations.ensure_indexes()


@override_settings(USE_THOUSAND_SEPARATOR=True, LANGUAGE_CODE="de")
def test_numbers_for_machines_stay_plain(operator: Client, mongo_url: str) -> None:
    with own_store(mongo_url):
        fill(locks=1_200)
        page = operator.get(PAGE).content.decode()
        assert 'value="1200"' in page
        assert 'data-left="3' in page
        (seen,) = {seen_lock("l00001").mark}
        assert f">{seen}<" in page


def test_query_strings_survive_a_round_trip() -> None:
    from django.http import QueryDict

    for encoded in (
        "locks.sort=-held&tasks.sort=rate",
        "q=x&circuits.state=open&tasks.state=stalled&locks.sort=-waiters&locks=25",
        "",
        "q=a%26b%3Dc",
        "limit=50",
        "q=x&limit=7&locks=a%00b&tasks=",
        "circuits=%E2%80%AE",
    ):
        found = Query.parse(QueryDict(encoded))
        assert Query.parse(QueryDict(found.encoded())) == found
        assert found.encoded() == encoded


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "\u2013"), (0, "0 s"), (59.9, "59 s"), (60, "1 m 00 s"), (3_661, "1 h 01 m"), (200_000, "2 d 07 h")],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_a_sparkline_stays_in_its_box() -> None:
    assert sparkline("Hits", ()) is None
    for series in ((0,), (0,) * 60, (5,) * 60, tuple(range(60)), (0, 10**12)):
        found = sparkline("Hits", series)
        assert found is not None
        points = [tuple(map(float, point.split(","))) for point in found.points.split()]
        assert len(points) == len(series)
        assert all(0 <= x <= found.width and 0 <= y <= found.height for x, y in points)
        assert found.label == f"Hits in the last hour: {sum(series):,}, at most {max(series):,} in a minute"


@pytest.fixture(autouse=True)
def settings_as_before() -> Iterator[None]:
    yield
    conf.reset()


@pytest.mark.parametrize("use_tz", [True, False])
def test_moments_are_of_the_projects_zone(settings: Any, use_tz: bool) -> None:
    settings.USE_TZ, settings.TIME_ZONE = use_tz, "Pacific/Kiritimati"
    assert text.moment(datetime(2020, 1, 31, 12, 0, 1, tzinfo=UTC)) == "02/01/2020 02:00:01"
    now = datetime.now(UTC)
    assert text.moment(now, zone=True) == f"{now.astimezone(ZoneInfo('Pacific/Kiritimati')):%H:%M:%S} +14"
    assert text.moment(datetime(9999, 12, 31, 23, 59, tzinfo=UTC)).endswith("23:59:00")
    settings.TIME_ZONE = "America/New_York"
    assert text.moment(datetime(1, 1, 1, tzinfo=UTC)).endswith("00:00:00")


def test_the_page_of_a_project_without_time_zones(operator: Client, settings: Any, mongo_url: str) -> None:
    settings.USE_TZ = False
    with own_store(mongo_url):
        fill(locks=1, circuits=3)
        for url in (PAGE, LIVE, STATE):
            assert operator.get(url).status_code == 200


def test_breadcrumbs_are_what_the_admins_styles_are_for(operator: Client, mongo_url: str) -> None:
    """Django 6.1 made a list of them."""
    (tag,) = re.findall(r'<(\w+) class="breadcrumbs"', operator.get("/admin/auth/").content.decode())
    with own_store(mongo_url):
        fill(locks=1)
        seen = {"seen": seen_lock("l00000").encoded()}
        for page in (operator.get(PAGE), operator.get(f"{PAGE}act/release_lock/", seen)):
            shown = page.content.decode()
            (crumbs,) = re.findall(rf'<{tag} class="breadcrumbs">(.*?)</{tag}>', shown, re.DOTALL)
            assert 'href="/admin/"' in crumbs and 'href="/admin/goscope/"' in crumbs
            assert (f'href="{PAGE}"' in crumbs) == ("goscope-confirm" in shown)
            assert page.context["title"] in crumbs


def test_a_search_leaves_the_counts_as_they_are(operator: Client, mongo_url: str) -> None:
    with own_store(mongo_url):
        fill(locks=12, circuits=6)
        assert "Only what matches" not in operator.get(PAGE).content.decode()
        for url in (PAGE, LIVE):
            page = operator.get(url, {"q": "l0001\u202e"}).content.decode()
            assert r"Only what matches <bdi>l0001\u202e</bdi>" in page
            page = operator.get(url, {"q": "l00007"}).content.decode()
            assert 'value="12">12</data>' in page and "12 held" in page
            assert "Showing 1 of 1 that match, 12 in all" in page
            assert "Nothing here matches the search." in page  # of circuits


def rows(page: str, section: str) -> list[str]:
    """The names in a section's table."""
    part = page.partition(f'id="section-{section}"')[2].partition("</section>")[0]
    return re.findall(r'<th scope="row">.*?<bdi>(.*?)</bdi>', part)


def test_sorted_by_a_column_and_filtered_by_a_state(operator: Client, mongo_url: str) -> None:
    """By links in the headings and by the form below them; both are kept by search, pages, refresh and actions."""
    with own_store(mongo_url):
        fill(locks=30, circuits=6, tasks=8)
        page = operator.get(PAGE).content.decode()
        assert 'aria-sort="ascending"' in page and 'aria-sort="descending"' not in page
        link = html.unescape(re.findall(r'<a href="([^"]*)" class="goscope-sort">Token</a>', page)[0])
        assert link == f"{PAGE}?locks.sort=token#locks"
        found = operator.get(link).content.decode()
        assert 'aria-sort="ascending"><a href="/admin/goscope/dashboard/?locks.sort=-token#locks"' in found
        assert 'data-query="locks.sort=token"' in found
        query = {"locks.sort": "-token", "circuits.state": "open", "tasks.state": "stalled", "tasks.sort": "-progress"}
        for url in (PAGE, LIVE):
            found = operator.get(url, query).content.decode()
            assert rows(found, "locks")[:2] == ["l00029", "l00028"]
            assert rows(found, "circuits") == ["c0001", "c0004"]
            assert rows(found, "tasks") == ["t0006", "t0004", "t0002", "t0000"]
            assert "Showing 2 of 2 that match, 6 in all" in found
            assert '<option value="open" selected>' in found and '<option value="-token" selected>' in found
            assert "locks=25#locks" in found
        found = operator.get(PAGE, {**query, "locks": "25"}).content.decode()
        assert rows(found, "locks") == ["l00004", "l00003", "l00002", "l00001", "l00000"]
        assert rows(found, "circuits") == ["c0001", "c0004"]
        # What the search's form and the section's form send along.
        hidden = dict(re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', found))
        assert hidden["locks.sort"] == "-token" and hidden["tasks.state"] == "stalled" and hidden["locks"] == "25"
        assert operator.get(STATE, query).json()["orders"] == {"locks": "-token", "tasks": "-progress"}
        assert operator.get(STATE, {"locks.sort": "nonsense", "circuits.state": "x"}).json()["orders"] == {}


def test_a_row_has_the_latest_transitions_and_the_data_have_all(operator: Client, mongo_url: str) -> None:
    with own_store(mongo_url):
        fill(circuits=1)
        page = operator.get(PAGE).content.decode()
        assert page.count("<li><time>") == 5 and "and 15 before, on its own page" in page
        assert len(operator.get(STATE).json()["circuits"]["items"][0]["history"]) == 20
