"""`Client`: a Holdfast server from Python, with the calls, the values and the exceptions of `holdfast.engine.Engine`.

Calls are repeated until they are answered or the caller's time is over. That is safe: what reserves or pays has a key,
fixed before it is first sent, and what amends or cancels may be done twice.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import secrets
import string
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from time import monotonic
from types import TracebackType
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, Self, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from holdfast.engine import (
    ConfigurationError,
    Durability,
    HoldfastError,
    ItemSpec,
    Line,
    NotReady,
    Order,
    OutcomeUnknown,
    Overloaded,
    Page,
    Payment,
    Position,
    Readiness,
    Sale,
    SaleTransition,
    Status,
    Ticket,
    checks,
)
from holdfast.engine.limits import HOLD_MS_DEFAULT

from . import told
from .events import MEDIA_TYPE, Event, events
from .models import instant_text
from .problems import HttpError, OperatorTokenRequired
from .told import UnexpectedAnswer

#: Seconds for a call with all its repetitions, when the caller says nothing: a restart of a server takes fewer, and so
#: does a failover of Redis with the recovery of what it has lost.
TIMEOUT_S_DEFAULT: Final = 30.0

#: Seconds after which a call that is not answered is sent once more, on another connection. A server keeps a call for
#: up to 10 while another Redis takes over, and a payment for 3 more until it is durable: both are answered before.
ATTEMPT_S: Final = 15.0

#: Seconds in which a connection must be made: a machine that is gone says nothing, and another may answer in its place.
CONNECT_S: Final = 5.0

#: Seconds between a failure and the first repetition, and between two repetitions at the most. Each wait is drawn
#: between half of that and all of it, so that clients who failed together do not come back together.
PAUSE_S_FIRST: Final = 0.1
PAUSE_S_MAX: Final = 2.0

#: Seconds of silence after which a stream is taken for broken: a server sends something every 15.
SILENCE_S: Final = 45.0

#: Connections of a client.
CONNECTIONS_MAX: Final = 100

#: Random bytes of a key, and characters of a sale's id, that the client makes: no two are ever alike.
KEY_BYTES: Final = 16
NAME_CHARS: Final = 22

#: Bytes of an answer: a page of 500 sales with 100 items each, all with the longest names, is 45 MB.
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024

#: Bytes of a strange answer that its exception shows.
SHOWN_BYTES_MAX: Final = 200

#: Statuses of proxies that have no answer of a server: it may have had the request.
GATEWAY_STATUSES: Final = (502, 503, 504)


_TOKEN: Final = re.compile(r"[!-~]+")

T = TypeVar("T")
P = ParamSpec("P")


class _Answer(NamedTuple):
    """What was answered: with success, or with a refusal that is an answer."""

    status: int
    headers: Mapping[str, str]
    body: Any

    def told(self, read: Callable[Concatenate[Any, P], T], *args: P.args, **more: P.kwargs) -> T:
        """What the body says, by one of the readers of `told.py`.

        Raises
        ------
        UnexpectedAnswer: it lacks something, or has something else in its place.
        """
        with told.understood(self.status):
            return read(self.body, *args, **more)


class Client:
    """Reserves, confirms, cancels and looks, like `Engine`, through a server's HTTP API.

    Cheap, to be used by many tasks at once, and as an async context manager: it keeps its connections until the end.
    All refusals are the exceptions of `holdfast.engine`, with the same attributes; those that only HTTP knows (a wrong
    token, a body too large) are those of `holdfast.http.problems`. Of each ticket `buyer` is empty, since the API shows
    it to nobody, and `epoch` and `place` of a sale are told by `counts` alone.

    Parameters
    ----------
    url: of the server, such as `https://shop.example`; with a path, when the API lies under one.
    buyer: for whom calls are made: the fingerprint, 8 to 128 visible ASCII characters.
    buyer_token: in its place the signed token (JWT) of a server that requires one.
    operator_token: opens the operator's calls; such a client names the buyer in each call that acts for one.
    timeout_s: seconds for each call with all its repetitions.
    session: to send with, for proxies, certificates or limits of connections of your own; it stays open. Without it
        the client makes one that takes proxies from the environment.

    Raises
    ------
    ConfigurationError: the address is none, two buyers are named, or a token is none.
    """

    def __init__(
        self,
        url: str,
        *,
        buyer: str | None = None,
        buyer_token: str | None = None,
        operator_token: str | None = None,
        timeout_s: float = TIMEOUT_S_DEFAULT,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigurationError("The address of a server is http:// or https://, a host, and perhaps a path.")
        if buyer is not None and buyer_token is not None:
            raise ConfigurationError("Name the buyer by 'buyer' or by 'buyer_token', not by both.")
        if operator_token is not None and parts.username is not None:
            raise ConfigurationError("An address with a user in it leaves no room for the operator's token.")
        for what, token in (("operator_token", operator_token), ("buyer_token", buyer_token)):
            if token is not None and not _TOKEN.fullmatch(token):
                raise ConfigurationError(f"'{what}' must be visible ASCII characters.")
        self._url = url.rstrip("/")
        self._buyer = buyer
        self._operator = operator_token is not None
        self._headers = {
            name: value
            for name, value in (
                ("X-Buyer-Token", buyer_token),
                ("Authorization", None if operator_token is None else f"Bearer {operator_token}"),
            )
            if value is not None
        }
        self._timeout_s = timeout_s
        self._session = session
        self._owned: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        if self._session is None:
            self._session = self._owned = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
                cookie_jar=aiohttp.DummyCookieJar(),
                proxy=_proxy(self._url),
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; calls that are under way fail."""
        if self._owned is not None:
            await self._owned.close()
            self._session = self._owned = None

    # -- sales -----------------------------------------------------------------------------------------------------

    async def create_sale(
        self,
        sale: str | None = None,
        *,
        name: str,
        capacity: int | None = None,
        items: Sequence[ItemSpec] | None = None,
        hold_ms: int = HOLD_MS_DEFAULT,
        max_per_buyer: int | None = None,
        opens_at: int | None = None,
        closes_at: int | None = None,
        durability: Durability | None = None,
        shards: int | None = None,
    ) -> Sale:
        """Puts something on sale, for the operator; parameters and refusals as of `Engine.create_sale`.

        After a repetition `created` may be False, although it was this call that made the sale.
        """
        body = {
            "id": _random_name() if sale is None else sale,
            "name": name,
            "capacity": capacity,
            "items": None if items is None else [_given(asdict(item)) for item in items],
            "hold_ms": hold_ms,
            "max_per_buyer": max_per_buyer,
            "opens_at": None if opens_at is None else instant_text(opens_at),
            "closes_at": None if closes_at is None else instant_text(closes_at),
            "durability": durability,
            "shards": shards,
        }
        answer = await self._call("POST", "/sales", body=_given(body), changes=True)
        return answer.told(told.sale, created=answer.status == 201)

    async def amend_sale(self, sale: str, changes: Mapping[str, object]) -> Sale:
        """Changes a sale, for the operator; parameters and refusals as of `Engine.amend_sale`."""
        body = dict(changes)
        for name in ("opens_at", "closes_at"):
            value = body.get(name)
            if isinstance(value, int):
                body[name] = instant_text(value)
        answer = await self._call("PATCH", f"/sales/{_part(sale)}", body=body, changes=True)
        return answer.told(told.sale)

    async def sale(self, sale: str) -> Sale:
        """The sale with its counters.

        Raises
        ------
        UnknownSale, NotReady.
        """
        return (await self._call("GET", f"/sales/{_part(sale)}")).told(told.sale)

    async def sales(self, *, limit: int = 100, cursor: str | None = None) -> Page[Sale]:
        """Sales in the order of their ids, for the operator; parameters as of `Engine.sales`."""
        return (await self._call("GET", "/sales", query={"limit": limit, "cursor": cursor})).told(told.sales)

    # -- tickets ---------------------------------------------------------------------------------------------------

    async def reserve(
        self,
        sale: str,
        *,
        buyer: str | None = None,
        quantity: int | None = None,
        lines: Mapping[str, int] | Sequence[Line] | None = None,
        key: str | None = None,
    ) -> Ticket:
        """Holds units until the sale's hold time is over. All lines or nothing.

        Parameters
        ----------
        buyer: for whom; None is the client's own.
        quantity: units, in a sale of one item; or `lines`, units by sku.
        key: names this operation, also when it is called again later; None has one made for this call.

        Raises
        ------
        InvalidRequest, UnknownSale, IdempotencyKeyReused, NotYetOpen, Closed, LimitReached, SoldOut, AllHeld.
        Overloaded, NotReady: nothing was done. OutcomeUnknown: repeat it with the same key.
        """
        body, headers = self._for(buyer)
        body |= _order(quantity, lines)
        headers |= _keyed(key)
        return _ticket(await self._call("POST", f"/sales/{_part(sale)}/tickets", body, headers, changes=True))

    async def confirm(
        self,
        ticket: str,
        *,
        buyer: str | None = None,
        reference: str | None = None,
        key: str | None = None,
        declined: bool = False,
        durability: Durability | None = None,
    ) -> Ticket:
        """Pays for a reserved ticket: it becomes purchased, for good.

        Parameters
        ----------
        buyer: for whom; None is the client's own.
        reference, key, declined, durability: as of `Engine.confirm`; a key is made for this call where none is given.

        Returns
        -------
        The ticket; `pending` names a durability that was not reached in time, as `Engine.confirm` has it.

        Raises
        ------
        As `Engine.confirm`.
        """
        body, headers = self._for(buyer)
        body |= _given({"reference": reference, "outcome": "decline" if declined else None})
        headers |= _keyed(key) | _preferring(durability)
        return _ticket(await self._call("POST", f"/tickets/{_part(ticket)}/payment", body, headers, changes=True))

    async def cancel(self, ticket: str, *, buyer: str | None = None) -> Ticket:
        """Gives a reserved ticket's units back. Cancelling again returns the cancelled ticket, `replayed`.

        Raises
        ------
        As `Engine.cancel`.
        """
        named, headers = self._for(buyer)
        path = f"/tickets/{_part(ticket)}/payment"
        return _ticket(await self._call("DELETE", path, None, headers, query=named, changes=True))

    async def ticket(self, ticket: str) -> Ticket:
        """The ticket as it stands; `reference` is there for its buyer and the operator.

        Raises
        ------
        UnknownTicket, NotReady.
        """
        _, headers = self._for(None)
        return _ticket(await self._call("GET", f"/tickets/{_part(ticket)}", None, headers))

    async def tickets(
        self,
        sale: str,
        *,
        buyer: str | None = None,
        status: Status | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Ticket]:
        """Tickets of a sale, oldest first: the buyer's own; for the operator all, or those of `buyer`.

        Parameters
        ----------
        status, limit, cursor: as of `Engine.tickets`.

        Raises
        ------
        InvalidRequest, UnknownSale, NotReady.
        """
        named, headers = self._for(buyer)
        query = {**named, "status": status, "limit": limit, "cursor": cursor}
        return (await self._call("GET", f"/sales/{_part(sale)}/tickets", None, headers, query)).told(told.tickets)

    # -- many at once ----------------------------------------------------------------------------------------------

    async def reserve_many(self, sale: str, entries: Sequence[Order]) -> list[Ticket | HoldfastError]:
        """As `reserve` for each entry, in one request, for the operator: the ticket of each, or its refusal.

        Parameters
        ----------
        entries: `limits.ENTRIES_MAX` at the most; those without a key have one made for this call.

        Raises
        ------
        As `Engine.reserve_many`. NotReady, Overloaded, OutcomeUnknown: the request as a whole had no answer in time.
        """
        bodies = [
            {"buyer": entry.buyer, "key": _key(entry.key), **_order(entry.quantity, entry.lines)} for entry in entries
        ]
        return await self._many(f"/sales/{_part(sale)}/tickets/batch", bodies, {})

    async def confirm_many(
        self, sale: str, entries: Sequence[Payment], *, durability: Durability | None = None
    ) -> list[Ticket | HoldfastError]:
        """As `confirm` for each entry: see `reserve_many`."""
        bodies = [
            _given(
                {
                    "ticket": entry.ticket,
                    "buyer": entry.buyer,
                    "key": _key(entry.key),
                    "reference": entry.reference,
                    "outcome": "decline" if entry.declined else None,
                }
            )
            for entry in entries
        ]
        return await self._many(f"/sales/{_part(sale)}/payments/batch", bodies, _preferring(durability))

    async def _many(
        self, path: str, bodies: list[dict[str, Any]], headers: Mapping[str, str]
    ) -> list[Ticket | HoldfastError]:
        """What became of each entry; those that were not decided are sent again while there is time."""
        if not bodies:
            return []
        attempts = _Attempts(self._timeout_s)
        answer = await self._call("POST", path, {"entries": bodies}, headers, changes=True, attempts=attempts)
        outcomes = answer.told(told.outcomes, len(bodies))
        while open_ := [at for at, outcome in enumerate(outcomes) if isinstance(outcome, _UNDECIDED)]:
            if not await attempts.pause(max(outcomes[at].retry_after_ms for at in open_)):  # type: ignore[union-attr]
                break
            again = {"entries": [bodies[at] for at in open_]}
            try:
                answer = await self._call("POST", path, again, headers, changes=True, attempts=attempts)
            except _UNDECIDED as error:
                for at in open_:
                    outcomes[at] = _worse(outcomes[at], error)
                break
            except (HoldfastError, HttpError):
                # Another server by now, or another token: those that were decided must be told all the same.
                break
            for at, outcome in zip(open_, answer.told(told.outcomes, len(open_)), strict=True):
                outcomes[at] = _worse(outcomes[at], outcome)
        return outcomes

    # -- the server ------------------------------------------------------------------------------------------------

    async def ready(self) -> Readiness:
        """Whether every sale can be sold now, and if not, why.

        Raises
        ------
        NotReady: there was no answer in time.
        """
        answer = await self._call("GET", "/readyz", settled=lambda answer: "reasons" in answer.body)
        return answer.told(told.readiness)

    # -- the live stream -------------------------------------------------------------------------------------------

    async def counts(self, sale: str) -> AsyncIterator[Sale]:
        """The sale with its counters, now and whenever they have changed, ten times a second at the most.

        Without an end: while the server is away it is asked again and again. `ready` is False while the sale cannot be
        read.

        Raises
        ------
        UnknownSale. NotReady, Overloaded: at the first step, when there was no answer in time.
        """
        async for event in self._follow(sale, {}, ""):
            if event.name == "counts":
                with told.understood(200):
                    counted = told.sale(json.loads(event.data), place=event.id)
                yield counted

    async def transitions(
        self, sale: str, *, after: tuple[int, int] | str | None = None
    ) -> AsyncIterator[SaleTransition]:
        """Every transition of a sale, without a gap or a repetition, for the operator: in order, in each shard.

        Without an end: after a break it goes on behind the last one that was handed out.

        Parameters
        ----------
        after: the `place` to go on from, or in a sale of one slot epoch and sequence; (0, 0) is the beginning, None is
            where the ledger stands now.

        Raises
        ------
        UnknownSale, OperatorTokenRequired. InvalidRequest: `after` is no place in this sale.
        NotReady, Overloaded: at the first step, when there was no answer in time.
        """
        token = self._headers.get("Authorization")
        if token is None:
            # Without one the server would tell the counters alone, for ever.
            raise OperatorTokenRequired("Transitions are the operator's: give the client an 'operator_token'.")
        begin = "" if after is None else after if isinstance(after, str) else str(Position(*after))
        async for event in self._follow(sale, {"Authorization": token}, begin):
            if event.name == "transition":
                with told.understood(200):
                    transition = told.transition(json.loads(event.data), event.id)
                yield transition

    async def _follow(self, sale: str, headers: Mapping[str, str], last: str) -> AsyncIterator[Event]:
        """The events of a sale's stream, through as many connections as it takes.

        Parameters
        ----------
        last: the id after which it begins; empty for the present.
        """
        path = f"/sales/{_part(sale)}/stream"
        attempts = _Attempts(self._timeout_s)
        while True:
            resumed = {"Last-Event-ID": last} if last and headers else {}
            try:
                async with self._stream(path, {**headers, **resumed}) as pieces:
                    # From the first connection on it goes on for as long as whoever asked wants to hear.
                    attempts = _Attempts(None)
                    with told.understood(200):
                        async for event in events(pieces):
                            if event.id:
                                last = event.id
                            yield event
                failure: NotReady | Overloaded = NotReady("the server ended the stream")
            except (aiohttp.ClientError, TimeoutError, OSError, _NoAnswer) as error:
                failure = NotReady(_reason(error))
            except (NotReady, Overloaded) as error:
                failure = error
            if not await attempts.pause(failure.retry_after_ms):
                raise failure

    @asynccontextmanager
    async def _stream(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """The pieces of a stream; refusals are raised."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        async with self._open.get(
            URL(self._url + path, encoded=True), headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            if response.status != 200 or response.content_type != MEDIA_TYPE:
                raise _refused(await _read(response))
            yield response.content.iter_any()

    # -- sending ---------------------------------------------------------------------------------------------------

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise ConfigurationError("The client is not open: use it within 'async with'.")
        return self._session

    def _for(self, buyer: str | None) -> tuple[dict[str, Any], dict[str, str]]:
        """How a call names its buyer: what stands in the body or the query, and in the headers."""
        if buyer is not None and self._operator:
            return {"buyer": buyer}, {}
        fingerprint = self._buyer if buyer is None else buyer
        return {}, {} if fingerprint is None else {"X-Buyer-Fingerprint": fingerprint}

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        *,
        changes: bool = False,
        settled: Callable[[_Answer], bool] = lambda answer: False,
        attempts: _Attempts | None = None,
    ) -> _Answer:
        """Sends until it is answered or the time is over.

        Parameters
        ----------
        changes: what is not answered may have been done.
        settled: tells a refusal that is an answer.
        attempts: to go on with, of a call of several requests.

        Raises
        ------
        Whatever the server refused it with. OutcomeUnknown: it was sent, and never answered for certain.
        NotReady, Overloaded: nothing was done.
        """
        attempts = attempts or _Attempts(self._timeout_s)
        url = URL(self._url + path, encoded=True).update_query(_given(query or {}))
        sent = {**self._headers, **(headers or {})}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        unknown = False
        while True:
            wait_ms = 0
            try:
                answer = await self._attempt(method, url, data, sent, attempts.seconds())
                if answer.status < 300 or settled(answer):
                    return answer
                failure = _refused(answer)
                if not isinstance(failure, _UNDECIDED):
                    raise failure
                wait_ms = failure.retry_after_ms
                unknown |= isinstance(failure, OutcomeUnknown)
            except (aiohttp.ClientSSLError, aiohttp.InvalidURL) as error:
                # These fail alike however often they are tried.
                raise NotReady(_reason(error)) from error
            except (aiohttp.ClientError, TimeoutError, OSError, _NoAnswer) as error:
                unknown |= not isinstance(error, _NOT_SENT)
                failure = NotReady(_reason(error))
            if not await attempts.pause(wait_ms):
                if unknown and changes and not isinstance(failure, OutcomeUnknown):
                    raise OutcomeUnknown from failure
                raise failure

    async def _attempt(
        self, method: str, url: URL, data: bytes | None, headers: Mapping[str, str], seconds: float
    ) -> _Answer:
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_S)
        async with self._open.request(
            method, url, data=data, headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            return await _read(response)


class _NoAnswer(Exception):
    """A proxy has answered in the place of the server."""


#: Failures that a later attempt can make good.
_UNDECIDED: Final = (NotReady, Overloaded, OutcomeUnknown)

#: Failures before anything was sent.
_NOT_SENT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)


class _Attempts:
    """The time of one call: how long an attempt may take, and when the next one is.

    Parameters
    ----------
    timeout_s: seconds of all of them; None is without an end.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._end = math.inf if timeout_s is None else monotonic() + timeout_s
        self._pause_s = PAUSE_S_FIRST

    def seconds(self) -> float:
        """Seconds for the next attempt."""
        # Of no time aiohttp would make no limit.
        return min(ATTEMPT_S, max(0.001, self._end - monotonic()))

    async def pause(self, retry_after_ms: int) -> bool:
        """Waits until the next attempt, or tells at once that there is no time for one.

        Parameters
        ----------
        retry_after_ms: what the server asked for, milliseconds; 0 when it did not answer.
        """
        # Drawn anew for each, so that clients who failed together do not come back together.
        drawn_s = max(self._pause_s * random.uniform(0.5, 1), retry_after_ms / 1000 * random.uniform(1, 1.25))
        self._pause_s = min(PAUSE_S_MAX, self._pause_s * 2)
        if monotonic() + drawn_s >= self._end:
            return False
        await asyncio.sleep(drawn_s)
        return True


async def _read(response: aiohttp.ClientResponse) -> _Answer:
    """An answer that can be one of a server of ours.

    Raises
    ------
    _NoAnswer: it is a proxy's. UnexpectedAnswer: it is somebody else's.
    """
    text = bytearray()
    async for piece in response.content.iter_any():
        text += piece
        if len(text) > ANSWER_BYTES_MAX:
            raise UnexpectedAnswer(response.status, f"it has more than {ANSWER_BYTES_MAX:,} bytes")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict) and (response.status < 300 or "code" in body):
        return _Answer(response.status, response.headers, body)
    if response.status in GATEWAY_STATUSES:
        raise _NoAnswer(f"status {response.status} of something before the server")
    raise UnexpectedAnswer(response.status, text[:SHOWN_BYTES_MAX].decode("ascii", "replace"))


def _refused(answer: _Answer) -> Exception:
    error = answer.told(told.refusal, answer.headers)
    return error or UnexpectedAnswer(answer.status, str(answer.body["code"])[:SHOWN_BYTES_MAX])


def _reason(error: Exception) -> str:
    """Why there was no answer, for an operator."""
    return f"no answer of the server ({type(error).__name__}{f': {error}' if str(error) else ''})"


def _worse(before: Ticket | HoldfastError, now: Ticket | HoldfastError) -> Ticket | HoldfastError:
    """The outcome of an entry that was sent again: once unknown, it stays so until it is decided."""
    return before if isinstance(before, OutcomeUnknown) and isinstance(now, _UNDECIDED) else now


def _ticket(answer: _Answer) -> Ticket:
    return answer.told(told.ticket, replayed=answer.headers.get("Idempotent-Replayed") == "true")


def _order(quantity: int | None, lines: Mapping[str, int] | Sequence[Line] | None) -> dict[str, Any]:
    pairs = lines.items() if isinstance(lines, Mapping) else lines
    listed = None if pairs is None else [{"sku": sku, "quantity": units} for sku, units in pairs]
    return _given({"quantity": quantity, "lines": listed})


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _key(key: str | None) -> str:
    return checks.key(key) or secrets.token_urlsafe(KEY_BYTES)


def _keyed(key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": _key(key)}


def _preferring(durability: Durability | None) -> dict[str, str]:
    return {} if durability is None else {"Prefer": f"durability={durability}"}


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for this address.

    aiohttp would look into ~/.netrc as well, and can then not send the operator's token.
    """
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _part(id: str) -> str:
    """An id as a part of a path."""
    return quote(id, safe="")


def _random_name() -> str:
    """The id of a sale that nobody named."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(NAME_CHARS))
