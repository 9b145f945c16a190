"""Rows of the project's own database that refuse an older fencing token: ``FencedModel`` and ``FencedQuerySet``.

This module can be imported once Django's apps are loaded. Rules of this file:

* The comparison of tokens is part of the ``UPDATE`` itself. What is refused changes nothing.
* An ordinary ``save()`` of an instance that was read earlier never sets the fence back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from asgiref.sync import sync_to_async
from django.db import models, transaction

from goscope_django.exceptions import StaleFence
from goscope_django.mongodb.locks.fenced_writes import token_of


class FencedQuerySet(models.QuerySet[Any]):
    """A queryset that can update with a fencing token."""

    def fenced_update(self, handle: object, **values: Any) -> int:
        """Update all rows, unless one of them has seen a newer token than that of ``handle``. Returns how many.

        ``handle`` is a lock's handle or a token (an ``int``). One ``UPDATE ... WHERE fence <= token`` and one
        ``SELECT``, in a transaction. Raises ``StaleFence``, and updates no row, if one has seen a newer token.
        """
        token = token_of(handle)
        # All of it goes where writes go: a replica learns of a newer token too late, in another transaction.
        self._for_write = True
        rows = self.using(self.db)
        with transaction.atomic(using=rows.db):
            count = rows.filter(fence__lte=token).update(**{**values, "fence": token})
            # What was refused has not been changed, so it still has the newer token.
            stale = rows.filter(fence__gt=token).values_list("pk", flat=True).first()
            if stale is not None:
                raise StaleFence(f"{self.model._meta.label} {stale!r}: token {token} is older than what it has seen")
        return count

    fenced_update.alters_data = True  # type: ignore[attr-defined]

    async def afenced_update(self, handle: object, **values: Any) -> int:
        """Async version of ``fenced_update``; on a thread, as Django's own async methods are."""
        return await sync_to_async(self.fenced_update)(handle, **values)

    afenced_update.alters_data = True  # type: ignore[attr-defined]


class FencedModel(models.Model):
    """A model whose rows remember the highest fencing token that wrote them, in ``fence``."""

    fence = models.BigIntegerField(default=0, editable=False)

    objects = FencedQuerySet.as_manager()

    class Meta:
        abstract = True

    _fencing: int | None = None

    def save_fenced(self, handle: object, **options: Any) -> None:
        """``save()`` unless the row has seen a newer token than that of ``handle`` (a lock's handle or a token).

        The token is compared and written in the same ``UPDATE``. ``options`` are those of ``save``. Raises
        ``StaleFence``, and changes nothing, if the row has seen a newer token.
        """
        token, before = token_of(handle), self.fence
        fields: Iterable[str] | None = options.get("update_fields")
        if fields is not None:
            options["update_fields"] = {*fields, "fence"}
        if not self._state.adding:
            options.setdefault("force_update", not options.get("force_insert", False))
        self._fencing, self.fence = token, token
        try:
            self.save(**options)
        except BaseException:
            self.fence = before
            raise
        finally:
            self._fencing = None

    save_fenced.alters_data = True  # type: ignore[attr-defined]

    async def asave_fenced(self, handle: object, **options: Any) -> None:
        """Async version of ``save_fenced``; on a thread, as Django's own async methods are."""
        await sync_to_async(self.save_fenced)(handle, **options)

    asave_fenced.alters_data = True  # type: ignore[attr-defined]

    def _do_update(self, base_qs: models.QuerySet[Self], using: Any, pk_val: Any, values: Any, *more: Any) -> Any:
        # The one place through which every UPDATE of save() goes, of each table of an inherited model in turn.
        fence = next((field for field in base_qs.model._meta.local_fields if field.name == "fence"), None)
        if fence is None:
            return super()._do_update(base_qs, using, pk_val, values, *more)
        token = self._fencing
        if token is None:
            values = [one for one in values if one[0] is not fence]
            return super()._do_update(base_qs, using, pk_val, values, *more)
        guarded = base_qs.filter(fence__lte=token)
        updated = super()._do_update(guarded, using, pk_val, values, *more)
        if not updated and base_qs.filter(pk=pk_val, fence__gt=token).exists():
            raise StaleFence(f"{self._meta.label} {pk_val!r}: token {token} is older than what it has seen")
        return updated
