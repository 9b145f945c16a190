"""``idempotent(atomic=...)``: business data and record are committed together, on ``django_mongodb_backend``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db import transaction as djangos
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, override_settings
from pymongo import MongoClient, monitoring
from pymongo.errors import OperationFailure

from goscope_django import runtime
from goscope_django.exceptions import ClaimLost, ConfigurationError, IdempotencyConflict, IdempotencyError
from goscope_django.idempotency import current, idempotent
from goscope_django.mongodb.idempotency.flows import IDEMPOTENCY
from tests.support.backend import ALIAS, mongodb_alias
from tests.support.mongod import temporary_mongod

pytest.importorskip("django_mongodb_backend", reason="django-mongodb-backend is not installed")
from django_mongodb_backend import transaction

NAME = f"{__name__}.place k"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


class Commands(monitoring.CommandListener):
    """The names of the commands that were sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.sent.append(event.command_name)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


class Shop:
    """The business data, the records, and a way to look at both from outside."""

    def __init__(self, connection: Any, url: str, theirs: Commands, ours: Commands) -> None:
        self.connection, self.theirs, self.ours = connection, theirs, ours
        self.client: MongoClient[dict[str, Any]] = MongoClient(url)
        self.db = self.client.get_default_database()

    def order(self, name: str) -> None:
        """Write as a model would: in the backend's transaction, if there is one."""
        mine: Any = connections[ALIAS]  # each thread has its own
        mine.database["order"].insert_one({"name": name}, session=mine.session)

    @property
    def orders(self) -> int:
        return self.db["order"].count_documents({})

    def documents(self) -> list[dict[str, Any]]:
        return list(self.db[IDEMPOTENCY].find().sort("key"))

    @property
    def states(self) -> list[tuple[Any, Any]]:
        return [(one["_id"], one["key"]) for one in self.documents()]

    def forget(self) -> None:
        self.theirs.sent.clear()
        self.ours.sent.clear()


@pytest.fixture
def shop(mongo_url: str, django_db_blocker: Any) -> Iterator[Shop]:
    theirs, ours = Commands(), Commands()
    goscope = {"TEST": {"URL": f"django://{ALIAS}"}, "CLIENT_OPTIONS": {"event_listeners": [ours]}}
    with (
        django_db_blocker.unblock(),
        mongodb_alias(mongo_url, OPTIONS={"event_listeners": [theirs]}) as connection,
        override_settings(GOSCOPE=goscope),
    ):
        runtime.adapter().connect()
        runtime.adapter().wipe()
        shop = Shop(connection, mongo_url, theirs, ours)
        shop.db["order"].delete_many({})
        shop.db["order"].insert_one({"name": "made, so that no transaction makes the collection"})
        shop.db["order"].delete_many({})
        shop.forget()
        yield shop
        shop.client.close()


def placing(shop: Shop, **options: Any) -> Any:
    def place(way: str = "") -> str:
        shop.order(way)
        if way == "raise":
            raise RuntimeError
        return f"placed {way}"

    place.__module__, place.__qualname__ = __name__, "place"
    return idempotent(key="k", atomic=ALIAS, **options)(place)


# Together or not at all


def test_data_and_record_are_committed_together_and_the_claim_goes(shop: Shop) -> None:
    place = placing(shop)
    assert place("a") == place("b") == "placed a"
    assert shop.orders == 1
    (record,) = shop.documents()
    assert (record["_id"], record["key"], record["claim"]) == (f"done:{NAME}", NAME, None)


def test_a_first_run_costs_four_commands_and_a_repeat_one(shop: Shop) -> None:
    place = placing(shop)
    place()
    assert shop.theirs.sent == ["insert", "findAndModify", "commitTransaction"]
    assert shop.ours.sent == ["findAndModify", "delete"]
    shop.forget()
    place()
    assert (shop.theirs.sent, len(shop.ours.sent)) == ([], 1)


def test_an_error_leaves_neither_data_nor_record_and_a_repeat_runs(shop: Shop) -> None:
    place = placing(shop)
    with pytest.raises(RuntimeError):
        place("raise")
    assert (shop.orders, shop.states) == (0, [])
    assert place("b") == "placed b"
    assert shop.orders == 1


@pytest.mark.parametrize("durable", [True, False])
def test_inside_djangos_atomic_which_does_nothing_here(shop: Shop, durable: bool) -> None:
    """As under ``ATOMIC_REQUESTS``. The backend's own ``atomic`` fails there, after its commit."""
    place, hooks = placing(shop), list[str]()
    with djangos.atomic(using=ALIAS, durable=durable):
        with pytest.raises(RuntimeError):
            place("raise")
        assert (shop.orders, shop.states) == (0, [])
        assert place("a") == place("b") == "placed a"
        transaction.on_commit(lambda: hooks.append("at once"), using=ALIAS)
        assert shop.connection.in_atomic_block
        assert shop.states == [(f"done:{NAME}", NAME)]
    assert (shop.orders, hooks) == (1, ["at once"])
    assert not shop.connection.in_atomic_block


def test_until_the_commit_repeats_see_that_it_is_in_progress(shop: Shop) -> None:
    place, seen = placing(shop), []

    def elsewhere() -> None:
        with pytest.raises(IdempotencyConflict):
            place()
        seen.append(runtime.adapter().idempotency.get(NAME))

    with transaction.atomic(ALIAS):
        place("a")
        other = threading.Thread(target=elsewhere)
        other.start()
        other.join()
        assert shop.states == [(NAME, f"claim:{NAME}")]
    assert seen == [None]
    assert place() == "placed a"
    assert shop.states == [(f"done:{NAME}", NAME)]


def test_the_rollback_of_an_outer_transaction_takes_both_back(shop: Shop) -> None:
    place = placing(shop)

    def both() -> None:
        with transaction.atomic(ALIAS):
            place("a")
            raise KeyError

    with pytest.raises(KeyError):
        both()
    assert (shop.orders, shop.states) == (0, [])
    assert place("b") == "placed b"


def test_an_error_inside_an_outer_transaction_keeps_the_claim_until_its_end(shop: Shop) -> None:
    place = placing(shop)
    with transaction.atomic(ALIAS):
        with pytest.raises(RuntimeError):
            place("raise")
        assert shop.states == [(NAME, f"claim:{NAME}")]
    assert shop.states == []


def test_a_commit_hook_that_fails_is_no_failed_commit(shop: Shop) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    def place() -> None:
        shop.order("a")
        transaction.on_commit(broken, using=ALIAS)

    place.__module__, place.__qualname__ = __name__, "place"
    with pytest.raises(ZeroDivisionError):
        idempotent(key="k", atomic=ALIAS)(place)()
    assert (shop.orders, shop.states) == (1, [(f"done:{NAME}", NAME)])


def test_the_lease_is_renewed_while_the_transaction_is_open(shop: Shop) -> None:
    place = placing(shop, lease=0.4)
    with transaction.atomic(ALIAS):
        place("a")
        until = shop.documents()[0]["expiresAt"]
        deadline = threading.Event()
        for _ in range(100):
            if shop.documents()[0]["expiresAt"] > until:
                break
            deadline.wait(0.05)
        else:
            pytest.fail("the claim was not renewed")
    assert (shop.orders, shop.states) == (1, [(f"done:{NAME}", NAME)])


# Two workers


def stolen(shop: Shop, key: str = NAME) -> None:
    """Let the running claim's lease end, as if its worker had stood still."""
    shop.db[IDEMPOTENCY].update_one({"key": f"claim:{key}"}, [{"$set": {"expiresAt": {"$subtract": ["$$NOW", 1]}}}])


def test_the_second_of_two_workers_is_undone_and_gets_the_first_ones_result(shop: Shop) -> None:
    runs: list[str] = []

    def place(name: str) -> str:
        runs.append(name)
        if name == "slow":
            stolen(shop)
            other = threading.Thread(target=lambda: runs.append(wrapped("quick")))
            other.start()
            other.join()
        shop.order(name)
        return name

    place.__module__, place.__qualname__ = __name__, "place"
    wrapped = idempotent(key="k", atomic=ALIAS)(place)
    assert wrapped("slow") == "quick"
    assert runs == ["slow", "quick", "quick"]
    assert [one["name"] for one in shop.db["order"].find()] == ["quick"]
    assert shop.states == [(f"done:{NAME}", NAME)]


def test_inside_an_outer_transaction_the_second_worker_must_roll_it_back(shop: Shop) -> None:
    place = placing(shop)

    def overtaken() -> str:
        stolen(shop)
        other = threading.Thread(target=placing(shop), args=("quick",))
        other.start()
        other.join()
        shop.order("slow")
        return "slow"

    overtaken.__module__, overtaken.__qualname__ = __name__, "place"
    with pytest.raises(ClaimLost), transaction.atomic(ALIAS):
        idempotent(key="k", atomic=ALIAS)(overtaken)()
    assert [one["name"] for one in shop.db["order"].find()] == ["quick"]
    assert place() == "placed quick"


def test_a_commit_during_the_transaction_counts_as_first(shop: Shop) -> None:
    def place(name: str) -> str:
        shop.order(name)  # the transaction's snapshot is from before the other one's commit
        if name == "slow":
            stolen(shop)
            other = threading.Thread(target=wrapped, args=("quick",))
            other.start()
            other.join()
        return name

    place.__module__, place.__qualname__ = __name__, "place"
    wrapped = idempotent(key="k", atomic=ALIAS)(place)
    assert wrapped("slow") == "quick"
    assert [one["name"] for one in shop.db["order"].find()] == ["quick"]


def test_a_conflict_with_a_record_that_is_not_committed_is_raised_unchanged(shop: Shop) -> None:
    place = placing(shop)
    session = shop.client.start_session()
    with session, session.start_transaction():
        shop.db[IDEMPOTENCY].insert_one({"_id": f"done:{NAME}", "key": NAME}, session=session)
        with pytest.raises(OperationFailure) as caught:
            place("slow")
        assert caught.value.has_error_label("TransientTransactionError")
        session.abort_transaction()
    assert (shop.orders, shop.states) == (0, [])
    assert place("again") == "placed again"


def test_a_live_result_outranks_a_claim_that_was_left_behind(shop: Shop) -> None:
    place = placing(shop)
    place("a")
    provider = runtime.adapter().idempotency
    (record,) = shop.documents()
    left = {"_id": NAME, "key": f"claim:{NAME}", "claim": "c", "token": 1, "expiresAt": record["expiresAt"]}
    shop.db[IDEMPOTENCY].insert_one(left)
    for fresh in (False, True):
        if fresh:
            provider.flows.finished.clear()
        assert provider.begin(NAME, 60_000).outcome == "completed"
        assert not provider.in_progress(NAME)
    assert place("b") == "placed a"
    assert shop.orders == 1


@pytest.mark.parametrize("left", [False, True], ids=["alone", "beside a claim"])
def test_an_expired_result_is_replaced(shop: Shop, left: bool) -> None:
    place = placing(shop)
    place("a")
    shop.db[IDEMPOTENCY].update_one({"key": NAME}, [{"$set": {"expiresAt": {"$subtract": ["$$NOW", 1]}}}])
    if left:
        shop.db[IDEMPOTENCY].insert_one({"_id": NAME, "key": f"claim:{NAME}", "claim": None, "token": 1})
    assert place("b") == "placed b"
    assert shop.states == [(f"done:{NAME}", NAME)]
    assert shop.orders == 2


def test_a_result_that_expires_during_the_transaction_is_replaced_in_it(shop: Shop) -> None:
    def place() -> str:
        shop.db[IDEMPOTENCY].insert_one({"key": NAME, "value": "old", "expiresAt": LONG_AGO})
        shop.order("a")
        return "new"

    place.__module__, place.__qualname__ = __name__, "place"
    wrapped = idempotent(key="k", atomic=ALIAS)(place)
    assert wrapped() == wrapped() == "new"
    assert shop.orders == 1


# Errors of the transaction


def fail(shop: Shop, name: str, **options: Any) -> None:
    """Let the server fail the next command ``name`` of anybody."""
    point = {"configureFailPoint": "failCommand", "mode": {"times": 1}}
    shop.client.admin.command({**point, "data": {"failCommands": [name], **options}})


def test_a_transient_error_is_raised_unchanged_and_the_whole_call_can_be_repeated(shop: Shop) -> None:
    place = placing(shop)
    shop.db["stock"].update_one({"_id": 1}, {"$set": {"left": 1}}, upsert=True)
    session = shop.client.start_session()
    with session, session.start_transaction():
        shop.db["stock"].update_one({"_id": 1}, {"$inc": {"left": 1}}, session=session)

        def conflicting() -> None:
            shop.order("a")
            session = shop.connection.session
            shop.connection.database["stock"].update_one({"_id": 1}, {"$inc": {"left": 1}}, session=session)

        conflicting.__module__, conflicting.__qualname__ = __name__, "place"
        with pytest.raises(OperationFailure) as caught:
            idempotent(key="k", atomic=ALIAS)(conflicting)()
        assert caught.value.has_error_label("TransientTransactionError")
    assert (shop.orders, shop.states) == (0, [])
    assert place("b") == "placed b"


# Refusals


@pytest.mark.parametrize("url", ["mongomock://", "mongodb://127.0.0.1:1/x", "django://default"])
def test_any_other_store_is_refused_before_anything_is_sent(shop: Shop, url: str) -> None:
    with override_settings(GOSCOPE={"TEST": {"URL": url}}), pytest.raises(ImproperlyConfigured):
        placing(shop)()
    assert shop.theirs.sent == []


def test_async_functions_are_refused_where_they_are_decorated() -> None:
    async def place() -> None:
        pass

    with pytest.raises(ImproperlyConfigured, match="async def"):
        idempotent(key="k", atomic=ALIAS)(place)


def test_a_standalone_server_is_refused_with_the_reason(django_db_blocker: Any) -> None:
    with (
        temporary_mongod(standalone=True) as server,
        django_db_blocker.unblock(),
        mongodb_alias(server.uri.replace("/?", "/shop?") if "/?" in server.uri else f"{server.uri}/shop"),
        override_settings(GOSCOPE={"TEST": {"URL": f"django://{ALIAS}"}}),
        pytest.raises(ImproperlyConfigured, match="standalone"),
    ):
        idempotent(key="k", name="nothing", atomic=ALIAS)(lambda: None)()


def test_a_transaction_of_its_own_is_refused_inside(shop: Shop) -> None:
    def place() -> None:
        attempt = current()
        assert attempt is not None
        assert attempt.in_transaction
        with pytest.raises(ConfigurationError), attempt.transaction():
            pass

    idempotent(key="k", name="place", atomic=ALIAS)(place)()


def test_a_result_that_cant_be_stored_is_recorded_as_done(shop: Shop) -> None:
    def place() -> Any:
        shop.order("a")
        return threading.Lock()

    wrapped = idempotent(key="k", name="place", atomic=ALIAS)(place)
    wrapped()
    with pytest.raises(IdempotencyError, match="not kept"):
        wrapped()
    assert shop.orders == 1


# Views


def post(view: Any) -> HttpResponse:
    request = RequestFactory().post("/orders/", "{}", "application/json", headers={"Idempotency-Key": "k"})
    response: HttpResponse = view(request)
    return response


@pytest.mark.parametrize(("status", "kept"), [(201, True), (400, True), (500, False), (403, False), (429, False)])
def test_a_response_that_is_not_kept_rolls_back_and_one_that_is_kept_commits(
    shop: Shop, status: int, kept: bool
) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        shop.order("a")
        return HttpResponse("answer", status=status)

    wrapped = idempotent(atomic=ALIAS)(view)
    first, second = post(wrapped), post(wrapped)
    assert (first.status_code, second.status_code) == (status, status)
    assert ("Idempotent-Replayed" in second) is kept
    assert shop.orders == len(shop.documents()) == int(kept)


def test_a_view_that_was_overtaken_answers_what_the_first_one_did(shop: Shop) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        (claim,) = shop.documents()
        if not threads:
            stolen(shop, claim["_id"])
            threads.append(threading.Thread(target=post, args=(wrapped,)))
            threads[0].start()
            threads[0].join()
            answer = "slow"
        else:
            answer = "quick"
        shop.order(answer)
        return HttpResponse(answer)

    threads: list[threading.Thread] = []
    wrapped = idempotent(atomic=ALIAS)(view)
    response = post(wrapped)
    assert (response.content, response["Idempotent-Replayed"]) == (b"quick", "true")
    assert [one["name"] for one in shop.db["order"].find()] == ["quick"]
