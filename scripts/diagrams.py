"""Draw the documents' diagrams: ``python scripts/diagrams.py`` makes an SVG of each text in ``docs/diagrams/``.

A text is a scene between lanes, line by line from the top, or a chart of bars::

    title: What the picture shows, for those who can't see it
    lanes: A = Worker A, L = Lock, B = Worker B
    A -> L: acquire          an arrow
    A -x L: write, token 33  an arrow that is refused
    A ~~ paused              a note on a lane; ``!~`` is a note of something bad
    -- later --              a line across all lanes

    title: ...
    bars: milliseconds
    redis-py, default | 90 | 90 ms

The pictures bring their own background, so they can be read on light and dark pages alike, and follow the reader's
choice of light or dark where an image may know of it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "diagrams"
WIDTH, MARGIN, STEP, TOP = 600, 14, 46, 84
LETTER = 7.9
"""A letter's mean width in pixels at the size used, on the generous side."""
STYLE = (
    "text{font:14.5px system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif;fill:#1d2733}"
    ".back{fill:#fbfcfd;stroke:#c9d1da}.lane{stroke:#9aa7b4;stroke-dasharray:4 4}.head{fill:#e3ebf3;stroke:#9aa7b4}"
    ".name{font-weight:600}.line{stroke:#2f6f8f;stroke-width:1.6}.tip{fill:#2f6f8f}"
    ".bad{stroke:#b3261e;stroke-width:1.6}.badtip{fill:none;stroke:#b3261e;stroke-width:2.2}"
    ".label{paint-order:stroke;stroke:#fbfcfd;stroke-width:5px;stroke-linejoin:round}.wrong{fill:#b3261e}"
    ".note{fill:#fff4d6;stroke:#d5b45b}.alarm{fill:#fde4e1;stroke:#d98a83}.cut{stroke:#9aa7b4}.bar{fill:#2f6f8f}"
    "@media (prefers-color-scheme:dark){text{fill:#e6ebf0}.back{fill:#151b21;stroke:#3a4652}"
    ".lane,.cut{stroke:#667482}.head{fill:#26323e;stroke:#667482}.line{stroke:#7cc4e4}.tip,.bar{fill:#7cc4e4}"
    ".bad,.badtip{stroke:#ff8a80}.label{stroke:#151b21}.wrong{fill:#ff9d94}"
    ".note{fill:#453a1c;stroke:#8d7734}.alarm{fill:#4f2422;stroke:#a4554f}}"
)
_ARROW = re.compile(r"(\w+) -([>x]) (\w+): (.+)")
_NOTE = re.compile(r"(\w+) ([~!])~ (.+)")


class Unreadable(ValueError):
    """A text that is no diagram, or whose words do not fit where they should stand."""


def draw(text: str) -> str:
    """Return the SVG of a diagram's text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 3 or not lines[0].startswith("title: "):
        raise Unreadable("a diagram begins with 'title: ...', then has 'lanes: ...' or 'bars: ...', then what is drawn")
    title, (kind, _, rest) = lines[0].removeprefix("title: "), lines[1].partition(": ")
    if kind == "lanes":
        height, parts = TOP + STEP * (len(lines) - 2) + MARGIN, list(_scene(rest, lines[2:]))
    elif kind == "bars":
        height, parts = 56 + 34 * (len(lines) - 2) + MARGIN, list(_bars(rest, lines[2:]))
    else:
        raise Unreadable(f"neither lanes nor bars: {lines[1]}")
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n'
        f'<rect class="back" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def _fits(words: str, room: float) -> float:
    """Return how wide the words are, if that is no more than ``room``."""
    if (width := len(words) * LETTER) > room:
        raise Unreadable(f"too long by {(width - room) / LETTER:.0f} letters: {words}")
    return width


def _scene(lanes: str, steps: list[str]) -> Iterator[str]:
    names = dict(lane.strip().split(" = ", 1) for lane in lanes.split(","))
    room = (WIDTH - 2 * MARGIN) / len(names)
    place = {lane: MARGIN + room * (index + 0.5) for index, lane in enumerate(names)}
    bottom = TOP + STEP * len(steps)
    for lane, name in names.items():
        _fits(name, room - 14)
        yield f'<line class="lane" x1="{place[lane]:g}" y1="52" x2="{place[lane]:g}" y2="{bottom}"/>'
        left, width = place[lane] - room / 2 + 6, room - 12
        yield f'<rect class="head" x="{left:g}" y="20" width="{width:g}" height="32" rx="5"/>'
        yield _text(place[lane], 41, name, "name")
    for index, step in enumerate(steps):
        y = TOP + STEP * index + 12
        if arrow := _ARROW.fullmatch(step):
            yield from _arrow(place[arrow[1]], place[arrow[3]], y, arrow[4], refused=arrow[2] == "x")
        elif note := _NOTE.fullmatch(step):
            yield from _note(place[note[1]], y, note[3], "alarm" if note[2] == "!" else "note")
        elif step.startswith("-- ") and step.endswith(" --"):
            yield f'<line class="cut" x1="{MARGIN}" y1="{y}" x2="{WIDTH - MARGIN}" y2="{y}"/>'
            yield _text(WIDTH / 2, y + 4, step[3:-3], "label")
        else:
            raise Unreadable(f"no arrow, note or line: {step}")


def _arrow(start: float, end: float, y: int, words: str, *, refused: bool) -> Iterator[str]:
    middle, way = (start + end) / 2, 1 if end > start else -1
    _fits(words, 2 * min(middle, WIDTH - middle) - MARGIN)
    stop = end - 7 * way
    if refused:
        yield f'<line class="bad" x1="{start:g}" y1="{y}" x2="{stop - 8 * way:g}" y2="{y}"/>'
        left = stop - 6 * way
        yield f'<path class="badtip" d="M{left - 5:g} {y - 5}l10 10m0 -10l-10 10"/>'
    else:
        yield f'<line class="line" x1="{start:g}" y1="{y}" x2="{stop:g}" y2="{y}"/>'
        yield f'<path class="tip" d="M{end:g} {y}l{-9 * way} -4.5v9z"/>'
    yield _text(middle, y - 7, words, "label wrong" if refused else "label")


def _note(x: float, y: int, words: str, kind: str) -> Iterator[str]:
    width = _fits(words, WIDTH - 2 * MARGIN - 16) + 16
    left = min(max(x - width / 2, MARGIN / 2), WIDTH - MARGIN / 2 - width)
    yield f'<rect class="{kind}" x="{left:g}" y="{y - 16}" width="{width:g}" height="26" rx="4"/>'
    yield _text(left + width / 2, y + 2, words)


def _bars(unit: str, rows: list[str]) -> Iterator[str]:
    parted = [[cell.strip() for cell in row.split("|")] for row in rows]
    if any(len(row) != 3 for row in parted):
        raise Unreadable("a row of bars is: label | number | what stands beside the bar")
    start = MARGIN + max(_fits(label, 320) for label, _, _ in parted) + 12
    most = max(float(value) for _, value, _ in parted)
    # As long as they can be with what stands beside each.
    room = min((WIDTH - MARGIN - start - 10 - _fits(said, 240)) * most / float(value) for _, value, said in parted)
    yield _text(MARGIN, 36, unit, "name", "start")
    for index, (label, value, said) in enumerate(parted):
        y, width = 52 + 34 * index, max(2.0, float(value) / most * room)
        yield _text(start - 10, y + 17, label, anchor="end")
        yield f'<rect class="bar" x="{start:g}" y="{y + 2}" width="{width:.1f}" height="22" rx="3"/>'
        yield _text(start + width + 8, y + 17, said, anchor="start")


def main() -> int:
    for source in sorted(FOLDER.glob("*.txt")):
        source.with_suffix(".svg").write_text(draw(source.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
