"""Answers of a server that quotes what it was sent, as real ones do in some of their errors; and the quoted value."""

from __future__ import annotations

from typing import Any

from tests.support.proxy import Rewrite

CANARY = "canary4111222233334444"
VALUE = {"card": CANARY, "deep": [{"er": CANARY}]}
OURS = ("findAndModify", "update", "insert", "delete", "find", "aggregate")


def quoting(code: int, text: str, form: str, label: str | None = None) -> Rewrite:
    """Answers that quote a value wherever a server might, as a refusal of the command, of a statement or of the write
    concern."""
    quoted: dict[str, Any] = {"code": code, "errmsg": text, "errInfo": {"details": {"was": VALUE}, "canary": CANARY}}
    quoted |= {"keyValue": {"key": CANARY}, "keyPattern": {"key": 1}, "op": {"u": VALUE}}

    def rewrite(name: str, reply: dict[str, Any]) -> dict[str, Any]:
        if name not in OURS:
            return reply
        labels = {"errorLabels": [label]} if label else {}
        if form == "command":
            return {"ok": 0.0, "codeName": "SomeName", "value": VALUE, **quoted, **labels}
        if form == "statement":
            return {"ok": 1.0, "n": 0, "nModified": 0, "writeErrors": [{"index": 0, **quoted}], **labels}
        return {**reply, "writeConcernError": {"codeName": "SomeName", **quoted}, **labels}

    return rewrite
