"""Tags of cache entries, in ``go_goscope_tags``: a document for each tag, with the version that counts.

An entry has the versions that its tags had when its value was computed. It stands while they are the tags' versions
still. Rules of this file:

* A version is random text, so none is ever used again. To invalidate a tag is to give it another one: one command,
  however many entries there are.
* A tag without a document counts as invalidated. So a document may go when all entries with its tag have expired.
* Tags are read from the primary and written with majority concern, whatever the URL says: what was invalidated stays
  so after a failover.
* A process remembers which tags it has seen, to guess which command will do. What counts is what the server answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from pymongo.errors import BulkWriteError

from goscope_django.core.flow import Flow, Query, ask
from goscope_django.core.ticks import tick
from goscope_django.mongodb.cache.own import SPARE, Tags, Terms
from goscope_django.mongodb.document.clock import Clock
from goscope_django.mongodb.document.expressions import FAR, literal
from goscope_django.mongodb.document.failures import DUPLICATE_KEY
from goscope_django.mongodb.document.lease import new_claim, upsert
from goscope_django.mongodb.document.reading import text

TAGS: Final = "go_goscope_tags"
BATCH: Final = 1_000
"""How many tags one command handles."""

REMEMBERED: Final = 10_000
ATTEMPTS: Final = 5


class _Seen:
    """The versions of tags as one process saw them last, and until when their documents last at least (``tick``)."""

    def __init__(self) -> None:
        self._tags: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def note(self, tags: Tags, until: float) -> None:
        for tag, version in tags.items():
            before = self._tags.pop(tag, None)
            self._tags[tag] = (version, until if before is None else max(until, before[1]))
        while len(self._tags) > REMEMBERED:
            self._tags.popitem(last=False)

    def forget(self, tags: Collection[str]) -> None:
        for tag in tags:
            self._tags.pop(tag, None)

    def lasting(self, tags: Collection[str], until: float) -> bool:
        """Whether the documents of all of them will last until then, as far as is known."""
        return all(self._tags.get(tag, ("", 0.0))[1] >= until for tag in tags)

    def versions(self, tags: Collection[str]) -> dict[str, str]:
        """Those that were seen."""
        return {tag: self._tags[tag][0] for tag in tags if tag in self._tags}


_seen: Final[WeakKeyDictionary[Clock, _Seen]] = WeakKeyDictionary()
"""By the clock, of which each executor has its own."""


def current(clock: Clock, tags: Collection[str]) -> Flow[dict[str, str]]:
    """The versions of those that have a document. One command for each thousand."""
    found: dict[str, str] = {}
    names = list(tags)
    for start in range(0, len(names), BATCH):
        for one in (yield from ask(TAGS, "many", {"_id": {"$in": names[start : start + BATCH]}}, BATCH)):
            version = text(one.get("version"))
            if version is not None:
                found[one["_id"]] = version
    return found


def stand(clock: Clock, tags: Tags) -> Flow[bool]:
    """Whether these still are the versions of their tags. One command, none if there are no tags."""
    return not tags or (yield from current(clock, tags)) == tags


def versions(clock: Clock, tags: Collection[str], lasting: int | None) -> Flow[dict[str, str]]:
    """The versions of tags, for an entry that is about to be computed; each lasts for ``lasting`` milliseconds at least
    (``None``: for ever).

    One command where this process knows the tags, or nobody does. Else up to three.
    """
    if not tags:
        return {}
    names, seen, found = list(tags), _seen.setdefault(clock, _Seen()), dict[str, str]()
    for _ in range(ATTEMPTS):
        now = tick()
        until = float("inf") if lasting is None else now + lasting / 1_000
        if seen.lasting(names, until):
            found = yield from current(clock, names)
        else:
            reach = None if lasting is None else 2 * lasting + SPARE
            found = yield from (_made_one if len(names) == 1 else _made)(clock, names, seen.versions(names), reach)
            until = float("inf") if reach is None else now + reach / 1_000
        if len(found) == len(names):
            seen.note(found, until)
            return found
        seen.forget(set(names) - found.keys())
    return found  # those that are missing count as invalidated


def terms(clock: Clock, tags: Collection[str], ttl: int | None, stale: int = 0) -> Flow[Terms | None]:
    """The terms on which a value is stored that is about to be computed; ``None`` if there is nothing to say.

    ``ttl`` is for how many milliseconds it will be fresh, ``None`` for ever. The commands are those of ``versions``.
    """
    if not tags and not stale:
        return None
    return Terms(stale, (yield from versions(clock, tags, None if ttl is None else ttl + stale)))


def invalidate(clock: Clock, tags: Sequence[str]) -> Flow[int]:
    """Give the tags other versions; how many had a document. Atomic for each; one command for each thousand."""
    number = 0
    for start in range(0, len(tags), BATCH):
        change = {"$set": {"version": new_claim()}}
        statements = [({"_id": tag}, change, False) for tag in tags[start : start + BATCH]]
        changed, _ = yield from ask(TAGS, "change_each", statements)
        number += changed
    return number


def _prolonged(clock: Clock, reach: int | None) -> dict[str, Any]:
    """The field that lets a tag's document last for ``reach`` milliseconds from now, if it would not last longer."""
    return {"expiresAt": {"$max": ["$expiresAt", FAR if reach is None else clock.after(reach)]}}


def _kept_or(version: str) -> dict[str, Any]:
    return {"version": {"$ifNull": ["$version", literal(version)]}}


def _made_one(clock: Clock, tags: Sequence[str], seen: Tags, reach: int | None) -> Flow[dict[str, str]]:
    tag, change = tags[0], [{"$set": {**_kept_or(new_claim()), **_prolonged(clock, reach)}}]
    found = yield from upsert(
        clock, lambda: Query(TAGS, "modify", {"_id": tag}, change, {"version": True}, upsert=True)
    )
    version = text(found.get("version"))
    return {} if version is None else {tag: version}


def _made(clock: Clock, tags: Sequence[str], seen: Tags, reach: int | None) -> Flow[dict[str, str]]:
    """One command if the tags that this process has seen have their versions still, and nobody has made the others.
    Else two."""
    version, prolonged = new_claim(), _prolonged(clock, reach)
    statements = [
        ({"_id": tag, "version": seen[tag]}, [{"$set": prolonged}], False)
        if tag in seen
        else ({"_id": tag}, [{"$set": {**_kept_or(version), **prolonged}}], True)
        for tag in tags
    ]
    try:
        matched, made = yield from ask(TAGS, "change_each", statements)
    except BulkWriteError as error:
        unconfirmed = error.details.get("writeConcernErrors")
        if unconfirmed or any(one.get("code") not in DUPLICATE_KEY for one in error.details["writeErrors"]):
            raise
        matched, made = 0, frozenset()  # somebody else made one of them at this moment
    if matched == len(tags) and all(place in made for place, tag in enumerate(tags) if tag not in seen):
        return {tag: seen.get(tag, version) for tag in tags}
    return (yield from current(clock, tags))
