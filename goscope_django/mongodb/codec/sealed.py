"""Sealed values: signed as a whole, and compressed before that where they are large.

Rules of this file:

- A sealed value is one envelope whose ``v`` is bytes, the BSON of the value as it would stand there otherwise. So
  whoever replaces the value replaces its signature with it, as Node's ``set`` does::

      {"__goscope__": 1, "t": "sealed", "v": bytes, "s": signature}             signed
      {"__goscope__": 1, "t": "sealed", "v": bytes, "s": signature, "z": size}  compressed (zlib), then signed

- It is always signed, also one that is only to be compressed. Nothing is decompressed or decoded that we did not make.
- The signature covers the format, the collection, the full key, ``z`` and the bytes. It is none of a pickle, nor the
  other way round: what is signed begins with another number.
- Decompressing stops at the size that is stated, and never gives more than ``MAX_OPENED``.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final, Protocol, TypeGuard

import bson
from bson.raw_bson import RawBSONDocument

from goscope_django.exceptions import Undecodable
from goscope_django.mongodb.codec.plain import ENTRY_OPTIONS, RESERVED

SEALED: Final = "sealed"
"""The tag."""

MAX_OPENED: Final = 4 * 16 * 1024 * 1024
"""The largest BSON, in bytes, that is compressed: four times what the server stores in one document. A larger one is
stored as it is, so the server refuses it."""

LEVEL: Final = 1
"""Of zlib. Level 6 makes rows of data a fifth smaller, and takes two to five times as long."""

_FORMAT: Final = 2
"""The number that what is signed begins with. A pickle's is 1."""
_FRAME: Final = 13
"""Bytes of the BSON of ``{"v": text}`` besides the text."""
_ENVELOPE: Final = 96
"""Bytes that the envelope takes besides the compressed ones, about."""
_TINY: Final = frozenset({type(None), bool, int, float})


class Signer(Protocol):
    """Signs and verifies bytes; ``verify`` compares in constant time and returns False rather than raise."""

    def sign(self, data: bytes) -> bytes:
        """The signature of ``data``."""

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is one of ``data``."""


class Seal:
    """Seals the values of one collection, and opens them. Immutable.

    ``required``: every value is sealed, and what is not is refused. ``min_bytes``: values of so many bytes and more are
    compressed if that makes them smaller; ``None``: none are.
    """

    def __init__(
        self, signer: Signer, collection: str = "", *, required: bool = False, min_bytes: int | None = None
    ) -> None:
        self.required = required
        self.closes = required or min_bytes is not None
        """Whether any value is sealed."""
        self._signer = signer
        self._collection = collection
        self._min_bytes = min_bytes

    def of(self, collection: str) -> Seal:
        """The same for another collection."""
        return Seal(self._signer, collection, required=self.required, min_bytes=self._min_bytes)

    def closed(self, key: str, packed: Any) -> Any:
        """``packed``, a value as it would be stored, sealed; or itself, where it need not be."""
        least = self._min_bytes
        if not self.required and (least is None or _surely_smaller(packed, least)):
            return packed
        data = bson.encode({"v": packed})
        size: int | None = None
        if least is not None and least <= len(data) - _FRAME and len(data) <= MAX_OPENED:
            small = zlib.compress(data, LEVEL)
            if len(small) + _ENVELOPE < len(data):
                data, size = small, len(data)
        if size is None and not self.required:
            return packed
        signature = self._signer.sign(self._signed(key, size, data))
        found: dict[str, Any] = {RESERVED: 1, "t": SEALED, "v": data, "s": signature}
        if size is not None:
            found["z"] = size
        return found

    def opened(self, key: str, stored: object) -> Any:
        """What is in a sealed value; of one that is not sealed itself. Raises ``Undecodable``."""
        if not is_sealed(stored):
            if self.required:
                raise Undecodable(
                    "forged", "a stored value is not signed, and this cache takes none that is not (SIGN)"
                )
            return stored
        data, signature, size = stored.get("v"), stored.get("s"), stored.get("z")
        if stored[RESERVED] != 1:
            raise Undecodable("format", "a sealed value is of another format than 1")
        if type(data) is not bytes or type(signature) is not bytes:
            raise Undecodable("forged", "a sealed value has no signature")
        if size is not None and (type(size) is not int or not 0 < size <= MAX_OPENED):
            raise Undecodable("forged", "a sealed value states no size that it can have")
        if not self._signer.verify(self._signed(key, size, data), signature):
            raise Undecodable("forged", "the signature of a stored value is not ours for this collection and key")
        try:
            return bson.decode(data if size is None else _decompressed(data, size), ENTRY_OPTIONS)["v"]
        except Undecodable:
            raise
        except Exception as error:  # noqa: BLE001 - it becomes ours below
            reason = type(error).__name__
        # Not chained: the error of a decoder may quote what it was given.
        raise Undecodable("damaged", f"a sealed value can't be decoded: {reason}")

    def _signed(self, key: str, size: int | None, data: bytes) -> bytes:
        # Lengths go first, so no two different inputs give the same bytes.
        place, name = self._collection.encode(), key.encode("utf-8", "surrogatepass")
        return struct.pack(">HQQQ", _FORMAT, len(place), len(name), size or 0) + place + name + data


def is_sealed(stored: object) -> TypeGuard[dict[str, Any]]:
    """Whether ``stored`` looks like a sealed value. What it is only its signature says."""
    return type(stored) is dict and stored.get("t") == SEALED and RESERVED in stored


def _surely_smaller(packed: object, least: int) -> bool:
    """Whether ``packed`` takes fewer bytes than ``least``, as far as that is seen without encoding it."""
    kind = type(packed)
    if kind is str:
        return 4 * len(packed) < least  # type: ignore[arg-type]  # a character takes up to four bytes
    if kind is bytes:
        return len(packed) < least  # type: ignore[arg-type]
    return kind in _TINY or (isinstance(packed, RawBSONDocument) and len(packed.raw) < least)


def _decompressed(data: bytes, size: int) -> bytes:
    """``data`` decompressed, which must give exactly ``size`` bytes."""
    stream = zlib.decompressobj()
    found = stream.decompress(data, size + 1)
    if len(found) != size or not stream.eof or stream.unused_data:
        raise Undecodable("damaged", "a compressed value has another size than it states")
    return found
