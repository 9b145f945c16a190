"""What the dashboard shows while sessions are in MongoDB and can't be read: a page that needs no user.

Rules of this file:

* Anybody may see it, so it says nothing of this project: no host, no URL, no name of an alias, no error's text.
* It needs neither session, user nor store, and none of the project's templates, which may need one of them.
"""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

from goscope_django import conf, sessions
from goscope_django.dashboard import text
from goscope_django.exceptions import PoolExhausted, StoreError, StoreUnavailable
from goscope_django.http.problems import problem
from goscope_django.middleware import RETRY_AFTER
from goscope_django.operations.meanwhile import FEATURES

_TITLES = (
    (PoolExhausted, "This process has no connection to MongoDB free"),
    (StoreUnavailable, "MongoDB can't be reached"),
    (StoreError, "MongoDB answers with an error"),
)


def answer(url: Callable[[str], str], request: HttpRequest, error: StoreError, *, as_data: bool) -> HttpResponse:
    """503: the page, or with ``as_data`` problem+json. ``url`` gives the address of the dashboard's ``changelist``."""
    title = next(words for kind, words in _TITLES if isinstance(error, kind))
    if as_data:
        detail = "Sessions can't be read, so nobody can be signed in. Try again when MongoDB answers."
        return problem(503, "store-unavailable", title, detail, retry_after=RETRY_AFTER)
    since = sessions.unreadable_since()
    context = {
        "title": title,
        "ours": conf.session_engine() == sessions.__name__,
        "since": since,
        "since_text": text.moment(since, zone=True),
        "page_url": url("changelist"),
        "posted": request.method == "POST",
        "features": FEATURES,
    }
    response = HttpResponse(render_to_string("goscope/away.html", context), status=503)
    response["Retry-After"] = f"{RETRY_AFTER:.0f}"
    response["Cache-Control"] = "no-store"
    return response
