"""The dashboard as a part of Django's admin: its addresses, its permissions, and the log of what was done.

Rules of this file:

* Every view is wrapped by the site's ``admin_view`` (staff only, CSRF, ``no-store``), and asks for its permission
  before it does anything.
* Only a confirmed POST writes anything.
* While sessions can't be read nobody can be told apart. Then there is a page for everybody, made by ``away``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import django
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.admin.utils import unquote
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import DatabaseError, router, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.views.decorators.http import require_http_methods, require_safe

from goscope_django import operations
from goscope_django.dashboard import away, text
from goscope_django.dashboard.actions import ACTIONS, Action
from goscope_django.dashboard.forms import LONGEST_LINK, Query, ReasonForm, Seen, SeenForm
from goscope_django.dashboard.presenters import Presented
from goscope_django.exceptions import (
    GoscopeError,
    InvalidType,
    InvalidValue,
    NotFound,
    OutcomeUnknown,
    StateChanged,
    StoreError,
)
from goscope_django.middleware import OWN_ANSWER, store_unavailable_response
from goscope_django.models import Dashboard
from goscope_django.operations import State

if TYPE_CHECKING:
    _Admin = admin.ModelAdmin[Dashboard]
else:
    _Admin = admin.ModelAdmin  # Django's own class has no parameters at run time

logger = logging.getLogger("goscope.dashboard")
LONGEST_MESSAGE = 600
LISTED_CRUMBS = django.VERSION >= (6, 1)
"""Whether the admin's own breadcrumbs, and its styles for them, are a list."""


class DashboardAdmin(_Admin):
    """The entry in the admin's index. Where other models list their objects, this one has the page."""

    # Permissions. There are no objects, so nobody may add, change or delete one, not even a superuser.

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Never."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether the user may see the page."""
        return _may(request, "view_dashboard")

    # Addresses

    def get_urls(self) -> list[URLPattern]:
        """The page, its parts for the refresh, its data, and the actions."""

        def wrap(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
            @functools.wraps(view)
            def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
                try:
                    return self.admin_site.admin_view(view)(request, *args, **kwargs)
                except StoreError as error:  # of the session: whoever asks can't be known
                    return store_unavailable_response(request, error)

            wrapped.model_admin = self  # type: ignore[attr-defined]  # as Django's own views have it
            setattr(wrapped, OWN_ANSWER, functools.partial(away.answer, self._url, as_data=view == self.state_view))
            return wrapped

        return [
            path("", wrap(self.changelist_view), name="goscope_dashboard_changelist"),
            path("state.json", wrap(self.state_view), name="goscope_dashboard_state"),
            path("live/", wrap(self.live_view), name="goscope_dashboard_live"),
            path("act/<slug:action>/", wrap(self.action_view), name="goscope_dashboard_action"),
            path("<path:object_id>/change/", wrap(self.logged_view), name="goscope_dashboard_change"),
        ]

    def _url(self, name: str, *args: str) -> str:
        return reverse(f"admin:goscope_dashboard_{name}", args=args, current_app=self.admin_site.name)

    # Looking

    @method_decorator(require_http_methods(["GET", "HEAD", "POST"]))
    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The page. A POST serves a query that is too long for an address, and writes nothing either."""
        return self._page(request, "goscope/dashboard.html", extra_context)

    @method_decorator(require_http_methods(["GET", "HEAD", "POST"]))
    def live_view(self, request: HttpRequest) -> HttpResponse:
        """The part of the page that is refreshed in place."""
        return self._page(request, "goscope/live.html")

    @method_decorator(require_safe)
    def state_view(self, request: HttpRequest) -> HttpResponse:
        """The same as data, as ``goscope_status --json`` prints it."""
        self._guard(request, "view_dashboard")
        try:
            state = _state(Query.of(request))
        except ImproperlyConfigured as error:
            return JsonResponse({"error": {"type": type(error).__name__, "message": str(error)}}, status=500)
        except (InvalidValue, InvalidType) as error:
            return JsonResponse({"error": {"type": type(error).__name__, "message": str(error)}}, status=400)
        return JsonResponse(state.as_json())

    def _page(self, request: HttpRequest, template: str, extra: dict[str, Any] | None = None) -> HttpResponse:
        self._guard(request, "view_dashboard")
        query = Query.of(request)
        allowed = {one.permission for one in ACTIONS.values() if _may(request, one.permission)}
        urls = {name: self._url("action", name) for name in ACTIONS}
        try:
            shown = Presented(state=_state(query), query=query, allowed=allowed, urls=urls).context()
        except (ImproperlyConfigured, InvalidValue, InvalidType) as error:
            shown = {"broken": str(error), "settings": isinstance(error, ImproperlyConfigured)}
        return self._render(
            request,
            template,
            {
                "title": "Dashboard",
                "query": query,
                "encoded": query.encoded(),
                "page_url": self._url("changelist"),
                "live_url": self._url("live"),
                "state_url": self._url("state"),
                **shown,
                **(extra or {}),
            },
        )

    def logged_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Lead an entry of the admin's log to the page, with a search for what was acted on."""
        self._guard(request, "view_dashboard")
        noun, _, key = unquote(object_id).partition(":")
        params = QueryDict(mutable=True)
        params["q"] = key.partition("… (")[0]
        anchor = noun if noun == "cache" else f"{noun}s"
        return HttpResponseRedirect(f"{self._url('changelist')}?{params.urlencode()}#{anchor}")

    # Acting

    @method_decorator(require_http_methods(["GET", "HEAD", "POST"]))
    def action_view(self, request: HttpRequest, action: str) -> HttpResponse:
        """Ask for confirmation, and act when it is given."""
        chosen = ACTIONS.get(action)
        if chosen is None:
            raise Http404(f"no action {action!r}")
        self._guard(request, chosen.permission)
        data = request.POST if request.method == "POST" else request.GET
        form = SeenForm(data)
        if not form.is_valid():
            context = {"title": chosen.label, "action": chosen, "invalid": True, "back": self._back(request)}
            return self._render(request, "goscope/confirm.html", context, status=400)
        seen: Seen = form.cleaned_data["seen"]
        confirmed = request.method == "POST" and "confirm" in request.POST
        reason = ReasonForm(request.POST if confirmed else None)
        if confirmed and (not chosen.reason or reason.is_valid()):
            self._act(request, chosen, seen, reason.cleaned_data["reason"] if chosen.reason else "")
            return HttpResponseRedirect(self._back(request))
        return self._render(
            request,
            "goscope/confirm.html",
            {
                "title": f"{chosen.label}: {chosen.noun}",
                "action": chosen,
                "action_url": self._url("action", chosen.name),
                "warning": chosen.warning(seen) if chosen.warning is not None else "",
                "key": text.visible(seen.key, 1_000),
                "mark": seen.mark,
                "state_seen": text.visible(seen.state),
                "seen": seen.encoded(),
                "encoded": data.get("query", ""),
                "reason": reason if chosen.reason else None,
                "back": self._back(request),
            },
        )

    def _act(self, request: HttpRequest, action: Action, seen: Seen, reason: str) -> None:
        try:
            done = action.run(seen, reason)
        except (StateChanged, NotFound) as error:
            self._tell(request, messages.WARNING, f"Nothing was done: {error}")
        except OutcomeUnknown as error:
            self._log(request, action, seen, f"{action.label}: it is not known whether it happened. {error}")
            self._tell(request, messages.ERROR, f"It is not known whether it happened: {error}")
        except (GoscopeError, ImproperlyConfigured) as error:
            self._tell(request, messages.ERROR, f"Nothing was done: {error}")
        else:
            self._log(request, action, seen, f"{done.message} {reason}".strip())
            self._tell(request, messages.SUCCESS, done.message)

    def _tell(self, request: HttpRequest, level: int, message: str) -> None:
        messages.add_message(request, level, text.visible(message, LONGEST_MESSAGE))

    def _log(self, request: HttpRequest, action: Action, seen: Seen, message: str) -> None:
        # Not every database takes NUL in text. So the log has the text that is shown.
        target = Dashboard(id=f"{action.noun}:{text.visible(seen.key)}")
        flag = DELETION if action.destroys else CHANGE
        told = text.visible(message, LONGEST_MESSAGE)
        user: Any = request.user.pk
        logger.info("%s by user %s: %s", action.name, user, told)
        try:
            # In a savepoint, so that a log that is full or missing spoils no transaction of the request.
            with transaction.atomic(using=router.db_for_write(LogEntry)):
                LogEntry.objects.log_actions(user, [target], flag, told, single_object=True)
        except DatabaseError:
            logger.exception("%s by user %s is not in the admin's log", action.name, user)
            self._tell(request, messages.ERROR, "The action could not be written to the admin's log.")

    # Both

    def _guard(self, request: HttpRequest, permission: str) -> None:
        if not _may(request, permission):
            raise PermissionDenied

    def _back(self, request: HttpRequest) -> str:
        """The page as the operator left it. Those who may act but not look are led to the admin's index."""
        if not self.has_view_permission(request):
            return reverse("admin:index", current_app=self.admin_site.name)
        data = request.POST if request.method == "POST" else request.GET
        encoded = Query.parse(QueryDict(data.get("query", ""))).encoded()
        url = self._url("changelist")
        return f"{url}?{encoded}" if encoded and len(encoded) <= LONGEST_LINK else url

    def _render(self, request: HttpRequest, template: str, context: dict[str, Any], status: int = 200) -> HttpResponse:
        request.current_app = self.admin_site.name
        own = {"opts": self.opts, "listed_crumbs": LISTED_CRUMBS}
        return TemplateResponse(
            request, template, {**self.admin_site.each_context(request), **own, **context}, status=status
        )


def _may(request: HttpRequest, permission: str) -> bool:
    return request.user.has_perm(f"goscope.{permission}")


def _state(query: Query) -> State:
    return operations.state(
        limit=query.limit, cursors=query.cursors, search=query.search, states=query.states, orders=query.orders
    )
