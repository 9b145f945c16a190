"""A random walk over claims, results, expiry and a writer who knows no claims, against a small model.

Time passes by aging the documents, in steps so large that what a step itself takes does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import mongomock
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from pymongo import MongoClient

from goscope_django.mongodb import MongoDBAdapter
from goscope_django.mongodb.idempotency.flows import IDEMPOTENCY

MINUTE = 60_000
KEYS = st.sampled_from(["a", "b"])
LENGTHS = st.sampled_from([MINUTE, 3 * MINUTE, 9 * MINUTE])
PRINTS = st.sampled_from([None, "f", "g"])
VALUES = st.sampled_from([None, False, 0, "", "$x", {"$gt": 1}, {"a.b": [1, None]}, "text", b"bytes"])


@dataclass(frozen=True)
class Claim:
    token: int
    left: int
    fingerprint: str | None
    retention: int


@dataclass(frozen=True)
class Result:
    value: Any
    left: int | None
    fingerprint: str | None


class Machine(RuleBasedStateMachine):
    """``results`` holds expired ones too, until something removes them: a writer without claims revives them."""

    databases: ClassVar[list[Any]]

    @initialize()
    def begin_anew(self) -> None:
        self.documents = self.databases[0][IDEMPOTENCY]
        self.documents.delete_many({})
        self.documents.create_index("key", unique=True)
        # Two processes, which know nothing of what the other has seen.
        self.providers = [MongoDBAdapter(self.databases[0], key_prefix="p:").idempotency for _ in range(2)]
        self.claims: dict[str, Claim] = {}
        self.results: dict[str, Result] = {}
        self.tokens: dict[str, list[int]] = {"a": [], "b": []}

    def claim(self, key: str) -> Claim | None:
        found = self.claims.get(key)
        return found if found is not None and found.left > 0 else None

    def result(self, key: str) -> Result | None:
        found = self.results.get(key)
        return found if found is not None and (found.left is None or found.left > 0) else None

    def token(self, key: str, age: int) -> int:
        """One of the tokens that were given out, the latest first."""
        known = self.tokens[key]
        return known[-1 - age % len(known)] if known else 1

    @rule(key=KEYS, ttl=LENGTHS, lease=LENGTHS, fingerprint=PRINTS, who=st.integers(0, 1))
    def begin(self, key: str, ttl: int, lease: int, fingerprint: str | None, who: int) -> None:
        found = self.providers[who].begin(key, ttl, fingerprint, lease)
        standing = self.result(key) or self.claim(key)
        if standing is None:
            assert found.outcome == "started"
            assert found.token is not None
            assert found.token > max(self.tokens[key], default=0)
            self.tokens[key].append(found.token)
            self.claims[key] = Claim(found.token, lease, fingerprint, ttl)
            self.results.pop(key, None)
            return
        assert found.token is None
        if fingerprint is not None and standing.fingerprint is not None and fingerprint != standing.fingerprint:
            assert found.outcome == "mismatch"
        elif isinstance(standing, Result):
            assert (found.outcome, found.value) == ("completed", standing.value)
            assert type(found.value) is type(standing.value)
        else:
            assert found.outcome == "in_progress"
            assert found.retry_after is not None
            assert standing.left / 1_000 - 30 < found.retry_after <= standing.left / 1_000
        if self.result(key) is None:
            self.results.pop(key, None)  # an expired one beside a claim

    @rule(key=KEYS, age=st.integers(0, 3), value=VALUES, ttl=st.none() | LENGTHS, who=st.integers(0, 1))
    def complete(self, key: str, age: int, value: Any, ttl: int | None, who: int) -> None:
        token, claim = self.token(key, age), self.claim(key)
        done = self.providers[who].complete(key, token, value, ttl)
        if claim is None or claim.token != token:
            assert done is False
            return
        del self.claims[key]
        assert done is (self.result(key) is None), "the result of another writer was first"
        if done:
            self.results[key] = Result(value, claim.retention if ttl is None else ttl, claim.fingerprint)

    @rule(key=KEYS, age=st.integers(0, 3))
    def abandon(self, key: str, age: int) -> None:
        token, claim = self.token(key, age), self.claim(key)
        mine = claim is not None and claim.token == token
        assert self.providers[0].abandon(key, token) is mine
        if mine:
            del self.claims[key]

    @rule(key=KEYS, age=st.integers(0, 3), lease=LENGTHS)
    def extend(self, key: str, age: int, lease: int) -> None:
        token, claim = self.token(key, age), self.claim(key)
        mine = claim is not None and claim.token == token
        assert self.providers[0].extend(key, token, lease) is mine
        if claim is not None and mine:
            self.claims[key] = replace(claim, left=lease)

    @rule(key=KEYS, value=VALUES, ttl=st.none() | LENGTHS)
    def set(self, key: str, value: Any, ttl: int | None) -> None:
        self.providers[0].set(key, value, ttl)
        self.claims.pop(key, None)
        self.results[key] = Result(value, ttl, None)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        there = self.claim(key) is not None or self.result(key) is not None
        assert self.providers[0].delete(key) is there
        if self.claim(key):
            del self.claims[key]
        if self.result(key):
            del self.results[key]

    @rule(key=KEYS, value=VALUES, ttl=st.none() | LENGTHS)
    def set_by_one_who_knows_no_claims(self, key: str, value: Any, ttl: int | None) -> None:
        expires = None if ttl is None else datetime.now(UTC) + timedelta(milliseconds=ttl)
        fields = {"key": f"p:{key}", "value": value, "expiresAt": expires, "updatedAt": datetime.now(UTC)}
        self.documents.update_one({"key": f"p:{key}"}, {"$set": fields}, upsert=True)
        before = self.results.get(key)
        self.results[key] = Result(value, ttl, before.fingerprint if before else None)

    @rule(milliseconds=st.sampled_from([MINUTE + 30_000, 4 * MINUTE + 30_000]))
    def time_passes(self, milliseconds: int) -> None:
        for one in self.documents.find({}):
            aged = {
                name: one[name] - timedelta(milliseconds=milliseconds)
                for name in ("expiresAt", "retainUntil")
                if one.get(name) is not None
            }
            if aged:
                self.documents.update_one({"_id": one["_id"]}, {"$set": aged})
        self.claims = {key: replace(one, left=one.left - milliseconds) for key, one in self.claims.items()}
        self.results = {
            key: one if one.left is None else replace(one, left=one.left - milliseconds)
            for key, one in self.results.items()
        }

    @invariant()
    def all_agree(self) -> None:
        if not hasattr(self, "providers"):
            return
        for key in ("a", "b"):
            result, claim = self.result(key), self.claim(key)
            found = self.providers[1].get(key)
            assert (found is None) is (result is None)
            if found is not None and result is not None:
                assert found.value == result.value
                assert (found.expires_at is None) is (result.left is None)
            assert self.providers[1].in_progress(key) is (claim is not None and result is None)  # a result outranks it
        states = {(one.key, one.state) for one in self.providers[0].list()}
        claims = {(key, "in_progress") for key in self.claims if self.claim(key)}
        assert states == claims | {(key, "completed") for key in self.results if self.result(key)}


@pytest.fixture(params=["mongomock", "mongod"])
def database(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "mongomock":
        yield mongomock.MongoClient()["t"]
        return
    client: MongoClient[dict[str, Any]] = MongoClient(request.getfixturevalue("mongo_url"))
    with client:
        yield client.get_default_database()


def test_the_provider_behaves_like_its_model(database: Any, request: pytest.FixtureRequest) -> None:
    machine = type("TheMachine", (Machine,), {"databases": [database]})
    real = "mongod]" in request.node.name
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40 if real else 120,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
