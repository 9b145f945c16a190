"""A proxy in front of a ``mongod``. It loses the messages that a test names, to make outcomes unknown, and rewrites
answers, to be another server."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import bson

Rewrite = Callable[[str, dict[str, Any]], dict[str, Any]]


class Proxy:
    """Hands messages on, but for what it was told to lose.

    ``lose_answers`` lets the server carry out a command and loses the connection before the answer; ``refuse`` loses it
    before the command is handed on. Both take the command's name and how often, for good if ``None``.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._lost: dict[str, int | None] = {}
        self._refused: dict[str, int | None] = {}
        self._rewrite: Rewrite | None = None
        self._cutting: set[str] = set()
        self._cut = False
        self.seen: list[str] = []
        """The names given to ``lose_answers`` and ``refuse``, each time that one came by."""
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def lose_answers(self, name: str, times: int | None = None, *, then_nothing: bool = False) -> None:
        """Lose the answers to commands of this name. With ``then_nothing`` nothing at all gets through after that."""
        with self._lock:
            if then_nothing:
                self._cutting.add(name)
            self._lost[name] = times

    def refuse(self, name: str, times: int | None = None) -> None:
        """Lose commands of this name themselves."""
        with self._lock:
            self._refused[name] = times

    def rewrite(self, rewrite: Rewrite) -> None:
        """From now on send what ``rewrite`` makes of a command's name and the server's answer."""
        self._rewrite = rewrite

    def heal(self) -> None:
        """Lose nothing any more, and rewrite nothing."""
        with self._lock:
            self._rewrite = None
            self._cutting.clear()
            self._cut = False
            self._lost.clear()
            self._refused.clear()
            self.seen.clear()

    def _due(self, rules: dict[str, int | None], message: bytes) -> bool:
        with self._lock:
            for name, times in rules.items():
                # The command's name is the first key of an OP_MSG's body, after its type byte.
                if name.encode() + b"\0" not in message[21 : 26 + len(name) + 1]:
                    continue
                if times == 0:
                    continue
                self.seen.append(name)
                rules[name] = None if times is None else times - 1
                return True
        return False

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._cut:
                    client.close()
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self._port))
                except OSError:  # it was killed, and may come back
                    client.close()
                    continue
                self._open |= {client, server}
                thread = threading.Thread(target=self._serve, args=(client, server), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        answers = threading.Thread(target=self._copy, args=(server, client), daemon=True)
        with suppress(OSError):
            while message := _message(client):
                if self._cut or self._due(self._refused, message):
                    break
                if self._due(self._lost, message):
                    # From here on this connection is the proxy's: the answer is waited for and thrown away.
                    server.sendall(message)
                    _message(server)
                    self._cut = self._cut or _name(message) in self._cutting
                    break
                server.sendall(message)
                # One answer for one message, unless the server streams them (the monitors' hello).
                if b"maxAwaitTimeMS\0" in message:
                    answers.start()
                    answers.join()
                    break
                if answer := _message(server):
                    client.sendall(self._rewritten(_name(message), answer))
        for one in (client, server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while message := _message(source):
                target.sendall(self._rewritten("hello", message))

    def _rewritten(self, name: str, answer: bytes) -> bytes:
        rewrite = self._rewrite
        if rewrite is None:
            return answer
        # A reply has one document: behind flags and a type byte (OP_MSG), or behind four numbers (OP_REPLY).
        start = 21 if struct.unpack_from("<i", answer, 12)[0] == _OP_MSG else 36
        size = struct.unpack_from("<i", answer, start)[0]
        document = bson.encode(rewrite(name, bson.decode(answer[start : start + size])))
        flags = bytearray(answer[:start])
        if start == 21:
            flags[16] &= 0xFE  # there is no checksum any more
        struct.pack_into("<i", flags, 0, start + len(document))
        return bytes(flags) + document

    def close(self) -> None:
        """End it, and all connections through it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


_OP_MSG = 2013


def _name(message: bytes) -> str:
    """The command's name in an OP_MSG; ``hello`` for the driver's first message, which has another form."""
    if struct.unpack_from("<i", message, 12)[0] != _OP_MSG:
        return "hello"
    return message[26 : message.index(b"\0", 26)].decode()


def _message(source: socket.socket) -> bytes:
    """One message of the wire protocol; empty at the end."""
    head = _exactly(source, 4)
    if len(head) < 4:
        return b""
    return head + _exactly(source, struct.unpack("<i", head)[0] - 4)


def _exactly(source: socket.socket, number: int) -> bytes:
    parts = bytearray()
    while len(parts) < number:
        part = source.recv(number - len(parts))
        if not part:
            return bytes(parts)
        parts += part
    return bytes(parts)
