"""What an error tells anybody who prints, logs or stores it."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Iterator


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that it came from, also what a traceback leaves out."""
    seen: set[int] = set()
    left = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [one.__cause__, one.__context__]


def texts(error: BaseException) -> str:
    """Every text of the error and of what it came from."""
    found = ["".join(traceback.format_exception(error))]
    for one in chain(error):
        found += [str(one), repr(one), repr(one.args), repr(vars(one)), repr(getattr(one, "details", None))]
        found += getattr(one, "__notes__", [])
        found.append(repr(pickle.dumps(one)))
    return "\n".join(found)
