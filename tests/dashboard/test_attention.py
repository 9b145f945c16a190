"""What needs attention comes first on the page, each with a link to it and what can be done about it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from django.contrib.auth.models import User
from django.test import Client

from goscope_django import checkpoints, operations, runtime
from goscope_django.checkpoints import operators
from goscope_django.dashboard import docs
from tests.dashboard.test_hostile import KEYS, Elements, assert_clean
from tests.support.dashboard import LIVE, PAGE, browser_of, user
from tests.support.operations import fill, own_store, query, soon

pytestmark = [pytest.mark.django_db]


@pytest.fixture
def operator() -> Client:
    return browser_of(User.objects.create_superuser("root"))


@pytest.fixture(autouse=True)
def store(mongo_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(operators, "_dispatchers", [])
    with own_store(mongo_url):
        yield


def section(page: str) -> str:
    return page.partition('id="section-attention"')[2].partition("</section>")[0]


def test_nothing_to_do_is_one_line(operator: Client) -> None:
    fill(locks=2, flights=1)
    found = section(operator.get(PAGE).content.decode())
    assert "Nothing needs attention." in found and "<li" not in found


def test_each_has_its_link_and_its_action_before_all_else(operator: Client) -> None:
    fill(locks=1, circuits=3, tasks=1)
    checkpoints.register_dispatcher(lambda info: None)
    for url in (PAGE, LIVE, f"{PAGE}?q=nothing&limit=1"):
        page = operator.get(url).content.decode()
        assert (
            page.index('id="section-attention"')
            < page.index('class="goscope-tiles"')
            < page.index('id="section-locks"')
        )
        found = section(page)
        assert f'href="{PAGE}circuit/c0001/"' in found and f'href="{PAGE}task/t0000/"' in found
        assert "2 things need attention: 1 open circuit, 1 stalled task." in found
        assert "manage.py goscope_circuit show c0001" in found
        assert f'href="{docs.HOME}how-to/runbook.md#circuit_open"' in found
        marks = {(seen.key, seen.mark) for seen in Elements(found).seen()}
        assert marks == {("c0001", 1), ("t0000", 1)}
        actions = re.findall(r'formaction="[^"]*/act/(\w+)/"', found)
        assert actions == ["close_circuit", "open_circuit", "run_task_again", "cancel_task"]
    found = section(browser_of(user("view_dashboard", "change_circuit")).get(PAGE).content.decode())
    assert re.findall(r'formaction="[^"]*/act/(\w+)/"', found) == ["close_circuit", "open_circuit"]


def test_a_forced_circuit_and_a_lock_that_others_wait_for(operator: Client) -> None:
    operations.open_circuit("bank", reason="their <b>maintenance</b>")
    assert runtime.adapter().lock.acquire("report", ttl=600_000, owner="web-3:12, MainThread")
    prefix, minute = runtime.adapter().key_prefix, soon(0).replace(second=0, microsecond=0)
    waits = {"w.web-1:7": {"at": soon(0), "waits": [["lock", "report", 4, 30.0]]}}
    name = f"{prefix}minute:{minute:%Y-%m-%dT%H:%M}"
    query("go_goscope_stats", "update_one", {"_id": name}, {"$set": waits}, upsert=True)
    found = section(operator.get(PAGE).content.decode())
    assert "their &lt;b&gt;maintenance&lt;/b&gt;" in found
    assert re.findall(r'formaction="[^"]*/act/(\w+)/"', found) == ["reset_circuit", "release_lock"]
    assert "4 callers wait for it" in found


def test_more_than_a_few_are_folded_and_no_name_breaks_out(operator: Client) -> None:
    for kind, key in KEYS.items():
        operations.open_circuit(key or kind)
    page = operator.get(PAGE).content.decode()
    assert_clean(page)
    found = section(page)
    assert f"<summary>{len(KEYS) - 8} more</summary>" in found
    assert {seen.key for seen in Elements(found).seen()} == {key or kind for kind, key in KEYS.items()}


def test_it_is_what_the_data_say(operator: Client) -> None:
    fill(circuits=6, tasks=6)
    found = section(operator.get(PAGE).content.decode())
    data = json.loads(operator.get(f"{PAGE}state.json").content)["attention"]
    assert len(re.findall("<li ", found)) == data["total"] == len(data["items"])
    assert data["summary"] in found
