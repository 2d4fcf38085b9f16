"""aiohttp's server with a short way for the two calls of a stampede, reserving and paying.

aiohttp's parser reads the request; when all of it has come and the desk takes it, it is answered from there, without
the request and response objects, the stream and the two tasks that aiohttp makes for each. Whatever the desk does not
take, and a body that comes in pieces, goes on the ordinary way.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler

from .bodies import BODY_BYTES_MAX
from .context import ABANDONED
from .desk import Desk, Exchange

#: Bytes that a client may send ahead while its request is being answered, before reading pauses.
EARLY_BYTES_MAX: Final = 64 * 1024


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
