"""The short way of the two calls of a stampede, reserving and paying: from the parser to the engine and back.

aiohttp's parser reads the request; when all of it has come and it is one of these two calls with nothing odd about it,
it is answered here, without the request and response objects, the stream and the two tasks that aiohttp makes for each.
Whatever is odd (a body that comes in pieces, a path with escapes, a mistake of any kind) takes the ordinary way through
`app.py`, which starts anew from the same parsed message: so every mistake is described in one place, and what is here
only has to know when it need not know. The answers are the same to the byte but for the order of headers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus
from json import dumps
from time import time
from typing import Any, Final, cast

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler

from holdfast.engine import ConfigurationError, Engine, HoldfastError, InvalidRequest, Line, Ticket

from .app import REQUEST_IDS, SERVER_NAME, CrossOrigin
from .bodies import BODY_BYTES_MAX, JSON, idempotency_key, parse_model
from .callers import FINGERPRINT_HEADER, Asked, authenticate, is_fingerprint
from .context import ABANDONED, CONFIG, ENGINE, AppConfig, Headers
from .models import TICKET_BEGIN, PaymentBody, ReserveBody, ticket_text
from .problems import HttpError, said, went_wrong
from .sales import is_sale_id
from .tickets import confirm_payment, reserve_order

log = logging.getLogger("holdfast.http")

#: Bodies and paths that are remembered in the form in which they are used: in a stampede nearly all are the same few.
REMEMBERED_MAX: Final = 1_000

#: Bytes of a body that is remembered: an order without a name in it is shorter.
REMEMBERED_BYTES_MAX: Final = 200

#: Bytes that a client may send ahead while its request is being answered, before reading pauses.
EARLY_BYTES_MAX: Final = 64 * 1024

#: Stands for the request's id in a text that is said again with others.
_REQUEST_ID: Final = "<request id>"

_CREATED: Final = (
    "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nLocation: /tickets/"
)

_RESERVE_BEGIN, _RESERVE_END = "/sales/", "/tickets"
_PAY_BEGIN, _PAY_END = "/tickets/", "/payment"


class Exchange:
    """One request that waits for the engine, and hears its answer."""

    __slots__ = ("_connection", "_created", "_request_id", "answered")

    def __init__(self, connection: Connection, request_id: str, created: bool) -> None:
        self._connection = connection
        self._request_id = request_id
        self._created = created
        self.answered = False

    def asked(self, headers: Headers, config: AppConfig) -> Asked:
        """What of the request tells who calls."""
        return Asked(headers, config, self._connection.remote)

    def done(self) -> bool:
        """Nobody waits any more: it was answered, or the client is gone."""
        return self.answered

    def set_result(self, ticket: Ticket, /) -> None:
        """Answers with the ticket."""
        self.answered = True
        self._connection.answer(self._connection.desk.said_ticket(ticket, self._request_id, self._created))

    def set_exception(self, error: BaseException, /) -> None:
        """Answers with the refusal."""
        self.answered = True
        self._connection.answer(self._connection.desk.said_refusal(error, self._request_id))


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
        self._cors = CrossOrigin(self._config.allow_origins) if self._config.allow_origins else None
        self._sales: dict[str, str] = {}
        self._orders: dict[bytes, tuple[int | None, Mapping[str, int] | Sequence[Line] | None]] = {}
        #: The last one and its text: status and headers, and the body before and after the request's id.
        self._last_refusal: tuple[BaseException | None, str, str, str] = (None, "", "", "")
        #: What the last new ticket shares with others of its batch, and its JSON after the id.
        self._alike: object = None
        self._alike_rest = ""
        self._second, self._date = 0, ""
        #: The server ends: every answer closes its connection, which is the ordinary way's business.
        self.draining = False

    def take(self, connection: Connection, message: RawRequestMessage, body: bytes) -> bool:
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
        exchange = Exchange(connection, self._request_ids.of(headers), sale is not None)
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
        if not raw:
            buyer = self._plain_buyer(headers)
            if buyer is not None:
                return self._engine.confirm_for(exchange, ticket, buyer, None, idempotency_key(headers))
        caller = authenticate(exchange.asked(headers, self._config))
        body = parse_model(raw, headers, PaymentBody, may_be_empty=True)
        return self._engine.confirm_for(exchange, *confirm_payment(ticket, body, caller, headers))

    # -- answers ---------------------------------------------------------------------------------------------------

    def said_ticket(self, ticket: Ticket, request_id: str, created: bool) -> bytes:
        """The answer with a ticket: 201 for a new one, else 200."""
        # The tickets of a batch differ in nothing but their ids.
        if created and not ticket.replayed:
            alike = ticket.sale, ticket.lines, ticket.reserved_at, ticket.as_of, ticket.expires_at, ticket.status
            if alike != self._alike:
                self._alike = alike
                _, _, rest = ticket_text(ticket).partition(ticket.id)
                self._alike_rest = rest
            length = len(self._alike_rest) + len(ticket.id) + len(TICKET_BEGIN)
            return (
                f"{_CREATED}{ticket.id}\r\nX-Request-Id: {request_id}\r\n{self._common()}"
                f"Content-Length: {length}\r\n\r\n{TICKET_BEGIN}{ticket.id}{self._alike_rest}"
            ).encode()
        body = ticket_text(ticket)
        location = f"Location: /tickets/{ticket.id}\r\n" if created else ""
        replayed = "Idempotent-Replayed: true\r\n" if ticket.replayed else ""
        # Only a reference can have more than ASCII in it.
        length = len(body) if ticket.reference is None else len(body.encode())
        return (
            f"HTTP/1.1 {'201 Created' if created else '200 OK'}\r\n"
            f"Content-Type: application/json\r\nCache-Control: no-store\r\n{location}{replayed}"
            f"X-Request-Id: {request_id}\r\n{self._common()}Content-Length: {length}\r\n\r\n{body}"
        ).encode()

    def said_refusal(self, error: BaseException, request_id: str) -> bytes:
        """The answer with a problem."""
        last, head, before, after = self._last_refusal
        if error is not last:
            if not isinstance(error, HoldfastError) or isinstance(error, ConfigurationError):
                log.error("request %s failed", request_id, exc_info=error)
                error = went_wrong()
            status, headers, text = said(error, _REQUEST_ID)
            before, _, after = text.partition(_REQUEST_ID)
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{lines}"
            # The refusal of a sale that is sold out for good is one object, said to thousands.
            self._last_refusal = error, head, before, after
        # It may come from outside, and in the body it stands in a JSON string.
        quoted = dumps(request_id)[1:-1] if '"' in request_id or "\\" in request_id else request_id
        length = len(before) + len(quoted) + len(after)
        return (
            f"{head}X-Request-Id: {request_id}\r\n{self._common()}Content-Length: {length}\r\n\r\n"
            f"{before}{quoted}{after}"
        ).encode()

    def _common(self) -> str:
        second = int(time())
        if second != self._second:
            self._second = second
            vary = "Vary: Origin\r\n" if self._cors is not None and not self._cors.any_origin else ""
            self._date = f"Server: {SERVER_NAME}\r\n{vary}Date: {formatdate(second, usegmt=True)}\r\n"
        return self._date


class _Parsed:
    """Stands for the parser when aiohttp's own handling is given what was parsed already."""

    def __init__(self, parsed: Any) -> None:
        self._parsed = parsed

    def feed_data(self, data: bytes) -> Any:
        if isinstance(self._parsed, Exception):
            raise self._parsed
        return self._parsed


class Connection(RequestHandler):
    """aiohttp's connection, which first looks whether the short way will do.

    Attributes
    ----------
    desk: shared by all connections of the server.
    exchange: the request that is being answered on the short way, if one is.
    """

    __slots__ = ("_ahead", "_answered", "_handed_over", "_remote", "desk", "exchange")

    def __init__(self, manager: DirectServer, **options: Any) -> None:
        super().__init__(manager, **options)
        self.desk = manager.desk
        self.exchange: Exchange | None = None
        #: Requests that aiohttp has and has not answered: while there is one, it gets the next one, too.
        self._handed_over = 0
        #: What the client sent before it had its answer.
        self._ahead = b""
        self._answered: asyncio.Future[None] | None = None
        self._remote: str | None = None

    @property
    def remote(self) -> str | None:
        """The address of the other end, as `web.Request.remote` has it."""
        if self._remote is None and self.peername is not None:
            peer = self.peername
            self._remote = str(peer[0]) if isinstance(peer, (list, tuple)) else str(peer)
        return self._remote

    def data_received(self, data: bytes) -> None:
        """Takes what the client sent."""
        if self.exchange is not None:
            self._ahead += data
            if len(self._ahead) > EARLY_BYTES_MAX and self.transport is not None:
                self.transport.pause_reading()
            return
        if self._handed_over or self._upgraded or self._close or self._force_close or self.desk.draining:
            self._ordinary(None, data)
            return
        parser, manager = self._parser, self._manager
        assert parser is not None
        assert manager is not None
        try:
            parsed = messages, upgraded, _ = parser.feed_data(data)
        except HttpProcessingError as error:
            self._ordinary(error, data)
            return
        if len(messages) == 1 and not upgraded:
            message, payload = messages[0]
            if payload.is_eof() and payload.exception() is None:
                body = b"".join(payload._buffer) if payload is not EMPTY_PAYLOAD else b""
                if len(body) <= BODY_BYTES_MAX and self.desk.take(self, message, body):
                    parser.message_consumed()
                    self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
                    manager.requests_count += 1
                    return
        if messages or upgraded:
            self._ordinary(parsed, data)

    def _ordinary(self, parsed: Any, data: bytes) -> None:
        """Leaves to aiohttp what was sent, and with `parsed` what the parser has made of it."""
        before = self._request_count
        if parsed is None:
            super().data_received(data)
        else:
            parser, self._parser = self._parser, cast(Any, _Parsed(parsed))
            try:
                super().data_received(data)
            finally:
                self._parser = parser
        self._handed_over += self._request_count - before

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Writes an answer that was made on the ordinary way; after the last one the short way is open again."""
        finished = await super().finish_response(request, resp, start_time)
        if resp.keep_alive:
            self._handed_over -= 1
        return finished

    def answer(self, said: bytes) -> None:
        """Writes the answer to the request that is under way, and goes on with what came meanwhile."""
        self.exchange = None
        transport = self.transport
        if transport is not None:
            transport.write(said)
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
            if self._ahead:
                data, self._ahead = self._ahead, b""
                transport.resume_reading()
                self.data_received(data)
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone: what it asked for is not sent to Redis any more, if it was not yet."""
        if self.exchange is not None:
            self.exchange.answered = True
            self.exchange = None
        self._ahead = b""
        work = self._current_request.get(ABANDONED) if self._current_request is not None else None
        super().connection_lost(exc)
        if work is not None:
            work.cancel()

    def _process_keepalive(self) -> None:
        if self.exchange is None:
            super()._process_keepalive()
        else:
            # Not idle: looked at again when it may be.
            self._keepalive_handle = self._loop.call_at(
                self._loop.time() + self._keepalive_timeout, self._process_keepalive
            )

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """Ends the connection once the request that is under way has its answer."""
        if self.exchange is not None:
            self._answered = self._loop.create_future()
            await asyncio.wait([self._answered], timeout=timeout)
        await super().shutdown(timeout)


class DirectServer(web.Server):
    """aiohttp's server of an application, whose connections know the short way.

    Parameters
    ----------
    ordinary: the server that aiohttp made of the application.
    """

    def __init__(self, app: web.Application, ordinary: web.Server) -> None:
        super().__init__(
            ordinary.request_handler,
            request_factory=ordinary.request_factory,
            handler_cancellation=ordinary.handler_cancellation,
            **ordinary._kwargs,
        )
        self.desk = Desk(app)

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """aiohttp's runner of an application, with the short way.

    Attributes
    ----------
    desk: None before it is set up.
    """

    desk: Desk | None = None

    async def _make_server(self) -> DirectServer:
        server = DirectServer(self.app, await super()._make_server())
        self.desk = server.desk
        return server
