"""What a view may have found out about who asks, beside what single flight knows of it.

Rule of this file: in doubt a header says who asks.
"""

from __future__ import annotations

import re
from typing import Any, Final

from goscope_django.requests import Caller, Used, plain

_CREDENTIAL: Final = re.compile(
    r"(?!user-agent$|idempotency-key$|x-csrf|sec-)"
    r".*(auth|token|key|user|session|secret|cred|jwt|sso|oidc|saml|ident|account|cert)",
    re.IGNORECASE,
)
"""Names of headers that may say who asks."""


def found_out(caller: Caller, used: Used) -> bool:
    """Whether a view has found out by itself who asks, by something that may not be in the scope."""
    return caller.user is None and bool(getattr(used.user, "is_authenticated", False))


def sent(request: Any) -> list[str]:
    """The headers of ``request`` by which a view may have found out who asks, beside the one that is in every scope."""
    names = [name for name in plain(request).headers if _CREDENTIAL.match(name) or name == "Cookie"]
    return [name.lower() for name in names if name != "Authorization"]
