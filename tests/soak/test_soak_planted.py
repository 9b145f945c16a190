"""A few seconds of the soak: see ``planted``. ``make soak`` runs it for a million values and 100,000 documents."""

from __future__ import annotations

import random

import pytest
from django.test import override_settings

from goscope_django.exceptions import Undecodable
from goscope_django.mongodb.codec import Codec
from tests.soak import planted


@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_values(seed: int) -> None:
    faults = planted.decode(4_000, seed)
    assert not faults.found, str(faults)


def test_planted_documents(mongo_url: str) -> None:
    with override_settings(GOSCOPE={"URL": mongo_url, "TEST": {"URL": mongo_url}}, CACHES=planted.CACHES):
        faults = planted.plant(250, 1)
    assert not faults.found, str(faults)


def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch, mongo_url: str) -> None:
    decode = Codec.decode

    def broken(self: Codec, key: str, stored: object) -> object:
        try:
            return decode(self, key, stored)
        except Undecodable as error:
            raise KeyError(error.reason) from None

    monkeypatch.setattr(Codec, "decode", broken)
    assert "decode: KeyError" in planted.decode(300, 1).found
    with override_settings(GOSCOPE={"URL": mongo_url, "TEST": {"URL": mongo_url}}, CACHES=planted.CACHES):
        assert planted.plant(250, 1).found


def test_the_same_seed_plants_the_same() -> None:
    document = {"_id": 1, "a": {"b": [1, 2, {"c": 3}]}, "d": "x"}
    one, two = (repr([planted.mutated_fields(document, random.Random(5), 0.5) for _ in range(50)]) for _ in "ab")
    assert one == two != repr([document] * 50)
