"""The contract of ``LockProvider``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from goscope_django.contracts import LockInfo
from goscope_django.testing.conformance.base import BAD_TTLS, SHORT, Conformance, Drive


class LockConformance(Conformance):
    """Mutual exclusion with leases and fencing tokens."""

    def test_a_free_lock_is_acquired(self, provider: Any, drive: Drive) -> None:
        handle = drive(provider, "acquire", "report", 5_000, "worker-1")
        assert handle is not None
        assert (handle.key, handle.owner) == ("report", "worker-1")
        assert type(handle.token) is int
        assert isinstance(handle.expires_at, datetime)
        assert handle.expires_at.tzinfo is not None
        assert drive(handle, "is_valid") is True

    def test_a_held_lock_is_refused(self, provider: Any, drive: Drive) -> None:
        assert drive(provider, "acquire", "report", 5_000) is not None
        assert drive(provider, "acquire", "report", 5_000) is None

    def test_locks_are_not_reentrant(self, provider: Any, drive: Drive) -> None:
        assert drive(provider, "acquire", "report", 5_000, "me") is not None
        assert drive(provider, "acquire", "report", 5_000, "me") is None

    def test_keys_do_not_meet(self, provider: Any, drive: Drive) -> None:
        assert drive(provider, "acquire", "a", 5_000)
        assert drive(provider, "acquire", "b", 5_000)

    def test_the_default_ttl_is_used(self, provider: Any, drive: Drive) -> None:
        handle = drive(provider, "acquire", "report")
        assert drive(handle, "is_valid")
        info = drive(provider, "get", "report")
        assert info.expires_at - info.created_at > timedelta(seconds=1)

    def test_a_timedelta_is_a_ttl(self, provider: Any, drive: Drive) -> None:
        assert drive(provider, "acquire", "report", timedelta(seconds=5)) is not None
        info = drive(provider, "get", "report")
        assert timedelta(seconds=4.9) < info.expires_at - info.created_at < timedelta(seconds=5.1)

    def test_a_released_lock_is_free(self, provider: Any, drive: Drive) -> None:
        handle = drive(provider, "acquire", "report", 5_000)
        assert drive(handle, "release") is True
        assert drive(provider, "get", "report") is None
        assert drive(provider, "acquire", "report", 5_000) is not None

    def test_release_is_told_once(self, provider: Any, drive: Drive) -> None:
        handle = drive(provider, "acquire", "report", 5_000)
        assert [drive(handle, "release"), drive(handle, "release")] == [True, False]

    def test_an_expired_lock_is_taken_over_at_once(self, provider: Any, drive: Drive) -> None:
        assert drive(provider, "acquire", "report", SHORT) is not None
        self.outlive()
        assert drive(provider, "acquire", "report", 5_000) is not None

    def test_a_stale_handle_acts_on_nobody_else(self, provider: Any, drive: Drive) -> None:
        stale = drive(provider, "acquire", "report", SHORT, "same name")
        self.outlive()
        fresh = drive(provider, "acquire", "report", 5_000, "same name")
        assert drive(stale, "is_valid") is False
        assert drive(stale, "extend", 5_000) is False
        assert drive(stale, "release") is False
        assert drive(fresh, "is_valid") is True

    def test_an_expired_handle_is_not_revived(self, provider: Any, drive: Drive) -> None:
        handle = drive(provider, "acquire", "report", SHORT, "me")
        self.outlive()
        assert drive(handle, "is_valid") is False
        assert drive(handle, "extend", 5_000) is False
        assert drive(provider, "extend", "report", 5_000, "me") is False
        assert drive(provider, "get", "report") is None

    def test_a_handle_extends_its_lease(self, provider: Any, drive: Drive) -> None:
        handle = drive(provider, "acquire", "report", 300)
        before = handle.expires_at
        assert drive(handle, "extend", 60_000) is True
        assert handle.expires_at > before
        assert drive(provider, "get", "report").expires_at == handle.expires_at

    def test_an_extension_may_shorten(self, provider: Any, drive: Drive) -> None:
        handle = drive(provider, "acquire", "report", 60_000)
        assert drive(handle, "extend", SHORT) is True
        self.outlive()
        assert drive(handle, "is_valid") is False

    def test_the_owner_extends_by_name(self, provider: Any, drive: Drive) -> None:
        drive(provider, "acquire", "report", 5_000, "me")
        assert drive(provider, "extend", "report", 60_000, "me") is True
        assert drive(provider, "extend", "report", 60_000, "you") is False
        assert drive(provider, "extend", "nothing", 60_000, "me") is False

    def test_equal_extensions_both_succeed(self, provider: Any, drive: Drive) -> None:
        handle = drive(provider, "acquire", "report", 5_000)
        assert all(drive(handle, "extend", 5_000) for _ in range(20))

    def test_force_release(self, provider: Any, drive: Drive) -> None:
        handle = drive(provider, "acquire", "report", 5_000)
        assert drive(provider, "force_release", "report") is True
        assert drive(provider, "force_release", "report") is False
        assert drive(handle, "is_valid") is False
        assert drive(handle, "release") is False

    def test_force_release_of_nothing(self, provider: Any, drive: Drive) -> None:
        assert drive(provider, "force_release", "nothing") is False

    def test_tokens_grow(self, provider: Any, drive: Drive) -> None:
        tokens = []
        for round_ in range(12):
            handle = drive(provider, "acquire", "report", SHORT if round_ % 4 == 3 else 5_000)
            tokens.append(handle.token)
            if round_ % 4 == 3:
                self.outlive()
            elif round_ % 4 == 2:
                drive(provider, "force_release", "report")
            else:
                drive(handle, "release")
        assert tokens == sorted(set(tokens))

    def test_get_shows_a_live_lock(self, provider: Any, drive: Drive) -> None:
        handle = drive(provider, "acquire", "report", 5_000, "me")
        info = drive(provider, "get", "report")
        assert info == LockInfo("report", "me", handle.token, info.created_at, handle.expires_at)
        assert info.created_at.tzinfo == UTC
        assert drive(provider, "get", "other") is None

    def test_list_shows_live_locks_by_key(self, provider: Any, drive: Drive) -> None:
        for key in ("b", "a", "ab"):
            drive(provider, "acquire", key, 60_000)
        drive(provider, "acquire", "gone", SHORT)
        self.outlive()
        assert [one.key for one in drive(provider, "list")] == ["a", "ab", "b"]

    def test_a_pattern_matches_the_whole_key(self, provider: Any, drive: Drive) -> None:
        for key in ("a", "ab", "ba", "a.b"):
            drive(provider, "acquire", key, 60_000)
        assert [one.key for one in drive(provider, "list", "a")] == ["a"]
        assert [one.key for one in drive(provider, "list", "a.*")] == ["a", "a.b", "ab"]
        assert [one.key for one in drive(provider, "list", r"a\.b")] == ["a.b"]

    def test_one_of_many_wins(self, provider: Any, drive: Drive) -> None:
        handles = drive.together(8, lambda n: (provider, "acquire", ("report", 5_000, "same name")))
        assert sum(handle is not None for handle in handles) == 1

    def test_one_of_many_takes_an_expired_lock_over(self, provider: Any, drive: Drive) -> None:
        drive(provider, "acquire", "report", SHORT)
        self.outlive()
        handles = drive.together(8, lambda n: (provider, "acquire", ("report", 5_000)))
        assert sum(handle is not None for handle in handles) == 1

    def test_one_of_many_releases(self, provider: Any, drive: Drive) -> None:
        handle = drive(provider, "acquire", "report", 5_000)
        assert sorted(drive.together(8, lambda n: (handle, "release", ()))) == [False] * 7 + [True]

    @pytest.mark.parametrize(
        "text", ["$x", '{"$gt": 1}', "a.b", "", "k" * 10_000, "nul\0nul", "ümläut \U0001f512", "a\nb"]
    )
    def test_any_text_is_a_key_and_an_owner(self, provider: Any, drive: Drive, text: str) -> None:
        handle = drive(provider, "acquire", text, 5_000, text)
        assert drive(provider, "acquire", text, 5_000) is None
        info = drive(provider, "get", text)
        assert (info.key, info.owner) == (text, text)
        assert drive(provider, "extend", text, 5_000, text) is True
        assert drive(handle, "release") is True

    @pytest.mark.parametrize("ttl", BAD_TTLS, ids=repr)
    def test_bad_ttls(self, provider: Any, drive: Drive, ttl: object) -> None:
        with pytest.raises((ValueError, TypeError), match="ttl"):
            drive(provider, "acquire", "report", ttl)
        handle = drive(provider, "acquire", "report", 60_000, "me")
        with pytest.raises((ValueError, TypeError), match="ttl"):
            drive(handle, "extend", ttl)
        with pytest.raises((ValueError, TypeError), match="ttl"):
            drive(provider, "extend", "report", ttl, "me")

    @pytest.mark.parametrize(
        "key", [None, 1, b"x", ["x"], {"$gt": ""}, "\ud800", "k" * 100_000], ids=lambda k: repr(k)[:20]
    )
    def test_bad_keys(self, provider: Any, drive: Drive, key: object) -> None:
        for method, args in (
            ("acquire", (key, 5_000)),
            ("force_release", (key,)),
            ("get", (key,)),
            ("extend", (key, 1, "o")),
        ):
            with pytest.raises((ValueError, TypeError), match="key"):
                drive(provider, method, *args)

    @pytest.mark.parametrize("owner", [1, b"x", {"$ne": ""}], ids=repr)
    def test_bad_owners(self, provider: Any, drive: Drive, owner: object) -> None:
        with pytest.raises((ValueError, TypeError), match="owner"):
            drive(provider, "acquire", "report", 5_000, owner)
        with pytest.raises((ValueError, TypeError), match="owner"):
            drive(provider, "extend", "report", 5_000, owner)

    @pytest.mark.parametrize("pattern", ["(", "[", "*", 1, b"a"], ids=repr)
    def test_bad_patterns(self, provider: Any, drive: Drive, pattern: object) -> None:
        with pytest.raises((ValueError, TypeError), match="pattern"):
            drive(provider, "list", pattern)

    def test_a_handle_is_a_context_manager(self, provider: Any) -> None:
        with provider.acquire("report", 5_000) as handle:
            assert handle.is_valid()
        assert provider.get("report") is None

    async def test_a_handle_is_an_asynchronous_context_manager(self, provider: Any) -> None:
        async with await provider.aacquire("report", 5_000) as handle:
            assert await handle.ais_valid()
        assert await provider.aget("report") is None
