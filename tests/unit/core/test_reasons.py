"""Why something failed, as operators are told: without secrets, values and arguments, and never an error itself."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goscope_django.core.reasons import FRAMES, LONGEST, reason, trace

SECRETS = [
    "mongodb://user:{}@db:27017/shop refused",
    "no answer from https://bank.example/v1/pay?key={}",
    "password={} is wrong",
    "the password is {}",
    '{{"api_key": "{}"}}',
    "Authorization: Bearer {}",
    "accessToken={}; retry",
    "invalid literal for int() with base 10: '{}'",
    "it was cut off here: 'begins with {}",
    'no such user: "{}"',
    "Set-Cookie: sessionid={}; path=/",
    "mail to {}@example.com failed",
    "{}-9f86d081884c7d659a2feaa0c55ad015",
]


@pytest.mark.parametrize("text", SECRETS)
def test_what_looks_like_a_secret_or_a_value_is_taken_out(text: str) -> None:
    assert "canary" not in str(reason(RuntimeError(text.format("canary"))))


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "ConnectionRefusedError: [Errno 111] Connection refused"),
        (TimeoutError("timed out after 5 s"), "TimeoutError: timed out after 5 s"),
        (KeyError("canary"), "KeyError"),
        (RuntimeError(), "RuntimeError"),
        (ValueError("can't do it, isn't it\n  so"), "ValueError: can't do it, isn't it so"),
        (
            AttributeError("'NoneType' object has no attribute 'x'"),
            "AttributeError: 'NoneType' object has no attribute 'x'",
        ),
        (RuntimeError("the tokenizer is slow; author: Bob"), "RuntimeError: the tokenizer is slow; author: Bob"),
        (RuntimeError("4111 1111 1111 1111 was refused"), "RuntimeError: *** was refused"),
        (RuntimeError("steered \x1b[31m \u202e"), "RuntimeError: steered ?[31m ?"),
    ],
)
def test_what_helps_is_kept(error: Exception, shown: str) -> None:
    assert str(reason(error)) == shown


def test_an_exception_that_can_not_be_told_has_its_type() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    assert str(reason(Broken())) == "Broken"


@given(st.text(max_size=3_000))
def test_any_text_is_one_short_printable_line(text: str) -> None:
    found = reason(RuntimeError(text)).text
    assert len(found) <= LONGEST and found.isprintable()


@pytest.mark.parametrize("text", ["a-", "password", "a.b", "1 ", "a-b@", "://", "http://", "pass_", "'", "\\'"])
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    reason(RuntimeError(text * 100_000))
    assert time.process_time() - began < 5


def test_a_trace_has_places_and_no_values() -> None:
    def deep(left: int, secret: str) -> None:
        if not left:
            raise ValueError(secret)
        deep(left - 1, secret)

    with pytest.raises(ValueError, match="canary") as caught:
        deep(20, "canary")
    found = trace(caught.value)
    assert len(found) == FRAMES
    assert all(one.startswith("core/test_reasons.py:") and one.endswith("deep") for one in found)
    assert trace(ValueError("never raised")) == []
