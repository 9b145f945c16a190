"""The demo's secret key, if the environment gives none. It is made once and kept in a file that only its owner reads.

A key in the repository would be known to everybody, and whoever knows it can forge sessions and signed cache entries.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def kept_secret(path: Path) -> str:
    """The key in ``path``, which is made if it is missing; safe in any number of processes at once."""
    with suppress(FileNotFoundError):
        return path.read_text(encoding="ascii")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    draft.touch(mode=0o600, exist_ok=False)
    draft.write_text(secrets.token_urlsafe(60), encoding="ascii")
    try:
        # Unlike a rename, a link fails if another process was quicker; its key is the one to use.
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    return path.read_text(encoding="ascii")
