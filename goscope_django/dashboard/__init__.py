"""The live page in Django's admin. It shows locks, circuits, tasks, flights and caches, and acts on them.

It is on the default admin site already. Another site needs one line::

    dashboard.register(my_site)

Rules of this package:

* Everything shown comes from ``operations.state()``, and everything done goes through ``operations``.
* A GET writes nothing.
* Keys are never part of a path. They come as data, and are shown as text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite

__all__ = ["register"]


def register(site: AdminSite) -> None:
    """Put the dashboard on ``site``, at ``<site>/goscope/dashboard/``. Doing it again changes nothing.

    Raises nothing and sends nothing.
    """
    from goscope_django.dashboard.site import DashboardAdmin
    from goscope_django.models import Dashboard

    if not site.is_registered(Dashboard):
        site.register(Dashboard, DashboardAdmin)
