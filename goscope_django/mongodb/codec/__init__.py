"""Python values to BSON and back, without loss, and without running anything that the database holds.

Rules of this package:

- A value that BSON holds without loss is stored as it is. Any shell and the Node adapter can read it.
- Anything else becomes an *envelope*, a sub-document that begins with a reserved key. The marker is inside the
  value: the Node adapter replaces ``value`` as a whole, and would leave a marker beside it as it was::

      {"__goscope__": 1, "t": "decimal", "v": "1.50"}                       one tagged value
      {"__goscope__": 1, "t": "tree", "v": {"price": {... decimal ...}}}    a dict or list that holds tagged values
      {"__goscope__": 1, "t": "pickle", "v": 0, "p": bytes, "s": bytes}     pickled, signed

  Only a root that is an envelope is searched for inner ones: reading a plain value costs no search.
- What neither BSON nor a tag can hold is pickled, all such leaves of one value together in a list: ``p`` of the
  root is the pickle, ``s`` its signature, the leaf an index. The signature covers format version, collection,
  full key and pickle, and is checked before the unpickler sees a byte. Without a signer nothing is pickled, and
  nothing unpickled.
- The cache may *seal* its values, which signs and compresses all of one: see ``sealed``.
- ``decode`` may be given anything that is stored: it returns a value or raises ``Undecodable``, nothing else.

Identity is not kept: two references to one list come back as two lists, except among pickled leaves. A value that
contains itself, or is nested deeper than ``MAX_DEPTH``, is pickled as a whole, which keeps all identity.
"""

from __future__ import annotations

import copy
import pickle
import struct
from collections.abc import Sequence
from typing import Any, Final

from goscope_django.exceptions import InvalidType, InvalidValue, Undecodable
from goscope_django.mongodb.codec.plain import (
    ATOMS,
    CHECKS,
    CODEC_OPTIONS,
    ENTRY_OPTIONS,
    MAX_DEPTH,
    READY,
    RESERVED,
    TooDeep,
    encodable,
    packed,
    plain_keys,
    settle,
    settled,
    surely_plain,
)
from goscope_django.mongodb.codec.sealed import SEALED, Seal, Signer, is_sealed
from goscope_django.mongodb.codec.types import BUILTIN_TYPES, UNKNOWN, TypeCodec

__all__ = ["BUILTIN_TYPES", "CODEC_OPTIONS", "ENTRY_OPTIONS", "MAX_DEPTH", "Codec", "Signer", "TypeCodec"]

FORMAT: Final = 1
"""Version of the envelope and of what is signed. Another one is read as ``Undecodable("format")``."""

PICKLE_PROTOCOL: Final = 5


class Codec:
    """Encodes values for one kind of entry. Immutable, so one instance may serve all threads.

    ``signer`` and ``pickle=True`` together allow pickles. ``types`` are the tagged types; the first codec that
    matches an exact type wins. Every collection has a codec of its own: see ``of``; one that seals is ``sealing``.
    """

    def __init__(
        self, *, signer: Signer | None = None, pickle: bool = True, types: Sequence[TypeCodec] = BUILTIN_TYPES
    ) -> None:
        self._pickles = _Pickles(signer, "") if pickle and signer is not None else None
        self._types = _Types(types)
        self._signer = signer
        self._seal: Seal | None = None
        self._collection = ""

    def of(self, collection: str) -> Codec:
        """The same codec for the values of ``collection``: what is signed for one is refused in any other."""
        found = copy.copy(self)
        found._collection = collection
        if self._pickles is not None:
            found._pickles = self._pickles.of(collection)
        if self._seal is not None:
            found._seal = self._seal.of(collection)
        return found

    def sealing(self, *, every: bool = False, min_bytes: int | None = None) -> Codec:
        """The same codec for entries of the cache, which may be sealed. It opens every sealed value.

        ``every``: it seals all of them, and takes none that is not sealed. ``min_bytes``: it compresses (and so seals)
        those of so many bytes and more. Without a signer it neither seals nor opens. Raises ``InvalidValue`` if it
        would have to.
        """
        found = copy.copy(self)
        if self._signer is not None:
            found._seal = Seal(self._signer, self._collection, required=every, min_bytes=min_bytes)
        elif every or min_bytes is not None:
            raise InvalidValue("a codec without a signer can't seal values")
        return found

    @property
    def bare(self) -> Codec:
        """The same codec, which neither seals nor opens."""
        found = copy.copy(self)
        found._seal = None
        return found

    @property
    def takes_sealed_only(self) -> bool:
        """Whether what is not sealed is refused."""
        return self._seal is not None and self._seal.required

    def encode(self, key: str, value: object) -> object:
        """``value`` as something that BSON stores without loss. ``key`` is the full stored key, for the signature.
        Not sealed.

        A plain value is returned itself, not a copy. Raises ``InvalidType`` (a ``TypeError``) for a type that only
        a pickle could hold when pickles are not allowed, ``InvalidValue`` (a ``ValueError``) for one nested too
        deeply even for that, and whatever the pickler raises. The size is not checked.
        """
        kind = type(value)
        if kind in ATOMS:
            return value
        check = CHECKS.get(kind)
        if check is not None and check(value):
            return value
        writer = _Writer(self._types, pickles=self._pickles is not None)
        try:
            if (kind is dict or kind is list) and surely_plain(value):
                return value
            node = writer.node(value)
        except (TooDeep, RecursionError):
            if self._pickles is None:
                raise InvalidValue(
                    f"a {kind.__qualname__} that holds itself or is nested deeper than {MAX_DEPTH} levels "
                    f"can't be stored without a pickle"
                ) from None
            writer = _Writer(self._types, pickles=True)
            node = writer.leaf(value)
        if not writer.tagged:
            return value
        root = node if type(node) is dict and RESERVED in node else _envelope("tree", node)
        if writer.leaves and self._pickles is not None:  # leaf() has refused without pickles
            root["p"], root["s"] = self._pickles.dump(key, writer.leaves)
        return root

    def pack(self, key: str, value: object) -> object:
        """``encode``, where a plain dict comes as its BSON, which the driver does not encode once more; sealed, if this
        codec seals."""
        found: object = packed(value) if type(value) is dict else None
        if found is None:
            found = self.encode(key, value)
        seal = self._seal
        return found if seal is None or not seal.closes else seal.closed(key, found)

    def opened(self, key: str, stored: object) -> Any:
        """What is in a sealed value, for ``decode`` of a ``bare`` codec; of one that is not sealed itself.

        Raises ``Undecodable``. Without it ``decode`` opens by itself.
        """
        return stored if self._seal is None else self._seal.opened(key, stored)

    def decode(self, key: str, stored: object) -> object:
        """The value of which ``encode`` made ``stored``; for a foreign document what PyMongo makes of it.

        ``stored`` is given away: its containers may become part of the result and are then changed in place.
        Raises only ``Undecodable``: ``forged`` (a signature is wrong, or of another key), ``damaged`` (the right
        format, but it can't be rebuilt), ``format`` (an unknown version or tag, or a pickle where none is allowed).
        """
        seal = self._seal
        if seal is not None and (seal.required or (type(stored) is dict and is_sealed(stored))):
            stored = seal.opened(key, stored)
        kind = type(stored)
        if kind in READY and (kind is not str or encodable(stored)):  # type: ignore[arg-type]
            return stored
        try:
            if kind is dict and RESERVED in stored:  # type: ignore[operator]
                return _Reader(self._types, self._pickles, key, stored).open(stored)  # type: ignore[arg-type]
            if kind is dict or kind is list:
                settle(stored)
                return stored
            if kind is str:
                raise Undecodable("damaged", "a stored text is not valid UTF-8")
            return settled(stored)
        except Undecodable:
            raise
        except Exception as error:  # noqa: BLE001 - it becomes ours below
            reason = type(error).__name__
        # Not chained: an error of a pickle, of JSON or of a constructor quotes what it was given.
        raise Undecodable("damaged", f"a stored value can't be rebuilt: {reason}")


class _Types:
    """The tagged types of one codec: by exact type, by base class and by tag."""

    def __init__(self, types: Sequence[TypeCodec]) -> None:
        self._by_type: dict[type, TypeCodec] = {}
        self._by_tag: dict[str, TypeCodec] = {}
        for codec in types:
            if self._by_tag.setdefault(codec.tag, codec) is not codec or codec.tag in ("tree", "pickle", SEALED):
                raise InvalidValue(f"the tag {codec.tag!r} is taken; each TypeCodec needs its own")
            for kind in codec.types:
                self._by_type.setdefault(kind, codec)
        self._by_base = [codec for codec in types if codec.subclasses]

    def of(self, value: object) -> TypeCodec | None:
        return self._by_type.get(type(value)) or next(
            (codec for codec in self._by_base if isinstance(value, codec.types)), None
        )

    def tagged(self, tag: object) -> TypeCodec | None:
        return self._by_tag.get(tag) if isinstance(tag, str) else None


class _Pickles:
    """Pickles of leaves, signed for one stored key of one collection."""

    def __init__(self, signer: Signer, collection: str) -> None:
        self._signer = signer
        self._collection = collection

    def of(self, collection: str) -> _Pickles:
        return _Pickles(self._signer, collection)

    def dump(self, key: str, leaves: list[object]) -> tuple[bytes, bytes]:
        """The pickle and its signature."""
        try:
            data = pickle.dumps(leaves, PICKLE_PROTOCOL)
        except RecursionError as error:
            raise InvalidValue("the value is nested too deeply to be stored, also as a pickle") from error
        return data, self._signer.sign(_signed(self._collection, key, data))

    def load(self, key: str, data: object, signature: object) -> list[object]:
        """The leaves of a pickle that we signed for ``key``. Raises ``Undecodable``."""
        if type(data) is not bytes or type(signature) is not bytes:
            raise Undecodable("forged", "a stored pickle has no signature")
        if not self._signer.verify(_signed(self._collection, key, data), signature):
            raise Undecodable("forged", "the signature of a stored pickle is not ours for this collection and key")
        leaves = pickle.loads(data)  # noqa: S301 - we signed these very bytes for this very place
        if type(leaves) is not list:
            raise Undecodable("damaged", "a stored pickle is not a list")
        return leaves


def _signed(collection: str, key: str, data: bytes) -> bytes:
    """What the signature covers. Lengths go first, so no two different inputs give the same bytes."""
    place, name = collection.encode(), key.encode("utf-8", "surrogatepass")
    return struct.pack(">HQQ", FORMAT, len(place), len(name)) + place + name + data


def _envelope(tag: str, data: object) -> dict[str, object]:
    return {RESERVED: FORMAT, "t": tag, "v": data}


class _Writer:
    """Builds the tree of one value and collects the leaves that must be pickled."""

    __slots__ = ("_depth", "_keys", "_pickles", "_types", "leaves", "tagged")

    def __init__(self, types: _Types, *, pickles: bool) -> None:
        self._types = types
        self._pickles = pickles
        self._depth = 0
        self._keys: set[str] = set()
        self.leaves: list[object] = []
        self.tagged = False

    def node(self, value: Any) -> Any:
        kind = type(value)
        if kind in ATOMS:
            return value
        check = CHECKS.get(kind)
        if check is not None and check(value):
            return value
        container = kind is list or (kind is dict and self._plain_keys(value))
        levels = 1 if container else 3  # at most: the envelope, a list and pairs in it
        self._depth += levels
        if self._depth > MAX_DEPTH:
            raise TooDeep
        result: object
        if not container:
            result = self._tag(value)
        elif kind is list:
            result = [item if type(item) in ATOMS else self.node(item) for item in value]
        else:
            result = {key: item if type(item) in ATOMS else self.node(item) for key, item in value.items()}
        self._depth -= levels
        return result

    def _plain_keys(self, value: dict[Any, Any]) -> bool:
        for key in value:
            if type(key) is not str:
                return False
        if not self._keys.issuperset(value):  # records of one shape are looked at once
            if not plain_keys(value):
                return False
            self._keys.update(value)
        return True

    def _tag(self, value: object) -> dict[str, object]:
        codec = self._types.of(value)
        if codec is None:
            return self.leaf(value)
        data = codec.pack(value, self.node)
        if data is UNKNOWN:
            return self.leaf(value)
        self.tagged = True
        return _envelope(codec.tag, data)

    def leaf(self, value: object) -> dict[str, object]:
        if not self._pickles:
            kind = type(value)
            raise InvalidType(
                f"a value of type {kind.__module__}.{kind.__qualname__} can't be stored as BSON; it needs a pickle, "
                f"which takes pickle=True and a signer (in CACHES: an OPTIONS['SERIALIZER'] other than 'bson')"
            )
        self.tagged = True
        self.leaves.append(value)
        return _envelope("pickle", len(self.leaves) - 1)


class _Reader:
    """Rebuilds the value of one root envelope."""

    __slots__ = ("_key", "_leaves", "_pickles", "_root", "_types")

    def __init__(self, types: _Types, pickles: _Pickles | None, key: str, root: Any) -> None:
        self._types = types
        self._pickles = pickles
        self._key = key
        self._root = root
        self._leaves: list[object] | None = None

    def node(self, stored: Any) -> Any:
        kind = type(stored)
        if kind in READY:
            return stored
        if kind is dict:
            if RESERVED in stored:
                return self.open(stored)
            return {key: item if type(item) in READY else self.node(item) for key, item in stored.items()}
        if kind is list:
            return [item if type(item) in READY else self.node(item) for item in stored]
        return settled(stored)

    def open(self, envelope: dict[str, Any]) -> object:
        if envelope[RESERVED] != FORMAT:
            raise Undecodable("format", f"a stored value is of another format than {FORMAT}")
        tag, data = envelope.get("t"), envelope.get("v")
        if tag == "tree":
            return self.node(data)
        if tag == "pickle":
            return self._leaf(data)
        codec = self._types.tagged(tag)
        if codec is None:
            raise Undecodable("format", "a stored value has a tag that is not known here")
        return codec.unpack(data, self.node)

    def _leaf(self, index: object) -> object:
        if self._leaves is None:
            if self._pickles is None:
                raise Undecodable("format", "a stored value is pickled, and pickles are not allowed here")
            self._leaves = self._pickles.load(self._key, self._root.get("p"), self._root.get("s"))
        if type(index) is not int or not 0 <= index < len(self._leaves):
            raise Undecodable("damaged", "a stored value names a pickled part that is not there")
        return self._leaves[index]
