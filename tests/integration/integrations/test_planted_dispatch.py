"""What somebody has planted as a task to be dispatched: nothing is sent or imported for it, and it stops no others."""
# mypy: disable-error-code="untyped-decorator, no-untyped-call"

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import override_settings

from goscope_django import runtime, signals
from goscope_django.checkpoints import TaskInfo, get_task, messages
from goscope_django.exceptions import DispatchRefused
from tests.support.tasks import Way, collection, own_store, way

celery = pytest.importorskip("celery")
from goscope_django.integrations import celery as by_celery  # noqa: E402 - only where there is Celery
from goscope_django.integrations import tasks as by_django  # noqa: E402 - the same

MESSAGE = {"id": "1", "task": "registered", "arguments": "[[],{}]", "queue": None}
CALL = {"module": "os", "name": "system", "arguments": '[["true"],{}]'}
NEW, OLD = "n" * 60, "o" * 60


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    with own_store("mongomock://"):
        yield


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Names of Celery tasks that were sent, by an app that has one of its own."""
    found: list[tuple[str, Any]] = []
    app = celery.Celery("planted", broker="memory://", set_as_current=True)

    @app.task(name="registered", shared=False)
    def registered() -> None:
        pass

    monkeypatch.setattr(app, "send_task", lambda name, **options: found.append((name, options["task_id"])))
    return found


@pytest.fixture(params=["sync", "async"])
def by(request: pytest.FixtureRequest) -> Iterator[Way]:
    with way(request.param) as found:
        yield found


@pytest.fixture
def refused() -> Iterator[list[tuple[str, str]]]:
    found: list[tuple[str, str]] = []

    def receiver(sender: Any, task_id: str, reason: str, **_: Any) -> None:
        found.append((task_id, reason))

    signals.task_refused.connect(receiver)
    yield found
    signals.task_refused.disconnect(receiver)


def plant(task_id: str, metadata: Any, **fields: Any) -> None:
    """A stalled task, as anybody can insert one."""
    past = datetime(2020, 1, 1, tzinfo=UTC)
    document = {"status": "running", "cancelRequested": False, "token": 1, "attempt": 1, "tries": 1, "claim": "x"}
    collection("go_goscope_tasks").insert_one(
        {"_id": runtime.adapter().key_prefix + task_id, **document, "leaseUntil": past, "metadata": metadata, **fields}
    )


def info_of(task_id: str) -> TaskInfo:
    found = get_task(task_id)
    assert found is not None
    return found


def forgeries(kind: str, message: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Metadata that name what is to be started, none of them signed for the task ``t``."""
    good = messages.signed(kind, "t", message)[kind]
    yield "unsigned", message
    for signature in (None, b"", b"x" * 32, good["signature"].hex(), [good["signature"]], 5):
        yield f"signature {signature!r}", {**message, "signature": signature}
    yield "of another task", messages.signed(kind, "other", message)[kind]
    yield "of another kind", messages.signed(f"{kind}.", "t", message)[f"{kind}."]
    for name in message:
        yield f"another {name}", {**good, name: "evil"}
        yield f"no {name}", {field: value for field, value in good.items() if field != name}
        yield f"{name} as a list", {**good, name: ["evil"]}
    yield "one field more", {**good, "more": "x"}
    for junk in ("text", 5, [], [good], True, b"x"):
        yield f"{junk!r:.20}", junk
    with override_settings(SECRET_KEY=OLD):
        yield "under a secret that is gone", messages.signed(kind, "t", message)[kind]
    with own_store("mongomock://"):
        yield "of another prefix", messages.signed(kind, "t", message)[kind]


@pytest.mark.parametrize(
    ("kind", "message", "dispatch"),
    [("celery", MESSAGE, by_celery.dispatch), ("django.tasks", CALL, by_django.dispatch)],
)
def test_a_message_that_is_not_ours_is_refused(
    sent: list[Any], kind: str, message: dict[str, Any], dispatch: Callable[[TaskInfo], object]
) -> None:
    for name, forged in list(forgeries(kind, message)):
        collection("go_goscope_tasks").delete_many({})
        plant("t", {kind: forged})
        with pytest.raises(DispatchRefused) as caught:
            dispatch(info_of("t"))
        assert caught.value.reason == "forged", name
        assert "evil" not in str(caught.value)
    for nothing in ({}, None, "text", [1], {"other": message}):
        collection("go_goscope_tasks").delete_many({})
        plant("t", nothing)
        with pytest.raises(DispatchRefused) as caught:
            dispatch(info_of("t"))
        assert caught.value.reason == "none"
    assert sent == []


def test_what_is_ours_is_sent_also_after_the_secret_was_rotated(sent: list[Any]) -> None:
    with override_settings(SECRET_KEY=OLD):
        plant("t", messages.signed("celery", "t", MESSAGE))
    with override_settings(SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=[OLD]):
        by_celery.dispatch(info_of("t"))
    assert sent == [("registered", "1")]


def test_nothing_is_sent_or_imported_for_a_name_that_is_not_registered(sent: list[Any]) -> None:
    plant("t", messages.signed("celery", "t", {**MESSAGE, "task": "antigravity.fly"}))
    for number, (module, name) in enumerate(
        [("antigravity", "fly"), ("os", "system"), ("goscope_django.runtime", "reset"), ("", ""), ("x\0", ".")]
    ):
        plant(f"d{number}", messages.signed("django.tasks", f"d{number}", {**CALL, "module": module, "name": name}))
        with pytest.raises(DispatchRefused) as caught:
            by_django.dispatch(info_of(f"d{number}"))
        assert caught.value.reason == "unknown"
    with pytest.raises(DispatchRefused) as caught:
        by_celery.dispatch(info_of("t"))
    assert caught.value.reason == "unknown"
    assert sent == []
    assert "antigravity" not in sys.modules


def test_planted_tasks_are_told_and_keep_no_other_from_its_turn(
    by: Way, sent: list[Any], refused: list[tuple[str, str]]
) -> None:
    for number in range(7):
        plant(f"a{number}", {"celery": MESSAGE})
    plant("b", {"__goscope__": 1, "t": "pickle", "v": 0, "p": b"cos\nsystem\n", "s": b"x" * 32})
    plant("c", {"celery": MESSAGE}, token="text")
    for name in ("x", "y", "z"):
        plant(name, messages.signed("celery", name, {**MESSAGE, "id": name}))
    found = by.operate("resume_stalled", by_celery.dispatch, limit=2)
    assert [one.task_id for one in found] == ["x", "y"]
    assert [one for _, one in sent] == ["x", "y"]
    assert refused == [*((f"a{number}", "forged") for number in range(7)), ("b", "none")]
    found = by.operate("resume_stalled", by_celery.dispatch, limit=2)
    assert [one.task_id for one in found] == ["z"]


class Ended(BaseException):
    pass


@pytest.mark.parametrize("error", [SystemExit(3), Ended(), RuntimeError()], ids=repr)
def test_whatever_a_dispatcher_raises_is_told_and_the_others_have_their_turn(
    by: Way, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    for name in "abc":
        plant(name, {})

    def dispatch(info: TaskInfo) -> None:
        if info.task_id == "b":
            raise error

    with caplog.at_level(logging.ERROR, "goscope.checkpoints"):
        assert [one.task_id for one in by.operate("resume_stalled", dispatch)] == ["a", "c"]
    assert "'b' could not be dispatched" in caplog.text
    assert [one.task_id for one in by.operate("resume_stalled", lambda info: None)] == ["b"]


def test_whoever_interrupts_is_obeyed(by: Way) -> None:
    plant("a", {})

    def dispatch(info: TaskInfo) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        by.operate("resume_stalled", dispatch)


def test_failures_count_for_the_limit(by: Way) -> None:
    tried: list[str] = []
    for name in "abcd":
        plant(name, {})

    def dispatch(info: TaskInfo) -> None:
        tried.append(info.task_id)
        raise OSError

    assert by.operate("resume_stalled", dispatch, limit=2) == []
    assert tried == ["a", "b"]


def test_a_signature_is_of_its_collection_and_of_no_pickle() -> None:
    signed = messages.signed("celery", "t", MESSAGE)["celery"]
    codec = runtime.codec().of("go_goscope_tasks")
    stored = {"__goscope__": 1, "t": "pickle", "v": 0, "p": b"", "s": signed["signature"]}
    with pytest.raises(Exception, match="signature"):
        codec.decode("p:t", stored)
