"""Fenced writes: a MongoDB document refuses a write with an older token than it has seen.

A lock alone does not protect it: the holder may sleep past its lease and write after the next one (Kleppmann, 2016).
Rules of this file:

* The document keeps the highest token that it has seen, in ``_fence``, and the comparison is part of the write itself.
* "Refused" and "no such document" are told apart afterwards, by looking for the document with a newer fence.
* The caller's filter, update and session are passed on as they are, and so is its write concern, but for ``w=0``: a
  refusal has to be seen. The driver's errors are raised as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pymongo import WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.collection import Collection
from pymongo.errors import OperationFailure
from pymongo.results import UpdateResult

from goscope_django.core.flow import Flow, acarry_out, carry_out, invoke
from goscope_django.exceptions import InvalidType, InvalidValue, StaleFence
from goscope_django.mongodb.document.expressions import literal
from goscope_django.mongodb.document.failures import duplicate

FENCE: Final = "_fence"
_COLLISIONS: Final = 5

Filter = Mapping[str, Any]
Update = Mapping[str, Any] | Sequence[Mapping[str, Any]]


def token_of(handle: object) -> int:
    """The fencing token of ``handle``: a lock's handle, or a token itself (an ``int``). Sends nothing.

    Raises ``InvalidType`` for anything else, and ``InvalidValue`` for a number that no token can be.
    """
    token = getattr(handle, "token", handle)
    if type(token) is not int:
        raise InvalidType(f"handle={handle!r:.80}: a lock's handle or its token (int) is needed")
    return token


def fenced_update_one(
    collection: Collection[Any],
    filter: Filter,  # noqa: A002 - as in update_one
    update: Update,
    handle: object,
    **options: Any,
) -> UpdateResult:
    """Update one document of ``collection`` unless it has seen a newer token than that of ``handle``.

    ``handle`` is a lock's handle or a token itself (an ``int``). ``filter`` and ``update`` are those of
    ``collection.update_one``, with operators or a pipeline; ``options`` (``upsert``, ``session``, ``array_filters``
    ...) go on to it. The document's ``_fence`` is compared and set in the same atomic update. Raises ``StaleFence`` if
    the document exists and has seen a newer token; a result with ``matched_count`` 0 means that there is no such
    document. ``upsert=True`` needs the ``_id`` in the filter. One command; a second one where nothing matched.
    """
    return carry_out(_update(collection, filter, update, token_of(handle), options))


async def afenced_update_one(
    collection: AsyncCollection[Any],
    filter: Filter,  # noqa: A002 - as in update_one
    update: Update,
    handle: object,
    **options: Any,
) -> UpdateResult:
    """Async version of ``fenced_update_one``."""
    return await acarry_out(_update(collection, filter, update, token_of(handle), options))


def _update(
    collection: Any, test: Filter, update: Update, token: int, options: Mapping[str, Any]
) -> Flow[UpdateResult]:
    """One command where the write is let through, two where nothing matched."""
    where, change = _guarded(test, token), _marked(update, token)
    if options.get("upsert") and "_id" not in test:
        # Else a stale writer, which the document refuses, would insert a second one.
        raise InvalidValue("filter: an upsert needs the document's _id in it")
    more = {name: options[name] for name in ("session",) if name in options}
    if not collection.write_concern.acknowledged:
        # Whether a write was let through is what its caller wants to know, so it is confirmed (w=1) whatever w is.
        collection = collection.with_options(write_concern=WriteConcern(1))
    for attempt in range(_COLLISIONS + 1):
        try:
            result: UpdateResult = yield from invoke(collection.update_one, where, change, **options)
        except OperationFailure as error:
            if not options.get("upsert") or not duplicate(error):
                raise
            yield from _refuse(collection, test, token, more)
            if attempt == _COLLISIONS or "session" in options:
                raise
            continue
        if not result.matched_count and result.upserted_id is None:
            yield from _refuse(collection, test, token, more)
        return result
    raise AssertionError("unreachable")


def _refuse(collection: Any, test: Filter, token: int, options: Mapping[str, Any]) -> Flow[None]:
    found = yield from invoke(collection.find_one, _newer(test, token), {FENCE: True}, **options)
    if found is not None:
        raise StaleFence(
            f"document {found.get('_id')!r:.80}: token {token} is older than {found[FENCE]}, which it has seen"
        )


def _guarded(test: Filter, token: int) -> dict[str, Any]:
    """``test``, and that no newer token was seen. Null matches a missing field."""
    return _and(test, {"$or": [{FENCE: None}, {FENCE: {"$lte": token}}]})


def _newer(test: Filter, token: int) -> dict[str, Any]:
    """``test``, and that a newer token was seen."""
    return _and(test, {FENCE: {"$gt": token}})


def _and(test: Filter, more: Filter) -> dict[str, Any]:
    # The caller's own fields stay where they are: an upsert takes the new document's from there.
    return {**test, "$and": [*test.get("$and", ()), more]}


def _touches_fence(fields: object) -> bool:
    return isinstance(fields, Mapping) and any(name == FENCE or str(name).startswith(f"{FENCE}.") for name in fields)


def _marked(update: Update, token: int) -> Any:
    """``update``, which also writes the token."""
    if isinstance(update, Mapping):
        if not update or not all(str(name).startswith("$") for name in update):
            raise InvalidValue(
                "update: operators ($set, $inc ...) or a pipeline are needed; a replacement has no fence"
            )
        if any(_touches_fence(fields) for fields in update.values()):
            raise InvalidValue(f"update: {FENCE!r} is written by the fenced update itself")
        return {**update, "$set": {**update.get("$set", {}), FENCE: token}}
    if isinstance(update, Sequence) and not isinstance(update, (str, bytes)):
        return [*update, {"$set": {FENCE: literal(token)}}]
    raise InvalidType(f"update={type(update).__name__}: a document of operators or a pipeline is needed")
