"""Pickles are signed by SECRET_KEY, and verified by its fallbacks."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.utils.crypto import salted_hmac

from goscope_django.codec import DjangoSigner, make_codec
from goscope_django.mongodb.codec import _signed
from tests.support.codec import KEY, Bomb, envelope, reason
from tests.support.values import Point

codec = make_codec()
NEW, OLD, OTHER = "new-secret-" + "n" * 50, "old-secret-" + "o" * 50, "other-secret-" + "x" * 50


def test_the_signature_is_djangos_salted_hmac() -> None:
    with override_settings(SECRET_KEY=NEW):
        expected = salted_hmac("goscope_django.codec", b"data", algorithm="sha256").digest()
        assert DjangoSigner().sign(b"data") == expected


def test_secrets_rotate() -> None:
    with override_settings(SECRET_KEY=OLD):
        stored = codec.encode(KEY, Point(1, 2))
        assert codec.decode(KEY, stored) == Point(1, 2)
    with override_settings(SECRET_KEY=NEW):
        assert reason(stored, codec) == "forged"
    with override_settings(SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=[OTHER, OLD]):
        assert codec.decode(KEY, stored) == Point(1, 2)
        fresh = codec.encode(KEY, Point(1, 2))
    with override_settings(SECRET_KEY=NEW):
        assert codec.decode(KEY, fresh) == Point(1, 2)
    with override_settings(SECRET_KEY=OLD):
        assert reason(fresh, codec) == "forged"


def test_secrets_may_be_bytes() -> None:
    with override_settings(SECRET_KEY=NEW.encode()):
        stored = codec.encode(KEY, Point(1, 2))
    with override_settings(SECRET_KEY=OLD, SECRET_KEY_FALLBACKS=[NEW]):
        assert codec.decode(KEY, stored) == Point(1, 2)


@pytest.mark.parametrize("fallbacks", [[], [""], [b""], [OTHER]])
def test_a_pickle_signed_by_a_secret_that_is_not_ours_is_never_loaded(tmp_path: Path, fallbacks: list[Any]) -> None:
    crater = tmp_path / "crater"
    bomb = pickle.dumps([Bomb(crater)], 5)

    def signed_by(secret: str) -> dict[str, Any]:
        signature = salted_hmac("goscope_django.codec", _signed("", KEY, bomb), secret, algorithm="sha256").digest()
        return envelope("pickle", 0, p=bomb, s=signature)

    for secret in ("", OLD):
        with override_settings(SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=fallbacks):
            assert reason(signed_by(secret), codec) == "forged"
        assert not crater.exists()
    with override_settings(SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=[OLD]):
        codec.decode(KEY, signed_by(OLD))
    assert crater.exists(), "otherwise the lines above prove nothing"


def test_without_a_secret_nothing_is_signed() -> None:
    with override_settings(SECRET_KEY=""), pytest.raises(ImproperlyConfigured):
        codec.encode(KEY, Point(1, 2))


def test_no_secret_shows() -> None:
    with override_settings(SECRET_KEY=NEW):
        signer = DjangoSigner()
        signer.sign(b"x")
        assert NEW not in repr(signer) + repr(vars(signer)) + repr(make_codec())
