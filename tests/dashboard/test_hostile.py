"""What users chose is text on the page, in every table and every form; secrets are nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client

from goscope_django import operations, runtime
from goscope_django.checkpoints import checkpointed
from goscope_django.circuits import CircuitBreaker
from goscope_django.dashboard import docs
from goscope_django.dashboard.forms import Seen
from tests.support.commands import on_server
from tests.support.dashboard import LIVE, PAGE, STATE, browser_of, circuit_seen, lock_seen, posted, task_seen, told
from tests.support.operations import fill, own_store

pytestmark = [pytest.mark.django_db]

KEYS = {
    "markup": "<script>alert(1)</script>",
    "attribute": "\" onmouseover='alert(1)' x=\"",
    "entity": "&lt;b&gt; &amp; {{ state.url }} {% now %}",
    "path": "../../admin/auth/user/1/delete/",
    "query": "a?b=c&d=e#f%2F+g%00",
    "nul": "before\0after",
    "lines": "a\r\nSet-Cookie: x=1\n\nb\tc",
    "turned": "invoice\u202egpj.exe\u2066",
    "joined": "zero\u200bwidth\ufeff",
    "script": "鍵-ключ-🔑-مفتاح",
    "spaces": "  around  ",
    "empty": "",
    "long": "k" * 10_240,
    "long and wide": "ключ/" * 2_048,
}


class Elements(HTMLParser):
    """The elements of a page and the text that people read."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def seen(self) -> list[Seen]:
        """What the buttons of the page would send."""
        return [
            Seen.parse(attrs["value"]) for tag, attrs in self.found if tag == "button" and attrs.get("name") == "seen"
        ]


@pytest.fixture
def operator() -> Client:
    return browser_of(User.objects.create_superuser("root"))


@pytest.fixture(autouse=True)
def store(mongo_url: str) -> Iterator[None]:
    with own_store(mongo_url):
        yield


def assert_clean(page: str) -> Elements:
    """Nothing inline, nothing from elsewhere, nothing invisible."""
    found = Elements(page)
    for tag, attrs in found.found:
        assert tag not in ("style", "base", "object", "embed", "iframe")
        assert not [name for name in attrs if name.startswith("on") or name == "style"], (tag, attrs)
        if tag == "script":
            assert attrs["src"].startswith("/static/"), attrs
        for name in ("src", "href", "action", "formaction"):
            if tag == "a" and attrs.get("href", "").startswith(docs.HOME):
                continue  # a link to follow; nothing is loaded from there
            assert not attrs.get(name, "").startswith(("http:", "https:", "//", "javascript:", "data:")), (tag, attrs)
    for hidden in "\0\u202e\u2066\u200b\ufeff":
        assert hidden not in page
    return found


@pytest.mark.parametrize("kind", KEYS)
def test_a_lock_of_any_name_is_shown_and_released(operator: Client, kind: str) -> None:
    key = KEYS[kind]
    assert runtime.adapter().lock.acquire(key, ttl=60_000, owner=key or "nobody")
    page = assert_clean(operator.get(PAGE).content.decode())
    assert key in [seen.key for seen in page.seen()]
    seen = lock_seen(key)
    assert seen in [Seen(one.key, one.mark, one.owner, "held") for one in page.seen()]
    question = operator.get(f"{PAGE}act/release_lock/", {"seen": seen.encoded()}).content.decode()
    assert_clean(question)
    answer = posted(operator, "release_lock", seen)
    (message,) = told(operator, answer)
    assert message.startswith("Lock ")
    assert not operations.state().locks.items
    (entry,) = LogEntry.objects.all()
    assert "\0" not in str(entry.object_id) + entry.object_repr + entry.change_message
    assert_clean(operator.get("/admin/").content.decode())
    found = operator.get(str(entry.get_admin_url()))
    assert found.status_code == 302
    assert urlsplit(found.headers["Location"]).path.startswith(PAGE)


def fail(name: str) -> None:
    """A task that fails after its first save."""
    with checkpointed(name) as task:
        task.save({"secret-state": 1}, progress=50)
        raise RuntimeError(f"failed for {name}")


@pytest.mark.parametrize("kind", KEYS)
def test_circuits_and_tasks_of_any_name(operator: Client, kind: str) -> None:
    name = KEYS[kind] or "nameless"
    with pytest.raises(ZeroDivisionError):
        CircuitBreaker(name, failure_threshold=1).call(lambda: 1 // 0)
    with pytest.raises(RuntimeError):
        fail(name)
    page = assert_clean(operator.get(PAGE).content.decode())
    assert [seen.key for seen in page.seen()].count(name) >= 3
    assert "secret-state" not in page.text
    assert posted(operator, "reset_circuit", circuit_seen(name)).status_code == 302
    assert operations.get_circuit(name).state == "closed"
    assert posted(operator, "delete_checkpoint", task_seen(name)).status_code == 302
    assert not operations.state().tasks.items


def test_pages_go_on_behind_any_key(operator: Client) -> None:
    """Paging link by link (or, where a key is too long for an address, form by form) shows each lock once."""
    keys = sorted(set(KEYS.values()) | {f"plain{n}" for n in range(5)}, key=lambda one: one.encode())
    for key in keys:
        assert runtime.adapter().lock.acquire(key, ttl=60_000)
    found: list[str] = []
    posts = 0
    answer = operator.get(PAGE, {"limit": "1"})
    while True:
        page = assert_clean(answer.content.decode())
        found += [seen.key for seen in page.seen() if seen.state.startswith("held")]
        links = [
            attrs["href"]
            for tag, attrs in page.found
            if tag == "a" and "locks=" in attrs.get("href", "") and "sort" not in attrs.get("class", "")
        ]
        forward = [link for link in links if link.endswith("#locks")]
        buttons = [attrs["value"] for tag, attrs in page.found if tag == "button" and attrs.get("name") == "query"]
        if buttons:
            posts += 1
            data = {"query": buttons[0], "csrfmiddlewaretoken": "t" * 32}
            operator.cookies["csrftoken"] = "t" * 32
            live = operator.post(LIVE, data)
            answer = operator.post(PAGE, data)
            assert [one.key for one in Elements(live.content.decode()).seen()] == [
                one.key for one in Elements(answer.content.decode()).seen()
            ]
        elif forward:
            answer = operator.get(forward[0].partition("#")[0])
        else:
            break
    assert found == keys
    assert posts == 2


def test_search_is_text(operator: Client) -> None:
    for key in KEYS.values():
        assert runtime.adapter().lock.acquire(key, ttl=60_000, owner="x")
    for text in (".*", "<script>", "$where", "\\", "(", "\0", "\u202e", "%00", "k" * 3_000, "{{ state }}"):
        answer = operator.get(PAGE, {"q": text})
        assert answer.status_code == 200
        assert_clean(answer.content.decode().replace(f'value="{text}"', ""))
        shown = {one.key for one in Elements(answer.content.decode()).seen() if one.state.startswith("held")}
        plain = text.replace("\0", "").lower()
        assert shown == {key for key in KEYS.values() if plain in key.lower()}, text


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=9999999", "limit=x", "limit=²", "q=%ff", "locks=%ed%a0%80"]
)
def test_whatever_makes_no_sense_in_the_address_is_left_out(operator: Client, query: str) -> None:
    fill(locks=3)
    for url in (PAGE, LIVE, STATE):
        assert operator.get(f"{url}?{query}").status_code == 200


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        *((name, value, True) for name in ("locks.state", "tasks.sort") for value in ("<b>x", "-", "stalld", "\0")),
        *(("limit", value, True) for value in ("0", "-1", "201", "99999", "²", "007", "<b>x")),
        *(("limit", value, False) for value in ("", "1", "25", "200")),
        *(("locks.sort", value, False) for value in ("", "key", "-key", "-held")),
        ("tasks.state", "stalled", False),
        ("nothing", "<b>x", False),
    ],
)
def test_what_is_left_out_of_an_address_is_named_without_its_value(
    operator: Client, name: str, value: str, named: bool
) -> None:
    page = operator.get(PAGE, {name: value}).content.decode()
    assert (f"<code>{name}</code>" in page) == ("Left out" in page) == named
    assert "<b>x" not in page and "&lt;b&gt;x" not in page
    assert operator.get(STATE, {name: value}).status_code == 200


def test_a_key_that_is_longer_than_any_key_is_told(operator: Client) -> None:
    answer = operator.get(PAGE, {"q": "x" * 70_000})
    assert answer.status_code == 200
    assert "This can&#x27;t be shown" in answer.content.decode() or "at most" in answer.content.decode()
    assert operator.get(STATE, {"q": "x" * 70_000}).status_code == 400


def test_the_password_of_the_url_is_nowhere(operator: Client) -> None:
    with on_server("mongodb://admin:hunter2@127.0.0.1:1/never"):
        for url in (PAGE, LIVE, STATE):
            answer = operator.get(url)
            assert answer.status_code == 200
            assert "hunter2" not in answer.content.decode()
            assert "127.0.0.1:1" in answer.content.decode()
        answer = posted(operator, "release_lock", Seen("orders", 1))
        assert not [message for message in told(operator, answer) if "hunter2" in message]


def test_json_has_keys_as_they_are(operator: Client) -> None:
    for key in KEYS.values():
        assert runtime.adapter().lock.acquire(key, ttl=60_000)
    answer = operator.get(STATE, {"limit": "200"})
    assert answer.headers["Content-Type"] == "application/json"
    assert {one["key"] for one in json.loads(answer.content)["locks"]["items"]} == set(KEYS.values())


def test_an_address_is_no_longer_than_servers_take(operator: Client) -> None:
    for key in KEYS.values():
        assert runtime.adapter().lock.acquire(key, ttl=60_000)
    for limit in range(1, len(KEYS)):
        for tag, attrs in Elements(operator.get(PAGE, {"limit": str(limit)}).content.decode()).found:
            assert len(attrs.get("href", "")) < 2_000, tag
            for value in parse_qs(urlsplit(attrs.get("href", "")).query).values():
                assert value
