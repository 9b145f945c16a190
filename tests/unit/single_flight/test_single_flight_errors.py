"""Exceptions as data, and back: the same class where it is a known one, never anything that runs."""

from __future__ import annotations

from typing import Any

import bson
import pytest
from django.core.exceptions import (
    BadRequest,
    ObjectDoesNotExist,
    PermissionDenied,
    SuspiciousOperation,
    ValidationError,
)
from django.db import IntegrityError
from django.http import Http404
from django.utils.translation import gettext_lazy
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.exceptions import APIException, MethodNotAllowed, NotAuthenticated, Throttled

from goscope_django.exceptions import CircuitOpen, LockNotAcquired, RemoteError
from goscope_django.single_flight.errors import pack, unpack


def through(error: Exception) -> Exception:
    """``error`` as it comes out of the database."""
    return unpack(bson.decode(bson.encode(pack(error))))


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        ValueError("a", 1, None, b"x", 1.5, True),
        KeyError("k"),
        ZeroDivisionError("division by zero"),
        TimeoutError("late"),
        FileNotFoundError(2, "no such file"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(3),
        Http404("gone"),
        PermissionDenied(),
        BadRequest("bad"),
        SuspiciousOperation("odd"),
        ObjectDoesNotExist("none"),
        IntegrityError("twice"),
        RemoteError("far", error_type="x.Y"),
        LockNotAcquired("held", key="k"),
        CircuitOpen("open", name="n", retry_after=3.5),
        APIException("down"),
        Throttled(wait=7),
        MethodNotAllowed("PUT"),
        NotAuthenticated(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_known_class_comes_back_as_it_was(error: Exception) -> None:
    back = through(error)
    assert type(back) is type(error)
    assert (back.args, str(back)) == (error.args, str(error))
    more = {"status_code": error.status_code} if isinstance(error, APIException) else {}
    assert vars(back) == vars(error) | more
    assert back.__traceback__ is None


def test_the_errors_of_forms_come_back_with_codes_and_parameters() -> None:
    one = ValidationError("%(n)s is too many", code="many", params={"n": 3})
    for error in (one, ValidationError([one, "two"]), ValidationError({"a": [one], "b": ["x", "y"]})):
        back = through(error)
        assert type(back) is ValidationError
        assert back.messages == error.messages
        assert str(back) == str(error)
    back = through(one)
    assert isinstance(back, ValidationError)
    assert (back.code, back.params) == ("many", {"n": 3})


def test_a_lazy_text_becomes_a_text() -> None:
    assert str(through(Http404(gettext_lazy("No")))) == "No"


class Odd(PermissionDenied):
    def __init__(self, one: object, *, two: int) -> None:
        super().__init__("odd")
        self.one, self.two = one, two


class Plain(Exception):
    pass


class Full(APIException):
    status_code = 507
    default_detail = "full"


class Missing(LookupError):
    pass


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Hostile(APIException):
    @property
    def status_code(self) -> int:  # type: ignore[override]
        raise RuntimeError


def test_an_unknown_class_keeps_its_nearest_known_base_its_text_and_what_is_plain() -> None:
    back = through(Odd(object(), two=2))
    assert isinstance(back, RemoteError)
    assert isinstance(back, PermissionDenied)
    assert str(back) == "odd"
    assert back.error_type.endswith("test_single_flight_errors.Odd")
    assert vars(back)["two"] == 2
    assert isinstance(through(Missing("x")), LookupError)


def test_an_unknown_class_without_a_known_base_is_a_remote_error() -> None:
    assert type(through(Plain("x"))) is RemoteError
    assert isinstance(through(Broken()), RemoteError)
    assert isinstance(through(Hostile()), RemoteError)


def test_an_unknown_rest_error_keeps_its_status_and_details() -> None:
    back = through(Full())
    assert isinstance(back, APIException)
    assert isinstance(back, RemoteError)
    assert (back.status_code, back.detail) == (507, "full")


def test_arguments_that_are_no_data_become_a_text() -> None:
    back = through(ValueError(object))
    assert type(back) is ValueError
    assert back.args == ("<class 'object'>",)


@pytest.mark.parametrize("odd", ["\ud800", {"a\0b": 1}, {"\ud800": 1}, 2**70, {1: 2}], ids=repr)
def test_what_bson_can_not_hold_is_no_obstacle(odd: Any) -> None:
    error = ValueError(odd)
    error.odd = odd  # type: ignore[attr-defined]
    assert type(through(error)) is ValueError


def test_a_group_of_exceptions_becomes_a_remote_error() -> None:
    back = through(ExceptionGroup("many", [ValueError("x")]))
    assert type(back) is RemoteError
    assert back.error_type == "builtins.ExceptionGroup"


def test_no_traceback_and_no_cause_is_stored() -> None:
    def fail() -> None:
        try:
            raise KeyError("secret-cause")
        except KeyError as cause:
            raise ValueError("x") from cause

    with pytest.raises(ValueError, match="x") as caught:
        fail()
    assert "secret-cause" not in repr(pack(caught.value))
    assert "Traceback" not in repr(pack(caught.value))


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "builtins.object", "subprocess.Popen", "django.http.HttpResponse", "", "builtins."],
)
def test_what_stands_in_the_database_is_never_looked_up_elsewhere(name: str) -> None:
    back = unpack({"type": name, "base": name, "message": "m", "args": ["echo x"], "state": {}})
    assert isinstance(back, Exception)
    assert back.args == ("echo x",) or isinstance(back, RemoteError)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text().filter(lambda t: "\0" not in t), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(PLAIN, max_size=3), st.sampled_from([ValueError, Http404, KeyError, Plain, Odd]))
def test_whatever_is_raised_comes_back(args: list[Any], kind: type[Exception]) -> None:
    error = kind.__new__(kind, *args)
    error.args = tuple(args)
    back = through(error)
    if kind in (ValueError, Http404, KeyError):
        assert type(back) is kind
        assert list(back.args) == args
    else:
        assert isinstance(back, RemoteError)
