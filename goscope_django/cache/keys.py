"""How a cache names its entries in the store: prefix, ``KEY_PREFIX``, version, key.

Rule of this file: ``make_key``, ``validate_key`` and ``make_and_validate_key`` of the cache have the last word, so that
subclasses and ``KEY_FUNCTION`` work. They are left out only where the result is known to be the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from django.core.cache.backends.base import BaseCache

from goscope_django.cache.backing import Backing
from goscope_django.core import arguments
from goscope_django.exceptions import InvalidType, InvalidValue

_LONGEST: Final = 250
MAX_TAGS: Final = 1_000
"""Of one entry, or of one invalidation."""
_ODD: Final = re.compile(r"[\x00-\x20\x7f]")
"""What memcached refuses in a key, and Django therefore warns of."""


def plain_key(key: Any, key_prefix: str, version: int | None) -> str:
    """A ``KEY_FUNCTION`` that stores the ``key`` ``foo`` as ``foo``, as Node's adapter reads it.

    ``key_prefix`` (``KEY_PREFIX``) stands before it, and ``version`` is left out. Sends nothing and raises nothing.
    """
    return f"{key_prefix}:{key}" if key_prefix else str(key)


class Keys:
    """The stored keys of one cache object. ``made_by_django``: by Django's own functions, so alike for all objects with
    the same prefix and version."""

    def __init__(self, cache: BaseCache, backing: Backing, *, default_function: bool) -> None:
        kind = type(cache)
        self._cache = cache
        self._backing = backing
        self._default_function = default_function
        self._checked_by_django = (
            kind.make_and_validate_key is BaseCache.make_and_validate_key
            and kind.validate_key is BaseCache.validate_key
        )
        self.made_by_django = self._checked_by_django and default_function and kind.make_key is BaseCache.make_key

    def stored(self, key: Any, version: int | None) -> str:
        """The stored key. Raises ``InvalidValue`` for what can't be stored: lone surrogates, more than 64 KiB."""
        # Django makes and checks a key in three calls and a loop over its characters. A short key with nothing odd in
        # it is known to be good at a glance.
        self._backing.resolve()
        prefix = self._backing.prefix
        if self.made_by_django:
            cut = len(prefix)
            full = f"{prefix}{self._start(version)}{key!s}"
            if len(full) - cut <= _LONGEST and full.isascii() and not _ODD.search(full, cut):
                return full
        made = self._made(key, version)
        return prefix + arguments.key(made if isinstance(made, str) else str(made))

    def stored_many(self, keys: Iterable[Any], version: int | None) -> dict[str, Any]:
        """The stored keys, each with its key."""
        self._backing.resolve()
        if self.made_by_django:
            # One look at all of them: the longest, and one search through the whole text.
            prefix = self._backing.prefix
            start = f"{prefix}{self._start(version)}"
            names = {f"{start}{key!s}": key for key in keys}
            longest, text = max(map(len, names), default=0), "".join(names)
            if longest - len(prefix) <= _LONGEST and text.isascii() and not _ODD.search(text):
                return names
            keys = names.values()
        return {self.stored(key, version): key for key in keys}

    def _start(self, version: int | None) -> str:
        return f"{self._cache.key_prefix}:{self._cache.version if version is None else version}:"

    def _made(self, key: Any, version: int | None) -> Any:
        if not self._checked_by_django:
            return self._cache.make_and_validate_key(key, version=version)
        made = self._cache.make_key(key, version=version)
        if len(made) > _LONGEST or _ODD.search(made):
            self._cache.validate_key(made)
        return made

    def stored_tags(self, tags: object) -> list[str]:
        """The stored names of tags, each once. They belong to this cache's ``KEY_PREFIX``, whatever the version.

        Raises ``InvalidType`` for anything but a collection of texts, ``InvalidValue`` for an empty text, what can't be
        stored, and more than a thousand.
        """
        if tags == ():
            return []
        if isinstance(tags, (str, bytes)) or not isinstance(tags, Iterable):
            raise InvalidType(f"tags={arguments.shown(tags)}: a tuple of texts is needed, such as ('product:7',)")
        self._backing.resolve()
        own = str(self._cache.key_prefix).replace("%", "%25").replace(":", "%3A")
        names = list(dict.fromkeys(arguments.key(one, "tag") for one in tags))
        if "" in names:
            raise InvalidValue("tag='': an empty text is no tag")
        if len(names) > MAX_TAGS:
            raise InvalidValue(f"tags: {len(names)} were given; at most {MAX_TAGS} are allowed")
        return [f"{self._backing.tags_prefix}{own}:{one}" for one in names]

    def base(self, version: int | None, key_prefix: str | None = None) -> str:
        """What the stored keys of one version begin with, under another ``KEY_PREFIX`` if one is given.

        Raises ``InvalidValue`` where they don't begin alike.
        """
        self._backing.resolve()
        if key_prefix is None:
            first, other = self._cache.make_key("", version=version), self._cache.make_key("x", version=version)
        else:
            arguments.key(key_prefix, "prefix")
            number = self._cache.version if version is None else version
            first, other = (self._cache.key_func(one, key_prefix, number) for one in ("", "x"))
        if other != f"{first}x":
            raise InvalidValue("patterns need a KEY_FUNCTION that puts the key last, unchanged")
        return f"{self._backing.prefix}{first}"

    def own_prefix(self) -> str:
        """What all stored keys of this cache begin with, every version. With a ``KEY_FUNCTION`` of the user's: what all
        cache entries of this project begin with."""
        self._backing.resolve()
        prefix = self._backing.prefix
        return f"{prefix}{self._cache.key_prefix}:" if self._default_function else prefix

    def own_regex(self) -> str | None:
        """What tells the stored keys of this cache from those of one whose ``KEY_PREFIX`` begins alike (``a`` and
        ``a:b``); ``None`` where ``own_prefix`` says all."""
        if not self._default_function:
            return None
        version = f"(-?[0-9]+|{re.escape(str(self._cache.version))})"
        # The server takes no NUL in an expression, but takes its escape.
        return f"^{re.escape(self.own_prefix())}{version}:".replace("\0", r"\x00")
