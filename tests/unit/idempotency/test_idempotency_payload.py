"""Keys and fingerprints: what is a key, what is the same request, and that looking takes nothing from the view."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from django.core.exceptions import RequestDataTooBig
from django.core.files.uploadedfile import SimpleUploadedFile, TemporaryUploadedFile
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, RawPostDataException
from django.test import RequestFactory, override_settings
from hypothesis import given
from hypothesis import strategies as st

from goscope_django.exceptions import InvalidType, InvalidValue
from goscope_django.idempotency.payload import fingerprint, of_value, parse_key, stored_key

PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))
factory = RequestFactory()


class TestKey:
    @pytest.mark.parametrize(
        ("text", "key"),
        [
            ("a", "a"),
            ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
            ('"8e03978e"', "8e03978e"),
            ("  a b\t", "a b"),
            (r'"say \"hi\" \\ bye"', r'say "hi" \ bye'),
            ('a"b', 'a"b'),
            ("k" * 255, "k" * 255),
            ('"' + r"\\" * 255 + '"', "\\" * 255),
        ],
    )
    def test_one_key(self, text: str, key: str) -> None:
        assert parse_key(text) == key

    @pytest.mark.parametrize(
        "text",
        [
            *("", " ", '""', "k" * 256, '"' + "k" * 256 + '"', "\x7f", "a\x00b", "a\nb", "schlüssel", "\u20ac"),
            *('"open', '"a"b"', r'"bad \n escape"', '"a";x=1', '"a", "b"', '"\\"', '"tab\there"'),
        ],
    )
    def test_no_key(self, text: str) -> None:
        with pytest.raises(InvalidValue, match="1 to 255 printable ASCII"):
            parse_key(text)

    @given(st.text(PRINTABLE, min_size=1, max_size=255))
    def test_a_quoted_key_is_read_as_it_was_meant(self, key: str) -> None:
        quoted = key.replace("\\", r"\\").replace('"', r"\"")
        assert parse_key(f'"{quoted}"') == key

    @given(st.text(max_size=300))
    def test_whatever_comes_it_is_a_key_or_refused(self, text: str) -> None:
        try:
            key = parse_key(text)
        except InvalidValue:
            return
        assert 1 <= len(key) <= 255
        assert set(key) <= set(PRINTABLE)


class TestStoredKey:
    def request(self, method: str = "POST", path: str = "/pay/", **extra: Any) -> HttpRequest:
        return factory.generic(method, path, **extra)

    def test_nothing_that_tells_requests_apart_is_lost(self) -> None:
        keys = {
            stored_key(self.request(), "k", "alice"),
            stored_key(self.request(), "k", "bob"),
            stored_key(self.request(), "k2", "alice"),
            stored_key(self.request("PATCH"), "k", "alice"),
            stored_key(self.request(path="/other/"), "k", "alice"),
            stored_key(self.request(headers={"Host": "localhost"}), "k", "alice"),
        }
        assert len(keys) == 6

    def test_the_query_belongs_to_the_payload(self) -> None:
        assert stored_key(self.request(path="/pay/?a=1"), "k", "") == stored_key(self.request(), "k", "")

    def test_bytes_that_are_no_text_belong_to_it_as_they_are(self) -> None:
        assert fingerprint(post(path="/pay/?a=%ff")) != fingerprint(post(path="/pay/?a=%fe"))
        assert fingerprint(post(path="/pay/?a=%ff")) == fingerprint(post(path="/pay/?a=%FF"))

    def test_a_secret_in_the_path_is_not_shown(self) -> None:
        assert "s3cret" not in stored_key(self.request(path="/reset/s3cret/"), "k", "")


def post(data: Any = b"", content_type: str = "application/json", path: str = "/pay/", **extra: Any) -> WSGIRequest:
    return factory.generic(extra.pop("method", "POST"), path, data, content_type, **extra)


def form(
    boundary: str, fields: list[tuple[str, str]], files: dict[str, tuple[str, bytes]], **extra: Any
) -> WSGIRequest:
    body = b""
    for name, value in fields:
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    for name, (filename, content) in files.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
        body += f"{head}Content-Type: text/plain\r\n\r\n".encode() + content + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    return post(body, f"multipart/form-data; boundary={boundary}", **extra)


class TestFingerprint:
    def test_it_is_a_sha256(self) -> None:
        found = fingerprint(post(b"{}"))
        assert len(found) == 64
        assert set(found) <= set(string.hexdigits)

    @pytest.mark.parametrize(
        "other",
        [
            post(b'{"a":2}'),
            post(b'{"a":1.0}'),
            post(b'{"a":1}', "application/vnd.api+json"),
            post(b'{"a":1}', "application/json; profile=x"),
            post(b'{"a":1}', path="/pay/?x=1"),
            post(b'{"a":1}', path="/refund/"),
            post(b'{"a":1}', method="PATCH"),
        ],
        ids=["body", "number", "type", "parameter", "query", "path", "method"],
    )
    def test_another_request(self, other: WSGIRequest) -> None:
        assert fingerprint(post(b'{"a":1}')) != fingerprint(other)

    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            ("a=1&b=2", "b=2&a=1", True),
            ("a=1&a=2", "a=2&a=1", False),
            ("a=%31", "a=1", True),
            ("a=", "", False),
            ("a=1&b=2", "a=1%26b=2", False),
        ],
    )
    def test_queries(self, one: str, other: str, same: bool) -> None:
        found = fingerprint(post(path=f"/pay/?{one}")), fingerprint(post(path=f"/pay/?{other}"))
        assert (found[0] == found[1]) is same

    def test_parts_do_not_run_together(self) -> None:
        assert fingerprint(form("x", [("a", "1"), ("b", "2")], {})) != fingerprint(
            form("x", [("a", "12"), ("b", "")], {})
        )


@pytest.mark.parametrize("method", ["POST", "PATCH"])
class TestMultipart:
    def test_the_boundary_does_not_count(self, method: str) -> None:
        fields, files = [("a", "1"), ("a", "2")], {"f": ("f.txt", b"content")}
        assert fingerprint(form("one", fields, files, method=method)) == fingerprint(
            form("another", fields, files, method=method)
        )

    @pytest.mark.parametrize(
        ("fields", "files"),
        [
            ([("a", "1")], {"f": ("f.txt", b"content")}),
            ([("a", "2"), ("a", "1")], {"f": ("f.txt", b"content")}),
            ([("a", "1"), ("a", "2")], {"f": ("f.txt", b"contenu")}),
            ([("a", "1"), ("a", "2")], {"f": ("g.txt", b"content")}),
            ([("a", "1"), ("a", "2")], {"g": ("f.txt", b"content")}),
            ([("a", "1"), ("a", "2")], {}),
        ],
    )
    def test_fields_and_files_do(
        self, method: str, fields: list[tuple[str, str]], files: dict[str, tuple[str, bytes]]
    ) -> None:
        ours = form("x", [("a", "1"), ("a", "2")], {"f": ("f.txt", b"content")}, method=method)
        assert fingerprint(ours) != fingerprint(form("x", fields, files, method=method))

    def test_the_view_may_still_read_the_body(self, method: str) -> None:
        request = form("x", [("a", "1")], {"f": ("f.txt", b"content")}, method=method)
        expected = form("x", [("a", "1")], {"f": ("f.txt", b"content")}, method=method).body
        fingerprint(request)
        assert request.body == expected
        assert request.read() == expected


def test_the_view_may_still_read_fields_and_files() -> None:
    request = form("x", [("a", "1")], {"f": ("f.txt", b"content")})
    fingerprint(request)
    assert request.POST["a"] == "1"
    upload = request.FILES["f"]
    assert upload.read() == b"content"  # type: ignore[union-attr]


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain"])
def test_the_view_may_still_read_any_other_body(content_type: str) -> None:
    request = post(b"a=1", content_type)
    fingerprint(request)
    assert request.body == b"a=1"
    assert request.read() == b"a=1"
    assert request.POST.dict() == ({"a": "1"} if "form" in content_type else {})


def test_a_form_that_somebody_has_parsed_already_has_the_same_fingerprint() -> None:
    """As the CSRF middleware does, which looks for its token among the fields."""
    request = form("x", [("a", "1")], {"f": ("f.txt", b"content")})
    assert request.POST["a"] == "1"
    assert fingerprint(request) == fingerprint(form("y", [("a", "1")], {"f": ("f.txt", b"content")}))


class Stream(BytesIO):
    """Tells how much of it was in memory at once."""

    most = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.most = max(self.most, len(data))
        return data


def test_a_large_upload_goes_to_disk_as_ever() -> None:
    large = form("x", [("a", "1")], {"f": ("f.txt", b"c" * 5_000_000)})
    stream = Stream(large.read())
    request = WSGIRequest({**large.environ, "wsgi.input": stream})
    found = fingerprint(request)
    assert stream.most <= 100_000
    upload = request.FILES["f"]
    assert isinstance(upload, TemporaryUploadedFile)
    assert upload.tell() == 0
    assert len(upload.read()) == 5_000_000
    with pytest.raises(RawPostDataException):
        request.body  # noqa: B018 - as ever after request.POST; before it Django would have refused the size
    again = form("y", [("a", "1")], {"f": ("f.txt", b"c" * 5_000_000)})
    assert found == fingerprint(again)
    request.close()
    again.close()


class TestTooBig:
    @pytest.fixture(autouse=True)
    def _little(self) -> Iterator[None]:
        with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=100):
            yield

    def test_a_body_that_django_refuses_is_refused(self) -> None:
        with pytest.raises(RequestDataTooBig):
            fingerprint(post(b"x" * 101))

    def test_a_form_of_another_method_is_refused_since_reading_it_would_take_it_from_the_view(self) -> None:
        request = form("x", [], {"f": ("f.txt", b"c" * 200)}, method="PATCH")
        with pytest.raises(RequestDataTooBig):
            fingerprint(request)
        assert len(request.read()) > 200

    def test_fields_over_the_limit_are_refused(self) -> None:
        with pytest.raises(RequestDataTooBig):
            fingerprint(form("x", [("a", "1" * 101)], {}))


def test_a_consumed_body_is_an_error_and_not_a_fingerprint_of_nothing() -> None:
    for request in (post(b"{}"), form("x", [("a", "1")], {}, method="PATCH")):
        request.read()
        with pytest.raises(RawPostDataException):
            fingerprint(request)


def test_of_value() -> None:
    assert of_value({"b": 1, "a": [None, "x"]}) == of_value(json.loads('{"a": [null, "x"], "b": 1}'))
    assert of_value({"a": 1}) != of_value({"a": 2})
    with pytest.raises(InvalidType, match="fingerprint"):
        of_value({"a": object()})


def test_uploads_with_equal_content_and_other_names_differ() -> None:
    def of(name: str) -> str:
        return fingerprint(factory.post("/pay/", {"f": SimpleUploadedFile(name, b"x")}))

    assert of("a.txt") == of("a.txt")
    assert of("a.txt") != of("b.txt")


# JSON: what is the same, and what is compared as bytes

SAME_JSON: list[tuple[bytes, bytes]] = [
    (b'{"a":1,"b":[true,null]}', b' { "b" : [ true,null ],\r\n\t"a" : 1 } '),
    (b'{"a":"\\u00e9/"}', '{"a":"é\\/"}'.encode()),
    (b'{"a":"\\ud83d\\ude00"}', '{"\\u0061":"😀"}'.encode()),
    (b'{"a":{"x":1,"y":-2.50e+7}}', b'{"a":{"y":-2.50e+7,"x":1}}'),
    (b"[" * 100 + b"]" * 100, b" " + b"[" * 100 + b" ]" * 100),
    (b"7", b"\n7"),
    (b'"\\ud800"', b' "\\uD800"'),
    (b"1" + b"0" * 10_000, b" 1" + b"0" * 10_000),
]
OTHER_JSON: list[tuple[bytes, bytes]] = [
    (b'{"a":1}', b'{"a":1.0}'),
    (b'{"a":1}', b'{"a":true}'),
    (b'{"a":0}', b'{"a":false}'),
    (b'{"a":1}', b'{"a":"1"}'),
    (b'{"a":1e2}', b'{"a":1E2}'),
    (b'{"a":-0}', b'{"a":0}'),
    (b'{"a":null}', b"{}"),
    (b"[1,2]", b"[2,1]"),
    (b'{"a":"x"}', b'{"a":"x "}'),
    (b'{"a":9007199254740993}', b'{"a":9007199254740992}'),
    ('{"a":"é"}'.encode(), '{"a":"e\u0301"}'.encode()),
]
AS_BYTES: list[bytes] = [
    b'{"a":1,"a":1}',
    b'{"a":1,"\\u0061":1}',
    b'[{"x":{"a":1,"a":2}}]',
    b"[NaN]",
    b"[-Infinity]",
    b"[" * 101 + b"]" * 101,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":1,}',
    b"{'a':1}",
    b"[01]",
    b'["\xff"]',
    '["é"]'.encode("latin-1"),
    '{"a":1}'.encode("utf-16"),
    b"\xef\xbb\xbf[1]",
    b'["tab\there"]',
    b"",
]


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"]
)
@pytest.mark.parametrize(("one", "other"), SAME_JSON)
def test_the_same_json_is_the_same_payload(one: bytes, other: bytes, kind: str) -> None:
    assert fingerprint(post(one, kind)) == fingerprint(post(other, kind))


@pytest.mark.parametrize(("one", "other"), OTHER_JSON)
def test_other_json_is_another_payload(one: bytes, other: bytes) -> None:
    assert fingerprint(post(one)) != fingerprint(post(other))


@pytest.mark.parametrize("body", AS_BYTES, ids=lambda body: repr(body[:20]))
def test_what_is_no_plain_json_is_compared_as_bytes(body: bytes) -> None:
    assert fingerprint(post(body)) == fingerprint(post(body))
    assert fingerprint(post(body)) != fingerprint(post(body + b" "))


def test_a_charset_does_not_make_another_payload_of_json() -> None:
    said = ("", "; charset=utf-8", ";charset=UTF-8")
    assert len({fingerprint(post(b"[1]", f"application/json{more}")) for more in said}) == 1


def test_no_bytes_are_taken_for_the_canonical_form() -> None:
    canonical_form = b'{"a":1}'
    assert fingerprint(post(b'{ "a": 1 }')) == fingerprint(post(canonical_form))
    for odd in (b"json" + canonical_form, b"\0json:" + canonical_form, b'4:json7:{"a":1}'):
        assert fingerprint(post(odd)) != fingerprint(post(canonical_form))


def test_space_counts_where_the_body_is_not_json() -> None:
    assert fingerprint(post(b"[1]", "text/plain")) != fingerprint(post(b"[1] ", "text/plain"))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_VALUES, JSON_VALUES)
def test_two_payloads_are_the_same_if_and_only_if_their_json_is(one: Any, other: Any) -> None:
    pretty = fingerprint(post(json.dumps(one, indent=2, ensure_ascii=False).encode()))
    assert pretty == fingerprint(post(json.dumps(one, sort_keys=True, separators=(",", ":")).encode()))
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (pretty == fingerprint(post(json.dumps(other).encode()))) is same
