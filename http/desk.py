"""The desk of the short way: what aiohttp's parser has read becomes a call of the engine, and its outcome an answer.

Only the two calls of a stampede, reserving and paying, with nothing odd about them. Whatever is odd (a path with
escapes, a mistake of any kind) is left to the ordinary way through `app.py`, which starts anew from the same parsed
message: so every mistake is described in one place, and what is here only has to know when it need not know. The
answers are the same to the byte but for the order of headers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus
from json import dumps
from time import perf_counter, time
from typing import Final, NamedTuple, Protocol

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11, RawRequestMessage

from holdfast.engine import ConfigurationError, Engine, HoldfastError, InvalidRequest, Line, Overloaded, Ticket

from .app import REQUEST_IDS, SERVER_NAME, CrossOrigin
from .bodies import (
    JSON,
    PREFER_HEADER,
    PREFERENCE_APPLIED_HEADER,
    idempotency_key,
    parse_model,
    preference_applied,
    preferred_durability,
)
from .callers import FINGERPRINT_HEADER, Asked, authenticate, is_fingerprint, is_operator
from .context import CONFIG, ENGINE, AppConfig, Headers
from .logs import REQUEST_ID, log_access
from .metrics import TALLY
from .models import TICKET_BEGIN, PaymentBody, ReserveBody, ticket_text
from .problems import HttpError, kind_of, outcome_of, said, went_wrong
from .sales import is_sale_id
from .tally import OK, OTHER_METHOD, PAY, RESERVE, Group, Tally
from .tickets import confirm_payment, reserve_order

log = logging.getLogger("holdfast.http")

#: Bodies and paths that are remembered in the form in which they are used: in a stampede nearly all are the same few.
REMEMBERED_MAX: Final = 1_000

#: Bytes of a body that is remembered: an order without a name in it is shorter.
REMEMBERED_BYTES_MAX: Final = 200

#: Stands for the request's id in a text that is said again with others.
_REQUEST_ID: Final = "<request id>"

_CREATED: Final = (
    "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nLocation: /tickets/"
)

_ID_HEADER: Final = "\r\nX-Request-Id: "

#: Where a ticket's times begin: what stands before them tells tickets of a batch apart, or is looked at by itself.
_TIMES: Final = Ticket._fields.index("reserved_at")

#: Paths that are answered when there is no room for others: who asks there decides what becomes of this server.
_HEALTH: Final = frozenset({"/healthz", "/readyz"})

_RESERVE_BEGIN, _RESERVE_END = "/sales/", "/tickets"
_PAY_BEGIN, _PAY_END = "/tickets/", "/payment"
_RESERVE_ROUTE, _PAY_ROUTE = "/sales/{sale}/tickets", "/tickets/{ticket}/payment"


class _Made(NamedTuple):
    """What the answer with a new ticket shares with those of others of its batch.

    Parameters
    ----------
    sale, lines, times: by which these are known. between: what stands between the two ids. rest: after the ticket's.
    """

    sale: str
    lines: tuple[Line, ...]
    times: object
    between: str
    rest: str


class _Refused(NamedTuple):
    """What a refusal shares with those that say the same.

    Parameters
    ----------
    error, second, quoted: by which these are known: the refusal itself, the Unix second of its date, and the characters
        of the request's id in the body.
    head: before the request's id. between: what stands between it and itself in the body. rest: after that.
    """

    error: BaseException | None
    second: int
    quoted: int
    head: str
    between: str
    rest: str


class Asker(Protocol):
    """The connection that a request came by.

    Attributes
    ----------
    remote: the address of its other end.
    exchange: its request that is being answered; None when none is.
    """

    exchange: Exchange | None

    @property
    def remote(self) -> str | None: ...

    def answer(self, said: bytes, /) -> None:
        """Answers it."""


class Exchange:
    """One request that waits for the engine, and hears its answer."""

    __slots__ = ("_connection", "_created", "_desk", "_group", "_request_id", "answered", "preferred")

    def __init__(self, desk: Desk, connection: Asker, request_id: str, created: bool, group: Group) -> None:
        self._desk = desk
        self._connection = connection
        self._request_id = request_id
        self._created = created
        self._group = group
        #: The request has said what the payment is to survive.
        self.preferred = False
        self.answered = False

    def asked(self, headers: Headers, config: AppConfig) -> Asked:
        """What of the request tells who calls."""
        return Asked(headers, config, self._connection.remote)

    def done(self) -> bool:
        """Nobody waits any more: it was answered, or the client is gone."""
        return self.answered

    # What is heard is noted here and not in a function of its own, which would cost as much as all that it does.

    def set_result(self, ticket: Ticket, /) -> None:
        """Answers with the ticket."""
        self.answered = True
        group = self._group
        if not group.heard:
            self._desk.tally.answering.append(group)
        group.heard.append(None)
        self._connection.answer(self._desk.said_ticket(ticket, self._request_id, self._created, self.preferred))

    def set_exception(self, error: BaseException, /) -> None:
        """Answers with the refusal."""
        self.answered = True
        group = self._group
        if not group.heard:
            self._desk.tally.answering.append(group)
        group.heard.append(error)
        self._connection.answer(self._desk.said_refusal(error, self._request_id))


class LoggedExchange(Exchange):
    """One that is logged when it was answered."""

    __slots__ = ()

    def set_result(self, ticket: Ticket, /) -> None:
        """Answers with the ticket."""
        super().set_result(ticket)
        self._log(202 if ticket.pending is not None else 201 if self._created else 200, OK)

    def set_exception(self, error: BaseException, /) -> None:
        """Answers with the refusal."""
        super().set_exception(error)
        outcome = outcome_of(error)
        known = error if isinstance(error, HoldfastError) and outcome == error.code else went_wrong()
        self._log(kind_of(type(known)).status, outcome)

    def _log(self, status: int, outcome: str) -> None:
        route = _RESERVE_ROUTE if self._created else _PAY_ROUTE
        log_access(hdrs.METH_POST, route, status, outcome, perf_counter() - self._group.began, self._request_id)


class Desk:
    """What all connections of a server share.

    Parameters
    ----------
    app: its engine and its settings are used.
    """

    def __init__(self, app: web.Application) -> None:
        self._engine: Engine = app[ENGINE]
        self._config = app[CONFIG]
        self._request_ids = app[REQUEST_IDS]
        self.tally: Tally = app[TALLY]
        self._exchange = LoggedExchange if self._config.access_log else Exchange
        self._cors = CrossOrigin(self._config.allow_origins) if self._config.allow_origins else None
        self._sales: dict[str, str] = {}
        self._orders: dict[bytes, tuple[int | None, Mapping[str, int] | Sequence[Line] | None]] = {}
        self._last_made = _Made("", (), (), "", "")
        self._last_refused = _Refused(None, 0, 0, "", "", "")
        self._second, self._date = 0, ""
        #: The server ends: every answer closes its connection, which is the ordinary way's business.
        self.draining = False

    def take(self, connection: Asker, message: RawRequestMessage, body: bytes) -> bool:
        """Begins to answer a request; False leaves it to the ordinary way, and nothing was done."""
        headers: Headers = message.headers
        if (
            message.method != hdrs.METH_POST
            or message.should_close
            or message.version is not HttpVersion11
            or hdrs.EXPECT in headers
            or hdrs.CONTENT_ENCODING in headers
            or (self._cors is not None and hdrs.ORIGIN in headers)
        ):
            return False
        path = message.path
        sale = self._sales.get(path) or self._sale(path)
        if not sale and not (path.startswith(_PAY_BEGIN) and path.endswith(_PAY_END)):
            return False
        tally = self.tally
        if sale:
            group = tally.reserving.get(sale) or tally.begin(RESERVE, sale)
        else:
            named = path[len(_PAY_BEGIN) : path.find(".", len(_PAY_BEGIN))]
            group = tally.paying.get(named) or tally.begin(PAY, named)
        exchange = self._exchange(self, connection, self._request_ids.of(headers), sale is not None, group)
        try:
            if sale:
                taken = self._reserve(exchange, sale, headers, body)
            else:
                taken = self._pay(exchange, path[len(_PAY_BEGIN) : -len(_PAY_END)], headers, body)
        except (HttpError, InvalidRequest):
            return False
        except HoldfastError as error:
            exchange.set_exception(error)
            return True
        if taken and not exchange.answered:
            connection.exchange = exchange
        return taken

    def _sale(self, path: str) -> str | None:
        sale = path[len(_RESERVE_BEGIN) : -len(_RESERVE_END)]
        if not path.startswith(_RESERVE_BEGIN) or not path.endswith(_RESERVE_END) or not is_sale_id(sale):
            return None
        if len(self._sales) >= REMEMBERED_MAX:
            self._sales.clear()
        self._sales[path] = sale
        return sale

    def _reserve(self, exchange: Exchange, sale: str, headers: Headers, raw: bytes) -> bool:
        wanted = self._orders.get(raw)
        if wanted is not None and headers.get(hdrs.CONTENT_TYPE) in JSON:
            buyer = self._plain_buyer(headers)
            if buyer is not None:
                quantity, lines = wanted
                return self._engine.reserve_for(exchange, sale, buyer, quantity, lines, idempotency_key(headers))
        caller = authenticate(exchange.asked(headers, self._config))
        body = parse_model(raw, headers, ReserveBody)
        order = reserve_order(body, caller, headers)
        if len(raw) <= REMEMBERED_BYTES_MAX and not body.buyer and not body.fingerprint:
            if len(self._orders) >= REMEMBERED_MAX:
                self._orders.clear()
            self._orders[raw] = order.quantity, order.lines
        return self._engine.reserve_for(exchange, sale, *order)

    def _plain_buyer(self, headers: Headers) -> str | None:
        """The buyer when nothing but one fingerprint names them."""
        if hdrs.AUTHORIZATION in headers or self._config.buyer_token_key is not None:
            return None
        names = headers.getall(FINGERPRINT_HEADER, ())
        return names[0] if len(names) == 1 and is_fingerprint(names[0]) else None

    def _pay(self, exchange: Exchange, ticket: str, headers: Headers, raw: bytes) -> bool:
        durability = None
        if PREFER_HEADER in headers:
            durability = preferred_durability(headers)
            exchange.preferred = durability is not None
        if not raw:
            buyer = self._plain_buyer(headers)
            if buyer is not None:
                key = idempotency_key(headers)
                return self._engine.confirm_for(exchange, ticket, buyer, None, key, durability=durability)
        caller = authenticate(exchange.asked(headers, self._config))
        body = parse_model(raw, headers, PaymentBody, may_be_empty=True)
        payment = confirm_payment(ticket, body, caller, headers)
        return self._engine.confirm_for(exchange, *payment, durability=durability)

    def left_over(self, error: HttpError) -> str:
        """Takes note of a request of which nothing is known but what it is refused for; a name for it."""
        request_id, status = self._request_ids.new(), kind_of(type(error)).status
        self.tally.answered(OTHER_METHOD, "", status, None)
        if self._config.access_log:
            log_access(OTHER_METHOD, "", status, error.code, 0.0, request_id)
        return request_id

    def goes_first(self, message: RawRequestMessage) -> bool:
        """Whether a request is answered when there is no room for others: the operator's, and those about health."""
        if message.path in _HEALTH:
            return True
        try:
            return is_operator(Asked(message.headers, self._config, None))
        except HttpError:
            return False

    # -- answers ---------------------------------------------------------------------------------------------------

    def said_ticket(self, ticket: Ticket, request_id: str, created: bool, preferred: bool = False) -> bytes:
        """The answer with a ticket: 201 for a new one, 202 for a payment that is not yet as durable as asked, else 200.

        Parameters
        ----------
        preferred: the request has said how durable.
        """
        # The tickets of a batch differ in nothing but their ids, and what they have in common are the same objects.
        if created and not ticket.replayed:
            times = ticket[_TIMES:]
            last = self._last_made
            if ticket.sale is not last.sale or ticket.lines is not last.lines or times != last.times:
                last = self._last_made = self._made(ticket, times)
            return f"{_CREATED}{ticket.id}{_ID_HEADER}{request_id}{last.between}{ticket.id}{last.rest}".encode()
        body = ticket_text(ticket)
        location = f"Location: /tickets/{ticket.id}\r\n" if created else ""
        replayed = "Idempotent-Replayed: true\r\n" if ticket.replayed else ""
        status, applied = "201 Created" if created else "200 OK", ""
        if ticket.pending is not None:
            status = "202 Accepted"
        elif preferred:
            applied = f"{PREFERENCE_APPLIED_HEADER}: {preference_applied(ticket.durability)}\r\n"
        # Only a reference can have more than ASCII in it.
        length = len(body) if ticket.reference is None else len(body.encode())
        return (
            f"HTTP/1.1 {status}\r\n"
            f"Content-Type: application/json\r\nCache-Control: no-store\r\n{location}{applied}{replayed}"
            f"X-Request-Id: {request_id}\r\n{self._common()}Content-Length: {length}\r\n\r\n{body}"
        ).encode()

    def said_refusal(self, error: BaseException, request_id: str) -> bytes:
        """The answer with a problem."""
        # The id may come from outside, and in the body it stands in a JSON string.
        quoted = dumps(request_id)[1:-1] if '"' in request_id or "\\" in request_id else request_id
        last = self._last_refused
        # The refusal of a sale that is sold out for good is one object, said to thousands.
        if error is not last.error or len(quoted) != last.quoted or int(time()) != last.second:
            last = self._last_refused = self._refused(error, request_id, len(quoted))
        return f"{last.head}{request_id}{last.between}{quoted}{last.rest}".encode()

    def said_full(self) -> bytes:
        """The answer to a request for which there is no room: its connection is closed."""
        said_now = self.said_refusal(Overloaded(), self._request_ids.new())
        return said_now.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)

    def _made(self, ticket: Ticket, times: object) -> _Made:
        _, _, rest = ticket_text(ticket).partition(ticket.id)
        length = len(TICKET_BEGIN) + len(ticket.id) + len(rest)
        between = f"\r\n{self._common()}Content-Length: {length}\r\n\r\n{TICKET_BEGIN}"
        return _Made(ticket.sale, ticket.lines, times, between, rest)

    def _refused(self, error: BaseException, request_id: str, quoted: int) -> _Refused:
        if isinstance(error, HoldfastError) and not isinstance(error, ConfigurationError):
            known, told = error, said(error, _REQUEST_ID)
        else:
            # Known to none that come after it: what is logged is logged each time.
            known, told = None, said(went_wrong(), _REQUEST_ID)
            log.error("request %s failed", request_id, exc_info=error, extra={REQUEST_ID: request_id})
        status, headers, text = told
        before, _, rest = text.partition(_REQUEST_ID)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        common = self._common()
        return _Refused(
            known,
            self._second,
            quoted,
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{lines}X-Request-Id: ",
            f"\r\n{common}Content-Length: {len(before) + quoted + len(rest)}\r\n\r\n{before}",
            rest,
        )

    def _common(self) -> str:
        second = int(time())
        if second != self._second:
            self._second = second
            vary = "Vary: Origin\r\n" if self._cors is not None and not self._cors.any_origin else ""
            self._date = f"Server: {SERVER_NAME}\r\n{vary}Date: {formatdate(second, usegmt=True)}\r\n"
        return self._date
