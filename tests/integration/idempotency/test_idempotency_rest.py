"""``idempotent`` on views of Django REST framework, in each way in which they are written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client, override_settings
from rest_framework.authentication import TokenAuthentication

from goscope_django import runtime
from tests.support import idempotent_views as site
from tests.support.idempotent_views import ran

pytestmark = pytest.mark.django_db
INSIDE = ["rest", "rest-viewset", "rest-function"]
ALL = [*INSIDE, "rest-dispatch", "rest-outside"]


class Authentication(TokenAuthentication):
    """Token authentication with the user's name as the token."""

    def authenticate_credentials(self, key: str) -> Any:
        return User.objects.get(username=key), key


@pytest.fixture(params=["mongomock", "mongod"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    url = "mongomock://" if request.param == "mongomock" else request.getfixturevalue("mongo_url")
    monkeypatch.setattr(TokenAuthentication, "authenticate_credentials", Authentication.authenticate_credentials)
    with override_settings(GOSCOPE={"TEST": {"URL": url}}, ROOT_URLCONF="tests.support.idempotent_views"):
        adapter = runtime.adapter()
        adapter.wipe()
        site.reset()
        yield adapter


def send(name: str, body: Any = None, content_type: str = "application/json", **headers: str) -> Any:
    data = body if isinstance(body, bytes) or content_type.startswith("multipart") else json.dumps(body or {})
    named = {"Idempotency-Key": "k1", **headers}
    return Client().post(f"/{name}/", data=data, content_type=content_type, headers=named)


@pytest.mark.parametrize("name", ALL)
class TestEveryForm:
    def test_a_repeat_is_byte_equal(self, store: Any, name: str) -> None:
        first, repeat = send(name), send(name)
        assert first.content == repeat.content == b'{"run":1,"user":"nobody"}'
        assert (first.status_code, repeat.status_code) == (201, 201)
        assert repeat["Idempotent-Replayed"] == "true"
        for header in ("Content-Type", "Allow", "X-Receipt"):  # not Vary: middleware adds what the view used
            assert first.get(header) == repeat.get(header)
        assert ran["pay"] == 1

    def test_the_renderer_that_was_negotiated_rendered_it(self, store: Any, name: str) -> None:
        first = send(name, Accept="text/html")
        repeat = send(name, Accept="text/html")
        assert first["Content-Type"].startswith("text/html")
        assert first.content == repeat.content
        assert b"<html" in first.content

    def test_another_payload_is_refused(self, store: Any, name: str) -> None:
        send(name, {"a": 1})
        assert send(name, {"a": 2}).status_code == 422
        assert ran["pay"] == 1

    def test_a_server_error_is_not_kept(self, store: Any, name: str) -> None:
        assert [send(name, {"status": 503}).status_code for _ in range(2)] == [503, 503]
        assert ran["pay"] == 2
        assert store.idempotency.list() == []

    def test_forms_and_their_fields(self, store: Any, name: str) -> None:
        bodies = [
            (f'--{mark}\r\nContent-Disposition: form-data; name="a"\r\n\r\n{value}\r\n--{mark}--\r\n'.encode(), mark)
            for mark, value in (("one", 1), ("two", 1), ("three", 2))
        ]
        found = [send(name, body, f"multipart/form-data; boundary={mark}").status_code for body, mark in bodies]
        assert found == [201, 201, 422]


@pytest.mark.parametrize("name", ["rest", "rest-viewset", "rest-dispatch"])
def test_authentication_inside_the_view_keeps_users_apart(store: Any, name: str) -> None:
    for user in ("alice", "bob"):
        User.objects.create_user(user)
    found = [send(name, Authorization=f"Token {user}").json()["user"] for user in ("alice", "bob", "alice")]
    assert found == ["alice", "bob", "alice"]
    assert ran["pay"] == 2


@pytest.mark.parametrize("name", INSIDE)
def test_an_exception_inside_is_not_an_outcome(store: Any, name: str) -> None:
    assert [send(name, {"invalid": True}).status_code for _ in range(2)] == [400, 400]
    assert ran["pay"] == 2


@pytest.mark.parametrize("name", ["rest-dispatch", "rest-outside"])
def test_outside_of_the_handler_it_has_become_a_response(store: Any, name: str) -> None:
    first, repeat = send(name, {"invalid": True}), send(name, {"invalid": True})
    assert (first.status_code, first.content) == (repeat.status_code, repeat.content)
    assert repeat["Idempotent-Replayed"] == "true"


def test_patch_with_a_form(store: Any) -> None:
    def patch(mark: str, value: int) -> Any:
        body = f'--{mark}\r\nContent-Disposition: form-data; name="a"\r\n\r\n{value}\r\n--{mark}--\r\n'.encode()
        headers = {"Idempotency-Key": "k1"}
        return Client().patch("/rest-dispatch/", body, f"multipart/form-data; boundary={mark}", headers=headers)

    assert [patch("one", 1).status_code, patch("two", 1).status_code, patch("three", 2).status_code] == [201, 201, 422]
    assert ran["pay"] == 1
