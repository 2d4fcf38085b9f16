"""Who calls: the operator, by token; a buyer, by signed token, by fingerprint, or as far as the request tells.

A handler first authenticates (which may refuse with 401), then reads the body, and then asks for the buyer, because
the body may name one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

import jwt
from aiohttp import hdrs, web
from multidict import istr

from holdfast.engine import InvalidRequest

from .context import CONFIG, AppConfig, Headers, Network
from .models import BUYER_PATTERN, FINGERPRINT_PATTERN, PATTERN_SENTENCES
from .problems import BuyerTokenRequired, InvalidBuyerToken, OperatorTokenRequired

# Of this type headers are found without being lower-cased first.
FINGERPRINT_HEADER: Final = istr("X-Buyer-Fingerprint")
TOKEN_HEADER: Final = istr("X-Buyer-Token")

#: Before every derived buyer: no client can spell a NUL in a fingerprint, a token's subject or an operator's `buyer`.
DERIVED_PREFIX: Final = "derived\x00"

#: Whatever PyJWT lets through of a hostile token: numbers too large for a time, documents nested too deep.
_TOKEN_ERRORS: Final = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)

#: Every 401 says how to do better (RFC 9110). No registered scheme uses a header of its own, hence the name.
OPERATOR_CHALLENGE: Final[Mapping[str, str]] = {hdrs.WWW_AUTHENTICATE: 'Bearer realm="holdfast"'}
TOKEN_CHALLENGE: Final[Mapping[str, str]] = {hdrs.WWW_AUTHENTICATE: f'Buyer-Token header="{TOKEN_HEADER}"'}

_FINGERPRINT = re.compile(FINGERPRINT_PATTERN)
# Python's strings can hold lone surrogates, which no body can; a keyed hash needs UTF-8.
_BUYER = re.compile(BUYER_PATTERN.replace(r"\x7f", r"\x7f\ud800-\udfff"))

#: An entry of X-Forwarded-For with a port: `192.0.2.1:4711`, `[2001:db8::1]:4711` or `[2001:db8::1]`.
_WITH_PORT = re.compile(r"(?:([0-9.]+):[0-9]{1,5}|\[([0-9a-fA-F:.]+)\](?::[0-9]{1,5})?)")


def is_fingerprint(text: str) -> bool:
    """Whether a buyer's client may call itself that."""
    return _FINGERPRINT.fullmatch(text) is not None


class Asked(NamedTuple):
    """What of a request tells who calls.

    Parameters
    ----------
    remote: the other end of the connection.
    """

    headers: Headers
    config: AppConfig
    remote: str | None


def asked_by(request: web.Request) -> Asked:
    """What of this request tells who calls."""
    return Asked(request.headers, request.app[CONFIG], request.remote)


def is_operator(asked: Asked) -> bool:
    """Whether the operator calls.

    Raises
    ------
    OperatorTokenRequired: a bearer token was presented and is not the operator's. Whoever presents one wants to be
        the operator, and a slip must not quietly make a buyer of them.
    """
    authorization = asked.headers.get(hdrs.AUTHORIZATION)
    if authorization is None:
        return False
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        return False
    presented = token.strip().encode("utf-8", "surrogateescape")
    if not hmac.compare_digest(presented, asked.config.operator_token):
        raise _operator_required("This is not the operator's token.")
    return True


def require_operator(asked: Asked) -> None:
    """Refuse everyone but the operator.

    Raises
    ------
    OperatorTokenRequired: the caller is not the operator.
    """
    if not is_operator(asked):
        raise _operator_required("This call is the operator's: send 'Authorization: Bearer' and the operator's token.")


def _operator_required(detail: str) -> OperatorTokenRequired:
    return OperatorTokenRequired(detail, headers=OPERATOR_CHALLENGE)


class Caller:
    """Someone who has passed authentication.

    Parameters
    ----------
    operator: it is the operator, who acts for any buyer it names.
    subject: whom a buyer token names; None without one.
    """

    __slots__ = ("_asked", "operator", "subject")

    def __init__(self, asked: Asked, operator: bool, subject: str | None) -> None:
        self._asked = asked
        self.operator = operator
        self.subject = subject

    def buyer(self, *, fingerprint: str = "", buyer: str = "") -> str:
        """For whom this call is made.

        Parameters
        ----------
        fingerprint, buyer: what the body (or the query) names; empty when it does not.

        Raises
        ------
        InvalidRequest: a malformed fingerprint, two different names, `buyer` from someone who is not the operator,
            or nobody named by the operator.
        """
        named = self.named_buyer(fingerprint=fingerprint, buyer=buyer)
        if named is not None:
            return named
        if self.operator:
            raise InvalidRequest("/buyer", "is required: the operator must name the buyer it acts for")
        return _derived(self._asked)

    def reader(self) -> str | None:
        """As whom this caller looks at a ticket: None when a buyer token would have had to say it."""
        if self.subject is None and self._asked.config.buyer_token_key is not None:
            return None
        return self.buyer()

    def named_buyer(self, *, fingerprint: str = "", buyer: str = "") -> str | None:
        """As `buyer`, but None when nobody is named: nothing is derived, and the operator need not name anyone."""
        if buyer and not self.operator:
            raise InvalidRequest("/buyer", "is not a field of this call, but for the operator")
        names = self._asked.headers.getall(FINGERPRINT_HEADER, ())
        if names:
            for name in names:
                if not is_fingerprint(name):
                    raise InvalidRequest(f"/{FINGERPRINT_HEADER}", PATTERN_SENTENCES[FINGERPRINT_PATTERN])
        if self.subject is not None:
            return self.subject
        if not fingerprint and not buyer and len(names) == 1:
            return names[0]
        distinct = {*names, fingerprint, buyer} - {""}
        if len(distinct) > 1:
            raise InvalidRequest(
                "/buyer" if buyer else "/fingerprint", "differs from the buyer named elsewhere in this request"
            )
        return distinct.pop() if distinct else None


def authenticate(asked: Asked) -> Caller:
    """The caller of a buyer's call.

    Raises
    ------
    OperatorTokenRequired: a bearer token that is not the operator's.
    BuyerTokenRequired, InvalidBuyerToken: a key for buyer tokens is configured, and there is none or a wrong one.
    """
    if is_operator(asked):
        return Caller(asked, True, None)
    key = asked.config.buyer_token_key
    if key is None:
        return Caller(asked, False, None)
    token = asked.headers.get(TOKEN_HEADER)
    if token is None:
        raise BuyerTokenRequired(f"Send the buyer's token in the header {TOKEN_HEADER}.", headers=TOKEN_CHALLENGE)
    return Caller(asked, False, _subject(token, key))


def authenticate_reader(asked: Asked) -> Caller:
    """The caller of a call that anybody may make, but in which the owner sees more: a missing token is no fault here.

    Raises
    ------
    OperatorTokenRequired, InvalidBuyerToken: a token was presented and is wrong.
    """
    if TOKEN_HEADER in asked.headers or asked.config.buyer_token_key is None:
        return authenticate(asked)
    return Caller(asked, is_operator(asked), None)


def require_buyer_name(name: str) -> str:
    """`name`, which the operator gave in a query.

    Raises
    ------
    InvalidRequest: it cannot be a buyer.
    """
    if not _BUYER.fullmatch(name):
        raise InvalidRequest("/buyer", PATTERN_SENTENCES[BUYER_PATTERN])
    return name


def _subject(token: str, key: bytes) -> str:
    try:
        claims = jwt.decode(token, key, algorithms=["HS256"], options={"require": ["sub", "exp"]})
    except jwt.ExpiredSignatureError:
        raise _invalid("The buyer token has run out; ask for a new one.") from None
    except _TOKEN_ERRORS:
        raise _invalid("The buyer token must be a JWT signed with HS256, with 'sub' and 'exp'.") from None
    subject = claims["sub"]
    if not isinstance(subject, str) or not _BUYER.fullmatch(subject):
        raise _invalid(f"The 'sub' of the buyer token {PATTERN_SENTENCES[BUYER_PATTERN]}.")
    return subject


def _invalid(detail: str) -> InvalidBuyerToken:
    return InvalidBuyerToken(detail, headers=TOKEN_CHALLENGE)


# A buyer who says nothing ---------------------------------------------------------------------------------------------


def _derived(asked: Asked) -> str:
    """A buyer made of what a request tells by itself: shared by all who share an address and a browser."""
    headers = asked.headers
    told = "\x00".join(
        (
            client_address(asked.remote, headers.getall(hdrs.X_FORWARDED_FOR, ()), asked.config.trusted_proxies),
            headers.get(hdrs.USER_AGENT, ""),
            headers.get(hdrs.ACCEPT_LANGUAGE, ""),
        )
    )
    # Hashed because headers may be longer than a buyer's name may be.
    return DERIVED_PREFIX + hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()


def client_address(peer: str | None, forwarded: list[str] | tuple[str, ...], trusted: tuple[Network, ...]) -> str:
    """The address of the client: the peer, or, through trusted proxies only, whom the nearest of them saw.

    Parameters
    ----------
    peer: the other end of the connection.
    forwarded: the values of all `X-Forwarded-For` headers, in order.
    trusted: proxies whose word is taken. The list is walked from the right, where the nearest proxy wrote, to the
        first address that is not one of them; what lies left of that was written by the client.
    """
    address = _address(peer or "")
    if address is None:
        return peer or ""
    if not trusted or not forwarded:
        return str(address)
    hops = [hop for value in forwarded for hop in value.split(",")]
    while hops and _is_in(address, trusted):
        hop = _address(hops.pop().strip())
        if hop is None:
            break
        address = hop
    return str(address)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    match = _WITH_PORT.fullmatch(text)
    try:
        address = ip_address((match[1] or match[2]) if match else text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_in(address: IPv4Address | IPv6Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)
