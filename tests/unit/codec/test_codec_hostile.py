"""The codec and what others wrote: it gives a value or Undecodable, and runs nothing."""

from __future__ import annotations

import pickle
import sys
import types
from collections import namedtuple
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from bson.binary import Binary
from bson.int64 import Int64
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goscope_django.exceptions import Undecodable
from goscope_django.mongodb.codec import Codec, _signed
from goscope_django.mongodb.codec.types import BUILTIN_TYPES
from tests.support.codec import KEY, Bomb, HmacSigner, envelope, reason, signing, wire, without_pickle
from tests.support.long import examples
from tests.support.texts import texts
from tests.support.values import (
    Colour,
    Permission,
    Point,
    values_and_pickled,
)

TAGS = [*(codec.tag for codec in BUILTIN_TYPES), "tree", "pickle"]
bson_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.sampled_from(
        ["os", "system", "tests.support.values", "Colour", "RED", "Permission", "../../etc/passwd", "Europe"]
    ),
    st.sampled_from([10**12, 2**62, -1]),
    st.builds(Int64, st.integers(-5, 5)),
)


def _documents(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)
    return st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(text, inner, max_size=3),
        st.builds(envelope, st.sampled_from(TAGS), inner),
        st.builds(envelope, st.sampled_from(TAGS), st.lists(st.lists(inner, max_size=2), max_size=3)),
        st.builds(lambda tag, data, p, s: envelope(tag, data, p=p, s=s), st.sampled_from(TAGS), inner, inner, inner),
    )


@settings(max_examples=examples(1500), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.recursive(bson_leaves, _documents, max_leaves=12))
def test_any_document_gives_a_value_or_undecodable(stored: Any) -> None:
    for codec in (signing, without_pickle):
        with suppress(Undecodable):
            codec.decode(KEY, wire(stored))


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values_and_pickled, st.data())
def test_a_value_with_one_part_replaced_gives_a_value_or_undecodable(value: Any, data: st.DataObject) -> None:
    stored = wire({"root": signing.encode(KEY, value)})
    places: list[tuple[Any, Any]] = []
    pending = [stored]
    while pending:
        container = pending.pop()
        for place in list(container) if isinstance(container, dict) else range(len(container)):
            places.append((container, place))
            if isinstance(container[place], dict | list):
                pending.append(container[place])
    container, place = data.draw(st.sampled_from(places))
    container[place] = data.draw(bson_leaves)
    with suppress(Undecodable):
        signing.decode(KEY, wire(stored)["root"])


def test_data_of_the_wrong_type_allocates_nothing() -> None:
    assert reason(envelope("bytearray", 10**12)) == "damaged"
    assert reason(envelope("binary", 10**12)) == "damaged"
    assert reason(envelope("decimal", 5)) == "damaged"
    assert reason(envelope("tuple", "abc")) == "damaged"
    assert reason(envelope("timedelta", [True, 0, 0])) == "damaged"


# Enumerations


def test_an_enumeration_imports_nothing() -> None:
    assert "this" not in sys.modules
    assert reason(envelope("enum", ["this", "Zen", "A", None])) == "damaged"
    assert "this" not in sys.modules


def test_an_enumeration_runs_no_module_getattr(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    module = types.ModuleType("goscope_lazy_module")
    module.__dict__["__getattr__"] = asked.append
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert reason(envelope("enum", [module.__name__, "Lazy", "A", None])) == "damaged"
    assert asked == []


@pytest.mark.parametrize(
    "data",
    [
        ["os", "system", "id", None],
        ["tests.support.values", "Basket", "x", None],
        ["tests.support.values", "Colour", "MISSING", None],
        ["tests.support.values", "Colour", None, 1],
        ["tests.support.values", "Permission", None, 1024],
        ["tests.support.values", "Permission", None, "1"],
        ["builtins", "int.__class__", "x", None],
        ["enum", "Enum", "x", None],
        ["tests.support.values", "Colour"],
        ["tests.support.values", "Pretender", "x", None],
        ["tests.support.values", "Ejecting", None, 1024],
        "tests.support.values",
    ],
)
def test_only_members_of_loaded_enumerations_are_found(data: Any) -> None:
    assert reason(envelope("enum", data)) == "damaged"
    assert signing.decode(KEY, envelope("enum", ["tests.support.values", "Colour", "RED", None])) is Colour.RED
    both = Permission.VIEW | Permission.CHANGE
    assert signing.decode(KEY, envelope("enum", ["tests.support.values", "Permission", None, 3])) is both


# Signatures


@pytest.fixture
def crater(tmp_path: Path) -> Path:
    return tmp_path / "crater"


@pytest.fixture
def bomb(crater: Path) -> bytes:
    return pickle.dumps([Bomb(crater)], 5)


def test_the_bomb_works(bomb: bytes, crater: Path) -> None:
    signed = envelope("pickle", 0, p=bomb, s=HmacSigner().sign(_signed("", KEY, bomb)))
    signing.decode(KEY, signed)
    assert crater.exists(), "otherwise the tests below prove nothing"


@pytest.mark.parametrize("tag", [codec.tag for codec in BUILTIN_TYPES])
def test_a_planted_pickle_is_never_loaded_under_any_tag(tag: str, bomb: bytes, crater: Path) -> None:
    for stored in (envelope(tag, bomb), envelope(tag, [bomb]), envelope(tag, [[bomb, bomb]], p=bomb, s=b"")):
        with suppress(Undecodable):
            signing.decode(KEY, wire(stored))
    assert not crater.exists()


def test_a_planted_pickle_is_data(bomb: bytes, crater: Path) -> None:
    assert signing.decode(KEY, wire(bomb)) == bomb
    assert signing.decode(KEY, wire([Binary(bomb, 128)])) == [Binary(bomb, 128)]
    assert not crater.exists()


def test_forged_pickles_are_not_loaded(bomb: bytes, crater: Path) -> None:
    good = HmacSigner().sign(_signed("", KEY, bomb))
    other_key = HmacSigner().sign(_signed("", "p:cache::1:other", bomb))
    other_secret = HmacSigner(b"another").sign(_signed("", KEY, bomb))
    for signature in (b"", b"x" * 32, good[:-1], good + b"x", other_key, other_secret, None, "text", 5, [good]):
        for root in (envelope("pickle", 0), envelope("tree", [envelope("pickle", 0)])):
            assert reason(wire({**root, "p": bomb, "s": signature})) == "forged"
    for payload in (bomb[:-1], bomb + b".", b"", None, "text", [bomb]):
        assert reason(wire(envelope("pickle", 0, p=payload, s=good))) == "forged"
    assert reason(wire(envelope("pickle", 0, p=bomb))) == "forged"
    assert reason(wire(envelope("pickle", bomb))) == "forged"
    assert not crater.exists()


def test_without_a_signer_even_a_signed_pickle_is_not_loaded(bomb: bytes, crater: Path) -> None:
    stored = envelope("pickle", 0, p=bomb, s=HmacSigner().sign(_signed("", KEY, bomb)))
    assert reason(stored, without_pickle) == "format"
    assert reason(stored, Codec()) == "format"
    assert not crater.exists()


def test_an_entry_moved_to_another_key_is_forged() -> None:
    stored = signing.encode(KEY, Point(1, 2))
    assert signing.decode(KEY, stored) == Point(1, 2)
    assert reason(stored, key=KEY + "x") == "forged"
    assert reason(stored, key=KEY[:-1] + "x") == "forged"
    assert reason(stored, key=KEY[:-1]) == "forged"


def test_an_entry_moved_to_another_collection_is_forged() -> None:
    here, there = signing.of("go_goscope_tasks"), signing.of("go_goscope_cache")
    stored = here.encode(KEY, Point(1, 2))
    assert here.decode(KEY, stored) == Point(1, 2)
    for other in (there, signing, signing.of("go_goscope_task")):
        assert reason(stored, other) == "forged"
    assert without_pickle.of("go_goscope_cache").decode(KEY, wire(there.encode(KEY, {1, 2}))) == {1, 2}


PRIME = 2**61 - 1
"""Python's hash of a number is its remainder by this one."""

COLLIDING: dict[str, Any] = {
    "int": [envelope("int", str(PRIME * n)) for n in range(1, 30_000)],
    "decimal": [envelope("decimal", str(PRIME * n)) for n in range(1, 30_000)],
    "tuple": [envelope("tuple", [envelope("int", str(PRIME * n))]) for n in range(1, 30_000)],
    "the same": [1] * 30_000,
}


@pytest.mark.parametrize("kind", COLLIDING)
@pytest.mark.parametrize("tag", ["set", "frozenset", "dict", "ordereddict", "son"])
def test_members_of_one_hash_are_not_compared_with_each_other(kind: str, tag: str) -> None:
    members = COLLIDING[kind]
    planted = envelope(tag, members if tag.endswith("set") else [[one, 1] for one in members])
    assert reason(planted) == "damaged"


def test_members_of_one_hash_that_are_ours_are_kept() -> None:
    few, many = {PRIME * n for n in range(1, 60)}, {PRIME * n for n in range(1, 500)}
    for value in (few, many, dict.fromkeys(many, 1), frozenset(many), {"x": [many]}):
        assert signing.decode(KEY, wire(signing.encode(KEY, value))) == value
    with pytest.raises(TypeError, match="pickle"):
        without_pickle.encode(KEY, many)


def test_what_is_signed_is_unambiguous() -> None:
    assert _signed("", "ab", b"c") != _signed("", "a", b"bc")
    assert _signed("a", "b", b"c") != _signed("", "ab", b"c") != _signed("ab", "", b"c")
    assert _signed("", "\ud800", b"") != _signed("", "?", b"")


@pytest.mark.parametrize("index", [-1, 1, 2**40, True, False, None, "0", 0.0, [0]])
def test_an_index_that_names_no_leaf_is_damaged(index: Any) -> None:
    stored: Any = signing.encode(KEY, Point(1, 2))
    assert reason(wire({**stored, "v": index})) == "damaged"


def test_a_class_that_is_gone_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("goscope_gone")
    gone = namedtuple("gone", ["x"])  # noqa: PYI024
    gone.__module__ = module.__name__
    module.__dict__["gone"] = gone
    monkeypatch.setitem(sys.modules, module.__name__, module)
    stored = signing.encode(KEY, gone(1))
    monkeypatch.delitem(sys.modules, module.__name__)
    assert reason(stored) == "damaged"


class Grumpy:
    """Can be pickled, but not rebuilt."""

    def __setstate__(self, state: Any) -> None:
        raise LookupError("the secret is 4711")

    def __getstate__(self) -> Any:
        return {"x": 1}


def test_an_object_that_refuses_to_be_rebuilt_is_damaged_and_the_message_holds_no_value() -> None:
    with pytest.raises(Undecodable) as caught:
        signing.decode(KEY, signing.encode(KEY, Grumpy()))
    assert caught.value.reason == "damaged"
    assert "4711" not in str(caught.value)
    assert "LookupError" in str(caught.value)
    assert "4711" not in texts(caught.value), "nothing is chained that quotes the value"
