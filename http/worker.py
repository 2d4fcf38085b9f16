"""One of several processes that serve one port: `python -m holdfast.http.worker NUMBER`, started by the supervisor.

Its orders come as one line through standard input, where nobody else can read the secrets in them. When that pipe ends,
the server stops, or the supervisor is dead: either way the worker answers who is there, and ends. On standard output it
says where it stands, a line each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import uvloop

from holdfast.engine import HoldfastError
from holdfast.engine.leadership import Leadership

from .app import create_app
from .logs import set_up_logging
from .process import collect_rarely, connections_max, engine_of
from .server import IDLE_SECONDS, SHUTDOWN_SECONDS, HttpServer
from .settings import ServeSettings
from .signals import stop_signal
from .totals import Totals

log = logging.getLogger("holdfast.worker")

#: Seconds in which a worker that was told to end has ended: those for its requests, and some for the engine, which
#: finishes its batches and takes a last snapshot. Then it is killed.
END_SECONDS: Final = IDLE_SECONDS + SHUTDOWN_SECONDS + 5.0

#: Seconds between two signs of life: a worker whose event loop does not come to it has stopped to answer, too.
BEAT_SECONDS: Final = 1.0

#: What a worker says: it accepts connections; it still lives; it accepts no more; it cannot start, and why.
SERVING: Final = "serving"
ALIVE: Final = "alive"
DRAINING: Final = "draining"
FAILED: Final = "failed"

#: Bytes of one read from the pipe.
READ_BYTES: Final = 65_536

_STDIN, _STDOUT = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a worker is told.

    Parameters
    ----------
    settings: of the server, with the Redis, the secret and the operator's token that the supervisor established.
    sockets: descriptors of the listening sockets, one for each address; inherited. leadership, totals: likewise.
    place: of this worker in the totals.
    """

    settings: ServeSettings
    sockets: tuple[int, ...]
    leadership: int
    totals: int
    place: int

    def line(self) -> bytes:
        """As they are sent."""
        return json.dumps(asdict(self), default=str).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Self:
        """From what was sent."""
        sent = json.loads(line)
        # JSON knows lists and no tuples.
        settings: dict[str, Any] = sent["settings"]
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        for name in ("config", "data_dir"):
            settings[name] = Path(settings[name])
        return cls(
            settings=ServeSettings(**settings),
            sockets=tuple(sent["sockets"]),
            leadership=int(sent["leadership"]),
            totals=int(sent["totals"]),
            place=int(sent["place"]),
        )


def main() -> int:
    """Works until the pipe ends or a signal comes; the exit status."""
    name = f"worker {sys.argv[1]}"
    set_up_logging(name)
    line = b""
    while not line.endswith(b"\n"):
        more = os.read(_STDIN, READ_BYTES)
        if not more:
            return 0  # the supervisor died before it could say anything
        line += more
    orders = Orders.read(line)
    set_up_logging(name, orders.settings.log_format, orders.settings.log_level)
    collect_rarely()
    return uvloop.run(work(orders))


async def work(orders: Orders) -> int:
    """Serves as ordered; the exit status."""
    stop = stop_signal()
    threading.Thread(target=_watch, args=(asyncio.get_running_loop(), stop), daemon=True).start()
    settings = orders.settings
    engine = engine_of(settings, heal=settings.recover, leadership=Leadership(orders.leadership))
    try:
        async with engine:
            app = create_app(engine, settings.app_config(""), Totals(orders.totals, orders.place))
            server = HttpServer(app, connections_max(settings))
            try:
                for descriptor in orders.sockets:
                    await server.start(socket.socket(fileno=descriptor))
                _say(SERVING)
                beat = asyncio.create_task(_beat())
                await stop.wait()
                beat.cancel()
                _say(DRAINING)
            finally:
                await server.drain()
    except HoldfastError as error:
        _say(f"{FAILED} {' '.join(str(error).split())}")
        return 1
    return 0


async def _beat() -> None:
    """Says that it lives, for as long as the event loop turns."""
    # A supervisor that does not read, because it was stopped, must not stop us.
    os.set_blocking(_STDOUT, False)
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        _say(ALIVE)


def _say(words: str) -> None:
    # Without a supervisor nobody listens, and what is under way is finished all the same.
    with contextlib.suppress(OSError):
        os.write(_STDOUT, f"{words}\n".encode())


def _watch(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Waits for the end of the pipe, and then for that of the process: in a thread, which no handler holds up."""
    while os.read(_STDIN, READ_BYTES):
        pass
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(stop.set)
    time.sleep(END_SECONDS)
    log.critical("did not end within %g seconds", END_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
