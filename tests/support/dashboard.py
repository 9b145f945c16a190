"""What the dashboard's tests share: its addresses, users with permissions, and what a store holds."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Permission, User
from django.test import Client

from goscope_django import operations
from goscope_django.dashboard.actions import ACTIONS
from goscope_django.dashboard.forms import Seen
from tests.support.operations import query

PAGE = "/admin/goscope/dashboard/"
LIVE = f"{PAGE}live/"
STATE = f"{PAGE}state.json"
PERMISSIONS = (
    "view_dashboard",
    "release_lock",
    "change_circuit",
    "delete_checkpoint",
    "delete_idempotency",
    "clear_cache",
)
WRITES = frozenset(
    {"insert", "update", "delete", "findAndModify", "create", "createIndexes", "drop", "dropIndexes", "bulkWrite"}
)
COLLECTIONS = tuple(
    f"go_goscope_{name}"
    for name in ("locks", "circuit", "cache", "checkpoints", "idempotency", "flights", "tasks", "stats")
)


def action_url(name: str) -> str:
    """Where the action is asked for and confirmed."""
    return f"{PAGE}act/{name}/"


def user(*permissions: str, staff: bool = True, name: str = "") -> User:
    """Somebody with these codenames of the app ``goscope``."""
    name = name or "-".join(("staff" if staff else "visitor", *permissions))
    made = User.objects.create_user(name, password="secret", is_staff=staff)
    found = Permission.objects.filter(content_type__app_label="goscope", codename__in=permissions)
    assert found.count() == len(permissions)
    made.user_permissions.set(found)
    return made


def browser_of(someone: User | None) -> Client:
    """A client that is signed in, and that has its CSRF tokens checked."""
    client = Client(enforce_csrf_checks=True)
    if someone is not None:
        client.force_login(someone)
    return client


def everything() -> dict[str, list[Any]]:
    """All documents that are stored."""
    return {name: sorted(query(name, "find", {}), key=repr) for name in COLLECTIONS}


def lock_seen(key: str) -> Seen:
    """What the page has of a held lock."""
    (found,) = [one for one in operations.state(limit=1_000).locks.items if one.key == key]
    return Seen(found.key, found.token, found.owner, "held")


def circuit_seen(name: str) -> Seen:
    """What the page has of a circuit."""
    found = operations.get_circuit(name)
    return Seen(found.name, found.generation, None, found.state)


def task_seen(name: str) -> Seen:
    """What the page has of a task."""
    found = operations.get_task(name)
    return Seen(found.task_id, found.token, found.owner, found.status)


def posted(client: Client, name: str, seen: Seen, **more: str) -> Any:
    """Ask for an action as the page's button does, and answer yes on the page that comes."""
    asked = client.post(action_url(name), {"seen": seen.encoded(), "csrfmiddlewaretoken": token_of(client), **more})
    if asked.status_code != 200 or name not in ACTIONS:
        return asked
    assert b'name="confirm"' in asked.content
    data = {"seen": seen.encoded(), "confirm": "yes", "csrfmiddlewaretoken": token_of(client), **more}
    return client.post(action_url(name), data)


def token_of(client: Client) -> str:
    """A CSRF token that the client's cookie goes with."""
    token = "t" * 32
    client.cookies["csrftoken"] = token
    return token


def told(client: Client, answer: Any) -> list[str]:
    """The messages on the page that the answer leads to."""
    page = client.get(answer.url)
    return [str(message) for message in page.context["messages"]]
