"""What ``CircuitBreaker`` accepts, and what wraps what: nothing here needs a store."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Coroutine, Generator, Iterator
from concurrent.futures import CancelledError
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from goscope_django import circuits
from goscope_django.circuits import CircuitBreaker, CircuitOpen, circuit_breaker, registry
from goscope_django.circuits.outcomes import Judge
from goscope_django.core.flow import execute
from goscope_django.exceptions import InvalidType, InvalidValue
from goscope_django.idempotency import idempotent
from goscope_django.single_flight import single_flight
from tests.support.circuits import Boom, own_store


@pytest.fixture(autouse=True)
def prefix() -> Iterator[str]:
    with own_store("mongomock://") as found:
        yield found


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"failure_threshold": 0}, InvalidValue, "failure_threshold=0"),
        ({"failure_threshold": True}, InvalidType, "failure_threshold=True"),
        ({"failure_threshold": 1.5}, InvalidType, "failure_threshold=1.5"),
        ({"failure_threshold": 10_001}, InvalidValue, "10000"),
        ({"success_threshold": 0}, InvalidValue, "success_threshold=0"),
        ({"half_open_max_calls": -1}, InvalidValue, "half_open_max_calls=-1"),
        ({"reset_timeout": 0}, InvalidValue, "reset_timeout=0"),
        ({"reset_timeout": "30"}, InvalidType, "reset_timeout='30'"),
        ({"reset_timeout": float("nan")}, InvalidValue, "finite"),
        ({"window": -1}, InvalidValue, "window=-1"),
        ({"window": None}, InvalidType, "window=None"),
        ({"probe_timeout": 0}, InvalidValue, "probe_timeout=0"),
        ({"exclude": "KeyError"}, InvalidType, "exclude='KeyError'"),
        ({"exclude": (KeyError, 3)}, InvalidType, "exception classes"),
        ({"exclude": int}, InvalidType, "exception classes"),
        ({"fallback": 3}, InvalidType, "fallback=3"),
    ],
)
def test_a_bad_option_is_named_with_its_value(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words.replace("(", r"\(")):
        CircuitBreaker("supplier", **options)


@pytest.mark.parametrize(("name", "error"), [("", InvalidValue), (None, InvalidType), ("\ud800", InvalidValue)])
def test_a_name_is_needed(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        CircuitBreaker(name)
    with pytest.raises(error):
        circuits.force_open(name)


@pytest.mark.parametrize(("generation", "error"), [(-1, InvalidValue), (True, InvalidType), ("1", InvalidType)])
def test_operators_arguments_are_checked(generation: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="expected_generation"):
        circuits.reset("supplier", expected_generation=generation)
    with pytest.raises(InvalidType, match="reason"):
        circuits.reset("supplier", 3)  # type: ignore[arg-type]


def test_durations_may_be_timedeltas() -> None:
    CircuitBreaker("a", reset_timeout=timedelta(minutes=1), window=timedelta(hours=1), probe_timeout=timedelta(1))


def test_bad_settings_are_an_error_of_the_first_use_not_of_the_breaker() -> None:
    with override_settings(GOSCOPE={"URL": "nonsense://", "TEST": {"URL": "nonsense://"}}):
        breaker = CircuitBreaker("supplier")
        with pytest.raises(ImproperlyConfigured):
            breaker.call(lambda: None)


class TestOutcomes:
    @pytest.mark.parametrize(
        ("error", "outcome"),
        [
            (Boom(), "failure"),
            (TimeoutError(), "failure"),
            (KeyError(), "ignored"),
            (LookupError(), "failure"),
            (Boom("mine"), "ignored"),
            (asyncio.CancelledError(), "ignored"),
            (CancelledError(), "ignored"),
            (KeyboardInterrupt(), "ignored"),
            (SystemExit(), "ignored"),
            (GeneratorExit(), "ignored"),
            (CircuitOpen("", name="supplier", retry_after=1), "ignored"),
            (CircuitOpen("", name="another", retry_after=1), "failure"),
        ],
    )
    def test_each_error_is_a_failure_or_says_nothing(self, error: BaseException, outcome: str) -> None:
        judge = Judge("supplier", (KeyError, lambda one: "mine" in str(one)))
        assert judge.outcome(error) == outcome

    @pytest.mark.parametrize(
        ("module", "name", "outcome"),
        [
            ("gevent.timeout", "Timeout", "failure"),
            ("greenlet", "GreenletExit", "ignored"),
            ("trio", "Cancelled", "ignored"),
            ("shop", "Cancelled", "failure"),
        ],
    )
    def test_so_is_each_that_is_no_exception_by_class(self, module: str, name: str, outcome: str) -> None:
        kind = type(name, (BaseException,), {"__module__": module})
        assert Judge("supplier", ()).outcome(kind()) == outcome
        assert Judge("supplier", kind).outcome(type("Mine", (kind,), {})()) == "ignored"


class TestDecorator:
    def test_it_keeps_name_signature_and_kind(self) -> None:
        @circuit_breaker("supplier")
        def plain(a: int, *, b: str = "x") -> str:
            """Doc."""
            return f"{a}{b}"

        @circuit_breaker("supplier")
        async def native(a: int) -> int:
            return a

        assert (plain.__name__, plain.__doc__, str(inspect.signature(plain))) == (
            "plain",
            "Doc.",
            "(a: 'int', *, b: 'str' = 'x') -> 'str'",
        )
        assert plain(1, b="y") == "1y"
        assert iscoroutinefunction(native)
        assert not iscoroutinefunction(plain)
        assert asyncio.run(native(3)) == 3

    def test_methods_get_their_self(self) -> None:
        class Client:
            @circuit_breaker("supplier")
            def get(self) -> Client:
                return self

            @circuit_breaker("supplier")
            async def aget(self) -> Client:
                return self

            @classmethod
            @circuit_breaker("supplier")
            def make(cls) -> type[Client]:
                return cls

            @staticmethod
            @circuit_breaker("supplier")
            def twice(number: int) -> int:
                return 2 * number

        client = Client()
        assert client.get() is client
        assert asyncio.run(client.aget()) is client
        assert Client.make() is Client
        assert Client.twice(2) == 4

    def test_marked_and_partial_functions_are_told_apart(self) -> None:
        async def native(a: int, b: int) -> int:
            return a + b

        def gives_coroutine(a: int) -> Any:
            return native(a, 1)

        breaker = CircuitBreaker("supplier")
        assert asyncio.run(breaker(functools.partial(native, 1))(2)) == 3
        assert iscoroutinefunction(breaker(markcoroutinefunction(gives_coroutine)))

    def test_a_function_that_gives_a_coroutine_fails_when_that_fails(self) -> None:
        async def native() -> None:
            raise Boom

        breaker = CircuitBreaker("supplier", failure_threshold=1)

        @breaker
        def guarded() -> Coroutine[Any, Any, None]:
            return native()

        with pytest.raises(Boom):
            asyncio.run(guarded())
        with pytest.raises(CircuitOpen):
            asyncio.run(guarded())

    def test_a_fallback_may_be_asynchronous(self) -> None:
        async def instead(number: int) -> int:
            return -number

        async def body(number: int) -> int:
            raise Boom

        breaker = CircuitBreaker("supplier", failure_threshold=1, fallback=instead)
        guarded = breaker(body)
        with pytest.raises(Boom):
            asyncio.run(guarded(1))
        assert asyncio.run(guarded(2)) == -2


class TestContextManager:
    def test_both_kinds_report_how_the_block_ended(self) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=2)

        async def native() -> None:
            async with breaker as entered:
                assert entered is breaker
                raise Boom

        with pytest.raises(Boom), breaker:
            raise Boom
        with pytest.raises(Boom):
            asyncio.run(native())
        with pytest.raises(CircuitOpen), breaker:
            pytest.fail("it is open")

    def test_it_nests_and_each_level_reports_for_itself(self) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=3)
        with pytest.raises(Boom), breaker, breaker:
            raise Boom
        found = circuits.get_circuit("supplier")
        assert found
        assert found.failure_count == 2

    def test_tasks_that_share_a_breaker_do_not_mix(self) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=100)

        async def body(number: int) -> None:
            async with breaker:
                await asyncio.sleep(0.001 * (number % 5))
                if number % 2:
                    raise Boom

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(body(one) for one in range(20)), return_exceptions=True)

        ended = asyncio.run(all_of_them())
        assert [isinstance(one, Boom) for one in ended] == [bool(one % 2) for one in range(20)]

    def test_a_generator_that_is_closed_gives_its_probe_back(self) -> None:
        breaker = CircuitBreaker("supplier", failure_threshold=1, reset_timeout=0.01)
        with pytest.raises(Boom):
            breaker.call(self.boom)

        def generator() -> Generator[int, None, None]:
            with breaker:
                yield 1

        asyncio.run(asyncio.sleep(0.02))
        running = generator()
        assert next(running) == 1
        found = circuits.get_circuit("supplier")
        assert found
        assert len(found.probes) == 1
        running.close()
        found = circuits.get_circuit("supplier")
        assert found
        assert (found.state, found.probes) == ("half-open", ())

    def boom(self) -> None:
        raise Boom


def test_a_change_of_settings_forgets_what_was_known() -> None:
    breaker = CircuitBreaker("supplier", failure_threshold=1)
    with pytest.raises(Boom):
        breaker.call(TestContextManager().boom)
    with own_store("mongomock://"):
        assert breaker.call(lambda: "fresh") == "fresh"
    with pytest.raises(CircuitOpen):
        breaker.call(lambda: None)


@pytest.mark.parametrize("while_waiting", [True, False])
def test_a_call_whose_circuit_is_dropped_before_it_was_read_looks_again(while_waiting: bool) -> None:
    known, options = registry.current(), CircuitBreaker("supplier")._options
    turn = known.view("supplier").turn
    if while_waiting:
        assert turn.take(0.0)
    steps = known.entering("supplier", options)
    command = next(steps)
    known.retire()
    if while_waiting:
        turn.end()
    with pytest.raises(StopIteration) as ended:  # noqa: PT012 - a flow is driven here
        for _ in range(5):
            command = steps.send(execute(command))
    assert ended.value.value.state == "closed"


def _odd() -> Any:
    yield 1


async def _aodd() -> Any:
    yield 1


@pytest.mark.parametrize("fn", [_odd, _aodd, functools.partial(_odd), 5, None])
def test_generators_are_not_decorated(fn: Any) -> None:
    for decorate in (
        CircuitBreaker("supplier"),
        single_flight(key="k", name="generators_are_not_decorated"),
        idempotent(key="k", name="generators_are_not_decorated"),
    ):
        with pytest.raises(InvalidType, match=r"generator|function"):
            decorate(fn)


def test_the_registry_drops_circuits_that_nobody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry.current()
    for number in range(20):
        CircuitBreaker(f"tenant-{number}").call(lambda: None)
    assert len(known.views) == 20
    monkeypatch.setattr("goscope_django.circuits.registry.IDLE", 0.0)
    CircuitBreaker("tenant-20").call(lambda: None)
    assert set(known.views) == {"tenant-20"}, "a first call, which reads no other circuit, drops them as well"
    known.due = known.view("tenant-20").known_until = 0.0
    kept = CircuitBreaker("tenant-0")
    kept.call(lambda: None)
    assert len(known.views) <= 1
    assert kept.call(lambda: "again") == "again"
