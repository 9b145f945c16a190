"""What tests of stored values share: a signer, BSON and back, envelopes made by hand, and a hostile pickle."""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import Any

import bson
import pytest

from goscope_django.exceptions import Undecodable
from goscope_django.mongodb.codec import CODEC_OPTIONS, FORMAT, Codec
from goscope_django.mongodb.codec.plain import RESERVED

KEY = "p:cache::1:key"


class HmacSigner:
    """A signer with a fixed key."""

    def __init__(self, key: bytes = b"a key for tests") -> None:
        self.key = key

    def sign(self, data: bytes) -> bytes:
        return hmac.digest(self.key, data, "sha256")

    def verify(self, data: bytes, signature: bytes) -> bool:
        return hmac.compare_digest(self.sign(data), signature)


signing = Codec(signer=HmacSigner())
without_pickle = Codec(signer=HmacSigner(), pickle=False)


def wire(stored: object) -> Any:
    """What a server would give back for ``stored``."""
    return bson.decode(bson.encode({"value": stored}, codec_options=CODEC_OPTIONS), codec_options=CODEC_OPTIONS)[
        "value"
    ]


def reason(stored: object, codec: Codec = signing, key: str = KEY) -> str:
    """Why ``stored`` can't be decoded."""
    with pytest.raises(Undecodable) as caught:
        codec.decode(key, stored)
    return caught.value.reason


def envelope(tag: object, data: object, **more: object) -> dict[str, Any]:
    return {RESERVED: FORMAT, "t": tag, "v": data, **more}


class Bomb:
    """Unpickling it creates the file that it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)
