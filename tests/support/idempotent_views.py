"""Idempotent views of every form, sync and async. Each counts how often it ran."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from rest_framework import serializers, viewsets
from rest_framework.authentication import TokenAuthentication
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from goscope_django.idempotency import current, idempotent

ran: Counter[str] = Counter()
seen: list[Any] = []
"""What views noticed."""
gate = threading.Event()
entered = threading.Event()


def reset() -> None:
    ran.clear()
    seen.clear()
    gate.clear()
    entered.clear()


def answer(request: HttpRequest) -> HttpResponse:
    """What the body asks for: ``{"status": 201, "size": 10, "raise": "404", "header": [...]}``."""
    ran["pay"] += 1
    asked: dict[str, Any] = json.loads(request.body or b"{}")
    seen.append(request.idempotency)  # type: ignore[attr-defined]
    kind = asked.get("raise")
    if kind:
        raise {"404": Http404, "error": RuntimeError}[kind]("asked for")
    if asked.get("stream"):
        return StreamingHttpResponse(iter([b"a", b"b"]))  # type: ignore[return-value]
    if asked.get("redirect"):
        return HttpResponseRedirect("/elsewhere/")
    if asked.get("template"):
        template = engines["django"].from_string("run {{ run }}")
        return TemplateResponse(request, template, {"run": ran["pay"]})
    body = f"run {ran['pay']}".ljust(asked.get("size", 0), ".")
    response = HttpResponse(body, status=asked.get("status", 201), content_type="text/x-receipt; charset=latin-1")
    response["X-Receipt"] = str(ran["pay"])
    response["Date"] = "Tue, 24 Nov 2026 10:00:00 GMT"
    response["Connection"] = "close, X-Hop"
    response["X-Hop"] = "1"
    response.set_cookie("basket", "paid")
    return response


async def asynchronously(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0)
    return answer(request)


def slow(request: HttpRequest) -> HttpResponse:
    ran["slow"] += 1
    entered.set()
    assert gate.wait(20)
    return HttpResponse(f"run {ran['slow']}", status=201)


async def aslow(request: HttpRequest) -> HttpResponse:
    ran["slow"] += 1
    entered.set()
    while not gate.is_set():  # noqa: ASYNC110 - another thread sets it
        await asyncio.sleep(0.01)
    return HttpResponse(f"run {ran['slow']}", status=201)


class Pay(View):
    """Decorated as a whole."""

    def post(self, request: HttpRequest) -> HttpResponse:
        return answer(request)


class APay(View):
    async def post(self, request: HttpRequest) -> HttpResponse:
        return answer(request)


class DispatchPay(Pay):
    pass


class DispatchAPay(APay):
    pass


class PayMethod(View):
    @method_decorator(idempotent())
    def post(self, request: HttpRequest) -> HttpResponse:
        return answer(request)


class PayPlainMethod(View):
    @idempotent()
    def post(self, request: HttpRequest) -> HttpResponse:
        return answer(request)


class APayPlainMethod(View):
    @idempotent()
    async def post(self, request: HttpRequest) -> HttpResponse:
        return answer(request)


class OwnDispatchPay(Pay):
    @idempotent()
    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        return super().dispatch(request, *args, **kwargs)


class OwnDispatchAPay(APay):
    @idempotent()
    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        return super().dispatch(request, *args, **kwargs)


def rest_answer(request: Request) -> Response:
    ran["pay"] += 1
    seen.append(request.idempotency)  # type: ignore[attr-defined]
    asked: Any = request.data
    status = asked.get("status", 201)
    if asked.get("invalid"):
        raise serializers.ValidationError({"amount": ["not enough"]})
    user = getattr(request.user, "username", "") or "nobody"
    return Response({"run": ran["pay"], "user": user}, status=status, headers={"X-Receipt": str(ran["pay"])})


class RestPay(APIView):
    authentication_classes = [TokenAuthentication]
    permission_classes = []

    @idempotent()
    def post(self, request: Request) -> Response:
        return rest_answer(request)


@method_decorator(idempotent(), name="dispatch")
class RestPayDispatch(APIView):
    authentication_classes = [TokenAuthentication]
    permission_classes = []

    def post(self, request: Request) -> Response:
        return rest_answer(request)

    patch = post


@method_decorator(idempotent(), name="create")
class RestPays(viewsets.ViewSet):
    authentication_classes = [TokenAuthentication]
    permission_classes = []

    def create(self, request: Request) -> Response:
        return rest_answer(request)


@api_view(["POST"])
@idempotent()
def rest_pay(request: Request) -> Response:
    return rest_answer(request)


def nested(request: HttpRequest) -> HttpResponse:
    """What ``current()`` tells in a view's helper."""
    seen.append(current())
    return answer(request)


waiting = idempotent(on_conflict="wait", blocking_timeout=15)
impatient = idempotent(on_conflict="wait", blocking_timeout=0.3)
views: dict[str, Callable[..., Any]] = {
    "sync": idempotent()(answer),
    "async": idempotent()(asynchronously),
    "required": idempotent(required=True)(answer),
    "arequired": idempotent(required=True)(asynchronously),
    "slow": idempotent()(slow),
    "aslow": idempotent()(aslow),
    "waiting": waiting(slow),
    "awaiting": waiting(aslow),
    "impatient": impatient(slow),
    "aimpatient": impatient(aslow),
    "ignoring": idempotent(on_error="ignore")(answer),
    "aignoring": idempotent(on_error="ignore")(asynchronously),
    "own-key": idempotent(key=lambda request: request.headers.get("X-Request"))(answer),
    "own-user": idempotent(user=lambda request: request.headers.get("X-Tenant"))(answer),
    "own-print": idempotent(fingerprint=lambda request: json.loads(request.body)["order"])(answer),
    "no-print": idempotent(fingerprint=False)(answer),
    "nested": idempotent()(nested),
    "class": method_decorator(idempotent(), name="dispatch")(DispatchPay).as_view(),
    "aclass": method_decorator(idempotent(), name="dispatch")(DispatchAPay).as_view(),
    "as-view": idempotent()(Pay.as_view()),
    "aas-view": idempotent()(APay.as_view()),
    "twice": idempotent()(PayPlainMethod.as_view()),
    "atwice": idempotent()(APayPlainMethod.as_view()),
    "own-dispatch": OwnDispatchPay.as_view(),
    "aown-dispatch": OwnDispatchAPay.as_view(),
    "method": PayMethod.as_view(),
    "plain-method": PayPlainMethod.as_view(),
    "aplain-method": APayPlainMethod.as_view(),
    "rest": RestPay.as_view(),
    "rest-dispatch": RestPayDispatch.as_view(),
    "rest-viewset": RestPays.as_view({"post": "create"}),
    "rest-function": rest_pay,
    "rest-outside": idempotent()(api_view(["POST"])(rest_answer)),
}
urlpatterns = [path(f"{name}/", view) for name, view in views.items()]
