"""A receiver of events that are signed, and that come more than once."""

import hashlib
import hmac
import json

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from goscope_django.decorators import idempotent
from webhook.booking import book


def signed(body):
    return hmac.new(settings.WEBHOOK_SECRET.encode(), body, hashlib.sha256).hexdigest()


@csrf_exempt
@require_POST
def receive(request):
    # Every delivery is checked, before anything is claimed for it: also a repeat of a good one.
    if not hmac.compare_digest(signed(request.body), request.headers.get("X-Signature", "")):
        raise PermissionDenied
    return received(request)


@idempotent(
    key=lambda request: json.loads(request.body)["id"],  # the sender's own name of the event
    user="payments.example",  # whose events these are; not who sends this very delivery
    fingerprint=False,  # repeats may differ, in their time stamps for example
    timeout=7 * 86_400,  # longer than the sender goes on repeating
)
def received(request):
    event = json.loads(request.body)
    book(event["id"], event["amount"])
    return JsonResponse({"received": event["id"]})
