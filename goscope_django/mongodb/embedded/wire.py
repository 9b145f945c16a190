"""One command to a ``mongod`` on a Unix socket, without a client: the process that starts the server may fork next.

A ``MongoClient`` brings threads that outlive its ``close`` by up to a second, and a fork beside living threads is what
Python 3.12 and later warn of. The launcher needs five commands and no pool, so it speaks OP_MSG itself.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bson

_HEADER = struct.Struct("<iiii")  # length, request id, id that is answered, operation
_OP_MSG = 2013
_NO_FLAGS_ONE_DOCUMENT = b"\0\0\0\0\0"


def command(path: Path, document: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
    """Run one command on the database ``admin`` and return the server's reply, which may be an error (``ok`` is 0).

    ``timeout`` is in seconds, for the connection and for each part of the answer. Raises ``OSError`` if nothing listens
    on ``path``, if the connection breaks, and if the time has passed. One connection, one round trip.
    """
    body = _NO_FLAGS_ONE_DOCUMENT + bson.encode({**document, "$db": "admin"})
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        connection.sendall(_HEADER.pack(_HEADER.size + len(body), 1, 0, _OP_MSG) + body)
        length = int(_HEADER.unpack(_receive(connection, _HEADER.size))[0])
        reply = _receive(connection, length - _HEADER.size)
    return bson.decode(reply[len(_NO_FLAGS_ONE_DOCUMENT) :])


def _receive(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        part = connection.recv(count - len(received))
        if not part:
            raise ConnectionResetError("mongod closed the connection")
        received += part
    return received
