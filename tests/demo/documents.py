"""Python in the documents: the code of fenced blocks, each with the file that its first line may name."""

from __future__ import annotations

import re
from pathlib import Path

from tests.demo.shop import ROOT

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"# (\w+\.py)\n")


def blocks(document: str) -> list[tuple[str, str]]:
    """``(file name or "", code)`` of each block, in order, padded so that errors tell the document's own lines."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        named = _NAMED.match(match[1])
        padding = "\n" * text.count("\n", 0, match.start(1))
        found.append((named[1] if named else "", padding + match[1]))
    return found


def links(document: str) -> list[Path]:
    """The files that a document links to, whether they exist or not."""
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(?:#[^)]*)?\)", text)
    return [((ROOT / document).parent / target).resolve() for target in targets]
