"""Which executor an adapter's store uses, told without a server."""

from __future__ import annotations

import asyncio
from typing import Any

from pymongo import AsyncMongoClient, MongoClient

from goscope_django.mongodb.driver.databases import store_of

NOWHERE = "mongodb://127.0.0.1:1"


def test_a_function_that_gives_the_database_makes_one_executor_for_each_loop() -> None:
    client: MongoClient[dict[str, Any]] = MongoClient(NOWHERE, connect=False)
    used: list[AsyncMongoClient[dict[str, Any]]] = []
    store = store_of(client["app"], lambda: used[-1]["app"])

    async def executors() -> set[int]:
        one: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(NOWHERE, connect=False)
        async with one:
            used.append(one)
            found = [store.aexecutor() for _ in range(3)]
            assert all(executor.database.client is one for executor in found)
            return {id(executor) for executor in found}

    for _ in range(2):
        assert len(asyncio.run(executors())) == 1
    client.close()
