#!/usr/bin/env python3
"""Writes ``docs/reference/schemas``: JSON Schema of what ``--json`` prints and ``state.json`` answers.

The schemas are made from the dataclasses of ``goscope_django.operations``, so a field has one description. With
``--check`` nothing is written, and the exit code is 1 if a file is not what it should be.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference" / "schemas"
DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
PLAIN: Final[Mapping[Any, dict[str, Any]]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    datetime: {"type": "string", "format": "date-time"},
    type(None): {"type": "null"},
}


@functools.cache
def _maybe_unread() -> set[type]:
    """What has null for its numbers where it could not be read: sections, and what they hold outside of lists."""
    from goscope_django.operations import values

    found: set[type] = set()
    left = [one for one in get_type_hints(values.State).values() if is_dataclass(one) and hasattr(one, "error")]
    while left:
        kind = left.pop()
        if not isinstance(kind, type) or kind in found:
            continue
        found.add(kind)
        for one in get_type_hints(kind).values():
            args = get_args(one)
            left += [inner for inner in (one, *(args if get_origin(one) is dict else ())) if is_dataclass(inner)]
    return found


class Schemas:
    """Schemas of dataclasses, each once, under ``$defs``."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, Any]] = {}

    def of(self, kind: Any, filled: Mapping[Any, Any] | None = None) -> dict[str, Any]:
        """The schema of a value of the type ``kind``, in which type variables are ``filled``."""
        filled = filled or {}
        kind = filled.get(kind, kind)
        origin, args = get_origin(kind), get_args(kind)
        if kind in PLAIN:
            return dict(PLAIN[kind])
        if kind is Any or isinstance(kind, TypeVar):
            return {}
        if origin is Literal:
            return {"enum": list(args)}
        if origin in (Union, types.UnionType):
            return {"anyOf": [self.of(one, filled) for one in args]}
        if origin in (tuple, list):
            return {"type": "array", "items": self.of(args[0], filled)}
        if origin in (dict, Mapping) or kind is dict:
            return {"type": "object", "additionalProperties": self.of(args[1], filled) if args else True}
        if is_dataclass(kind) and isinstance(kind, type):
            return self._reference(kind)
        raise TypeError(f"no schema for {kind!r}")

    def _reference(self, kind: type) -> dict[str, Any]:
        if kind.__name__ not in self.known:
            self.known[kind.__name__] = {}  # it may hold itself
            self.known[kind.__name__] = self._dataclass(kind)
        return {"$ref": f"#/$defs/{kind.__name__}"}

    def _dataclass(self, kind: type) -> dict[str, Any]:
        filled: dict[Any, Any] = {}
        for base in getattr(kind, "__orig_bases__", ()):
            filled.update(zip(getattr(get_origin(base), "__parameters__", ()), get_args(base), strict=False))
        hints = get_type_hints(kind)
        named = fields(kind)
        unread = kind in _maybe_unread()
        properties = {}
        for one in named:
            schema = self.of(hints[one.name], filled)
            if unread and schema.get("type") in ("integer", "number"):
                schema = {"anyOf": [schema, {"type": "null"}]}
            elif unread and schema.get("type") == "object" and schema["additionalProperties"] == {"type": "integer"}:
                schema["additionalProperties"] = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
            if one.name == "schema_version" and one.default is not MISSING:
                schema = {"const": one.default}
            properties[one.name] = schema
        told = " ".join((kind.__doc__ or "").split()).replace("``", "`")
        return {
            "description": told,
            "type": "object",
            "properties": properties,
            "required": [one.name for one in named],
        }

    def document(self, title: str, properties: Mapping[str, Any], *, whole: type | None = None) -> dict[str, Any]:
        """A schema of one document: of the dataclass ``whole``, or of an object with these ``properties``."""
        from goscope_django.operations.values import SCHEMA_VERSION

        if whole is not None:
            body = self.of(whole)
        else:
            parts = {"schema_version": {"const": SCHEMA_VERSION}}
            parts.update({name: self.of(kind) for name, kind in properties.items()})
            body = {"type": "object", "properties": parts, "required": list(parts)}
        return {"$schema": DRAFT, "title": title, **body, "$defs": dict(sorted(self.known.items()))}


def schemas() -> dict[str, dict[str, Any]]:
    """All schemas, by the name of their file."""
    from goscope_django.operations import values

    lists: dict[str, tuple[str, dict[str, Any]]] = {
        "lock-list": ("goscope_lock list --json", {"locks": values.Locks}),
        "circuit-list": ("goscope_circuit list --json", {"circuits": values.Circuits}),
        "checkpoint-list": ("goscope_checkpoint list --json", {"tasks": values.Tasks}),
        "idempotency-list": ("goscope_idempotency list --json", {"idempotency": values.Idempotency}),
        "done": ("an action with --json", {"done": values.Done}),
    }
    found = {"state": Schemas().document("goscope_status --json, and state.json", {}, whole=values.State)}
    found |= {name: Schemas().document(title, properties) for name, (title, properties) in lists.items()}
    return found


def text(schema: Mapping[str, Any]) -> str:
    """The schema as its file holds it."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    sys.path.insert(0, str(ROOT))
    FOLDER.mkdir(exist_ok=True)
    different = 0
    for name, schema in schemas().items():
        path = FOLDER / f"{name}.json"
        if not path.exists() or path.read_text(encoding="utf-8") != text(schema):
            different += 1
            if check:
                print(f"{path.relative_to(ROOT)} is not what scripts/json_schemas.py makes", file=sys.stderr)
            else:
                path.write_text(text(schema), encoding="utf-8")
    return 1 if check and different else 0


if __name__ == "__main__":
    sys.exit(main())
