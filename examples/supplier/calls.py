"""A supplier that allows five calls a second, and is down now and then."""

from django.core.cache import cache

from goscope_django.circuits import CircuitBreaker
from goscope_django.exceptions import StoreError

PER_SECOND = 5


class TooManyCalls(Exception):
    """We have used up this second's calls, or the supplier says so. No sign that it is ill."""


# Neither that nor an outage of MongoDB, where the calls are counted, is a failure of the supplier.
breaker = CircuitBreaker("supplier", failure_threshold=3, reset_timeout=30, exclude=(TooManyCalls, StoreError))


def take_a_turn():
    """Count a call of the whole fleet; the server's clock says when a second is over."""
    for _ in range(3):
        cache.add("supplier:calls", 0, timeout=1)
        try:
            calls = cache.incr("supplier:calls")  # atomic, and leaves the expiry as it is
        except ValueError:  # the second ended between the two
            continue
        if calls <= PER_SECOND:
            return
        break
    raise TooManyCalls


@breaker
def stock(sku, fetch):
    """``fetch(sku)`` returns the status and the body of the supplier's answer, or raises ``OSError``."""
    take_a_turn()
    status, body = fetch(sku)
    if status == 429:
        raise TooManyCalls
    if status >= 500:
        raise OSError(status)
    return body
