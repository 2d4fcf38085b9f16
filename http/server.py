"""The HTTP server: connections of sockets that listen already, and an end at which no request is lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Final

from aiohttp import hdrs, web

from .direct import CONNECTIONS_MAX_DEFAULT, Connection, Runner
from .health import DRAINING
from .stream import STREAMS

#: Seconds for which an idle connection is kept: longer than the 60 s after which common proxies give up theirs, so that
#: it is never we who close one in use.
KEEP_ALIVE_SECONDS: Final = 75.0

#: Seconds in which a refused request may still send its body before the connection is closed on it.
LINGER_SECONDS: Final = 2.0

#: Seconds that running requests get to finish at shutdown; they wait for Redis, which answers in milliseconds.
SHUTDOWN_SECONDS: Final = 10.0

#: Seconds of silence after which a kept connection is closed at shutdown. Before, its client may be about to send, and
#: is told by the next answer that the connection ends; clients that are busy send within milliseconds.
IDLE_SECONDS: Final = 1.0

#: Seconds between two looks at the connections that are left.
LOOK_SECONDS: Final = 0.02

#: Connections that wait to be accepted: in a stampede they all come at once (the kernel may cap it lower).
BACKLOG: Final = 4096

#: Of the connections that are kept, the part that may be streams: buyers need the others.
STREAMS_SHARE: Final = 0.5

#: How aiohttp's server is run.
SERVER_OPTIONS: Final[dict[str, Any]] = {
    "access_log": None,
    "keepalive_timeout": KEEP_ALIVE_SECONDS,
    "lingering_time": LINGER_SECONDS,
    "shutdown_timeout": SHUTDOWN_SECONDS,
    # A compressed body is refused; nothing may unpack it first.
    "auto_decompress": False,
}


class HttpServer:
    """Answers the requests of an application.

    Parameters
    ----------
    app: not yet started; nothing else may serve it.
    connections_max: connections that are kept; those beyond are turned away.
    """

    def __init__(self, app: web.Application, connections_max: int = CONNECTIONS_MAX_DEFAULT) -> None:
        self._draining = app[DRAINING]
        self._streams = app[STREAMS]
        self._streams.readers_max = round(connections_max * STREAMS_SHARE)
        self._sockets: list[socket.socket] = []
        self._runner = Runner(app, **SERVER_OPTIONS)
        self._runner.connections_max = connections_max
        app.on_response_prepare.append(self._say_close)

    async def start(self, sock: socket.socket) -> None:
        """Begins to accept the connections of a listening socket, which is closed at the end; once for each socket."""
        if self._runner.server is None:
            await self._runner.setup()
        # The event loop closes the socket that it is given as soon as it stops to accept.
        self._sockets.append(sock.dup())
        await web.SockSite(self._runner, sock, backlog=BACKLOG).start()

    async def drain(self) -> None:
        """Answers whoever is connected or waits to be accepted, and ends.

        What comes to the socket afterwards stays in its queue for another process that has it, if there is one.
        """
        self._draining.set()
        if self._runner.desk is not None:
            self._runner.desk.draining = True
        for site in list(self._runner.sites):
            await site.stop()
        self._streams.end()
        for sock in self._sockets:
            with contextlib.suppress(OSError), sock:
                await self._accept_waiting(sock)
        for _ in range(round(IDLE_SECONDS / LOOK_SECONDS)):
            if self._runner.server is None or not self._runner.server.connections:
                break
            await asyncio.sleep(LOOK_SECONDS)
        # Closes what is idle, and waits for what runs.
        await self._runner.cleanup()

    async def _accept_waiting(self, sock: socket.socket) -> None:
        """Accepts what waits now; no more than fit into the queue, since in a stampede others keep coming.

        Raises
        ------
        OSError: nothing waits any more.
        """
        server = self._runner.server
        assert server is not None
        sock.setblocking(False)
        for _ in range(BACKLOG):
            connection, _ = sock.accept()
            connection.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(server, connection)

    async def _say_close(self, request: web.Request, response: web.StreamResponse) -> None:
        protocol = request.protocol
        if self._draining.is_set() or (isinstance(protocol, Connection) and protocol.surplus):
            response.force_close()
            response.headers[hdrs.CONNECTION] = "close"
