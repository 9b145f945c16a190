"""``idempotent`` on views: over a real server and mongomock, sync and async."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.test import AsyncClient, Client, override_settings

from goscope_django import runtime, signals
from goscope_django.core.flow import ask
from goscope_django.idempotency import Attempt
from tests.support import idempotent_views as site
from tests.support.idempotent_views import ran, seen

pytestmark = pytest.mark.django_db
PAIRS = [("sync", "async"), ("required", "arequired"), ("ignoring", "aignoring")]


@pytest.fixture(params=["mongomock", "mongod"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The project's adapter on an empty store."""
    url = "mongomock://" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    with override_settings(GOSCOPE={"TEST": {"URL": url}}, ROOT_URLCONF="tests.support.idempotent_views"):
        adapter = runtime.adapter()
        adapter.ensure_indexes()
        adapter.wipe()
        site.reset()
        yield adapter
        site.gate.set()


class Caller:
    """One client sync or async, with the same methods."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.prefix = "a" if mode == "async" else ""
        self.sync, self.asynchronous = Client(raise_request_exception=False), AsyncClient(raise_request_exception=False)

    def __call__(
        self, name: str, body: Any = None, key: str | None = "k1", method: str = "post", **headers: str
    ) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body or {})
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            named["Idempotency-Key"] = key
        more: dict[str, Any]
        path, _, query = name.partition("?")
        place, more = f"/{path}/?{query}", {"data": data, "content_type": "application/json", "headers": named}
        if self.mode == "sync":
            return self.sync.generic(method.upper(), place, **more)

        async def sent() -> Any:
            return await self.asynchronous.generic(method.upper(), place, **more)

        return async_to_sync(sent)()


@pytest.fixture(params=["sync", "async"])
def send(request: pytest.FixtureRequest) -> Caller:
    return Caller(request.param)


def shown(response: Any) -> tuple[int, str, list[tuple[str, str]], bytes]:
    """All that a client sees but the two headers that may differ."""
    left = {"idempotent-replayed", "set-cookie", "date", "connection", "x-hop"}
    headers = sorted((name, value) for name, value in response.items() if name.lower() not in left)
    return response.status_code, response.reason_phrase, headers, response.content


def problem(response: Any, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = json.loads(response.content)
    assert set(body) == {"type", "title", "status", "detail"}
    assert body["status"] == status
    assert body["type"] == f"urn:goscope:problem:{kind}"
    assert "Set-Cookie" not in response
    return body


class TestRepeats:
    def test_a_repeat_gets_the_same_and_runs_nothing(self, store: Any, send: Caller) -> None:
        name = send.mode
        first, repeat = send(name), send(name)
        assert ran["pay"] == 1
        assert first.content == b"run 1"
        assert shown(first) == shown(repeat)
        assert "Idempotent-Replayed" not in first
        assert repeat["Idempotent-Replayed"] == "true"

    def test_cookies_dates_and_headers_of_one_connection_are_not_replayed(self, store: Any, send: Caller) -> None:
        first, repeat = send(send.mode), send(send.mode)
        assert "basket" in first.cookies
        assert {"Date", "Connection", "X-Hop", "X-Receipt"} <= set(first.headers)
        assert not repeat.cookies
        assert not {"Date", "Connection", "X-Hop"} & set(repeat.headers)
        assert repeat["X-Receipt"] == "1"

    def test_the_key_may_be_quoted(self, store: Any, send: Caller) -> None:
        send(send.mode, key="abc")
        assert send(send.mode, key='"abc"')["Idempotent-Replayed"] == "true"

    def test_other_keys_run(self, store: Any, send: Caller) -> None:
        assert [send(send.mode, key=key).content for key in ("a", "b", "c")] == [b"run 1", b"run 2", b"run 3"]

    def test_the_event_names_the_record(self, store: Any, send: Caller) -> None:
        told: list[Any] = []

        def hear(sender: Any, key: str, **_: Any) -> None:
            told.append(key)

        signals.idempotent_replayed.connect(hear)
        try:
            send(send.mode)
            assert told == []
            send(send.mode)
        finally:
            signals.idempotent_replayed.disconnect(hear)
        assert told == [one.key for one in store.idempotency.list()]

    @pytest.mark.parametrize("status", [200, 204, 302, 400, 402, 404, 409, 410, 422])
    def test_outcomes_are_kept(self, store: Any, send: Caller, status: int) -> None:
        first, repeat = send(send.mode, {"status": status}), send(send.mode, {"status": status})
        assert ran["pay"] == 1
        assert shown(first) == shown(repeat)

    @pytest.mark.parametrize("status", [401, 403, 429, 500, 502, 503])
    def test_what_is_not_about_the_request_is_not(self, store: Any, send: Caller, status: int) -> None:
        assert send(send.mode, {"status": status}).status_code == status
        assert store.idempotency.list() == []
        assert send(send.mode, {"status": status}).content == b"run 2"

    @pytest.mark.parametrize(("kind", "status"), [("404", 404), ("error", 500)])
    def test_after_an_exception_a_repeat_runs_at_once(self, store: Any, send: Caller, kind: str, status: int) -> None:
        assert send(send.mode, {"raise": kind}).status_code == status
        assert store.idempotency.list() == []
        assert send(send.mode, {"raise": kind}).status_code == status
        assert ran["pay"] == 2

    def test_a_redirect_is_one_again(self, store: Any, send: Caller) -> None:
        first, repeat = send(send.mode, {"redirect": True}), send(send.mode, {"redirect": True})
        assert (first.url, first.status_code) == (repeat.url, repeat.status_code)

    def test_a_template_response_is_rendered_and_kept(self, store: Any, send: Caller) -> None:
        first, repeat = send(send.mode, {"template": True}), send(send.mode, {"template": True})
        assert first.content == b"run 1"
        assert shown(first) == shown(repeat)

    @pytest.mark.parametrize("method", ["get", "put", "delete", "options"])
    def test_other_methods_pass(self, store: Any, send: Caller, method: str) -> None:
        for run in (1, 2):
            assert send("required" if send.mode == "sync" else "arequired", method=method).status_code == 201
            assert ran["pay"] == run
        assert seen == [None, None]

    def test_patch_is_one_of_ours_and_not_post(self, store: Any, send: Caller) -> None:
        assert send(send.mode, method="patch").content == b"run 1"
        assert send(send.mode, method="patch")["Idempotent-Replayed"] == "true"
        assert send(send.mode, method="post").content == b"run 2"

    def test_without_a_key_it_runs_as_ever(self, store: Any, send: Caller) -> None:
        assert [send(send.mode, key=None).content for _ in range(2)] == [b"run 1", b"run 2"]
        assert store.idempotency.list() == []


class TestProblems:
    def test_a_missing_key(self, store: Any, send: Caller) -> None:
        problem(send(f"{send.prefix}required", key=None), 400, "idempotency-key-missing")
        assert ran["pay"] == 0

    @pytest.mark.parametrize("key", ["", "k" * 256, '""', '"open', "\u00e4"])
    def test_a_malformed_key(self, store: Any, send: Caller, key: str) -> None:
        problem(send(send.mode, key=key), 400, "idempotency-key-malformed")
        assert ran["pay"] == 0

    @pytest.mark.parametrize("query", [False, True])
    def test_another_payload(self, store: Any, send: Caller, query: bool) -> None:
        send(send.mode, {"a": 1})
        again = send(f"{send.mode}?x=1" if query else send.mode, {"a": 1 if query else 2})
        problem(again, 422, "idempotency-key-reused")
        assert ran["pay"] == 1
        assert send(send.mode, {"a": 1})["Idempotent-Replayed"] == "true"

    @pytest.mark.parametrize("asked", [{"size": 1024 * 1024 + 1}, {"stream": True}])
    def test_a_response_that_can_not_be_kept(self, store: Any, send: Caller, asked: dict[str, Any]) -> None:
        first = send(send.mode, asked)
        assert first.status_code in (200, 201)
        body = problem(send(send.mode, asked), 409, "idempotency-response-not-kept")
        assert "not carried out again" in body["detail"]
        assert ran["pay"] == 1

    def test_a_response_of_a_megabyte_is_kept(self, store: Any, send: Caller) -> None:
        first, repeat = send(send.mode, {"size": 1024 * 1024}), send(send.mode, {"size": 1024 * 1024})
        assert first.content == repeat.content
        assert repeat["Idempotent-Replayed"] == "true"

    @pytest.mark.parametrize("value", [{"response": {}}, {"response": None}, 5, None, {"dropped": "size"}])
    def test_a_record_of_something_else_is_not_run_over(self, store: Any, send: Caller, value: Any) -> None:
        send(send.mode)
        (info,) = store.idempotency.list()
        store.idempotency.set(info.key, value)
        problem(send(send.mode), 409, "idempotency-response-not-kept")
        assert ran["pay"] == 1

    def test_a_forged_record_is_not_run_over(self, store: Any, send: Caller) -> None:
        send(send.mode)
        damage = {"$set": {"value": {"__goscope__": 99}}}
        store.store.run(lambda clock: ask("go_goscope_idempotency", "update_many", {}, damage))
        assert send(send.mode).status_code == 409
        assert ran["pay"] == 1


class TestConcurrent:
    """A request while the first one runs. The first runs on a thread of its own."""

    @pytest.fixture
    def running(self, store: Any, send: Caller) -> Iterator[Any]:
        with ThreadPoolExecutor(1) as pool:
            started: list[Any] = []

            def begin(name: str) -> Any:
                first = pool.submit(send, f"{send.prefix}{name}", {"a": 1})
                assert site.entered.wait(10)
                started.append(first)
                return first

            yield begin
            site.gate.set()
            for first in started:
                assert first.result(20).content == b"run 1"

    def test_it_gets_409_with_retry_after(self, store: Any, send: Caller, running: Any) -> None:
        running("slow")
        refused = send(f"{send.prefix}slow", {"a": 1})
        problem(refused, 409, "idempotency-in-progress")
        assert refused["Retry-After"] == "1"
        assert ran["slow"] == 1

    def test_another_payload_is_told_first(self, store: Any, send: Caller, running: Any) -> None:
        running("slow")
        problem(send(f"{send.prefix}slow", {"a": 2}), 422, "idempotency-key-reused")

    def test_a_waiting_one_gets_the_result(self, store: Any, send: Caller, running: Any) -> None:
        first = running("waiting")
        threading.Timer(0.3, site.gate.set).start()
        second = send(f"{send.prefix}waiting", {"a": 1})
        assert second["Idempotent-Replayed"] == "true"
        assert shown(second) == shown(first.result(10))
        assert ran["slow"] == 1

    def test_it_waits_no_longer_than_told(self, store: Any, send: Caller, running: Any) -> None:
        running("impatient")
        problem(send(f"{send.prefix}impatient", {"a": 1}), 409, "idempotency-in-progress")
        assert ran["slow"] == 1


class TestScope:
    def test_the_key_of_one_user_is_nothing_to_another(self, store: Any, send: Caller) -> None:
        anonymous = send(send.mode)
        for name in ("alice", "bob"):
            user = User.objects.create_user(name)
            send.sync.force_login(user)
            send.asynchronous.cookies = send.sync.cookies
            assert send(send.mode)["X-Receipt"] != anonymous["X-Receipt"]
            assert send(send.mode)["Idempotent-Replayed"] == "true"
        assert ran["pay"] == 3

    def test_nor_with_another_authorization(self, store: Any, send: Caller) -> None:
        tokens = [send(send.mode, Authorization=f"Token {one}").content for one in "aab"]
        assert tokens == [b"run 1", b"run 1", b"run 2"]

    def test_a_new_token_or_session_of_a_user_is_the_same_caller(self, store: Any, send: Caller) -> None:
        alice = User.objects.create_user("alice")
        found = []
        for token in "abc":
            send.sync.force_login(alice)  # a session of its own
            send.asynchronous.cookies = send.sync.cookies
            found.append(send(send.mode, Authorization=f"Token {token}", X_Api_Key=token).content)
        assert found == [b"run 1"] * 3

    @pytest.mark.parametrize("header", ["X_Signature", "X_Timestamp", "X_Nonce", "X_CSRFToken", "User_Agent"])
    def test_what_changes_with_each_request_makes_no_other_caller(self, store: Any, send: Caller, header: str) -> None:
        assert [send(send.mode, **{header: one}).content for one in "ab"] == [b"run 1", b"run 1"]

    @pytest.mark.parametrize("header", ["X_Api_Key", "X_Auth_Token", "X_Forwarded_User"])
    def test_credentials_make_another_caller(self, store: Any, send: Caller, header: str) -> None:
        assert [send(send.mode, **{header: one}).content for one in "aba"] == [b"run 1", b"run 2", b"run 1"]

    def test_of_cookies_the_session_s_alone_counts(self, store: Any, send: Caller) -> None:
        found = []
        for name, value in (("cart", "1"), ("cart", "2"), ("sessionid", "s" * 32)):
            for client in (send.sync, send.asynchronous):
                client.cookies[name] = value
            found.append(send(send.mode).content)
        assert found == [b"run 1", b"run 1", b"run 2"]

    def test_user_replaces_the_scope(self, store: Any) -> None:
        send = Caller("sync")
        sent = [("a", "1"), ("a", "2"), ("b", "1")]
        found = [send("own-user", X_Tenant=tenant, Authorization=token).content for tenant, token in sent]
        assert found == [b"run 1", b"run 1", b"run 2"]

    def test_a_path_of_its_own(self, store: Any, send: Caller) -> None:
        send(send.mode)
        assert send(f"{send.prefix}required").content == b"run 2"


class TestOptions:
    def test_another_source_of_keys(self, store: Any) -> None:
        send = Caller("sync")
        found = [send("own-key", X_Request=key).content for key in ("a", "a", "b")]
        assert found == [b"run 1", b"run 1", b"run 2"]
        assert [send("own-key").content for _ in range(2)] == [b"run 3", b"run 4"]

    def test_another_fingerprint(self, store: Any) -> None:
        send = Caller("sync")
        found = [send("own-print", {"order": order, "at": at}).status_code for order, at in ((1, 1), (1, 2), (2, 2))]
        assert found == [201, 201, 422]

    def test_no_fingerprint(self, store: Any) -> None:
        send = Caller("sync")
        assert [send("no-print", {"a": a}).content for a in (1, 2)] == [b"run 1"] * 2


class TestRequest:
    def test_the_view_sees_its_attempt(self, store: Any, send: Caller) -> None:
        send(send.mode, key='"my key"')
        (attempt,) = seen
        assert isinstance(attempt, Attempt)
        assert (attempt.key, attempt.replayed, attempt.lost) == ("my key", False, False)
        (info,) = store.idempotency.list()
        assert (attempt.token, attempt.name) == (info.token, info.key)

    def test_tokens_of_one_key_grow(self, store: Any, send: Caller) -> None:
        for _ in range(3):
            send(send.mode, {"status": 500})
        tokens = [attempt.token for attempt in seen]
        assert tokens == sorted(set(tokens))

    def test_current_is_the_same(self, store: Any) -> None:
        Caller("sync")("nested")
        assert seen[0] is seen[1]

    def test_the_record_is_told_apart_by_people(self, store: Any, send: Caller) -> None:
        send(send.mode, key="order-7")
        (info,) = store.idempotency.list()
        assert info.key.startswith(f"POST /{send.mode}/ order-7 ")
        assert info.state == "completed"


@pytest.mark.parametrize(
    "name",
    [
        *("class", "aclass", "as-view", "aas-view", "own-dispatch", "aown-dispatch"),
        *("method", "plain-method", "aplain-method", "nested", "twice", "atwice"),
    ],
)
def test_views_of_every_form(store: Any, name: str) -> None:
    send = Caller("async" if name.startswith("a") and name != "as-view" else "sync")
    first, repeat, other = send(name), send(name), send(name, {"b": 1})
    assert ran["pay"] == 1
    assert shown(first) == shown(repeat)
    assert repeat["Idempotent-Replayed"] == "true"
    assert other.status_code == 422


@pytest.mark.parametrize("name", ["class", "as-view", "method", "plain-method"])
def test_synchronous_views_in_an_asynchronous_stack(store: Any, name: str) -> None:
    send = Caller("async")
    assert shown(send(name)) == shown(send(name))
    assert ran["pay"] == 1


@pytest.mark.parametrize("name", ["aclass", "aas-view", "aplain-method", "async"])
def test_asynchronous_views_in_a_synchronous_stack(store: Any, name: str) -> None:
    send = Caller("sync")
    assert shown(send(name)) == shown(send(name))
    assert ran["pay"] == 1
