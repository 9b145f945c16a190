"""Misuse of decorators is told where it is written, alike for all of them; and templates keep their fields apart."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from django.utils.decorators import method_decorator
from django.views import View
from hypothesis import given
from hypothesis import strategies as st

from goscope_django.checkpoints import checkpointed
from goscope_django.circuits import CircuitBreaker
from goscope_django.core.decorating import Template
from goscope_django.decorators import circuit_breaker, idempotent, locked, single_flight
from goscope_django.exceptions import GoscopeError, InvalidType, InvalidValue
from goscope_django.integrations import tasks
from goscope_django.locks import lock

KEYED: dict[str, Callable[[Any], Callable[[Any], Any]]] = {
    "locked": locked,
    "lock": lock,
    "idempotent": lambda key: idempotent(key=key),
    "single_flight": lambda key: single_flight(key=key),
    "checkpointed": checkpointed,
    "resumable": tasks.resumable,
}
keyed = pytest.mark.parametrize("decorator", KEYED.values(), ids=KEYED)


def order(n: int, *, full: bool = False) -> str:
    return f"{n} {full}"


class Orders:
    def place(self, n: int) -> str:
        return f"placed {n}"


@pytest.mark.parametrize(
    "decorator",
    [locked, lock, idempotent, single_flight, circuit_breaker, CircuitBreaker, checkpointed, tasks.resumable],
    ids=lambda decorator: decorator.__name__,
)
def test_without_parentheses(decorator: Any) -> None:
    with pytest.raises(InvalidType, match=r"parentheses: @\w+\(") as caught:

        @decorator  # type: ignore[untyped-decorator]
        def work(n: int) -> int:
            return n

    assert "work" in str(caught.value) and isinstance(caught.value, TypeError)
    with pytest.raises(InvalidType, match="parentheses"):

        @decorator  # type: ignore[untyped-decorator]
        async def awork(n: int) -> int:
            return n

    with pytest.raises(InvalidType, match="parentheses"):

        class Held:
            @decorator  # type: ignore[untyped-decorator]
            def work(self) -> None: ...

    with pytest.raises(InvalidType, match="parentheses"):

        @decorator  # type: ignore[untyped-decorator]
        @functools.lru_cache
        def cached(n: int) -> int:
            return n


def make_key(prefix: str) -> Callable[[int], str]:
    def key(n: int) -> str:
        return f"{prefix}:{n}"

    return key


def test_a_function_of_the_arguments_is_no_misuse() -> None:
    def key(n: int) -> str:
        return f"k:{n}"

    class Keys:
        @staticmethod
        def of(n: int) -> str:
            return f"k:{n}"

        def _key(self) -> str:
            return "k"

        @locked(_key)
        def work(self) -> int:
            return 1

    keys: list[Any] = [key, lambda n: f"k:{n}", make_key("k"), Keys.of, functools.partial(make_key, "k"), str, order]
    decorators: tuple[Any, ...] = (locked, checkpointed, tasks.resumable)
    for decorator in decorators:
        for one in keys:
            assert callable(decorator(one)(order))
    assert locked(key)(order)(1) == "1 False"
    assert Keys().work() == 1


@keyed
@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("order:{ordr}", "ordr"),
        ("order:{n}:{ordr.pk}", "ordr"),
        ("order:{n:{width}}", "width"),
        ("order:{}", ""),
        ("order:{0}", "0"),
        ("order:{ordr[0]}", "ordr"),
    ],
)
def test_a_template_that_names_no_parameter(decorator: Any, template: str, part: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        decorator(template)(order)
    text = str(caught.value)
    assert template in text and f"{{{part}}}" in text and "order()" in text and "n, full" in text
    with pytest.raises(InvalidValue, match="doubled"):
        decorator("order:{n")(order)


@keyed
def test_what_is_decorated_must_be_a_function(decorator: Any) -> None:
    for value in (5, "text", None):
        with pytest.raises(InvalidType, match="needed"):
            decorator("k")(value)
    with pytest.raises(InvalidType, match="method_decorator"):
        decorator("k")(Orders)
    if decorator is not KEYED["resumable"]:
        with pytest.raises(InvalidType):
            decorator(5)(order)


@keyed
def test_templates_work_alike(decorator: Any) -> None:
    decorated = decorator("order:{n}:{full}")(order)
    assert decorated(1) == "1 False"
    assert decorated(n=1, full=True) == "1 True"
    with pytest.raises(TypeError):
        decorated()
    with pytest.raises(TypeError):
        decorated(1, nonsense=2)
    assert decorator("place:{n}")(Orders.place)(Orders(), 3) == "placed 3"


@pytest.mark.parametrize("decorator", [idempotent, single_flight], ids=lambda decorator: decorator.__name__)
def test_functions_that_share_a_name_need_one(decorator: Any) -> None:
    def made(value: int, **options: Any) -> Any:
        @decorator(key="k", **options)  # type: ignore[untyped-decorator]
        def inner() -> int:
            return value

        return inner

    with pytest.raises(InvalidValue, match="name=") as caught:
        made(1)
    assert "made.<locals>.inner" in str(caught.value)
    assert [made(1, name="one")(), made(2, name="two")()] == [1, 2]
    with pytest.raises(TypeError, match="name="):
        made(1, name=5)


def test_lambdas_share_a_name() -> None:
    module_level = eval("lambda: 1", {"__name__": "shop"})
    with pytest.raises(InvalidValue, match="name="):
        idempotent(key="k")(module_level)
    assert idempotent(key="k", name="one")(module_level)() == 1


def test_method_decorator_works_with_keys() -> None:
    """It decorates a function of its own to look at it, and binds the method before each call."""

    @method_decorator(locked("view:{pk}"), name="dispatch")
    @method_decorator(idempotent(key="{pk}", name="view"), name="post")
    class Place(View):
        def post(self, request: HttpRequest, pk: int) -> HttpResponse:
            return HttpResponse(f"placed {pk}")

    view: Any = Place.as_view()
    post = RequestFactory().post
    first, again, other = view(post("/1"), pk=1), view(post("/1"), pk=1), view(post("/1"), pk=2)
    assert (first.content, other.content) == (b"placed 1", b"placed 2")
    assert again["Idempotent-Replayed"] == "true" and "Idempotent-Replayed" not in other
    assert callable(idempotent(key="{pk}", name="as_view")(view)) and callable(single_flight(key="k")(view))


def test_a_constant_key_of_a_view_is_refused() -> None:
    @idempotent(key="k", name="a_view")
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("x")

    with pytest.raises(InvalidType, match="all requests"):
        view(RequestFactory().post("/"))


def test_what_a_field_may_be() -> None:
    class Order:
        pk = 7
        lines = ("a", "b")

    def work(order: Any, n: int = 3, /, *more: Any, day: str = "mon", **options: Any) -> None: ...

    def key(text: str, *args: Any, **kwargs: Any) -> str:
        return Template(text, work, "key")(*args, **kwargs)

    assert key("{order.pk}:{order.lines[1]}", Order()) == "7:b"
    assert key("{n:03d}:{day!r}", None) == "003:'mon'"
    assert key("{more[0]}:{colour}", None, 3, "x", colour="red") == "x:red"
    assert key("{{n}}:{n}", None) == "{n}:3"
    assert key("{n:{width}}", None, width=3) == "  3"
    for text in ("{colour}", "{order.secret}", "{more[4]}", "{day:d}"):
        with pytest.raises(InvalidValue, match="can't be filled") as caught:
            key(text, "hunter2", day="hunter2")
        assert "hunter2" not in str(caught.value)


def apart(text: str) -> Iterator[tuple[str, ...]]:
    yield from (("1:2", "3"), ("1", "2:3"), ("1%3A2", "3"), ("1%253A2", "3"), ("1", "23"), ("12", "3"), ("", ""))


TEMPLATES = ["ab:{a}:{b}", "{a}{b}", "{a}%{b}", "{a}3{b}", "{a}A{b}", "{a} and {b}", "{a}|{b}x", "{b}{{{a}", "{a}é{b}"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_fields_are_kept_apart(template: str) -> None:
    def pair(a: str, b: str) -> None: ...

    key = Template(template, pair, "key")
    values = list(apart(template))
    assert len({key(*one) for one in values}) == len(values)


text = st.text(alphabet="%~|:3AFyz2 {é", max_size=5)


@given(template=st.sampled_from(TEMPLATES), one=st.tuples(text, text), other=st.tuples(text, text))
def test_two_calls_share_a_key_only_if_all_fields_are_the_same(
    template: str, one: tuple[str, str], other: tuple[str, str]
) -> None:
    def pair(a: str, b: str) -> None: ...

    key = Template(template, pair, "key")
    assert (key(*one) == key(*other)) is (one == other)


def test_simple_values_are_stored_as_they_are() -> None:
    def three(a: Any, b: Any = None, c: Any = None) -> None: ...

    assert Template("ab:{a}:{b}", three, "key")("x-1_y.z", 5) == "ab:x-1_y.z:5"
    assert Template("import:{a}", three, "key")("/data/a:b %41.csv") == "import:/data/a:b %41.csv"
    assert Template("{a}:{b}", three, "key")("1:2", "3:4") == "1%3A2:3:4"


def test_records_and_flights_of_different_fields_are_different() -> None:
    runs: list[tuple[str, str]] = []

    @idempotent(key="ab:{a}:{b}", name="two_fields")
    def charge(a: str, b: str) -> str:
        runs.append((a, b))
        return f"{a} {b}"

    assert [charge("1:2", "3"), charge("1", "2:3"), charge("1:2", "3")] == ["1:2 3", "1 2:3", "1:2 3"]
    assert runs == [("1:2", "3"), ("1", "2:3")]


def test_every_misuse_is_an_error_of_the_tree() -> None:
    for call in (lambda: locked("{x}")(order), lambda: circuit_breaker(order), lambda: locked(5)):  # type: ignore[arg-type]
        with pytest.raises(GoscopeError):
            call()
