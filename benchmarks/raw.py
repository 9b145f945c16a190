"""Raw PyMongo that does the same work. Our cache and lock are compared with it.

It has a unique index on ``key`` and a TTL index on ``expiresAt``. Text, bytes and integers are stored as they are,
everything else is pickled. Expiry is checked in Python by this machine's clock. Anybody could write this in an hour.
"""

from __future__ import annotations

import pickle
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import MongoClient, ReturnDocument, UpdateOne, WriteConcern
from pymongo.collection import Collection


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def _read(document: dict[str, Any] | None) -> Any:
    if document is None:
        return None
    expires = document["expiresAt"]
    if expires is not None and expires <= _now():
        return None
    value = document["value"]
    return pickle.loads(value) if type(value) is bytes else value


class RawCache:
    """A cache in the plainest way."""

    native: tuple[type, ...] = (str, int)

    def __init__(
        self, client: MongoClient[dict[str, Any]], database: str, *, w: int | str = 1, collection: str = "raw_cache"
    ) -> None:
        base: Collection[dict[str, Any]] = client[database][collection]
        base.create_index("key", unique=True)
        base.create_index("expiresAt", expireAfterSeconds=0)
        self.collection = base.with_options(write_concern=WriteConcern(w))

    @staticmethod
    def key(name: str) -> str:
        return f":1:{name}"

    def get(self, name: str) -> Any:
        return _read(self.collection.find_one({"key": self.key(name)}))

    def _update(self, key: str, value: Any, seconds: float) -> dict[str, Any]:
        now = _now()
        stored = value if type(value) in self.native else pickle.dumps(value, 5)
        fields = {"key": key, "value": stored, "expiresAt": now + timedelta(seconds=seconds), "updatedAt": now}
        return {"$set": fields}

    def set(self, name: str, value: Any, seconds: float = 300) -> None:
        key = self.key(name)
        self.collection.update_one({"key": key}, self._update(key, value, seconds), upsert=True)

    def get_many(self, names: list[str]) -> dict[str, Any]:
        keys = {self.key(name): name for name in names}
        found = list(self.collection.find({"key": {"$in": list(keys)}}))
        return {keys[one["key"]]: _read(one) for one in found}

    def set_many(self, values: dict[str, Any], seconds: float = 300) -> None:
        self.collection.bulk_write(
            [
                UpdateOne({"key": self.key(name)}, self._update(self.key(name), value, seconds), upsert=True)
                for name, value in values.items()
            ],
            ordered=False,
        )

    def incr(self, name: str) -> int:
        found = self.collection.find_one_and_update(
            {"key": self.key(name), "expiresAt": {"$gt": _now()}},
            {"$inc": {"value": 1}},
            return_document=ReturnDocument.AFTER,
        )
        assert found is not None
        return int(found["value"])

    def add(self, name: str, value: Any, seconds: float = 300) -> bool:
        key = self.key(name)
        done = self.collection.update_one(
            {"key": key}, {"$setOnInsert": self._update(key, value, seconds)["$set"]}, upsert=True
        )
        return done.upserted_id is not None

    def delete(self, name: str) -> bool:
        test = {"key": self.key(name), "expiresAt": {"$gt": _now()}}
        return bool(self.collection.delete_one(test).deleted_count)


class RawPlainCache(RawCache):
    """The same, with dicts as BSON, which any client can read."""

    native = (str, int, dict)


class RawLooseCache(RawCache):
    """The same, with a ``delete`` that says yes for what had expired, too."""

    def delete(self, name: str) -> bool:
        return bool(self.collection.delete_one({"key": self.key(name)}).deleted_count)


class RawLock:
    """Acquire and release with two commands, by the server's clock."""

    def __init__(self, client: MongoClient[dict[str, Any]], database: str, *, w: int | str) -> None:
        base: Collection[dict[str, Any]] = client[database]["raw_locks"]
        base.create_index("key", unique=True)
        base.create_index("expiresAt", expireAfterSeconds=0)
        self.collection = base.with_options(write_concern=WriteConcern(w))

    def pair(self, key: str) -> None:
        owner = uuid.uuid4().hex
        free = {"$or": [{"$eq": [{"$type": "$owner"}, "missing"]}, {"$lte": ["$expiresAt", "$$NOW"]}]}
        fields = {"owner": owner, "expiresAt": {"$add": ["$$NOW", 30_000]}, "createdAt": "$$NOW"}
        update = [{"$set": {name: {"$cond": [free, value, f"${name}"]} for name, value in fields.items()}}]
        found = self.collection.find_one_and_update(
            {"key": key}, update, upsert=True, return_document=ReturnDocument.AFTER
        )
        assert found is not None
        assert found["owner"] == owner
        self.collection.delete_one({"key": key, "owner": owner})
