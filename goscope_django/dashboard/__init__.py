"""The live page in Django's admin: who holds what, what is open, what hangs, and what to do about it.

It is on the default admin site by itself. Another site needs one line::

    dashboard.register(my_site)

Rules of this package: everything shown comes from ``operations.state()`` and everything done goes through
``operations``. A GET writes nothing. Keys are never part of a path: they come as data, and are shown as text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite

__all__ = ["register"]


def register(site: AdminSite) -> None:
    """Put the dashboard on ``site``, at ``<site>/goscope/dashboard/``; once is enough, again does no harm."""
    from goscope_django.dashboard.site import DashboardAdmin
    from goscope_django.models import Dashboard

    if not site.is_registered(Dashboard):
        site.register(Dashboard, DashboardAdmin)
