"""What django-redis has and a cache on MongoDB has not: an error that says so, and what to use instead.

Rule of this file: it knows names only. ``docs/how-to/from-django-redis.md`` has the whole table.
"""

from __future__ import annotations

from typing import Final

from goscope_django.exceptions import Unsupported

_GUIDE: Final = "See docs/how-to/from-django-redis.md."
_CLIENT: Final = frozenset(
    [
        "client",
        "get_client",
        "get_client_with_index",
        "get_next_client_index",
        "connect",
        "disconnect",
        "connection_factory",
        "do_close_clients",
        "raw_client",
        "get_connection",
    ]
)
_TYPES: Final[dict[str, frozenset[str]]] = {
    "sets": frozenset(
        [
            "sadd",
            "scard",
            "sdiff",
            "sdiffstore",
            "sinter",
            "sintercard",
            "sinterstore",
            "sismember",
            "smismember",
            "smembers",
            "smove",
            "spop",
            "srandmember",
            "srem",
            "sscan",
            "sscan_iter",
            "sunion",
            "sunionstore",
        ]
    ),
    "hashes": frozenset(
        [
            "hset",
            "hsetnx",
            "hmset",
            "hget",
            "hmget",
            "hgetall",
            "hdel",
            "hlen",
            "hkeys",
            "hvals",
            "hexists",
            "hincrby",
            "hincrbyfloat",
            "hscan",
            "hscan_iter",
            "hstrlen",
            "hrandfield",
            "hexpire",
            "hpexpire",
            "hexpireat",
            "hpexpireat",
            "hpersist",
            "httl",
            "hpttl",
        ]
    ),
    "sorted sets": frozenset(
        [
            "zadd",
            "zcard",
            "zcount",
            "zdiff",
            "zdiffstore",
            "zincrby",
            "zinter",
            "zinterstore",
            "zlexcount",
            "zmpop",
            "zmscore",
            "zpopmax",
            "zpopmin",
            "zrandmember",
            "zrange",
            "zrangebylex",
            "zrangebyscore",
            "zrangestore",
            "zrank",
            "zrem",
            "zremrangebylex",
            "zremrangebyrank",
            "zremrangebyscore",
            "zrevrange",
            "zrevrangebylex",
            "zrevrangebyscore",
            "zrevrank",
            "zscan",
            "zscan_iter",
            "zscore",
            "zunion",
            "zunionstore",
            "bzpopmin",
            "bzpopmax",
        ]
    ),
    "lists": frozenset(
        [
            "lpush",
            "lpushx",
            "rpush",
            "rpushx",
            "lpop",
            "rpop",
            "llen",
            "lrange",
            "lrem",
            "lset",
            "ltrim",
            "lindex",
            "linsert",
            "lmove",
            "lpos",
            "blpop",
            "brpop",
            "blmove",
            "rpoplpush",
            "brpoplpush",
        ]
    ),
    "streams, channels and scripts": frozenset(
        [
            "xadd",
            "xread",
            "xrange",
            "xlen",
            "publish",
            "pubsub",
            "subscribe",
            "eval",
            "evalsha",
            "register_script",
            "pipeline",
            "transaction",
        ]
    ),
    "bits, HyperLogLog and places": frozenset(
        [
            "setbit",
            "getbit",
            "bitcount",
            "bitop",
            "bitpos",
            "bitfield",
            "pfadd",
            "pfcount",
            "pfmerge",
            "geoadd",
            "geodist",
            "geosearch",
            "geopos",
        ]
    ),
}


def missing(kind: str, name: str) -> AttributeError:
    """The error for an attribute that ``kind`` has not."""
    plain = name[1:] if name.startswith("a") and any(name[1:] in one for one in _TYPES.values()) else name
    if plain in _CLIENT:
        return Unsupported(
            f"{kind} has no {name}: there is no Redis client behind it. {_GUIDE} MongoDB itself is reached by PyMongo."
        )
    for what, names in _TYPES.items():
        if plain in names:
            return Unsupported(
                f"{kind} has no {name}: Redis' {what} have no counterpart in Django's cache. {_GUIDE} Keep "
                f"such data in a collection or a model."
            )
    return AttributeError(f"{kind!r} object has no attribute {name!r}")
