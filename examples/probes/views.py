"""Two probes: is this process alive, and should it get requests."""

from django.http import JsonResponse

from goscope_django import operations


def live(request):
    """Asks nobody. A process that can answer needs no restart, whatever MongoDB does."""
    return JsonResponse({"alive": True})


def ready(request):
    """One command to MongoDB. Slow is well enough; down is 503, so that the balancer tries another machine."""
    found = operations.probe(seconds=1.0, slow=0.5)
    return JsonResponse({"mongodb": found.health}, status=503 if found.health == "down" else 200)
