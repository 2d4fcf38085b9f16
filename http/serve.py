"""A server, from its settings to an orderly end: in one process, or in one that watches over several."""

from __future__ import annotations

import asyncio

import uvloop

from .app import create_app
from .logs import set_up_logging
from .process import allow_many_connections, collect_rarely, connections_max, engine_of
from .server import HttpServer
from .settings import ServeSettings
from .signals import stop_signal
from .sockets import admit_no_more, listening, patience
from .supervisor import supervise
from .welcome import established_token, welcome


def run(settings: ServeSettings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises
    ------
    ConfigurationError: it cannot start like this.
    """
    set_up_logging("", settings.log_format, settings.log_level)
    allow_many_connections()
    if settings.workers == 1:
        collect_rarely()
        uvloop.run(serve(settings))
    else:
        asyncio.run(supervise(settings))


async def serve(settings: ServeSettings) -> None:
    """Start, serve, and stop in order: no new requests, then the running ones, then the engine.

    Raises
    ------
    ConfigurationError: it cannot start like this; nothing is left running.
    """
    stop = stop_signal()
    engine = engine_of(settings, recover=settings.recover, heal=settings.recover)
    # Checked with any token before anything is started, so that a slip costs nothing.
    settings.app_config("0" * 32)
    most = connections_max(settings)
    async with engine:
        operator_token = await established_token(engine, settings)
        server = HttpServer(create_app(engine, settings.app_config(operator_token)), most)
        (sockets,) = await listening(settings.host, settings.port, 1, patience(engine))
        try:
            port = sockets[0].getsockname()[1]
            for sock in sockets:
                await server.start(sock)
            await welcome(engine, settings, operator_token, port)
            await stop.wait()
            print("Stopping: running requests are finished first.", flush=True)
            await admit_no_more(sockets)
        finally:
            await server.drain()
