"""URLs: what they name, what is refused, and that no part of a password is ever shown."""

from __future__ import annotations

import itertools
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goscope_django.exceptions import ConfigurationError
from goscope_django.mongodb.driver import client as clients
from goscope_django.mongodb.driver.urls import Target, is_local, masked, parse

PARTS = ("hunter2", "s3cret")
PASSWORDS = [
    *(f"hunter2{mark}s3cret" for mark in "@:/?#%&,[ \\;"),
    "hunter2@s3cret:1/",
    "hunter2%40s3cret",
    "hunter2%2Fs3cret",
    "hunter2s3cret",
]
PLACES = [
    "host/db",
    "host:port/db",
    "host:99999/db",
    "/db",
    "host",
    "[::1/db",
    "host/d b",
    "host/db?w=abc&maxPoolSize=x",
    "host/db?unknownOption=1",
    "host/db?authMechanism=NOPE",
    "host/db?tls=maybe",
    "host/db?ssl=true&tls=false",
    "host/db?authMechanism=MONGODB-AWS&authMechanismProperties=AWS_SESSION_TOKEN:hunter2",
]
SCHEMES = ["mongodb://", "mongodb+srv://", "mongo://", "mongodb:/", "", "embedded://", "mongomock://"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_part_of_a_password_is_ever_shown(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_connections", {})
    for password, place in itertools.product(PASSWORDS, PLACES):
        url = f"{scheme}user:{password}@{place}"
        shown = [masked(url)]
        try:
            connection = clients.connection(url)
            shown += [repr(connection), repr(connection.target), str(connection.target)]
            connection.check()
        except ConfigurationError as error:
            shown += [str(error), repr(error), "".join(traceback.format_exception(error))]
        for text in shown:
            assert not any(part in text for part in PARTS), url


@settings(deadline=None)
@given(st.text(max_size=60))
def test_masking_never_fails(text: str) -> None:
    for url in (text, f"mongodb://{text}", f"mongodb://user:{text}@host/db"):
        assert isinstance(masked(url), str)
        with suppress(ConfigurationError):
            parse(url)


@settings(deadline=None)
@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=9, max_size=20))
def test_a_password_is_masked_wherever_it_stands(password: str) -> None:
    for url in (f"mongodb://u:{password}@h/d", f"u:{password}@h", f"mongodb://h/d?password={password}&w=1"):
        assert password not in masked(url)
        assert "***" in masked(url)


def test_masking_keeps_what_one_needs_to_see() -> None:
    assert masked("mongodb://me:x@a:1,b:2/db?w=1&tlsCertificateKeyFilePassword=x") == (
        "mongodb://me:***@a:1,b:2/db?w=1&tlsCertificateKeyFilePassword=***"
    )
    assert masked("mongodb://me@host/db") == "mongodb://me@host/db"
    assert masked("mongodb://host/db") == "mongodb://host/db"
    assert masked(None) == "None"
    assert len(masked("mongodb://" + "h" * 1_000)) == 200


def test_servers() -> None:
    target = parse("mongodb://u:p%40@a:1,b:2/name?W=1&readPreference=secondary")
    assert target == Target(
        "mongodb",
        "mongodb://u:p%40@a:1,b:2/name?W=1&readPreference=secondary",
        "name",
        "mongodb://u:***@a:1,b:2/name?W=1&readPreference=secondary",
        frozenset({"w", "readpreference"}),
    )
    assert parse("mongodb+srv://cluster.example.net/name").scheme == "mongodb"
    assert parse("mongodb://%2Frun%2Fm.sock/name").database == "name"
    assert parse("mongodb://[::1]:27017/name").database == "name"
    assert parse("mongodb://host/n%C3%A4me").database == "näme"


def test_options_of_other_drivers_are_passed_over() -> None:
    assert parse("mongodb://host/db?useUnifiedTopology=true&retryWrites=true").database == "db"


def test_the_private_server(tmp_path: Path) -> None:
    assert parse("embedded:///var/lib/x").place == "/var/lib/x"
    assert parse("embedded://data/x", base=tmp_path).place == str(tmp_path / "data" / "x")
    assert parse("embedded://data").place == str(Path.cwd() / "data")
    assert parse("embedded://a%20b?database=other", base=tmp_path) == Target(
        "embedded", str(tmp_path / "a b"), "other", "embedded://a%20b?database=other"
    )
    assert parse("embedded://data").database == "goscope"


def test_mongomock() -> None:
    assert parse("mongomock://").database == "goscope"
    assert parse("mongomock://name?database=d") == Target("mongomock", "name", "d", "mongomock://name?database=d")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (None, "a URL (str) is needed"),
        (b"mongodb://host/db", "a URL (str) is needed"),
        ("", "mongodb://"),
        ("redis://host/0", "mongodb://, mongodb+srv://, embedded://, mongomock://"),
        ("host/db", "the scheme must be one of"),
        ("mongodb://host", "a database is needed"),
        ("mongodb://host/", "a database is needed"),
        ("mongodb://host/?w=1", "a database is needed"),
        ("mongodb:///db", "a host is needed"),
        ("mongodb://user:x@/db", "a host is needed"),
        ("mongodb://host/a/b", "'a/b' is not allowed"),
        ("mongodb://host/a%20b", "is not allowed"),
        ("mongodb://host/" + "d" * 64, "up to 63 bytes"),
        ("mongodb://user:a@b@host/db", "%40"),
        ("mongodb://user:a/b@host/db", "%2F"),
        ("mongodb://user:a:b@host/db", "%3A"),
        ("mongodb://user:100%@host/db", "%25"),
        ("mongodb://host:port/db", "Port contains non-digit characters"),
        ("mongodb://host:99999/db", "Port must be an integer"),
        ("mongodb://host/db?maxPoolSize=x", "maxpoolsize must be an integer"),
        ("mongodb://host/db?readPreference=nope", "Must be one of: primary"),
        ("mongodb://a,b/db?directConnection=true", "multiple hosts"),
        ("mongodb://host/db?tlsCAFile=/does/not/exist", "not readable"),
        ("embedded://", "a folder is needed"),
        ("embedded://x?databse=y", "allowed is database"),
        ("embedded://x?database=", "database= is empty"),
        ("embedded://x?database=a.b", "'a.b' is not allowed"),
        ("mongomock://?w=1", "allowed is database"),
        ("mongomock://?nothing", "allowed is database"),
    ],
)
def test_what_is_refused_is_named_with_what_is_allowed(url: object, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(url, "GOSCOPE['URL']")
    assert str(caught.value).startswith("GOSCOPE['URL']=")
    assert said in str(caught.value)


def test_where_a_server_is() -> None:
    for url in (
        "mongodb://localhost/x",
        "mongodb://127.0.0.1:1,[::1]:2/x",
        "mongodb://u:p@127.0.0.1/x",
        "mongodb://%2Ft/x",
        "mongodb://LocalHost:27017/x",
        "mongodb://[::ffff:127.0.0.1]:1/x",
        "/tmp/mongodb-27017.sock",
    ):
        assert is_local(url)
    for url in (
        "mongodb://db.example.net/x",
        "mongodb://localhost,other/x",
        "mongodb+srv://localhost/x",
        "mongodb://localhost.evil.com/x",
        "mongodb://127.0.0.1.evil.com:1/x",
        "mongodb://localhost@evil.com/x",
        "mongodb://127.evil.com/x",
        "mongodb://evil.com/x?appname=me@localhost",
        "mongodb://evil.com/x@localhost",
        "mongodb://[::1].evil.com/x",
        "embedded://x",
    ):
        assert not is_local(url)


@pytest.mark.parametrize("hosts", ["h:1", "a,b"])
def test_srv_takes_one_name(hosts: str) -> None:
    with pytest.raises(ConfigurationError, match="one name of a host, without a port") as caught:
        parse(f"mongodb+srv://u:hunter2@{hosts}/db")
    assert "hunter2" not in str(caught.value)


def test_embedded_is_refused_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigurationError, match=r"GOSCOPE\['URL'\]='embedded://data': .*not Windows; use a server"):
        parse("embedded://data", "GOSCOPE['URL']")
    assert parse("mongodb://127.0.0.1/shop").scheme == "mongodb"
    assert parse("mongomock://").scheme == "mongomock"
