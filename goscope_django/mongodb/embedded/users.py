"""Who uses a private ``mongod``: each process has a file in its folder's ``users/``, locked for as long as it lives.

Rule of this file: it only lists and counts users; ``folder`` decides when a server is started or ended. Whoever changes
anything must hold the folder's lock.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from goscope_django.core.forking import at_fork
from goscope_django.exceptions import MongodError
from goscope_django.mongodb.embedded import file_lock

_NAME: Final = re.compile(r"[0-9]+\.[0-9a-f]{8}")


@dataclass(slots=True)
class Membership:
    """This process's use of the server ``pid``: its file, locked, and how many ``Mongod`` objects count on it."""

    file: Path
    descriptor: int
    pid: int
    uses: int

    def end(self) -> None:
        """Stop being a user."""
        self.file.unlink(missing_ok=True)
        file_lock.release(self.descriptor)


memberships: Final[dict[Path, Membership]] = {}
"""Those of this process, by folder; emptied in a forked child."""

at_fork(child=memberships.clear)


def is_user_file(file: Path) -> bool:
    """Whether the file's name is one that a user's has."""
    return _NAME.fullmatch(file.name) is not None


def _files(folder: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        # A link is nobody's, and would lead us elsewhere.
        yield from (file for file in (folder / "users").iterdir() if is_user_file(file) and not file.is_symlink())


def living(folder: Path) -> tuple[int, ...]:
    """The process ids of the living users, this process included if it is one."""
    return tuple(sorted(int(file.stem) for file in _files(folder) if file_lock.is_held(file)))


def forget_the_dead(folder: Path) -> None:
    """Remove the files of users that are gone."""
    for file in _files(folder):
        if not file_lock.is_held(file):
            file.unlink(missing_ok=True)


def enter(folder: Path, pid: int, uses: int) -> None:
    """Make this process a user of the server ``pid``."""
    file = folder / "users" / f"{os.getpid()}.{secrets.token_hex(4)}"
    descriptor = file_lock.acquire(file, timeout=5.0)
    if descriptor is None:
        raise MongodError(f"{str(file)!r} stayed locked by another process.")
    memberships[folder] = Membership(file, descriptor, pid, uses)
