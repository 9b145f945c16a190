"""The dashboard as a part of Django's admin: its addresses, its permissions, and the log of what was done.

Rules of this file:

* Every view is wrapped by the site's ``admin_view`` (staff only, CSRF, ``no-store``), and asks for its permission
  before it does anything.
* Only a confirmed POST writes anything.
* While sessions can't be read nobody can be told apart. Then there is a page for everybody, made by ``away``.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import django
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.admin.utils import unquote
from django.core.exceptions import BadRequest, ImproperlyConfigured, PermissionDenied
from django.db import DatabaseError, router, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, re_path, reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views.decorators.http import require_http_methods, require_safe

from goscope_django import operations
from goscope_django.dashboard import addresses, away, docs, text, widgets
from goscope_django.dashboard.actions import ACTIONS, Action
from goscope_django.dashboard.forms import LONGEST_LINK, Query, ReasonForm, Seen, SeenForm, selected
from goscope_django.dashboard.items import TITLES, Event, Items
from goscope_django.dashboard.presenters import Presented
from goscope_django.dashboard.rows import PLURALS, Rows
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
LOG_LENGTH = 50
"""Operators' actions that a thing's own page shows, at most."""

_MARKED = re.compile(r" \[g[0-9a-f]{16}\]$")
LISTED_CRUMBS = django.VERSION >= (6, 1)
"""Whether the admin's own breadcrumbs, and its styles for them, are a list."""


@dataclass(frozen=True, slots=True)
class _Result:
    """What came of an action; ``level`` is one of Django's messages."""

    level: int
    message: str


_OUTCOMES = {messages.SUCCESS: "done", messages.WARNING: "not done", messages.ERROR: "failed"}


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
            path("item/", wrap(self.posted_item_view), name="goscope_dashboard_posted_item"),
            re_path(
                rf"^(?P<noun>{'|'.join(addresses.NOUNS)})/(?P<segment>[\s\S]+)/$",
                wrap(self.item_view),
                name="goscope_dashboard_item",
            ),
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
        rows = self._rows(request)
        try:
            shown = Presented(state=_state(query), query=query, rows=rows).context()
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
                "docs": docs.page("dashboard"),
                "posted_item_url": self._url("posted_item"),
                **shown,
                **(extra or {}),
            },
        )

    def _rows(self, request: HttpRequest) -> Rows:
        allowed = {one.permission for one in ACTIONS.values() if _may(request, one.permission)}
        return Rows(allowed, {name: self._url("action", name) for name in ACTIONS}, self._url("changelist"))

    # One thing

    @method_decorator(require_safe)
    def item_view(self, request: HttpRequest, noun: str, segment: str) -> HttpResponse:
        """The page of a lock, a circuit, a task, a record or a cache. With ``?live`` the part that is refreshed."""
        self._guard(request, "view_dashboard")
        try:
            key = addresses.decoded(segment)
        except ValueError:
            raise Http404("this is the address of nothing") from None
        return self._item(request, noun, key)

    @method_decorator(require_http_methods(["POST"]))
    def posted_item_view(self, request: HttpRequest) -> HttpResponse:
        """The same for a key that is too long for an address. Writes nothing."""
        self._guard(request, "view_dashboard")
        try:
            noun, key = json.loads(request.POST.get("item", ""))
            key.encode()
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise BadRequest("this does not say what to show") from None
        if noun not in addresses.NOUNS:
            raise BadRequest("this is no kind of thing")
        return self._item(request, noun, key)

    def _item(self, request: HttpRequest, noun: Any, key: str) -> HttpResponse:
        rows = self._rows(request)
        where = rows.item(noun, key)
        shown: dict[str, Any]
        try:
            found = operations.details(noun, key)
        except StoreError as error:
            shown = {"away": str(error), "noun": TITLES[noun], "name": text.visible(key), "docs": docs.page(noun)}
        except ImproperlyConfigured as error:
            shown = {"broken": str(error), "settings": True, "noun": TITLES[noun], "name": text.visible(key)}
        except (InvalidValue, InvalidType) as error:
            raise Http404(str(error)) from None
        else:
            shown = Items(rows).context(found, self._history(noun, key))
        return self._render(
            request,
            "goscope/item_live.html" if "live" in request.GET else "goscope/item.html",
            {
                "title": f"{TITLES[noun]} {text.visible(key, 60)}",
                "back": self._url("changelist"),
                "page_url": self._url("changelist"),
                "item_url": where["link"],
                "posted_item_url": self._url("posted_item"),
                "seen_item": json.dumps([noun, key]),
                **shown,
            },
            status=404 if shown.get("gone") and noun != "lock" else 200,
        )

    def _history(self, noun: str, key: str) -> list[Event]:
        """What operators did to it, by the admin's log, the newest first."""
        mine = {"content_type__app_label": self.opts.app_label, "content_type__model": self.opts.model_name}
        try:
            with transaction.atomic(using=router.db_for_read(LogEntry)):
                entries = LogEntry.objects.filter(**mine, object_id=_logged(noun, key)).select_related("user")
                found = list(entries.order_by("-action_time")[:LOG_LENGTH])
        except DatabaseError:
            logger.exception("the admin's log can't be read")
            return [Event(at=None, words="The admin's log can't be read.")]
        return [
            Event(at=_aware(one.action_time), words=one.get_change_message(), who=one.user.get_username())
            for one in found
        ]

    def logged_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Lead an entry of the admin's log to the page, with a search for what was acted on."""
        self._guard(request, "view_dashboard")
        noun, _, key = unquote(object_id).partition(":")
        page = self._url("changelist")
        if noun in addresses.NOUNS and not _MARKED.search(key) and (segment := addresses.encoded(key)):
            return HttpResponseRedirect(f"{page}{noun}/{segment}/")
        params = QueryDict(mutable=True)
        params["q"] = _MARKED.sub("", key).partition("… (")[0]
        anchor = noun if noun in ("cache", "idempotency") else f"{noun}s"
        return HttpResponseRedirect(f"{page}?{params.urlencode()}#{anchor}")

    # Acting

    @method_decorator(require_http_methods(["GET", "HEAD", "POST"]))
    def action_view(self, request: HttpRequest, action: str) -> HttpResponse:
        """Ask for confirmation, and act when it is given."""
        chosen = ACTIONS.get(action)
        if chosen is None:
            raise Http404(f"no action {action!r}")
        self._guard(request, chosen.permission)
        data = request.POST if request.method == "POST" else request.GET
        if "bulk" in data and chosen.together:
            return self._bulk(request, chosen, data)
        form = SeenForm(data)
        if not form.is_valid():
            context = {"title": chosen.label, "action": chosen, "invalid": True, "back": self._back(request, None)}
            return self._render(request, "goscope/confirm.html", context, status=400)
        seen: Seen = form.cleaned_data["seen"]
        confirmed = request.method == "POST" and "confirm" in request.POST
        reason = ReasonForm(request.POST if confirmed else None)
        if confirmed and (not chosen.reason or reason.is_valid()):
            self._act(request, chosen, seen, reason.cleaned_data["reason"] if chosen.reason else "")
            return HttpResponseRedirect(self._back(request, (chosen.noun, seen.key)))
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
                "came_from": "item" if data.get("from") == "item" else "",
                "reason": reason if chosen.reason else None,
                "docs": docs.page(chosen.noun),
                "back": self._back(request, (chosen.noun, seen.key)),
            },
        )

    def _bulk(self, request: HttpRequest, action: Action, data: QueryDict) -> HttpResponse:
        """Ask about, and act on, each thing that is selected: each is judged by itself, and has a result of its own."""
        back = self._back(request, None)
        try:
            chosen = selected(data, action.noun)
        except ValueError:
            context = {"title": action.label, "action": action, "invalid": True, "back": back}
            return self._render(request, "goscope/confirm.html", context, status=400)
        if not chosen:
            self._tell(request, messages.WARNING, f"Nothing was done: no {action.noun} was selected.")
            return HttpResponseRedirect(back)
        confirmed = request.method == "POST" and "confirm" in request.POST
        reason = ReasonForm(request.POST if confirmed else None)
        context = {
            "action": action,
            "action_url": self._url("action", action.name),
            "count": len(chosen),
            "docs": docs.page(action.noun),
            "back": back,
        }
        if not confirmed or (action.reason and not reason.is_valid()):
            context |= {
                "title": f"{action.label}: {len(chosen)} {PLURALS[action.noun]}",
                "things": [{"key": text.visible(one.key), "state": text.visible(one.state)} for one in chosen],
                "selected": [f"{action.noun}:{one.encoded()}" for one in chosen],
                "encoded": data.get("query", ""),
                "reason": reason if action.reason else None,
            }
            return self._render(request, "goscope/confirm_bulk.html", context)
        given = reason.cleaned_data["reason"] if action.reason else ""
        results = [self._result(request, action, one, given) for one in chosen]
        rows = self._rows(request)
        context |= {
            "title": f"{action.label}: {len(results)} result{'' if len(results) == 1 else 's'}",
            "done": sum(one.level == messages.SUCCESS for one in results),
            "posted_item_url": self._url("posted_item"),
            "results": [
                {
                    "key": text.visible(one.key),
                    "link": widgets.name(rows.item(action.noun, one.key), text.visible(one.key), rows.posted_url),
                    "state": _OUTCOMES[result.level],
                    "message": text.visible(result.message, LONGEST_MESSAGE),
                }
                for one, result in zip(chosen, results, strict=True)
            ],
        }
        return self._render(request, "goscope/results.html", context)

    def _act(self, request: HttpRequest, action: Action, seen: Seen, reason: str) -> None:
        result = self._result(request, action, seen, reason)
        self._tell(request, result.level, result.message)

    def _result(self, request: HttpRequest, action: Action, seen: Seen, reason: str) -> _Result:
        try:
            done = action.run(seen, reason)
        except (StateChanged, NotFound) as error:
            return _Result(messages.WARNING, f"Nothing was done: {error}")
        except OutcomeUnknown as error:
            self._log(request, action, seen, f"{action.label}: it is not known whether it happened. {error}")
            return _Result(messages.ERROR, f"It is not known whether it happened: {error}")
        except (GoscopeError, ImproperlyConfigured) as error:
            return _Result(messages.ERROR, f"Nothing was done: {error}")
        self._log(request, action, seen, f"{done.message} {reason}".strip())
        return _Result(messages.SUCCESS, done.message)

    def _tell(self, request: HttpRequest, level: int, message: str) -> None:
        messages.add_message(request, level, text.visible(message, LONGEST_MESSAGE))

    def _log(self, request: HttpRequest, action: Action, seen: Seen, message: str) -> None:
        # Not every database takes NUL in text. So the log has the text that is shown.
        target = Dashboard(id=_logged(action.noun, seen.key))
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

    def _back(self, request: HttpRequest, item: tuple[str, str] | None) -> str:
        """The page as the operator left it, be it that of ``item`` (a noun and a key). Those who may act but not look
        are led to the admin's index."""
        if not self.has_view_permission(request):
            return reverse("admin:index", current_app=self.admin_site.name)
        data = request.POST if request.method == "POST" else request.GET
        if data.get("from") == "item" and item is not None and (segment := addresses.encoded(item[1])):
            return f"{self._url('changelist')}{item[0]}/{segment}/"
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


def _logged(noun: str, key: str) -> str:
    """What the admin's log has for a thing: its text as it is shown, and a mark where that is not the whole key."""
    shown = text.visible(key)
    return f"{noun}:{shown}" if shown == key else f"{noun}:{shown} [{text.mark(key)}]"


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.get_default_timezone())


def _state(query: Query) -> State:
    return operations.state(
        limit=query.limit, cursors=query.cursors, search=query.search, states=query.states, orders=query.orders
    )
