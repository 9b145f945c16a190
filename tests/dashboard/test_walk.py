"""Who may see and do what, at every address. A GET writes nothing, for any user."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.urls import URLPattern

from goscope_django.checkpoints import checkpointed
from goscope_django.circuits import CircuitBreaker
from goscope_django.dashboard.actions import ACTIONS
from goscope_django.dashboard.forms import Seen
from goscope_django.models import Dashboard
from tests.support.commands import Recorder
from tests.support.dashboard import (
    LIVE,
    PAGE,
    PERMISSIONS,
    STATE,
    WRITES,
    action_url,
    browser_of,
    circuit_seen,
    everything,
    lock_seen,
    posted,
    task_seen,
    token_of,
    user,
)
from tests.support.operations import fill, own_store

pytestmark = [pytest.mark.django_db]
ITEMS = ("lock/l00001", "circuit/c0001", "task/t0000", "idempotency/i0000", "cache/default")
LOOKING = (PAGE, LIVE, STATE, *(f"{PAGE}{one}/" for one in ITEMS), f"{PAGE}lock_3Aorders/change/")


@pytest.fixture
def sent(mongo_url: str) -> Iterator[Recorder]:
    """A store with something of everything, and what is sent to it."""
    recorder = Recorder()
    with own_store(mongo_url, client_options={"event_listeners": [recorder]}):
        fill(locks=3, circuits=3, tasks=4, flights=2, records=2)
        recorder.clear()
        yield recorder


def seen_by(noun: str) -> Seen:
    """Something of the kind that is there."""
    return {
        "lock": Seen("l00001", 2),
        "circuit": Seen("c0001", 1),
        "task": Seen("t0000", 1),
        "idempotency": Seen("i0001", 2),
        "cache": Seen("default"),
    }[noun]


def people() -> list[tuple[str, User | None, set[str]]]:
    """Everybody, with the permissions they have."""
    found: list[tuple[str, User | None, set[str]]] = [
        ("anonymous", None, set()),
        ("visitor with all permissions", user(*PERMISSIONS, staff=False), set()),
        ("staff without permission", user(), set()),
        ("superuser", User.objects.create_superuser("root"), set(PERMISSIONS)),
    ]
    return found + [(f"staff with {name}", user(name), {name}) for name in PERMISSIONS]


def test_the_walk_covers_every_address() -> None:
    from django.contrib import admin

    patterns = [one for one in admin.site.get_model_admin(Dashboard).urls if isinstance(one, URLPattern)]
    assert [str(one.pattern) for one in patterns] == [
        "",
        "state.json",
        "live/",
        "act/<slug:action>/",
        "item/",
        r"^(?P<noun>lock|circuit|task|idempotency|cache)/(?P<segment>[\s\S]+)/$",
        "<path:object_id>/change/",
    ]


def test_looking(sent: Recorder) -> None:
    before = everything()
    sent.clear()
    for who, someone, may in people():
        client = browser_of(someone)
        for url in LOOKING:
            for answer in (client.get(url), client.head(url)):
                expected = 302 if someone is None or not someone.is_staff else 403
                if "view_dashboard" in may:
                    expected = 302 if url.endswith("/change/") else 200
                assert answer.status_code == expected, (who, url)
                if expected == 302 and not url.endswith("/change/"):
                    assert answer.headers["Location"].startswith("/admin/login/"), (who, url)
                assert expected != 200 or "no-store" in answer.headers["Cache-Control"], (who, url)
        for name, action in ACTIONS.items():
            answer = client.get(action_url(name), {"seen": seen_by(action.noun).encoded()})
            expected = 302 if someone is None or not someone.is_staff else 403
            if action.permission in may:
                expected = 200
            assert answer.status_code == expected, (who, name)
            assert expected != 200 or "no-store" in answer.headers["Cache-Control"], (who, name)
    assert sent.names
    assert not WRITES.intersection(sent.names)
    assert everything() == before
    assert not LogEntry.objects.exists()


def test_a_post_that_is_not_confirmed_writes_nothing(sent: Recorder) -> None:
    before = everything()
    client = browser_of(User.objects.create_superuser("root"))
    token = token_of(client)
    sent.clear()
    for name, action in ACTIONS.items():
        data = {"seen": seen_by(action.noun).encoded(), "csrfmiddlewaretoken": token}
        assert client.post(action_url(name), data).status_code == 200
    assert client.post(PAGE, {"query": "q=l0", "csrfmiddlewaretoken": token}).status_code == 200
    assert client.post(LIVE, {"query": "q=l0", "csrfmiddlewaretoken": token}).status_code == 200
    assert not WRITES.intersection(sent.names)
    assert everything() == before
    assert not LogEntry.objects.exists()


def test_acting_needs_the_actions_own_permission(mongo_url: str) -> None:
    with own_store(mongo_url):
        for who, someone, may in people():
            client = browser_of(someone)
            for name, action in ACTIONS.items():
                before = everything()
                data = {
                    "seen": seen_by(action.noun).encoded(),
                    "confirm": "yes",
                    "csrfmiddlewaretoken": token_of(client),
                }
                answer = client.post(action_url(name), data)
                if action.permission in may:
                    assert answer.status_code == 302, (who, name)
                    assert answer.headers["Location"] == (PAGE if "view_dashboard" in may else "/admin/"), (who, name)
                    continue
                assert answer.status_code == (302 if someone is None or not someone.is_staff else 403), (who, name)
                assert everything() == before, (who, name)


def test_without_a_csrf_token_nothing_is_done(sent: Recorder) -> None:
    before = everything()
    client = browser_of(User.objects.create_superuser("root"))
    for name, action in ACTIONS.items():
        data = {"seen": seen_by(action.noun).encoded(), "confirm": "yes"}
        assert client.post(action_url(name), data).status_code == 403
    assert everything() == before


def test_other_methods_and_other_actions(sent: Recorder) -> None:
    client = browser_of(User.objects.create_superuser("root"))
    token = token_of(client)
    assert client.get(action_url("drop_everything")).status_code == 404
    for method in ("put", "delete", "patch"):
        for url in (PAGE, LIVE, STATE, action_url("release_lock")):
            assert getattr(client, method)(url, headers={"X-CSRFToken": token}).status_code == 405
    assert client.post(STATE, {"csrfmiddlewaretoken": token}).status_code == 405


@pytest.mark.parametrize("seen", ["", "{}", "[1,2]", '["a",1.5,null,""]', '["a",true,null,""]', '["a",1e400,null,""]'])
@pytest.mark.parametrize("method", ["get", "post"])
def test_what_does_not_say_what_to_act_on_is_refused(seen: str, method: str) -> None:
    client = browser_of(User.objects.create_superuser("root"))
    data = {"seen": seen, "confirm": "yes", "csrfmiddlewaretoken": token_of(client)}
    assert getattr(client, method)(action_url("release_lock"), data).status_code == 400


def test_buttons_are_those_that_one_may_press(mongo_url: str) -> None:
    with own_store(mongo_url):
        fill(locks=1, circuits=1, tasks=2, records=1)
        for allowed in ((), *((one,) for one in PERMISSIONS if one != "view_dashboard")):
            client = browser_of(user("view_dashboard", *allowed, name=f"u{allowed}"))
            page = client.get(PAGE).content.decode()
            offered = {one.permission for name, one in ACTIONS.items() if f'formaction="{action_url(name)}"' in page}
            assert offered == set(allowed)


def test_the_index_of_the_admin_has_it_for_those_who_may_look() -> None:
    link = f'href="{PAGE}"'
    for who, someone, may in people():
        if someone is not None and someone.is_staff:
            page = browser_of(someone).get("/admin/").content.decode()
            assert (link in page) == ("view_dashboard" in may), who


def test_every_action_on_real_things(mongo_url: str) -> None:
    from goscope_django import operations, runtime

    client = browser_of(User.objects.create_superuser("root"))
    with own_store(mongo_url):
        assert runtime.adapter().lock.acquire("orders", ttl=60_000)
        breaker = CircuitBreaker("supplier", failure_threshold=1)
        with pytest.raises(ZeroDivisionError):
            breaker.call(lambda: 1 // 0)
        with checkpointed("import") as task:
            task.save({"row": 1}, progress=10)
        from django.core.cache import cache

        cache.set("a", 1)
        asked = [
            ("release_lock", lock_seen("orders")),
            ("open_circuit", circuit_seen("supplier")),
            ("clear_cache", Seen("default")),
            ("delete_checkpoint", task_seen("import")),
        ]
        for name, seen in asked:
            answer = posted(client, name, seen)
            assert (answer.status_code, answer.url) == (302, PAGE), name
        found = operations.state()
        assert not found.locks.items
        assert found.circuits.forced == 1
        assert not found.tasks.items
        assert cache.get("a") is None
        assert posted(client, "close_circuit", circuit_seen("supplier"), reason="works again").status_code == 302
        assert operations.get_circuit("supplier").override is not None
        assert posted(client, "reset_circuit", circuit_seen("supplier")).status_code == 302
        assert operations.get_circuit("supplier").override is None
        assert LogEntry.objects.count() == 6
