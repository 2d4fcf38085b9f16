"""What every handler finds in the application: the engine and the settings of the HTTP face, checked once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from aiohttp import web
from multidict import CIMultiDictProxy

from holdfast.engine import ConfigurationError, Engine

Network: TypeAlias = IPv4Network | IPv6Network

#: The headers of a request, as aiohttp hands them out.
Headers: TypeAlias = CIMultiDictProxy[str]

#: Bytes of a key that signs buyer tokens: HS256 is only as strong as its key, and RFC 7518 asks for the hash's size.
BUYER_TOKEN_KEY_BYTES_MIN = 32

#: Characters of an operator token: it opens everything, and a shorter one could be guessed over the network.
OPERATOR_TOKEN_CHARS_MIN = 8


@dataclass(frozen=True, slots=True)
class AppConfig:
    """The settings of the HTTP face, in the form in which requests use them. `AppConfig.checked` makes one from text.

    Parameters
    ----------
    operator_token: who presents it is the operator.
    buyer_token_key: the HS256 key of buyer tokens; None when buyers are told apart by fingerprint.
    trusted_proxies: the networks whose `X-Forwarded-For` is believed.
    allow_origins: origins whose pages may call; `*` is any.
    access_log: every request is logged.
    """

    operator_token: bytes = field(repr=False)
    buyer_token_key: bytes | None = field(default=None, repr=False)
    trusted_proxies: tuple[Network, ...] = ()
    allow_origins: frozenset[str] = frozenset()
    access_log: bool = False

    @classmethod
    def checked(
        cls,
        *,
        operator_token: str,
        buyer_token_key: str | None = None,
        trusted_proxy: Iterable[str] = (),
        allow_origin: Iterable[str] = (),
        access_log: bool = False,
    ) -> AppConfig:
        """Read the settings as they are written.

        Parameters
        ----------
        operator_token: at least `OPERATOR_TOKEN_CHARS_MIN` visible ASCII characters.
        buyer_token_key: at least `BUYER_TOKEN_KEY_BYTES_MIN` bytes of UTF-8.
        trusted_proxy: addresses or networks (`10.0.0.0/8`).
        allow_origin: origins (`https://shop.example`) or `*`.
        access_log: log every request.

        Raises
        ------
        ConfigurationError: when one of them cannot be right; the sentence never shows a secret.
        """
        if len(operator_token) < OPERATOR_TOKEN_CHARS_MIN or not _is_visible(operator_token):
            raise ConfigurationError(
                f"--operator-token needs at least {OPERATOR_TOKEN_CHARS_MIN} visible ASCII characters."
            )
        key = buyer_token_key.encode() if buyer_token_key is not None else None
        if key is not None and len(key) < BUYER_TOKEN_KEY_BYTES_MIN:
            raise ConfigurationError(f"--buyer-token-key needs at least {BUYER_TOKEN_KEY_BYTES_MIN} bytes for HS256.")
        return cls(
            operator_token=operator_token.encode(),
            buyer_token_key=key,
            trusted_proxies=tuple(_network(text) for text in trusted_proxy),
            allow_origins=frozenset(_origin(text) for text in allow_origin),
            access_log=access_log,
        )


def _is_visible(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)


def _network(text: str) -> Network:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ConfigurationError(
            f"--trusted-proxy '{text}' is neither an address nor a network such as 10.0.0.0/8."
        ) from None


def _origin(text: str) -> str:
    if text == "*":
        return text
    try:
        parts = urlsplit(text)
        spelled_right = (
            parts.scheme in ("http", "https") and parts.netloc and text == f"{parts.scheme}://{parts.netloc}"
        )
    except ValueError:
        spelled_right = False
    if not spelled_right:
        raise ConfigurationError(f"--allow-origin '{text}' is not an origin such as https://shop.example, nor '*'.")
    return text


#: The engine that answers; started before the application serves and closed after it.
ENGINE: web.AppKey[Engine] = web.AppKey("engine", Engine)

#: The checked settings.
CONFIG: web.AppKey[AppConfig] = web.AppKey("config", AppConfig)

#: What the log and the answer call a request.
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)

#: What is given up when the client of a request is gone. Without it a handler comes to its end all the same.
ABANDONED: web.RequestKey[asyncio.Future[Any]] = web.RequestKey("abandoned", asyncio.Future)
