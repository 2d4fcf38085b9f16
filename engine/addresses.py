"""Addresses of Redis: one server, a group that sentinels watch, a cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from redis.asyncio.connection import parse_url

from holdfast.engine.errors import ConfigurationError

#: What an address may say behind its question mark: the database of a socket, how to check and show certificates, and
#: as whom sentinels are asked. redis-py knows more (time-outs, retries, ways to decode), all of which would be against
#: what happens here.
_OPTIONS = re.compile(r"db|ssl_(?:ca_certs|ca_path|certfile|keyfile|password|cert_reqs|check_hostname|min_version)")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")

REDIS_PORT = 6379
SENTINEL_PORT = 26379

#: `redis+cluster` and the others, without the s of TLS.
_SCHEMES = re.compile(r"redis(s?)\+(sentinel|cluster)")

_HOST = re.compile(r"(?:\[([\w.%:-]+)\]|([\w.%-]+))(?::(\d{1,5}))?", re.ASCII)

#: What sentinels may call a group: their own rule.
_NAME = re.compile(r"[\w.-]+", re.ASCII)

Place = tuple[str, int]


class Kind(Enum):
    """What is behind an address."""

    ONE = auto()
    SENTINELS = auto()
    CLUSTER = auto()


@dataclass(frozen=True, repr=False)
class Address:
    """An address that was read.

    Parameters
    ----------
    place: where it is, without user and password: what messages and logs show.
    hosts: the sentinels, or nodes of the cluster, to ask first; empty for one server.
    group: what the sentinels call what they watch.
    node: how redis-py opens a connection to a node: what its `parse_url` gives, without the place.
    sentinel: the same for a sentinel.
    """

    kind: Kind
    place: str
    url: str
    hosts: tuple[Place, ...] = ()
    group: str = ""
    node: dict[str, Any] | None = None
    sentinel: dict[str, Any] | None = None


def read(url: str) -> Address:
    """Reads an address.

    Parameters
    ----------
    url: `redis://`, `rediss://`, `unix://`, `redis+sentinel://HOST,HOST/GROUP`, `redis+cluster://HOST,HOST`, with the
        special characters of user and password as %XX.

    Raises
    ------
    ConfigurationError: it is none; the sentence shows nothing of it.
    """
    try:
        parts = urlsplit(url)
        match = _SCHEMES.fullmatch(parts.scheme)
        if match is None:
            return Address(Kind.ONE, _place(parts), url)
        return _many(url, parts, bool(match[1]), match[2])
    except (ValueError, TypeError):
        raise unusable() from None


def shown(place: Place) -> str:
    """A place as messages show it."""
    host, port = place
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def unusable() -> ConfigurationError:
    """An address that cannot be used, in words that quote nothing of it: it may be a part of a password."""
    return ConfigurationError(
        "the Redis address is not usable: give redis://USER:PASSWORD@HOST:PORT/DATABASE, the same with rediss://, "
        "unix://PATH, redis+sentinel://HOST:PORT,HOST:PORT/GROUP or redis+cluster://HOST:PORT,HOST:PORT, write the "
        "special characters of a password as %XX, and after a question mark nothing but db and what begins with ssl_ "
        "or sentinel_"
    )


def _place(parts: SplitResult) -> str:
    """Host, port and database of one server, or the path of its socket.

    Raises
    ------
    ValueError: it is no address, or has more to it: a password whose special characters are not escaped looks like a
        path or a query, and would be shown as one.
    """
    _options(parts, ())
    if parts.scheme == "unix":
        if "@" in parts.path:
            raise ValueError
        return parts.path
    if parts.scheme not in ("redis", "rediss") or not re.fullmatch(r"/?\d*", parts.path, re.ASCII):
        raise ValueError
    host = parts.hostname or "localhost"
    if not re.fullmatch(r"[\w.%:-]+", host):
        raise ValueError
    return f"{shown((host, parts.port or REDIS_PORT))}/{parts.path.lstrip('/') or 0}"


def _options(parts: SplitResult, more: tuple[str, ...]) -> dict[str, str]:
    if parts.fragment or (parts.query and not parse_qsl(parts.query, strict_parsing=True)):
        raise ValueError
    options = dict(parse_qsl(parts.query))
    if not all(_OPTIONS.fullmatch(name) or name in more for name in options):
        raise ValueError
    return options


def _many(url: str, parts: SplitResult, tls: bool, what: str) -> Address:
    sentinels = what == "sentinel"
    options = _options(parts, _SENTINEL_OPTIONS if sentinels else ())
    user, at, hosts = parts.netloc.rpartition("@")
    places = tuple(_host(host, SENTINEL_PORT if sentinels else REDIS_PORT) for host in hosts.split(","))
    path = parts.path.removeprefix("/")
    group, _, database = path.partition("/")
    if sentinels:
        if not _NAME.fullmatch(group) or not re.fullmatch(r"\d*", database, re.ASCII):
            raise ValueError
    elif path not in ("", "0") or "db" in options:
        # A cluster has one database.
        raise ValueError
    query = "&".join(part for part in parts.query.split("&") if part and not part.startswith("sentinel_"))
    scheme = "rediss" if tls else "redis"
    node: dict[str, Any] = dict(parse_url(f"{scheme}://{user}{at}host/{database or 0}{'?' * bool(query)}{query}"))
    del node["host"]
    sentinel = {name: value for name, value in node.items() if name not in ("username", "password", "db")}
    sentinel |= {name.removeprefix("sentinel_"): options[name] for name in _SENTINEL_OPTIONS if name in options}
    shown_hosts = ",".join(map(shown, places))
    if sentinels:
        place = f"{shown_hosts}/{group}{f'/{database}' if database else ''}"
        return Address(Kind.SENTINELS, place, url, places, group, node, sentinel)
    return Address(Kind.CLUSTER, shown_hosts, url, places, "", node)


def _host(text: str, port: int) -> Place:
    match = _HOST.fullmatch(text)
    if match is None or int(match[3] or port) > 65_535:
        raise ValueError
    return match[1] or match[2], int(match[3] or port)
