"""What the documents hold: Python in fenced blocks, links, and the anchors that links may name."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
"""README, the other texts beside it, and everything in ``docs/``."""

_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"# (\w+\.py)\n")
_FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_ELSEWHERE = ("https://", "http://", "mailto:")


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str) -> list[tuple[str, str]]:
    """``(file name or "", code)`` of each block, in order, padded so that errors tell the document's own lines.

    A block names its file in a first line such as ``# models.py``.
    """
    text = read(document)
    found = []
    for match in _PYTHON.finditer(text):
        named = _NAMED.match(match[1])
        padding = "\n" * text.count("\n", 0, match.start(1))
        found.append((named[1] if named else "", padding + match[1]))
    return found


def links(text: str) -> list[str]:
    """The targets of relative links, as they are written; not what stands in code."""
    prose = _CODE.sub("", _FENCED.sub("", text))
    return [target for target in _LINK.findall(prose) if not target.startswith(_ELSEWHERE)]


def linked(document: str) -> list[Path]:
    """The files that a document links to, whether they exist or not."""
    folder = (ROOT / document).parent
    return [(folder / target.partition("#")[0]).resolve() for target in links(read(document)) if target[0] != "#"]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as code hosts make them: ``What is *kept*?`` is ``what-is-kept``."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for heading in _HEADING.findall(_FENCED.sub("", text)):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.replace("*", "")).strip().lower().replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def broken(text: str, place: Path) -> list[str]:
    """Relative links of a page at ``place`` whose file or anchor is not there."""
    found = []
    for target in links(text):
        path, _, anchor = target.partition("#")
        file = (place.parent / path).resolve() if path else place
        if path and not file.exists():
            found.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8") if path else text):
            found.append(f"{target}: no such heading")
    return found
