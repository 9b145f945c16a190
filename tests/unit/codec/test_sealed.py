"""Sealed values: what is signed as a whole, and compressed before that. What is not ours is never opened."""

from __future__ import annotations

import random
import struct
import zlib
from typing import Any

import bson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goscope_django.exceptions import InvalidValue, Undecodable
from goscope_django.mongodb.codec import ENTRY_OPTIONS, Codec
from goscope_django.mongodb.codec import sealed as seals
from goscope_django.mongodb.codec.sealed import MAX_OPENED, is_sealed
from tests.support.codec import KEY, HmacSigner, envelope, reason, signing, wire, without_pickle
from tests.support.values import Point, same, values_and_pickled

CACHE = "go_goscope_cache"
LARGE = {"rows": [{"name": f"row {number}", "ok": True, "n": number} for number in range(400)]}
sealed = signing.of(CACHE).sealing(every=True)
both = signing.of(CACHE).sealing(every=True, min_bytes=1_000)
compressing = signing.of(CACHE).sealing(min_bytes=1_000)
opening = signing.of(CACHE).sealing()


def stored(codec: Codec, value: object, key: str = KEY) -> Any:
    """What a server would give back."""
    data = bson.encode({"value": codec.pack(key, value)})
    return bson.decode(data, ENTRY_OPTIONS)["value"]


def resigned(found: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """``found`` with other contents, signed by whoever has the secret."""
    found = {**found, **changes}
    place, name = CACHE.encode(), KEY.encode()
    head = struct.pack(">HQQQ", 2, len(place), len(name), found.get("z", 0))
    return {**found, "s": HmacSigner().sign(head + place + name + found["v"])}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values_and_pickled)
def test_every_value_comes_back_from_every_codec(value: Any) -> None:
    for codec in (sealed, both, compressing, opening, sealed.bare):
        found = stored(codec, value)
        assert is_sealed(found) or codec not in (sealed, both)
        for reader in (sealed, both, compressing, opening):
            if is_sealed(found) or reader not in (sealed, both):
                # What is decoded may be changed in place, so each reader gets its own.
                assert same(reader.decode(KEY, stored(codec, value)), value)


@pytest.mark.parametrize("value", [None, True, 5, 1.5, "text", b"x", {"a": 1}, [1, 2], {"a": {1, 2}}, Point(1, "x")])
def test_only_what_is_sealed_is_taken_where_all_has_to_be(value: Any) -> None:
    assert same(sealed.decode(KEY, stored(sealed, value)), value)
    for other in (stored(opening, value), stored(signing, value)):
        assert reason(other, sealed) == reason(other, both) == "forged"


def test_it_is_bound_to_its_key_and_collection_and_to_the_secret() -> None:
    for value in (1, LARGE):
        found = stored(both, value)
        assert reason(found, both, key=f"{KEY}x") == "forged"
        for codec in (opening.of("go_goscope_flights"), sealed.of("go_goscope_flights")):
            assert reason(found, codec) == "forged"
        other = Codec(signer=HmacSigner(b"another")).of(CACHE).sealing(every=True)
        assert reason(found, other) == "forged"
        assert reason(found, Codec(pickle=False).of(CACHE).sealing()) == "format", "without a signer nothing is opened"
        assert reason(found, signing.of(CACHE)) == "format", "nor by other features"


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_changed_byte_or_field_is_forged(data: st.DataObject) -> None:
    found = stored(both, data.draw(st.sampled_from([0, "text", LARGE])))
    name = data.draw(st.sampled_from([name for name in found if name in ("v", "s")]))
    at, bit = data.draw(st.integers(0, len(found[name]) - 1)), 1 << data.draw(st.integers(0, 7))
    changed = found[name][:at] + bytes([found[name][at] ^ bit]) + found[name][at + 1 :]
    assert reason({**found, name: changed}, both) == "forged"


@pytest.mark.parametrize(
    "change",
    [
        {"s": b""},
        {"s": None},
        {"s": "text"},
        {"v": None},
        {"v": {"a": 1}},
        {"z": 5},
        {"z": 0},
        {"z": -1},
        {"z": True},
        {"z": 1.5},
        {"z": "9"},
        {"z": 2**62},
        {"z": [1]},
    ],
)
def test_other_shapes_are_forged(change: dict[str, Any]) -> None:
    for value in (5, LARGE):
        assert reason({**stored(both, value), **change}, both) == "forged"
    without = {name: one for name, one in stored(both, LARGE).items() if name != "z"}
    assert reason(without, both) == "forged", "compressed bytes are not taken for others"
    assert reason({**stored(both, 5), "__goscope__": 2}, both) == "format"


def test_a_seal_is_none_of_a_pickle_nor_the_other_way_round() -> None:
    pickled = stored(signing.of(CACHE), Point(1, "x"))
    assert reason(envelope("sealed", pickled["p"], s=pickled["s"]), opening) == "forged"
    found = stored(sealed, 5)
    assert reason(envelope("pickle", 0, p=found["v"], s=found["s"]), opening) == "forged"


def test_a_seal_inside_of_something_is_not_opened() -> None:
    inner = stored(sealed, 5)
    for outer in (envelope("tree", {"a": inner}), envelope("tuple", [inner])):
        assert reason(outer, opening) == "format"
    twice = resigned(inner, v=bson.encode({"v": inner}))
    assert reason(twice, sealed) == reason(twice, opening) == "format"
    assert opening.decode(KEY, {"a": 1, "t": "sealed"}) == {"a": 1, "t": "sealed"}, "a value that only looks like it"


def test_what_is_large_is_compressed_and_what_gains_nothing_is_not() -> None:
    found = stored(compressing, LARGE)
    assert len(found["v"]) * 3 < found["z"] and zlib.decompress(found["v"])
    noise = random.Random(1).randbytes(5_000)
    assert stored(compressing, noise) == noise, "kept only if it is smaller"
    assert "z" not in stored(both, noise)
    assert stored(compressing, "x" * 999) == "x" * 999
    assert is_sealed(stored(compressing, "x" * 1_000))
    assert stored(compressing, b"x" * 999) == b"x" * 999
    assert is_sealed(stored(compressing, b"x" * 1_000))
    assert stored(compressing, "é" * 499) == "é" * 499
    assert is_sealed(stored(compressing, "é" * 500)), "bytes count, not characters"
    assert stored(compressing, [{"a": 1}]) == [{"a": 1}]
    assert is_sealed(stored(compressing, [{"a": 1}] * 200))


@pytest.mark.parametrize("value", [None, False, 0, -(2**63), 1.5])
def test_a_number_stays_one_that_the_server_can_add_to(value: Any) -> None:
    assert stored(signing.of(CACHE).sealing(min_bytes=1), value) == value


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit that takes less time to reach."""
    monkeypatch.setattr(seals, "MAX_OPENED", 200_000)
    return 200_000


def test_no_bomb_is_ignited(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the secret could make one; even then no more is allocated than is allowed."""
    bomb = zlib.compress(b"\0" * (limit + 1), 9)
    for size in (limit, 1_000):
        assert reason(resigned(envelope("sealed", bomb), z=size), opening) == "damaged"
    assert reason(resigned(envelope("sealed", bomb), z=limit + 1), opening) == "forged"
    huge, given_out = zlib.compress(b"\0" * 50_000_000, 9), []
    make = zlib.decompressobj

    class Watched:
        def __init__(self) -> None:
            self.stream = make()

        def decompress(self, data: bytes, most: int) -> bytes:
            given_out.append(self.stream.decompress(data, most))
            return given_out[-1]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

    with monkeypatch.context() as patch:
        patch.setattr(zlib, "decompressobj", Watched)
        assert reason(resigned(envelope("sealed", huge), z=1_000), opening) == "damaged"
    assert [len(one) for one in given_out] == [1_001], "no more than what it states, and one byte to tell"
    data = bson.encode({"v": "x" * 2_000})
    whole = zlib.compress(data)
    assert opening.decode(KEY, resigned(envelope("sealed", whole), z=len(data))) == "x" * 2_000
    for torn, size in ((whole[:-1], len(data)), (whole + b"x", len(data)), (whole, len(data) - 1), (b"", 1)):
        assert reason(resigned(envelope("sealed", torn), z=size), opening) == "damaged"
    for odd in (b"", b"\0" * 5, bson.encode({}), bson.encode({"v": 1})[:-1], bson.encode({"w": 1})):
        assert reason(resigned(envelope("sealed", odd)), opening) == "damaged"


def test_deep_nesting_that_no_server_would_store_ends_in_an_error() -> None:
    inner = bson.encode({})
    for _ in range(20_000):
        inner = struct.pack("<i", len(inner) + 8) + b"\x03v\0" + inner + b"\0"
    packed = zlib.compress(inner)
    with pytest.raises(Undecodable):
        opening.decode(KEY, resigned(envelope("sealed", packed), z=len(inner)))


def test_more_than_is_ever_opened_is_not_compressed(limit: int) -> None:
    assert MAX_OPENED == 64 * 1024 * 1024
    text = "x" * (limit + 1)
    assert compressing.pack(KEY, text) is text
    assert "z" not in both.pack(KEY, text)  # type: ignore[operator]
    just = "x" * (limit - 13)
    assert compressing.decode(KEY, stored(compressing, just)) == just


def test_without_pickles_values_are_sealed_all_the_same() -> None:
    codec = without_pickle.of(CACHE).sealing(every=True)
    assert codec.decode(KEY, stored(codec, {1, 2})) == {1, 2}
    assert reason(stored(sealed, Point(1, "x")), codec) == "format"


def test_a_codec_without_a_signer_seals_nothing() -> None:
    codec = Codec(pickle=False).sealing()
    assert codec.pack(KEY, "x") == "x"
    assert not codec.takes_sealed_only
    for options in ({"every": True}, {"min_bytes": 1}):
        with pytest.raises(InvalidValue, match="signer"):
            Codec(pickle=False).sealing(**options)


def test_what_is_kept_opened_need_not_be_verified_again() -> None:
    found = both.opened(KEY, stored(both, LARGE))
    assert both.bare.decode(KEY, found) == LARGE
    assert wire(found) == LARGE
    assert opening.opened(KEY, "plain") == "plain"
    with pytest.raises(Undecodable):
        both.opened(KEY, "plain")
