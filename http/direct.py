"""aiohttp's server with a short way for the two calls of a stampede, reserving and paying.

aiohttp's parser reads the request; when all of it has come and the desk takes it, it is answered from there, without
the request and response objects, the stream and the two tasks that aiohttp makes for each. Whatever the desk does not
take, and a body that comes in pieces, goes on the ordinary way.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, cast

from aiohttp import hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler

from .app import SERVER_NAME
from .bodies import BODY_BYTES_MAX
from .context import ABANDONED
from .desk import Desk, Exchange
from .problems import MalformedRequest, problem, went_wrong
from .tally import Tally

log = logging.getLogger("holdfast.http")

#: Bytes that a client may send ahead while its request is being answered, before reading pauses.
EARLY_BYTES_MAX: Final = 64 * 1024

#: Bytes of a request line and headers that come in pieces. aiohttp's own bounds (8,190 bytes a line, 128 headers) allow
#: a megabyte; browsers and proxies send two to eight kilobytes.
HEAD_BYTES_MAX: Final = 32 * 1024

#: Seconds in which a request line with its headers must have arrived, from the opening of the connection or from its
#: first byte on. They fit into a packet or two: who needs longer only holds a connection.
HEAD_SECONDS: Final = 10.0

#: Seconds for which a client may leave an answer unread, or an answer to a closed connection may be under way.
UNREAD_SECONDS: Final = 30.0

#: Seconds between two looks at all connections for those that are late. One timer for all: one for each would have to
#: be set and cancelled with every request.
LOOK_SECONDS: Final = 1.0

#: Connections beyond the most that a server keeps: enough to look into what the newest of them ask for. The operator's
#: calls and those of health are answered, all others turned away.
SURPLUS_MAX: Final = 256

#: Connections of a server when nobody says how many.
CONNECTIONS_MAX_DEFAULT: Final = 10_000


#: A request that is whole and alone in what has arrived, with its body; and all that the parser has made of that: its
#: answer, or the mistake that it found. None stands for a connection that was lost.
Parsed = tuple[RawRequestMessage | None, bytes, Any]


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
    busy: something has arrived and has not been answered, or left to aiohttp.
    exchange: the request that is being answered on the short way, if one is.
    surplus: it came when there were as many as there may be: it is answered once, and mostly turned away.
    """

    __slots__ = (
        "_ahead",
        "_answered",
        "_asks_since",
        "_finished",
        "_head_bytes",
        "_remote",
        "_stuck_since",
        "_turn",
        "_unread",
        "busy",
        "desk",
        "exchange",
        "surplus",
    )

    def __init__(self, manager: DirectServer, **options: Any) -> None:
        super().__init__(manager, **options)
        self.desk = manager.desk
        self._turn = manager.turn
        self.busy = False
        self.exchange: Exchange | None = None
        #: Requests that aiohttp has answered. While it has had more than that, it gets the next one, too.
        self._finished = 0
        #: What the client sent before it had its answer.
        self._ahead = b""
        #: The client does not read its answers: nothing more is begun for it until it does.
        self._unread = False
        self._answered: asyncio.Future[None] | None = None
        self._remote: str | None = None
        self.surplus = False
        #: Since when the head of a request has been awaited, and what has come of it; 0.0 when none is.
        self._asks_since = 0.0
        self._head_bytes = 0
        #: Since when nothing that was written has been read; 0.0 when it has.
        self._stuck_since = 0.0

    @property
    def remote(self) -> str | None:
        """The address of the other end, as `web.Request.remote` has it."""
        if self._remote is None and self.peername is not None:
            peer = self.peername
            self._remote = str(peer[0]) if isinstance(peer, (list, tuple)) else str(peer)
        return self._remote

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins, unless there are too many even to look at what they want."""
        manager = cast(DirectServer, self._manager)
        others = len(manager._connections)
        if others >= manager.connections_max + SURPLUS_MAX:
            manager.turned_away += 1
            manager.desk.tally.turned_away += 1
            cast(asyncio.Transport, transport).abort()
            return
        self.surplus = others >= manager.connections_max
        self._asks_since = self._loop.time()
        super().connection_made(transport)

    def late(self, now: float) -> bool:
        """Whether a client has had its time, to send a request or to read an answer."""
        if self.transport is None and not self._stuck_since:
            # Closed by us: what is left of an answer is on its way.
            self._stuck_since = now
        if self._stuck_since:
            return now - self._stuck_since > UNREAD_SECONDS
        return 0.0 < self._asks_since < now - HEAD_SECONDS

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        super().pause_writing()
        self._stuck_since = self._loop.time()

    def data_received(self, data: bytes) -> None:
        """Takes what the client sent."""
        if self.busy:
            self._ahead += data
            if len(self._ahead) > EARLY_BYTES_MAX and self.transport is not None:
                self.transport.pause_reading()
        elif (
            self._request_count != self._finished
            or self._upgraded
            or self._close
            or self._force_close
            or self.desk.draining
        ):
            self._ordinary(None, data)
        else:
            self.busy = True
            self._turn.arrived(self, data)

    def parse(self, data: bytes) -> Parsed:
        """What aiohttp's parser makes of what has arrived, and the request in it when that is whole and alone.

        A connection that was lost meanwhile has nothing any more.
        """
        parser = self._parser
        if parser is None:
            return None, b"", None
        try:
            parsed = messages, upgraded, _ = parser.feed_data(data)
        except Exception as error:
            # Said, or seen as a mistake of ours, where the ordinary way would have met it.
            return None, b"", error
        if not messages and not upgraded:
            return None, b"", self._incomplete(len(data))
        self._asks_since = 0.0
        if len(messages) == 1 and not upgraded:
            message, payload = messages[0]
            if payload.is_eof() and payload.exception() is None:
                body = b"".join(payload._buffer) if payload is not EMPTY_PAYLOAD else b""
                if len(body) <= BODY_BYTES_MAX:
                    return message, body, parsed
        return None, b"", parsed

    def _incomplete(self, more: int) -> LineTooLong | None:
        """The head of a request has not come to its end yet; the mistake that it is when it will be too long."""
        if not self._asks_since:
            self._asks_since, self._head_bytes = self._loop.time(), 0
        self._head_bytes += more
        return LineTooLong("the head of a request", HEAD_BYTES_MAX) if self._head_bytes > HEAD_BYTES_MAX else None

    def begin(self, data: bytes, parsed: Parsed) -> None:
        """Begins to answer what has arrived, on the short way or the ordinary one."""
        message, body, all_of_it = parsed
        if self.surplus and isinstance(all_of_it, tuple) and not self._goes_first(all_of_it[0]):
            self._turn_away()
            return
        if message is not None and self.desk.take(self, message, body):
            parser, manager = self._parser, self._manager
            if parser is not None and manager is not None:
                parser.message_consumed()
                manager.requests_count += 1
            return
        self._free()
        if all_of_it is not None:
            self._ordinary(all_of_it, data)
        self._go_on()

    def _goes_first(self, messages: Any) -> bool:
        return bool(messages) and self.desk.goes_first(messages[0][0])

    def _turn_away(self) -> None:
        """Says that there is no room, and closes."""
        cast(DirectServer, self._manager).turned_away += 1
        self.desk.tally.turned_away += 1
        if self.transport is not None:
            self.transport.write(self.desk.said_full())
        self._free()
        self.force_close()

    def fail(self, error: Exception) -> None:
        """Ends the connection after a mistake of ours, as the event loop does when `data_received` raises."""
        context = {"message": "a request could not be answered", "exception": error, "protocol": self}
        self._loop.call_exception_handler(context)
        if self.transport is not None:
            self.transport.abort()

    def _free(self) -> None:
        """Nothing is being answered any more."""
        self.busy = self._unread = False
        self.exchange = None
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def _go_on(self) -> None:
        """Takes what the client sent ahead."""
        if self._ahead and self.transport is not None:
            data, self._ahead = self._ahead, b""
            # aiohttp pauses, too, when it has as much as it can keep.
            if not self._buffer_paused and not self._reading_paused:
                self.transport.resume_reading()
            self.data_received(data)

    def _ordinary(self, parsed: Any, data: bytes) -> None:
        """Leaves to aiohttp what was sent, and with `parsed` what the parser has made of it."""
        # From here on its own time holds, that of an idle connection.
        self._asks_since = 0.0
        if parsed is None:
            super().data_received(data)
            return
        parser, self._parser = self._parser, cast(Any, _Parsed(parsed))
        try:
            super().data_received(data)
        finally:
            self._parser = parser

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Writes an answer that was made on the ordinary way; after the last one the short way is open again."""
        finished = await super().finish_response(request, resp, start_time)
        if resp.keep_alive:
            self._finished += 1
        return finished

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is not HTTP, or to a mistake outside the application: aiohttp's names its version."""
        # It logs the mistake, and raises when an answer has begun already.
        super().handle_error(request, status, exc, message)
        error = MalformedRequest("This is not HTTP as everybody reads it.") if status == 400 else went_wrong()
        response = problem(error, self.desk.left_over(error))
        response.headers[hdrs.SERVER] = SERVER_NAME
        response.force_close()
        return response

    def answer(self, said: bytes) -> None:
        """Answers the request that is under way."""
        self._turn.answered(self, said)

    def write(self, said: bytes) -> None:
        """Writes the answer, and goes on with what came meanwhile."""
        transport = self.transport
        if transport is not None:
            transport.write(said)
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
            if self._paused:
                self._unread = True
                return
        self._free()
        self._go_on()

    def resume_writing(self) -> None:
        """The client has read again: on with what it sent meanwhile."""
        super().resume_writing()
        self._stuck_since = 0.0
        if self._unread:
            self._free()
            self._go_on()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone: what it asked for is not sent to Redis any more, if it was not yet."""
        if self.exchange is not None:
            self.exchange.answered = True
        self._ahead = b""
        self._free()
        request = self._current_request
        work = request.get(ABANDONED) if request is not None else None
        if request is None and self._task_handler is not None:
            # It may have been woken for a request already, and would find nothing to make one with.
            self._task_handler.cancel()
        super().connection_lost(exc)
        if work is not None:
            work.cancel()

    def _process_keepalive(self) -> None:
        if not self.busy:
            super()._process_keepalive()
        else:
            # Not idle: looked at again when it may be.
            self._keepalive_handle = self._loop.call_at(
                self._loop.time() + self._keepalive_timeout, self._process_keepalive
            )

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """Ends the connection once the request that is under way has its answer, or after `timeout` seconds."""
        if self._paused and self.transport is not None:
            # Who does not read would hear of no answer, and keep everybody waiting.
            self.transport.abort()
        if self.busy:
            self._answered = self._loop.create_future()
            await asyncio.wait([self._answered], timeout=timeout)
        # aiohttp waits twice for as long.
        await super().shutdown(None if timeout is None else timeout / 2)


class Turn:
    """What is done in one turn of the event loop, step by step for all connections of a server.

    What has arrived is parsed together, then begun together, and answers are written together. One by one, every step
    would find the caches of the processor filled by those of the request before it: the kernel reads a socket, the
    parser runs, Python makes an answer, the kernel writes. The same instructions then take two to four times as long
    (measured, see `docs/design.md`).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, tally: Tally) -> None:
        self._loop = loop
        self._tally = tally
        self._arrived: list[tuple[Connection, bytes]] = []
        self._answers: list[tuple[Connection, bytes]] = []

    def arrived(self, connection: Connection, data: bytes) -> None:
        """Has this looked at before the loop waits again."""
        if not self._arrived:
            self._loop.call_soon(self._begin)
        self._arrived.append((connection, data))

    def answered(self, connection: Connection, said: bytes) -> None:
        """Has this written before the loop waits again."""
        if not self._answers:
            self._loop.call_soon(self._write)
        self._answers.append((connection, said))

    def _begin(self) -> None:
        self._tally.turn()
        arrived, self._arrived = self._arrived, []
        parsed = [connection.parse(data) for connection, data in arrived]
        for (connection, data), each in zip(arrived, parsed, strict=True):
            try:
                connection.begin(data, each)
            except Exception as error:
                # The others have nothing to do with it.
                connection.fail(error)
        # What has its answer at once need not wait until sockets were looked at again.
        self._write()

    def _write(self) -> None:
        answers, self._answers = self._answers, []
        for connection, said in answers:
            try:
                connection.write(said)
            except Exception as error:
                connection.fail(error)
        self._tally.written()


class DirectServer(web.Server):
    """aiohttp's server of an application, whose connections know the short way.

    Parameters
    ----------
    ordinary: the server that aiohttp made of the application.
    connections_max: connections that it keeps; those beyond are turned away.

    Attributes
    ----------
    turned_away: connections since the last look at them.
    """

    def __init__(self, app: web.Application, ordinary: web.Server, connections_max: int) -> None:
        super().__init__(
            ordinary.request_handler,
            request_factory=ordinary.request_factory,
            handler_cancellation=ordinary.handler_cancellation,
            **ordinary._kwargs,
        )
        self.desk = Desk(app)
        self.turn = Turn(self._loop, self.desk.tally)
        self.desk.tally.connections = lambda: len(self._connections)
        self.connections_max = connections_max
        self.turned_away = 0
        self._look_again = self._loop.call_later(LOOK_SECONDS, self._look)

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)

    def _look(self) -> None:
        """Closes the connections whose clients have had their time."""
        now = self._loop.time()
        for connection, transport in list(self._connections.items()):
            if cast(Connection, connection).late(now):
                transport.abort()
        if self.turned_away:
            log.warning("%d connections were turned away: there are %d already", self.turned_away, self.connections_max)
            self.turned_away = 0
        self._look_again = self._loop.call_later(LOOK_SECONDS, self._look)

    async def shutdown(self, timeout: float | None = None) -> None:
        """Ends all connections."""
        try:
            await super().shutdown(timeout)
        finally:
            self._look_again.cancel()


class Runner(web.AppRunner):
    """aiohttp's runner of an application, with the short way.

    Attributes
    ----------
    desk: None before it is set up.
    connections_max: connections that its server keeps.
    """

    desk: Desk | None = None
    connections_max: int = CONNECTIONS_MAX_DEFAULT

    async def _make_server(self) -> DirectServer:
        server = DirectServer(self.app, await super()._make_server(), self.connections_max)
        self.desk = server.desk
        return server
