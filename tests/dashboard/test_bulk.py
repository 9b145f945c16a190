"""Several at once: each is judged by itself, and each has its result. And a stalled task that is run again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client

from goscope_django import checkpoints, operations, runtime
from goscope_django.checkpoints import operators
from goscope_django.dashboard.actions import ACTIONS
from goscope_django.dashboard.forms import Seen
from goscope_django.exceptions import DispatchRefused, InvalidType, StateChanged
from tests.dashboard.test_hostile import KEYS, Elements, assert_clean
from tests.support.dashboard import PAGE, action_url, browser_of, everything, token_of, user
from tests.support.operations import Operators, fill, own_store

pytestmark = [pytest.mark.django_db]


@pytest.fixture
def operator() -> Client:
    return browser_of(User.objects.create_superuser("root"))


@pytest.fixture(params=["mongod", "mongomock"], autouse=True)
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(operators, "_dispatchers", [])
    url = "mongomock://" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    with own_store(url):
        yield


def ticked(client: Client, noun: str, *keys: str) -> list[str]:
    """The boxes of these rows."""
    page = Elements(client.get(PAGE).content.decode())
    boxes = [attrs["value"] for tag, attrs in page.found if attrs.get("name") == "selected"]
    found = [one for one in boxes if one.startswith(f"{noun}:") and Seen.parse(one.partition(":")[2]).key in keys]
    assert len(found) == len(keys)
    return found


def sent(client: Client, name: str, selected: list[str], **more: str) -> Any:
    data = {"bulk": "yes", "selected": selected, "csrfmiddlewaretoken": token_of(client), **more}
    return client.post(action_url(name), data)


def results(answer: Any) -> dict[str, tuple[str, str]]:
    return {one["key"]: (one["state"], one["message"]) for one in answer.context["results"]}


def test_each_is_judged_by_itself(operator: Client) -> None:
    locks = runtime.adapter().lock
    handles = {key: locks.acquire(key, ttl=600_000, owner=f"of {key}") for key in "abcd"}
    selected = ticked(operator, "lock", "a", "b", "c")
    gone, taken = handles["a"], handles["b"]
    assert gone is not None and taken is not None
    gone.release()
    taken.release()
    second = locks.acquire("b", ttl=600_000, owner="somebody else")
    before = everything()
    asked = sent(operator, "release_lock", selected)
    page = assert_clean(asked.content.decode())
    assert "3 locks: take them away from their holders?" in page.text
    assert [attrs["value"] for _, attrs in page.found if attrs.get("name") == "selected"] == selected
    assert everything() == before and not LogEntry.objects.exists()
    done = sent(operator, "release_lock", selected, confirm="yes")
    assert done.status_code == 200
    found = results(done)
    assert {key: state for key, (state, _) in found.items()} == {"a": "not done", "b": "not done", "c": "done"}
    assert "is held by 'somebody else'" in found["b"][1]
    assert "1 of 3 done." in Elements(done.content.decode()).text
    assert second is not None and second.is_valid()
    assert [one.key for one in operations.state().locks.items] == ["b", "d"]
    (entry,) = LogEntry.objects.all()
    assert entry.object_id == "lock:c"


def test_every_kind_and_one_reason_for_all(operator: Client) -> None:
    fill(circuits=4, tasks=4, records=4)
    done = sent(operator, "close_circuit", ticked(operator, "circuit", "c0001", "c0002"), confirm="yes", reason="why")
    assert {state for state, _ in results(done).values()} == {"done"}
    for name in ("c0001", "c0002"):
        override = operations.get_circuit(name).override
        assert override is not None and override.reason == "why"
    done = sent(operator, "close_circuit", ticked(operator, "circuit", "c0003"), confirm="yes", reason="x" * 201)
    assert b"at most 200 characters" in done.content and operations.get_circuit("c0003").override is None
    done = sent(operator, "delete_checkpoint", ticked(operator, "task", "t0000", "t0001"), confirm="yes")
    assert {key: state for key, (state, _) in results(done).items()} == {"t0000": "done", "t0001": "not done"}
    done = sent(operator, "delete_idempotency", ticked(operator, "idempotency", "i0000", "i0001"), confirm="yes")
    assert {state for state, _ in results(done).values()} == {"done"}
    assert LogEntry.objects.count() == 5
    # What is ticked of another kind is left alone.
    mixed = ticked(operator, "circuit", "c0000") + ticked(operator, "task", "t0002")
    done = sent(operator, "reset_circuit", mixed, confirm="yes")
    assert list(results(done)) == ["c0000"]


def test_any_name_can_be_selected(operator: Client) -> None:
    for key in KEYS.values():
        assert runtime.adapter().lock.acquire(key, ttl=60_000, owner="x")
    selected = ticked(operator, "lock", *KEYS.values())
    assert_clean(sent(operator, "release_lock", selected).content.decode())
    done = sent(operator, "release_lock", selected, confirm="yes")
    assert_clean(done.content.decode())
    assert len(done.context["results"]) == len(KEYS) and done.context["done"] == len(KEYS)


@pytest.mark.parametrize("selected", ["lock:", "lock:{}", "lock:[1]", "lock:" + "[" * 9_999])
def test_what_makes_no_sense_is_refused(operator: Client, selected: str) -> None:
    assert sent(operator, "release_lock", [selected], confirm="yes").status_code == 400


def test_nothing_selected_is_told(operator: Client) -> None:
    for selected in ([], ["task:whatever"]):
        answer = sent(operator, "release_lock", selected, query="q=x")
        assert answer.url == f"{PAGE}?q=x"
        assert "no lock was selected" in operator.get(answer.url).content.decode()


def test_it_needs_the_actions_permission_and_a_token() -> None:
    fill(locks=2)
    selected = [f"lock:{Seen('l00000', 1).encoded()}"]
    client = browser_of(user("view_dashboard", "change_circuit"))
    assert "selected" not in [attrs.get("name") for _, attrs in Elements(client.get(PAGE).content.decode()).found]
    assert sent(client, "release_lock", selected, confirm="yes").status_code == 403
    client = browser_of(user("view_dashboard", "release_lock"))
    data = {"bulk": "yes", "selected": selected, "confirm": "yes"}
    assert client.post(action_url("release_lock"), data).status_code == 403
    assert client.get(action_url("release_lock"), data).status_code == 200  # asks again
    assert operations.state().locks.total == 2
    offered = [
        attrs["formaction"]
        for _, attrs in Elements(client.get(PAGE).content.decode()).found
        if "bulk" in attrs.values()
    ]
    assert offered == [action_url("release_lock")]


def test_a_cache_is_never_cleared_together(operator: Client) -> None:
    assert not ACTIONS["clear_cache"].together
    answer = sent(operator, "clear_cache", [f"cache:{Seen('default').encoded()}"], confirm="yes")
    assert answer.status_code == 400


# Run again


def test_without_a_dispatcher_there_is_no_button(operator: Client) -> None:
    fill(tasks=2)
    assert "Run again" not in operator.get(PAGE).content.decode()
    with pytest.raises(DispatchRefused, match="no dispatcher is registered"):
        operations.run_task_again("t0000")


def test_a_stalled_task_is_run_again_once(operator: Client) -> None:
    fill(tasks=4)  # of which the even ones are stalled
    seen: list[str] = []
    checkpoints.register_dispatcher(lambda info: seen.append(info.task_id))
    page = operator.get(PAGE).content.decode()
    assert page.partition('id="section-tasks"')[2].count("Run again: task") == 2
    done = sent(operator, "run_task_again", ticked(operator, "task", "t0000", "t0001", "t0002"), confirm="yes")
    states = {key: state for key, (state, _) in results(done).items()}
    assert states == {"t0000": "done", "t0001": "not done", "t0002": "done"}
    assert seen == ["t0000", "t0002"]
    done = sent(operator, "run_task_again", ticked(operator, "task", "t0000"), confirm="yes")
    assert "dispatched in the last minutes" in results(done)["t0000"][1]
    assert seen == ["t0000", "t0002"]
    assert LogEntry.objects.count() == 2
    with pytest.raises(StateChanged, match="with token 3 now"):
        operations.run_task_again("t0002", token=2)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_dispatcher_that_fails_or_refuses(mode: str) -> None:
    by: Any = Operators(mode)
    fill(tasks=1)
    asked: list[str] = []

    def refuses(info: checkpoints.TaskInfo) -> None:
        asked.append("refuses")
        raise DispatchRefused("not mine", "none")

    def fails(info: checkpoints.TaskInfo) -> None:
        asked.append("fails")
        raise ConnectionError("broker of hunter2")

    checkpoints.register_dispatcher(refuses)
    checkpoints.register_dispatcher(refuses)
    with pytest.raises(DispatchRefused, match="not mine"):
        by.run_task_again("t0000")
    checkpoints.register_dispatcher(fails)
    with pytest.raises(DispatchRefused, match="its dispatcher raised ConnectionError") as caught:
        by.run_task_again("t0000")
    assert caught.value.reason == "failed" and "hunter2" not in str(caught.value)
    assert asked == ["refuses", "refuses", "fails"]
    # It may be tried again at once.
    operators._dispatchers[:] = [lambda info: asked.append(info.task_id)]
    assert by.run_task_again("t0000", token=1).count == 1
    assert asked[-1] == "t0000"
    by.close()


def test_a_dispatcher_is_a_plain_function() -> None:
    async def native(info: checkpoints.TaskInfo) -> None: ...

    for wrong in (native, None, "celery"):
        with pytest.raises(InvalidType):
            checkpoints.register_dispatcher(wrong)  # type: ignore[arg-type]
    assert not checkpoints.can_run_again()
