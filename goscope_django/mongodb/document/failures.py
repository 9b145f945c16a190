"""What a driver's error means: whether a write may have happened, and which of our errors it becomes.

Rules of this file:

* Nothing is sent or retried here. It is the only place that knows error codes: other modules ask what an error means.
  One meaning has several codes, since servers of different versions and routers use different ones.
* A server's message may quote the command, the document and the index key, and with them a session or a card number. So
  every error of a query is ``cleaned`` before anybody sees it, and what is chained is that. Of the server's own words
  only those in ``_FIXED`` are kept: sentences of which we know that they hold no value.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, TypeVar

from bson.errors import BSONError, InvalidDocument
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
)

from goscope_django.core.flow import Query
from goscope_django.exceptions import (
    CredentialsRefused,
    MissingRights,
    OutcomeUnknown,
    PoolExhausted,
    ServerNotSupported,
    StoreError,
    StoreUnavailable,
)

READS = frozenset(
    {
        *("find_one", "find", "point", "newest", "fresh", "many", "recent", "time", "aggregate", "confirm"),
        *("count_documents", "known_primary"),
        *("estimated_document_count", "index_information", "command"),
    }
)

_WRITES_NOTHING: Final = READS | {"transaction", "end"}

# Codes by meaning

DUPLICATE_KEY: Final = frozenset({11000, 11001, 12582})
NO_CLUSTER_TIME: Final = frozenset({51144, 10_071_200})
"""A standalone server has no ``$$CLUSTER_TIME``. The second code is that of MongoDB 8.2 and later."""

NO_SHARD_KEY: Final = frozenset({61, 65, 31025})
"""A router does not know where to send an upsert, since the filter lacks the shard key. It wrote nothing."""

NOT_A_REPLICA_SET: Final = frozenset({123})
NAMESPACE_NOT_FOUND: Final = frozenset({26})
INDEX_DIFFERS: Final = frozenset({85, 86})
TIMED_OUT: Final = frozenset({64})
TOO_LARGE: Final = frozenset({10334, 13548, 16493, 17260, 17419, 17420, 5_054_700})
TOO_LARGE_FOR_CACHE: Final = frozenset({388})
"""A server with little memory refuses documents that are far smaller than 16 MB."""

OVERFLOW: Final = frozenset({2})
TYPE_MISMATCH: Final = frozenset({14})
WRITE_CONFLICT: Final = frozenset({112})
NO_TRANSACTIONS: Final = frozenset({20})
RETRYABLE_READ: Final = frozenset({6, 7, 89, 91, 134, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436})
NO_CHANGE_STREAMS: Final = frozenset({40573})

MISSING_RIGHTS: Final = frozenset({13})
REFUSED_CREDENTIALS: Final = frozenset({11, 18, 334, 8000})
"""Unknown user, authentication failed, unknown mechanism, and Atlas's own code for a wrong password."""

OUTSIDE_STABLE_API: Final = frozenset({322, 323, 324})

NOT_SUPPORTED: Final = frozenset({9, 59, 115, 168, 238, 303, 304, 17276, 40324})
"""No such command, stage, expression or variable. Other servers that speak MongoDB's protocol, and old ones, answer so
to updates by a pipeline and to ``$$NOW``."""

LEAST_WIRE_VERSION: Final = 17
"""Of MongoDB 6.0. Older servers lack expressions that tokens are made of."""


def codes(error: BaseException) -> set[int | None]:
    """The codes of ``error``: its own, and those of the statements of a batch."""
    found: set[int | None] = {getattr(error, "code", None)}
    if isinstance(error, BulkWriteError):
        found.update(one.get("code") for one in error.details.get("writeErrors", ()))
    return found


def means(error: BaseException, meaning: Collection[int]) -> bool:
    """Whether ``error`` is the server's and one of its codes has this ``meaning``, alone or within a batch."""
    return isinstance(error, OperationFailure) and not codes(error).isdisjoint(meaning)


def duplicate(error: BaseException) -> bool:
    """Whether a unique index refused the write. The driver knows this for one code and ours are three."""
    return isinstance(error, DuplicateKeyError) or (
        not isinstance(error, BulkWriteError) and means(error, DUPLICATE_KEY)
    )


def plain(error: Exception) -> Exception:
    """``error``, as a ``DuplicateKeyError`` if it is one under another code."""
    if not isinstance(error, OperationFailure) or not duplicate(error) or isinstance(error, DuplicateKeyError):
        return error
    return cleaned(DuplicateKeyError(str(error), error.code, error.details))


_NAME: Final = r"[\w$.-]{1,255}"
_FIXED: Final = re.compile(
    "|".join(
        (
            rf'not authorized on {_NAME} to execute command \{{ \w{{1,40}}: "{_NAME}"',
            rf"E11000 duplicate key error collection: {_NAME} index: {_NAME}",
            r"BSONObj size: \d+|exceeds? maximum size|too large|larger than \d+",
            r"requires authentication|[Aa]uthentication failed",
            r"[Tt]ransaction numbers are only allowed on a replica set member or mongos",
            r"does not support retryable writes|multi-document transaction|[Tt]ransactions?\b",
            r"Document failed validation|[Cc]annot increment|non-numeric|overflow",
            r"Failing command (?:via|due to) 'failCommand' failpoint",
            r"operation exceeded time limit|waiting for replication timed out|operation was interrupted",
            r"not primary|node is recovering|not master|interrupted at shutdown",
            r"[Nn]ot enough data-bearing nodes|No write concern mode named|could not be satisfied",
            r"no such command|wire version|shard key|cached plan|out of memory|quota|disk space",
        )
    )
)
"""What is kept of a server's message. Of what it names there are only databases, collections, indexes and commands."""

_CODE_NAME: Final = re.compile(r"[A-Z][A-Za-z0-9]{2,60}")
_REPLY: Final = "full error: {"
"""How the driver begins to quote a whole reply."""

_NUMBERS: Final = frozenset(
    {"ok", "code", "n", "index", "nModified", "nMatched", "nInserted", "nUpserted", "nRemoved", "baseBackoffMS"}
)
_LISTS: Final = ("writeErrors", "writeConcernErrors")

FAILURES: Final = (PyMongoError, BSONError)
"""What the driver raises for a query."""

E = TypeVar("E", bound=BaseException)


def _fixed(text: object) -> str:
    """What may be kept of a server's message."""
    return ", ".join(dict.fromkeys(_FIXED.findall(text))) if isinstance(text, str) else ""


def _told_of(reply: Mapping[str, Any], code: object = None, said: object = None) -> str:
    """A sentence about a server's reply: its code, the code's name and the words that are known to hold no value."""
    code, name = reply.get("code", code), reply.get("codeName")
    named = [name] if isinstance(name, str) and _CODE_NAME.fullmatch(name) else []
    kept = _fixed(reply.get("errmsg") or said)
    first = " ".join([*named, f"(code {code})" if named else f"code {code}"])
    return f"{first}: {kept}" if kept else first


def _cleaned_reply(reply: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in reply.items():
        if name in _NUMBERS and isinstance(value, int | float):
            kept[name] = value
        elif name in _LISTS and isinstance(value, list):
            kept[name] = [_cleaned_reply(one) for one in value if isinstance(one, Mapping)]
        elif name == "writeConcernError" and isinstance(value, Mapping):
            kept[name] = _cleaned_reply(value)
        elif name == "errorLabels" and isinstance(value, list):
            kept[name] = [one for one in value if isinstance(one, str) and _CODE_NAME.fullmatch(one)]
        elif name == "codeName" and isinstance(value, str) and _CODE_NAME.fullmatch(value):
            kept[name] = value
        elif name == "keyPattern" and isinstance(value, Mapping):
            kept[name] = dict.fromkeys(value, 1)
        elif name == "errInfo" and isinstance(value, Mapping) and "wtimeout" in value:
            kept[name] = {"wtimeout": bool(value["wtimeout"])}
        elif name == "errmsg":
            kept[name] = _told_of(reply)
    return kept


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and all that it came from."""
    seen: set[int] = set()
    left = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [one.__cause__, one.__context__]


def cleaned(error: E) -> E:
    """``error`` itself, without anything that a server or the driver quotes; and so what it came from.

    Its class, code and labels stay, and its traceback, unless a function that had the password is in it. Of ``details``
    the numbers stay: how many were written, and which statement of a batch failed. What is not the driver's stays.
    """
    for one in _chain(error):
        if _passed_password(one.__traceback__):
            one.__traceback__ = None
        if isinstance(one, InvalidDocument):
            one._document = None
        if isinstance(one, DocumentTooLarge):
            continue  # it tells sizes
        if isinstance(one, BSONError):
            one.args = ("the document can't be encoded",)
        elif isinstance(one, OperationFailure):
            _clean_failure(one)
        elif isinstance(one, AutoReconnect) and isinstance(one.details, Mapping) and "errmsg" in one.details:
            text = _told_of(one.details)
            one.details = one.errors = _cleaned_reply(one.details)
            one.args, one._message = (text,), text
        elif isinstance(one, ConnectionFailure) and _REPLY in str(one):
            # What the driver knows of the servers: one is out of use since it has refused something.
            text = f"every server that was found refuses: {_fixed(str(one)) or 'why is not told here'}"
            one.args, one._message = (text,), text
    return error


_PASSWORDS: Final = ("credentials", "creds", "passwd", "password")


def _passed_password(trace: TracebackType | None) -> bool:
    """Whether a function of the driver had the password: pages about errors show the variables of each."""
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        if str(frame.f_globals.get("__name__", "")).startswith("pymongo."):
            known = frame.f_locals
            if any(known.get(name) is not None for name in _PASSWORDS):
                return True
    return False


def _clean_failure(error: OperationFailure) -> None:
    reply = error.details if isinstance(error.details, Mapping) else {}
    first = next((one for name in _LISTS for one in reply.get(name) or () if isinstance(one, Mapping)), None)
    said = str(error).partition(", full error")[0]
    if means(error, INDEX_DIFFERS):
        text = said  # of options of an index, of which no document knows
    elif first is not None:
        text = f"batch op errors occurred: {_told_of(first)}"
    else:
        text = _told_of(reply, error.code, said)
    kept = _cleaned_reply(reply)
    error.args, error._message = (text,), text
    # The driver's property has no setter, and a copy would lose the traceback or chain the original.
    setattr(error, "_OperationFailure__details", kept if error.details is not None else None)  # noqa: B010


def _sent_before(error: BaseException) -> bool:
    """Whether the driver had already sent the write when ``error``, which says that it sent nothing, came up.

    Its second attempt may fail for want of a connection, and this error hides the first attempt's. Only the driver's
    own loop knows. Where it can't be asked the answer is yes, which is the careful one.
    """
    trace, answer = error.__traceback__, True
    while trace is not None:
        retrying = getattr(trace.tb_frame.f_locals.get("self"), "_retrying", None)
        if isinstance(retrying, bool):
            answer = retrying
        trace = trace.tb_next
    return answer


class NoPlace(WaitQueueTimeoutError):
    """No place in the pool came free, before the command was handed to the driver: nothing was sent."""


class NoServer(ServerSelectionTimeoutError):
    """The driver knows no server, and none was waited for: others have done so in vain. Nothing was sent."""


def may_have_happened(error: PyMongoError) -> bool:
    """True if a write that failed with ``error`` may have been applied, or may still be."""
    if isinstance(error, NoPlace):
        return False
    if isinstance(error, WaitQueueTimeoutError):
        return _sent_before(error)
    if isinstance(error, (ServerSelectionTimeoutError, DuplicateKeyError)):
        return False
    if isinstance(error, (AutoReconnect, WriteConcernError, ExecutionTimeout)):
        return True
    if isinstance(error, BulkWriteError) and error.details.get("writeConcernErrors"):
        return True
    return bool(error.timeout) or error.has_error_label("RetryableWriteError")


def timed_out(error: StoreError) -> bool:
    """True if a server that was reached did not answer in time."""
    cause = error.__cause__
    not_reached = (ServerSelectionTimeoutError, WaitQueueTimeoutError)
    return isinstance(cause, PyMongoError) and cause.timeout and not isinstance(cause, not_reached)


def breaks(error: BaseException) -> bool:
    """Whether the connection on which ``error`` came up may be closed since."""
    return not isinstance(error, (OperationFailure, BSONError))


def breaks_all(error: BaseException) -> bool:
    """Whether the driver has given up all connections to the server: one broke otherwise than by a time-out."""
    unsent = (ServerSelectionTimeoutError, WaitQueueTimeoutError, NetworkTimeout)
    return isinstance(error, AutoReconnect) and not isinstance(error, unsent)


def of_the_driver(error: Exception) -> bool:
    """True if the driver raised it: then something may have been sent."""
    return isinstance(error, PyMongoError)


def writes(query: Query[Any]) -> bool:
    """Whether ``query`` may change what is stored."""
    return query.method not in _WRITES_NOTHING


def too_large(error: Exception) -> bool:
    """True if a document was refused for its size, by the driver or by the server, alone or within a batch."""
    return isinstance(error, DocumentTooLarge) or means(error, TOO_LARGE)


def no_shard_key(error: OperationFailure) -> bool:
    """True if a router did not know where to send an upsert, alone or within a batch. Such an upsert wrote nothing."""
    return means(error, NO_SHARD_KEY)


def numbers_refused(error: BaseException) -> bool:
    """Whether a standalone server refused a command for its transaction number."""
    return means(error, NO_TRANSACTIONS) and "Transaction numbers" in str(error)


def said(error: PyMongoError) -> str:
    """The message of a cleaned error, in short."""
    # If no server is found, PyMongo says all that it knows. A reader needs only the host and the reason.
    text = str(error).partition(", full error")[0].partition(", Timeout: ")[0]
    return re.sub(r" \(configured timeouts: [^)]*\)", "", text)[:300]


_RIGHTS: Final = {
    **dict.fromkeys(("find", "aggregate", "count", "distinct"), "find"),
    "insert": "insert",
    "delete": "remove",
    "listIndexes": "listIndexes",
    "createIndexes": "createIndex",
    "dropIndexes": "dropIndex",
    "update": "find, insert and update",
    "findAndModify": "find, insert and update",
}
"""The right that a command needs, in MongoDB's words, by the command's name."""

_REFUSED_COMMAND: Final = re.compile(r'not authorized on (\S+) to execute command \{ (\w+): "([\w.-]+)"')


def grant(database: str, user: str = "<user>", home: str = "admin") -> str:
    """The command by which an administrator grants a user all that this package needs in ``database``."""
    roles = f'[{{ role: "readWrite", db: "{database}" }}]'
    return f'db.getSiblingDB("{home}").grantRolesToUser("{user}", {roles})'


def too_old(wire_version: int) -> ServerNotSupported:
    """The error for a server that is older than what we need."""
    found = VERSIONS.get(wire_version, "an unknown version")
    return ServerNotSupported(
        f"the server is MongoDB {found} (wire version {wire_version}), which is not supported: 6.0 or later is needed"
    )


_RELEASES: Final = "4.0 4.2 4.4 4.7 4.8 4.9 5.0 5.1 5.2 5.3 6.0 6.1 6.2 6.3 7.0 7.1 7.2 7.3 8.0 8.1 8.2"
VERSIONS: Final = dict(enumerate(_RELEASES.split(), 7))
"""MongoDB's version by the wire version that a server tells in its ``hello``."""


def translated(
    error: PyMongoError, query: Query[Any] | None, *, database: str = "<database>", doubt: bool = False
) -> StoreError:
    """Our error for one of the driver's, which the caller chains. It holds no credentials and no stored value, and
    neither does ``error`` afterwards: it is ``cleaned``.

    ``doubt``: an earlier command of the same operation has changed something, or may have. Then it is not true that
    nothing was changed.
    """
    refused = _refuses_credentials(error)
    found = _translated(cleaned(error), query, database, refused=refused)
    if doubt and isinstance(found, StoreUnavailable):
        return OutcomeUnknown(f"{found}; what was sent before it has changed something, or may have")
    return found


_TOLD_CODE: Final = re.compile(r"\(code (\d+)\)|'code': (\d+)\b")


def _refuses_credentials(error: PyMongoError) -> bool:
    """Whether ``error``, not yet ``cleaned``, says that the user or the password is refused.

    A server that refuses them while a connection is made is out of use for the driver. What comes next finds no server,
    and of the reason there is only the text.
    """
    if isinstance(error, ServerSelectionTimeoutError):
        told = {int(code) for found in _TOLD_CODE.findall(str(error)) for code in found if code}
        return not told.isdisjoint(REFUSED_CREDENTIALS)
    return means(error, REFUSED_CREDENTIALS)


def _translated(error: PyMongoError, query: Query[Any] | None, database: str, *, refused: bool) -> StoreError:
    told = f"{query.collection}.{query.method}: " if query and query.collection else ""
    happened = may_have_happened(error)
    if isinstance(error, WaitQueueTimeoutError) and not happened:
        return PoolExhausted(f"{told}no connection of this process's own pool (maxPoolSize) came free: {said(error)}")
    if refused:
        return CredentialsRefused(f"{told}the server refuses the user or the password ({type(error).__name__})")
    if isinstance(error, ServerSelectionTimeoutError) and not happened:
        return StoreUnavailable(f"{told}no server was reached: {said(error)}")
    if means(error, MISSING_RIGHTS):
        # The server's own message quotes the command, and with it what was to be stored.
        return _missing(error, query, database)
    if means(error, NOT_SUPPORTED):
        return ServerNotSupported(
            f"{told}the server does not know a command, stage or variable that is needed (code "
            f"{getattr(error, 'code', None)}). MongoDB 6.0 or later is needed, with updates by a pipeline and $$NOW; "
            f"servers that only speak its protocol are not supported"
        )
    if isinstance(error, ConfigurationError):
        # Raised on use: a name that can't be resolved (mongodb+srv), or a server that is too old for the driver.
        if "wire version" in str(error):
            return ServerNotSupported(f"{told}{said(error)}")
        return StoreUnavailable(f"{told}no server was reached: {said(error)}")
    text = f"{told or 'the server: '}{type(error).__name__}: {said(error)}"
    if happened:
        reads = query is not None and query.method in READS
        return StoreUnavailable(text) if reads else OutcomeUnknown(text)
    if isinstance(error, ConnectionFailure):
        return StoreUnavailable(text)
    return StoreError(text)


def _missing(error: PyMongoError, query: Query[Any] | None, database: str) -> StoreError:
    if "requires authentication" in str(error):
        return CredentialsRefused("the server has access control, and the URL has no user and password")
    told = _REFUSED_COMMAND.search(str(error))
    if told is not None:
        database, command, collection = told.groups()
        what = f"{_RIGHTS.get(command, command)} in {collection}"
    else:
        what = f"use {query.collection}" if query is not None and query.collection else "do this"
    return MissingRights(
        f"the user lacks the right to {what}, in the database {database!r}. Administrator: `{grant(database)}`"
    )
