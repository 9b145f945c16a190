"""Rows of the project's own database that refuse an older fencing token: ``FencedModel`` and ``FencedQuerySet``.

This module can be imported once Django's apps are loaded. Rules of this file:

* The comparison of tokens is part of the ``UPDATE`` itself. What is refused changes nothing.
* On ``django_mongodb_backend`` what writes several documents needs a transaction of the backend. It has no savepoints,
  so a newer token is looked for first: a refusal that is caught must leave nothing behind in a transaction that goes
  on. A write of somebody else after that look is a write conflict there, never overlooked.
* An ordinary ``save()`` of an instance that was read earlier never sets the fence back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

from asgiref.sync import sync_to_async
from django.db import connections, models, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from goscope_django.exceptions import ConfigurationError, StaleFence
from goscope_django.mongodb.driver import commits
from goscope_django.mongodb.locks.fenced_writes import token_of
from goscope_django.process import backend

_ATTEMPTS: Final = 6
"""How often a transaction of its own is tried while writes of others are in its way."""


class FencedQuerySet(models.QuerySet[Any]):
    """A queryset that can update with a fencing token."""

    def fenced_update(self, handle: object, **values: Any) -> int:
        """Update all rows, unless one of them has seen a newer token than that of ``handle``. Returns how many.

        ``handle`` is a lock's handle or a token (an ``int``), ``values`` are those of ``update``. Atomic: one
        ``UPDATE ... WHERE fence <= token`` and one ``SELECT`` in a transaction, so two round trips to the rows' own
        database beside those of the transaction. Raises ``StaleFence``, and updates no row, if one has seen a newer
        token, and ``InvalidType`` for what is no token.

        On ``django_mongodb_backend`` it is done in the backend's transaction: in the one that is open, else in one of
        its own, which is tried again a few times while other writes are in the way. On a standalone server, which has
        no transactions, it updates one row, and raises ``ConfigurationError`` before anything is written if there are
        several.
        """
        token = token_of(handle)
        # All of it goes where writes go: a replica learns of a newer token too late, in another transaction.
        self._for_write = True
        rows = self.using(self.db)
        connection = connections[rows.db]
        if backend.is_mongodb(connection):
            return rows._fenced_on_mongodb(connection, token, values)
        with transaction.atomic(using=rows.db):
            count = rows._let_through(token, values)
            # What was refused has not been changed, so it still has the newer token.
            rows._refuse(token)
        return count

    def _fenced_on_mongodb(self, connection: Any, token: int, values: Mapping[str, Any]) -> int:
        def work() -> int:
            self._refuse(token)
            if not _is_inherited(self.model):
                return self._let_through(token, values)
            # The backend updates no collection by what another one has. Nor need it: what was read in this transaction
            # is written in it, or there is a conflict.
            keys = list(self.values_list("pk", flat=True))
            rows = self.model._base_manager.using(self.db).filter(pk__in=keys)
            return rows.update(**{**values, "fence": token}) if keys else 0

        joined = backend.open_session(connection) is not None
        try:
            return backend.in_transaction_of(connection, work, _ATTEMPTS)
        except Exception as error:
            if not commits.has_no_transactions(error):
                raise
            # Nothing has been written: it was the first command, the look for a newer token, that was refused.
            together = joined or _is_inherited(self.model)
            found = [] if together else list(self.values_list("pk", flat=True)[:2])
            if together or len(found) > 1:
                raise _standalone(f"fenced_update() of several rows of {self.model._meta.label}", connection) from error
        # One document: its own update is atomic.
        one = self.filter(pk__in=found)
        count = one._let_through(token, values)
        if not count:
            one._refuse(token)
        return count

    def _let_through(self, token: int, values: Mapping[str, Any]) -> int:
        """Update those rows that have seen no newer token."""
        return self.filter(fence__lte=token).update(**{**values, "fence": token})

    def _refuse(self, token: int) -> None:
        """Raise ``StaleFence`` if one row has seen a newer token."""
        stale = self.filter(fence__gt=token).values_list("pk", flat=True).first()
        if stale is not None:
            raise _stale(self.model, stale, token)

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

        The token is compared and written in the same atomic ``UPDATE``: as many round trips as ``save()``, and one more
        where nothing matched. ``options`` are those of ``save``. Raises ``StaleFence``, and changes nothing, if the row
        has seen a newer token, and ``InvalidType`` for what is no token.

        A model with a table of its own beside its parent's is several documents on ``django_mongodb_backend``. There it
        is saved in the backend's transaction, and on a standalone server ``ConfigurationError`` is raised before
        anything is written.
        """
        token, before = token_of(handle), self.fence
        fields: Iterable[str] | None = options.get("update_fields")
        if fields is not None:
            options["update_fields"] = {*fields, "fence"}
        if not self._state.adding:
            options.setdefault("force_update", not options.get("force_insert", False))
        self._fencing, self.fence = token, token
        try:
            self._save_together(token, options)
        except BaseException:
            self.fence = before
            raise
        finally:
            self._fencing = None

    save_fenced.alters_data = True  # type: ignore[attr-defined]

    def _save_together(self, token: int, options: Mapping[str, Any]) -> None:
        """``save()``, and on MongoDB all documents of an inherited model together."""
        alias: str = options.get("using") or router.db_for_write(type(self), instance=self)
        connection = connections[alias]
        if not _is_inherited(type(self)) or not backend.is_mongodb(connection):
            self.save(**options)
            return

        def work() -> None:
            # Here, and not only by the UPDATE, which comes after that of the parent: see the rules of this file.
            guarded: Any = self._meta.get_field("fence").model
            if self.pk is not None and guarded._base_manager.using(alias).filter(pk=self.pk, fence__gt=token).exists():
                raise _stale(type(self), self.pk, token)
            self.save(**options)

        try:
            backend.in_transaction_of(connection, work)
        except Exception as error:
            if not commits.has_no_transactions(error):
                raise
            what = f"save_fenced() of {self._meta.label}, which is kept in several collections"
            raise _standalone(what, connection) from error

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
            raise _stale(type(self), pk_val, token)
        return updated


def _is_inherited(model: type[models.Model]) -> bool:
    """Whether a row of ``model`` is kept in several tables."""
    return bool((model._meta.concrete_model or model)._meta.parents)


def _stale(model: Any, pk: object, token: int) -> StaleFence:
    return StaleFence(f"{model._meta.label} {pk!r}: token {token} is older than what it has seen")


def _standalone(what: str, connection: BaseDatabaseWrapper) -> ConfigurationError:
    return ConfigurationError(
        f"{what}: a transaction is needed, and the standalone server of DATABASES[{connection.alias!r}] has none; "
        f"make it a replica set (one node suffices)"
    )
