"""A canary in every value that is given to a feature: no error, log line, signal, page, metric or command has it.

``test_no_values`` does it for the providers. Here it is in arguments of decorated functions, in what they return, in
requests and responses, in sessions and in saved states, while a server quotes it in whatever it refuses.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from prometheus_client import CONTENT_TYPE_LATEST

from goscope_django import operations, signals
from goscope_django.checkpoints import checkpointed
from goscope_django.circuits import circuit_breaker
from goscope_django.idempotency import idempotent
from goscope_django.locks import locked
from goscope_django.sessions import SessionStore
from goscope_django.single_flight import single_flight
from tests.support.commands import on_server
from tests.support.dashboard import PAGE, STATE, browser_of
from tests.support.mongod import replica_set
from tests.support.proxy import Proxy
from tests.support.quoting import CANARY, VALUE, quoting
from tests.support.texts import texts

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.django_db]
CODES = (1, 13, 112, 121, 11000)
HEADERS: dict[str, Any] = {"HTTP_AUTHORIZATION": CANARY, "HTTP_X_API_KEY": CANARY, "HTTP_COOKIE": f"cart={CANARY}"}


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with replica_set(members=1) as server, Proxy(server.ports[0]) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: Proxy) -> Iterator[None]:
    proxy.heal()
    url = f"mongodb://127.0.0.1:{proxy.port}/canary?directConnection=true&serverSelectionTimeoutMS=500"
    with on_server(url, caches={"default": {}, "old": {"OPTIONS": {"ON_ERROR": "ignore"}}}):
        yield
    proxy.heal()


@pytest.fixture
def heard(store: None, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """All that is logged and signalled in the test."""
    caplog.set_level(logging.DEBUG, "goscope")
    caplog.set_level(logging.DEBUG, "django")
    told: list[str] = []

    def receive(**details: Any) -> None:
        told.append(repr(details))
        told.extend(texts(one) for one in details.values() if isinstance(one, BaseException))

    for signal in signals.SIGNALS.values():
        signal.connect(receive)
    yield lambda: "\n".join([caplog.text, *told])
    for signal in signals.SIGNALS.values():
        signal.disconnect(receive)


def body(key: str, value: Any) -> Any:
    return value


async def abody(key: str, value: Any) -> Any:
    return value


def view(request: HttpRequest) -> HttpResponse:
    response = HttpResponse(CANARY, headers={"X-Canary": CANARY})
    response.write(request.headers.get("Authorization", "") + request.COOKIES.get("cart", "") + str(request.POST))
    return response


flight = {"timeout": 1, "blocking_timeout": 1, "key": "{key}", "on_error": "raise", "name": "canary"}
once = {"key": "{key}", "lease": 1, "fingerprint": True, "name": "canary"}
fly, afly = single_flight(**flight)(body), single_flight(**flight)(abody)  # type: ignore[arg-type]
do_once, ado_once = idempotent(**once)(body), idempotent(**once)(abody)  # type: ignore[arg-type]
guarded, aguarded = circuit_breaker("canary")(body), circuit_breaker("canary")(abody)
exclusive, aexclusive = locked("{key}", 1)(body), locked("{key}", 1)(abody)
shown = single_flight(timeout=1, on_error="raise", name="canary-view")(view)
posted = idempotent(name="canary-view", lease=1)(view)


def task(key: str) -> None:
    with checkpointed(key, lease=1, metadata={"canary": CANARY}) as found:
        found.save(VALUE)
        found.complete(VALUE)


async def atask(key: str) -> None:
    async with checkpointed(key, lease=1, metadata={"canary": CANARY}) as found:
        await found.asave(VALUE)
        found.complete(VALUE)


session_keys: list[str] = []
"""Of sessions that were made: they are as good as a password."""


def session(key: str) -> None:
    found = SessionStore()
    found["canary"] = VALUE
    found.create()
    session_keys.append(str(found.session_key))
    SessionStore(found.session_key).load()


async def asession(key: str) -> None:
    found = SessionStore()
    await found.aset("canary", VALUE)
    await found.acreate()
    session_keys.append(str(found.session_key))
    await SessionStore(found.session_key).aload()


def get_or_set(key: str) -> Any:
    return cache.get_or_set(key, lambda: VALUE)


async def aget_or_set(key: str) -> Any:
    return await cache.aget_or_set(key, lambda: VALUE)


def post(key: str) -> Any:
    more = {**HEADERS, "HTTP_IDEMPOTENCY_KEY": key}
    return posted(RequestFactory().post(f"/{key}?q={CANARY}", {"card": CANARY}, **more))


CALLS: dict[str, tuple[Callable[[str], Any], Callable[[str], Any]]] = {
    "cache set": (lambda key: cache.set(key, VALUE), lambda key: cache.aset(key, VALUE)),
    "cache add": (lambda key: cache.add(key, VALUE), lambda key: cache.aadd(key, VALUE)),
    "cache many": (lambda key: cache.set_many({key: VALUE}), lambda key: cache.aset_many({key: VALUE})),
    "cache get": (cache.get, cache.aget),
    "get_or_set": (get_or_set, aget_or_set),
    "single flight": (lambda key: fly(key, VALUE), lambda key: afly(key, VALUE)),
    "idempotent": (lambda key: do_once(key, VALUE), lambda key: ado_once(key, VALUE)),
    "breaker": (lambda key: guarded(key, VALUE), lambda key: aguarded(key, VALUE)),
    "locked": (lambda key: exclusive(key, VALUE), lambda key: aexclusive(key, VALUE)),
    "task": (task, atask),
    "session": (session, asession),
}
VIEWS: dict[str, Callable[[str], Any]] = {
    "shared view": lambda key: shown(RequestFactory().get(f"/{key}?q={CANARY}", **HEADERS)),
    "idempotent view": post,
}


def secrets_in(text: str) -> list[str]:
    """What of the canary and of sessions' keys is in ``text``."""
    return [one for one in (CANARY, *session_keys) if one in text]


def raised(call: Callable[[str], Any], key: str, mode: str) -> BaseException | None:
    """What a call raises, whatever it is."""
    try:
        if mode == "sync":
            call(key)
        else:

            async def there() -> None:
                await call(key)

            asyncio.run(there())
    except Exception as error:
        return error
    return None


PAIRS = [(name, mode, pair[mode == "async"]) for name, pair in CALLS.items() for mode in ("sync", "async")]
PAIRS += [(name, "sync", call) for name, call in VIEWS.items()]


@pytest.mark.parametrize(("name", "mode", "call"), PAIRS, ids=[f"{name}-{mode}" for name, mode, _ in PAIRS])
def test_a_quoting_server(
    name: str, mode: str, call: Callable[[str], Any], proxy: Proxy, heard: Callable[[], str]
) -> None:
    failed = 0
    assert raised(call, f"before-{mode}", mode) is None
    for number, code in enumerate(CODES):
        for form in ("command", "statement", "concern"):
            proxy.rewrite(quoting(code, CANARY, form))
            error = raised(call, f"{form}-{number}-{mode}", mode)
            failed += error is not None
            assert error is None or not secrets_in(texts(error)), f"{code}, {form}"
    assert not secrets_in(heard())
    assert failed or name in ("breaker", "get_or_set", "idempotent view"), "the test would prove nothing"


def test_nothing_that_is_shown_has_it(proxy: Proxy, heard: Callable[[], str]) -> None:
    for name, mode, call in PAIRS:
        assert raised(call, f"{name}-{mode}".replace(" ", "-"), mode) is None, name
    state = operations.state()
    seen = {"state": repr(asdict(state)), "heard": heard()}
    client = browser_of(User.objects.create_superuser("root"))
    for address in (PAGE, STATE):
        answer = client.get(address)
        assert answer.status_code == 200
        seen[address] = answer.content.decode()
    from goscope_django.integrations import prometheus

    answer = prometheus.metrics(RequestFactory().get("/metrics"))  # type: ignore[assignment]
    assert answer["Content-Type"] == CONTENT_TYPE_LATEST
    seen["metrics"] = answer.content.decode()
    for command in (
        ("goscope_status",),
        ("goscope_cache", "keys"),
        ("goscope_checkpoint", "list"),
        ("goscope_checkpoint", "show", "task-sync"),
        ("goscope_circuit", "list"),
        ("goscope_lock", "list"),
    ):
        for more in ((), ("--json",)):
            out, err = io.StringIO(), io.StringIO()
            try:
                call_command(*command, *more, stdout=out, stderr=err)
            except SystemExit as ended:
                assert ended.code in (0, 1)  # noqa: PT017 - an exit that says that something is missing
            seen[" ".join((*command, *more))] = out.getvalue() + err.getvalue()
    assert session_keys and not [name for name, text in seen.items() if secrets_in(text)]
    assert "task-sync" in seen["goscope_checkpoint list"] and "goscope_" in seen["metrics"]


def test_a_canary_is_found(heard: Callable[[], str]) -> None:
    logging.getLogger("goscope.cache").warning("the value was %s", CANARY)
    signals.lock_lost.send(signals.Goscope, key=CANARY, owner="", token=1)
    assert heard().count(CANARY) == 2
